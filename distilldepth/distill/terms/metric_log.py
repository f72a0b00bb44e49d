"""The error in metres, for students that predict them."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.images.crops import Regions
from distilldepth.losses.metric_log import metric_log_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class MetricLogTerm(Term):
    """Error in log depth, at edges, and in metres, of students and teachers that know metres; see `metric_log_loss`."""

    needs = frozenset({"inverse_depth"})

    def __init__(self, weight: float, linear: float = 0.5) -> None:
        super().__init__("metric_log", weight)
        self.linear = linear

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return super().is_met(student, label) and label.quantity == "metric_depth"

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        # Infinitely far is 0 there, and no depth that could be met.
        known = label.valid & (label.disparity > 0)
        return metric_log_loss(student.values, 1 / label.disparity.where(known, 1.0), known, linear=self.linear)
