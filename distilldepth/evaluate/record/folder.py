"""The folder of an evaluation: what is done so far, so that a killed one goes on, and the results in every format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distilldepth.datasets.truth import Dataset
from distilldepth.documents import read_json, read_json_lines
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import Protocol, Rules
from distilldepth.evaluate.record.result import RESULT, Evaluation
from distilldepth.evaluate.record.rows import ScoredSample
from distilldepth.evaluate.words import RESUME
from distilldepth.files import write_atomically
from distilldepth.folders import LOCK, FolderKind, claim_folder
from distilldepth.formats.table import STORED
from distilldepth.models.base import DepthModel
from distilldepth.models.digest import model_digest
from distilldepth.words import FLOATS

PROGRESS, RUN, PREDICTIONS = "progress.jsonl", "run.json", "predictions"
EVALUATION = FolderKind(
    "evaluation",
    "evaluate",
    (
        RESULT, PROGRESS, RUN, "samples.csv", "table.md", "table.tex", "report.html", "pictures/*.npz",
        f"{PREDICTIONS}/predictions.json",
    ),
)  # fmt: skip
"""What carries our mark, and all that an evaluation writes, but for saved maps, which bear the samples' names."""


def check_folder(folder: Path, resume: str, overwrite: bool) -> None:
    """Fail before the work if the folder must not be used.

    Raises:
        ValueError: a file, somebody else's folder, or one with results and neither resume nor overwrite.
        OSError: it cannot be written.
    """
    if resume and resume not in RESUME:
        raise ValueError(f"evaluate: --resume must be auto, got {resume!r}")
    if resume and overwrite:
        raise ValueError("evaluate: --resume and --overwrite contradict each other")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"evaluate: --out must be a folder, {folder} is a file")
    if not folder.is_dir() or all(item.name == LOCK for item in folder.iterdir()):
        from distilldepth.files import check_writable

        check_writable(folder)
        return
    if not (folder / RUN).is_file() and not EVALUATION.is_marked(folder):
        raise ValueError(f"evaluate: {folder} is not empty and not the folder of an evaluation; choose another --out")
    if not (resume or overwrite):
        raise ValueError(
            f"evaluate: {folder} is not empty; continue it with --resume auto, replace it with --overwrite, "
            "or choose another --out"
        )
    if overwrite:
        EVALUATION.check_clearable(folder, _saved_maps(folder))


def _saved_maps(folder: Path) -> list[Path]:
    """The maps that the evaluation in a folder has saved, by its own records; none if they cannot be read."""
    from distilldepth.evaluate.record.saved_maps import prediction_path

    try:
        form = read_json(folder / RUN).get("save_predictions")
        rows = read_json_lines(folder / PROGRESS)
    except DistillDepthError:
        return []
    if not isinstance(form, str) or form not in STORED:
        return []
    names = [(row.get("dataset"), row.get("name")) for row in rows]
    return [
        prediction_path(folder / PREDICTIONS, dataset, name, form)
        for dataset, name in names
        if isinstance(dataset, str) and isinstance(name, str)
    ]


def precision_of_run(folder: Path) -> str | None:
    """Return what the run in a folder computes in; None if there is no run, or its records do not say it."""
    try:
        precision = read_json(folder / RUN).get("precision")
    except DistillDepthError:
        return None
    return precision if precision in FLOATS else None


