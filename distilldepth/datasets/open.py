"""Datasets with truth: benchmarks, manifests, lists, RGB-D folders and procedural scenes, as one kind."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distilldepth.datasets.samples import spread
from distilldepth.datasets.scale import saturation_note, scale_notes
from distilldepth.datasets.truth import Dataset, Item, RightReader, Truth
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, shown
from distilldepth.files import cache_folder, expand_user
from distilldepth.images.decode import read_image
from distilldepth.images.sources import MAX_SCENES, SCENES, STEREO_SCENES, parse_count
from distilldepth.images.stereo import RightView

if TYPE_CHECKING:
    from distilldepth.datasets.rgbd import RGBDEntry, RGBDSource
    from distilldepth.scenes.source import SceneSource

__all__ = ["SCENE_COUNT", "SCENE_SEED", "SCENE_SIZE", "Dataset", "Item", "Truth", "benchmark_name", "open_data"]

Data = str | Path | Dataset | Sequence[str | Path | Dataset]
"""What `open_data` takes."""
SCENE_SEED = 10_000_000
"""First seed of the scenes for scoring; training draws from 0 to 999 999."""
SCENE_COUNT = 200
SCENE_SIZE = (192, 256)
STEREO_SIZE = (96, 336)
"""Of the stereo pairs for scoring, in about the proportions of a frame of KITTI."""
_WEIGHED = 3
"""Frames of an RGB-D set whose depth is looked at before a run."""


def open_data(
    specs: Data,
    *,
    root: str | Path | None = None,
    split: str | Path | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    truth_scale: float | None = None,
) -> list[Dataset]:
    """Open datasets.

    Args:
        specs: each a benchmark (`nyuv2`, `diode:indoor`, see `distilldepth list datasets`), a manifest (.jsonl), a
            folder of manifests, another RGB-D set (see `open_rgbd`), `scenes[:N]` or `stereo-scenes[:N]`. Datasets are
            open already, and returned as they are.
        root: folder or tar file of the benchmark; folder that the paths in manifests are relative to, None for the
            manifest's own.
        split: file that lists a benchmark's samples; None for the one in the root.
        limit: use the first so many frames of each dataset.
        fields: kind of ground truth by kind of benchmark where there are several, for example `{"nyuv2": "raw"}`; else
            the benchmark's own.
        truth_scale: stored units per metre of RGB-D sets whose files do not say it; see `open_rgbd`.

    Returns:
        Datasets with different names.

    Raises:
        FileNotFoundError: no such file or folder.
        DistillDepthError: not a dataset, nothing in it, or not as many samples as the benchmark has.
        ValueError: wrong count of scenes or limit, a benchmark without root, or a split without benchmark.
    """
    given = [specs] if isinstance(specs, (str, Path, Dataset)) else list(specs)
    opened = [spec for spec in given if isinstance(spec, Dataset)]
    if opened and len(opened) == len(given):
        return opened
    if limit is not None and limit < 1:
        raise UsageError(f"open_data: limit must be at least 1, got {limit}")
    named = [spec for spec in given if not isinstance(spec, Dataset)]
    if split is not None and not any(map(benchmark_name, named)):
        raise UsageError("open_data: --split lists the samples of a benchmark, and the data is none; leave it out")
    if truth_scale is not None and all(benchmark_name(spec) or _is_scenes(spec) for spec in named):
        raise UsageError(
            "open_data: a depth scale is about RGB-D sets (or --predictions), and the data says its own; leave it out"
        )
    datasets: list[Dataset] = []
    for spec in given:
        if isinstance(spec, Dataset):
            datasets.append(spec)
        elif _is_scenes(spec):
            datasets.append(_open_scenes(str(spec), limit))
        elif benchmark_name(spec):
            datasets.append(_open_benchmark(str(spec), root, split, limit, fields or {}))
        else:
            datasets.extend(_open_rgbd(spec, root, limit, truth_scale))
    if not datasets:
        raise DistillDepthError("no data given; name a benchmark, a manifest, a folder or scenes")
    names = [dataset.name for dataset in datasets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"open_data: data must have different names, got {', '.join(repeated)} more than once; rename "
            "one of the files or folders"
        )
    return datasets


def check_any_readable(datasets: Sequence[Dataset], max_tries: int = 100) -> dict[str, list[str]]:
    """Raise if none of a dataset's samples can be read, before the work begins.

    Args:
        datasets: each has to have a sample that can be read.
        max_tries: of more samples so many are tried, spread evenly.

    Returns:
        By dataset, lines on metres that can hardly be metres in the first of them; see `scale_notes`. They are warned
        of, too: before the run, which may take hours.

    Raises:
        DistillDepthError: none can be read; the message has the count and the first reason.
    """
    notes: dict[str, list[str]] = {}
    for dataset in datasets:
        first: Exception | None = None
        tried = spread(dataset.items, max_tries)
        truths: list[Truth] = []
        for item in tried:
            try:
                truths.append(item.read()[1])
            except (DistillDepthError, OSError, ValueError, MemoryError) as error:
                first = first or error
            # Benchmarks and scenes say their scale; one frame shows that there is something to score.
            if truths and (len(truths) == _WEIGHED or truths[0].scale is None or not truths[0].is_metric):
                break
        notes[dataset.name] = truth_notes(truths)
        for note in notes[dataset.name]:
            warnings.warn(f"{dataset.name}: {note}", UserWarning, stacklevel=2)
        if not truths:
            count = len(dataset.items)
            some = f"all {count} samples" if len(tried) == count else f"{len(tried)} of {count} samples, spread evenly,"
            if count > 1:
                raise DistillDepthError(
                    f"{dataset.name}: {some} cannot be read; the first: {' '.join(str(first).split())}"
                )
    return notes


def truth_notes(truths: Sequence[Truth]) -> list[str]:
    """Return a line if the metres of some samples of a user's own set can hardly be metres; see `scale_notes`."""
    metric = [truth for truth in truths if truth.is_metric and truth.scale is not None]
    if not metric:
        return []
    scales = {truth.scale for truth in metric}
    medians = [float(np.median(truth.depth[truth.valid])) for truth in metric]
    saturated = (saturation_note(truth.depth, truth.valid, truth.scale) for truth in metric if truth.scale is not None)
    first = next(filter(None, saturated), None)
    return scale_notes(medians, scales.pop() if len(scales) == 1 else None) + ([first] if first else [])


