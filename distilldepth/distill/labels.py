"""From a batch of regions to what the step takes: moved to the device, labelled by a teacher, augmented."""

from __future__ import annotations

from collections.abc import Collection

import torch

from distilldepth.distill.augment import augment
from distilldepth.distill.config import AugmentSection
from distilldepth.distill.guides import Guides
from distilldepth.images.crops import Regions
from distilldepth.teachers.labelling import label_regions, to_float
from distilldepth.teachers.stored import LabelledRegions
from distilldepth.teachers.teacher import PseudoLabel, Teacher


def label_batch(
    batch: Regions,
    teacher: Teacher,
    settings: AugmentSection,
    device: torch.device,
    *,
    features: Collection[str],
    guides: Guides | None = None,
) -> tuple[Regions, PseudoLabel]:
    """Return the regions on the device, as the student sees them, and what the teacher says, or said, of them clean.

    Guides see what the student sees; their map is aligned to the points of the regions.
    """
    regions = batch.to(device)
    label = regions.label if isinstance(regions, LabelledRegions) else None
    if label is None:
        label = label_regions(regions, teacher, features=features)
    if regions.right is None:
        regions.image = augment(to_float(regions.image), settings)
    else:
        # Beside each other, so that both views of a pair are changed alike.
        pair = augment(torch.cat([to_float(regions.image), to_float(regions.right)], 3), settings)
        regions.image, regions.right = (view.contiguous(memory_format=torch.channels_last) for view in pair.chunk(2, 3))
    if guides is not None:
        regions.aligned = guides.align(regions.image, regions.sparse)
    return regions, label
