"""What is wrong with a dataset on disk, from some of its samples."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from distilldepth.datasets.samples import spread
from distilldepth.datasets.scale import likely_scales, saturation_note
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.documents import Record
from distilldepth.errors import DistillDepthError, one_line

CHECKED_FILES = 50
"""How many samples `check` reads of a dataset."""


_PLAUSIBLE = {"indoor": (0.5, 8.0), "outdoor": (2.0, 60.0), "": (0.5, 60.0)}
"""Medians of depth, in metres, between which a dataset of a domain is expected; a wrong scale is off by 4 or more."""


_KEPT_VALUES = 4096


@dataclass
class DatasetReport(Record):
    """What is in a dataset on disk, and what looks wrong. Numbers are None if nothing could be read."""

    name: str
    kind: str
    domain: str
    field: str
    notes: list[str]
    count: int
    """Samples."""
    expected: int | None
    read: int
    """How many were read."""
    images: list[list[int]]
    """`[height, width, count]`, the most frequent first."""
    truths: list[list[int]]
    valid_share: float | None
    """Of the pixels."""
    is_metric: bool
    min: float | None
    """Of the valid values, metres where `is_metric`."""
    median: float | None
    """Of at most 4096 values of each sample."""
    max: float | None
    unreadable: list[Unreadable]
    warnings: list[str]
    """Lines on what looks wrong."""


@dataclass
class Unreadable(Record):
    """A sample that cannot be read."""

    name: str
    error: str


def check(dataset: Dataset, workers: int = 2, limit: int | None = None, all: bool = False) -> DatasetReport:
    """Read some samples of a dataset and say what is in them, so that a wrong depth scale is seen before a run.

    Args:
        dataset: any dataset, also one that is no benchmark.
        workers: threads that read.
        limit: read at most so many samples, spread evenly; None for 50.
        all: read every sample.

    Returns:
        What is in it, and lines on what looks wrong.

    Raises:
        ValueError: `workers` or `limit` below 1.
    """
    if workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"check: workers and limit must be at least 1, got {workers} and {limit}")
    items = dataset.items if all else spread(dataset.items, limit or CHECKED_FILES)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="distilldepth-io") as pool:
        results = list(pool.map(_inspect, items))
    return _report(dataset, items, results)


def _report(dataset: Dataset, items: list[Item], results: list[_Inspection | str]) -> DatasetReport:
    seen = [result for result in results if isinstance(result, _Inspection)]
    pixels = sum(height * width for height, width in (result.truth for result in seen))
    median = float(np.median(np.concatenate([result.values for result in seen]))) if seen else None
    return DatasetReport(
        name=dataset.name,
        kind=dataset.kind,
        domain=dataset.domain,
        field=dataset.field,
        notes=list(dataset.notes),
        count=len(dataset.items),
        expected=dataset.expected,
        read=len(seen),
        images=_most_frequent([result.image for result in seen]),
        truths=_most_frequent([result.truth for result in seen]),
        valid_share=sum(result.valid for result in seen) / pixels if seen else None,
        is_metric=all(result.is_metric for result in seen),
        min=min((result.low for result in seen), default=None),
        median=median,
        max=max((result.high for result in seen), default=None),
        unreadable=[
            Unreadable(item.name, result)
            for item, result in zip(items, results, strict=True)
            if isinstance(result, str)
        ],
        warnings=[] if median is None else _suspicions(dataset, seen, median),
    )


class _Inspection:
    """What one sample looks like."""

    def __init__(self, image: np.ndarray, truth: Truth) -> None:
        values = truth.depth[truth.valid]
        self.image, self.truth = (image.shape[0], image.shape[1]), (truth.depth.shape[0], truth.depth.shape[1])
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
        return one_line(error)


def _most_frequent(shapes: list[tuple[int, int]]) -> list[list[int]]:
    return [[height, width, count] for (height, width), count in Counter(shapes).most_common()]


def _suspicions(dataset: Dataset, seen: list[_Inspection], median: float) -> list[str]:
    lines = []
    low, high = _PLAUSIBLE[dataset.domain]
    hint = "" if dataset.kind else " --truth-scale, or a manifest's `scale`, gives the stored units per metre"
    scales = {result.scale for result in seen}
    if len(scales) == 1 and (scale := scales.pop()) is not None:
        likely = likely_scales(median, scale)[:2]
        hint += f", now {scale:g}" + "".join(f"; {usual} makes it {value:.3g} m" for usual, value in likely)
    where = f" for {dataset.domain} data" if dataset.domain else ""
    if all(result.is_metric for result in seen) and not low <= median <= high:
        lines.append(
            f"a median of {median:.3g} m is unusual{where} "
            f"(expected {low:g} to {high:g}): is the depth scale right?{hint}"
        )
    lines += [result.saturated for result in seen if result.saturated][:1]
    if unlike := sum(result.is_unlike for result in seen):
        lines.append(
            f"{unlike} of {len(seen)} images have another shape than their ground truth: do both show the same?"
        )
    return lines
