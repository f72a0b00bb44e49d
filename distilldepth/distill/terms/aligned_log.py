"""The error in log depth after the fit that evaluation makes."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import ObjectiveInputs, Term
from distilldepth.losses.aligned_log import aligned_log_loss


class AlignedLogTerm(Term):
    """Relative error in depth after the fit that evaluation makes; see `aligned_log_loss`."""

    needs = frozenset({"inverse_depth"})

    def __init__(self, weight: float, knee: float | None = None) -> None:
        super().__init__("aligned_log", weight)
        self.knee = knee

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return aligned_log_loss(inputs.prediction, inputs.pseudo_label, inputs.valid, knee=self.knee)
