"""The benchmarks by name, and one way to open them."""

from __future__ import annotations

import os

from distilldepth.datasets import diode, driving_stereo, eth3d, kitti_eigen, kitti_official, moge_bundle, nyuv2, scannet
from distilldepth.datasets.archive import Root
from distilldepth.datasets.samples import Benchmark, Request
from distilldepth.datasets.splits import find_splits
from distilldepth.datasets.truth import Dataset, Item
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.files import expand_user

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (nyuv2, kitti_eigen, kitti_official, eth3d, scannet, diode, driving_stereo, moge_bundle)
}


def open_benchmark(
    name: str,
    root: str | os.PathLike,
    *,
    split: str | os.PathLike | None = None,
    field: str | None = None,
    preferred_field: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    strict_count: bool = True,
    training: bool = False,
) -> Dataset:
    """Open a benchmark.

    Args:
        name: a key of `BENCHMARKS`.
        root: the folder with its files, one of its tar files, or a container (NYU Depth v2).
        split: its list, or a folder with lists of the usual names; None to look for it in the root.
        field: kind of ground truth, where there are several (`raw`, `filled` of NYU Depth v2); None for the first.
        preferred_field: the same, but not missed where there is one kind only.
        subset: part of it, a key of its `counts`; None for the first.
        limit: only the first so many samples.
        strict_count: refuse another number of samples than the benchmark has, unless there is a limit.
        training: open its training images, in place of those that are scored.

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
    default = "train" if training and "train" in benchmark.counts else next(iter(benchmark.counts))
    subset = subset or default
    if subset not in benchmark.counts:
        choices = [choice for choice in benchmark.counts if choice]
        hint = did_you_mean(subset, choices) if choices else "; it has no parts"
        raise UsageError(f"open_benchmark: {name} has no part {subset!r}{hint}")
    opened = Root(root)
    usual = benchmark.training if training else benchmark.splits
    splits = find_splits(opened, split, usual)
    if training and usual and not splits:
        raise DistillDepthError(
            f"{opened}: {name} needs the list of its training images; put {' or '.join(usual)} there, or name one with "
            "--split"
        )
    split_path = None if split is None else expand_user(split)
    find = (training and benchmark.find_training) or benchmark.find
    found = find(Request(opened, splits, subset, field, benchmark, split_path, preferred_field))
    expected = None if found.has_own_count else benchmark.counts[subset]
    count = len(found.samples)
    if strict_count and limit is None and expected is not None and count != expected:
        hint = f" ({benchmark.count_hint})" if benchmark.count_hint else ""
        raise DistillDepthError(
            f"{opened}: found {count} samples of {name}{f':{subset}' if subset != default else ''}, which has "
            f"{expected}{hint}; {'; '.join(found.notes)}; complete it, or score what is there with --limit {count}"
        )
    title = name if subset == default and name != "moge-bundle" else f"{name}-{subset}"
    items = [Item(title, sample.name, sample.read, sample.right) for sample in found.samples[:limit]]
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
