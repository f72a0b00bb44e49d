"""From the scores of samples to those of a dataset, and to the mean over datasets."""

from __future__ import annotations

import math

from distilldepth.datasets.truth import Dataset
from distilldepth.evaluate.doubts import summarise_doubts
from distilldepth.evaluate.protocol import Rules
from distilldepth.evaluate.record.rows import Metrics, ScoredDataset, ScoredSample
from distilldepth.evaluate.score import pool
from distilldepth.evaluate.statistics import mean_intervals


def summarise(dataset: Dataset, samples: list[ScoredSample], rules: Rules, quantity: str) -> ScoredDataset:
    """Return the numbers of one dataset from those of its scored frames."""
    metrics = [sample.metrics for sample in samples]
    return ScoredDataset(
        name=dataset.name,
        kind=dataset.kind,
        domain=dataset.domain,
        field=dataset.field,
        frames=len(samples),
        expected=dataset.expected,
        failed=len(dataset.items) - len(samples),
        metrics=mean_metrics(metrics),
        intervals=mean_intervals(metrics),
        pooled=_pool([sample.sums for sample in samples]),
        rules=rules,
        doubts=summarise_doubts(samples, quantity, rules),
    )


def mean_metrics(rows: list[Metrics]) -> Metrics:
    """Return the mean of each metric; one value that is not finite makes it None rather than a mean of fewer frames."""
    names = rows[0].keys() if rows else ()
    means: Metrics = {}
    for name in names:
        values = [row.get(name) for row in rows]
        known = [value for value in values if value is not None and math.isfinite(value)]
        means[name] = math.fsum(known) / len(known) if len(known) == len(values) else None
    return means


def _pool(rows: list[Metrics]) -> Metrics:
    """Metrics over all pixels of all frames; nothing if a frame has a sum that is not finite."""
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in (rows[0] if rows else ())}
    if not columns or any(len(values) < len(rows) for values in columns.values()):
        return {}
    pooled = pool({name: math.fsum(values) for name, values in columns.items()})
    return {name: value if math.isfinite(value) else None for name, value in pooled.items()}
