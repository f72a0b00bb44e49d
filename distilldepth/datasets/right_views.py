"""Right views of benchmarks that have them: where they are, and what their calibration says of the cameras."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distilldepth.datasets.archive import Readable, Root
from distilldepth.datasets.samples import existing, read_photograph
from distilldepth.datasets.truth import RightReader
from distilldepth.errors import DistillDepthError
from distilldepth.images.stereo import RightView

Camera = tuple[float, float]
"""Focal length in pixels and baseline in metres."""


@dataclass(frozen=True)
class FileRightReader:
    """Reads a right view from a file."""

    image: tuple[Readable, ...]
    """Where it may be; the first that exists is read."""
    camera: Camera | None

    def __call__(self) -> RightView:
        """Return the view.

        Raises:
            FileNotFoundError, DistillDepthError: as `read_photograph`.
        """
        return RightView(read_photograph(existing(self.image)), *(self.camera or (None, None)))


def find_right_views(
    root: Root,
    paths: Sequence[tuple[str, ...]],
    probes: Sequence[tuple[str, ...]],
    camera_of: Callable[[int], Camera | None],
) -> list[RightReader | None]:
    """Return the reader of each frame's right view.

    Args:
        root: the data.
        paths: of each frame, where its right view may be; empty where there is none.
        probes: some of them; if none is there, the root holds no right views.
        camera_of: gives the camera of a frame by its place; None where it is not known.
    """
    place = root.place(path for several in probes for path in several)
    if place is None:
        return [None] * len(paths)
    readers: list[RightReader | None] = []
    for index, several in enumerate(paths):
        camera = camera_of(index) if several else None
        reader = FileRightReader(tuple(place.file(path) for path in several), camera)
        readers.append(RightReader(reader, has_camera=camera is not None) if several else None)
    return readers


def read_camera(root: Root, paths: Sequence[str], left: str, right: str) -> Camera | None:
    """Return what a calibration file of KITTI's form says of two rectified cameras.

    Args:
        root: the data.
        paths: where the file may be.
        left: key of the left camera's projection, 12 numbers of a 3x4 matrix; `P_rect_02`.
        right: the same of the right one.

    Returns:
        Focal length and baseline; None if there is no such file.

    Raises:
        DistillDepthError: the file does not have both matrices, or the baseline is not positive.
    """
    place = root.place(paths)
    if place is None:
        return None
    file = existing(tuple(place.file(path) for path in paths))
    lines = (line.partition(":") for line in file.read().decode("utf-8", "replace").splitlines())
    texts = {key.strip(): text.split() for key, _, text in lines}
    try:
        first, second = ([float(number) for number in texts[key]] for key in (left, right))
        focal, baseline = first[0], (first[3] - second[3]) / first[0]
        if not (len(first) == len(second) == 12 and focal > 0 and baseline > 0 and math.isfinite(focal + baseline)):
            raise ValueError
    except (KeyError, ValueError, ZeroDivisionError, IndexError):
        raise DistillDepthError(
            f"{file}: must have {left} and {right}, 12 numbers each of a rectified pair, the left camera first"
        ) from None
    return focal, baseline
