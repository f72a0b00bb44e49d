"""A loss that turns to the images in which the student is worst."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_pair

_LEAST = 1e-4
_KNEE = 0.05
"""Agreement from which on the printed formula holds, and what it sinks to in the end."""


def focal_depth_loss(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, alpha: float = 1.0, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each image's agreement with the teacher, mean over images.

    `-alpha (1 - p)^gamma log p` with `p = 1 - mean |target - prediction| / target` over the image's valid pixels. An
    image that is nearly right counts next to nothing.

    p is at most 1, but falls below 0 where the student is far off, as it is at first. From 0.05 down it is therefore
    replaced by `m + (k - m) / (1 + (k - p) / (k - m))`, k = 0.05 and m = 0.0001, which goes on with the same value and
    slope, never reaches m, and never becomes flat as a clamp would.

    Args:
        prediction: `(B, H, W)`, the student's depth, in the target's unit, a floating dtype.
        target: `(B, H, W)`, the teacher's depth, positive; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        alpha: factor, positive.
        gamma: how strongly images that are nearly right are left alone, at least 0.

    Returns:
        Scalar float32 or float64. Images without a valid pixel do not count; 0 with zero gradient if there is none.
        NaN if a valid target is not positive, or a valid pixel is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, numbers out of range.

    Gradient: to `prediction`.

    Source: ADU-Depth, equations 4 and 5 (L_focal). Its alpha and gamma are not printed; these are those of Lin et al.,
    Focal Loss for Dense Object Detection (2017), without their balance of classes.

    >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> round(float(focal_depth_loss(0.9 * target, target)), 5), round(float(focal_depth_loss(target / 2, target)), 3)
    (0.00105, 0.173)
    """
    check_pair("focal_depth_loss", prediction, target, valid)
    for name, value, good in (("alpha", alpha, alpha > 0), ("gamma", gamma, gamma >= 0)):
        if not (math.isfinite(value) and good):
            least = "positive" if name == "alpha" else "at least 0"
            raise ValueError(f"focal_depth_loss: {name} must be finite and {least}, got {value}")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    values, truth = prediction.flatten(1).to(dtype), target.flatten(1).to(dtype)
    kept = torch.ones_like(truth, dtype=torch.bool) if valid is None else valid.flatten(1)
    values, truth = torch.where(kept, values, 1), torch.where(kept, truth, 1)
    count = kept.sum(1)
    error = ((truth - values).abs() / torch.where(truth > 0, truth, torch.nan)).sum(1) / count.clamp(min=1)
    steps = (error - (1 - _KNEE)).clamp(min=0) / (_KNEE - _LEAST)
    missed = torch.where(error > 1 - _KNEE, 1 - _LEAST - (_KNEE - _LEAST) / (1 + steps), error)
    exact = missed <= 0
    missed = torch.where(exact, 0.5, missed)
    losses = torch.where(exact, 0, -alpha * missed**gamma * torch.log1p(-missed))
    # An error that is infinite is held as any other; it must show.
    losses = torch.where(count > 0, losses + 0 * error.detach(), 0)
    return losses.sum() / (count > 0).sum().clamp(min=1)
