"""Channel-wise distillation loss in Triton: two passes over the maps, every sum over tiles in float64 and in order.

With `d = x - max x` and `phi = exp(d / T) / Z` the loss is `T^2 / M * sum phi_t (log phi_t - log phi_s)` over M maps,
its gradient `T / M * (phi_s - phi_t)`. Both need Z first:

    measure   maximum and Z of each tile of a map
    combine   the same of each map
    count     M, the maps with a valid position
    finish    loss of each tile, gradient
    total     the loss

The loss is summed as `phi_t h(x)` with `x = log(phi_t / phi_s)` and `h(x) = x - 1 + exp(-x)`, which has the same sum
because both phi sum to 1. Every term is positive, so nothing cancels when student and teacher agree, and an error c in
the logarithms of Z changes the sum by `c^2` only.
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
# What is known of a tile: both maxima, both Z.
MAX_S, MAX_T, Z_S, Z_T, PARTS = (tl.constexpr(k) for k in range(5))
# What is known of a map: both maxima, both 1 / Z, log(Z_s / Z_t), 1 if it has a valid position.
WEIGHT_S, WEIGHT_T, LOG_RATIO, COUNTED, WEIGHTS = (tl.constexpr(k) for k in range(2, 7))


def channel_kl(
    student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float, need_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient `(B, C, P)`; the gradient is `(0,)` if it is not needed.

    Args:
        student: `(B, C, P)`, a floating dtype, contiguous.
        teacher: as `student`.
        valid: bool `(B, P)`, contiguous; None = all.
        temperature: positive.
        need_gradient: whether the gradient is written.

    Returns:
        Both float32; float64 for float64 maps.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    batch, channels, positions = student.shape
    loss = student.new_empty((), dtype=dtype)
    gradient = student.new_empty(student.shape if need_gradient else (0,), dtype=dtype)
    if student.numel() == 0:
        return loss.zero_(), gradient
    maps = batch * channels
    block = min(BLOCK, triton.next_power_of_2(positions))
    tiles = triton.cdiv(positions, block)
    # None as a pointer is another kernel to Triton; any pointer serves where it is not read.
    kept = student if valid is None else valid.view(torch.uint8)
    parts = student.new_empty((maps * tiles, PARTS.value), dtype=dtype)
    weights = student.new_empty((maps, WEIGHTS.value), dtype=torch.float64)
    counted = student.new_empty((1,), dtype=torch.float64)
    losses = student.new_empty((maps * tiles,), dtype=torch.float64)
    shape = (positions, channels, tiles)
    split = _split(temperature)
    constants = {"HAS_VALID": valid is not None, "BLOCK": block, "num_warps": NUM_WARPS}
    with torch.cuda.device_of(student):
        _measure[(maps * tiles,)](student, teacher, kept, parts, *shape, *split, **constants)
        _combine[(maps,)](parts, weights, tiles, *split, BLOCK=SUM_BLOCK)
        _count[(1,)](weights, counted, maps, BLOCK=SUM_BLOCK)
        _finish[(maps * tiles,)](
            student, teacher, kept, weights, counted, losses, gradient, *shape, *split,
            NEED_GRADIENT=need_gradient, **constants,
        )  # fmt: skip
        _total[(1,)](losses, counted, loss, maps * tiles, *split, BLOCK=SUM_BLOCK)
    return loss, gradient


def _split(number: float) -> tuple[float, float]:
    """Two numbers whose sum is `number`: Triton passes floats in 32 bits, float64 maps need more."""
    high = float(torch.tensor(number, dtype=torch.float32))
    return high, number - high


@triton.jit
def _double(high, low):
    return tl.full((), high, tl.float64) + tl.full((), low, tl.float64)


@triton.jit
def _load(student, teacher, valid, offset, positions, channels, tiles, HAS_VALID: tl.constexpr, BLOCK: tl.constexpr):
    """Both maps on a tile, -inf where not kept; the map's number, positions, which of them exist, which are kept."""
    one_map = offset // tiles
    at = (offset - one_map * tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = at < positions
    kept = inside
    if HAS_VALID:
        kept = tl.load(valid + one_map // channels * positions + at, mask=inside, other=0) != 0
    s = tl.load(student + one_map * positions + at, mask=kept, other=-float("inf"))
    t = tl.load(teacher + one_map * positions + at, mask=kept, other=-float("inf"))
    if s.dtype != tl.float64:
        s = s.to(tl.float32)
        t = t.to(tl.float32)
    return s, t, one_map, at, inside, kept


@triton.jit
def _softmax(x, kept, infinite, scale):
    """Maximum and sum of `exp((x - maximum) / T)`; the sum is NaN if a kept value is not finite."""
    top = tl.max(x, 0)
    finite_top = tl.where(top == -float("inf"), 0.0, top)
    z = tl.sum(tl.where(kept, tl.exp2((x - finite_top) * scale), 0.0), 0)
    return top, tl.where(infinite, float("nan"), z)


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
    temperature = _double(temperature_high, temperature_low)
    scale = (1 / temperature * LOG2_E).to(s.dtype)
    # Other values that are not finite turn the sum into NaN by themselves.
    infinite = tl.max((kept & ((s == -float("inf")) | (t == -float("inf")))).to(tl.int32), 0) > 0
    max_s, z_s = _softmax(s, kept, infinite, scale)
    max_t, z_t = _softmax(t, kept, infinite, scale)
    tl.store(parts + tile * PARTS + MAX_S, max_s)
    tl.store(parts + tile * PARTS + MAX_T, max_t)
    tl.store(parts + tile * PARTS + Z_S, z_s)
    tl.store(parts + tile * PARTS + Z_T, z_t)


@triton.jit
def _combine_side(top_parts, z_parts, tiles, scale, BLOCK: tl.constexpr):
    """Maximum and Z of one map from those of its tiles, in float64."""
    top = tl.full((BLOCK,), -float("inf"), tl.float64)
    for start in range(0, tiles, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        top = tl.maximum(top, tl.load(top_parts + at * PARTS, mask=at < tiles, other=-float("inf")).to(tl.float64))
    whole = tl.max(top, 0)
    z = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, tiles, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        tile_top = tl.load(top_parts + at * PARTS, mask=at < tiles, other=-float("inf")).to(tl.float64)
        tile_z = tl.load(z_parts + at * PARTS, mask=at < tiles, other=0.0).to(tl.float64)
        # A tile without a valid position has the sum 0; a tile of -inf has NaN and keeps it.
        z += tl.where(tile_top == -float("inf"), tile_z, tile_z * tl.exp2((tile_top - whole) * scale))
    return whole, tl.sum(z, 0)


@triton.jit
def _combine(
    parts,  # (maps * tiles, PARTS)
    weights,  # (maps, WEIGHTS)
    tiles,
    temperature_high,
    temperature_low,
    BLOCK: tl.constexpr,
):
    one_map = tl.program_id(0).to(tl.int64)
    first = parts + one_map * tiles * PARTS
    scale = 1 / _double(temperature_high, temperature_low) * LOG2_E
    max_s, z_s = _combine_side(first + MAX_S, first + Z_S, tiles, scale, BLOCK)
    max_t, z_t = _combine_side(first + MAX_T, first + Z_T, tiles, scale, BLOCK)
    # NaN is not 0: a map that is not finite counts.
    counted = z_s != 0
    row = weights + one_map * WEIGHTS
    tl.store(row + MAX_S, max_s)
    tl.store(row + MAX_T, max_t)
    tl.store(row + WEIGHT_S, 1 / tl.where(counted, z_s, 1.0))
    tl.store(row + WEIGHT_T, 1 / tl.where(counted, z_t, 1.0))
    tl.store(row + LOG_RATIO, tl.log(tl.where(counted, z_s, 1.0) / tl.where(counted, z_t, 1.0)))
    tl.store(row + COUNTED, counted.to(tl.float64))


@triton.jit
def _sum(numbers, count, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(numbers + at * STRIDE, mask=at < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _count(
    weights,  # (maps, WEIGHTS)
    counted,  # (1,)
    maps,
    BLOCK: tl.constexpr,
):
    # M; 1 if no map has a valid position, the loss is 0 anyway.
    tl.store(counted, tl.maximum(_sum(weights + COUNTED, maps, WEIGHTS, BLOCK), 1.0))


@triton.jit
def _coefficient(n: tl.constexpr, x):
    """(-1)^n / n! in the type of x; by divisions, because a float constant would be rounded to 32 bits."""
    c = tl.full((), 1, x.dtype)
    for k in tl.static_range(2, n + 1):
        c = c / k
    if n % 2 == 1:
        c = -c
    return c


@triton.jit
def _compare(phi_s, phi_t, x):
    """`phi_t h(x)` and `phi_s - phi_t`: by a series near x = 0, which keeps all digits, else from both phi."""
    TERMS: tl.constexpr = 14 if x.dtype == tl.float64 else 7
    series = tl.zeros_like(x) + _coefficient(TERMS + 1, x)
    for k in tl.static_range(TERMS - 1):
        series = series * x + _coefficient(TERMS - k, x)
    h = x * x * series
    near = tl.abs(x) < 0.5
    # phi_t = 0 has no logarithm: x may be -inf there.
    direct = tl.where(phi_t == 0, phi_s, phi_t * (x - 1) + phi_s)
    return tl.where(near, phi_t * h, direct), tl.where(near, phi_t * (h - x), phi_s - phi_t)


@triton.jit
def _finish(
    student,  # (maps, positions)
    teacher,  # (maps, positions)
    valid,  # (maps // channels, positions) uint8
    weights,  # (maps, WEIGHTS)
    counted,  # (1,)
    losses,  # (maps * tiles,)
    gradient,  # (maps, positions)
    positions,
    channels,
    tiles,
    temperature_high,
    temperature_low,
    NEED_GRADIENT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Backwards: what the first pass read last is still in the cache.
    tile = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    s, t, one_map, at, inside, kept = _load(student, teacher, valid, tile, positions, channels, tiles, HAS_VALID, BLOCK)
    dtype: tl.constexpr = s.dtype
    temperature = _double(temperature_high, temperature_low)
    scale = (1 / temperature * LOG2_E).to(dtype)
    row = weights + one_map * WEIGHTS
    d_s = s - tl.load(row + MAX_S).to(dtype)
    d_t = t - tl.load(row + MAX_T).to(dtype)
    phi_s = tl.exp2(d_s * scale) * tl.load(row + WEIGHT_S).to(dtype)
    phi_t = tl.exp2(d_t * scale) * tl.load(row + WEIGHT_T).to(dtype)
    log_ratio = (d_t - d_s) * (1 / temperature).to(dtype) + tl.load(row + LOG_RATIO).to(dtype)
    divergence, difference = _compare(phi_s, phi_t, log_ratio)
    tl.store(losses + tile, tl.sum(tl.where(kept, divergence, 0.0).to(tl.float64), 0))
    if NEED_GRADIENT:
        factor = (temperature / tl.load(counted)).to(dtype)
        tl.store(gradient + one_map * positions + at, tl.where(kept, difference * factor, 0.0), mask=inside)


@triton.jit
def _total(
    losses,  # (count,)
    counted,  # (1,)
    loss,  # ()
    count,
    temperature_high,
    temperature_low,
    BLOCK: tl.constexpr,
):
    temperature = _double(temperature_high, temperature_low)
    tl.store(loss, temperature * temperature * _sum(losses, count, 1, BLOCK) / tl.load(counted))
