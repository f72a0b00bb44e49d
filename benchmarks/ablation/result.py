"""The result of a table as JSON: what was measured, unedited; tables, verdicts and pictures are derived from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.jobs import Job, prepare
from benchmarks.ablation.table import Cell, Pair, Table
from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically
from distilldepth.images.sources import SCENES
from distilldepth.machine import machine

FORMAT = "distilldepth ablation 1"


@dataclass(frozen=True)
class Run:
    """One trained student, or a model, and its scores."""

    cell: str
    seed: int | None
    datasets: Mapping[str, Mapping[str, Any]]
    """By name: `frames`, `names`, `metrics`, and `per_frame` by metric."""
    commit: str


@dataclass(frozen=True)
class Result:
    """What lies in the file."""

    metadata: Mapping[str, Any]
    table: Table
    runs: Sequence[Run]
    failures: Mapping[str, str]
    """What went wrong, by the name of the run."""

    def names(self) -> list[str]:
        """Return all that was scored: cells in the order of the table, then the baselines."""
        return list(dict.fromkeys([*(cell.name for cell in self.table.cells), *(run.cell for run in self.runs)]))

    def is_trained(self, cell: str) -> bool:
        """Whether a cell has seeds."""
        return any(run.cell == cell and run.seed is not None for run in self.runs)

    def groups(self) -> dict[str, list[str]]:
        """Return the datasets that are averaged together: scenes of each kind, and all sets of photographs."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.datasets))
        measured = [name for name in names if name not in SCENES]
        found = {name: [name] for name in SCENES if name in names}
        called = measured[0] if len(measured) == 1 else f"{len(measured)} sets of photographs"
        return found | ({called: measured} if measured else {})

    def grids(self, cell: str, datasets: Sequence[str], metric: str) -> tuple[list[int | None], list[np.ndarray]]:
        """Return the seeds of a cell, and for each dataset `(seeds, frames)`; what is no number is NaN."""
        runs = [run for run in self.runs if run.cell == cell]
        if not runs:
            return [], []
        per_frame = [[run.datasets[name]["per_frame"][metric] for run in runs] for name in datasets]
        return [run.seed for run in runs], [np.array(rows, dtype=np.float64) for rows in per_frame]


def collect(
    table: Table, jobs: Sequence[Job], failed: Mapping[Path, str], *, command: str, photographs: bool
) -> dict[str, Any]:
    """Return what the runs of a table come to, ready for JSON.

    Args:
        table: as it was run.
        jobs: its runs.
        failed: what went wrong, by folder.
        command: the command line, without the places of this machine.
        photographs: whether a folder of photographs was given.
    """
    results = []
    for job in jobs:
        if not job.scores.is_file():
            continue
        scored = read_json(job.scores)
        training = scored.get("training", {})
        results.append(
            {
                "cell": job.cell,
                "seed": job.seed,
                "digest": job.folder.name,
                "score": job.score,
                "training_s": training.get("seconds"),
                "scoring_s": scored["seconds"],
                "commit": training.get("commit") or scored["commit"],
                "findings": training.get("findings", []),
                "datasets": scored["datasets"],
            }
        )
    facts = {"format": FORMAT, "command": command, "protocol": table.protocol, "photographs": photographs}
    return {
        "metadata": facts | machine("cpu") | {"threads": 1},
        "table": asdict(table),
        "failures": {job.name: failed[job.folder].partition(" (see ")[0] for job in jobs if job.folder in failed},
        "results": results,
    }


def recall(jobs: Sequence[Job], folder: Path) -> int:
    """Take over what results say of runs that are not here, so that a run scored elsewhere is not run again.

    A run is the same if all that decides its numbers is, down to the digests of its teachers and of what it is scored
    on; the commit that it was scored with stays with it.

    Args:
        jobs: runs that are wanted.
        folder: where results lie; files that are none are passed over.

    Returns:
        How many runs were taken over.
    """
    wanted = {(job.folder.name, job.score): job for job in jobs if not job.scores.is_file()}
    taken = 0
    for path in sorted(folder.glob("*.json")) if wanted else ():
        try:
            read_result(path)
        except DistillDepthError:
            continue
        for row in read_json(path)["results"]:
            job = wanted.pop((row.get("digest"), row.get("score")), None)
            if job is None:
                continue
            scored = {"datasets": row["datasets"], "seconds": row.get("scoring_s"), "commit": row["commit"]}
            if job.seed is not None:
                known = {"seconds": row.get("training_s"), "commit": row["commit"], "findings": row.get("findings", [])}
                scored["training"] = known
            prepare(job)
            write_atomically(job.scores, json.dumps(scored) + "\n")
            taken += 1
    return taken


def write_result(values: Mapping[str, Any], path: Path) -> None:
    """Write the JSON file: a line for each run, so that a change of one is a change of one line."""
    head = {key: value for key, value in values.items() if key != "results"}
    rows = ",\n".join("  " + json.dumps(row) for row in values["results"])
    text = json.dumps(head, indent=1).removesuffix("\n}")
    write_atomically(path, f'{text},\n "results": [\n{rows}\n ]\n}}\n')


def read_result(path: Path) -> Result:
    """Read a JSON file.

    Raises:
        DistillDepthError: it cannot be read, or is no result of an ablation.
    """
    values = read_json(path)
    try:
        if values["metadata"]["format"] != FORMAT:
            raise ValueError
        written = dict(values["table"])
        cells = tuple(Cell(**cell) for cell in written.pop("cells"))
        pairs = tuple(Pair(**pair) for pair in written.pop("pairs"))
        table = Table(**{**written, "data": tuple(written["data"])}, cells=cells, pairs=pairs)
        runs = [Run(row["cell"], row["seed"], row["datasets"], str(row["commit"])) for row in values["results"]]
        result = Result(values["metadata"], table, runs, dict(values["failures"]))
        _check(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DistillDepthError(f"{path}: is no result of benchmarks.ablation, or damaged ({error!r})") from error
    return result


def _check(result: Result) -> None:
    """Raise ValueError unless texts are texts, and all runs were scored on the same frames."""
    table = result.table
    texts = [table.title, table.source, table.claim, table.notes, *(pair.paper for pair in table.pairs)]
    texts += [cell.name for cell in table.cells] + [run.cell for run in result.runs]
    if not all(isinstance(text, str) for text in texts) or not result.runs:
        raise ValueError("a text is missing")
    if not all(isinstance(cell.settings, dict) for cell in table.cells):
        raise ValueError("a cell has no settings")
    frames: dict[str, tuple[int, str]] = {}
    for run in result.runs:
        if run.datasets.keys() != result.runs[0].datasets.keys():
            raise ValueError("its runs were scored on different datasets")
        for name, dataset in run.datasets.items():
            known = frames.setdefault(name, (dataset["frames"], dataset["names"]))
            lengths = {len(np.array(values, dtype=np.float64)) for values in dataset["per_frame"].values()}
            if (dataset["frames"], dataset["names"]) != known or lengths != {dataset["frames"]}:
                raise ValueError(f"its runs were scored on different frames of {name}")
