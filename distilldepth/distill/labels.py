"""From a batch of regions to what the step takes: moved to the device, labelled by a teacher, augmented."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distilldepth.distill.augment import augment
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.step import StepInputs
from distilldepth.teachers.teacher import Teacher


def label_batch(
    batch: dict[str, Any], teacher: Teacher, config: DistillConfig, device: torch.device, *, features: bool
) -> StepInputs:
    """Move a batch to the device, let the teacher label regions and windows, and augment the student's view."""
    images = _to_float(batch["image"], device)
    depth = _move(batch.get("depth"), device)
    label = teacher.label(images, depth, features=features)
    inputs = StepInputs(
        augment(images, config.augment),
        label.disparity,
        label.valid,
        teacher_features=label.features,
        teacher=teacher.name,
        inverse_depth=teacher.info.quantity == "metric_depth",
    )
    if batch["boxes"].shape[1] and config.loss.local_global:
        patches = _to_float(batch["patches"].flatten(0, 1), device)
        patch_depth = batch.get("patch_depth")
        patch_label = teacher.label(patches, _move(None if patch_depth is None else patch_depth.flatten(0, 1), device))
        inputs.patch_pseudo_labels, inputs.patch_valid = patch_label.disparity, patch_label.valid
        inputs.boxes = _move(batch["boxes"].flatten(0, 1), device)
    return inputs


def _to_float(images: Tensor, device: torch.device) -> Tensor:
    moved = images.to(device, non_blocking=True)
    return moved.float().div_(255).contiguous(memory_format=torch.channels_last)


def _move(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)
