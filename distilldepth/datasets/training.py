"""Images with true depth to train on: the sets that are scored on, as a source of images, with right views."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distilldepth.datasets.catalogue import BENCHMARKS, TRAIN, open_benchmark
from distilldepth.datasets.open import benchmark_name, open_data, truth_notes
from distilldepth.datasets.samples import spread
from distilldepth.datasets.truth import Dataset, Truth
from distilldepth.errors import DistillDepthError, UsageError, shown
from distilldepth.files import expand_user
from distilldepth.images.sources import ConcatSource, ImageSource, Sample
from distilldepth.images.stereo import are_swapped
from distilldepth.images.views import assumed_camera

_WEIGHED = 3
"""Frames that are looked at before a run."""
_ASPECT = 0.05
"""By which the proportions of a depth map and its photograph may differ."""


class TruthSource:
    """The items of a dataset as images to train on.

    Depth is in metres, NaN where it is not known, at the photograph's size: maps of another size are taken from the
    nearest pixel. Right views come where all items have one.

    Args:
        dataset: what was opened.
    """

    has_depth = True

    def __init__(self, dataset: Dataset) -> None:
        self.items = dataset.items
        self.has_right = all(item.right is not None for item in self.items)
        self.has_cameras = all(item.right is not None and item.right.has_camera for item in self.items)
        self.names = [f"{item.dataset}/{item.name}" for item in self.items]
        what = "stereo pairs" if self.has_right else "images"
        self.description = f"{dataset.name} ({len(self.items)} {what} with true depth)"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item, name = self.items[index], self.names[index]
        try:
            image, truth = item.read()
        except DistillDepthError as error:
            raise error if item.name in str(error) else DistillDepthError(f"{name}: {error}") from error
        sample: Sample = {"image": image, "name": name, "depth": _depth(truth, image.shape[:2], name)}
        if self.has_right and item.right is not None:
            view = item.right.read()
            try:
                view.check_size(image)
            except DistillDepthError as error:
                raise DistillDepthError(f"{name}: {error}") from error
            sample["right"] = view.image
            if view.focal_px is not None:
                sample["intrinsics"] = assumed_camera(*image.shape[:2])
                sample["intrinsics"][(0, 1), (0, 1)] = view.focal_px
            if view.baseline_m is not None:
                sample["baseline_m"] = view.baseline_m
        return sample


def _depth(truth: Truth, size: tuple[int, int], name: str) -> np.ndarray:
    if not truth.is_metric:
        raise DistillDepthError(
            f"{name}: has disparity in pixels, which is no depth in metres without focal_px and baseline_m; add them "
            "to the manifest"
        )
    if not truth.valid.any():
        raise DistillDepthError(f"{name}: no valid pixel in the ground truth")
    depth = np.where(truth.valid, truth.depth, np.nan).astype(np.float32)
    if depth.shape == size:
        return depth
    if depth.ndim != 2 or abs(depth.shape[0] * size[1] / (depth.shape[1] * size[0]) - 1) > _ASPECT:
        raise DistillDepthError(
            f"{name}: the depth map has shape {depth.shape} and the photograph {size}; it must show the same"
        )
    return np.asarray(Image.fromarray(depth).resize(size[::-1], Image.Resampling.NEAREST))


def open_truth(specs: Sequence[str], *, root: str | None = None, split: str = "train") -> ImageSource:
    """Open images with true depth to train on.

    Args:
        specs: each a benchmark that has training images (`kitti-eigen`, `kitti-official`, `driving-stereo`), or what
            `open_data` takes: a manifest, another RGB-D set, `stereo-scenes:COUNT`.
        root: folder with the files of the benchmark, or that the paths in a manifest are relative to; None for its own.
        split: `train`, for the benchmark's usual training list in the root; or a list.

    Returns:
        The source. Where metres can hardly be metres it is warned of.

    Raises:
        FileNotFoundError: no such file or folder.
        DistillDepthError: no such set, nothing in it, or depth without a unit.
        UsageError: a benchmark without training images, or without a root.
    """
    if split != TRAIN and not any(map(benchmark_name, specs)):
        raise UsageError("distill: --split is about benchmarks, and --data names none; leave it out")
    datasets: list[Dataset] = []
    for spec in specs:
        if name := benchmark_name(spec):
            datasets.append(_open_training(name, spec, root, split))
        else:
            datasets += open_data(spec, root=root)
    for dataset in datasets:
        for note in _doubts(dataset):
            warnings.warn(f"{dataset.name}: {note}", UserWarning, stacklevel=2)
    sources: list[ImageSource] = [TruthSource(dataset) for dataset in datasets]
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _doubts(dataset: Dataset) -> list[str]:
    """Lines on what is doubtful about a set, by some of its frames; DistillDepthError for depth without a unit."""
    truths, swapped = [], []
    for item in spread(dataset.items, _WEIGHED):
        try:
            image, truth = item.read()
            right = None if item.right is None else item.right.read()
        except (DistillDepthError, OSError):
            continue  # Of those that cannot be read the training tells.
        _depth(truth, truth.depth.shape[:2], f"{item.dataset}/{item.name}")
        truths.append(truth)
        if right is not None and right.image.shape == image.shape and are_swapped(image, right.image):
            swapped.append(item.name)
    notes = [note.replace("--truth-scale, or ", "") for note in truth_notes(truths)]
    if swapped:
        notes.append(
            f"left and right views look exchanged (the first: {swapped[0]}); `image` must be what the left camera sees"
        )
    single = [item.name for item in dataset.items if item.right is None]
    if single and len(single) < len(dataset.items):
        notes.append(
            f"{len(single)} of {len(dataset.items)} images have no right view (the first: {single[0]}), so none is used"
        )
    return notes


def _open_training(name: str, spec: str, root: str | None, split: str) -> Dataset:
    if root is None:
        raise UsageError(f"distill: --data {name} needs --root, the folder that holds it")
    training = [known for known, benchmark in BENCHMARKS.items() if benchmark.training or "train" in benchmark.counts]
    if name not in training:
        raise UsageError(f"distill: {name} has no training images here; those of {', '.join(training)} can be read")
    if split != TRAIN and not expand_user(split).exists():
        raise UsageError(f"distill: split must be {TRAIN}, or a list of images, got {shown(split)}, which is no file")
    return open_benchmark(name, root, split=split, subset=spec.partition(":")[2] or None, strict_count=False)
