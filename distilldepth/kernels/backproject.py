"""Depth to points and its gradient in Triton.

With a = (u - cx) / fx, b = (v - cy) / fy and the incoming gradient g: X = a z, Y = b z, Z = z and

    dL/dz = a g_x + b g_y + g_z
    dL/dfx = -1/fx sum a z g_x,  dL/dcx = -1/fx sum z g_x,  and the same for y,

with sums over the valid pixels of an image. A program has a piece of one image row, so b is one number and no position
has to be divided by the width. Sums are made per program in float64 and added up in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4
SUM_BLOCK = 256


def backproject(depth: Tensor, intrinsics: Tensor, valid: Tensor | None) -> Tensor:
    """Return the points `(B, H, W, 3)` in the type of the intrinsics; NaN where not valid.

    Args:
        depth: `(B, H, W)`, a floating dtype, contiguous.
        intrinsics: `(B, 3, 3)` float32, float64 for float64 depth, contiguous.
        valid: bool `(B, H, W)`, contiguous; None = all.
    """
    batch, height, width = depth.shape
    points = depth.new_empty((batch, height, width, 3), dtype=intrinsics.dtype)
    if depth.numel() == 0:
        return points
    block = min(BLOCK, triton.next_power_of_2(3 * width))
    pieces = triton.cdiv(3 * width, block)
    with torch.cuda.device_of(depth):
        _forward[(batch * height * pieces,)](
            depth, intrinsics, _kept(depth, valid), points, height, width, pieces,
            HAS_VALID=valid is not None, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
    return points


def backproject_backward(
    grad_points: Tensor, depth: Tensor, intrinsics: Tensor, valid: Tensor | None, need_intrinsics: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of depth `(B, H, W)` and intrinsics `(B, 3, 3)`, each in its type.

    Args:
        grad_points: `(B, H, W, 3)` in the type of the intrinsics, contiguous; not read where not valid.
        depth: as for `backproject`.
        intrinsics: as for `backproject`.
        valid: as for `backproject`.
        need_intrinsics: whether to sum their gradient; it is `(0, 3, 3)` if not.
    """
    batch, height, width = depth.shape
    grad_depth = torch.empty_like(depth)
    grad_intrinsics = torch.zeros_like(intrinsics) if need_intrinsics else intrinsics.new_empty((0, 3, 3))
    if depth.numel() == 0:
        return grad_depth, grad_intrinsics
    block = min(BLOCK, triton.next_power_of_2(width))
    pieces = triton.cdiv(width, block)
    sums = depth.new_empty((batch if need_intrinsics else 0, height * pieces, 4), dtype=torch.float64)
    with torch.cuda.device_of(depth):
        _backward[(batch * height * pieces,)](
            grad_points, depth, intrinsics, _kept(depth, valid), grad_depth, sums, height, width, pieces,
            HAS_VALID=valid is not None, NEED_INTRINSICS=need_intrinsics, BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
        if need_intrinsics:
            _sum_intrinsics[(batch,)](sums, intrinsics, grad_intrinsics, height * pieces, BLOCK=SUM_BLOCK)
    return grad_depth, grad_intrinsics


def _kept(depth: Tensor, valid: Tensor | None) -> Tensor:
    """`valid` as Triton reads it; any pointer serves where it is not read."""
    return depth if valid is None else valid.view(torch.uint8)


@triton.jit
def _forward(
    depth,  # (B, height, width)
    intrinsics,  # (B, 3, 3)
    valid,  # (B, height, width) uint8
    points,  # (B, height, width, 3)
    height,
    width,
    pieces,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Of the numbers of a row of points, not of its pixels: so the stores have no gaps.
    program = tl.program_id(0).to(tl.int64)
    row = program // pieces
    image = row // height
    v = (row - image * height).to(tl.int32)
    number = (program - row * pieces).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = number < 3 * width
    u = number // 3
    axis = number - 3 * u
    kept = inside
    if HAS_VALID:
        kept = tl.load(valid + row * width + u, mask=inside, other=0) != 0
    dtype: tl.constexpr = intrinsics.dtype.element_ty
    camera = intrinsics + image * 9
    fx, cx = tl.load(camera), tl.load(camera + 2)
    fy, cy = tl.load(camera + 4), tl.load(camera + 5)
    z = tl.load(depth + row * width + u, mask=kept, other=0.0).to(dtype)
    a = (u.to(dtype) - cx) / fx
    b = (v.to(dtype) - cy) / fy
    point = tl.where(axis == 0, a * z, tl.where(axis == 1, b * z, z))
    tl.store(points + row * width * 3 + number, tl.where(kept, point, float("nan")), mask=inside)


@triton.jit
def _backward(
    grad_points,  # (B, height, width, 3)
    depth,  # (B, height, width)
    intrinsics,  # (B, 3, 3)
    valid,  # (B, height, width) uint8
    grad_depth,  # (B, height, width)
    sums,  # (B, height * pieces, 4): of a z g_x, z g_x, b z g_y, z g_y
    height,
    width,
    pieces,
    HAS_VALID: tl.constexpr,
    NEED_INTRINSICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = program // pieces
    image = row // height
    v = (row - image * height).to(tl.int32)
    u = (program - row * pieces).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = u < width
    kept = inside
    if HAS_VALID:
        kept = tl.load(valid + row * width + u, mask=inside, other=0) != 0
    dtype: tl.constexpr = intrinsics.dtype.element_ty
    camera = intrinsics + image * 9
    fx, cx = tl.load(camera), tl.load(camera + 2)
    fy, cy = tl.load(camera + 4), tl.load(camera + 5)
    z = tl.load(depth + row * width + u, mask=kept, other=0.0).to(dtype)
    g = grad_points + (row * width + u) * 3
    g_x = tl.load(g, mask=kept, other=0.0)
    g_y = tl.load(g + 1, mask=kept, other=0.0)
    g_z = tl.load(g + 2, mask=kept, other=0.0)
    a = (u.to(dtype) - cx) / fx
    b = (v.to(dtype) - cy) / fy
    gradient = tl.where(kept, a * g_x + b * g_y + g_z, 0.0)
    tl.store(grad_depth + row * width + u, gradient, mask=inside)
    if NEED_INTRINSICS:
        z_x = z * g_x
        sum_y = tl.sum((z * g_y).to(tl.float64), 0)
        result = sums + program * 4
        tl.store(result, tl.sum(tl.where(kept, a * z_x, 0.0).to(tl.float64), 0))
        tl.store(result + 1, tl.sum(z_x.to(tl.float64), 0))
        tl.store(result + 2, b.to(tl.float64) * sum_y)
        tl.store(result + 3, sum_y)


@triton.jit
def _sum(numbers, count, BLOCK: tl.constexpr):
    """Of every fourth number."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(numbers + at * 4, mask=at < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _sum_intrinsics(
    sums,  # (batch, count, 4)
    intrinsics,  # (batch, 3, 3)
    grad_intrinsics,  # (batch, 3, 3), zero but for what is written here
    count,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    first = sums + image * count * 4
    matrix = intrinsics + image * 9
    fx = tl.load(matrix).to(tl.float64)
    fy = tl.load(matrix + 4).to(tl.float64)
    result = grad_intrinsics + image * 9
    tl.store(result, -_sum(first, count, BLOCK) / fx)
    tl.store(result + 2, -_sum(first + 1, count, BLOCK) / fx)
    tl.store(result + 4, -_sum(first + 2, count, BLOCK) / fy)
    tl.store(result + 5, -_sum(first + 3, count, BLOCK) / fy)
