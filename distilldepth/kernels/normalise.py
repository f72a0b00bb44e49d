"""The loss of normalised maps and its gradient, once the medians are known: deviations, differences, coefficients.

A pass over the pixels leaves a statistic per context in global memory, a small kernel with one program per context
turns it into what the next pass needs:

    extents      smallest and largest valid value of both maps, counts of pixels
    edges        of the contexts, for `quantile` after selecting order statistics of the target
    medians      of both maps in every context: four digits of 8 bits, a histogram and a narrowing for each
    deviations   sums of distances to the medians, first pixel that has the median  ->  spreads
    differences  the loss, and sums over the signs of the differences               ->  coefficients
    gradient     but for a scale that is the same for all

Nothing is read back by the host. Counts are integers, added by atomics; float64 sums are made per block and added up
by one program, so results do not depend on the order in which programs run. Differences are taken in float64: a
rounding in the difference of two nearly equal normalised values would turn its sign, which is the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from distilldepth.kernels.maps import (
    CONTEXTS_AT_ONCE,
    NONE_YET,
    OPTIONS,
    Maps,
    Split,
    context_of,
    integers,
    key_of,
    present_contexts,
    read_program,
    split_of,
    sum_over_blocks,
    value_of,
)
from distilldepth.kernels.selection import find_edges, find_extents, find_medians

SUM_BLOCK = tl.constexpr(1024)


class _Statistics(NamedTuple):
    """What is known of the contexts; `counts` of the images."""

    counts: Tensor  # (images, 2) int32: valid pixels, valid pixels that are not finite
    edges: Tensor  # (images, edges) int32 keys
    medians: Tensor  # (images, 2, count) int32 keys
    context_counts: Tensor  # (images, count) int32: valid pixels
    first: Tensor  # (images, count) int32: ~number of the first pixel that has the median
    inverse_spreads: Tensor  # (images, 2, count) float64


def loss_and_gradient(
    maps: Maps,
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
    device, images = maps.target.device, len(maps.target)
    if images * maps.height * maps.width == 0:
        shape = (images, maps.height, maps.width) if need_gradient else (0,)
        return torch.zeros((), device=device), torch.zeros(shape, device=device), torch.zeros((), device=device)
    split = split_of(segments, contexts)
    with torch.cuda.device_of(maps.target):
        statistics = _measure(maps, split, spread_eps)
        losses, signs, moments = _compare(maps, split, statistics, need_gradient)
        loss, scale = torch.empty((), device=device), torch.empty((), device=device)
        _total_kernel[(1,)](
            losses, statistics.counts, loss, scale, images, maps.blocks(),
            DEPTH=len(split.levels), MEAN_OF_IMAGES=mean_of_images, **OPTIONS,
        )  # fmt: skip
        if not need_gradient:
            return loss, torch.empty(0, device=device), scale
        return loss, _differentiate(maps, split, statistics, signs, moments, mean_of_images), scale


def _doubles(maps: Maps, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=maps.target.device)


def _groups(split: Split) -> int:
    """Programs that the contexts of an image take."""
    return triton.cdiv(split.number, CONTEXTS_AT_ONCE.value)


def _measure(maps: Maps, split: Split, spread_eps: float) -> _Statistics:
    """Centers and spreads of every context."""
    images, blocks, count = len(maps.target), maps.blocks(), split.number
    extents, counts = find_extents(maps)
    edges = find_edges(maps, split, extents, counts)
    medians, context_counts = find_medians(maps, split, extents, edges)
    first = integers(maps, images, count, fill=NONE_YET.value)
    deviations = _doubles(maps, 2, images, blocks, count).zero_()
    inverse_spreads = _doubles(maps, images, 2, count)
    _deviations_kernel[(images * blocks,)](
        maps, edges, medians, first, deviations, images, blocks, **split.constants(), **OPTIONS
    )
    _spreads_kernel[(images * 2 * _groups(split),)](
        deviations, context_counts, inverse_spreads, images, blocks, COUNT=count, EPS=spread_eps, **OPTIONS
    )
    return _Statistics(counts, edges, medians, context_counts, first, inverse_spreads)


def _compare(maps: Maps, split: Split, statistics: _Statistics, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, signs and moments, as `_differences_kernel` has them."""
    images, blocks, count = len(maps.target), maps.blocks(), split.number
    losses = _doubles(maps, images, blocks)
    signs, moments = integers(maps, 2, images, count, fill=0), _doubles(maps, images, blocks, count).zero_()
    _differences_kernel[(images * blocks,)](
        maps, statistics.edges, statistics.medians, statistics.inverse_spreads, losses, signs, moments, images, blocks,
        NEED_GRADIENT=need_gradient, **split.constants(), **OPTIONS,
    )  # fmt: skip
    return losses, signs, moments


