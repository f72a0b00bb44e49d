"""What a term of the objective is, and what it may look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor, nn

from distilldepth.images.crops import Regions
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


@dataclass(frozen=True)
class Measured:
    """What is known of student and teachers when the terms are made."""

    student_channels: Mapping[str, int] = field(default_factory=dict)
    """Width of the student's encoder features by level; empty if it has none."""
    teacher_channels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Of each teacher that has features the width of those levels at which terms look, by teacher and level."""
    center: float = 0.5
    """Median to which the student's output is drawn."""
    spread: float = 0.15
    """Mean absolute deviation to which it is drawn."""


def sum_over(processes: int) -> Callable[[Tensor], Tensor]:
    """Return what adds up a tensor over so many processes, with the gradient that their average wants."""

    def together(sums: Tensor) -> Tensor:
        everyone = sums.detach().clone()
        dist.all_reduce(everyone)
        # The gradients of the processes are averaged, where this sum wants their sum.
        own = sums * processes
        return everyone + (own - own.detach())

    return together


class Term(nn.Module):
    """One weighted part of an objective.

    Subclasses set `needs`, a subset of `{"patches", "features", "inverse_depth"}`, and implement `forward`, which
    returns the unweighted value as a scalar. A term whose needs a batch does not meet is left out for that batch.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    levels: tuple[str, ...] = ()
    """Of features, those that it looks at."""

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Term: weight of {name} must be positive, got {weight}; leave the term out instead")
        self.name = name
        self.weight = float(weight)

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        """Return the term with the options of its row in the table; None where student or teachers cannot feed it."""
        return cls(weight=weight, **options)

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        """Whether a batch holds all that this term needs."""
        met = {
            "patches": label.patch_disparity is not None,
            "features": bool(student.features) and bool(label.features),
            "inverse_depth": label.inverse_depth,
        }
        return all(met[need] for need in self.needs)

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        """Return the value of a batch.

        Args:
            student: what the student says of the regions; `values` are disparity, larger = nearer.
            label: what the teacher says of them.
            regions: what was cut, as the student sees it.
        """
        raise NotImplementedError

    def join(self, processes: int) -> None:
        """Take as one batch what so many processes see, each of which must call this term equally often.

        Means of images, or of what all images have equally many of, are what they are of one batch when the gradients
        of the processes are averaged; nothing is done for those.
        """

    def extra_repr(self) -> str:
        return f"{self.name}, weight={self.weight:g}"
