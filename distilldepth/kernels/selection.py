"""Exact medians and the edges of contexts, by radix selection: extents, histograms of digits, narrowing.

The keys between an image's smallest and largest are cut into 2**BITS stretches of a power of two of keys and counted;
the stretch that holds the wanted rank is cut again, until stretches are single keys. Counts are integers, added by
atomics after a program has counted its own pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from distilldepth.kernels import interpreted
from distilldepth.kernels.maps import (
    BLOCK,
    NONE_YET,
    OPTIONS,
    QUANTILE,
    Maps,
    Split,
    context_of,
    integers,
    key_of,
    read_block,
    read_program,
    value_of,
)

# Times as many pixels of a program that counts into a histogram: the more, the fewer are its atomics.
COUNT_STEPS = 1 if interpreted() else 8
DIGITS, BITS = 4, 8  # of a key
SLOTS_AT_ONCE = tl.constexpr(4)
# Bins of a histogram that a program counts by itself, at most.
MOST_BINS = tl.constexpr(2048)


def find_extents(maps: Maps) -> tuple[Tensor, Tensor]:
    """Keys of the ends of both maps `(images, 4)` and counts of pixels `(images, 2)`, as `_extents_kernel` has them."""
    images, blocks = len(maps.target), maps.blocks()
    extents = integers(maps, images, 4, fill=NONE_YET.value)
    counts = integers(maps, images, 2, fill=0)
    _extents_kernel[(images * blocks,)](maps, extents, counts, blocks, BLOCK=BLOCK, **OPTIONS)
    return extents, counts


def find_edges(maps: Maps, split: Split, extents: Tensor, counts: Tensor) -> Tensor:
    """Keys of the edges of the contexts, `(images, edges)`."""
    images, edge_count = len(maps.target), split.edges
    edges = integers(maps, images, edge_count)
    if not edge_count:
        return edges
    statistics = None
    if split.contexts == QUANTILE.value:
        statistics = integers(maps, images, 2 * edge_count)
        ranks = integers(maps, images, 2 * edge_count)
        histogram = integers(maps, DIGITS, images, 2 * edge_count, 1 << BITS, fill=0)
        counting, count_grid = _counting(maps)
        for digit in range(DIGITS):
            select = {"taken": digit * BITS, "FIRST": digit == 0, "EDGES": edge_count, "BITS": BITS}
            _edge_histogram_kernel[count_grid](
                maps, extents, statistics, histogram[digit], **counting, **select, BLOCK=BLOCK, **OPTIONS
            )
            _edge_narrow_kernel[(triton.cdiv(images * 2 * edge_count, SLOTS_AT_ONCE.value),)](
                extents, counts, histogram[digit], statistics, ranks, images * 2 * edge_count,
                LEVELS=split.levels, **select, **OPTIONS,
            )  # fmt: skip
    _edges_kernel[(images * edge_count,)](
        extents, counts, statistics, edges, LEVELS=split.levels, EDGES=edge_count, **OPTIONS
    )
    return edges


def find_medians(maps: Maps, split: Split, extents: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of the medians of both maps in every context `(images, 2, count)`, and its pixels `(images, count)`."""
    images, count = len(maps.target), split.number
    medians, ranks = integers(maps, images, 2, count), integers(maps, images, 2, count)
    context_counts = integers(maps, images, count)
    histogram = integers(maps, DIGITS, images, 2, count, 1 << BITS, fill=0)
    counting, count_grid = _counting(maps)
    for digit in range(DIGITS):
        select = {"taken": digit * BITS, "FIRST": digit == 0, "BITS": BITS}
        _histogram_kernel[count_grid](
            maps, extents, edges, medians, histogram[digit], **counting, **select, **split.constants(), **OPTIONS
        )
        _narrow_kernel[(triton.cdiv(images * 2 * count, SLOTS_AT_ONCE.value),)](
            extents, histogram[digit], medians, ranks, context_counts, images * 2 * count,
            COUNT=count, **select, **OPTIONS,
        )  # fmt: skip
    return medians, context_counts


def _counting(maps: Maps) -> tuple[dict[str, int], tuple[int]]:
    """What the kernels are told that count pixels, and their grid."""
    blocks = triton.cdiv(maps.height * maps.width, BLOCK * COUNT_STEPS)
    return {"blocks": blocks, "STEPS": COUNT_STEPS}, (len(maps.target) * blocks,)


@triton.jit
def _extents_kernel(
    maps,
    extents,  # (images, 4) int32: keys of the largest prediction and target, inverted keys of the smallest
    counts,  # (images, 2) int32: valid pixels, valid pixels that are not finite
    blocks,
    BLOCK: tl.constexpr,
):
    image, _, prediction, target, ok = read_program(maps, blocks, BLOCK)
    prediction_key, target_key = key_of(prediction), key_of(target)
    # ~key is ordered the other way round, so that one kind of atomic and one initial value serve both ends.
    tl.atomic_max(extents + image * 4, tl.max(tl.where(ok, prediction_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 1, tl.max(tl.where(ok, ~prediction_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 2, tl.max(tl.where(ok, target_key, NONE_YET)), sem="relaxed")
    tl.atomic_max(extents + image * 4 + 3, tl.max(tl.where(ok, ~target_key, NONE_YET)), sem="relaxed")
    finite = (tl.abs(prediction) < float("inf")) & (tl.abs(target) < float("inf"))
    tl.atomic_add(counts + image * 2, tl.sum(ok.to(tl.int32)), sem="relaxed")
    tl.atomic_add(counts + image * 2 + 1, tl.sum((ok & ~finite).to(tl.int32)), sem="relaxed")


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
        _, _, _, target, ok = read_block(maps, image, part * STEPS + step, BLOCK)
        key = key_of(target)
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
        low = value_of(~tl.load(extents + image * 4 + 3)).to(tl.float64)
        high = value_of(tl.load(extents + image * 4 + 2)).to(tl.float64)
        edge = low + (high - low) * k / parts
    else:
        position = (tl.load(counts + image * 2) - 1).to(tl.float64) * k / parts
        below = value_of(tl.load(statistics + tl.program_id(0) * 2)).to(tl.float64)
        above = value_of(tl.load(statistics + tl.program_id(0) * 2 + 1)).to(tl.float64)
        edge = below + (above - below) * (position - tl.floor(position))
    # target >= edge for a float32 target is target >= the edge rounded up to float32, and the next float is the next
    # key.
    rounded = edge.to(tl.float32)
    tl.store(edges + tl.program_id(0), key_of(rounded) + (rounded.to(tl.float64) < edge).to(tl.int32))


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
            _, pixel, prediction, target, ok = read_block(maps, image, part * STEPS + step, BLOCK)
            key, target_key = key_of(prediction), key_of(target)
            row = context_of(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
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
