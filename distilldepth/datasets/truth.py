"""What scoring needs of a sample, whatever dataset it comes from: image and truth, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distilldepth.images.stereo import RightView


@dataclass(frozen=True)
class Truth:
    """What is known about one image."""

    depth: np.ndarray
    """float32 `(h, w)`: metres, or `1 / stereo_disparity_px` where focal length or baseline is unknown; finite, and 0
    where not valid."""
    valid: np.ndarray
    """bool `(h, w)`; True = use the pixel. What the file itself says: no range and no crop of a protocol."""
    is_metric: bool
    """Whether the unit of `depth` is metres."""
    dense: bool = False
    """Whether there is truth at every visible surface, so that depth boundaries can be scored."""
    scale: float | None = None
    """Stored units per metre that were applied, where they are the user's word and may be wrong."""


@dataclass(frozen=True)
class RightReader:
    """The right view of a rectified pair; nothing is read before `read`."""

    read: Callable[[], RightView]
    """Gives the view with its camera; raises `DistillDepthError` or `FileNotFoundError`."""
    has_camera: bool = False
    """Whether focal length and baseline are known, and metres can be made of disparity."""


@dataclass(frozen=True)
class Item:
    """One image with truth; nothing is read before `read`."""

    dataset: str
    name: str
    """Path of the image in its dataset; also names what is stored about it."""
    read: Callable[[], tuple[np.ndarray, Truth]]
    """Gives the image, uint8 `(H, W, 3)`, and the truth; raises `DistillDepthError` or `FileNotFoundError`."""
    right: RightReader | None = None
    """The other view, where the image is the left one of a rectified pair."""


@dataclass(frozen=True)
class Dataset:
    """A named list of items."""

    name: str
    items: list[Item]
    kind: str = ""
    """The benchmark it is (`nyuv2`, `kitti-eigen`, ...); empty for own data and scenes."""
    domain: str = ""
    """`indoor`, `outdoor` or unknown."""
    expected: int | None = None
    """How many samples the benchmark has; None where there is no fixed count."""
    fields: tuple[str, ...] = ()
    """Kinds of ground truth on disk, for example `("raw", "filled")`; empty where there is one only."""
    field: str = ""
    """Which of `fields` the items read."""
    notes: tuple[str, ...] = ()
    """How the items were found, for people: which list, what was left out."""
