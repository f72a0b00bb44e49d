"""Two evaluations beside each other: paired differences with intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distilldepth.documents import Record
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.rows import Metrics
from distilldepth.evaluate.statistics import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table


_UNORDERED = ("coverage",)
"""Starts of metrics of which neither more nor less is better."""
_SHOWN = ("abs_rel", "rmse", "delta1", "ause_abs_rel", "ause_rmse", "aurg_abs_rel", "aurg_rmse", "laplace_error")


@dataclass
class PairedMetric(Record):
    """One metric of two models over the samples in both."""

    a: float
    """Mean of the first."""
    b: float
    difference: float
    interval: list[float] | None
    """95 % bootstrap; None below two samples."""
    wins: float
    """Share of samples on which b is better; equal counts half."""


@dataclass
class ComparedDataset(Record):
    """Two evaluations on one dataset."""

    name: str
    frames: int
    """Samples in both."""
    only_a: list[str]
    """Names of samples in one only."""
    only_b: list[str]
    metrics: dict[str, PairedMetric]


@dataclass
class Comparison:
    """Two evaluations, sample by sample: differences are `b - a`."""

    a: str
    """Model of the first evaluation."""
    b: str
    protocol: str
    datasets: list[ComparedDataset]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "protocol": self.protocol,
            "difference": "b - a",
            "datasets": [dataset.to_dict() for dataset in self.datasets],
            "notes": self.notes,
        }


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations on the samples that both scored, paired by dataset and name.

    Pairing removes what both find hard alike, so that the interval of the difference is narrower than the intervals of
    the two means suggest.

    Args:
        a, b: evaluations under one protocol.

    Returns:
        The paired differences b - a with bootstrap intervals; an interval without 0 in it is a difference that another
        draw of images would show too.

    Raises:
        ValueError: the protocols differ, or there is no sample in both.
    """
    _check_same_protocol(a, b)
    _check_same_points(a, b)
    rows_a, rows_b = _metrics_by_sample(a), _metrics_by_sample(b)
    datasets = [
        _compare_dataset(name, rows_a.get(name, {}), rows_b.get(name, {})) for name in dict.fromkeys([*rows_a, *rows_b])
    ]
    if not any(dataset.frames for dataset in datasets):
        raise ValueError(
            "compare: evaluations must have samples in common, got "
            f"{', '.join(rows_a) or 'nothing'} and {', '.join(rows_b) or 'nothing'}"
        )
    notes = [
        f"{label} is not complete: {len(one.failures)} samples failed"
        for label, one in (("a", a), ("b", b))
        if one.failures
    ]
    return Comparison(a.metadata.model.name, b.metadata.model.name, a.protocol.name, datasets, notes)


Samples = dict[tuple[str, int], Metrics]
"""Metrics by name and by how often it came before: names may repeat in a manifest."""


def _compare_dataset(name: str, mine: Samples, theirs: Samples) -> ComparedDataset:
    both = [key for key in mine if key in theirs]
    metrics = {}
    for metric in [metric for metric in (mine[both[0]] if both else ()) if metric in theirs[both[0]]]:
        if metric.startswith(_UNORDERED):
            continue
        pairs = [(mine[key].get(metric), theirs[key].get(metric)) for key in both]
        if all(value is not None for pair in pairs for value in pair):
            metrics[metric] = _paired(np.asarray(pairs, dtype=np.float64), _higher_is_better(metric))
    return ComparedDataset(
        name=name,
        frames=len(both),
        only_a=[key[0] for key in mine if key not in theirs],
        only_b=[key[0] for key in theirs if key not in mine],
        metrics=metrics,
    )


def _check_same_protocol(a: Evaluation, b: Evaluation) -> None:
    if a.protocol.name != b.protocol.name:
        raise ValueError(
            f"compare: evaluations must have one protocol, got {a.protocol.name} and {b.protocol.name}; "
            "run one of them again with --protocol"
        )
    rules_b = {dataset.name: dataset.rules for dataset in b.datasets}
    for dataset in a.datasets:
        if dataset.rules and (other := rules_b.get(dataset.name)) and dataset.rules != other:
            mine, theirs = dataset.rules.to_dict(), other.to_dict()
            key = next(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
            raise ValueError(
                f"compare: evaluations must have one protocol; both say {a.protocol.name}, but on {dataset.name} "
                f"{key} is {mine.get(key)!r} and {theirs.get(key)!r}"
            )


def _check_same_points(a: Evaluation, b: Evaluation) -> None:
    """Raise unless both are of depth, or both completed the same points and were scored on the same pixels."""
    for key in ("points", "score", "seed"):
        mine, theirs = getattr(a.metadata, key), getattr(b.metadata, key)
        if mine != theirs:
            raise ValueError(
                f"compare: evaluations of completion must have been given the same points; {key} is {mine!r} and "
                f"{theirs!r}"
            )


def _metrics_by_sample(evaluation: Evaluation) -> dict[str, Samples]:
    """What was measured on each sample, by dataset."""
    rows: dict[str, Samples] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for sample in evaluation.samples:
        key = sample.dataset, sample.name
        rows.setdefault(sample.dataset, {})[sample.name, seen[key]] = sample.metrics
        seen[key] += 1
    return rows


def _paired(pairs: np.ndarray, higher_is_better: bool) -> PairedMetric:
    difference = pairs[:, 1] - pairs[:, 0]
    better = np.sign(difference) * (1 if higher_is_better else -1)
    low, high = bootstrap_interval(difference)
    return PairedMetric(
        a=float(pairs[:, 0].mean()),
        b=float(pairs[:, 1].mean()),
        difference=float(difference.mean()),
        interval=[low, high] if np.isfinite(low + high) else None,
        wins=float((better + 1).mean() / 2),
    )


def _higher_is_better(metric: str) -> bool:
    # Known by family, so that a stored result can be compared without importing torch for the list of names.
    return metric.startswith(("delta", "boundary_f1", "ordinal_accuracy", "aurg"))


def make_comparison_table(comparison: Comparison, metrics: tuple[str, ...] = _SHOWN) -> Table:
    """Return a rich table: a row per dataset and metric, with the difference, its interval and what that means."""
    from rich.table import Table

    table = Table(title=f"a = {comparison.a}, b = {comparison.b}; difference = b - a")
    for heading in ("dataset", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("frames", "a", "b", "difference", "95 % interval", "b better on"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for dataset in comparison.datasets:
        for metric in metrics:
            row = dataset.metrics.get(metric)
            if row is None:
                continue
            interval = row.interval
            table.add_row(
                dataset.name,
                metric,
                str(dataset.frames),
                f"{row.a:.3f}",
                f"{row.b:.3f}",
                f"{row.difference:+.3f}",
                "" if interval is None else f"{interval[0]:+.3f} .. {interval[1]:+.3f}",
                f"{row.wins:.0%}",
                _verdict(row, _higher_is_better(metric)),
            )
    return table


def _verdict(row: PairedMetric, higher_is_better: bool) -> str:
    if row.interval is None:
        return "too few samples"
    low, high = row.interval
    if low <= 0 <= high:
        return "no clear difference"
    return "b is better" if (low > 0) == higher_is_better else "a is better"
