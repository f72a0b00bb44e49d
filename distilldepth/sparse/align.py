"""A relative map brought to points of known depth: one fit for the map, or one that changes slowly over it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distilldepth.alignment import fit_scale_shift
from distilldepth.errors import did_you_mean
from distilldepth.words import ALIGNMENTS, QUANTITIES

METHODS = ALIGNMENTS
REACH = 2.0
"""Aligned depth lies between the nearest point over this and the furthest point times this."""
TRIM_ROUNDS, TRIM_DEVIATIONS = 6, 3.0
"""`trimmed` fits so often, and leaves out what is further off than so many deviations (1.4826 times the median)."""
LEAST_OFF = 0.02
"""A point that is off by no more than this share of its value is never left out."""
GATHERED_ON = ("cpu",)
"""Kinds of device on which counting points makes nobody wait."""
LOCAL_CELLS = 64
"""Cells of `local` along the longer side of the map; the shorter has as many as keep them square."""
LOCAL_SPREADS = (0.4, 0.2, 0.1, 0.05, 0.025)
"""Widths (deviations) of its Gaussians, shares of the longer side: each fits what the ones before left over."""
LOCAL_PRIOR = 0.5
"""How many points the fit so far counts for at each cell: it stays where fewer are near."""
LOCAL_SOFT = 3.0
"""A point that is off by so many deviations counts half in the next fit, more of them less."""


def align_to_points(relative: Tensor, sparse: Tensor, *, quantity: str, method: str = "least-squares") -> Tensor:
    """Bring maps to the scale and shift of a few points of known depth and return them as depth.

    With t = 1 / sparse for `disparity` and t = sparse for `depth` and `metric_depth`, over the points of each image:
    - `least-squares`: scale, shift = argmin sum (scale * relative + shift - t)^2;
    - `trimmed`: the same over the points whose error, as a share of t, is at most 3 deviations (1.4826 times the
      median of those errors), found in 6 rounds that begin with all points;
    - `ransac`: the same over the points within 10 % of the line through two of them that most are within 10 % of;
    - `local`: what `trimmed` leaves over is fitted again at the cells of a coarse grid, each with Gaussian weights of
      distance, wide ones first and then narrower ones; the fit so far counts for half a point, so that it remains
      where points are few or far. Errors count by 1 / t, and a point the less the more it is off.
    A scale that comes out negative is not taken: the map is then the mean of t. Depth is held between half of the
    nearest point and twice the furthest (of those that the fit has kept), so that a disparity near 0 cannot
    explode. All but `ransac` run without waiting for the device.

    Args:
        relative: `(B, H, W)`, what a model says, any floating dtype; what is not finite takes part in no fit.
        sparse: as relative; depth, metres, 0 = none; NaN, infinite and negative values count as none.
        quantity: what relative is: `disparity`, `depth` or `metric_depth`.
        method: `least-squares`, `trimmed`, `ransac` or `local`.

    Returns:
        `(B, H, W)` float32 depth, metres, positive and finite everywhere; 1 in an image without a point, and the mean
        of t where relative is constant over the points (or there is one only).

    Raises:
        TypeError: a map is not a floating tensor.
        ValueError: shapes differ or are not `(B, H, W)`; unknown quantity or method.

    Gradient: none; the fit is made for a network's input, and the result is detached.

    Source: the label-free distillation paper's completion (least squares); Xu et al., Towards 3D Scene Reconstruction
    from Locally Scale-Aligned Monocular Video Depth (2022) for `local`.

    >>> depth = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> points = torch.tensor([[[1.0, 0.0, 4.0]]])
    >>> align_to_points(3 / depth + 5, points, quantity="disparity").round(decimals=4)
    tensor([[[1., 2., 4.]]])
    """
    for name, choice, choices in (("quantity", quantity, QUANTITIES), ("method", method, METHODS)):
        if choice not in choices:
            raise ValueError(
                f"align_to_points: {name} must be one of {', '.join(choices)}, got {choice!r}"
                f"{did_you_mean(str(choice), choices)}"
            )
    for name, value in (("relative", relative), ("sparse", sparse)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"align_to_points: {name} must be a floating tensor, got {kind}")
    if relative.ndim != 3 or relative.shape != sparse.shape:
        raise ValueError(
            f"align_to_points: relative and sparse must both be (B, H, W), got {tuple(relative.shape)} and "
            f"{tuple(sparse.shape)}"
        )
    with torch.no_grad():
        if relative.numel() == 0:
            return relative.float()
        # On a device without float64 the sums are made on the CPU, as in `alignment`.
        home = torch.device("cpu") if relative.device.type == "mps" else relative.device
        values, points = relative.detach().to(home), sparse.detach().to(home)
        return _aligned(values, points, quantity == "disparity", method).to(relative.device)


def _aligned(relative: Tensor, sparse: Tensor, inverse: bool, method: str) -> Tensor:
    kept = torch.isfinite(relative) & torch.isfinite(sparse) & (sparse > 0)
    values, wanted, held, place = _points(relative, sparse, kept)
    if inverse:
        wanted = 1 / wanted
    every = held
    if method in ("trimmed", "local"):
        scale, shift, held = _trimmed(values, wanted, held)
    else:
        if method == "ransac":
            held = _agreeing(values, wanted, held)
        scale, shift = _fit(values, wanted, held)
    low = torch.where(held, wanted, torch.inf).amin(1)
    high = torch.where(held, wanted, 0).amax(1)
    low, high = torch.where(low > high, 1, low), torch.where(low > high, 1, high)
    if method == "local":
        scale, shift = _local(values, wanted, every, place, (scale, shift), (relative.shape[1], relative.shape[2]))
    else:
        scale, shift = scale[:, None, None], shift[:, None, None]
    # The sums were made in float64; one multiplication over the whole map needs no more than float32.
    aligned = torch.addcmul(shift.float(), scale.float(), torch.nan_to_num(relative.float(), 0.0, 0.0, 0.0))
    aligned = torch.where(torch.isfinite(relative), aligned, (low * high).sqrt().float()[:, None, None])
    aligned = torch.nan_to_num(aligned, nan=1.0)
    aligned = aligned.clamp((low / REACH).float()[:, None, None], (high * REACH).float()[:, None, None])
    return 1 / aligned if inverse else aligned


def _points(relative: Tensor, sparse: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, depth, whether there is one, and the pixel of each point: `(B, n)` each; depth is 1 where there is none.

    On a CPU the points are gathered; elsewhere their number stays on the device, and n is all pixels.
    """
    count = kept.flatten(1)
    if relative.device.type not in GATHERED_ON:
        place = torch.arange(count.shape[1], device=kept.device).expand(count.shape)
        values = torch.where(kept, relative, 0).flatten(1).double()
        return values, torch.where(kept, sparse, 1).flatten(1).double(), count, place
    image, pixel = count.nonzero(as_tuple=True)
    number = count.sum(1)
    rank = torch.arange(len(image)) - (number.cumsum(0) - number)[image]
    shape = (len(count), max(1, int(number.max())))
    values, wanted = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    place = torch.zeros(shape, dtype=torch.int64)
    values[image, rank] = relative.flatten(1)[image, pixel].double()
    wanted[image, rank] = sparse.flatten(1)[image, pixel].double()
    place[image, rank] = pixel
    return values, wanted, torch.arange(shape[1]) < number[:, None], place


