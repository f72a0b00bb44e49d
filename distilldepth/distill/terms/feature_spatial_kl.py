"""Encoder features as distributions over the channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.losses.spatial_kl import spatial_kl_loss


class FeatureSpatialKlTerm(ProjectedTerm):
    """Divergence of encoder features as distributions over the channels, each position by itself (SN+KL)."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        temperature: float = 1.0,
    ) -> None:
        super().__init__("feature_spatial_kl", weight, student_channels, teacher_channels)
        self.temperature = temperature

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return spatial_kl_loss(student, teacher, temperature=self.temperature)
