"""How alike the places of an image are in the encoder features."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distilldepth.distill.terms.base import Measured, Term
from distilldepth.images.crops import Regions
from distilldepth.losses.pairwise import pairwise_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class FeaturePairwiseTerm(Term):
    """Squared difference of the cosines between places (PWD), which compares features of any width and size.

    So nothing is projected: a projection would learn the likeness in place of the student.
    """

    needs = frozenset({"features"})

    def __init__(self, weight: float, *, level: str = "encoder") -> None:
        super().__init__("feature_pairwise", weight)
        self.level = level

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        return cls(weight, **options) if measured.student_channels and measured.teacher_channels else None

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return self.level in student.features and self.level in label.features

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return pairwise_loss(student.features[self.level], label.features[self.level])
