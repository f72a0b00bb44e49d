"""Hybrid normalisation loss in Triton: exact medians by radix selection, every sum in float64 and in a fixed order.

A *context* is numbered inside its image, all contexts of the first level first; every pixel is in one context of each
level. A pass over the pixels leaves a statistic per context in global memory, a small kernel with one program per
context turns it into what the next pass needs:

    extents      smallest and largest valid value of both maps, counts of pixels
    edges        of the contexts, for `quantile` after selecting order statistics of the target
    medians      of both maps in every context: four digits of 8 bits, a histogram and a narrowing for each
    deviations   sums of distances to the medians, first pixel that has the median  ->  spreads
    differences  the loss, and sums over the signs of the differences               ->  coefficients
    gradient     but for a scale that is the same for all

Nothing is read back by the host. Counts are integers, added by atomics, those of histograms after a program has counted
its own pixels; float64 sums are made per block and added up by one program, so results do not depend on the order in
which programs run.

Values are ordered by integer keys. All maps are read as float32, differences are taken in float64: a rounding in the
difference of two nearly equal normalised values would turn its sign, which is the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from distilldepth.kernels import interpreted

# Fused multiply-adds would make what is computed twice come out differently, and the difference of equal maps not 0.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
# Pixels of a program. Triton's interpreter takes as long for a small program as for a large one.
BLOCK = 16384 if interpreted() else 1024
# Times as many of a program that counts into a histogram: the more, the fewer are its atomics.
COUNT_STEPS = 1 if interpreted() else 8
DIGITS, BITS = 4, 8  # of a key
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SPATIAL = tl.constexpr(2)
QUANTILE = tl.constexpr(1)
NONE_YET = tl.constexpr(-(2**31))
# How much one program of the small kernels takes on at a time.
BLOCKS_AT_ONCE, CONTEXTS_AT_ONCE = tl.constexpr(32), tl.constexpr(16)
SLOTS_AT_ONCE = tl.constexpr(4)
SUM_BLOCK = tl.constexpr(1024)
# Bins of a histogram that a program counts by itself, at most.
MOST_BINS = tl.constexpr(2048)


class Sampling(NamedTuple):
    """Where the pixels of N crops lie in a map of another size; each axis has its own sample points."""

    image_index: Tensor  # (N,) int64
    rows: Tensor  # (N, height) int32, the map's row at or above each sample point
    row_shares: Tensor  # (N, height) float32, share of the row below, less than 1
    columns: Tensor  # (N, width) int32
    column_shares: Tensor  # (N, width) float32
    images: int  # how many maps there are
    height: int  # of the map
    width: int


class Maps(NamedTuple):
    """The pair of maps that kernels read; with `sampling` the prediction is resampled wherever it is read."""

    prediction: Tensor  # (N, height, width); with sampling (B, sampling.height, sampling.width)
    target: Tensor  # (N, height, width)
    valid: Tensor | None  # (N, height, width) uint8
    height: int
    width: int
    sampling: Sampling | None


def hybrid_norm(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None,
    segments: Sequence[int],
    contexts: int,
    spread_eps: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, its gradient `(B, H, W)` over a scale, and the scale, all float32.

    The gradient is `(0,)` if it is not needed.

    Args:
        prediction: `(B, H, W)` float32, float16 or bfloat16, contiguous.
        target: `(B, H, W)`, same dtype, contiguous.
        valid: bool `(B, H, W)`, contiguous; None = all.
        segments: how many contexts each level has.
        contexts: 0 range, 1 quantile, 2 spatial.
        spread_eps: added to every spread.
        need_gradient: whether to compute the gradient.

    Raises:
        TypeError: the maps are float64.
    """
    check_dtype("hybrid_norm", prediction)
    images, height, width = prediction.shape
    maps = Maps(prediction, target, as_bytes(valid), height, width, None)
    return loss_and_gradient(maps, images, segments, contexts, spread_eps, need_gradient, mean_of_images=False)


def check_dtype(op: str, maps: Tensor) -> None:
    """Raise TypeError for what the kernels cannot read."""
    if maps.dtype not in DTYPES:
        raise TypeError(
            f"{op}: maps must be float32, float16 or bfloat16 for Triton, got {maps.dtype}; use the native or the "
            "reference backend"
        )


def as_bytes(valid: Tensor | None) -> Tensor | None:
    """View a bool tensor as uint8."""
    return None if valid is None else valid.view(torch.uint8)


