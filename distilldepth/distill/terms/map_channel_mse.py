"""The maps of student and teacher as distributions over the pixels, squared difference."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.distill.terms.map_mse import normalised_maps
from distilldepth.images.crops import Regions
from distilldepth.losses.channel_mse import channel_mse_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class MapChannelMseTerm(Term):
    """Squared difference of the normalised maps as distributions over the pixels (CN+MSE of the logits)."""

    def __init__(self, weight: float, temperature: float = 1.0) -> None:
        super().__init__("map_channel_mse", weight)
        self.temperature = temperature

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return channel_mse_loss(*normalised_maps(student, label), label.valid, temperature=self.temperature)
