"""Which of two points is nearer? The questions that need no measured depth, or only its order."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_floats, check_maps

PAIRS = 10_000
"""Drawn per image where none are given."""


def ordinal_accuracy(
    prediction: Tensor, points: Tensor, nearer: Tensor, *, quantity: str = "disparity"
) -> float | Tensor:
    """Share of annotated pairs of points that the prediction orders as people did.

    Args:
        prediction: `(B, H, W)` or `(H, W)`, a floating dtype.
        points: `(B, N, 2, 2)` or `(N, 2, 2)` int64, row and column of the two points of each pair.
        nearer: `(B, N)` or `(N,)` int64: 0 = the first point is nearer, 1 = the second, -1 = do not use the pair.
        quantity: `disparity` (larger = nearer), `depth` or `metric_depth`.

    Returns:
        A float for one map, float64 `(B,)` for a batch; a pair with equal or NaN predictions is wrong. NaN without a
        pair.

    Raises:
        TypeError: prediction is not a floating tensor, points or nearer are not integers.
        ValueError: shapes do not fit, a point lies outside the map.

    Source: Chen et al., Single-Image Depth Perception in the Wild (2016); DA-2K of Depth Anything V2 (2024).

    >>> points = torch.tensor([[[0, 0], [0, 2]], [[0, 1], [0, 2]]])
    >>> ordinal_accuracy(torch.tensor([[3.0, 1.0, 2.0]]), points, torch.tensor([0, 0]))
    0.5
    """
    check_floats("ordinal_accuracy", "prediction", prediction, (2, 3), "(B, H, W) or (H, W)")
    single = prediction.ndim == 2
    if single:
        prediction, points, nearer = prediction[None], points[None], nearer[None]
    _check_points("ordinal_accuracy", prediction, points)
    if nearer.dtype != torch.int64:
        raise TypeError(f"ordinal_accuracy: nearer must be int64, got {nearer.dtype}")
    if nearer.shape != points.shape[:2]:
        raise ValueError(
            f"ordinal_accuracy: nearer must be {tuple(points.shape[:2])} as points, got {tuple(nearer.shape)}"
        )
    first, second = _at(prediction, points)
    if quantity != "disparity":
        first, second = -first, -second
    right = torch.where(nearer == 0, first > second, second > first) & (nearer >= 0)
    share = right.sum(1).double() / (nearer >= 0).sum(1)
    return float(share[0]) if single else share


def whdr(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    points: Tensor | None = None,
    weights: Tensor | None = None,
    ratio: float = 1.03,
    seed: int = 0,
) -> float | Tensor:
    """Weighted share of point pairs whose order in depth the prediction gets wrong.

    A pair (i, j) is +1 if d_i / d_j > ratio, -1 if d_j / d_i > ratio, else 0; it is wrong if prediction and truth
    differ: WHDR = sum of the weights of the wrong pairs / sum of all weights.

    Args:
        prediction: `(B, H, W)` or `(H, W)` aligned depth, a floating dtype, positive.
        target: as prediction; true depth, positive where valid.
        valid: bool, as prediction; None = all. Pairs with a point that is not valid are left out.
        points: `(B, N, 2, 2)` or `(N, 2, 2)` int64, row and column of the two points of each pair; None = 10 000 pairs
            of valid pixels drawn with `seed`.
        weights: `(B, N)` or `(N,)`, None = 1 each.
        ratio: above 1, how much farther counts as farther.
        seed: of the pairs that are drawn.

    Returns:
        A float for one map, float64 `(B,)` for a batch; lower is better. NaN without a valid pair.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool, points are not int64.
        ValueError: shapes do not fit, a point lies outside the map, ratio below 1.

    Source: Bell et al., Intrinsic Images in the Wild (2014); for depth Xian et al. (2018).

    >>> whdr(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]), points=torch.tensor([[[0, 0], [0, 1]]]))
    1.0
    """
    check_maps("whdr", prediction, valid, target=target)
    if not ratio >= 1:
        raise ValueError(f"whdr: ratio must be at least 1, got {ratio}")
    single = prediction.ndim == 2
    if single:
        prediction, target = prediction[None], target[None]
        valid, points, weights = (None if values is None else values[None] for values in (valid, points, weights))
    kept = torch.ones_like(prediction, dtype=torch.bool) if valid is None else valid
    if points is None:
        points = _draw_pairs(kept, seed)
    _check_points("whdr", prediction, points)
    weight = torch.ones(points.shape[:2], dtype=torch.float64, device=prediction.device)
    if weights is not None:
        weight = weight * weights
    both = torch.stack(_at(kept, points)).all(0)
    order = []
    for values in (prediction, target):
        first, second = _at(values.double(), points)
        order.append((first > ratio * second).int() - (second > ratio * first).int())
    weight = weight * both
    share = (weight * (order[0] != order[1])).sum(1) / weight.sum(1)
    return float(share[0]) if single else share


def _at(maps: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values at the first and second points, `(B, N)` each."""
    index = (points[..., 0] * maps.shape[2] + points[..., 1]).flatten(1)
    found = maps.flatten(1).gather(1, index).view(points.shape[:3])
    return found[..., 0], found[..., 1]


def _draw_pairs(kept: Tensor, seed: int) -> Tensor:
    """`(B, PAIRS, 2, 2)` pairs of valid pixels; the n-th valid pixel is found by bisection in running counts."""
    drawn = torch.rand(2 * PAIRS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(kept.device)
    running = kept.flatten(1).cumsum(1)
    count = running[:, -1:]
    rank = (drawn * count).long().clamp(max=(count - 1).clamp(min=0)) + 1
    index = torch.searchsorted(running, rank).clamp(max=running.shape[1] - 1)
    width = kept.shape[2]
    return torch.stack([index // width, index % width], -1).view(len(kept), PAIRS, 2, 2)


def _check_points(function: str, maps: Tensor, points: Tensor) -> None:
    if points.dtype != torch.int64:
        raise TypeError(f"{function}: points must be int64, got {points.dtype}")
    if points.ndim != 4 or len(points) != len(maps) or points.shape[2:] != (2, 2):
        raise ValueError(f"{function}: points must be ({len(maps)}, N, 2, 2), got {tuple(points.shape)}")
    for axis, side in ((0, maps.shape[1]), (1, maps.shape[2])):
        part = points[..., axis]
        if part.numel() and not bool(((part >= 0) & (part < side)).all()):
            raise ValueError(f"{function}: points must lie inside the map of {maps.shape[1]} x {maps.shape[2]}")
