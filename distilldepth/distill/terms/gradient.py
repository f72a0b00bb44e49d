"""The gradients of student and teacher at several scales."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.images.crops import Regions
from distilldepth.losses.gradient import gradient_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class GradientTerm(Term):
    """Multi-scale gradient matching on the region (L_grad)."""

    def __init__(self, weight: float, scales: int = 4) -> None:
        super().__init__("gradient", weight)
        self.scales = scales

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return gradient_loss(student.values, label.disparity, label.valid, scales=self.scales)
