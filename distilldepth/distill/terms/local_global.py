"""Windows of the student's map against the teacher's view of each window alone."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import ObjectiveInputs, Term
from distilldepth.distill.terms.shared_context import segments_of
from distilldepth.losses.pixel import absolute_difference
from distilldepth.ops import crop_ssi_loss, sample_crops
from distilldepth.reference.crop_ssi import per_crop_mean


class LocalGlobalTerm(Term):
    """Windows of the student's map of the region against the teacher's maps of the windows alone (L_lg)."""

    needs = frozenset({"patches"})

    def __init__(self, weight: float, normalisation: str = "hybrid", contexts: str = "range") -> None:
        super().__init__("local_global", weight)
        self.segments, self.contexts = segments_of(normalisation), contexts

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        prediction, targets, boxes = inputs.prediction, inputs.patch_pseudo_labels, inputs.boxes
        if not self.segments:
            crops = sample_crops(prediction, boxes, inputs.image_index, targets.shape[-2:])
            return per_crop_mean(absolute_difference(crops, targets, inputs.patch_valid), inputs.patch_valid)
        return crop_ssi_loss(
            prediction,
            targets,
            boxes,
            inputs.image_index,
            inputs.patch_valid,
            segments=self.segments,
            contexts=self.contexts,
        )
