"""Channel-wise distillation loss in Triton: the forward reads both maps once, the backward once more.

With `y = (x - max x) / T`, `Z = sum e^y`, `phi = e^y / Z` and `u = log(phi_s / phi_t)` the loss is
`T^2 / M * sum phi_t (log phi_t - log phi_s)` over M maps with a valid position, its gradient `T / M * (phi_s - phi_t)`:

    measure   maxima and sums of each tile of a map
    join      statistics and divergence of each map, from its tiles in their order and in float64
    finish    the loss and M
    backward  the gradient

Both cancel when the maps are alike, the loss to second order. So the difference of two exponentials is never taken:
`e^{y_s} - e^{y_t} = +-E (1 - e^{-|u|})` with E the larger of them, and `1 - e^{-|u|}` from a series without the 1.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
NUM_WARPS = 4
SUM_BLOCK = 1024

LOG2_E = tl.constexpr(math.log2(math.e))
# What is known of a tile: both maxima, the shift r, and sums of `e^{y_s + r}`, `e^{y_t}`, `e^{y_t} u` and
# `e^{y_s + r} - e^{y_t}`, with y relative to the tile's own maxima, `u = y_s + r - y_t` in powers of 2 and r such that
# u is small where the maps are alike. The sums are NaN if a position is not finite, 0 if there is none.
MAX_S, MAX_T, SHIFT, SUM_S, SUM_T, PRODUCT, DIFFERENCE, PARTS = (tl.constexpr(k) for k in range(8))
# What the backward needs of a map, after both maxima: `distilldepth.ops.library` says it.
WEIGHT_S, WEIGHT_T, LOG_RATIO, SHARE, STATISTICS = (tl.constexpr(k) for k in range(2, 7))


def channel_kl(student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss and what the backward needs of each map.

    Args:
        student: `(B, C, P)`, a floating dtype, contiguous.
        teacher: as `student`.
        valid: bool `(B, P)`, contiguous; None = all.
        temperature: positive.

    Returns:
        Loss, float32; float64 for float64 maps. Statistics, float64 `(B * C, 6)`.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    batch, channels, positions = student.shape
    maps = batch * channels
    loss = student.new_empty((), dtype=dtype)
    statistics = student.new_empty((maps, STATISTICS.value), dtype=torch.float64)
    if student.numel() == 0:
        return loss.zero_(), statistics.zero_()
    block = min(BLOCK, triton.next_power_of_2(positions))
    tiles = triton.cdiv(positions, block)
    parts = student.new_empty((maps * tiles, PARTS.value), dtype=dtype)
    divergences = student.new_empty((maps,), dtype=torch.float64)
    split = _split(temperature)
    with torch.cuda.device_of(student):
        _measure[(maps * tiles,)](
            student, teacher, _kept(student, valid), parts, positions, channels, tiles, *split,
            HAS_VALID=valid is not None, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
        _join[(maps,)](parts, statistics, divergences, tiles, *split, BLOCK=SUM_BLOCK)
        _finish[(1,)](statistics, divergences, loss, maps, *split, BLOCK=SUM_BLOCK)
    return loss, statistics


def channel_kl_backward(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    statistics: Tensor,
    temperature: float,
) -> Tensor:
    """Return the gradient to `student` in its dtype, from what `channel_kl` returned."""
    _, channels, positions = student.shape
    gradient = torch.empty_like(student)
    if student.numel() == 0:
        return gradient
    block = min(BLOCK, triton.next_power_of_2(positions))
    tiles = triton.cdiv(positions, block)
    with torch.cuda.device_of(student):
        _backward[(len(statistics) * tiles,)](
            student, teacher, _kept(student, valid), statistics, grad_loss, gradient, positions, channels, tiles,
            *_split(temperature), HAS_VALID=valid is not None, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
    return gradient


def _kept(student: Tensor, valid: Tensor | None) -> Tensor:
    # None as a pointer is another kernel to Triton; any pointer serves where it is not read.
    return student if valid is None else valid.view(torch.uint8)


def _split(number: float) -> tuple[float, float]:
    """Two numbers whose sum is `number`: Triton passes floats in 32 bits, float64 maps need more."""
    # On the CPU, whatever the default device is: reading a number back from a GPU would wait for it.
    high = float(torch.tensor(number, dtype=torch.float32, device="cpu"))
    return high, number - high


@triton.jit
def _double(high, low):
    return tl.full((), high, tl.float64) + tl.full((), low, tl.float64)


@triton.jit
def _load(student, teacher, valid, offset, positions, channels, tiles, HAS_VALID: tl.constexpr, BLOCK: tl.constexpr):
    """Both maps on a tile, 0 where not kept; the map's number, positions, which of them exist, which are kept."""
    one_map = offset // tiles
    at = (offset - one_map * tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = at < positions
    kept = inside
    if HAS_VALID:
        kept = tl.load(valid + one_map // channels * positions + at, mask=inside, other=0) != 0
    s = tl.load(student + one_map * positions + at, mask=kept, other=0.0)
    t = tl.load(teacher + one_map * positions + at, mask=kept, other=0.0)
    if s.dtype != tl.float64:
        s = s.to(tl.float32)
        t = t.to(tl.float32)
    return s, t, one_map, at, inside, kept


@triton.jit
def _coefficient(n: tl.constexpr, x):
    """(-1)^(n + 1) / n! in the type of x; by divisions, because a float constant would be rounded to 32 bits."""
    c = tl.full((), 1, x.dtype)
    for k in tl.static_range(2, n + 1):
        c = c / k
    if n % 2 == 0:
        c = -c
    return c


@triton.jit
def _pair(y_s, y_t, u):
    """The larger of `2^y_s` and `2^y_t`, and, with u their difference in powers of 2, `2^-|u|` and `1 - 2^-|u|`."""
    TERMS: tl.constexpr = 14 if u.dtype == tl.float64 else 7
    size = tl.abs(u)
    larger = tl.exp2(tl.where(u < 0, y_t, y_s))
    ratio = tl.exp2(-size)
    natural = size / LOG2_E
    series = tl.zeros_like(u) + _coefficient(TERMS + 1, u)
    for k in tl.static_range(TERMS):
        series = series * natural + _coefficient(TERMS - k, u)
    return larger, ratio, tl.where(size < 0.5, natural * series, 1 - ratio)


@triton.jit
def _measure(
    student,  # (maps, positions)
    teacher,  # (maps, positions)
    valid,  # (maps // channels, positions) uint8
    parts,  # (maps * tiles, PARTS)
    positions,
    channels,
    tiles,
    temperature_high,
    temperature_low,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    s, t, _, _, _, kept = _load(student, teacher, valid, tile, positions, channels, tiles, HAS_VALID, BLOCK)
    dtype: tl.constexpr = s.dtype
    scale = (1 / _double(temperature_high, temperature_low) * LOG2_E).to(dtype)
    count = tl.sum(kept.to(tl.int32), 0)
    finite = tl.sum((kept & (s - s == 0) & (t - t == 0)).to(tl.int32), 0) == count
    # A tile without a position, or with one that is not finite, is as if it were 0 until the end.
    usable = finite & (count > 0)
    max_s = tl.where(usable, tl.max(tl.where(kept, s, -float("inf")), 0), 0.0)
    max_t = tl.where(usable, tl.max(tl.where(kept, t, -float("inf")), 0), 0.0)
    apart = tl.sum(tl.where(kept & usable, s - t, 0.0), 0) / tl.maximum(count, 1).to(dtype)
    # Around their mean difference the maps are alike, unless one of them towers in a few places.
    shift = ((max_s - max_t) - apart) * scale
    shift = tl.where(tl.abs(shift) < 60, shift, 0.0)
    # Finite, so that the difference of two and its product with 0 are.
    lowest: tl.constexpr = -1e38
    y_s = tl.maximum(tl.where(kept & usable, (s - max_s) * scale + shift, lowest), lowest)
    y_t = tl.maximum(tl.where(kept & usable, (t - max_t) * scale, lowest), lowest)
    u = y_s - y_t
    larger, ratio, difference = _pair(y_s, y_t, u)
    smaller = larger * ratio
    exp_t = tl.where(u < 0, larger, smaller)
    sum_s = tl.sum(tl.where(u < 0, smaller, larger), 0)
    sum_t = tl.sum(exp_t, 0)
    apart_sum = tl.sum(tl.where(u < 0, -larger, larger) * difference, 0)
    row = parts + tile * PARTS
    tl.store(row + MAX_S, max_s)
    tl.store(row + MAX_T, max_t)
    tl.store(row + SHIFT, shift)
    # The more exact of the two where the maps are alike.
    tl.store(row + SUM_S, tl.where(tl.abs(apart_sum) < sum_t * 0.5, sum_t + apart_sum, sum_s))
    tl.store(row + SUM_T, tl.where(finite, sum_t, float("nan")))
    tl.store(row + PRODUCT, tl.sum(exp_t * u, 0))


@triton.jit
def _top(numbers, sums, tiles, BLOCK: tl.constexpr):
    """Maximum of the tiles that have a position."""
    top = tl.full((BLOCK,), -float("inf"), tl.float64)
    for start in range(0, tiles, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        # NaN is not 0: a tile that is not finite counts.
        some = tl.load(sums + at * PARTS, mask=at < tiles, other=0.0) != 0
        top = tl.maximum(top, tl.load(numbers + at * PARTS, mask=some, other=-float("inf")).to(tl.float64))
    return tl.max(top, 0)


@triton.jit
def _join(
    parts,  # (maps * tiles, PARTS)
    statistics,  # (maps, STATISTICS)
    divergences,  # (maps,)
    tiles,
    temperature_high,
    temperature_low,
    BLOCK: tl.constexpr,
):
    one_map = tl.program_id(0).to(tl.int64)
    first = parts + one_map * tiles * PARTS
    scale = 1 / _double(temperature_high, temperature_low) * LOG2_E
    max_s = _top(first + MAX_S, first + SUM_T, tiles, BLOCK)
    max_t = _top(first + MAX_T, first + SUM_T, tiles, BLOCK)
    z_s = tl.zeros((BLOCK,), tl.float64)
    z_t = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, tiles, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        part = first + at * PARTS
        sum_t = tl.load(part + SUM_T, mask=at < tiles, other=0.0).to(tl.float64)
        some = sum_t != 0
        lower_s = (tl.load(part + MAX_S, mask=some, other=0.0).to(tl.float64) - max_s) * scale
        lower_s = tl.where(some, lower_s - tl.load(part + SHIFT, mask=some, other=0.0).to(tl.float64), 0.0)
        lower_t = (tl.load(part + MAX_T, mask=some, other=0.0).to(tl.float64) - max_t) * scale
        lower_t = tl.where(some, lower_t, 0.0)
        factor = tl.exp2(lower_t)
        z_s += tl.exp2(lower_s) * tl.load(part + SUM_S, mask=some, other=0.0).to(tl.float64)
        z_t += factor * sum_t
        product = tl.load(part + PRODUCT, mask=some, other=0.0).to(tl.float64)
        products += factor * (product + sum_t * (lower_s - lower_t))
    whole_t = tl.sum(z_t, 0)
    counted = whole_t != 0
    whole_t = tl.where(counted, whole_t, 1.0)
    # NaN through the teacher's sum.
    whole_s = tl.where(counted, tl.sum(z_s, 0) + (whole_t - whole_t), 1.0)
    log_ratio = tl.log(whole_s / whole_t)
    row = statistics + one_map * STATISTICS
    tl.store(row + MAX_S, tl.where(counted, max_s, 0.0))
    tl.store(row + MAX_T, tl.where(counted, max_t, 0.0))
    tl.store(row + WEIGHT_S, tl.where(counted, 1 / whole_s, 0.0))
    tl.store(row + WEIGHT_T, tl.where(counted, 1 / whole_t, 0.0))
    tl.store(row + LOG_RATIO, log_ratio)
    tl.store(divergences + one_map, log_ratio - tl.sum(products, 0) / (whole_t * LOG2_E))


@triton.jit
def _finish(
    statistics,  # (maps, STATISTICS)
    divergences,  # (maps,)
    loss,  # ()
    maps,
    temperature_high,
    temperature_low,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((BLOCK,), tl.float64)
    counted = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, maps, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(divergences + at, mask=at < maps, other=0.0)
        weight = tl.load(statistics + at * STATISTICS + WEIGHT_T, mask=at < maps, other=0.0)
        # NaN is not 0: a map that is not finite counts.
        counted += (weight != 0).to(tl.float64)
    # If no map has a valid position, the loss is 0 anyway.
    share = 1 / tl.maximum(tl.sum(counted, 0), 1.0)
    for start in range(0, maps, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        tl.store(statistics + at * STATISTICS + SHARE, tl.zeros((BLOCK,), tl.float64) + share, mask=at < maps)
    temperature = _double(temperature_high, temperature_low)
    tl.store(loss, temperature * temperature * tl.sum(total, 0) * share)


@triton.jit
def _backward(
    student,  # (maps, positions)
    teacher,  # (maps, positions)
    valid,  # (maps // channels, positions) uint8
    statistics,  # (maps, STATISTICS)
    grad_loss,  # ()
    gradient,  # (maps, positions)
    positions,
    channels,
    tiles,
    temperature_high,
    temperature_low,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    s, t, one_map, at, inside, kept = _load(student, teacher, valid, tile, positions, channels, tiles, HAS_VALID, BLOCK)
    dtype: tl.constexpr = s.dtype
    temperature = _double(temperature_high, temperature_low)
    row = statistics + one_map * STATISTICS
    max_s, max_t, log_ratio = tl.load(row + MAX_S), tl.load(row + MAX_T), tl.load(row + LOG_RATIO)
    weight = tl.load(grad_loss).to(tl.float64) * temperature * tl.load(row + SHARE) * tl.load(row + WEIGHT_T)
    # Values are taken at a quarter, so that no difference of two is infinite.
    s, t, max_s, max_t = s * 0.25, t * 0.25, max_s * 0.25, max_t * 0.25
    scale = (1 / temperature * LOG2_E * 4).to(dtype)
    # y_s + r - y_t = (s - t - offset) / T with r = -log_ratio; the offset is a sum of two numbers, to have all digits.
    upper = temperature * log_ratio * 0.25
    offset = ((max_s - max_t) + upper).to(dtype)
    offset_rest = (((max_s - max_t) - offset.to(tl.float64)) + upper).to(dtype)
    # s - t = apart + lost exactly.
    apart = s - t
    back = s - apart
    lost = (s - (apart + back)) + (back - t)
    u = ((apart - offset) + (lost - offset_rest)) * scale
    y_s = (s - max_s.to(dtype)) * scale - (log_ratio * LOG2_E).to(dtype)
    y_t = (t - max_t.to(dtype)) * scale
    larger, _, difference = _pair(y_s, y_t, u)
    value = tl.where(u < 0, -larger, larger) * difference * weight.to(dtype)
    tl.store(gradient + one_map * positions + at, tl.where(kept, value, 0.0), mask=inside)
