"""Depth to points in plain torch: what `distilldepth.ops.backproject` means, in float32 and float64."""

from __future__ import annotations

import torch
from torch import Tensor


def backproject(depth: Tensor, intrinsics: Tensor, valid: Tensor | None = None) -> Tensor:
    """What `distilldepth.ops.backproject` means; see there for arguments, which this function trusts.

    Returns:
        `(B, H, W, 3)` float32 (float64 for float64 input).
    """
    dtype = torch.promote_types(torch.promote_types(depth.dtype, intrinsics.dtype), torch.float32)
    depth = depth.to(dtype)
    if valid is not None:
        depth = torch.where(valid, depth, 1)
    batch, height, width = depth.shape
    matrix = intrinsics.to(dtype).expand(batch, 3, 3)[:, :, :, None, None]
    u = torch.arange(width, device=depth.device, dtype=dtype)
    v = torch.arange(height, device=depth.device, dtype=dtype)[:, None]
    x = (u - matrix[:, 0, 2]) / matrix[:, 0, 0] * depth
    y = (v - matrix[:, 1, 2]) / matrix[:, 1, 1] * depth
    points = torch.stack([x, y, depth], -1)
    return points if valid is None else torch.where(valid[..., None], points, torch.nan)


def point_cloud(depth: Tensor, intrinsics: Tensor, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `distilldepth.ops.point_cloud` means; see there for arguments, which this function trusts.

    Returns:
        Points `(P, 3)` and colours `(P, 3)`.
    """
    points = backproject(depth, intrinsics, valid)
    colours = image.permute(0, 2, 3, 1)
    if valid is None:
        return points.reshape(-1, 3), colours.reshape(-1, 3)
    return points[valid], colours[valid]
