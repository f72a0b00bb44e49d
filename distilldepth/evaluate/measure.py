"""What is measured on maps of one size: which pixels count, the fit, and the sums of errors behind the metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distilldepth.alignment import FLOOR, fit_scale_shift
from distilldepth.evaluate.protocol import Rules, crop_box
from distilldepth.metrics.depth import LEAST_DEPTH, SUMS, Workspace, sum_errors
from distilldepth.ops.depth_sums import FitAndClip, depth_sums, has_depth_sums

BLOCK = (1 << 15) - 1
"""Pixels that are worked on at a time on a CPU: the dozen buffers of a block stay in its second-level cache. From one
pixel more on, torch would share each of the many small operations among threads, which then mostly wait for each other
(measured: slower); the other cores are better used to read the next images."""
SPARSE = 0.35
"""Where a smaller share of the pixels is valid, they are gathered first; above, leaving them in place is faster."""


@dataclass(frozen=True)
class Maps:
    """Predictions and truths of one size with what is to be done with them."""

    prediction: Tensor
    """`(B, h, w)` in `space`, before the fit."""
    truth: Tensor
    """`(B, h, w)` depth."""
    valid: Tensor
    rules: Rules
    space: str
    """Where scale and shift are fitted."""
    floor: Tensor
    """`(B,)`: lower clip of the aligned map."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.truth.shape[1], self.truth.shape[2]


@dataclass(frozen=True)
class Measured:
    """What came out of the maps, `(B,)` each."""

    sums: dict[str, Tensor]
    """Of errors, by the names of `metrics.depth.SUMS`, float64."""
    scale: Tensor
    shift: Tensor
    floor: Tensor
    """Lower clip of the aligned map."""
    is_finite: Tensor
    """bool: whether the prediction is finite on every pixel that counts."""

    @property
    def count(self) -> Tensor:
        """How many pixels count."""
        return self.sums["count"]


def scored_pixels(depth: Tensor, valid: Tensor, rules: Rules) -> Tensor:
    """Return which pixels count.

    Args:
        depth: `(B, h, w)` true depth, metres.
        valid: bool, as depth; what the ground truth itself says.
        rules: bounds, `far_cut` and `score_crop`.

    Returns:
        bool `(B, h, w)`.

    Raises:
        ValueError: the frame does not fit the crop.
    """
    kept = valid & _in_bounds(depth, _far_limit(depth, valid, rules)[:, None, None], rules)
    if rules.score_crop:
        top, bottom, left, right = crop_box(rules.score_crop, *depth.shape[1:])
        inside = torch.zeros_like(kept)
        inside[:, top:bottom, left:right] = True
        kept &= inside
    return kept


def measure(maps: Maps) -> Measured:
    """Fit and add up the errors, image by image.

    Args:
        maps: fit each other and the crop of their rules; `floor` is not read.
    """
    rules = maps.rules
    fitted = None if rules.align == "least-squares" and not _is_thinned(maps.size, rules) else _fit(maps)
    if has_depth_sums(maps.prediction, maps.truth):
        return _measure_natively(maps, fitted)
    top, bottom, left, right = crop_box(rules.score_crop, *maps.size)
    p, g, valid = (values[:, top:bottom, left:right].flatten(1) for values in (maps.prediction, maps.truth, maps.valid))
    g = g.float()
    far = _far_limit(maps.truth, maps.valid, rules)
    on_cpu = p.device.type == "cpu"
    if on_cpu:
        p, g, valid = _gather_sparse(p, g, valid)
    # Below, what does not count is multiplied by 0; rubbish would survive that.
    if not bool(p.sum().isfinite() & g.sum().isfinite()):
        valid = valid & _in_bounds(g, far[:, None], rules)
        p, g = torch.where(valid, p, 0), torch.where(valid, g, 1)
    # A CPU takes an image at a time, and that in blocks, for the sake of its cache; elsewhere one block is everything.
    buffers = Workspace()
    results = []
    for rows in [slice(i, i + 1) for i in range(len(p))] if on_cpu else [slice(None)]:
        given = None if fitted is None else (fitted[0][rows], fitted[1][rows])
        results.append(_measure_rows(p[rows], g[rows], valid[rows], far[rows], given, maps.space, rules, buffers))
    if not results:
        none = p.new_empty(0, dtype=torch.float64)
        return Measured(dict.fromkeys(SUMS, none), none, none, none, none.bool())
    table, scale, shift, floor, finite = (torch.cat(column, -1) for column in zip(*results, strict=True))
    return Measured(dict(zip(SUMS, table, strict=True)), scale, shift, floor, finite)


