"""What terms of features share: at which levels they look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distilldepth.distill.terms.base import Measured, Term
from distilldepth.images.crops import Regions
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class LevelsTerm(Term):
    """A term of features: the mean over the levels at which it looks of what it is at each.

    Subclasses give their name to `__init__`, and implement `at_level`.

    Args:
        name: of the term.
        weight: of the term.
        student_channels: width of the student's features by level.
        teacher_channels: for each teacher the widths of the levels at which it is looked at, which are the student's
            too.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        name: str,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
    ) -> None:
        super().__init__(name, weight)
        self._by_teacher = {teacher: tuple(widths) for teacher, widths in teacher_channels.items()}
        # Of a teacher that no label names, or by another name.
        self.levels = tuple(dict.fromkeys(level for levels in self._by_teacher.values() for level in levels))

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        if not (measured.student_channels and measured.teacher_channels):
            return None
        return cls(weight, measured.student_channels, measured.teacher_channels, **options)  # type: ignore[arg-type]  # of subclasses, which know their name

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return bool(self._met(student, label))

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        return torch.stack([self.at_level(level, student, label) for level in self._met(student, label)]).mean()

    def at_level(self, level: str, student: DepthOutput, label: PseudoLabel) -> Tensor:
        """Return the value at one level, which both have."""
        raise NotImplementedError

    def _met(self, student: DepthOutput, label: PseudoLabel) -> list[str]:
        levels = self._by_teacher.get(label.teacher, self.levels)
        return [level for level in levels if level in student.features and level in label.features]
