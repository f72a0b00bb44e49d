"""Maps of many photographs become files: what may be replaced, what is written with them, what became of each."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from distilldepth.errors import DistillDepthError
from distilldepth.files import check_writable
from distilldepth.formats.options import Picture, WriteOptions
from distilldepth.formats.table import FORMATS
from distilldepth.inference.batches import FAILURES, LoadedImage, reason, without_relief
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models.base import ModelInfo
from distilldepth.outputs.origin import Origin, Outputs, State
from distilldepth.outputs.plan import Job

EXISTING = ("refuse", "skip", "overwrite")
"""What may be done with outputs that are there."""


class Read(Protocol):
    """What was read with a photograph."""

    digest: str
    """Of the photograph's bytes, and of whatever else decides its map."""


@dataclass(frozen=True)
class OutputOptions(WriteOptions, InferenceOptions):
    """How a model is run, and what the files look like."""


@dataclass
class Report:
    """What became of the photographs of a run."""

    model: str
    quantity: str
    licence: str
    device: str
    notes: tuple[str, ...] = ()
    """What a user must be told about the model."""
    written: list[dict[str, Any]] = field(default_factory=list)
    """Per image: `source`, `height`, `width`, `resize_policy`, `outputs` by format."""
    skipped: list[str] = field(default_factory=list)
    """Sources whose outputs were there already and would come out the same."""
    remade: dict[str, int] = field(default_factory=dict)
    """How many images had outputs that were replaced all the same, by what these were."""
    clipped: dict[str, int] = field(default_factory=dict)
    """Pixels that a fixed scale of PNGs could not hold, by source."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Source and what was wrong with it."""
    constant: list[str] = field(default_factory=list)
    """Sources whose maps are constant; see `without_relief`."""
    swapped: list[str] = field(default_factory=list)
    """Left views of pairs that look exchanged; see `are_swapped`."""
    seconds: float = 0.0

    def sort(self, sources: list[str]) -> None:
        """Bring what was noted as it ended into the order of the sources."""
        order = {source: index for index, source in enumerate(sources)}
        self.written.sort(key=lambda entry: order[entry["source"]])
        self.constant.sort(key=order.__getitem__)
        self.swapped.sort(key=order.__getitem__)
        self.clipped = dict(sorted(self.clipped.items(), key=lambda entry: order[entry[0]]))
        self.failures.sort(key=lambda failure: order[failure[0]])

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "model": self.model,
            "quantity": self.quantity,
            "licence": self.licence,
            "device": self.device,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "written": self.written,
            "constant": self.constant,
            **({"swapped": self.swapped} if self.swapped else {}),
            "skipped": self.skipped,
            "remade": self.remade,
            "clipped": self.clipped,
            "failures": [{"source": source, "error": error} for source, error in self.failures],
        }


@dataclass(frozen=True)
class Maker:
    """What the outputs of a run have in common."""

    model_sha256: str
    settings: dict[str, Any]
    """Of how the model is run."""
    options: WriteOptions

    @classmethod
    def of(cls, estimator: Estimator, options: OutputOptions, digest: str, **settings: Any) -> Maker:
        """Return what the outputs of an estimator have in common.

        Args:
            estimator: that runs.
            options: with which it runs.
            digest: of its weights, see `model_digest`.
            settings: what else decides the maps.
        """
        preprocessing = estimator.model.preprocessing
        common = {
            "size": options.size or (None if estimator.model.own_size else preprocessing.size),
            "resize_policy": options.resize_policy or preprocessing.resize_policy,
            "precision": estimator.precision,
        }
        return cls(digest, common | settings, options)

    def origin(self, form: str, source_sha256: str) -> Origin:
        """Return what decides an output of a format."""
        settings = {**self.settings, **self.options.settings(FORMATS[form].options)}
        return Origin(self.model_sha256, source_sha256, json.dumps(settings, sort_keys=True))


@dataclass(frozen=True)
class Written:
    """The files of one image."""

    entry: dict[str, Any]
    """As the report has it."""
    constant: bool
    clipped: int


@dataclass(frozen=True)
class Writer:
    """Writes the files of one image; runs in a worker thread."""

    info: ModelInfo
    """Who made the maps."""
    resize_policy: str
    """Of the model; an image may have another."""
    maker: Maker
    outputs: Outputs
    describe: Callable[[Any], dict[str, Any]] = lambda read: {}
    """What the report says besides of an image, from what was read with it; texts of it also go into the files."""

    def __call__(self, loaded: LoadedImage[Job, Any], values: np.ndarray) -> Written:
        info, job = self.info, loaded.item
        policy = loaded.policy or self.resize_policy
        more = self.describe(loaded.extra)
        if not np.isfinite(values).any():
            raise DistillDepthError("the model gave no finite value; its weights are damaged or the precision too low")
        texts = {
            "model": info.name,
            "licence": info.licence,
            "resize_policy": policy,
            "source": job.source.name,
            **{key: text for key, text in more.items() if isinstance(text, str)},
        }
        clipped = 0
        for name, path in job.outputs.items():
            origin = self.maker.origin(name, loaded.extra.digest)
            held = FORMATS[name].of
            shown = loaded.maps[held].numpy() if held else values
            picture = Picture(shown, info.quantity, loaded.image, texts, asdict(origin))
            clipped += FORMATS[name].write(path, picture, self.maker.options)
            if not FORMATS[name].says_origin:
                self.outputs.add(path, origin)
        entry = {
            "source": str(job.source),
            "height": values.shape[0],
            "width": values.shape[1],
            "resize_policy": policy,
            "outputs": {name: str(path) for name, path in job.outputs.items()},
            **more,
        }
        return Written(entry, bool(without_relief(torch.from_numpy(values)[None])), clipped)


