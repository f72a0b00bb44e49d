"""Images with true depth to train on: the same manifests and benchmarks that are scored on, with right views."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distilldepth.datasets.rgbd import RGBDSample, RGBDSource, open_rgbd
from distilldepth.datasets.samples import spread
from distilldepth.datasets.scale import scale_notes
from distilldepth.errors import DistillDepthError
from distilldepth.images.sources import ConcatSource, ImageSource, Sample
from distilldepth.images.views import assumed_camera

_WEIGHED = 3
"""Frames whose depth is looked at before a run."""


class PairSource:
    """Frames of a manifest as images to train on.

    Their depth is in metres, NaN where it is not known, at the photograph's size: stored disparity is turned into
    metres, and maps of another size are taken from the nearest pixel.

    Args:
        source: what was opened.
        spec: what it was opened by, for messages.

    Raises:
        DistillDepthError: disparity without focal length or baseline.
    """

    has_depth = True

    def __init__(self, source: RGBDSource, spec: str) -> None:
        self.source = source
        entries = source.entries
        self.has_right = all(entry.right is not None for entry in entries)
        self.names = [f"{entry.dataset}/{entry.name}" for entry in entries]
        what = "stereo pairs" if self.has_right else "images"
        self.description = f"{spec} ({len(entries)} {what} with true depth)"
        for entry in entries:
            lacks = [
                name
                for name, known in (
                    ("focal_px", entry.focal_px is not None or entry.intrinsics is not None),
                    ("baseline_m", entry.baseline_m is not None),
                )
                if not known
            ]
            if entry.kind == "stereo_disparity" and lacks:
                raise DistillDepthError(
                    f"{spec}: {entry.name} has disparity in pixels, which is no depth without {' and '.join(lacks)}; "
                    "add it to the manifest"
                )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        found = self.source[index]
        name = f"{found['dataset']}/{found['name']}"
        image, camera = found["image"], _camera(found)
        depth = np.where(found["valid"], found["target"], np.nan).astype(np.float32)
        if not found["valid"].any():
            raise DistillDepthError(f"{name}: no valid pixel in the ground truth")
        if found["kind"] == "stereo_disparity":
            assert camera is not None, "checked when it was opened"
            depth = (camera[0, 0] * found["baseline_m"] / depth).astype(np.float32)
        if depth.shape != image.shape[:2]:
            depth = np.asarray(Image.fromarray(depth).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        sample: Sample = {"image": image, "name": name, "depth": depth}
        if camera is not None:
            sample["intrinsics"] = camera
        if self.has_right:
            if found["right"].shape != image.shape:
                rows, columns = found["right"].shape[:2]
                raise DistillDepthError(
                    f"{name}: the right view has {columns}x{rows} pixels and the left one "
                    f"{image.shape[1]}x{image.shape[0]}; both views of a pair must have one size"
                )
            sample["right"] = found["right"]
            if "baseline_m" in found:
                sample["baseline_m"] = found["baseline_m"]
        return sample


def open_pairs(specs: Sequence[str], *, root: str | None = None, split: str = "train") -> ImageSource:
    """Open images with true depth to train on.

    Args:
        specs: each a manifest or another RGB-D set, see `open_rgbd`.
        root: folder that the paths in them are relative to; None for their own.
        split: part of a benchmark.

    Returns:
        The source. Where metres can hardly be metres it is warned of.

    Raises:
        FileNotFoundError: no such file or folder.
        DistillDepthError: no such set, or nothing in it.
    """
    sources: list[ImageSource] = [PairSource(open_rgbd(spec, root=root), spec) for spec in specs]
    for spec, source in zip(specs, sources, strict=True):
        medians = []
        for index in spread(range(len(source)), _WEIGHED):
            try:
                medians.append(float(np.nanmedian(source[index]["depth"])))
            except (DistillDepthError, OSError):
                continue  # Of those that cannot be read the training tells.
        for note in scale_notes(medians):
            warnings.warn(f"{spec}: {note}", UserWarning, stacklevel=2)
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _camera(found: RGBDSample) -> np.ndarray | None:
    """Intrinsics of the photograph; of a focal length alone with the axis in the middle; None if neither is known."""
    if "intrinsics" in found:
        return found["intrinsics"]
    if "focal_px" not in found:
        return None
    camera = assumed_camera(*found["image"].shape[:2])
    camera[0, 0] = camera[1, 1] = found["focal_px"]
    return camera
