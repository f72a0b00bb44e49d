"""How well a student agrees with its teachers on held-out images, in numbers and pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.alignment import align
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.data import SourceView, whole_batches
from distilldepth.distill.teachers import Teacher, nearest_size
from distilldepth.files import write_atomically
from distilldepth.losses import normalise
from distilldepth.metrics import depth_metrics
from distilldepth.models import DepthModel
from distilldepth.models.preprocess import resize

PICTURES = 6
"""Held-out images kept as pictures."""


@torch.inference_mode()
def measure_agreement(
    student: DepthModel, teachers: list[Teacher], heldout: SourceView, config: DistillConfig, pictures: Path
) -> dict[str, Any]:
    """Compare the student with every teacher, and with the truth where the images have it.

    Per teacher: `correlation` of the two disparity maps (Pearson, per image, averaged; affine-invariant, 1 is best) and
    `ssi_error`, the mean absolute difference after each map is normalised by its median and mean absolute deviation
    (0 is best). With truth, `depth`: AbsRel and delta1 after least squares in disparity. `replaced`: how many images
    could not be read, so that the next one stood in for them.

    Maps of the first images are written to `pictures` as arrays for the report.
    """
    if len(heldout) == 0:
        return {"images": 0, "teachers": {}}
    was_training = student.training
    student.eval()
    device = next(student.parameters()).device
    sums: dict[str, dict[str, list[Tensor]]] = {}
    truth: dict[str, list[Tensor]] = {}
    kept: dict[str, list[np.ndarray]] = {"image": [], "student": []}
    replaced = 0
    for batch in whole_batches(heldout, config, config.batch_size):
        replaced += int((batch["unreadable"] > 0).sum())
        images = batch["image"].to(device).float() / 255
        depth = batch["depth"].to(device) if "depth" in batch else None
        predicted = predict_at(student, images)
        kept["image"].append(batch["image"].permute(0, 2, 3, 1).numpy())
        kept["student"].append(predicted.cpu().numpy())
        for teacher in teachers:
            label = teacher.label(images, depth)
            scores = sums.setdefault(teacher.name, {"correlation": [], "ssi_error": []})
            scores["correlation"].append(_correlation(predicted, label.disparity, label.valid))
            scores["ssi_error"].append(_ssi_error(predicted, label.disparity, label.valid))
            kept.setdefault(teacher.name, []).append(label.disparity.cpu().numpy())
        if depth is not None:
            valid = torch.isfinite(depth) & (depth > 0)
            aligned = align(predicted, depth, valid, space="disparity").depth
            for name, values in depth_metrics(aligned, depth, valid).items():
                if name in ("abs_rel", "delta1"):
                    truth.setdefault(name, []).append(values)
    student.train(was_training)
    pictures.mkdir(parents=True, exist_ok=True)
    for name, arrays in kept.items():
        content = io.BytesIO()
        np.save(content, np.concatenate(arrays)[:PICTURES])
        write_atomically(pictures / f"{name.replace('/', '_')}.npy", content.getvalue())
    result: dict[str, Any] = {
        "images": len(heldout),
        "replaced": replaced,
        "teachers": {k: _means(v) for k, v in sums.items()},
    }
    if truth:
        result["depth"] = _means(truth)
    return result


def predict_at(student: DepthModel, images: Tensor) -> Tensor:
    """Return the student's map at the size of the images, `(B, H, W)`."""
    preprocessing = student.preprocessing
    inner = nearest_size(*images.shape[-2:], preprocessing.multiple)
    values = student(resize(images, inner, preprocessing.interpolation)).values.float()
    return resize(values[:, None], images.shape[-2:], "bilinear")[:, 0]


def _means(columns: dict[str, list[Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat(parts).nanmean()) for name, parts in columns.items()}


def _correlation(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    count = valid.flatten(1).sum(1).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        x = torch.where(valid, x.double(), 0.0).flatten(1)
        return torch.where(valid.flatten(1), x - (x.sum(1) / count)[:, None], 0.0)

    a, b = centred(a), centred(b)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-12)


def _ssi_error(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    difference = (normalise(a, valid) - normalise(b, valid)).abs()
    return torch.where(valid, difference, 0.0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
