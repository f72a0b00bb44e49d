"""What terms of metres share: which depth they look at."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from distilldepth.distill.terms.base import Term, sum_over
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class MetresTerm(Term):
    """A term of a student that predicts metres.

    Args:
        name: of the term.
        weight: of the term.
        nearest: metres; nearer depth is not looked at.
        farthest: metres; nor is farther depth. 0 for no bound.
    """

    def __init__(self, name: str, weight: float, nearest: float = 0.0, farthest: float = 0.0) -> None:
        super().__init__(name, weight)
        self.nearest, self.farthest = nearest, farthest
        self._together: Callable[[Tensor], Tensor] | None = None

    def join(self, processes: int) -> None:
        self._together = sum_over(processes)

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return super().is_met(student, label) and label.quantity == "metric_depth"

    def taught(self, label: PseudoLabel) -> tuple[Tensor, Tensor]:
        """Return what the teacher says in metres `(B, H, W)`, 1 where it says nothing, and where that is looked at."""
        # Infinitely far is 0 there, and no depth that could be met.
        known = label.valid & (label.disparity > 0)
        metres = 1 / label.disparity.where(known, 1.0)
        return metres, known & self.in_range(metres)

    def in_range(self, metres: Tensor) -> Tensor:
        """Return where depth is neither too near nor too far."""
        inside = metres > self.nearest
        return inside & (metres < self.farthest) if self.farthest else inside
