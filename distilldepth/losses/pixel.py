"""Pixel-wise losses: scale-and-shift invariant, and plain."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.ops import hybrid_norm_loss
from distilldepth.ops.arguments import check_normaliser, check_pair
from distilldepth.reference.hybrid_norm import per_pixel_loss


def ssi_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    spread_eps: float = 1e-6,
    trim: float = 0.0,
) -> Tensor:
    """Mean absolute difference after each image of both maps is normalised by its median and mean absolute deviation.

    With M valid pixels in an image and r their differences in ascending order, over the images of the batch:
    `sum of the first floor((1 - trim) M) of r / sum of M`. The divisor counts what is trimmed too, so half of the loss
    with `trim=0.2` is the trimmed loss of MiDaS, whose divisor is 2 M. Without `trim` nothing is left out, and this is
    `hybrid_norm_loss` with one context per image; see there for arguments, result, errors and gradient.

    Args:
        trim: share of each image's valid pixels, those that differ most, that is left out; 0 to below 1. With it the
            loss runs in plain torch.

    Raises:
        ValueError: trim is out of its range.

    Source: Distill Any Depth, section 3.1, untrimmed; Ranftl et al., Towards Robust Monocular Depth Estimation (2020),
    equation 7, trimmed by 0.2 per image (its authors' published snippet sorts the pixels of a whole batch together).

    >>> target = torch.tensor([[[1.0, 2.0, 6.0]]])
    >>> float(ssi_loss(10 * target, target)) < 1e-5
    True
    """
    if not 0 <= trim < 1:
        raise ValueError(f"ssi_loss: trim must be at least 0 and below 1, got {trim}")
    if trim == 0:
        return hybrid_norm_loss(prediction, target, valid, segments=(1,), spread_eps=spread_eps)
    check_pair("ssi_loss", prediction, target, valid)
    check_normaliser("ssi_loss", (1,), "range", spread_eps)
    pixels = per_pixel_loss(prediction, target, valid, (1,), "range", spread_eps).flatten(1)
    kept = torch.ones_like(pixels, dtype=torch.bool) if valid is None else valid.flatten(1)
    count = kept.sum(1)
    # What is not valid comes last, and is never among the first M.
    ordered = torch.where(kept, pixels, torch.inf).sort(1).values
    first = torch.arange(pixels.shape[1], device=pixels.device) < (count.double() * (1 - trim)).floor()[:, None]
    # A difference that is not a number would be trimmed first, being sorted last.
    return torch.where(first, ordered, 0).sum() / count.sum().clamp(min=1) + 0 * pixels.detach().sum()


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
