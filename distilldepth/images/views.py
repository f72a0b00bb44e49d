"""What is done to a photograph, or both views of a pair, before regions are cut: the same to all that belongs to it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from distilldepth.depth import intrinsics_from_fov
from distilldepth.images.sources import Sample

KB_CROP = (352, 1216)
"""Height and width in pixels of the crop of KITTI's benchmark: the bottom, in the middle."""


def prepare_views(sample: Sample, rng: np.random.Generator, *, kb_crop: bool, rotate_deg: float, flip: bool) -> Sample:
    """Return a sample cut to `KB_CROP`, turned and, if it is a pair, mirrored.

    Args:
        sample: as `make_crop` takes it; it stays as it is.
        rng: the only source of chance.
        kb_crop: cut larger photographs to `KB_CROP`.
        rotate_deg: the largest angle, degrees.
        flip: mirror half of the pairs.

    Returns:
        A sample; `mirrored` says whether a pair was.
    """
    sample = sample.copy()
    if kb_crop:
        _cut_kb(sample)
    if rotate_deg:
        _turn(sample, float(rng.uniform(-rotate_deg, rotate_deg)))
    if flip and "right" in sample and bool(rng.random() < 0.5):
        _mirror_pair(sample)
    return sample


def depth_of_right_view(depth: np.ndarray, disparity_px: np.ndarray) -> np.ndarray:
    """Carry depth over to the right view of a rectified pair: each pixel to where that view sees its point.

    Where two fall on one place the nearer one stays, since it hides the other; where none falls nothing is known. Sky,
    which does not move, stays sky where nothing nearer falls.

    Args:
        depth: float32 `(H, W)`, metres; inf = sky, NaN = unknown.
        disparity_px: `(H, W)`, `focal length * baseline / depth`, pixels.

    Returns:
        float32 `(H, W)`, likewise.

    >>> depth_of_right_view(np.float32([[9, 9, 3]]), np.array([[1, 1, 2]]))
    array([[ 3., nan, nan]], dtype=float32)
    """
    width = depth.shape[1]
    rows, columns = np.nonzero(~np.isnan(depth))
    values = depth[rows, columns]
    shift = np.where(np.isinf(values), 0, disparity_px[rows, columns])
    to = np.rint(columns - shift).astype(np.int64)
    # The farthest first, so that nearer ones are written over them.
    order = np.argsort(-values, kind="stable")
    rows, to, values = rows[order], to[order], values[order]
    inside = (to >= 0) & (to < width)
    carried = np.full(depth.shape, np.nan, np.float32)
    carried[rows[inside], to[inside]] = values[inside]
    return carried


def _cut_kb(sample: Sample) -> None:
    height, width = sample["image"].shape[:2]
    top, left = max(height - KB_CROP[0], 0), max((width - KB_CROP[1]) // 2, 0)
    window = np.s_[top : top + KB_CROP[0], left : left + KB_CROP[1]]
    if "intrinsics" not in sample and sample["image"].shape[:2] != sample["image"][window].shape[:2]:
        sample["intrinsics"] = assumed_camera(height, width)
    for key in ("image", "right", "depth"):
        if key in sample:
            sample[key] = sample[key][window]
    if "intrinsics" in sample:
        moved = np.array(sample["intrinsics"], np.float32)
        moved[0, 2] -= left
        moved[1, 2] -= top
        sample["intrinsics"] = moved


def _turn(sample: Sample, degrees: float) -> None:
    """Turn about the middle; what was outside is black, and its depth unknown."""
    for key in ("image", "right"):
        if key in sample:
            picture = Image.fromarray(np.ascontiguousarray(sample[key]))
            sample[key] = np.asarray(picture.rotate(degrees, Image.Resampling.BILINEAR))
    if "depth" in sample:
        depth = Image.fromarray(np.ascontiguousarray(sample["depth"], np.float32))
        sample["depth"] = np.asarray(depth.rotate(degrees, Image.Resampling.NEAREST, fillcolor=float("nan")))


def _mirror_pair(sample: Sample) -> None:
    """The pair that a mirror shows: its left view is the mirrored right one.

    Depth is known of the left view alone, and carried over; a pair whose cameras are not known stays as it is then.
    """
    if "depth" in sample:
        camera, baseline = sample.get("intrinsics"), sample.get("baseline_m")
        if camera is None or baseline is None:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            disparity = camera[0, 0] * baseline / sample["depth"]
        sample["depth"] = depth_of_right_view(sample["depth"], disparity)[:, ::-1]
    sample["image"], sample["right"] = sample["right"][:, ::-1], sample["image"][:, ::-1]
    if "intrinsics" in sample:
        turned = np.array(sample["intrinsics"], np.float32)
        turned[0, 2] = sample["image"].shape[1] - 1 - turned[0, 2]
        sample["intrinsics"] = turned
    sample["mirrored"] = True


FOV_DEG = 60.0
"""Vertical field of view of a photograph whose camera is not known, degrees; as LeReS assumes."""


def assumed_camera(height: int, width: int) -> np.ndarray:
    """Return float32 `(3, 3)` intrinsics of a photograph of so many pixels whose camera is not known."""
    return intrinsics_from_fov(height, width, FOV_DEG, vertical=True).numpy()