def describe_run(
    model: DepthModel,
    protocol: Protocol,
    rules: Mapping[str, Rules],
    datasets: Sequence[Dataset],
    settings: Mapping[str, str | float | None],
    *,
    quantity: str,
) -> dict[str, Any]:
    """Return what must be the same for two runs to be one: model with weights and what it predicts, protocol, samples,
    settings."""
    return {
        "model": f"{model.info.name} ({quantity}, weights {model_digest(model)[:16]})",
        "protocol": {
            "label": protocol.to_dict(),
            "rules": {dataset.name: rules[dataset.name].to_dict() for dataset in datasets},
        },
        "data": {
            dataset.name: {
                "samples": len(dataset.items),
                "field": dataset.field,
                "names": _digest("\0".join(item.name for item in dataset.items).encode("utf-8", "surrogateescape")),
            }
            for dataset in datasets
        },
        **settings,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


class RunFolder:
    """Scored samples, a line each, written as soon as they are known.

    A line that was cut off by a kill is dropped when the run goes on; its sample is scored again.
    """

    def __init__(self, folder: Path, run: dict[str, Any], *, resume: str, overwrite: bool) -> None:
        """Start or continue a run in a folder that `check_folder` let pass.

        Raises:
            ValueError: the run to be continued is another one.
            DistillDepthError: another process writes into the folder, its records are damaged, or with `overwrite`
                something in it is not ours.
        """
        self.folder = folder
        self._claim = ExitStack()
        self._claim.enter_context(claim_folder(folder, "evaluate"))
        try:
            self._begin(run, resume, overwrite)
        except BaseException:
            self._claim.close()
            raise

    def _begin(self, run: dict[str, Any], resume: str, overwrite: bool) -> None:
        folder = self.folder
        self.done: list[tuple[int, ScoredSample]] = []
        """The samples scored before, each with its place in the dataset."""
        # Through JSON, so that tuples and numbers compare as they were read back.
        run = json.loads(json.dumps(run))
        if overwrite and any(item.name != LOCK for item in folder.iterdir()):
            EVALUATION.clear(folder, _saved_maps(folder))
        progress = folder / PROGRESS
        if resume and (folder / RUN).is_file():
            self._check_same(run)
            self.done = _read_lines(progress) if progress.is_file() else []
            EVALUATION.mark(folder)
            write_atomically(progress, "".join(_line(*scored) for scored in self.done))
        else:
            EVALUATION.mark(folder)
            write_atomically(progress, b"")
            write_atomically(folder / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        self._file = progress.open("a", encoding="utf-8")

    def _check_same(self, run: dict[str, Any]) -> None:
        path = self.folder / RUN
        saved = read_json(path, remedy="start anew with --overwrite")
        for key in {**saved, **run}:
            old, new = saved.get(key), run.get(key)
            if old == new:
                continue
            while isinstance(old, dict) and isinstance(new, dict):
                part = next(part for part in {**old, **new} if old.get(part) != new.get(part))
                key, old, new = f"{key} {part}", old.get(part), new.get(part)
            raise ValueError(
                f"evaluate: {key} was {old!r} when {self.folder} was started and is {new!r} now; "
                "choose another --out, or start anew with --overwrite"
            )

    def append(self, samples: Sequence[tuple[int, ScoredSample]]) -> None:
        """Add scored samples, each with its place in the dataset; they are in the file when this returns."""
        self._file.write("".join(_line(*scored) for scored in samples))
        self._file.flush()

    def close(self) -> None:
        """Close the file of scored samples."""
        self._file.close()

    def release(self) -> None:
        """Let other processes write into the folder."""
        self._claim.close()

    def write_results(self, evaluation: Evaluation) -> None:
        """Write `result.json`, `samples.csv`, `table.md`, `table.tex` and `report.html`, each whole or not at all."""
        from distilldepth.evaluate.record import table
        from distilldepth.evaluate.record.page import write_report

        texts = {
            RESULT: json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "samples.csv": table.to_csv(evaluation),
            "table.md": table.to_markdown(evaluation),
            "table.tex": table.to_latex(evaluation),
        }
        for name, text in texts.items():
            write_atomically(self.folder / name, text)
        write_report(evaluation, self.folder)


def _line(index: int, sample: ScoredSample) -> str:
    return json.dumps({"index": index, **sample.to_dict()}, allow_nan=False) + "\n"


def _read_lines(path: Path) -> list[tuple[int, ScoredSample]]:
    """Return the scored samples of an earlier run.

    Raises:
        DistillDepthError: a line is not one that this module writes.
    """
    remedy = "start anew with --overwrite"
    rows = read_json_lines(path, remedy=remedy)
    for number, row in enumerate(rows, start=1):
        if not _is_row(row):
            raise DistillDepthError(f"{path}:{number}: is not a scored sample; {remedy}")
    return [(row["index"], ScoredSample.from_dict(row)) for row in rows]


def _is_row(row: dict[str, Any]) -> bool:
    """Whether a line has what `append` writes, with numbers where numbers belong."""
    texts = all(isinstance(row.get(key), str) for key in ("dataset", "name"))
    index = row.get("index")
    return (
        texts
        and isinstance(index, int)
        and not isinstance(index, bool)
        and all(
            isinstance(row.get(key), dict) and all(map(_is_number, row[key].values())) for key in ("metrics", "sums")
        )
        and all(_is_number(row.get(key)) for key in ("scale", "shift", "seconds", "ratio"))
        and isinstance(row.get("digest", ""), str)
        and isinstance(row.get("doubts", {}), dict)
        and all(isinstance(text, str) for text in row.get("doubts", {}).values())
        and all(
            isinstance(part, list) and len(part) == 5 and all(map(_is_number, part))
            for part in _list(row.get("error_by_depth"))
        )
        and _are_curves(row.get("sparsification"))
    )


def _are_curves(value: Any) -> bool:
    """Whether a line has two curves of numbers by error, or none."""
    return value is None or (
        isinstance(value, dict)
        and all(isinstance(both, list) and len(both) == 2 for both in value.values())
        and all(isinstance(line, list) and len(line) == len(both[0]) for both in value.values() for line in both)
        and all(part is not None and _is_number(part) for both in value.values() for line in both for part in line)
    )


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
