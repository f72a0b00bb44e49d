"""A map without its unknown scale and shift."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distilldepth.ops.arguments import check_floats, check_valid, values_are_checked


def center_and_spread(values: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lower median of each image and the mean absolute deviation from it.

    Args:
        values: `(B, H, W)`, a floating dtype.
        valid: bool `(B, H, W)`; None = all.

    Returns:
        `(B,)` each, float32 or float64. 0 and 0 for an image without a valid pixel; a NaN spread if a valid pixel is
        not finite.

    Raises:
        TypeError, ValueError: a tensor of another kind or shape.

    Gradient: to `values`; a median's goes to one pixel that equals it.

    >>> center_and_spread(torch.tensor([[[1.0, 2.0, 6.0]]]))
    (tensor([2.]), tensor([1.6667]))
    """
    check_floats("center_and_spread", "values", values, (3,), "(B, H, W)")
    check_valid("center_and_spread", valid, values.shape, "values", values)
    flat = values.flatten(1).to(torch.promote_types(values.dtype, torch.float32))
    if flat.shape[1] == 0:
        return flat.sum(1), flat.sum(1)
    valid = unless_all(valid)
    if valid is None:
        center = _lower_median(flat)
        return center, (flat - center[:, None]).abs().mean(1)
    kept = valid.flatten(1)
    any_kept = kept.any(1)
    # nanmedian skips what is not valid. Images without a valid pixel keep their (finite) first value for a moment, so
    # that no NaN enters the gradient.
    filled = torch.where(kept, flat, torch.where(any_kept, torch.nan, 0.0)[:, None].to(flat))
    center = torch.where(any_kept, filled.nanmedian(1).values, 0)
    deviation = (torch.where(kept, flat, center[:, None]) - center[:, None]).abs()
    return center, deviation.sum(1) / kept.sum(1).clamp(min=1)


def normalise(values: Tensor, valid: Tensor | None = None, *, spread_eps: float = 1e-6) -> Tensor:
    """Map every image to median 0 and mean absolute deviation 1.

    `(x - center) / (spread + spread_eps)` with the statistics of the valid pixels.

    Args:
        values: `(B, H, W)`, a floating dtype.
        valid: bool `(B, H, W)`; None = all.
        spread_eps: added to the spread, in the unit of the map.

    Returns:
        `(B, H, W)` float32 or float64; 0 where not valid.

    Raises:
        TypeError, ValueError: a tensor of another kind or shape.

    Gradient: to `values`, through the statistics.

    Source: Distill Any Depth, section 3.1 (global normalisation).

    >>> normalise(torch.tensor([[[1.0, 2.0, 6.0]]]), spread_eps=0)
    tensor([[[-0.6000,  0.0000,  2.4000]]])
    """
    valid = unless_all(valid)
    center, spread = center_and_spread(values, valid)
    values = values.to(center)
    if valid is not None:
        values = torch.where(valid, values, center[:, None, None])
    return (values - center[:, None, None]) / (spread + spread_eps)[:, None, None]


def _lower_median(flat: Tensor) -> Tensor:
    """Lower median of each row `(rows,)`; its gradient goes to one element that equals it."""
    if flat.device.type != "cpu" or not values_are_checked(flat) or torch.get_num_threads() > 2:
        return flat.median(1).values
    # numpy selects with vector instructions, in half the time; torch takes a row for each thread.
    middle = (flat.shape[1] - 1) // 2
    chosen = torch.from_numpy(np.partition(flat.detach().numpy(), middle, axis=1)[:, middle, None])
    return flat.gather(1, (flat.detach() == chosen).to(torch.uint8).argmax(1, keepdim=True))[:, 0]


def unless_all(valid: Tensor | None) -> Tensor | None:
    """Return None for a mask that leaves nothing out, which saves the work of masking; else the mask.

    Where a look would mean waiting for the device, the mask stays.
    """
    return None if valid is not None and values_are_checked(valid) and bool(valid.all()) else valid
