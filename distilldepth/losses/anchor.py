"""A magnitude for maps whose loss does not care about magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distilldepth.losses.normalise import center_and_spread
from distilldepth.ops.arguments import check_floats, check_valid


def anchor_loss(
    prediction: Tensor,
    valid: Tensor | None = None,
    *,
    center: float,
    spread: float,
    together: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pull the batch's mean center and spread of a map to fixed values.

    `asinh((c - center) / spread)^2 + log((s + e) / (spread + e))^2`, c and s the means over images of the lower median
    and of the mean absolute deviation from it, e = spread / 100.

    Every loss that normalises the prediction is unchanged when the prediction is scaled or shifted, so it leaves both
    undetermined. Its gradient is orthogonal to them, hence each step of an optimiser lengthens the map a little: the
    magnitude drifts without bound, the effective learning rate with it, and the numbers overflow reduced precision. A
    weak pull on the mean over the batch fixes both without telling any single image how deep it is.

    Both terms are quadratic near their target and logarithmic far from it: a student that starts in another unit, or
    flat, is drawn in without drowning what it is meant to learn.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype.
        valid: bool `(B, H, W)`; None = all.
        center: the wanted mean of the medians, in the map's unit.
        spread: the wanted mean of the mean absolute deviations, positive, in the map's unit.
        together: adds up a tensor `(3,)` over the parts of a batch that several processes share, so that the mean is
            that of all; None: the batch is whole.

    Returns:
        Scalar float32 or float64. Images without a valid pixel do not count; 0 with zero gradient if there is none.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a spread that is not positive.

    Gradient: to `prediction`; finite for constant maps.

    >>> anchor_loss(torch.tensor([[[0.0, 1.0, 2.0]]]), center=1.0, spread=2 / 3)
    tensor(0.)
    """
    check_floats("anchor_loss", "prediction", prediction, (3,), "(B, H, W)")
    check_valid("anchor_loss", valid, prediction.shape, "prediction", prediction)
    if not math.isfinite(center):
        raise ValueError(f"anchor_loss: center must be finite, got {center}")
    if not (math.isfinite(spread) and spread > 0):
        raise ValueError(f"anchor_loss: spread must be positive, got {spread}")
    centers, spreads = center_and_spread(prediction, valid)
    if prediction.numel() == 0 and together is None:
        return centers.sum()
    used = torch.ones_like(centers) if valid is None else valid.flatten(1).any(1).to(centers)
    sums = torch.stack([(centers * used).sum(), (spreads * used).sum(), used.sum()])
    if together is not None:
        sums = together(sums)
    count = sums[2].clamp(min=1)
    eps = spread / 100
    pull_center = torch.asinh((sums[0] / count - center) / spread).square()
    pull_spread = torch.log((sums[1] / count + eps) / (spread + eps)).square()
    return (pull_center + pull_spread) * (sums[2] > 0)
