"""Prediction to ground truth: the scale and shift that the field fits before it scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distilldepth.errors import did_you_mean
from distilldepth.ops.arguments import check_maps

SPACES = ("disparity", "depth")
METHODS = ("least-squares", "median", "l1", "ransac", "none")
L1_GRID = 64
"""Cells per side of the grid on which `l1` is fitted."""
RANSAC_PIXELS, RANSAC_LINES = 4096, 256
"""Pixels on which `ransac` counts, and pairs of them that it tries."""
RANSAC_TOLERANCE = 0.1
"""A pixel agrees with a line that is off by at most this share of its target."""
FLOOR = 1e-3
"""Aligned maps are clipped below at this share of the largest valid target, both in the space of the fit."""


@dataclass
class Alignment:
    """The fit of each image and the prediction as depth."""

    scale: Tensor
    """float64 `(B,)`, or a scalar for one map: `aligned = scale * prediction + shift` in the space of the fit."""
    shift: Tensor
    """float64 `(B,)`, or a scalar for one map."""
    depth: Tensor
    """`(B, H, W)` or `(H, W)`, the aligned prediction as depth, in the target's unit; float32, or float64 if an input
    was."""


def align(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    space: str = "disparity",
    method: str = "least-squares",
    grid: int = L1_GRID,
    seed: int = 0,
) -> Alignment:
    """Bring a prediction to the scale and shift of the ground truth and return it as depth.

    With t = 1 / target (`space="disparity"`) or t = target (`"depth"`), over the valid pixels of each image:
    - `least-squares`: scale, shift = argmin sum (scale * prediction + shift - t)^2; the scale may come out negative;
    - `median`: scale = median(t) / median(prediction), shift 0 (lower medians);
    - `l1`: scale, shift = argmin sum |scale * prediction + shift - t| / t, exactly, over the valid pixels nearest to
      the centres of the cells of a grid, at most one per cell; outliers pull less. A cell looks for its pixel in a
      window of its own size rounded up to whole pixels, which may reach across its border, so that neighbours may find
      the same pixel, and do where the map has fewer pixels than the grid cells;
    - `ransac`: least squares over the valid pixels within 10 % of the line through two pixels that most pixels are
      within 10 % of; 256 pairs among 4096 valid pixels spread evenly are tried, the same for the same seed;
    - `none`: scale 1, shift 0, the prediction is t in its unit already.
    The aligned map is clipped below at 0.001 times the largest valid t, and in disparity inverted.

    Args:
        prediction: `(B, H, W)` or `(H, W)`, the model's map, a floating dtype: disparity or inverse depth for
            `space="disparity"`, depth for `"depth"`.
        target: as prediction; true depth, metres, positive where valid.
        valid: bool, as prediction; None = all.
        space: `disparity` or `depth`, where the fit is made.
        method: `least-squares`, `median`, `l1`, `ransac` or `none`.
        grid: cells per side for `l1`; 0 = all pixels, slower.
        seed: of the pairs that `ransac` draws.

    Returns:
        `Alignment`. A prediction that is constant over the valid pixels (or a single one) is fitted by scale 0 and the
        mean of t. Without a valid pixel scale, shift and depth are NaN, likewise if a valid pixel is not finite.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ; unknown space or method; a negative grid.

    Source: Ranftl et al., Towards Robust Monocular Depth Estimation (2020); for `l1` the evaluation code of Wang et
    al., MoGe (2024), which weighs depth by its inverse on a 64 x 64 grid. The published codes clip at other values
    (0.001 per metre, the smallest valid inverse depth).

    >>> depth = torch.tensor([[1.0, 2.0, 4.0]])
    >>> align(3 / depth + 5, depth).depth
    tensor([[1., 2., 4.]])
    """
    for name, choice, choices in (("space", space, SPACES), ("method", method, METHODS)):
        if choice not in choices:
            raise ValueError(
                f"align: {name} must be one of {', '.join(choices)}, got {choice!r}{did_you_mean(str(choice), choices)}"
            )
    check_maps("align", prediction, valid, target=target)
    if grid < 0:
        raise ValueError(f"align: grid must not be negative, got {grid}; 0 = all pixels")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    if prediction.ndim == 2:
        kept = None if valid is None else valid[None]
        single = align(prediction[None], target[None], kept, space=space, method=method, grid=grid, seed=seed)
        return Alignment(single.scale[0], single.shift[0], single.depth[0])
    if valid is None:
        valid = torch.ones_like(prediction, dtype=torch.bool)
    # On a device without float64 the sums are made on the CPU: a fit is rare and must be right.
    home = "cpu" if prediction.device.type == "mps" else prediction.device
    values, kept = prediction.to(home).double(), valid.to(home)
    wanted = torch.where(kept, target.to(home).double(), 1)
    if space == "disparity":
        wanted = 1 / wanted
    if values[:1].numel() == 0:
        undefined = values.new_full((len(values),), torch.nan)
        return Alignment(undefined, undefined.clone(), prediction.to(dtype))
    scale, shift = fit_scale_shift(values, wanted, kept, method, grid=grid, seed=seed)
    values = values.flatten(1)
    floor = FLOOR * torch.where(kept, wanted, 0).flatten(1).amax(1)
    # torch.maximum keeps a NaN, which clamp with a tensor bound does as well, but says so less plainly.
    aligned = torch.maximum(scale[:, None] * values + shift[:, None], floor[:, None])
    depth = (1 / aligned if space == "disparity" else aligned).view(prediction.shape)
    return Alignment(scale, shift, depth.to(dtype).to(prediction.device))


def fit_scale_shift(
    values: Tensor, wanted: Tensor, valid: Tensor, method: str, *, grid: int = L1_GRID, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Fit `scale * values + shift` to `wanted` over the valid pixels, both in the space of the fit.

    Args:
        values: `(B, H, W)`, float64, at least one pixel.
        wanted: as values; positive and finite where valid.
        valid: bool, as values.
        method, grid, seed: see `align`.

    Returns:
        scale and shift, float64 `(B,)`; NaN without a valid pixel or where one is not finite.
    """
    kept = valid.flatten(1)
    if method == "l1":
        index, kept_cells = _grid_pixels(valid, grid) if grid else (None, kept)
    values, wanted = torch.where(valid, values, 0).flatten(1), wanted.flatten(1)
    count = kept.sum(1)
    broken = (count == 0) | ~torch.isfinite(torch.where(kept, values + wanted, 0)).all(1)
    if method == "none":
        scale, shift = torch.ones_like(values[:, 0]), torch.zeros_like(values[:, 0])
    elif method == "median":
        scale, shift = _median(wanted, kept) / _median(values, kept), torch.zeros_like(values[:, 0])
    elif method == "l1":
        if index is not None:
            values, wanted = values.gather(1, index), wanted.gather(1, index)
        # What is broken must not stop the search of the others.
        kept_cells = kept_cells & ~broken[:, None]
        scale, shift = _least_absolute(values, wanted, torch.where(kept_cells, 1 / wanted, 0))
    else:
        if method == "ransac":
            kept = kept & _agreeing(values, wanted, kept & ~broken[:, None], seed)
        scale, shift = _least_squares(values, wanted, kept)
    return torch.where(broken, torch.nan, scale), torch.where(broken, torch.nan, shift)


