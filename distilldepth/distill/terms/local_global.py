"""Windows of the student's map against the teacher's view of each window alone."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import Term
from distilldepth.distill.terms.shared_context import segments_of
from distilldepth.images.crops import Regions
from distilldepth.losses.pixel import absolute_difference
from distilldepth.models.base import DepthOutput
from distilldepth.ops import crop_ssi_loss, sample_crops
from distilldepth.reference.crop_ssi import per_crop_mean
from distilldepth.teachers.teacher import PseudoLabel


class LocalGlobalTerm(Term):
    """Windows of the student's map of the region against the teacher's maps of the windows alone (L_lg)."""

    needs = frozenset({"patches"})

    def __init__(self, weight: float, normalisation: str = "hybrid", contexts: str = "range") -> None:
        super().__init__("local_global", weight)
        self.segments, self.contexts = segments_of(normalisation), contexts

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        prediction, targets, valid = student.values, label.patch_disparity, label.patch_valid
        assert targets is not None, "is_met was asked before"
        boxes, index = regions.boxes.flatten(0, 1), regions.image_index
        if not self.segments:
            crops = sample_crops(prediction, boxes, index, targets.shape[-2:])
            return per_crop_mean(absolute_difference(crops, targets, valid), valid)
        return crop_ssi_loss(prediction, targets, boxes, index, valid, segments=self.segments, contexts=self.contexts)
