"""The result of an evaluation: numbers per frame and their means, to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import Protocol
from distilldepth.evaluate.record.rows import Failure, Metadata, Metrics, ScoredDataset, ScoredSample
from distilldepth.files import expand_user
from distilldepth.inference.batches import reason

RESULT = "result.json"
_MOST_BYTES = 1 << 30
"""Of a result: a million frames take a few hundred megabytes."""


@dataclass
class Evaluation:
    """What an evaluation measured."""

    metadata: Metadata
    protocol: Protocol
    datasets: list[ScoredDataset]
    mean: Metrics
    """Unweighted mean over the datasets, by the protocol's aggregation."""
    samples: list[ScoredSample]
    failures: list[Failure]
    notes: list[str]
    """What a reader of the numbers must know."""

    @property
    def complete(self) -> bool:
        """Whether every frame was scored."""
        return not self.failures

    @property
    def doubts(self) -> list[str]:
        """Sentences on what makes the numbers doubtful, with the dataset; empty where nothing was noticed."""
        return [f"{dataset.name}: {doubt.text}" for dataset in self.datasets for doubt in dataset.doubts]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; None stands for numbers that are not finite."""
        return {
            "metadata": self.metadata.to_dict(),
            "protocol": self.protocol.to_dict(),
            "complete": self.complete,
            "notes": self.notes,
            "datasets": [dataset.to_dict() for dataset in self.datasets],
            "mean": self.mean,
            "samples": [sample.to_dict() for sample in self.samples],
            "failures": [failure.to_dict() for failure in self.failures],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `to_dict` was called on.

        Raises:
            ValueError: it lacks something, or holds something else.
        """
        try:
            _check_parts(values)
            return cls(
                metadata=Metadata.from_dict(values["metadata"]),
                protocol=Protocol.from_dict(values["protocol"]),
                datasets=[ScoredDataset.from_dict(row) for row in values["datasets"]],
                mean=values["mean"],
                samples=[ScoredSample.from_dict(row) for row in values["samples"]],
                failures=[Failure(row["dataset"], row["name"], row["error"]) for row in values["failures"]],
                notes=values["notes"],
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
        return Evaluation.from_dict(read_json(path, limit=_MOST_BYTES))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DistillDepthError(f"{path}: is not the result of an evaluation ({reason(error)})") from error


def _check_parts(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless names are texts and metrics are numbers: what tables and comparisons rely on."""

    def is_table(value: Any) -> bool:
        return isinstance(value, dict) and all(
            number is None or (isinstance(number, int | float) and not isinstance(number, bool))
            for number in value.values()
        )

    def has_texts(row: Any, *names: str) -> bool:
        return isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names)

    def are(name: str, *texts: str) -> bool:
        return isinstance(values[name], list) and all(has_texts(row, *texts) for row in values[name])

    good = {
        "metadata": isinstance(values["metadata"], dict) and has_texts(values["metadata"].get("model"), "name"),
        "mean": is_table(values["mean"]),
        "notes": isinstance(values["notes"], list) and all(isinstance(note, str) for note in values["notes"]),
        "datasets": are("datasets", "name")
        and all(is_table(row.get("metrics", {})) for row in values["datasets"])
        and all(has_texts(doubt, "text") for row in values["datasets"] for doubt in row.get("doubts", ())),
        "samples": are("samples", "dataset", "name") and all(is_table(row.get("metrics")) for row in values["samples"]),
        "failures": are("failures", "dataset", "name", "error"),
    }
    wrong = [name for name, is_good in good.items() if not is_good]
    if wrong:
        raise ValueError(f"{wrong[0]} does not hold what an evaluation writes")