def benchmark_name(spec: str | Path) -> str | None:
    """Return the benchmark that `nyuv2` or `diode:indoor` names; None for a path, or if there is something so called.

    >>> benchmark_name("diode:indoor"), benchmark_name("my/pairs")
    ('diode', None)
    """
    from distilldepth.datasets.catalogue import BENCHMARKS

    name = str(spec).partition(":")[0]
    return name if isinstance(spec, str) and name in BENCHMARKS and not Path(spec).exists() else None


def _open_benchmark(
    spec: str, root: str | Path | None, split: str | Path | None, limit: int | None, fields: Mapping[str, str]
) -> Dataset:
    from distilldepth.datasets.catalogue import open_benchmark

    name, _, subset = spec.partition(":")
    if root is None:
        raise UsageError(f"open_data: {name} needs --root, the folder or tar file that holds it")
    return open_benchmark(
        name,
        root,
        split=split,
        preferred_field=fields.get(name),
        subset=subset or None,
        limit=limit,
        strict_count=limit is None,
    )


def _open_scenes(spec: str, limit: int | None) -> Dataset:
    word, colon, text = spec.partition(":")
    asked = parse_count(text) if colon else SCENE_COUNT
    if asked is None:
        raise UsageError(
            f"open_data: {word}:COUNT must have a positive whole number, at most {MAX_SCENES}, got {shown(spec)}"
        )
    count = min(asked, limit or asked)
    if word == STEREO_SCENES:
        return _open_stereo_scenes(count)
    items = [
        Item("scenes", f"scene-{seed}", _SceneReader(seed), RightReader(_SceneRightReader(seed), has_camera=True))
        for seed in range(SCENE_SEED, SCENE_SEED + count)
    ]
    return Dataset("scenes", items)


def _open_stereo_scenes(count: int) -> Dataset:
    """Scenes of the cameras of a car, kept once they are rendered: whoever scores on them does it again."""
    from distilldepth.scenes.render import CAR
    from distilldepth.scenes.source import SceneSource

    source = SceneSource(STEREO_SIZE, count=count, seed=SCENE_SEED, cache=cache_folder() / "scenes", rig=CAR)
    items = [
        Item(
            STEREO_SCENES,
            f"scene-{SCENE_SEED + place}",
            partial(_read_stereo_scene, source, place),
            RightReader(partial(_read_right_scene, source, place), has_camera=True),
        )
        for place in range(count)
    ]
    return Dataset(STEREO_SCENES, items)


