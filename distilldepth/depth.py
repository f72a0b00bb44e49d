"""Depth, inverse depth, disparity and intrinsics: what each word means, and how one becomes another.

| word | meaning |
|---|---|
| `depth` | z along the optical axis, metres unless a suffix says otherwise |
| `inverse_depth` | exactly 1 / depth, 1/m |
| `disparity` | inverse depth up to an unknown positive scale and a shift, unitless, larger = nearer |
| `stereo_disparity_px` | horizontal shift between the views of a rectified stereo pair, pixels |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.words import QUANTITIES


def depth_to_inverse_depth(depth: Tensor) -> Tensor:
    """Turn depth into inverse depth: 1 / depth.

    Args:
        depth: any shape, metres, a floating dtype.

    Returns:
        As depth, 1/m; 0 for infinite depth, NaN for depth that is not positive (there is no such point).

    Raises:
        TypeError: depth is not a tensor.

    >>> depth_to_inverse_depth(torch.tensor([2.0, float("inf")]))
    tensor([0.5000, 0.0000])
    """
    _check_tensor("depth_to_inverse_depth", "depth", depth)
    return torch.where(depth > 0, 1.0 / depth, torch.nan)


def to_disparity(values: Tensor, quantity: str) -> Tensor:
    """Bring a model's map to disparity, larger = nearer, the orientation in which every loss compares maps.

    `disparity` is returned as it is and `metric_depth` is inverted exactly. For affine-invariant `depth` no exact
    conversion exists: 1 / (scale * depth + shift) is not affine in depth, and both numbers are unknown. The papers feed
    such maps to the affine-invariant loss as they are, so only the sign is changed: the order of the pixels becomes
    right, the spacing stays that of depth (far regions weigh more than in disparity). Prefer a disparity teacher where
    there is one.

    Args:
        values: `(..., H, W)`, any float dtype.
        quantity: `disparity`, `depth` or `metric_depth`.

    Returns:
        As values; NaN for metric depth that is not positive.

    Raises:
        TypeError: values is not a tensor.
        ValueError: unknown quantity.

    Source: Distill Any Depth, section 3.2 (teachers of any kind under one affine-invariant loss).

    >>> to_disparity(torch.tensor([2.0, 4.0]), "metric_depth")
    tensor([0.5000, 0.2500])
    """
    _check_tensor("to_disparity", "values", values)
    if quantity == "disparity":
        return values
    if quantity == "metric_depth":
        return depth_to_inverse_depth(values)
    if quantity == "depth":
        return -values
    raise ValueError(
        f"to_disparity: quantity must be {', '.join(QUANTITIES[:-1])} or {QUANTITIES[-1]}, got {quantity!r}"
    )


def stereo_disparity_to_depth(stereo_disparity_px: Tensor, focal_px: float, baseline_m: float) -> Tensor:
    """Turn stereo disparity into depth: `focal * baseline / disparity`.

    Args:
        stereo_disparity_px: any shape, pixels, a floating dtype.
        focal_px: focal length of the rectified pair, pixels.
        baseline_m: distance between its cameras, metres.

    Returns:
        As stereo_disparity_px, metres; infinity where the disparity is not positive.

    Raises:
        TypeError: stereo_disparity_px is not a tensor.

    >>> stereo_disparity_to_depth(torch.tensor([10.0]), focal_px=500.0, baseline_m=0.1)
    tensor([5.])
    """
    _check_tensor("stereo_disparity_to_depth", "stereo_disparity_px", stereo_disparity_px)
    return torch.where(stereo_disparity_px > 0, focal_px * baseline_m / stereo_disparity_px, torch.inf)


def intrinsics_from_fov(height: int, width: int, fov_deg: float, *, vertical: bool = False) -> Tensor:
    """Return `(3, 3)` float32 intrinsics in pixels for a field of view.

    Pixels are square and their centres at integers, so the image centre is `((W - 1) / 2, (H - 1) / 2)`.

    Args:
        height, width: of the image, pixels.
        fov_deg: field of view, degrees, horizontal unless said otherwise.
        vertical: whether it is the vertical one.

    Raises:
        ValueError: `fov_deg` outside (0, 180).

    >>> intrinsics_from_fov(3, 5, 90.0)
    tensor([[2.5000, 0.0000, 2.0000],
            [0.0000, 2.5000, 1.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    if not 0 < fov_deg < 180:
        raise ValueError(f"intrinsics_from_fov: fov_deg must be between 0 and 180, got {fov_deg}")
    focal_px = (height if vertical else width) / 2 / math.tan(math.radians(fov_deg) / 2)
    return torch.tensor([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])


def _check_tensor(function: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}; use torch.as_tensor")