def _least_squares(values: Tensor, wanted: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    number = kept.sum(1).clamp(min=1)
    value_mean = torch.where(kept, values, 0).sum(1) / number
    wanted_mean = torch.where(kept, wanted, 0).sum(1) / number
    value_rest = torch.where(kept, values - value_mean[:, None], 0)
    wanted_rest = torch.where(kept, wanted - wanted_mean[:, None], 0)
    # Centred sums: the textbook n * sum(x^2) - sum(x)^2 loses all digits for maps far from 0.
    variance = value_rest.square().sum(1)
    low = torch.where(kept, values, torch.inf).amin(1)
    constant = torch.where(kept, values, -torch.inf).amax(1) <= low
    scale = torch.where(constant, 0, (value_rest * wanted_rest).sum(1) / torch.where(constant, 1, variance))
    return scale, wanted_mean - scale * value_mean


def _median(values: Tensor, kept: Tensor) -> Tensor:
    """Lower median of the kept pixels, `(B,)`; NaN if there is none."""
    return torch.where(kept, values, torch.nan).nanmedian(1).values


def _grid_pixels(valid: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Indices `(B, cells)` of the valid pixel nearest to the centre of each cell, and whether the cell has one.

    In float32, as in MoGe's code: where two pixels are equally far from a centre, its last digit decides between them.
    """
    height, width = valid.shape[1:]

    def windows(side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Along one axis, `(grid, length)`: places in each window, which of them exist, their squared distance."""
        length = max(1.0, side / grid)
        center = torch.linspace(0.5 / grid, 1 - 0.5 / grid, grid, device=valid.device) * side
        place = (center - length / 2).round().long()[:, None] + torch.arange(math.ceil(length), device=valid.device)
        distance = (place + 0.5 - center[:, None]).square()
        return place.clamp(0, side - 1), (place >= 0) & (place < side), distance

    (row, in_rows, above), (column, in_columns, beside) = windows(height), windows(width)
    pixel = (row[:, None, :, None] * width + column[None, :, None, :]).reshape(grid * grid, -1)
    inside = (in_rows[:, None, :, None] & in_columns[None, :, None, :]).reshape(pixel.shape)
    distance = (beside[None, :, None, :] + above[:, None, :, None]).reshape(pixel.shape)
    chosen = torch.empty((len(valid), grid * grid), dtype=torch.int64, device=valid.device)
    found = torch.empty_like(chosen, dtype=torch.bool)
    for image, kept in enumerate(valid.flatten(1)):  # one at a time: a window per cell is the whole map and more
        usable = kept[pixel] & inside
        nearest = torch.where(usable, distance, torch.inf).argmin(1, keepdim=True)
        chosen[image], found[image] = pixel.gather(1, nearest)[:, 0], usable.any(1)
    return chosen, found


def _least_absolute(values: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least absolute deviations, exactly.

    For a given scale the best shift is the weighted median of the rest, and what is left, as a function of the scale
    alone, is convex: its slope is found from the signs of the residuals, and bisection ends where it changes its sign.
    """
    total = weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    center = (weights * values).sum(1, keepdim=True) / total
    moved = torch.where(weights > 0, values - center, 0)
    constant = torch.where(weights > 0, values, -torch.inf).amax(1) <= torch.where(weights > 0, values, torch.inf).amin(
        1
    )
    spread = ((weights * moved.square()).sum(1, keepdim=True) / total).sqrt()
    spread = torch.where(constant[:, None] | ~(spread > 0), 1, spread)
    moved = torch.where(constant[:, None], 0, moved / spread)

    def best_shift(scale: Tensor) -> tuple[Tensor, Tensor]:
        """The shift for a scale, and the slope of the sum there."""
        rest = wanted - scale[:, None] * moved
        ordered, order = torch.where(weights > 0, rest, torch.inf).sort(1)
        weight = weights.gather(1, order)
        below = weight.cumsum(1)
        middle = torch.searchsorted(below, total / 2).clamp(max=weights.shape[1] - 1)
        # Residuals after the middle are positive, before it negative; that of the middle itself has whatever sign
        # between -1 and 1 makes the shift the best one.
        at = below.gather(1, middle)
        own = weight.gather(1, middle)
        signs = torch.where(torch.arange(weights.shape[1], device=weights.device) > middle, weight, -weight)
        signs = signs.scatter(1, middle, (at - own) - (total - at))
        return ordered.gather(1, middle)[:, 0], -(signs * moved.gather(1, order)).sum(1)

    wide = (weights * (wanted - (weights * wanted).sum(1, keepdim=True) / total).abs()).sum(1) / total[:, 0]
    wide = torch.where(wide > 0, wide, 1)
    low, high = -wide, wide.clone()
    for _ in range(64):
        short_low, short_high = best_shift(low)[1] > 0, best_shift(high)[1] < 0
        if not bool((short_low | short_high).any()):
            break
        low, high = torch.where(short_low, 2 * low, low), torch.where(short_high, 2 * high, high)
    for _ in range(70):
        scale = (low + high) / 2
        rising = best_shift(scale)[1] > 0
        low, high = torch.where(rising, low, scale), torch.where(rising, scale, high)
    scale = torch.where(constant, 0, (low + high) / 2)
    shift = best_shift(scale)[0]
    scale = scale / spread[:, 0]
    return scale, shift - scale * center[:, 0]


def _agreeing(values: Tensor, wanted: Tensor, kept: Tensor, seed: int) -> Tensor:
    """Pixels `(B, n)` that agree with the line through two pixels that most pixels agree with."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(RANSAC_PIXELS, (2, RANSAC_LINES), generator=generator).to(values.device)
    running = kept.cumsum(1)
    count = running[:, -1:]
    share = (torch.arange(RANSAC_PIXELS, device=values.device, dtype=torch.float64) + 0.5) / RANSAC_PIXELS
    index = torch.searchsorted(running, (share * count).long() + 1).clamp(max=values.shape[1] - 1)
    p, t = values.gather(1, index), wanted.gather(1, index)
    first, second = pairs
    run = p[:, first] - p[:, second]
    scale = torch.where(run != 0, (t[:, first] - t[:, second]) / torch.where(run != 0, run, 1), 0)
    shift = t[:, first] - scale * p[:, first]
    votes = torch.zeros_like(scale)
    for line in range(RANSAC_LINES):
        off = (scale[:, line, None] * p + shift[:, line, None] - t).abs()
        votes[:, line] = (off <= RANSAC_TOLERANCE * t).sum(1)
    best = votes.argmax(1, keepdim=True)
    off = (scale.gather(1, best) * values + shift.gather(1, best) - wanted).abs()
    return off <= RANSAC_TOLERANCE * wanted
