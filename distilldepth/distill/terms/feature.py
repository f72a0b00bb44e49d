"""The encoder features of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.images.crops import Regions
from distilldepth.losses.feature import feature_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class FeatureTerm(ProjectedTerm):
    """Encoder features of student and teacher (L_feat), at the teacher's size."""

    def __init__(
        self,
        weight: float,
        student_channels: int,
        teacher_channels: Mapping[str, int],
        *,
        tolerance: float = 0.15,
        level: str = "encoder",
    ) -> None:
        super().__init__("feature", weight, student_channels, teacher_channels, level=level)
        self.tolerance = tolerance

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return feature_loss(*self.projected(student, label), tolerance=self.tolerance)
