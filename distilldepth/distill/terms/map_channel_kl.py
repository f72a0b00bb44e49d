"""The maps of student and teacher as distributions over the pixels, divergence."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.distill.terms.map_mse import normalised_maps
from distilldepth.images.crops import Regions
from distilldepth.models.base import DepthOutput
from distilldepth.ops import channel_kl_loss
from distilldepth.teachers.teacher import PseudoLabel


class MapChannelKlTerm(Term):
    """Channel-wise distillation: divergence of the normalised maps as distributions over the pixels (CN+KL)."""

    def __init__(self, weight: float, temperature: float = 1.0) -> None:
        super().__init__("map_channel_kl", weight)
        self.temperature = temperature

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return channel_kl_loss(*normalised_maps(student, label), label.valid, temperature=self.temperature)
