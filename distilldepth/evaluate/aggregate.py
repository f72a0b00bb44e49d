"""From the scores of samples to those of a dataset, and to the mean over datasets."""

from __future__ import annotations

import math
from typing import Any

from distilldepth.datasets.truth import Dataset
from distilldepth.evaluate.doubts import summarise_doubts
from distilldepth.evaluate.protocol import Rules
from distilldepth.evaluate.score import pool
from distilldepth.evaluate.statistics import mean_intervals


def summarise(dataset: Dataset, rows: list[dict[str, Any]], rules: Rules, quantity: str) -> dict[str, Any]:
    """Return the numbers of one dataset as they stand in `Evaluation.datasets`, from the rows of its scored frames."""
    metrics = [row["metrics"] for row in rows]
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "domain": dataset.domain,
        "field": dataset.field,
        "frames": len(rows),
        "expected": dataset.expected,
        "failed": len(dataset.items) - len(rows),
        "metrics": mean_metrics(metrics),
        "intervals": mean_intervals(metrics),
        "pooled": _pool([row["sums"] for row in rows]),
        "rules": rules.to_dict(),
        "doubts": summarise_doubts(rows, quantity, rules),
    }


def mean_metrics(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each metric; one value that is not finite makes it None rather than a mean of fewer frames."""
    names = rows[0].keys() if rows else ()
    means: dict[str, float | None] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        finite = all(value is not None and math.isfinite(value) for value in values)
        means[name] = math.fsum(values) / len(values) if finite else None
    return means


def _pool(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Metrics over all pixels of all frames; nothing if a frame has a sum that is not finite."""
    if not rows or any(value is None for row in rows for value in row.values()):
        return {}
    pooled = pool({name: math.fsum(row[name] for row in rows) for name in rows[0]})
    return {name: value if math.isfinite(value) else None for name, value in pooled.items()}


def headline(dataset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics of a dataset by its protocol's aggregation, and the intervals that belong to them.

    Intervals are of per-image means, so there are none beside pixel-pooled numbers.
    """
    if dataset.get("rules", {}).get("aggregation") == "pixel-pooled" and dataset.get("pooled"):
        return {**dataset["metrics"], **dataset["pooled"]}, {}
    return dataset["metrics"], dataset.get("intervals") or {}
