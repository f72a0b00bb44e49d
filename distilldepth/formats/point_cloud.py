"""A depth map and its photograph as a coloured point cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distilldepth import ops
from distilldepth.depth import intrinsics_from_fov
from distilldepth.files import atomic_path
from distilldepth.formats.options import Picture, PointCloudOptions, WriteOptions


def to_depth(values: np.ndarray, quantity: str, depth_range: tuple[float, float]) -> np.ndarray:
    """Turn a map into depth.

    Metric depth stays as it is. A map without a unit is known only up to scale and shift, so its extremes (0.1 and
    99.9 percent, beyond which it is clipped) are put at `depth_range`: disparity t in [0, 1] becomes
    `1 / (1/far + t (1/near - 1/far))`, depth t becomes `near + t (far - near)`.

    Args:
        values: `(H, W)`, in `quantity`.
        quantity: `disparity`, `depth` or `metric_depth`.
        depth_range: near and far, in any unit; without effect on metric depth.

    Returns:
        float32 `(H, W)`; NaN where unknown. A constant map is put at `near`.
    """
    if quantity == "metric_depth":
        return np.where(np.isfinite(values) & (values > 0), values, np.nan).astype(np.float32)
    near, far = depth_range
    values = values.astype(np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.full(values.shape, np.nan, dtype=np.float32)
    low, high = np.percentile(values[known], [0.1, 99.9])
    if high <= low:
        return np.where(known, near, np.nan).astype(np.float32)
    share = np.clip((values - low) / (high - low), 0, 1)
    depth = 1 / (1 / far + share * (1 / near - 1 / far)) if quantity == "disparity" else near + share * (far - near)
    return np.where(known, depth, np.nan).astype(np.float32)


def write_point_cloud(
    path: str | Path,
    values: np.ndarray,
    image: np.ndarray,
    quantity: str,
    *,
    options: PointCloudOptions | None = None,
    comments: tuple[str, ...] = (),
) -> int:
    """Write a binary little-endian PLY of coloured points; x right, y down, z forward.

    Args:
        path: the file; replaced in one step.
        values: `(H, W)` map in `quantity`; pixels that are not finite give no point.
        image: uint8 `(H, W, 3)`, the colours.
        quantity: `disparity`, `depth` or `metric_depth`.
        options: the camera and the range of maps without a unit, see `to_depth`.
        comments: further lines for the header.

    Returns:
        How many points were written.

    Raises:
        ValueError: map and picture differ in size.
    """
    if values.shape != image.shape[:2]:
        raise ValueError(f"write_point_cloud: image must have the map's size {values.shape}, got {image.shape[:2]}")
    options = options or PointCloudOptions()
    height, width = values.shape
    depth = torch.from_numpy(to_depth(values, quantity, options.depth_range))
    if options.intrinsics is None:
        intrinsics = intrinsics_from_fov(height, width, options.fov_deg)
        camera = f"horizontal field of view {options.fov_deg:g} degrees"
    else:
        fx, fy, cx, cy = options.intrinsics
        intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)
        camera = f"intrinsics fx {fx:g} fy {fy:g} cx {cx:g} cy {cy:g} pixels"
    valid = torch.isfinite(depth)
    colours = torch.tensor(image).permute(2, 0, 1)
    points, colours = ops.point_cloud(depth[None], intrinsics, colours[None], valid[None])
    vertices = np.empty(len(points), dtype=[("position", "<f4", 3), ("colour", "u1", 3)])
    vertices["position"], vertices["colour"] = points.numpy(), colours.numpy()
    if quantity == "metric_depth":
        meaning = "unit: metres"
    else:
        near, far = options.depth_range
        kind = "inverse depth" if quantity == "disparity" else "depth"
        meaning = (
            f"affine-invariant: {kind} is known only up to scale and shift; "
            f"its extremes were put at depth {near:g} and {far:g}, so only the shape means something"
        )
    lines = (
        "written by distilldepth",
        f"from {quantity}",
        meaning,
        camera,
        "axes: x right, y down, z forward",
        *comments,
    )
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {' '.join(line.split())}".encode("ascii", "backslashreplace").decode() for line in lines]
    header += [f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    header += ["end_header"]
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertices.tobytes())
    return len(points)


def write_ply(path: Path, picture: Picture, options: WriteOptions) -> int:
    """`write_point_cloud` as a format of the table."""
    if picture.image is None:
        raise ValueError("write_ply: a point cloud has the colours of its photograph, and there is none")
    comments = tuple(f"{key}: {text}" for key, text in picture.texts.items())
    write_point_cloud(
        path, picture.values, picture.image, picture.quantity, options=options.point_cloud, comments=comments
    )
    return 0
