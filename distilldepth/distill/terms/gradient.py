"""The gradients of student and teacher at several scales."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import ObjectiveInputs, Term
from distilldepth.losses.gradient import gradient_loss


class GradientTerm(Term):
    """Multi-scale gradient matching on the region (L_grad)."""

    def __init__(self, weight: float, scales: int = 4) -> None:
        super().__init__("gradient", weight)
        self.scales = scales

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return gradient_loss(inputs.prediction, inputs.pseudo_label, inputs.valid, scales=self.scales)
