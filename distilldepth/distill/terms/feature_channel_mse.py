"""Encoder features as distributions over the positions, squared difference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.losses.channel_mse import channel_mse_loss


class FeatureChannelMseTerm(ProjectedTerm):
    """Squared difference of encoder features as distributions over the positions, each channel by itself (CN+MSE)."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        temperature: float = 1.0,
    ) -> None:
        super().__init__("feature_channel_mse", weight, student_channels, teacher_channels)
        self.temperature = temperature

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return channel_mse_loss(student, teacher, temperature=self.temperature)
