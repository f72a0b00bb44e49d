"""Student and teacher on the same region."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.distill.terms.table import NORMALISATIONS
from distilldepth.errors import did_you_mean
from distilldepth.images.crops import Regions
from distilldepth.losses.pixel import l1_loss
from distilldepth.models.base import DepthOutput
from distilldepth.ops import hybrid_norm_loss
from distilldepth.teachers.teacher import PseudoLabel


class SharedContextTerm(Term):
    """Student and teacher on the same region (L_sc)."""

    def __init__(self, weight: float, normalisation: str = "hybrid", contexts: str = "range") -> None:
        super().__init__("shared_context", weight)
        self.segments, self.contexts = segments_of(normalisation), contexts

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        if not self.segments:
            return l1_loss(student.values, label.disparity, label.valid)
        return hybrid_norm_loss(
            student.values, label.disparity, label.valid, segments=self.segments, contexts=self.contexts
        )


def segments_of(normalisation: str) -> tuple[int, ...]:
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"distill_any_depth_objective: normalisation must be one of {', '.join(NORMALISATIONS)}, "
            f"got {normalisation!r}{did_you_mean(normalisation, NORMALISATIONS)}"
        )
    return NORMALISATIONS[normalisation]
