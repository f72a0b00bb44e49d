"""Local-global loss in plain torch: what `distilldepth.ops.crop_ssi_loss` means, in float32 and float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilldepth.reference.hybrid_norm import accumulator_dtype, per_pixel_loss


def crop_ssi_loss(
    prediction: Tensor,
    targets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None = None,
    *,
    segments: Sequence[int] = (1,),
    contexts: str = "range",
    spread_eps: float = 1e-6,
) -> Tensor:
    """What `distilldepth.ops.crop_ssi_loss` means; see there for arguments, which this function trusts.

    Returns:
        Scalar, float32 (float64 for float64 input).
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, targets.dtype), torch.float32)
    crops = sample_crops(prediction.to(dtype), boxes, image_index, targets.shape[-2:])
    return per_crop_mean(per_pixel_loss(crops, targets, valid, segments, contexts, spread_eps), valid)


def per_crop_mean(pixels: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the crops that have a valid pixel of the mean over their valid pixels; `pixels` is 0 elsewhere."""
    sums = pixels.flatten(1).sum(1, dtype=accumulator_dtype(pixels))
    if valid is None:
        counts = torch.full_like(sums, max(pixels[0].numel(), 1) if len(pixels) else 1)
        used = torch.full_like(sums, float(pixels.numel() > 0))
    else:
        counts = valid.flatten(1).sum(1).to(sums)
        used = (counts > 0).to(sums)
    return ((sums / counts.clamp(min=1)).sum() / used.sum().clamp(min=1)).to(pixels)


def sample_crops(prediction: Tensor, boxes: Tensor, image_index: Tensor, size: Sequence[int]) -> Tensor:
    """What `distilldepth.ops.sample_crops` does, in the type of the map; see there for arguments.

    Returns:
        `(N, h, w)`, differentiable in the map.
    """
    _, height, width = prediction.shape
    # Coordinates in float64: float32 would be off by 1e-5 pixels at a few hundred, more than the arithmetic after it.
    boxes = boxes.to(accumulator_dtype(prediction))
    left, right, x_share = _sample_points(boxes[:, 0], boxes[:, 2], size[1], width)
    top, bottom, y_share = _sample_points(boxes[:, 1], boxes[:, 3], size[0], height)
    y_share, x_share = y_share.to(prediction)[:, :, None], x_share.to(prediction)[:, None, :]
    rows = prediction.reshape(-1, width)

    def row(y: Tensor) -> Tensor:
        return rows.index_select(0, (image_index[:, None] * height + y).flatten()).view(*y.shape, width)

    def column(lines: Tensor, x: Tensor) -> Tensor:
        return lines.gather(2, x[:, None, :].expand(-1, size[0], -1))

    lines = row(top) * (1 - y_share) + row(bottom) * y_share
    return column(lines, left) * (1 - x_share) + column(lines, right) * x_share


def _sample_points(first: Tensor, last: Tensor, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours on both sides of each sample point, int64 `(N, count)`, and the share of the second."""
    steps = torch.arange(count, device=first.device, dtype=first.dtype) + 0.5
    points = first[:, None] + steps * ((last - first) / max(count, 1))[:, None] - 0.5
    points = points.clamp(0, max(size - 1, 0))
    below = points.floor()
    # ceil, not below + 1: a sample on a pixel has one neighbour, and what is beside it must not leak in as 0 * NaN.
    return below.long(), points.ceil().long(), points - below
