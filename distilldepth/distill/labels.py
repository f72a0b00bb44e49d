"""From a batch of regions to what the step takes: moved to the device, labelled by a teacher, augmented."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distilldepth.distill.augment import augment
from distilldepth.distill.config import AugmentSection
from distilldepth.images.crops import Regions
from distilldepth.teachers.teacher import PseudoLabel, Teacher


def label_batch(
    batch: Regions, teacher: Teacher, settings: AugmentSection, device: torch.device, *, features: bool
) -> tuple[Regions, PseudoLabel]:
    """Return the regions on the device, as the student sees them, and what the teacher says of them clean."""
    regions = batch.to(device)
    images = _to_float(regions.image)
    label = teacher.label(images, regions.depth, features=features)
    regions.image = augment(images, settings)
    if regions.boxes.shape[1]:
        depth = None if regions.patch_depth is None else regions.patch_depth.flatten(0, 1)
        windows = teacher.label(_to_float(regions.patches.flatten(0, 1)), depth)
        label = replace(label, patch_disparity=windows.disparity, patch_valid=windows.valid)
    return regions, label


def _to_float(images: Tensor) -> Tensor:
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)
