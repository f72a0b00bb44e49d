"""The result of an evaluation: numbers per frame and their means, to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import Protocol
from distilldepth.files import expand_user
from distilldepth.inference.batches import reason

_MOST_BYTES = 1 << 30
"""Of a result: a million frames take a few hundred megabytes."""


@dataclass
class Evaluation:
    """What an evaluation measured."""

    metadata: dict[str, Any]
    protocol: Protocol
    datasets: list[dict[str, Any]]
    """Per dataset: `name`, `kind`, `domain`, `field`, `frames` (scored), `failed`, `expected` (the benchmark's count or
    None), `metrics` (means over its frames), `intervals` (95 % bootstrap, `[low, high]` by metric), `pooled` (over all
    pixels of all frames), `rules` (the protocol's for this kind of dataset) and `doubts` (see `summarise_doubts`)."""
    mean: dict[str, float | None]
    """Unweighted mean over the datasets, by the protocol's aggregation."""
    samples: list[dict[str, Any]]
    """Per frame: `dataset`, `name`, `metrics`, `sums` (what pixel-pooled metrics are made of), `scale`, `shift`,
    `doubts` (what is wrong with the frame, text by kind), `ratio` (for metres: median predicted by median true), and in
    a run with a folder `error_by_depth`: from, to (metres), pixels, sum of |d - g| / g and pixels within a factor 1.25,
    for every bin of depth with pixels."""
    failures: list[dict[str, str]]
    """Frames that could not be scored: `dataset`, `name`, `error`."""
    notes: list[str]
    """What a reader of the numbers must know."""

    @property
    def complete(self) -> bool:
        """Whether every frame was scored."""
        return not self.failures

    @property
    def doubts(self) -> list[str]:
        """Sentences on what makes the numbers doubtful, with the dataset; empty where nothing was noticed."""
        return [f"{row['name']}: {doubt['text']}" for row in self.datasets for doubt in row.get("doubts", ())]

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
    path = expand_user(path)
    if path.is_dir():
        path = path / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a finished evaluation has it in its --out folder")
    try:
        evaluation = Evaluation.from_dict(read_json(path, limit=_MOST_BYTES))
        _check_parts(evaluation)
        return evaluation
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DistillDepthError(f"{path}: is not the result of an evaluation ({reason(error)})") from error


def _check_parts(evaluation: Evaluation) -> None:
    """Raise ValueError unless names are texts and metrics are numbers: what tables and comparisons rely on."""

    def is_table(values: Any) -> bool:
        return isinstance(values, dict) and all(
            value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            for value in values.values()
        )

    def has_texts(row: Any, *names: str) -> bool:
        return isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names)

    good = {
        "metadata": isinstance(evaluation.metadata, dict) and has_texts(evaluation.metadata.get("model"), "name"),
        "mean": is_table(evaluation.mean),
        "notes": isinstance(evaluation.notes, list) and all(isinstance(note, str) for note in evaluation.notes),
        "datasets": isinstance(evaluation.datasets, list)
        and all(has_texts(row, "name") and is_table(row.get("metrics", {})) for row in evaluation.datasets)
        and all(has_texts(doubt, "text") for row in evaluation.datasets for doubt in row.get("doubts", ())),
        "samples": isinstance(evaluation.samples, list)
        and all(has_texts(row, "dataset", "name") and is_table(row.get("metrics")) for row in evaluation.samples),
        "failures": isinstance(evaluation.failures, list)
        and all(has_texts(row, "dataset", "name", "error") for row in evaluation.failures),
    }
    wrong = [name for name, is_good in good.items() if not is_good]
    if wrong:
        raise ValueError(f"{wrong[0]} does not hold what an evaluation writes")


RESULT = "result.json"
