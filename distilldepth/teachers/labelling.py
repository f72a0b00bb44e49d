"""What a teacher says of a batch of regions and of their windows: the same for training and for stored labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from distilldepth.images.crops import Regions
from distilldepth.teachers.teacher import PseudoLabel, Teacher

_MOST_PIXELS = 8 << 20
"""Of regions and windows in one pass of a teacher; 20 images of 560 x 560 are 6.3 million."""


def label_regions(regions: Regions, teacher: Teacher, *, features: Collection[str] = ()) -> PseudoLabel:
    """Return what a teacher says of regions and of their windows, both clean.

    Windows that have the size of the regions go through the teacher with them, in one pass, as long as they are not too
    many. Features are those of the regions alone.

    Args:
        regions: on the teacher's device, `image` and `patches` uint8.
        teacher: who labels.
        features: the levels of the teacher's encoder features that are wanted too.
    """
    count, windows = regions.boxes.shape[:2]
    if teacher.views > 1:
        # Windows are cut from one view; who asks for them of such a teacher is refused before.
        return teacher.label_pairs(regions, to_float(regions.views(teacher.views)), features=features)
    images = to_float(regions.image)
    if not windows:
        return teacher.label(images, regions.depth, features=features)
    patches = to_float(regions.patches.flatten(0, 1))
    depth = regions.depth
    patch_depth = None if regions.patch_depth is None else regions.patch_depth.flatten(0, 1)
    pixels = (count + len(patches)) * images[0, 0].numel()
    if patches.shape[1:] != images.shape[1:] or pixels > _MOST_PIXELS or (depth is None) != (patch_depth is None):
        label = teacher.label(images, depth, features=features)
        of_windows = teacher.label(patches, patch_depth)
        return replace(label, patch_disparity=of_windows.disparity, patch_valid=of_windows.valid)
    both = torch.cat([images, patches])
    joined = None if depth is None or patch_depth is None else torch.cat([depth, patch_depth])
    label = teacher.label(both, joined, features=features)
    return replace(
        label,
        disparity=label.disparity[:count],
        valid=label.valid[:count],
        features={name: value[:count] for name, value in label.features.items()},
        patch_disparity=label.disparity[count:],
        patch_valid=label.valid[count:],
    )


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as floating ones in [0, 1]."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)
