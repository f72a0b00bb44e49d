"""The encoder features of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.losses.feature import feature_loss


class FeatureTerm(ProjectedTerm):
    """Encoder features of student and teacher (L_feat), at the teacher's size."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        *,
        tolerance: float = 0.15,
    ) -> None:
        super().__init__("feature", weight, student_channels, teacher_channels)
        self.tolerance = tolerance

    def on_one_grid(self, level: str, own: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # The loss brings the last level to the teacher's grid by itself.
        return (own, target) if level == "encoder" else super().on_one_grid(level, own, target)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_loss(student, teacher, tolerance=self.tolerance)
