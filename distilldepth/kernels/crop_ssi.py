"""Local-global loss in Triton: the kernels of `normalise` on crops that are resampled while reading.

Where the sample points of a crop lie is computed once per row and column, in float64. The gradient to the resampled
pixels is carried back to the map without atomics: first along the rows, to `(N, h, W)`, then every pixel of the map
collects it from the crops of its image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from distilldepth.kernels.maps import BLOCK, OPTIONS, Maps, Sampling, as_bytes, check_dtype
from distilldepth.kernels.normalise import loss_and_gradient


def crop_ssi(
    prediction: Tensor,
    targets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    segments: Sequence[int],
    contexts: int,
    spread_eps: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient `(B, H, W)` over a scale, and scale, as `hybrid_norm` returns and raises them.

    Args:
        prediction: `(B, H, W)` float32, float16 or bfloat16, contiguous.
        targets: `(N, h, w)`, same dtype, contiguous.
        boxes: `(N, 4)` float64 x0, y0, x1, y1, contiguous.
        image_index: `(N,)` int64; a crop whose index is not from 0 to B - 1 is NaN where it is valid.
        valid: bool `(N, h, w)`, contiguous; None = all.
        segments, contexts, spread_eps, need_gradient: as for `hybrid_norm`.
    """
    check_dtype("crop_ssi", prediction)
    device, (images, map_height, map_width) = targets.device, prediction.shape
    crops, height, width = targets.shape
    if targets.numel() == 0 or prediction.numel() == 0:
        gradient = torch.zeros(prediction.shape if need_gradient else (0,), device=device)
        return torch.zeros((), device=device), gradient, torch.zeros((), device=device)

    def axis(number: int, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        below = torch.empty(crops, count, dtype=torch.int32, device=device)
        shares = torch.empty(crops, count, device=device)
        starts = torch.empty(crops, size + 1, dtype=torch.int32, device=device)
        blocks = triton.cdiv(max(count, size + 1), BLOCK)
        _sample_points_kernel[(crops * blocks,)](
            boxes, below, shares, starts, count, size, blocks,
            AXIS=number, STEPS=count.bit_length(), BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
        return below, shares, starts

    with torch.cuda.device_of(targets):
        columns, column_shares, column_starts = axis(0, width, map_width)
        rows, row_shares, row_starts = axis(1, height, map_height)
        sampling = Sampling(image_index, rows, row_shares, columns, column_shares, images, map_height, map_width)
        maps = Maps(prediction, targets, as_bytes(valid), height, width, sampling)
        loss, crop_gradient, scale = loss_and_gradient(
            maps, segments, contexts, spread_eps, need_gradient, mean_of_images=True
        )
        if not need_gradient:
            return loss, crop_gradient, scale
        wide = torch.empty(crops, height, map_width, device=device)
        _collect_columns_kernel[(triton.cdiv(wide.numel(), BLOCK),)](
            crop_gradient, columns, column_shares, column_starts, wide, wide.numel(), height, width, map_width,
            BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
        gradient = torch.empty(prediction.shape, device=device)
        blocks = triton.cdiv(map_height * map_width, BLOCK)
        _collect_rows_kernel[(images * blocks,)](
            wide, image_index, rows, row_shares, row_starts, gradient, crops, height, map_height, map_width, blocks,
            BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
    return loss, gradient, scale


@triton.jit
def _sample_point(first, last, number, count, size):
    """Coordinate of one axis' sample points in the map, float64, clamped to it."""
    point = first + (number.to(tl.float64) + 0.5) * ((last - first) / count) - 0.5
    return tl.minimum(tl.maximum(point, 0.0), tl.cast(size - 1, tl.float64))


@triton.jit
def _sample_points_kernel(
    boxes,  # (N, 4) float64
    below,  # (N, count) int32, out: the pixel at or before each sample point
    shares,  # (N, count) float32, out: share of the next pixel
    starts,  # (N, size + 1) int32, out: how many sample points have a smaller pixel at or before them
    count,
    size,  # of the map along this axis
    blocks,
    AXIS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    crop = tl.program_id(0) // blocks
    number = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(boxes + crop * 4 + AXIS), tl.load(boxes + crop * 4 + 2 + AXIS)
    wide = crop.to(tl.int64)

    point = _sample_point(first, last, number, count, size)
    pixel = tl.floor(point)
    tl.store(below + wide * count + number, pixel.to(tl.int32), mask=number < count)
    tl.store(shares + wide * count + number, (point - pixel).to(tl.float32), mask=number < count)

    # Sample points ascend, so a search finds the first whose pixel is not below `number`.
    low, high = tl.zeros_like(number), tl.zeros_like(number) + count
    for _ in range(STEPS):
        middle = (low + high) // 2
        smaller = (low < high) & (tl.floor(_sample_point(first, last, middle, count, size)) < number)
        high = tl.where(smaller | (low >= high), high, middle)
        low = tl.where(smaller, middle + 1, low)
    tl.store(starts + wide * (size + 1) + number, low, mask=number <= size)


@triton.jit
def _reach(starts, pixel, ok):
    """First and last + 1 of the sample points that have a share of each pixel; `starts` (size + 1,)."""
    first = tl.load(starts + tl.maximum(pixel - 1, 0), mask=ok, other=0)
    return first, tl.load(starts + pixel + 1, mask=ok, other=0)


@triton.jit
def _collect_columns_kernel(
    crop_gradient,  # (N, h, w) float32
    columns,  # (N, w)
    column_shares,  # (N, w)
    column_starts,  # (N, W + 1)
    wide,  # (N, h, W) float32, out
    elements,
    height,
    width,
    map_width,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = place < elements
    line, column = place // map_width, (place % map_width).to(tl.int32)
    crop = line // height
    sample, end = _reach(column_starts + crop * (map_width + 1), column, ok)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(tl.max(end - sample)):
        here = sample < end
        share = tl.load(column_shares + crop * width + sample, mask=here, other=0.0)
        at = tl.load(columns + crop * width + sample, mask=here, other=0)
        share = tl.where(at == column, 1 - share, share)
        total += share * tl.load(crop_gradient + line * width + sample, mask=here, other=0.0)
        sample += 1
    tl.store(wide + place, total, mask=ok)


@triton.jit
def _collect_rows_kernel(
    wide,  # (N, h, W)
    image_index,  # (N,) int64
    rows,  # (N, h)
    row_shares,  # (N, h)
    row_starts,  # (N, H + 1)
    gradient,  # (B, H, W) float32, out
    crops,
    height,
    map_height,
    map_width,
    blocks,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    ok = pixel < map_height * map_width
    row, column = pixel // map_width, pixel % map_width
    total = tl.zeros([BLOCK], tl.float32)
    for crop in range(crops):
        if tl.load(image_index + crop) == image:
            lines = tl.cast(crop, tl.int64) * height
            sample, end = _reach(row_starts + tl.cast(crop, tl.int64) * (map_height + 1), row, ok)
            for _ in range(tl.max(end - sample)):
                here = sample < end
                share = tl.load(row_shares + lines + sample, mask=here, other=0.0)
                at = tl.load(rows + lines + sample, mask=here, other=0)
                share = tl.where(at == row, 1 - share, share)
                total += share * tl.load(wide + (lines + sample) * map_width + column, mask=here, other=0.0)
                sample += 1
    tl.store(gradient + image.to(tl.int64) * map_height * map_width + pixel, total, mask=ok)
