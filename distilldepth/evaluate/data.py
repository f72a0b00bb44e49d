"""Datasets with truth: manifests, `images/` + `depth/` folders and procedural scenes, as one kind of sample."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilldepth.errors import DistillDepthError

SCENE_SEED = 10_000_000
"""First seed of the scenes for scoring; training draws from 0 to 999 999."""
SCENE_COUNT = 200
SCENE_SIZE = (192, 256)


@dataclass(frozen=True)
class Truth:
    """What is known about one image."""

    depth: np.ndarray
    """float32 `(h, w)`: metres, or `1 / stereo_disparity_px` where focal length or baseline is unknown."""
    valid: np.ndarray
    """bool `(h, w)`; True = use the pixel."""
    is_metric: bool
    """Whether the unit of `depth` is metres."""


@dataclass(frozen=True)
class Item:
    """One image with truth; nothing is read before `read`."""

    dataset: str
    name: str
    read: Callable[[], tuple[np.ndarray, Truth]]
    """Gives the image, uint8 `(H, W, 3)`, and the truth."""


@dataclass(frozen=True)
class Dataset:
    """A named list of items."""

    name: str
    items: list[Item]


def open_data(
    specs: str | Path | Sequence[str | Path], *, root: str | Path | None = None, limit: int | None = None
) -> list[Dataset]:
    """Open datasets.

    Args:
        specs: each a manifest (.jsonl), a folder of manifests, a folder with `images/` and `depth/`, or `scenes[:N]`.
        root: folder that the paths in manifests are relative to; None for the manifest's own.
        limit: use the first so many frames of each dataset.

    Returns:
        Datasets with different names.

    Raises:
        FileNotFoundError: no such file or folder.
        DistillDepthError: not a dataset, or nothing in it.
        ValueError: wrong count of scenes or limit.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"open_data: limit must be at least 1, got {limit}")
    specs = [specs] if isinstance(specs, (str, Path)) else list(specs)
    datasets: list[Dataset] = []
    for spec in specs:
        if re.fullmatch(r"scenes(:.*)?", str(spec)):
            datasets.append(_open_scenes(str(spec), limit))
        else:
            datasets.extend(_open_rgbd(spec, root, limit))
    if not datasets:
        raise DistillDepthError("no data given; name a manifest, a folder or scenes")
    names = [dataset.name for dataset in datasets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"open_data: data must have different names, got {', '.join(repeated)} more than once")
    return datasets


def _open_scenes(spec: str, limit: int | None) -> Dataset:
    _, colon, text = spec.partition(":")
    if colon and not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"open_data: scenes:COUNT must have a positive whole number, got {spec!r}")
    count = min(int(text) if colon else SCENE_COUNT, limit or 10**9)
    items = [Item("scenes", f"scene-{seed}", _SceneReader(seed)) for seed in range(SCENE_SEED, SCENE_SEED + count)]
    return Dataset("scenes", items)


@dataclass(frozen=True)
class _SceneReader:
    seed: int

    def __call__(self) -> tuple[np.ndarray, Truth]:
        from distilldepth.data.scenes import render_scene

        scene = render_scene(self.seed, SCENE_SIZE)
        valid = np.isfinite(scene.depth) & (scene.depth > 0)
        return scene.image, Truth(np.where(valid, scene.depth, 0).astype(np.float32), valid, is_metric=True)


def _open_rgbd(spec: str | Path, root: str | Path | None, limit: int | None) -> list[Dataset]:
    from distilldepth.data.rgbd import open_rgbd

    source = open_rgbd(spec, root=root)
    if source.skipped:
        entries = "1 entry has" if source.skipped == 1 else f"{source.skipped} entries have"
        warnings.warn(f"{spec}: {entries} no ground truth and cannot be scored", UserWarning, stacklevel=3)
    datasets = []
    for name, indices in source.datasets.items():
        items = [Item(name, source.entries[index].name, _RGBDReader(source, index)) for index in indices[:limit]]
        datasets.append(Dataset(name, items))
    return datasets


@dataclass(frozen=True)
class _RGBDReader:
    source: object
    index: int

    def __call__(self) -> tuple[np.ndarray, Truth]:
        sample = self.source[self.index]
        valid, target = sample["valid"], sample["target"]
        if not valid.any():
            raise DistillDepthError("no valid pixel in the ground truth")
        if sample["kind"] == "depth":
            return sample["image"], Truth(target, valid, is_metric=True)
        # Stereo disparity stands for inverse depth; with the cameras known it becomes metres.
        factor = sample.get("focal_px", 0) * sample.get("baseline_m", 0)
        depth = np.divide(factor or 1.0, target, out=np.zeros_like(target), where=valid)
        return sample["image"], Truth(depth.astype(np.float32), valid, is_metric=factor > 0)
