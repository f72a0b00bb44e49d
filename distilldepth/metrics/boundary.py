"""Are depth edges where they should be? F1 of occluding contours, in the two forms that the field uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_maps

COUNT, FIRST, LAST = 10, 0.05, 0.25
STEPS = tuple(FIRST + (LAST - FIRST) * step / (COUNT - 1) for step in range(COUNT))
"""A contour is where neighbours differ by a ratio of more than 1 plus one of these."""


def boundary_f1(prediction: Tensor, target: Tensor) -> float | Tensor:
    """Score depth boundaries where the truth is known everywhere.

    A pixel has a contour to the left, right, above or below if its neighbour there is farther by more than a ratio r
    (that of inverse depths). With P and R the shares of predicted contours that are true and of true ones that were
    predicted, per direction, F1 = 2 P R / (P + R) with their means over the four directions; the result is the mean of
    F1 over ten r from 1.05 to 1.25, weighted by r. Contours must agree to the pixel. Scale does not matter, shift does.

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, a floating dtype, positive.
        target: as prediction; true depth, positive everywhere.

    Returns:
        A float for one map, float64 `(B,)` for a batch, 0 to 1; where nothing is predicted or there is no contour, P or
        R is 0.

    Raises:
        TypeError: a map is not a floating tensor.
        ValueError: shapes differ.

    Source: Bochkovskii et al., Depth Pro (2024), section 4.

    >>> step = torch.tensor([[1.0, 1.0, 2.0, 2.0]]).expand(4, 4)
    >>> round(boundary_f1(3 * step, step), 6), boundary_f1(step.flip(1), step)
    (0.25, 0.0)
    """
    check_maps("boundary_f1", prediction, target=target)
    single = prediction.ndim == 2
    if single:
        prediction, target = prediction[None], target[None]
    maps = [_working(values) for values in (prediction, target)]
    shares = []
    for turned in (maps, [values.transpose(1, 2) for values in maps]):
        (p, q), (g, h) = ((values[:, :-1], values[:, 1:]) for values in turned)
        # Farther by more than the ratio, seen from the nearer pixel; forwards and backwards are two directions.
        for hits, predicted, true in (_count(q / p, h / g), _count(p / q, g / h)):
            shares.append(torch.stack([hits / predicted.clamp(min=1), hits / true.clamp(min=1)]))
    precision, recall = torch.stack(shares).mean(0)
    score = _weighted(_f1(precision, recall), [1 + step for step in STEPS])
    return float(score[0]) if single else score


def boundary_f1_masked(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, radius: int = 1
) -> float | Tensor:
    """Score depth boundaries where the truth has holes: pairs with a hole are left out.

    A pixel has a contour towards every pixel of the disc of `radius` around it (at 1 the four that touch it) that is
    farther by a ratio of more than 1 + t. Centres of discs are the pixels at least `radius` away from the frame's
    edges. With P and R the shares of predicted contours that are true and of true ones that were predicted, all
    directions counted together, F1 = 2 P R / (P + R); the result is the mean of F1 over ten t from 0.05 to 0.25,
    weighted by t.

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, a floating dtype, positive where valid.
        target: as prediction; true depth, positive where valid.
        valid: bool, as prediction; None = all.
        radius: of the disc, pixels; MoGe reports 1, 2 and 3.

    Returns:
        As `boundary_f1`; 0 for a frame in which no disc has room.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ, radius below 1.

    Source: the evaluation code of Wang et al., MoGe-2 (2025), boundary sharpness; it labels precision and recall the
    other way round, which F1 does not notice.
    """
    check_maps("boundary_f1_masked", prediction, valid, target=target)
    if radius < 1:
        raise ValueError(f"boundary_f1_masked: radius must be at least 1, got {radius}")
    single = prediction.ndim == 2
    if single:
        prediction, target, valid = prediction[None], target[None], None if valid is None else valid[None]
    maps = [_working(values) for values in (prediction, target)]
    kept = torch.ones_like(prediction, dtype=torch.bool) if valid is None else valid
    counts = torch.zeros(3, len(prediction), COUNT, dtype=torch.float64, device=maps[0].device)
    reach = range(-radius, radius + 1)
    center = _window(0, 0, radius)
    for y, x in ((y, x) for y in reach for x in reach if 0 < y * y + x * x <= radius * radius):
        neighbour = _window(y, x, radius)
        predicted, true = (neighbour(values) / center(values) for values in maps)
        counts += _count(predicted, true, center(kept) & neighbour(kept))
    hits, predicted_total, true_total = counts
    f1 = _f1(hits / predicted_total.clamp(min=1), hits / true_total.clamp(min=1))
    score = _weighted(f1, STEPS)
    return float(score[0]) if single else score


def _working(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _window(y: int, x: int, margin: int) -> Callable[[Tensor], Tensor]:
    """The view of a map without its margins, moved by (y, x)."""

    def side(length: int, offset: int) -> slice:
        return slice(margin + offset, max(length - margin, margin) + offset)

    return lambda values: values[:, side(values.shape[1], y), side(values.shape[2], x)]


def _count(predicted: Tensor, true: Tensor, both: Tensor | None = None) -> Tensor:
    """Pairs above each ratio in both maps, in the prediction and in the truth, float64 `(3, B, COUNT)`.

    Each pair is put once into a table of how many ratios it exceeds in either map; every count is a sum over a part of
    it.
    """
    levels = [_level(values) for values in (predicted, true)]
    cell = levels[0] * (COUNT + 1) + levels[1]
    if both is not None:
        # A pair that is left out exceeds nothing.
        cell = cell * both
    batch, cells = len(cell), (COUNT + 1) ** 2
    image = torch.arange(batch, device=cell.device, dtype=cell.dtype)[:, None]
    table = torch.bincount((cell.flatten(1) + image * cells).flatten().long(), minlength=batch * cells)
    table = table.view(batch, COUNT + 1, COUNT + 1).double()
    # above[i, j]: pairs that exceed at least i ratios in the prediction and j in the truth.
    above = table.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)
    return torch.stack([above.diagonal(dim1=1, dim2=2)[:, 1:], above[:, 1:, 0], above[:, 0, 1:]])


def _level(ratio: Tensor) -> Tensor:
    """How many of the ratios 1 + t a value exceeds; none if it is NaN."""
    limits = torch.tensor([1 + step for step in STEPS], dtype=ratio.dtype, device=ratio.device)
    return torch.bucketize(ratio.nan_to_num(0.0, posinf=torch.inf).contiguous(), limits, out_int32=True)


def _weighted(scores: Tensor, weights: Sequence[float]) -> Tensor:
    """Mean over the ratios, `(B, COUNT)` to `(B,)`."""
    by = torch.tensor(weights, dtype=torch.float64, device=scores.device)
    return (scores * by).sum(1) / by.sum()


def _f1(precision: Tensor, recall: Tensor) -> Tensor:
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.where(total > 0, torch.ones_like(total)), 0)
