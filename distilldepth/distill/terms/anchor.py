"""The pull of the output's centre and spread to fixed values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from distilldepth.distill.terms.base import Measured, Term, sum_over
from distilldepth.images.crops import Regions
from distilldepth.losses.anchor import anchor_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class AnchorTerm(Term):
    """A weak pull of the output's center and spread to fixed values; see `anchor_loss` for why."""

    def __init__(self, weight: float, center: float, spread: float) -> None:
        super().__init__("anchor", weight)
        self.center, self.spread = center, spread
        self._together: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        return cls(weight, measured.center, measured.spread, **options)

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return anchor_loss(student.values, label.valid, center=self.center, spread=self.spread, together=self._together)

    def join(self, processes: int) -> None:
        self._together = sum_over(processes)
