"""`predict_files`: from names to written depth maps."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth.errors import DistillDepthError
from distilldepth.files import check_writable
from distilldepth.formats.colormaps import colorize
from distilldepth.formats.options import Picture, WriteOptions
from distilldepth.formats.png import check_png_scale
from distilldepth.formats.table import FORMATS
from distilldepth.images.decode import check_any_readable, read_image
from distilldepth.inference.batches import FAILURES, LoadedImage, reason, without_relief
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models import load_model
from distilldepth.models.base import DepthModel
from distilldepth.models.digest import model_digest
from distilldepth.predict.origin import Origin, Outputs, State, digest_of
from distilldepth.predict.plan import Job, plan_jobs


@dataclass
class PredictReport:
    """What a run of `predict_files` did."""

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
    seconds: float = 0.0

    def sort(self, sources: list[str]) -> None:
        """Bring what was noted as it ended into the order of the sources."""
        order = {source: index for index, source in enumerate(sources)}
        self.written.sort(key=lambda entry: order[entry["source"]])
        self.constant.sort(key=order.__getitem__)
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
            "skipped": self.skipped,
            "remade": self.remade,
            "clipped": self.clipped,
            "failures": [{"source": source, "error": error} for source, error in self.failures],
        }


@dataclass(frozen=True)
class PredictOptions(WriteOptions, InferenceOptions):
    """How the model is run, and what the files look like."""


def predict_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | DepthModel = "distilldepth-mini",
    formats: Sequence[str] | None = None,
    existing: str = "refuse",
    options: PredictOptions | None = None,
    offline: bool = False,
    start: Callable[[DepthModel, int], Callable[[int], None]] | None = None,
    **changes: Any,
) -> PredictReport:
    """Predict depth for files and write the results.

    Args:
        inputs: a file, folder, glob pattern or .txt list, or several.
        out: a .png, .npy or .ply file for one image, else a folder; see `plan_jobs`.
        model: a model, or what `load_model` takes.
        formats: of `png16`, `color`, `npy`, `ply`; None for the one that `out` says.
        existing: what to do with outputs that exist: `refuse` before any work (a single `out` file that predict made is
            replaced all the same), `overwrite`, or `skip` images of which all are what would be written again: made by
            the same weights, from the same photograph, with the same options (see `Origin`). Others of this package are
            made again; a file that is not known to be is left, and the image is a failure.
        options: size, device, colours and so on, see `InferenceOptions` and `WriteOptions`; None for the usual ones.
        offline: never touch the network for the model.
        start: called with the model and the number of images when the work begins; the function it returns is told how
            many more images are done.
        changes: options given by name, for example `predict_files("photos", "depth", formats=["npy"], size=518)`.

    Returns:
        The report. Images that failed are listed there and raise nothing.

    Raises:
        FileNotFoundError: no input found.
        ValueError: names or options that contradict each other, or existing outputs under `refuse`.
        OSError: the output cannot be written.
        DistillDepthError: the model cannot be loaded, or none of several images can be read.
        TypeError: no such option.
    """
    options = (options or PredictOptions()).changed(changes, "predict_files")
    if existing not in ("refuse", "skip", "overwrite"):
        raise ValueError(f"predict_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if options.batch_size < 1:
        raise ValueError(f"predict_files: batch_size must be at least 1, got {options.batch_size}")
    jobs, is_file = plan_jobs([inputs] if isinstance(inputs, (str, Path)) else list(inputs), out, formats)
    # A wrong colour map or range is one error here, not one per image.
    colorize(np.zeros((1, 1)), "disparity", colormap=options.colormap, percentiles=options.percentiles)
    check_png_scale(options.png_scale)
    outputs = _open_outputs(jobs, Path(out), is_file, existing)
    settled = options.settle(model)
    check_any_readable([job.source for job in jobs])
    estimator = Estimator(model if isinstance(model, DepthModel) else load_model(model, offline=offline), settled)
    if options.size is not None or options.resize_policy is not None:
        estimator.check_size()
    info = estimator.model.info
    check_png_scale(options.png_scale, info.quantity)
    report = PredictReport(info.name, info.quantity, info.licence, str(estimator.device), info.notes)
    maker = _Maker.of(estimator, options)
    todo = _leave_out_what_is_there(jobs, maker, outputs, report) if existing == "skip" else jobs
    advance = start(estimator.model, len(todo)) if start is not None else lambda count: None
    began = time.perf_counter()
    _Run(estimator, _Writer(estimator.model, maker, outputs), report, advance).predict(todo)
    report.seconds = time.perf_counter() - began
    report.sort([str(job.source) for job in jobs])
    return report


@dataclass(frozen=True)
class _Maker:
    """What the outputs of a run have in common."""

    model_sha256: str
    settings: dict[str, Any]
    """Of how the model is run."""
    options: WriteOptions

    @classmethod
    def of(cls, estimator: Estimator, options: PredictOptions) -> _Maker:
        preprocessing = estimator.model.preprocessing
        settings = {
            "size": options.size or preprocessing.size,
            "resize_policy": options.resize_policy or preprocessing.resize_policy,
            "precision": estimator.precision,
        }
        return cls(model_digest(estimator.model), settings, options)

    def origin(self, form: str, source_sha256: str) -> Origin:
        settings = {**self.settings, **self.options.settings(FORMATS[form].options)}
        return Origin(self.model_sha256, source_sha256, json.dumps(settings, sort_keys=True))


@dataclass(frozen=True)
class _Written:
    """The files of one image."""

    entry: dict[str, Any]
    """As the report has it."""
    constant: bool
    clipped: int


@dataclass(frozen=True)
class _Writer:
    """Writes the files of one image; runs in a worker thread."""

    model: DepthModel
    maker: _Maker
    outputs: Outputs

    def __call__(self, loaded: LoadedImage[Job, str], values: np.ndarray) -> _Written:
        info, job = self.model.info, loaded.item
        policy = loaded.policy or self.model.preprocessing.resize_policy
        if not np.isfinite(values).any():
            raise DistillDepthError("the model gave no finite value; its weights are damaged or the precision too low")
        texts = {
            "model": info.name,
            "licence": info.licence,
            "resize_policy": policy,
            "source": job.source.name,
        }
        clipped = 0
        for name, path in job.outputs.items():
            origin = self.maker.origin(name, loaded.extra)
            picture = Picture(values, info.quantity, loaded.image, texts, asdict(origin))
            clipped += FORMATS[name].write(path, picture, self.maker.options)
            if not FORMATS[name].says_origin:
                self.outputs.add(path, origin)
        entry = {
            "source": str(job.source),
            "height": values.shape[0],
            "width": values.shape[1],
            "resize_policy": policy,
            "outputs": {name: str(path) for name, path in job.outputs.items()},
        }
        return _Written(entry, bool(without_relief(torch.from_numpy(values)[None])), clipped)


@dataclass(frozen=True)
class _Run:
    """The work, and what becomes of every image."""

    estimator: Estimator
    write: _Writer
    report: PredictReport
    advance: Callable[[int], None]

    def predict(self, jobs: list[Job]) -> None:
        """Predict and write; files are written while the model computes."""
        pending: deque[tuple[Job, Future[_Written]]] = deque()
        with self.estimator as estimator:
            for batch in estimator.run(jobs, _read, self._fail):
                for loaded, values in batch:
                    pending.append((loaded.item, estimator.submit(self.write, loaded, values.cpu().numpy())))
                # Bounded, so that a slow disk does not fill memory with maps that wait to be written.
                while len(pending) > 2 * estimator.options.batch_size:
                    self._finish(*pending.popleft())
            while pending:
                self._finish(*pending.popleft())

    def _fail(self, job: Job, error: BaseException) -> None:
        self.report.failures.append((str(job.source), reason(error, job.source)))
        self.advance(1)

    def _finish(self, job: Job, writing: Future[_Written]) -> None:
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


def _read(job: Job) -> tuple[np.ndarray, str]:
    return read_image(job.source), digest_of(job.source)


def _open_outputs(jobs: list[Job], out: Path, is_file: bool, existing: str) -> Outputs:
    """What is in the folder of the outputs, once it is known that they may and can be written there."""
    folder = out.parent if is_file else out
    check_writable(folder)
    if existing == "refuse" and not is_file:
        _refuse_existing(jobs)
    outputs = Outputs(folder)
    if existing == "refuse" and is_file:
        _refuse_foreign(jobs, outputs)
    return outputs


def _refuse_existing(jobs: list[Job]) -> None:
    there = [path for job in jobs for path in job.outputs.values() if os.path.lexists(path)]
    if there:
        count = "this output exists" if len(there) == 1 else f"this and {len(there) - 1} more outputs exist"
        raise ValueError(f"{there[0]}: {count} already; add --skip-existing or --overwrite")


def _refuse_foreign(jobs: list[Job], outputs: Outputs) -> None:
    """A file that predict made is made again; any other may be a photograph."""
    for path in (path for job in jobs for path in job.outputs.values() if path.is_file()):
        if not outputs.made(path):
            raise ValueError(f"{path}: exists and was not made by predict; take another name, or add --overwrite")


def _leave_out_what_is_there(jobs: list[Job], maker: _Maker, outputs: Outputs, report: PredictReport) -> list[Job]:
    """The jobs to do; notes in the report the others, and which are done again."""
    todo: list[Job] = []
    remade: Counter[str] = Counter()
    for job in jobs:
        source = str(job.source)
        if not any(map(os.path.lexists, job.outputs.values())):
            todo.append(job)
            continue
        try:
            digest = digest_of(job.source)
        except FAILURES:
            digest = ""  # It cannot be read, which is found when it is.
        states = {path: outputs.state(path, maker.origin(name, digest)) for name, path in job.outputs.items()}
        kept = [path for path, state in states.items() if state in (State.FOREIGN, State.CHANGED)]
        if kept:
            report.failures.append(
                (source, f"{kept[0]} was {states[kept[0]].value} and stays; move it, or use --overwrite")
            )
        elif set(states.values()) == {State.CURRENT}:
            report.skipped.append(source)
        else:
            remade.update({state.value for state in states.values()} - {State.MISSING.value, State.CURRENT.value})
            todo.append(job)
    report.remade = dict(remade)
    return todo
