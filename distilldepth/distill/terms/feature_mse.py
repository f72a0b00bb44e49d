"""Squared difference between encoder features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.losses.channel_mse import mse_loss


class FeatureMseTerm(ProjectedTerm):
    """Mean squared difference of encoder features, as they are."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        adapter: str = "none",
    ) -> None:
        super().__init__("feature_mse", weight, student_channels, teacher_channels, adapter=adapter)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mse_loss(student, teacher)