def _measure_natively(maps: Maps, fitted: tuple[Tensor, Tensor] | None) -> Measured:
    """`measure` by the kernel of the native library."""
    rules, space = maps.rules, maps.space
    limits = torch.tensor([rules.min_depth, rules.max_depth], dtype=torch.float32)
    if rules.bounds == "strict":
        limits = torch.nextafter(limits, torch.tensor([torch.inf, -torch.inf]))
    finfo = torch.finfo(torch.float32)
    # 0 never counts; the smallest number above it is not a normal one.
    nearest = limits[0].clamp(min=finfo.smallest_normal * finfo.eps)
    far = _far_limit(maps.truth, maps.valid, rules)
    bounds = torch.stack([nearest.expand_as(far), torch.minimum(far, limits[1].clamp(max=finfo.max))], 1)
    if isinstance(rules.disparity_floor, str) and (space == "disparity" or rules.disparity_floor == "relative"):
        kinds = {("relative", "disparity"): "/ nearest", ("relative", "depth"): "* farthest"}
        floor_kind = f"number {kinds.get((rules.disparity_floor, space), '/ farthest')}"
        floor = FLOOR if rules.disparity_floor == "relative" else 1.0
    else:
        floor_kind, floor = "number", _fixed_floor(rules)
    sums, alignment = depth_sums(
        maps.prediction,
        maps.truth,
        maps.valid,
        bounds,
        crop_box(rules.score_crop, *maps.size),
        fitted,
        FitAndClip(
            in_disparity=space == "disparity",
            fit_positive=rules.fit_on == "positive-prediction",
            floor_kind=floor_kind,
            floor=floor,
            low=max(LEAST_DEPTH, rules.clip_low or 0.0),
            high=math.inf if rules.clip_high is None else rules.clip_high,
        ),
    )
    table = dict(zip(SUMS, sums.unbind(1), strict=True))
    scale, shift, lower, finite = alignment.unbind(1)
    return Measured(table, scale, shift, lower, finite > 0)