@dataclass(frozen=True)
class Run:
    """The work, and what becomes of every image."""

    estimator: Estimator
    write: Writer
    report: Report
    advance: Callable[[int], None]
    read: Callable[[Job], tuple[np.ndarray, Any]]
    """Gives an image, and what a `Read` has at least."""

    def work(self, jobs: list[Job]) -> None:
        """Run the model and write; files are written while the model computes."""
        pending: deque[tuple[Job, Future[Written]]] = deque()
        with self.estimator as estimator:
            for batch in estimator.run(jobs, self.read, self._fail):
                for loaded, values in batch:
                    loaded.maps = {name: maps.cpu() for name, maps in loaded.maps.items()}
                    pending.append((loaded.item, estimator.submit(self.write, loaded, values.cpu().numpy())))
                # Bounded, so that a slow disk does not fill memory with maps that wait to be written.
                while len(pending) > 2 * estimator.options.batch_size:
                    self._finish(*pending.popleft())
            while pending:
                self._finish(*pending.popleft())

    def _fail(self, job: Job, error: BaseException) -> None:
        self.report.failures.append((str(job.source), reason(error, job.source)))
        self.advance(1)

    def _finish(self, job: Job, writing: Future[Written]) -> None:
        try:
            written = writing.result()
        except FAILURES as error:
            self._fail(job, error)
            return
        self.report.written.append(written.entry)
        if written.constant:
            self.report.constant.append(str(job.source))
        if written.clipped:
            self.report.clipped[str(job.source)] = written.clipped
        self.advance(1)


def open_outputs(jobs: list[Job], out: Path, is_file: bool, existing: str, command: str) -> Outputs:
    """Return what is in the folder of the outputs, once it is known that they may and can be written there.

    Args:
        jobs: what is to be made.
        out: a file, or the folder of all.
        is_file: which of them.
        existing: one of `EXISTING`.
        command: which makes the outputs.

    Raises:
        ValueError: outputs exist already under `refuse`, of which a single file that the command made is replaced.
        OSError: it cannot be written there.
    """
    folder = out.parent if is_file else out
    check_writable(folder)
    if existing == "refuse" and not is_file:
        _refuse_existing(jobs)
    outputs = Outputs(folder, command)
    if existing == "refuse" and is_file:
        _refuse_foreign(jobs, outputs)
    return outputs


def _refuse_existing(jobs: list[Job]) -> None:
    there = [path for job in jobs for path in job.outputs.values() if os.path.lexists(path)]
    if there:
        count = "this output exists" if len(there) == 1 else f"this and {len(there) - 1} more outputs exist"
        raise ValueError(f"{there[0]}: {count} already; add --skip-existing or --overwrite")


def _refuse_foreign(jobs: list[Job], outputs: Outputs) -> None:
    """A file that the command made is made again; any other may be a photograph."""
    for path in (path for job in jobs for path in job.outputs.values() if path.is_file()):
        if not outputs.made(path):
            raise ValueError(
                f"{path}: exists and was not made by {outputs.command}; take another name, or add --overwrite"
            )


def leave_out_what_is_there(
    jobs: list[Job], maker: Maker, outputs: Outputs, report: Report, digest: Callable[[Job], str]
) -> list[Job]:
    """Return the jobs to do; notes in the report the others, and which are done again.

    Args:
        jobs: all.
        maker: of the outputs.
        outputs: what is there.
        report: of the run.
        digest: gives that of all that a job reads.
    """
    todo: list[Job] = []
    remade: Counter[str] = Counter()
    for job in jobs:
        source = str(job.source)
        if not any(map(os.path.lexists, job.outputs.values())):
            todo.append(job)
            continue
        try:
            source_digest = digest(job)
        except FAILURES:
            source_digest = ""  # It cannot be read, which is found when it is.
        states = {path: outputs.state(path, maker.origin(name, source_digest)) for name, path in job.outputs.items()}
        kept = [path for path, state in states.items() if state in (State.FOREIGN, State.CHANGED)]
        if kept:
            was = states[kept[0]].value.format(command=outputs.command)
            report.failures.append((source, f"{kept[0]} was {was} and stays; move it, or use --overwrite"))
        elif set(states.values()) == {State.CURRENT}:
            report.skipped.append(source)
        else:
            remade.update({state.value for state in states.values()} - {State.MISSING.value, State.CURRENT.value})
            todo.append(job)
    report.remade = dict(remade)
    return todo
