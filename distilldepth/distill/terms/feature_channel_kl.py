"""Encoder features as distributions over the positions, divergence."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.ops import channel_kl_loss


class FeatureChannelKlTerm(ProjectedTerm):
    """Divergence of encoder features as distributions over the positions, each channel by itself (CN+KL)."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        temperature: float = 1.0,
    ) -> None:
        super().__init__("feature_channel_kl", weight, student_channels, teacher_channels)
        self.temperature = temperature

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return channel_kl_loss(student, teacher, temperature=self.temperature)
