"""The result of an evaluation: numbers per frame and their means, to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.data.truth import Dataset
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import Protocol, Rules
from distilldepth.evaluate.run_folder import RESULT
from distilldepth.evaluate.score import pool
from distilldepth.evaluate.statistics import mean_intervals
from distilldepth.inference import reason


@dataclass
class Evaluation:
    """What an evaluation measured."""

    metadata: dict[str, Any]
    protocol: Protocol
    datasets: list[dict[str, Any]]
    """Per dataset: `name`, `kind`, `domain`, `field`, `frames` (scored), `failed`, `expected` (the benchmark's count or
    None), `metrics` (means over its frames), `intervals` (95 % bootstrap, `[low, high]` by metric), `pooled` (over all
    pixels of all frames) and `rules` (the protocol's for this kind of dataset)."""
    mean: dict[str, float | None]
    """Unweighted mean over the datasets, by the protocol's aggregation."""
    samples: list[dict[str, Any]]
    """Per frame: `dataset`, `name`, `metrics`, `sums` (what pixel-pooled metrics are made of), `scale`, `shift`, and
    in a run with a folder `error_by_depth`: from, to (metres), pixels, sum of |d - g| / g and pixels within a factor
    1.25, for every bin of depth with pixels."""
    failures: list[dict[str, str]]
    """Frames that could not be scored: `dataset`, `name`, `error`."""
    notes: list[str]
    """What a reader of the numbers must know."""

    @property
    def complete(self) -> bool:
        """Whether every frame was scored."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; None stands for numbers that are not finite."""
        return {
            "metadata": self.metadata,
            "protocol": self.protocol.to_dict(),
            "complete": self.complete,
            "notes": self.notes,
            "datasets": self.datasets,
            "mean": self.mean,
            "samples": self.samples,
            "failures": self.failures,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `to_dict` was called on.

        Raises:
            ValueError: it lacks something.
        """
        try:
            return cls(
                metadata=values["metadata"],
                protocol=Protocol.from_dict(values["protocol"]),
                **{key: values[key] for key in ("datasets", "mean", "samples", "failures", "notes")},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"Evaluation: values must be those of to_dict, and lack {error}") from error


def read_evaluation(path: str | Path) -> Evaluation:
    """Read a `result.json`, or the one in the folder of a run.

    Args:
        path: the file, or the folder that `evaluate --out` wrote.

    Returns:
        What was measured, with every sample.

    Raises:
        FileNotFoundError: no such file.
        DistillDepthError: it is not the result of an evaluation.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a finished evaluation has it in its --out folder")
    try:
        return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DistillDepthError(f"{path}: is not the result of an evaluation ({reason(error)})") from error


def summarise(dataset: Dataset, rows: list[dict[str, Any]], rules: Rules) -> dict[str, Any]:
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
