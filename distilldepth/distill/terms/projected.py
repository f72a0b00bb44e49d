"""What terms of encoder features share: the student's features in the teacher's width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.distill.terms.base import Measured, Term
from distilldepth.images.crops import Regions
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class ProjectedTerm(Term):
    """A term of encoder features.

    Where the widths differ a 1x1 projection of the student's features, one per teacher, is trained with the student and
    dropped with the objective. They are made here, not at the first batch, so that optimiser and checkpoints know them.

    Subclasses give their name to `__init__`, and implement `compare`, or `forward` where the teacher's features must
    keep their size.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        name: str,
        weight: float,
        student_channels: int,
        teacher_channels: Mapping[str, int],
        *,
        level: str = "encoder",
    ) -> None:
        super().__init__(name, weight)
        self.level = level
        self._widths = dict(teacher_channels)
        self.projections = nn.ModuleList(
            nn.Identity() if width == student_channels else nn.Conv2d(student_channels, width, 1)
            for width in self._widths.values()
        )

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        if not (measured.student_channels and measured.teacher_channels):
            return None
        return cls(weight, measured.student_channels, measured.teacher_channels, **options)  # type: ignore[arg-type]  # of subclasses, which know their name

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return self.level in student.features and self.level in label.features

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        own, target = self.projected(student, label)
        if target.shape[2:] != own.shape[2:]:
            target = F.interpolate(target.float(), own.shape[2:], mode="bilinear", align_corners=False)
        return self.compare(own, target)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the value for features `(B, C, h, w)` of one width and of the student's size."""
        raise NotImplementedError

    def projected(self, student: DepthOutput, label: PseudoLabel) -> tuple[Tensor, Tensor]:
        """Return the student's features in the teacher's width, at their own size, and the teacher's as they are."""
        target = label.features[self.level]
        return self._projection(label.teacher, target.shape[1])(student.features[self.level].float()), target

    def _projection(self, name: str, width: int) -> nn.Module:
        fitting = [i for i, known in enumerate(self._widths.items()) if known[1] == width and name in ("", known[0])]
        if len(fitting) != 1:
            known = ", ".join(f"{key} ({value})" for key, value in self._widths.items())
            raise ValueError(
                f"{type(self).__name__}: teacher features must come from one of {known}, got {width} channels of "
                f"{name or 'a'} teacher; name the teacher in PseudoLabel.teacher"
            )
        return self.projections[fitting[0]]