def _differentiate(
    maps: Maps, split: Split, statistics: _Statistics, signs: Tensor, moments: Tensor, mean_of_images: bool
) -> Tensor:
    """The gradient over the scale."""
    counts, edges, medians, context_counts, first, inverse_spreads = statistics
    images, blocks = len(maps.target), maps.blocks()
    coefficients = _doubles(maps, 3, images, split.number)
    _coefficients_kernel[(images * _groups(split),)](
        signs, moments, inverse_spreads, context_counts, counts, coefficients, images, blocks,
        COUNT=split.number, MEAN_OF_IMAGES=mean_of_images, **OPTIONS,
    )  # fmt: skip
    gradient = torch.empty(images, maps.height, maps.width, device=maps.target.device)
    _gradient_kernel[(images * blocks,)](
        maps, edges, medians, inverse_spreads, first, coefficients, gradient, images, blocks,
        **split.constants(), **OPTIONS,
    )  # fmt: skip
    return gradient


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
    image, pixel, prediction, target, ok = read_program(maps, blocks, BLOCK)
    prediction_key, target_key = key_of(prediction), key_of(target)
    block_sums = deviations + tl.program_id(0).to(tl.int64) * COUNT
    target_step = tl.cast(images, tl.int64) * blocks * COUNT
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = context_of(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
        slot = image * 2 * COUNT + LEVELS[level][1] + context
        center_key = tl.load(medians + slot, mask=ok, other=0)
        center = value_of(center_key).to(tl.float64)
        target_center = value_of(tl.load(medians + slot + COUNT, mask=ok, other=0)).to(tl.float64)
        deviation = tl.abs(prediction.to(tl.float64) - center)
        target_deviation = tl.abs(target.to(tl.float64) - target_center)
        number = tl.where(prediction_key == center_key, ~pixel, NONE_YET)
        smallest, largest = present_contexts(context, ok)
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
    spread = sum_over_blocks(sums, blocks, context, COUNT) / pixels.to(tl.float64) + EPS
    tl.store(inverse_spreads + row * COUNT + context, 1.0 / spread, mask=ok)


@triton.jit
def _difference(prediction, target, medians, inverse_spreads, slot, ok, COUNT: tl.constexpr):
    """Prediction minus its center, the same over spread minus the target's, and both spreads; slot is the context's."""
    center = value_of(tl.load(medians + slot, mask=ok, other=0)).to(tl.float64)
    target_center = value_of(tl.load(medians + slot + COUNT, mask=ok, other=0)).to(tl.float64)
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
    image, pixel, prediction, target, ok = read_program(maps, blocks, BLOCK)
    target_key = key_of(target)
    total = tl.zeros([BLOCK], tl.float64)
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = context_of(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
        slot = image * 2 * COUNT + LEVELS[level][1] + context
        deviation, difference = _difference(prediction, target, medians, inverse_spreads, slot, ok, COUNT)
        total += tl.abs(difference)
        if NEED_GRADIENT:
            sign = _sign(difference)
            smallest, largest = present_contexts(context, ok)
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
    moment = sum_over_blocks(moments + image.to(tl.int64) * blocks * COUNT, blocks, context, COUNT)
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
    image, pixel, prediction, target, ok = read_program(maps, blocks, BLOCK)
    target_key = key_of(target)
    step = images * COUNT
    total = tl.zeros([BLOCK], tl.float64)
    for level in tl.static_range(len(LEVELS)):
        edge = edges + image * EDGES + LEVELS[level][2]
        context = LEVELS[level][1] + context_of(maps, pixel, target_key, edge, LEVELS[level][0], CONTEXTS)
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
