"""The encoder features of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distilldepth.distill.terms.base import Measured, Term
from distilldepth.images.crops import Regions
from distilldepth.losses.feature import feature_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class FeatureTerm(Term):
    """Encoder features of student and teacher (L_feat).

    Where the widths differ a 1x1 projection of the student's features, one per teacher, is trained with the student and
    dropped with the objective. They are made here, not at the first batch, so that optimiser and checkpoints know them.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        weight: float,
        student_channels: int,
        teacher_channels: Mapping[str, int],
        *,
        tolerance: float = 0.15,
        level: str = "encoder",
    ) -> None:
        super().__init__("feature", weight)
        self.tolerance, self.level = tolerance, level
        self._widths = dict(teacher_channels)
        self.projections = nn.ModuleList(
            nn.Identity() if width == student_channels else nn.Conv2d(student_channels, width, 1)
            for width in self._widths.values()
        )

    @classmethod
    def make(cls, weight: float, options: dict[str, Any], measured: Measured) -> Term | None:
        if not (measured.student_channels and measured.teacher_channels):
            return None
        return cls(weight, measured.student_channels, measured.teacher_channels, **options)

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return self.level in student.features and self.level in label.features

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        target = label.features[self.level]
        projected = self._projection(label.teacher, target.shape[1])(student.features[self.level].float())
        return feature_loss(projected, target, tolerance=self.tolerance)

    def _projection(self, name: str, width: int) -> nn.Module:
        fitting = [i for i, known in enumerate(self._widths.items()) if known[1] == width and name in ("", known[0])]
        if len(fitting) != 1:
            known = ", ".join(f"{key} ({value})" for key, value in self._widths.items())
            raise ValueError(
                f"FeatureTerm: teacher features must come from one of {known}, got {width} channels of {name or 'a'} "
                f"teacher; name the teacher in PseudoLabel.teacher"
            )
        return self.projections[fitting[0]]
