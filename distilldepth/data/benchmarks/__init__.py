"""The benchmarks of the field, read in the forms in which users have them on disk.

| name | samples | split list |
|---|---|---|
| `nyuv2` | 654 | needed, or inside the container |
| `kitti-eigen` | 652 | needed |
| `kitti-official` | 1000 | optional |
| `eth3d` | 454 | needed |
| `scannet` | 800 | needed |
| `diode`, `diode:indoor`, `diode:outdoor` | 771, 325, 446 | optional |
| `driving-stereo`, `:train`, `:sunny`, `:cloudy`, `:foggy`, `:rainy` | 7751, 174 437, not fixed | optional |
| `moge-bundle:NYUv2`, `:KITTI`, ... | not fixed | needed |

Lists are read from the user's file or found in the data, never made up. A file that is missing stays a sample whose
`read` raises: the result is then incomplete, and not smaller.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from distilldepth.data.benchmarks import (
    diode,
    driving_stereo,
    eth3d,
    kitti_eigen,
    kitti_official,
    moge_bundle,
    nyuv2,
    scannet,
)
from distilldepth.data.benchmarks.archive import Root
from distilldepth.data.benchmarks.kitti_official import submission_items
from distilldepth.data.benchmarks.samples import Benchmark, Request, spread
from distilldepth.data.benchmarks.splits import find_splits
from distilldepth.data.scale import likely_scales, saturation_note
from distilldepth.data.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.files import expand_user

__all__ = ["BENCHMARKS", "Benchmark", "check", "open_benchmark", "submission_items"]

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (nyuv2, kitti_eigen, kitti_official, eth3d, scannet, diode, driving_stereo, moge_bundle)
}

CHECKED_FILES = 50
"""How many samples `check` reads of a dataset."""

_PLAUSIBLE = {"indoor": (0.5, 8.0), "outdoor": (2.0, 60.0), "": (0.5, 60.0)}
"""Medians of depth, in metres, between which a dataset of a domain is expected; a wrong scale is off by 4 or more."""
_KEPT_VALUES = 4096


def open_benchmark(
    name: str,
    root: str | os.PathLike,
    *,
    split: str | os.PathLike | None = None,
    field: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    strict_count: bool = True,
) -> Dataset:
    """Open a benchmark.

    Args:
        name: a key of `BENCHMARKS`.
        root: the folder with its files, one of its tar files, or a container (NYU Depth v2).
        split: its list, or a folder with lists of the usual names; None to look for it in the root.
        field: kind of ground truth, where there are several (`raw`, `filled` of NYU Depth v2); None for the first.
        subset: part of it, a key of its `counts`; None for the first.
        limit: only the first so many samples.
        strict_count: refuse another number of samples than the benchmark has, unless there is a limit.

    Returns:
        The dataset, with the benchmark's count in `expected`; nothing is read yet.

    Raises:
        UsageError: no such benchmark or subset, or `limit` below 1.
        FileNotFoundError: `root` or `split` does not exist.
        DistillDepthError: no list, no file, or another number of samples.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"open_benchmark: limit must be at least 1, got {limit}")
    if name not in BENCHMARKS:
        raise UsageError(f"open_benchmark: no benchmark {name!r}{did_you_mean(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    default = next(iter(benchmark.counts))
    subset = subset or default
    if subset not in benchmark.counts:
        choices = [choice for choice in benchmark.counts if choice]
        hint = did_you_mean(subset, choices) if choices else "; it has no parts"
        raise UsageError(f"open_benchmark: {name} has no part {subset!r}{hint}")
    opened = Root(root)
    splits = find_splits(opened, split, benchmark.splits)
    split_path = None if split is None else expand_user(split)
    found = benchmark.find(Request(opened, splits, subset, field, benchmark, split_path))
    expected = None if found.has_own_count else benchmark.counts[subset]
    count = len(found.samples)
    if strict_count and limit is None and expected is not None and count != expected:
        hint = f" ({benchmark.count_hint})" if benchmark.count_hint else ""
        raise DistillDepthError(
            f"{opened}: found {count} samples of {name}{f':{subset}' if subset != default else ''}, which has "
            f"{expected}{hint}; {'; '.join(found.notes)}; complete it, or score what is there with --limit {count}"
        )
    title = name if subset == default and name != "moge-bundle" else f"{name}-{subset}"
    items = [Item(title, sample.name, sample.read) for sample in found.samples[:limit]]
    domain = benchmark.domains.get(subset, benchmark.domain)
    return Dataset(
        name=title,
        items=items,
        kind=name,
        domain=domain,
        expected=expected,
        fields=found.fields,
        field=found.field,
        notes=tuple(found.notes),
    )


def check(dataset: Dataset, workers: int = 2, limit: int | None = None, all: bool = False) -> dict[str, Any]:
    """Read some samples of a dataset and say what is in them, so that a wrong depth scale is seen before a run.

    Args:
        dataset: any dataset, also one that is no benchmark.
        workers: threads that read.
        limit: read at most so many samples, spread evenly; None for 50.
        all: read every sample.

    Returns:
        `name`, `kind`, `domain`, `field`, `notes`; `count` of samples and how many are `expected`; `read`, how many
        were read; `images` and `truths`, each a list of `[height, width, count]`, the most frequent first;
        `valid_share` of the pixels; `is_metric`; `min`, `median`, `max` of the valid values (metres where
        `is_metric`; the median is that of at most 4096 values of each sample); `unreadable`, a list of `name` and
        `error`; `warnings`, lines on what looks wrong. Numbers are None if nothing could be read.

    Raises:
        ValueError: `workers` or `limit` below 1.
    """
    if workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"check: workers and limit must be at least 1, got {workers} and {limit}")
    items = dataset.items if all else spread(dataset.items, limit or CHECKED_FILES)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="distilldepth-io") as pool:
        results = list(pool.map(_inspect, items))
    return _report(dataset, items, results)


