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
    """Mean over crops of the hybrid normalisation loss between a crop of the prediction and the teacher's view of it.

    `distilldepth.ops.crop_ssi_loss` documents and checks the arguments; this function trusts them.

    Args:
        prediction: `(B, H, W)`, the student's map of whole regions, any float dtype.
        targets: `(N, h, w)`, the teacher's maps of the crops.
        boxes: `(N, 4)` x0, y0, x1, y1 in pixels of the prediction, edges.
        image_index: `(N,)` int64, the image that each crop is from.
        valid: bool `(N, h, w)`; None = all.
        segments: how many contexts each level has.
        contexts: `range`, `quantile` or `spatial`.
        spread_eps: added to every spread.

    Returns:
        Scalar, float32 (float64 for float64 input). 0 with zero gradient if no crop has a valid pixel.

    Gradient: to `prediction`, exact, through sampling and normalisation.

    Source: Distill Any Depth, section 3.2 (L_lg).
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
    """Resample boxes of a map bilinearly.

    Sample point of crop pixel (i, j): `x = x0 + (j + 0.5) * (x1 - x0) / w - 0.5`, likewise y, clamped to the map
    (`align_corners=False`).

    Args:
        prediction: `(B, H, W)`, float32 or float64.
        boxes: `(N, 4)` x0, y0, x1, y1 in pixels of the map, edges.
        image_index: `(N,)` int64.
        size: (h, w) of the crops.

    Returns:
        `(N, h, w)`, differentiable in the map.

    >>> sample_crops(torch.arange(4.0).view(1, 1, 4), torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([0]), (1, 2))
    tensor([[[0., 1.]]])
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
