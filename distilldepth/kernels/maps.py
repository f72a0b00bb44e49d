"""What a pair of maps is to the Triton kernels, and how they read it.

A *context* is numbered inside its image, all contexts of the first level first; every pixel is in one context of each
level. Values are ordered by integer keys. All maps are read as float32.
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
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SPATIAL = tl.constexpr(2)
QUANTILE = tl.constexpr(1)
NONE_YET = tl.constexpr(-(2**31))
# How much one program of the small kernels takes on at a time.
BLOCKS_AT_ONCE, CONTEXTS_AT_ONCE = tl.constexpr(32), tl.constexpr(16)


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

    def blocks(self) -> int:
        """How many programs of `BLOCK` pixels an image takes."""
        return triton.cdiv(self.height * self.width, BLOCK)


class Split(NamedTuple):
    """How every image is split into contexts."""

    contexts: int  # 0 range, 1 quantile, 2 spatial
    levels: tuple[tuple[int, int, int, int], ...]  # of each: parts, its first context, its first edge, own contexts
    number: int  # of contexts, all levels together
    edges: int  # of all levels; spatial contexts have none that depend on the image

    def constants(self) -> dict[str, object]:
        """What kernels that go through the contexts of pixels are told when they are compiled."""
        return {
            "LEVELS": self.levels,
            "CONTEXTS": self.contexts,
            "COUNT": self.number,
            "EDGES": self.edges,
            "BLOCK": BLOCK,
        }


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


def split_of(segments: Sequence[int], contexts: int) -> Split:
    """Number the contexts and edges of all levels."""
    levels, count, edges = [], 0, 0
    for parts in segments:
        own = parts**2 if contexts == SPATIAL.value else parts
        levels.append((parts, count, edges, own))
        count += own
        edges += 0 if contexts == SPATIAL.value else parts - 1
    return Split(contexts, tuple(levels), count, edges)


def integers(maps: Maps, *shape: int, fill: int | None = None) -> Tensor:
    """Room for int32 where the maps are."""
    if fill is None:
        return torch.empty(shape, dtype=torch.int32, device=maps.target.device)
    return torch.full(shape, fill, dtype=torch.int32, device=maps.target.device)


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
def read_program(maps, blocks, BLOCK: tl.constexpr):
    """This program's image, and of its pixels: numbers in the image, both maps in float32, which are valid.

    What is not valid reads as 0.
    """
    return read_block(maps, tl.program_id(0) // blocks, tl.program_id(0) % blocks, BLOCK)


@triton.jit
def read_block(maps, image, block, BLOCK: tl.constexpr):
    """`read_program` of any block of pixels."""
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
def key_of(value):
    """An int32 that is ordered as the float32 is; both zeros have one key."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    # The bits of a negative float grow downwards.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def context_of(maps, pixel, target_key, edges, PARTS: tl.constexpr, CONTEXTS: tl.constexpr):
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
def present_contexts(context, ok):
    """Smallest and largest context in this block; the smallest is larger if there is no valid pixel."""
    return tl.min(tl.where(ok, context, 1 << 30)), tl.max(tl.where(ok, context, -1))


@triton.jit
def sum_over_blocks(sums, blocks, context, COUNT: tl.constexpr):
    """Sum over the blocks of one image's `sums` (blocks, COUNT) for some contexts, always in the same order."""
    total = tl.zeros([BLOCKS_AT_ONCE, CONTEXTS_AT_ONCE], tl.float64)
    for start in range(0, blocks, BLOCKS_AT_ONCE):
        block = start + tl.arange(0, BLOCKS_AT_ONCE)[:, None]
        ok = (block < blocks) & (context < COUNT)[None, :]
        total += tl.load(sums + block * COUNT + context[None, :], mask=ok, other=0.0)
    return tl.sum(total, 0)
