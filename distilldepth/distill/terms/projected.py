"""What terms of encoder features share: the student's features in the teacher's width."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.distill.terms.levels import LevelsTerm
from distilldepth.models.attention_adapter import AttentionAdapter
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class ProjectedTerm(LevelsTerm):
    """A term of encoder features.

    Where the widths differ a 1x1 projection of the student's features, one per teacher and level, is trained with the
    student and dropped with the objective. They are made here, not at the first batch, so that optimiser and
    checkpoints know them. They are compared on the teacher's grid; the last level, `encoder`, on the student's.

    Subclasses give their name to `__init__`, and implement `compare`.

    Args:
        name: of the term.
        weight: of the term.
        student_channels: width of the student's features by level.
        teacher_channels: of each teacher the widths of the levels at which it is looked at.
        adapter: form of the attention through which the student's features go last, `none` for none.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        adapter: str = "none",
    ) -> None:
        super().__init__(name, weight, student_channels, teacher_channels)
        self._places = [
            (level, teacher, width) for teacher, widths in teacher_channels.items() for level, width in widths.items()
        ]
        self.projections = nn.ModuleList(
            nn.Identity() if width == student_channels[level] else nn.Conv2d(student_channels[level], width, 1)
            for level, _, width in self._places
        )
        self.adapters = nn.ModuleList(
            AttentionAdapter(width, form=adapter) for _, _, width in self._places if adapter != "none"
        )

    def at_level(self, level: str, student: DepthOutput, label: PseudoLabel) -> Tensor:
        return self.compare(*self.comparable(level, student, label))

    def comparable(self, level: str, student: DepthOutput, label: PseudoLabel) -> tuple[Tensor, Tensor]:
        """Return the features of both at a level, `(B, C, h, w)` of one width and size, the student's adapted."""
        target = label.features[level]
        place = self._place(level, label.teacher, target.shape[1])
        own = self.projections[place](student.features[level].float())
        if self.adapters:
            own = self.adapters[place](own)
        return self.on_one_grid(level, own, target)

    def on_one_grid(self, level: str, own: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of both `(B, C, h, w)` at one size."""
        if own.shape[2:] == target.shape[2:]:
            return own, target
        if level == "encoder":
            return own, F.interpolate(target.float(), own.shape[2:], mode="bilinear", align_corners=False)
        height, width = target.shape[2:]
        if own.shape[2] >= height and own.shape[3] >= width:  # By the mean, so that every position counts.
            return F.adaptive_avg_pool2d(own, (height, width)), target
        return F.interpolate(own, (height, width), mode="bilinear", align_corners=False), target

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the value for features `(B, C, h, w)` of one width and size."""
        raise NotImplementedError

    def _place(self, level: str, name: str, width: int) -> int:
        places = [(i, *place[1:]) for i, place in enumerate(self._places) if place[0] == level]
        fitting = [i for i, teacher, known in places if known == width and name in ("", teacher)]
        if len(fitting) != 1:
            known = ", ".join(f"{teacher} ({value})" for _, teacher, value in places)
            raise ValueError(
                f"{type(self).__name__}: teacher features must come from one of {known}, got {width} channels of "
                f"{name or 'a'} teacher; name the teacher in PseudoLabel.teacher"
            )
        return fitting[0]
