"""The focal loss of how well each image agrees in metres."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.metres import MetresTerm
from distilldepth.images.crops import Regions
from distilldepth.losses.focal import focal_depth_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class FocalDepthTerm(MetresTerm):
    """`focal_depth_loss` between the metres of student and teacher."""

    def __init__(
        self, weight: float, alpha: float = 1.0, gamma: float = 2.0, nearest: float = 0.0, farthest: float = 0.0
    ) -> None:
        super().__init__("focal_depth", weight, nearest, farthest)
        self.alpha, self.gamma = alpha, gamma

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        metres, known = self.taught(label)
        return focal_depth_loss(student.values, metres, known, alpha=self.alpha, gamma=self.gamma)