def _fit(values: Tensor, wanted: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift `(B,)` by least squares; 0 and the mean instead of a negative scale, 0 and 1 without a point."""
    scale, shift = fit_scale_shift(values[:, None], wanted[:, None], held[:, None], "least-squares")
    mean = torch.where(held, wanted, 0).sum(1) / held.sum(1).clamp(min=1)
    wrong = ~(scale > 0)
    scale, shift = torch.where(wrong, 0, scale), torch.where(wrong, mean, shift)
    return scale, torch.where(held.any(1), shift, 1)


def _median(values: Tensor, held: Tensor) -> Tensor:
    """Lower median `(B,)` of the held ones; 0 if there is none."""
    return torch.nan_to_num(torch.where(held, values, torch.nan).nanmedian(1).values)


def _off(values: Tensor, wanted: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (scale[:, None] * values + shift[:, None] - wanted).abs() / wanted


def _trimmed(values: Tensor, wanted: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, shift, and the points that were kept."""
    now = held
    scale, shift = _fit(values, wanted, now)
    for _ in range(TRIM_ROUNDS - 1):
        off = _off(values, wanted, scale, shift)
        bound = (TRIM_DEVIATIONS * 1.4826 * _median(off, held)).clamp(min=LEAST_OFF)
        now = held & (off <= bound[:, None])
        scale, shift = _fit(values, wanted, now)
    return scale, shift, now


def _agreeing(values: Tensor, wanted: Tensor, held: Tensor) -> Tensor:
    """The points on the line that most of them agree with; all where fewer than two do."""
    scale, shift = fit_scale_shift(values[:, None], wanted[:, None], held[:, None], "ransac")
    now = held & (_off(values, wanted, scale, shift) <= 0.1)
    return torch.where((now.sum(1) >= 2)[:, None], now, held)


def _local(
    values: Tensor,
    wanted: Tensor,
    held: Tensor,
    place: Tensor,
    fit: tuple[Tensor, Tensor],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Maps `(B, H, W)` of scale and shift.

    At a cell, over the points i with weights w_i, and n points' worth of the fit so far, whose values have variance v,

        argmin sum_i w_i (ds (x_i - mean) + dc - r_i)^2 + n (ds^2 v + dc^2)

    where r_i is what that fit leaves over. Points are first summed up by cell, so that a width costs two small products
    of matrices, whatever the number of points and pixels.
    """
    height, width = size
    side = max(size)
    rows, columns = (min(length, max(1, round(LOCAL_CELLS * length / side))) for length in size)
    cell = (place // width * rows // height) * columns + place % width * columns // width
    scale, shift = (number[:, None].expand(-1, rows * columns) for number in fit)
    count = held.sum(1, keepdim=True).clamp(min=1)
    share = torch.where(held, 1 / wanted, 0)
    share = share * (count / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny))
    mean = (share * values).sum(1, keepdim=True) / count
    moved = torch.where(held, values - mean, 0)
    variance = ((share * moved.square()).sum(1, keepdim=True) / count).clamp(min=1e-12)
    for spread in LOCAL_SPREADS:
        rest = torch.where(held, wanted - scale.gather(1, cell) * values - shift.gather(1, cell), 0)
        off = (rest / wanted).abs()
        usual = (1.4826 * _median(off, held)).clamp(min=LEAST_OFF)[:, None]
        weight = share / (1 + (off / (LOCAL_SOFT * usual)).square())
        terms = torch.stack((weight * moved.square(), weight * moved, weight, weight * moved * rest, weight * rest), 1)
        sums = terms.new_zeros((*terms.shape[:2], rows * columns))
        sums = sums.scatter_add(2, cell[:, None].expand_as(terms), terms).unflatten(2, (rows, columns))
        near_rows, near_columns = (
            _near(n, length / n, spread * side, sums) for n, length in zip((rows, columns), size, strict=True)
        )
        square, cross, total, value_rest, only_rest = (near_rows @ sums @ near_columns).flatten(2).unbind(1)
        square, total = square + LOCAL_PRIOR * variance, total + LOCAL_PRIOR
        slope = (value_rest * total - cross * only_rest) / (square * total - cross.square())
        slope = torch.maximum(slope, -scale)
        scale, shift = scale + slope, shift + (only_rest - cross * slope) / total - slope * mean
    maps = torch.stack((scale, shift), 1).float().unflatten(2, (rows, columns))
    maps = functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    return maps[:, 0], maps[:, 1]


def _near(cells: int, pitch: float, spread: float, like: Tensor) -> Tensor:
    """Gaussian weights `(cells, cells)` of the distances along one axis, pixels."""
    places = torch.arange(cells, device=like.device, dtype=like.dtype) * (pitch / spread)
    return torch.exp(-0.5 * (places[:, None] - places).square())