def _measure_rows(
    p: Tensor,
    g: Tensor,
    valid: Tensor,
    far: Tensor,
    fitted: tuple[Tensor, Tensor] | None,
    space: str,
    rules: Rules,
    buffers: Workspace,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`measure` for a few images `(b, n)`; `p` and `g` are finite or valid everywhere."""
    total = p.shape[1]
    pieces = max(1, -(-total // BLOCK)) if p.device.type == "cpu" else 1
    length = -(-total // pieces)
    # Masks are numbers, 1 = counts: products of float32 are several times faster than selections by bool.
    # The first four buffers of a shape are whole maps, the others hold what comes up within a block.
    blocks = [_Block(*parts) for parts in zip(*(maps.split(length, 1) for maps in buffers(p, 4)), strict=True)]
    above, below = (torch.gt, torch.lt) if rules.bounds == "strict" else (torch.ge, torch.le)
    above = above if rules.min_depth > 0 else torch.gt
    partial = p.new_empty((len(blocks), 2, len(p)))
    for block, pb, gb, vb, sums in zip(
        blocks, p.split(length, 1), g.split(length, 1), valid.split(length, 1), partial, strict=True
    ):
        k, flag = block.kept, buffers(gb, 5)[4]
        k.copy_(vb)
        k.mul_(above(gb, rules.min_depth, out=flag))
        if rules.max_depth < torch.inf:  # What is infinite was taken out before.
            k.mul_(below(gb, rules.max_depth, out=flag))
        if rules.far_cut:
            k.mul_(torch.le(gb, far[:, None], out=flag))
        torch.sub(1, k, out=block.not_kept)
        torch.mul(gb, k, out=block.truth).add_(block.not_kept)
        torch.mul(pb, k, out=block.pred)
        torch.sum(k, 1, out=sums[0])
        torch.sum(block.pred, 1, out=sums[1])
    count, total_pred = partial.double().sum(0)
    if fitted is None:
        scale, shift = _least_squares(blocks, space, rules, buffers)
    else:
        scale, shift = fitted
    floor = _floor(blocks, space, rules, buffers)
    columns = [values[:, None] for values in (scale, shift, floor)]
    partial = p.new_empty((len(blocks), len(SUMS) - 1, len(p)), dtype=torch.float64)
    for block, sums in zip(blocks, partial, strict=True):
        depth, *rest = buffers(block.pred, 8)[4:]
        (aligned,) = buffers(block.pred, 1, torch.float64)
        aligned.copy_(block.pred).mul_(columns[0]).add_(columns[1])
        to_depth(aligned, columns[2], space, rules, out=depth)
        depth.mul_(block.kept).add_(block.not_kept)
        sum_errors(depth, block.truth, rest, sums.unbind())
    sums = partial.sum(0)
    # A fit without a pixel makes all depth NaN, also where nothing counts: then none of these was counted.
    sums[SUMS.index("below1") - 1 :].sub_(total - count).clamp_(min=0)
    return torch.cat([count[None], sums]), scale, shift, floor, total_pred.isfinite()


@dataclass(frozen=True)
class _Block:
    """Maps of some pixels, `(b, m)` each."""

    kept: Tensor
    """1 = counts, 0 = does not."""
    not_kept: Tensor
    """1 - kept."""
    pred: Tensor
    """0 where not kept."""
    truth: Tensor
    """1 where not kept."""


def _least_squares(blocks: list[_Block], space: str, rules: Rules, buffers: Workspace) -> tuple[Tensor, Tensor]:
    """The fit of `alignment.align` from one pass of sums.

    Sums are about the value of a pixel that counts instead of the mean, which is not known yet. That keeps the digits
    of maps far from 0, and a constant map gives a sum of squares of exactly 0.
    """
    pivot = _some_value(blocks, rules).double()
    partial = torch.empty((len(blocks), 5, len(pivot)), dtype=torch.float64, device=pivot.device)
    for block, sums in zip(blocks, partial, strict=True):
        used = block.kept
        if rules.fit_on == "positive-prediction":
            used = torch.gt(block.pred, 0, out=buffers(used, 5)[4]).mul_(used)
        k, x, y, product = buffers(used, 4, torch.float64)
        k.copy_(used)
        x.copy_(block.pred).sub_(pivot).mul_(k)
        y.copy_(block.truth)
        if space == "disparity":
            y.reciprocal_()
        for place, (one, other) in zip(sums, ((k, k), (k, x), (k, y), (x, x), (x, y)), strict=True):
            if len(one) == 1:
                torch.dot(one[0], other[0], out=place[0])
            else:
                torch.sum(torch.mul(one, other, out=product), 1, out=place)
    count, x, y, xx, xy = partial.sum(0)
    # Without a pixel the division gives NaN.
    constant = (xx == 0) & (count > 0)
    scale = torch.where(constant, 0, (xy - x * y / count) / torch.where(constant, 1, xx - x * x / count))
    return scale, (y - scale * x) / count - scale * pivot[:, 0]


def _some_value(blocks: list[_Block], rules: Rules) -> Tensor:
    """The prediction at the first pixel that the fit uses, `(b, 1)`; 0 without one."""
    value = torch.zeros_like(blocks[0].pred[:, :1])
    seen = torch.zeros_like(value, dtype=torch.bool)
    for block in blocks:
        used = block.kept
        if rules.fit_on == "positive-prediction":
            used = used * (block.pred > 0)
        index = used.argmax(1, keepdim=True)
        is_first = (used.gather(1, index) > 0) & ~seen
        value = torch.where(is_first, block.pred.gather(1, index), value)
        seen |= is_first
        if value.device.type == "cpu" and bool(seen.all()):
            break
    return value


def _floor(blocks: list[_Block], space: str, rules: Rules, buffers: Workspace) -> Tensor:
    """Lower clip of the aligned map, per image, float64."""
    kind = rules.disparity_floor
    first = blocks[0].truth
    if not isinstance(kind, str) or (space == "depth" and kind != "relative"):
        return torch.full((len(first),), _fixed_floor(rules), dtype=torch.float64, device=first.device)
    nearest = kind == "relative" and space == "disparity"
    extremes = []
    for block in blocks:
        moved = buffers(block.truth, 5)[4]
        if nearest:
            torch.mul(block.not_kept, torch.finfo(moved.dtype).max / 2, out=moved).add_(block.truth)
            extremes.append(moved.amin(1))
        else:
            extremes.append(torch.mul(block.kept, block.truth, out=moved).amax(1))
    found = torch.stack(extremes).double()
    if nearest:
        return FLOOR / found.amin(0)
    return FLOOR * found.amax(0) if space == "depth" else 1 / found.amax(0)


def _fixed_floor(rules: Rules) -> float:
    """The lower clip of rules that do not make it of the truth."""
    floor = rules.disparity_floor
    return LEAST_DEPTH if floor is None or isinstance(floor, str) else floor


def to_depth(aligned: Tensor, floor: Tensor, space: str, rules: Rules, *, out: Tensor | None = None) -> Tensor:
    """Return aligned values, float64 and no longer needed, as clipped float32 depth."""
    # NaN passes through maximum.
    torch.maximum(aligned, floor, out=aligned)
    depth = aligned.float() if out is None else out.copy_(aligned)
    if space == "disparity":
        depth.reciprocal_()
    low = max(LEAST_DEPTH, rules.clip_low or 0.0)
    return depth.clamp_(min=low) if rules.clip_high is None else depth.clamp_(low, rules.clip_high)


def _fit(maps: Maps) -> tuple[Tensor, Tensor]:
    """The fits that need whole maps: medians, robust ones, and those on thinned maps."""
    rules = maps.rules
    # On a device without float64 the sums are made on the CPU.
    kept = scored_pixels(maps.truth, maps.valid, rules)
    if rules.fit_on == "positive-prediction":
        kept &= maps.prediction > 0
    truth, prediction = torch.where(kept, maps.truth.double(), 1), maps.prediction.double()
    if _is_thinned(maps.size, rules):
        truth, prediction, kept = (_thin(values, rules) for values in (truth, prediction, kept))
    wanted = 1 / truth if maps.space == "disparity" else truth
    return fit_scale_shift(prediction, wanted, kept, rules.align)


def _is_thinned(size: tuple[int, int], rules: Rules) -> bool:
    return 0 < rules.align_max_res < max(size)


def _thin(maps: Tensor, rules: Rules) -> Tensor:
    """Every so-many-th column, and row unless `width-only`, so that the longer side has `align_max_res` pixels."""
    factor = rules.align_max_res / max(maps.shape[1:])
    height, width = maps.shape[1:]
    columns = _every(width, factor, maps)
    maps = maps[:, :, columns]
    return maps if rules.align_max_res_style == "width-only" else maps[:, _every(height, factor, maps)]


def _every(side: int, factor: float, like: Tensor) -> Tensor:
    """Indices of nearest-neighbour resizing by `factor`."""
    count = max(1, int(side * factor))
    return (torch.arange(count, device=like.device, dtype=torch.float64) / factor).long().clamp(max=side - 1)


def _in_bounds(depth: Tensor, far: Tensor, rules: Rules) -> Tensor:
    """Which depths count, for what `_far_limit` gave."""
    above, below = (torch.gt, torch.lt) if rules.bounds == "strict" else (torch.ge, torch.le)
    kept = (depth > 0) & (depth < torch.inf)
    if rules.min_depth > 0:
        kept &= above(depth, rules.min_depth)
    if rules.max_depth < torch.inf:
        kept &= below(depth, rules.max_depth)
    if rules.far_cut:
        kept &= depth <= far
    return kept


def _far_limit(depth: Tensor, valid: Tensor, rules: Rules) -> Tensor:
    """`far_cut` times the 1 % quantile of each image's valid depth; NaN without a valid pixel."""
    if not rules.far_cut:
        return depth.new_full((len(depth),), torch.inf)
    kept = (valid & (depth > 0) & (depth < torch.inf)).flatten(1)
    ordered = torch.where(kept, depth.flatten(1), torch.inf).sort(1).values
    place = 0.01 * (kept.sum(1, keepdim=True) - 1).clamp(min=0).double()
    below = place.floor().long()
    near, far = ordered.gather(1, below), ordered.gather(1, place.ceil().long())
    quantile = torch.where(near == far, near, near + (place - below) * (far - near))
    return (rules.far_cut * quantile[:, 0]).to(depth.dtype)


def _gather_sparse(p: Tensor, g: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The valid pixels side by side, if they are few; rows that have fewer than others end in pixels that are not."""
    counts = torch.stack([torch.count_nonzero(row) for row in valid]) if len(valid) else valid.sum(1)
    longest = int(counts.max()) if len(valid) else 0
    if longest > SPARSE * p.shape[1] or longest == 0:
        return p, g, valid
    index = valid.flatten().nonzero()[:, 0]
    row = torch.repeat_interleave(torch.arange(len(p)), counts)
    start = counts.cumsum(0) - counts
    place = row * longest + torch.arange(len(index)) - start[row]
    gathered = []
    for values, rest in ((p, 0), (g, 1), (valid, False)):
        packed = values.new_full((len(p) * longest,), rest)
        packed[place] = values.reshape(-1)[index]
        gathered.append(packed.view(len(p), longest))
    return gathered[0], gathered[1], gathered[2]
