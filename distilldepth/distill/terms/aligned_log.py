"""The error in log depth after the fit that evaluation makes."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.images.crops import Regions
from distilldepth.losses.aligned_log import aligned_log_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class AlignedLogTerm(Term):
    """Relative error in depth after the fit that evaluation makes; see `aligned_log_loss`."""

    needs = frozenset({"inverse_depth"})

    def __init__(self, weight: float, knee: float | None = None) -> None:
        super().__init__("aligned_log", weight)
        self.knee = knee or None

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return aligned_log_loss(student.values, label.disparity, label.valid, knee=self.knee)
