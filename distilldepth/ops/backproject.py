"""Depth maps to points in space."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth import reference
from distilldepth.ops.arguments import check_device, check_floats, check_valid, values_are_checked
from distilldepth.ops.backend import active_backend, kernel
from distilldepth.reference.backproject import point_cloud as _point_cloud


def backproject(depth: Tensor, intrinsics: Tensor, valid: Tensor | None = None) -> Tensor:
    """Camera-space points of a depth map.

    `X = (u - cx) z / fx, Y = (v - cy) z / fy, Z = z`, with u, v the integer pixel indices (pixel centres at integers).

    Args:
        depth: `(B, H, W)` z along the optical axis, metres (points come in the same unit), a floating dtype.
        intrinsics: `(B, 3, 3)` or `(3, 3)` pixels, zero skew, a floating dtype.
        valid: bool `(B, H, W)`, True = make a point; None = all.

    Returns:
        `(B, H, W, 3)` float32, float64 if an input is float64; x right, y down, z forward. NaN where not valid.

    Raises:
        TypeError: depth or intrinsics are not floating tensors, valid is not bool.
        ValueError: shapes or devices do not fit; intrinsics are not finite, a focal length is 0 or a skew is not.
            Intrinsics on a GPU are looked at only with DISTILLDEPTH_CHECK_VALUES=1, because that waits for the device.
        DistillDepthError: DISTILLDEPTH_BACKEND forces a backend that is not there.

    Gradient: to `depth` and `intrinsics`, in their dtypes; zero from what is not valid.

    >>> import torch
    >>> intrinsics = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 1]])
    >>> backproject(torch.tensor([[[4.0, 4.0]]]), intrinsics)
    tensor([[[[0., 0., 4.],
              [2., 0., 4.]]]])
    """
    _check("backproject", depth, intrinsics, valid)
    backend = active_backend("backproject", depth)
    if backend == "reference":
        return reference.backproject(depth, intrinsics, valid)
    return kernel("backproject", backend)(*_prepare(depth, intrinsics, valid))


def point_cloud(depth: Tensor, intrinsics: Tensor, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The valid points of `backproject` and their colours, without gaps, for export.

    Args:
        depth: `(B, H, W)` metres, a floating dtype.
        intrinsics: `(B, 3, 3)` or `(3, 3)` pixels, zero skew.
        image: `(B, 3, H, W)`, any dtype.
        valid: bool `(B, H, W)`; None = all.

    Returns:
        Points `(P, 3)` and colours `(P, 3)` in the image's dtype, ordered by image, row and column. With `valid` on a
        GPU the call waits for the device, which alone knows P.

    Raises:
        TypeError, ValueError: as `backproject`; the image does not fit the depth.

    >>> import torch
    >>> points, colours = point_cloud(torch.ones(1, 2, 2), torch.eye(3), torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    >>> points.shape, colours.dtype
    (torch.Size([4, 3]), torch.uint8)
    """
    _check("point_cloud", depth, intrinsics, valid)
    expected = (len(depth), 3, *depth.shape[1:])
    if tuple(image.shape) != expected:
        raise ValueError(f"point_cloud: image must be (B, 3, H, W) = {expected} as depth, got {tuple(image.shape)}")
    check_device("point_cloud", "image", image, "depth", depth)
    wants_gradient = torch.is_grad_enabled() and (depth.requires_grad or intrinsics.requires_grad)
    if active_backend("backproject", depth) != "native" or wants_gradient:
        return _point_cloud(depth, intrinsics, image, valid)
    depth, intrinsics, valid = _prepare(depth, intrinsics, valid)
    return kernel("point_cloud", "native")(depth, intrinsics, image.contiguous(), valid)


def _prepare(depth: Tensor, intrinsics: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the kernels take: contiguous, one matrix per image, in the type of the points."""
    points = torch.promote_types(torch.promote_types(depth.dtype, intrinsics.dtype), torch.float32)
    if points == torch.float64:
        depth = depth.double()
    matrices = intrinsics.to(points).expand(len(depth), 3, 3)
    return depth.contiguous(), matrices.contiguous(), None if valid is None else valid.contiguous()


def _check(function: str, depth: Tensor, intrinsics: Tensor, valid: Tensor | None) -> None:
    check_floats(function, "depth", depth, (3,), "(B, H, W)")
    check_floats(function, "intrinsics", intrinsics, (2, 3), "(B, 3, 3) or (3, 3)")
    if tuple(intrinsics.shape) not in ((3, 3), (len(depth), 3, 3)):
        raise ValueError(
            f"{function}: intrinsics must be (3, 3) or ({len(depth)}, 3, 3), got {tuple(intrinsics.shape)}"
        )
    check_device(function, "intrinsics", intrinsics, "depth", depth)
    check_valid(function, valid, depth.shape, "depth", depth)
    if values_are_checked(intrinsics):
        if not bool(intrinsics.detach().isfinite().all()):
            raise ValueError(f"{function}: intrinsics must be finite, got {intrinsics.tolist()}")
        focal = intrinsics.detach()[..., (0, 1), (0, 1)]
        if bool((focal == 0).any()):
            raise ValueError(
                f"{function}: intrinsics must have focal lengths other than 0, got fx, fy = {focal.tolist()}"
            )
        skew = intrinsics.detach()[..., 0, 1]
        if bool((skew != 0).any()):
            raise ValueError(
                f"{function}: intrinsics must have zero skew, got {skew.tolist()}; rectify the image first"
            )
