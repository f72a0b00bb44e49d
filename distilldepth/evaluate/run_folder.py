"""The folder of an evaluation: what is done so far, so that a killed one goes on, and the results in every format."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilldepth.data.truth import Dataset
from distilldepth.files import write_atomically
from distilldepth.models.base import DepthModel

if TYPE_CHECKING:
    from distilldepth.evaluate.result import Evaluation

RESULT, PROGRESS, RUN = "result.json", "progress.jsonl", "run.json"
RESUME = ("", "auto")

_SAMPLED_WEIGHTS = 64
"""Numbers of each weight tensor that tell one model from another; all of a large one would take seconds."""


def check_folder(folder: Path, resume: str, overwrite: bool) -> None:
    """Fail before the work if the folder must not be used.

    Raises:
        ValueError: a file, somebody else's folder, or one with results and neither resume nor overwrite.
        OSError: it cannot be written.
    """
    if resume not in RESUME:
        raise ValueError(f"evaluate: --resume must be auto, got {resume!r}")
    if resume and overwrite:
        raise ValueError("evaluate: --resume and --overwrite contradict each other")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"evaluate: --out must be a folder, {folder} is a file")
    if not folder.is_dir() or not any(folder.iterdir()):
        from distilldepth.predict.writers import check_writable

        check_writable(folder)
        return
    if not (folder / RUN).is_file():
        raise ValueError(f"evaluate: {folder} is not empty and not the folder of an evaluation; choose another --out")
    if not (resume or overwrite):
        raise ValueError(
            f"evaluate: {folder} is not empty; continue it with --resume auto, replace it with --overwrite, "
            "or choose another --out"
        )


def describe_run(
    model: DepthModel, protocol: dict[str, Any], datasets: Sequence[Dataset], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what must be the same for two runs to be one: model with weights, protocol, samples, settings."""
    return {
        "model": f"{model.info.name} ({model.info.quantity}, weights {_weights_digest(model)})",
        "protocol": protocol,
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


def _weights_digest(model: DepthModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        step = max(len(flat) // _SAMPLED_WEIGHTS, 1)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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
        """
        self.folder = folder
        self.done: list[dict[str, Any]] = []
        """The samples scored before: `index` in the dataset, and the rest as in `Evaluation.samples`."""
        # Through JSON, so that tuples and numbers compare as they were read back.
        run = json.loads(json.dumps(run))
        if overwrite and (folder / RUN).is_file():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        progress = folder / PROGRESS
        if resume and (folder / RUN).is_file():
            self._check_same(run)
            self.done = _read_lines(progress) if progress.is_file() else []
            write_atomically(progress, "".join(_line(row) for row in self.done).encode())
        else:
            write_atomically(progress, b"")
            write_atomically(folder / RUN, (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode())
        self._file = progress.open("a", encoding="utf-8")

    def _check_same(self, run: dict[str, Any]) -> None:
        path = self.folder / RUN
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"evaluate: {path} cannot be read; start anew with --overwrite") from error
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

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add scored samples; they are in the file when this returns."""
        self._file.write("".join(map(_line, rows)))
        self._file.flush()

    def close(self) -> None:
        """Close the file of scored samples."""
        self._file.close()

    def write_results(self, evaluation: Evaluation) -> None:
        """Write `result.json`, `samples.csv`, `table.md`, `table.tex` and `report.html`, each whole or not at all."""
        from distilldepth.evaluate import report, table

        texts = {
            RESULT: json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "samples.csv": table.to_csv(evaluation),
            "table.md": table.to_markdown(evaluation),
            "table.tex": table.to_latex(evaluation),
        }
        for name, text in texts.items():
            write_atomically(self.folder / name, text.encode("utf-8", "backslashreplace"))
        report.write_report(evaluation, self.folder)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    # The last piece is what follows the last line break: nothing, or a line that was cut off.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"evaluate: {path}:{number}: is damaged; start anew with --overwrite") from None
    return rows
