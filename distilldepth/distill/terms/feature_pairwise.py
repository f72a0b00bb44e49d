"""How alike the places of an image are in the encoder features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distilldepth.distill.terms.levels import LevelsTerm
from distilldepth.losses.pairwise import pairwise_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class FeaturePairwiseTerm(LevelsTerm):
    """Squared difference of the cosines between places (PWD), which compares features of any width and size.

    So nothing is projected: a projection would learn the likeness in place of the student.
    """

    def __init__(
        self, weight: float, student_channels: Mapping[str, int], teacher_channels: Mapping[str, Mapping[str, int]]
    ) -> None:
        super().__init__("feature_pairwise", weight, student_channels, teacher_channels)

    def at_level(self, level: str, student: DepthOutput, label: PseudoLabel) -> Tensor:
        return pairwise_loss(student.features[level], label.features[level])
