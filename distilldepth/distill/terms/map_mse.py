"""Squared difference between the maps of student and teacher."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.images.crops import Regions
from distilldepth.losses.channel_mse import mse_loss
from distilldepth.losses.normalise import normalise
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class MapMseTerm(Term):
    """Mean squared difference of the normalised maps (MSE of the logits)."""

    def __init__(self, weight: float) -> None:
        super().__init__("map_mse", weight)

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return mse_loss(*normalised_maps(student, label), label.valid)


def normalised_maps(student: DepthOutput, label: PseudoLabel) -> tuple[Tensor, Tensor]:
    """Return both maps with median 0 and mean absolute deviation 1, each by its own, over the valid pixels.

    A softmax over positions is not changed by a shift, but by a scale, and neither the student's nor most teachers'
    means anything.
    """
    return normalise(student.values, label.valid), normalise(label.disparity, label.valid)
