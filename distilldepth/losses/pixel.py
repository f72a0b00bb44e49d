"""Pixel-wise losses: scale-and-shift invariant, and plain."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.ops import hybrid_norm_loss
from distilldepth.ops.arguments import check_pair


def ssi_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, spread_eps: float = 1e-6) -> Tensor:
    """Mean absolute difference after each image of both maps is normalised by its median and mean absolute deviation.

    This is `hybrid_norm_loss` with one context per image; see there for arguments, result and errors.

    Source: Ranftl et al., Towards Robust Monocular Depth Estimation (2020), scale- and shift-invariant loss;
    Distill Any Depth, section 3.1.

    >>> target = torch.tensor([[[1.0, 2.0, 6.0]]])
    >>> float(ssi_loss(10 * target, target)) < 1e-5
    True
    """
    return hybrid_norm_loss(prediction, target, valid, segments=(1,), spread_eps=spread_eps)


def l1_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean absolute difference over the valid pixels of the whole batch, without any normalisation.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype.
        target: `(B, H, W)`, the teacher's map; must not require grad.
        valid: bool `(B, H, W)`; None = all.

    Returns:
        Scalar float32 or float64. 0 with zero gradient if there is no valid pixel; NaN if a valid pixel is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad.

    Gradient: to `prediction`.

    Source: Distill Any Depth, section 3.1 (no normalisation).

    >>> l1_loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
    tensor(2.)
    """
    check_pair("l1_loss", prediction, target, valid)
    pixels = absolute_difference(prediction, target, valid)
    count = max(pixels.numel(), 1) if valid is None else valid.sum().clamp(min=1)
    return pixels.sum() / count


def absolute_difference(prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """|prediction - target| in at least float32; 0 where not valid."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    prediction, target = prediction.to(dtype), target.to(dtype)
    if valid is not None:
        prediction, target = torch.where(valid, prediction, 0), torch.where(valid, target, 0)
    return (prediction - target).abs()