def loss_and_gradient(
    maps: Maps,
    images: int,
    segments: Sequence[int],
    contexts: int,
    spread_eps: float,
    need_gradient: bool,
    *,
    mean_of_images: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss; gradient `(images, height, width)` over a scale, to the prediction as read, that is, resampled; scale.

    The loss is the mean over the valid pixels of all images, or with `mean_of_images` the mean over images of the mean
    over their valid pixels, images without any left out.
    """
    device, pixels = maps.target.device, maps.height * maps.width
    if images * pixels == 0:
        gradient = (images, maps.height, maps.width) if need_gradient else (0,)
        return torch.zeros((), device=device), torch.zeros(gradient, device=device), torch.zeros((), device=device)
    levels, count, edge_count = [], 0, 0
    for parts in segments:
        own = parts**2 if contexts == SPATIAL.value else parts
        levels.append((parts, count, edge_count, own))
        count += own
        edge_count += 0 if contexts == SPATIAL.value else parts - 1
    levels = tuple(levels)
    blocks = triton.cdiv(pixels, BLOCK)
    groups = triton.cdiv(count, CONTEXTS_AT_ONCE.value)

    def integers(*shape: int, fill: int | None = None) -> Tensor:
        if fill is None:
            return torch.empty(shape, dtype=torch.int32, device=device)
        return torch.full(shape, fill, dtype=torch.int32, device=device)

    def doubles(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=device)

    pixel_grid = (images * blocks,)
    split = {"LEVELS": levels, "CONTEXTS": contexts, "COUNT": count, "EDGES": edge_count, "BLOCK": BLOCK}
    counting = {"blocks": triton.cdiv(pixels, BLOCK * COUNT_STEPS), "STEPS": COUNT_STEPS}
    count_grid = (images * counting["blocks"],)
    with torch.cuda.device_of(maps.target):
        extents = integers(images, 4, fill=NONE_YET.value)
        counts = integers(images, 2, fill=0)
        _extents_kernel[pixel_grid](maps, extents, counts, blocks, BLOCK=BLOCK, **OPTIONS)

        edges = integers(images, edge_count)
        if edge_count:
            statistics = None
            if contexts == QUANTILE.value:
                statistics, ranks = integers(images, 2 * edge_count), integers(images, 2 * edge_count)
                histogram = integers(DIGITS, images, 2 * edge_count, 1 << BITS, fill=0)
                for digit in range(DIGITS):
                    select = {"taken": digit * BITS, "FIRST": digit == 0, "EDGES": edge_count, "BITS": BITS}
                    _edge_histogram_kernel[count_grid](
                        maps, extents, statistics, histogram[digit], **counting, **select, BLOCK=BLOCK, **OPTIONS
                    )
                    _edge_narrow_kernel[(triton.cdiv(images * 2 * edge_count, SLOTS_AT_ONCE.value),)](
                        extents, counts, histogram[digit], statistics, ranks, images * 2 * edge_count,
                        LEVELS=levels, **select, **OPTIONS,
                    )  # fmt: skip
            _edges_kernel[(images * edge_count,)](
                extents, counts, statistics, edges, LEVELS=levels, EDGES=edge_count, **OPTIONS
            )

        medians, ranks = integers(images, 2, count), integers(images, 2, count)
        context_counts = integers(images, count)
        histogram = integers(DIGITS, images, 2, count, 1 << BITS, fill=0)
        for digit in range(DIGITS):
            select = {"taken": digit * BITS, "FIRST": digit == 0, "BITS": BITS}
            _histogram_kernel[count_grid](
                maps, extents, edges, medians, histogram[digit], **counting, **select, **split, **OPTIONS
            )
            _narrow_kernel[(triton.cdiv(images * 2 * count, SLOTS_AT_ONCE.value),)](
                extents, histogram[digit], medians, ranks, context_counts, images * 2 * count,
                COUNT=count, **select, **OPTIONS,
            )  # fmt: skip

        first = integers(images, count, fill=NONE_YET.value)
        deviations = doubles(2, images, blocks, count).zero_()
        inverse_spreads = doubles(images, 2, count)
        _deviations_kernel[pixel_grid](maps, edges, medians, first, deviations, images, blocks, **split, **OPTIONS)
        _spreads_kernel[(images * 2 * groups,)](
            deviations, context_counts, inverse_spreads, images, blocks, COUNT=count, EPS=spread_eps, **OPTIONS
        )

        losses = doubles(images, blocks)
        signs, moments = integers(2, images, count, fill=0), doubles(images, blocks, count).zero_()
        _differences_kernel[pixel_grid](
            maps, edges, medians, inverse_spreads, losses, signs, moments, images, blocks,
            NEED_GRADIENT=need_gradient, **split, **OPTIONS,
        )  # fmt: skip
        loss, scale = torch.empty((), device=device), torch.empty((), device=device)
        _total_kernel[(1,)](
            losses, counts, loss, scale, images, blocks, DEPTH=len(levels), MEAN_OF_IMAGES=mean_of_images, **OPTIONS
        )
        if not need_gradient:
            return loss, torch.empty(0, device=device), scale

        coefficients = doubles(3, images, count)
        _coefficients_kernel[(images * groups,)](
            signs, moments, inverse_spreads, context_counts, counts, coefficients, images, blocks,
            COUNT=count, MEAN_OF_IMAGES=mean_of_images, **OPTIONS,
        )  # fmt: skip
        gradient = torch.empty(images, maps.height, maps.width, device=device)
        _gradient_kernel[pixel_grid](
            maps, edges, medians, inverse_spreads, first, coefficients, gradient, images, blocks, **split, **OPTIONS
        )
    return loss, gradient, scale


@triton.jit
def _sample(prediction, sampling, crop, row, column, height, width, ok):
    """Bilinear value of a crop's pixels, float32; nothing is read where not ok."""
    crop = crop.to(tl.int64)
    top = tl.load(sampling.rows + crop * height + row, mask=ok, other=0)
    row_share = tl.load(sampling.row_shares + crop * height + row, mask=ok, other=0.0)
    left = tl.load(sampling.columns + crop * width + column, mask=ok, other=0)
    column_share = tl.load(sampling.column_shares + crop * width + column, mask=ok, other=0.0)
    # A sample on a pixel has one neighbour: what is beside it must not come in as 0 * NaN.
    down = tl.where(row_share > 0, sampling.width, 0)
    right = tl.where(column_share > 0, 1, 0)
    # Nobody has looked at the index, which would wait for the device. A crop of no image is NaN, and nothing is read.
    image = tl.load(sampling.image_index + crop)
    known = (image >= 0) & (image < sampling.images)
    ok = ok & known
    corner = prediction + tl.where(known, image, 0) * sampling.height * sampling.width
    corner += top.to(tl.int64) * sampling.width + left
    upper_left = tl.load(corner, mask=ok, other=0.0).to(tl.float32)
    upper_right = tl.load(corner + right, mask=ok, other=0.0).to(tl.float32)
    lower_left = tl.load(corner + down, mask=ok, other=0.0).to(tl.float32)
    lower_right = tl.load(corner + down + right, mask=ok, other=0.0).to(tl.float32)
    at_left = upper_left * (1 - row_share) + lower_left * row_share
    at_right = upper_right * (1 - row_share) + lower_right * row_share
    return tl.where(known, at_left * (1 - column_share) + at_right * column_share, float("nan"))


@triton.jit
def _read(maps, blocks, BLOCK: tl.constexpr):
    """This program's image, and of its pixels: numbers in the image, both maps in float32, which are valid.

    What is not valid reads as 0.
    """
    return _read_block(maps, tl.program_id(0) // blocks, tl.program_id(0) % blocks, BLOCK)


@triton.jit
def _read_block(maps, image, block, BLOCK: tl.constexpr):
    """`_read` of any block of pixels."""
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    pixels = maps.height * maps.width
    place = image.to(tl.int64) * pixels + pixel
    ok = pixel < pixels
    if maps.valid is not None:
        ok = ok & (tl.load(maps.valid + place, mask=ok, other=0) != 0)
    target = tl.load(maps.target + place, mask=ok, other=0.0).to(tl.float32)
    if maps.sampling is None:
        prediction = tl.load(maps.prediction + place, mask=ok, other=0.0).to(tl.float32)
    else:
        row, column = pixel // maps.width, pixel % maps.width
        prediction = _sample(maps.prediction, maps.sampling, image, row, column, maps.height, maps.width, ok)
    return image, pixel, prediction, target, ok


@triton.jit
def _key(value):
    """An int32 that is ordered as the float32 is; both zeros have one key."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    # The bits of a negative float grow downwards.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _context(maps, pixel, target_key, edges, PARTS: tl.constexpr, CONTEXTS: tl.constexpr):
    """Which context of one level each pixel is in; `edges` (PARTS - 1,) are keys."""
    if CONTEXTS == SPATIAL:
        # Row r is in the last part k with floor(height * k / PARTS) <= r, that is height * k < (r + 1) * PARTS.
        row = ((pixel // maps.width + 1) * PARTS - 1) // maps.height
        column = ((pixel % maps.width + 1) * PARTS - 1) // maps.width
        context = row * PARTS + column
    else:
        context = tl.zeros_like(pixel)
        for k in range(PARTS - 1):
            context += (target_key >= tl.load(edges + k)).to(tl.int32)
    return context


@triton.jit
def _present(context, ok):
    """Smallest and largest context in this block; the smallest is larger if there is no valid pixel."""
    return tl.min(tl.where(ok, context, 1 << 30)), tl.max(tl.where(ok, context, -1))


@triton.jit
def _sum_over_blocks(sums, blocks, context, COUNT: tl.constexpr):
    """Sum over the blocks of one image's `sums` (blocks, COUNT) for some contexts, always in the same order."""
    total = tl.zeros([BLOCKS_AT_ONCE, CONTEXTS_AT_ONCE], tl.float64)
    for start in range(0, blocks, BLOCKS_AT_ONCE):
        block = start + tl.arange(0, BLOCKS_AT_ONCE)[:, None]
        ok = (block < blocks) & (context < COUNT)[None, :]
        total += tl.load(sums + block * COUNT + context[None, :], mask=ok, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _extents_kernel(
    maps,
    extents,  # (images, 4) int32: keys of the largest prediction and target, inverted keys of the smallest
    counts,  # (images, 2) int32: valid pixels, valid pixels that are not finite
    blocks,
    BLOCK: tl.constexpr,
):
    image, _, prediction, target, ok = _read(maps, blocks, BLOCK)
    prediction_key, target_key = _key(prediction), _key(target)
    # ~key is ordered the other way round, so that one kind of atomic and one initial value serve both ends.
    tl.atomic_max(extents + image * 4, tl.max(tl.where(ok, prediction_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 1, tl.max(tl.where(ok, ~prediction_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 2, tl.max(tl.where(ok, target_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 3, tl.max(tl.where(ok, ~target_key, NONE_YET)), sem="relaxed")
    finite = (tl.abs(prediction) < float("inf")) & (tl.abs(target) < float("inf"))
    tl.atomic_add(counts + image * 2, tl.sum(ok.to(tl.int32)), sem="relaxed")
    tl.atomic_add(counts + image * 2 + 1, tl.sum((ok & ~finite).to(tl.int32)), sem="relaxed")


# Selection. The keys between an image's smallest and largest are cut into 2**BITS stretches of a power of two of keys
# and counted; the stretch that holds the wanted rank is cut again, until stretches are single keys.


@triton.jit
def _bit_length(low, high):
    """How many bits the distance of two keys has."""
    distance = high.to(tl.int64) - low
    # The exponent of a float64 tells.
    return tl.maximum((distance.to(tl.float64).to(tl.int64, bitcast=True) >> 52).to(tl.int32) - 1022, 0)


@triton.jit
def _count(counts, histogram, row, key, base, length, ok, taken, FIRST: tl.constexpr, BITS: tl.constexpr):
    """Count the keys that lie in the stretch from `base` on which the last digit left, in `row` of (rows, 2**BITS).

    In the program's own `counts`, which it returns, or if these are empty right in `histogram`.
    """
    distance = key.to(tl.int64) - base
    if not FIRST:
        ok = ok & ((distance >> tl.maximum(length - taken, 0)) == 0)
    stretch = distance >> tl.maximum(length - taken - BITS, 0)
    place = tl.where(ok, (row << BITS) + stretch.to(tl.int32), 0)
    if counts.shape[0] == 1:
        tl.atomic_add(histogram + place, 1, mask=ok, sem="relaxed")
    else:
        counts += tl.histogram(place, counts.shape[0], mask=ok)
    return counts


@triton.jit
def _no_counts(ROWS: tl.constexpr, BITS: tl.constexpr):
    """A program's own histogram (rows, 2**BITS) as one row, rows rounded up to a power of two; one bin if too large."""
    BINS: tl.constexpr = triton.next_power_of_2(ROWS) << BITS
    return tl.zeros([BINS if BINS <= MOST_BINS else 1], tl.int32)


@triton.jit
def _add_counts(counts, histogram):
    """Add a program's own histogram to that of the image."""
    if counts.shape[0] > 1:
        tl.atomic_add(histogram + tl.arange(0, counts.shape[0]), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _narrow(counted, rank, base, length, taken, BITS: tl.constexpr):
    """Starts of the stretches that hold the ranks, and the ranks inside them; `counted` (slots, 2**BITS)."""
    before = tl.cumsum(counted, 1) <= rank[:, None]
    stretch = tl.minimum(tl.sum(before.to(tl.int32), 1), (1 << BITS) - 1)
    start = base + (stretch.to(tl.int64) << tl.maximum(length - taken - BITS, 0))
    return start.to(tl.int32), rank - tl.sum(tl.where(before, counted, 0), 1)


@triton.jit
def _fraction(edge, LEVELS: tl.constexpr):
    """An edge's k and S of k / S, float64; edges are numbered level by level."""
    k, parts = edge * 0, edge * 0 + 1
    for level in tl.static_range(len(LEVELS)):
        inside = (edge >= LEVELS[level][2]) & (edge < LEVELS[level][2] + LEVELS[level][0] - 1)
        k = tl.where(inside, edge - LEVELS[level][2] + 1, k)
        parts = tl.where(inside, LEVELS[level][0], parts)
    return k.to(tl.float64), parts.to(tl.float64)


@triton.jit
def _edge_histogram_kernel(
    maps,
    extents,  # (images, 4)
    statistics,  # (images, 2 * EDGES) int32 keys: where each order statistic's stretch begins
    histogram,  # (images, 2 * EDGES, 2**BITS) int32; for the first digit all order statistics use the first
    blocks,
    taken,  # bits decided by the digits before
    FIRST: tl.constexpr,
    EDGES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    image, part = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    low, high = ~tl.load(extents + image * 4 + 3), tl.load(extents + image * 4 + 2)
    length = _bit_length(low, high)
    histogram += image.to(tl.int64) * (2 * EDGES << BITS)
    counts = _no_counts(1 if FIRST else 2 * EDGES, BITS)
    for step in range(STEPS):
        _, _, _, target, ok = _read_block(maps, image, part * STEPS + step, BLOCK)
        key = _key(target)
        if FIRST:
            counts = _count(counts, histogram, 0, key, low, length, ok, taken, FIRST, BITS)
        else:
            for slot in range(2 * EDGES):
                base = tl.load(statistics + image * 2 * EDGES + slot)
                counts = _count(counts, histogram, slot, key, base, length, ok, taken, FIRST, BITS)
    _add_counts(counts, histogram)


@triton.jit
def _edge_narrow_kernel(
    extents,  # (images, 4)
    counts,  # (images, 2)
    histogram,  # (images, 2 * EDGES, 2**BITS)
    statistics,  # (images, 2 * EDGES), out
    ranks,  # (images, 2 * EDGES) int32, in and out: rank inside the stretch
    slots,
    taken,
    LEVELS: tl.constexpr,
    FIRST: tl.constexpr,
    EDGES: tl.constexpr,
    BITS: tl.constexpr,
):
    slot = tl.program_id(0) * SLOTS_AT_ONCE + tl.arange(0, SLOTS_AT_ONCE)
    ok = slot < slots
    image = slot // (2 * EDGES)
    low = ~tl.load(extents + image * 4 + 3, mask=ok, other=0)
    high = tl.load(extents + image * 4 + 2, mask=ok, other=0)
    if FIRST:
        row = image * 2 * EDGES
        k, parts = _fraction(slot % (2 * EDGES) // 2, LEVELS)
        position = (tl.load(counts + image * 2, mask=ok, other=0) - 1).to(tl.float64) * k / parts
        rank = tl.where(slot % 2 == 0, tl.floor(position), tl.ceil(position)).to(tl.int32)
        base = low
    else:
        row = slot
        rank = tl.load(ranks + slot, mask=ok, other=0)
        base = tl.load(statistics + slot, mask=ok, other=0)
    place = (row.to(tl.int64) << BITS)[:, None] + tl.arange(0, 1 << BITS)[None, :]
    counted = tl.load(histogram + place, mask=ok[:, None], other=0)
    base, rank = _narrow(counted, rank, base, _bit_length(low, high), taken, BITS)
    tl.store(statistics + slot, base, mask=ok)
    tl.store(ranks + slot, rank, mask=ok)


@triton.jit
def _edges_kernel(
    extents,  # (images, 4)
    counts,  # (images, 2)
    statistics,  # (images, 2 * EDGES) keys of the order statistics at and above each edge; None = equal widths
    edges,  # (images, EDGES) int32, out: the smallest key on the upper side
    LEVELS: tl.constexpr,
    EDGES: tl.constexpr,
):
    image = tl.program_id(0) // EDGES
    k, parts = _fraction(tl.program_id(0) % EDGES, LEVELS)
    if statistics is None:
        low = _value(~tl.load(extents + image * 4 + 3)).to(tl.float64)
        high = _value(tl.load(extents + image * 4 + 2)).to(tl.float64)
        edge = low + (high - low) * k / parts
    else:
        position = (tl.load(counts + image * 2) - 1).to(tl.float64) * k / parts
        below = _value(tl.load(statistics + tl.program_id(0) * 2)).to(tl.float64)
        above = _value(tl.load(statistics + tl.program_id(0) * 2 + 1)).to(tl.float64)
        edge = below + (above - below) * (position - tl.floor(position))
    # target >= edge for a float32 target is target >= the edge rounded up to float32, and the next float is the next
    # key.
    rounded = edge.to(tl.float32)
    tl.store(edges + tl.program_id(0), _key(rounded) + (rounded.to(tl.float64) < edge).to(tl.int32))


@triton.jit
def _histogram_kernel(
    maps,
    extents,  # (images, 4)
    edges,  # (images, EDGES)
    medians,  # (images, 2, COUNT) int32 keys of prediction and target: where each median's stretch begins
    histogram,  # (images, 2, COUNT, 2**BITS) int32
    blocks,
    taken,
    FIRST: tl.constexpr,
    BITS: tl.constexpr,
    LEVELS: tl.constexpr,
    CONTEXTS: tl.constexpr,
    COUNT: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    image, part = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    extents += image * 4
    low, target_low = ~tl.load(extents + 1), ~tl.load(extents + 3)
    length = _bit_length(low, tl.load(extents))
    target_length = _bit_length(target_low, tl.load(extents + 2))
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        median = medians + image * 2 * COUNT + LEVELS[level][1]
        level_histogram = histogram + ((image.to(tl.int64) * 2 * COUNT + LEVELS[level][1]) << BITS)
        counts, target_counts = _no_counts(LEVELS[level][3], BITS), _no_counts(LEVELS[level][3], BITS)
        for step in range(STEPS):
            _, pixel, prediction, target, ok = _read_block(maps, image, part * STEPS + step, BLOCK)
            key, target_key = _key(prediction), _key(target)
            row = _context(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
            base, target_base = low, target_low
            if not FIRST:
                base = tl.load(median + row, mask=ok, other=0)
                target_base = tl.load(median + COUNT + row, mask=ok, other=0)
            counts = _count(counts, level_histogram, row, key, base, length, ok, taken, FIRST, BITS)
            target_counts = _count(
                target_counts, level_histogram + (COUNT << BITS), row, target_key, target_base, target_length, ok,
                taken, FIRST, BITS,
            )  # fmt: skip
        _add_counts(counts, level_histogram)
        _add_counts(target_counts, level_histogram + (COUNT << BITS))


@triton.jit
def _narrow_kernel(
    extents,  # (images, 4)
    histogram,  # (images, 2, COUNT, 2**BITS)
    medians,  # (images, 2, COUNT), out
    ranks,  # (images, 2, COUNT) int32, in and out: rank inside the stretch
    context_counts,  # (images, COUNT) int32, out: valid pixels
    slots,
    taken,
    COUNT: tl.constexpr,
    FIRST: tl.constexpr,
    BITS: tl.constexpr,
):
    slot = tl.program_id(0) * SLOTS_AT_ONCE + tl.arange(0, SLOTS_AT_ONCE)
    ok = slot < slots
    image, side = slot // (2 * COUNT), slot // COUNT % 2
    low = ~tl.load(extents + image * 4 + side * 2 + 1, mask=ok, other=0)
    high = tl.load(extents + image * 4 + side * 2, mask=ok, other=0)
    place = (slot.to(tl.int64) << BITS)[:, None] + tl.arange(0, 1 << BITS)[None, :]
    counted = tl.load(histogram + place, mask=ok[:, None], other=0)
    if FIRST:
        pixels = tl.sum(counted, 1)
        rank, base = tl.maximum(pixels - 1, 0) // 2, low
        tl.store(context_counts + image * COUNT + slot % COUNT, pixels, mask=ok & (side == 0))
    else:
        rank = tl.load(ranks + slot, mask=ok, other=0)
        base = tl.load(medians + slot, mask=ok, other=0)
    base, rank = _narrow(counted, rank, base, _bit_length(low, high), taken, BITS)
    tl.store(medians + slot, base, mask=ok)
    tl.store(ranks + slot, rank, mask=ok)


@triton.jit
def _deviations_kernel(
    maps,
    edges,  # (images, EDGES)
    medians,  # (images, 2, COUNT)
    first,  # (images, COUNT) int32, out: ~number of the first pixel whose prediction is the median
    deviations,  # (2, images, blocks, COUNT) float64, out: sums of |prediction - median| and |target - median|
    images,
    blocks,
    LEVELS: tl.constexpr,
    CONTEXTS: tl.constexpr,
    COUNT: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, pixel, prediction, target, ok = _read(maps, blocks, BLOCK)
    prediction_key, target_key = _key(prediction), _key(target)
    block_sums = deviations + tl.program_id(0).to(tl.int64) * COUNT
    target_step = tl.cast(images, tl.int64) * blocks * COUNT
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = _context(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
        slot = image * 2 * COUNT + LEVELS[level][1] + context
        center_key = tl.load(medians + slot, mask=ok, other=0)
        center = _value(center_key).to(tl.float64)
        target_center = _value(tl.load(medians + slot + COUNT, mask=ok, other=0)).to(tl.float64)
        deviation = tl.abs(prediction.to(tl.float64) - center)
        target_deviation = tl.abs(target.to(tl.float64) - target_center)
        number = tl.where(prediction_key == center_key, ~pixel, NONE_YET)
        smallest, largest = _present(context, ok)
        for one in range(smallest, largest + 1):
            mine = ok & (context == one)
            place = LEVELS[level][1] + one
            tl.store(block_sums + place, tl.sum(tl.where(mine, deviation, 0.0)))
            tl.store(block_sums + target_step + place, tl.sum(tl.where(mine, target_deviation, 0.0)))
            tl.atomic_max(first + image * COUNT + place, tl.max(tl.where(mine, number, NONE_YET)), sem="relaxed")


@triton.jit
def _spreads_kernel(
    deviations,  # (2, images, blocks, COUNT)
    context_counts,  # (images, COUNT)
    inverse_spreads,  # (images, 2, COUNT) float64, out
    images,
    blocks,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
):
    groups = tl.cdiv(COUNT, CONTEXTS_AT_ONCE)
    row = tl.program_id(0) // groups
    image, side = row // 2, row % 2
    context = tl.program_id(0) % groups * CONTEXTS_AT_ONCE + tl.arange(0, CONTEXTS_AT_ONCE)
    ok = context < COUNT
    sums = deviations + (side.to(tl.int64) * images + image) * blocks * COUNT
    pixels = tl.maximum(tl.load(context_counts + image * COUNT + context, mask=ok, other=0), 1)
    spread = _sum_over_blocks(sums, blocks, context, COUNT) / pixels.to(tl.float64) + EPS
    tl.store(inverse_spreads + row * COUNT + context, 1.0 / spread, mask=ok)


@triton.jit
def _difference(prediction, target, medians, inverse_spreads, slot, ok, COUNT: tl.constexpr):
    """Prediction minus its center, the same over spread minus the target's, and both spreads; slot is the context's."""
    center = _value(tl.load(medians + slot, mask=ok, other=0)).to(tl.float64)
    target_center = _value(tl.load(medians + slot + COUNT, mask=ok, other=0)).to(tl.float64)
    deviation = prediction.to(tl.float64) - center
    normalised = deviation * tl.load(inverse_spreads + slot, mask=ok, other=0.0)
    target_deviation = target.to(tl.float64) - target_center
    return deviation, normalised - target_deviation * tl.load(inverse_spreads + slot + COUNT, mask=ok, other=0.0)


@triton.jit
def _sign(value):
    return (value > 0).to(tl.int32) - (value < 0).to(tl.int32)


@triton.jit
def _differences_kernel(
    maps,
    edges,  # (images, EDGES)
    medians,  # (images, 2, COUNT)
    inverse_spreads,  # (images, 2, COUNT)
    losses,  # (images, blocks) float64, out: sum over pixels and levels of |N(prediction) - N(target)|
    signs,  # (2, images, COUNT) int32, out: sums of sign(N(prediction) - N(target)) and of sign(prediction - center)
    moments,  # (images, blocks, COUNT) float64, out: sum of sign(N(prediction) - N(target)) * (prediction - center)
    images,
    blocks,
    NEED_GRADIENT: tl.constexpr,
    LEVELS: tl.constexpr,
    CONTEXTS: tl.constexpr,
    COUNT: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, pixel, prediction, target, ok = _read(maps, blocks, BLOCK)
    target_key = _key(target)
    total = tl.zeros([BLOCK], tl.float64)
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = _context(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
        slot = image * 2 * COUNT + LEVELS[level][1] + context
        deviation, difference = _difference(prediction, target, medians, inverse_spreads, slot, ok, COUNT)
        total += tl.abs(difference)
        if NEED_GRADIENT:
            sign = _sign(difference)
            smallest, largest = _present(context, ok)
            for one in range(smallest, largest + 1):
                mine = ok & (context == one)
                place = LEVELS[level][1] + one
                tl.atomic_add(signs + image * COUNT + place, tl.sum(tl.where(mine, sign, 0)), sem="relaxed")
                side = tl.sum(tl.where(mine, _sign(deviation), 0))
                tl.atomic_add(signs + (images + image) * COUNT + place, side, sem="relaxed")
                moment = tl.sum(tl.where(mine, sign * deviation, 0.0))
                tl.store(moments + tl.program_id(0).to(tl.int64) * COUNT + place, moment)
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(ok, total, 0.0)))


@triton.jit
def _batch_counts(counts, images):
    """Valid pixels of the batch, and images that have any."""
    pixels, used = tl.zeros([SUM_BLOCK], tl.int64), tl.zeros([SUM_BLOCK], tl.int64)
    for start in range(0, images, SUM_BLOCK):
        image = start + tl.arange(0, SUM_BLOCK)
        count = tl.load(counts + image * 2, mask=image < images, other=0)
        pixels += count
        used += (count > 0).to(tl.int64)
    return tl.sum(pixels), tl.sum(used)


@triton.jit
def _weight(count, not_finite, MEAN_OF_IMAGES: tl.constexpr):
    """What a pixel weighs in its image, before the scale; NaN in an image that is not finite where it is valid."""
    divisor = tl.maximum(count, 1) if MEAN_OF_IMAGES else count * 0 + 1
    return tl.where(not_finite > 0, float("nan"), 1.0 / divisor.to(tl.float64))


@triton.jit
def _total_kernel(
    losses,  # (images, blocks)
    counts,  # (images, 2)
    loss,  # () float32, out
    scale,  # () float32, out: what every gradient lacks
    images,
    blocks,
    DEPTH: tl.constexpr,
    MEAN_OF_IMAGES: tl.constexpr,
):
    batch_pixels, used_images = _batch_counts(counts, images)
    total = tl.zeros([SUM_BLOCK], tl.float64)
    for start in range(0, images * blocks, SUM_BLOCK):
        place = start + tl.arange(0, SUM_BLOCK)
        ok = place < images * blocks
        image = place // blocks
        count = tl.load(counts + image * 2, mask=ok, other=0)
        not_finite = tl.load(counts + image * 2 + 1, mask=ok, other=0)
        total += tl.load(losses + place, mask=ok, other=0.0) * _weight(count, not_finite, MEAN_OF_IMAGES)
    divisor = tl.maximum(used_images if MEAN_OF_IMAGES else batch_pixels, 1).to(tl.float64) * DEPTH
    tl.store(loss, tl.sum(total) / divisor)
    tl.store(scale, 1.0 / divisor)


# Up to the scale, for a context with center c, spread s and n pixels, w the weight of a pixel in its image, d_i the
# sign of the difference at pixel i, e_i = sign(p_i - c), A = sum d_i, E = sum e_i and Q = sum d_i (p_i - c):
#     dL/dp_j = w d_j / s - w Q e_j / (s^2 n) + [j is the center pixel] (-w A / s + w Q E / (s^2 n))
# The first two coefficients are w / s and w Q / (s^2 n), the third is the center's share.


@triton.jit
def _coefficients_kernel(
    signs,  # (2, images, COUNT)
    moments,  # (images, blocks, COUNT)
    inverse_spreads,  # (images, 2, COUNT)
    context_counts,  # (images, COUNT)
    counts,  # (images, 2)
    coefficients,  # (3, images, COUNT) float64, out
    images,
    blocks,
    COUNT: tl.constexpr,
    MEAN_OF_IMAGES: tl.constexpr,
):
    groups = tl.cdiv(COUNT, CONTEXTS_AT_ONCE)
    image = tl.program_id(0) // groups
    context = tl.program_id(0) % groups * CONTEXTS_AT_ONCE + tl.arange(0, CONTEXTS_AT_ONCE)
    ok = context < COUNT
    slot, step = image * COUNT + context, images * COUNT
    weight = _weight(tl.load(counts + image * 2), tl.load(counts + image * 2 + 1), MEAN_OF_IMAGES)
    moment = _sum_over_blocks(moments + image.to(tl.int64) * blocks * COUNT, blocks, context, COUNT)
    inverse_spread = tl.load(inverse_spreads + image * 2 * COUNT + context, mask=ok, other=0.0)
    pixels = tl.maximum(tl.load(context_counts + slot, mask=ok, other=0), 1).to(tl.float64)
    by_difference = weight * inverse_spread
    by_side = by_difference * moment * inverse_spread / pixels
    difference_signs = tl.load(signs + slot, mask=ok, other=0).to(tl.float64)
    side_signs = tl.load(signs + step + slot, mask=ok, other=0).to(tl.float64)
    tl.store(coefficients + slot, by_difference, mask=ok)
    tl.store(coefficients + step + slot, by_side, mask=ok)
    tl.store(coefficients + 2 * step + slot, by_side * side_signs - by_difference * difference_signs, mask=ok)


@triton.jit
def _gradient_kernel(
    maps,
    edges,  # (images, EDGES)
    medians,  # (images, 2, COUNT)
    inverse_spreads,  # (images, 2, COUNT)
    first,  # (images, COUNT)
    coefficients,  # (3, images, COUNT)
    gradient,  # (images, height, width) float32, out
    images,
    blocks,
    LEVELS: tl.constexpr,
    CONTEXTS: tl.constexpr,
    COUNT: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, pixel, prediction, target, ok = _read(maps, blocks, BLOCK)
    target_key = _key(target)
    step = images * COUNT
    total = tl.zeros([BLOCK], tl.float64)
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = LEVELS[level][1] + _context(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
        deviation, difference = _difference(
            prediction, target, medians, inverse_spreads, image * 2 * COUNT + context, ok, COUNT
        )
        slot = image * COUNT + context
        total += tl.load(coefficients + slot, mask=ok, other=0.0) * _sign(difference)
        total -= tl.load(coefficients + step + slot, mask=ok, other=0.0) * _sign(deviation)
        central = ok & (~tl.load(first + slot, mask=ok, other=0) == pixel)
        total += tl.load(coefficients + 2 * step + slot, mask=central, other=0.0)
    pixels = maps.height * maps.width
    tl.store(gradient + image.to(tl.int64) * pixels + pixel, tl.where(ok, total, 0.0), mask=pixel < pixels)