def _report(dataset: Dataset, items: list[Item], results: list[_Inspection | str]) -> dict[str, Any]:
    seen = [result for result in results if isinstance(result, _Inspection)]
    unreadable = [
        {"name": item.name, "error": result}
        for item, result in zip(items, results, strict=True)
        if isinstance(result, str)
    ]
    report: dict[str, Any] = {
        "name": dataset.name,
        "kind": dataset.kind,
        "domain": dataset.domain,
        "field": dataset.field,
        "notes": list(dataset.notes),
        "count": len(dataset.items),
        "expected": dataset.expected,
        "read": len(seen),
        "images": _most_frequent([result.image for result in seen]),
        "truths": _most_frequent([result.truth for result in seen]),
        "valid_share": None,
        "is_metric": all(result.is_metric for result in seen),
        "min": None,
        "median": None,
        "max": None,
        "unreadable": unreadable,
        "warnings": [],
    }
    if seen:
        pixels = sum(height * width for height, width in (result.truth for result in seen))
        report["valid_share"] = sum(result.valid for result in seen) / pixels
        report["min"] = min(result.low for result in seen)
        report["median"] = float(np.median(np.concatenate([result.values for result in seen])))
        report["max"] = max(result.high for result in seen)
        report["warnings"] = _suspicions(report, seen)
    return report


class _Inspection:
    """What one sample looks like."""

    def __init__(self, image: np.ndarray, truth: Truth) -> None:
        values = truth.depth[truth.valid]
        self.image, self.truth = image.shape[:2], truth.depth.shape
        ratio = image.shape[1] * truth.depth.shape[0] / (image.shape[0] * truth.depth.shape[1])
        self.is_unlike = abs(ratio - 1) > 0.02
        self.valid = values.size
        self.is_metric = truth.is_metric
        self.scale = truth.scale
        self.low, self.high = float(values.min()), float(values.max())
        self.values = values[:: -(-values.size // _KEPT_VALUES)].copy()
        self.saturated = "" if truth.scale is None else saturation_note(truth.depth, truth.valid, truth.scale)


def _inspect(item: Item) -> _Inspection | str:
    try:
        return _Inspection(*item.read())
    except (DistillDepthError, OSError, ValueError, MemoryError) as error:
        return " ".join(str(error).split())


def _most_frequent(shapes: list[tuple[int, int]]) -> list[list[int]]:
    return [[height, width, count] for (height, width), count in Counter(shapes).most_common()]


def _suspicions(report: dict[str, Any], seen: list[_Inspection]) -> list[str]:
    lines = []
    low, high = _PLAUSIBLE[report["domain"]]
    hint = "" if report["kind"] else " --truth-scale, or a manifest's `scale`, gives the stored units per metre"
    scales = {result.scale for result in seen}
    if len(scales) == 1 and None not in scales:
        likely = likely_scales(report["median"], scale := scales.pop())[:2]
        hint += f", now {scale:g}" + "".join(f"; {usual} makes it {value:.3g} m" for usual, value in likely)
    where = f" for {report['domain']} data" if report["domain"] else ""
    if report["is_metric"] and not low <= report["median"] <= high:
        lines.append(
            f"a median of {report['median']:.3g} m is unusual{where} "
            f"(expected {low:g} to {high:g}): is the depth scale right?{hint}"
        )
    lines += [result.saturated for result in seen if result.saturated][:1]
    if unlike := sum(result.is_unlike for result in seen):
        lines.append(
            f"{unlike} of {len(seen)} images have another shape than their ground truth: do both show the same?"
        )
    return lines