def _read_stereo_scene(source: SceneSource, place: int) -> tuple[np.ndarray, Truth]:
    sample = source[place]
    valid = np.isfinite(sample["depth"]) & (sample["depth"] > 0)
    depth = np.where(valid, sample["depth"], 0).astype(np.float32)
    return sample["image"], Truth(depth, valid, is_metric=True, dense=True)


def _read_right_scene(source: SceneSource, place: int) -> RightView:
    sample = source[place]
    return RightView(sample["right"], float(sample["intrinsics"][0, 0]), sample["baseline_m"])


@dataclass(frozen=True)
class _SceneReader:
    seed: int

    def __call__(self) -> tuple[np.ndarray, Truth]:
        from distilldepth.scenes.render import render_scene

        scene = render_scene(self.seed, SCENE_SIZE)
        valid = np.isfinite(scene.depth) & (scene.depth > 0)
        depth = np.where(valid, scene.depth, 0).astype(np.float32)
        return scene.image, Truth(depth, valid, is_metric=True, dense=True)


@dataclass(frozen=True)
class _SceneRightReader:
    seed: int

    def __call__(self) -> RightView:
        from distilldepth.scenes.render import render_scene

        scene = render_scene(self.seed, SCENE_SIZE, stereo=True)
        assert scene.right is not None, "it was asked for"
        return RightView(scene.right, float(scene.intrinsics[0, 0]), float(scene.baseline_m))


def _is_scenes(spec: str | Path) -> bool:
    return str(spec).partition(":")[0] in SCENES


def _open_rgbd(
    spec: str | Path, root: str | Path | None, limit: int | None, truth_scale: float | None
) -> list[Dataset]:
    from distilldepth.datasets.catalogue import BENCHMARKS
    from distilldepth.datasets.rgbd import open_rgbd

    if not expand_user(spec).exists() and not re.search(r"[/\\.]", str(spec)):
        # A single word is more likely a benchmark misspelt than a file that went away.
        known = [*BENCHMARKS, *SCENES]
        raise UsageError(f"{spec}: no such file, folder or benchmark{did_you_mean(str(spec), known)}")
    source = open_rgbd(spec, root=root, depth_scale=truth_scale)
    if source.skipped:
        entries = "1 entry has" if source.skipped == 1 else f"{source.skipped} entries have"
        warnings.warn(f"{spec}: {entries} no ground truth and cannot be scored", UserWarning, stacklevel=3)
    datasets = []
    for name, indices in source.datasets.items():
        items = [
            Item(name, source.entries[index].name, _RGBDReader(source, index), _right_of(source.entries[index]))
            for index in indices[:limit]
        ]
        datasets.append(Dataset(name, items))
    return datasets


def _right_of(entry: RGBDEntry) -> RightReader | None:
    if entry.right is None:
        return None
    known = entry.focal is not None and entry.baseline_m is not None
    return RightReader(_RGBDRightReader(entry), has_camera=known)


@dataclass(frozen=True)
class _RGBDRightReader:
    entry: RGBDEntry

    def __call__(self) -> RightView:
        assert self.entry.right is not None, "only entries with a right view have a reader of it"
        return RightView(read_image(self.entry.right), self.entry.focal, self.entry.baseline_m)


@dataclass(frozen=True)
class _RGBDReader:
    source: RGBDSource
    index: int

    def __call__(self) -> tuple[np.ndarray, Truth]:
        sample = self.source.read(self.index, right=False)
        valid, target = sample["valid"], sample["target"]
        if not valid.any():
            raise DistillDepthError("no valid pixel in the ground truth")
        if sample["kind"] == "depth":
            return sample["image"], Truth(target, valid, is_metric=True, scale=sample["scale"])
        # Stereo disparity stands for inverse depth; with the cameras known it becomes metres.
        factor = sample.get("focal_px", 0) * sample.get("baseline_m", 0)
        depth = np.divide(factor or 1.0, target, out=np.zeros_like(target), where=valid)
        return sample["image"], Truth(depth.astype(np.float32), valid, is_metric=factor > 0)
