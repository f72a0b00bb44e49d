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
from distilldepth.formats.npy import write_npy
from distilldepth.formats.png import check_png_scale, write_color_png, write_depth_png
from distilldepth.formats.point_cloud import PointCloudOptions, write_point_cloud
from distilldepth.inference.batches import FAILURES, LoadedImage, reason, without_relief
from distilldepth.inference.estimator import Estimator, InferenceOptions
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


def predict_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | DepthModel = "distilldepth-mini",
    formats: Sequence[str] | None = None,
    png_scale: float | None = None,
    colormap: str = "spectral",
    percentiles: tuple[float, float] = (1.0, 99.0),
    point_cloud: PointCloudOptions | None = None,
    resize_policy: str | None = None,
    size: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: str = "auto",
    existing: str = "refuse",
    offline: bool = False,
    start: Callable[[DepthModel, int], Callable[[int], None]] | None = None,
) -> PredictReport:
    """Predict depth for files and write the results.

    Args:
        inputs: a file, folder, glob pattern or .txt list, or several.
        out: a .png, .npy or .ply file for one image, else a folder; see `plan_jobs`.
        model: a model, or what `load_model` takes.
        formats: of `png16`, `color`, `npy`, `ply`; None for the one that `out` says.
        png_scale: fixed stored units per metre of `png16`, for models that predict metres; see `write_depth_png`.
        colormap, percentiles: of `color`, see `colorize`.
        point_cloud: camera and depth range of `ply`.
        resize_policy, size: how the network sees an image; None for the model's own. The model's own policy is
            replaced by `upper-bound`, with a warning, for an image so long and thin that it would grow beyond reason.
        batch_size: images of equal size run at once; halved where memory runs out.
        device, precision: see `distilldepth.device`; a model that is given stays where it is under `auto`.
        existing: what to do with outputs that exist: `refuse` before any work (a single `out` file that predict made is
            replaced all the same), `overwrite`, or `skip` images of which all are what would be written again: made by
            the same weights, from the same photograph, with the same options (see `Origin`). Others of this package are
            made again; a file that is not known to be is left, and the image is a failure.
        offline: never touch the network for the model.
        start: called with the model and the number of images when the work begins; the function it returns is told how
            many more images are done.

    Returns:
        The report. Images that failed are listed there and raise nothing.

    Raises:
        FileNotFoundError: no input found.
        ValueError: names or options that contradict each other, or existing outputs under `refuse`.
        OSError: the output cannot be written.
        DistillDepthError: the model cannot be loaded, or none of several images can be read.
    """
    from distilldepth.images.decode import check_any_readable, read_image

    if existing not in ("refuse", "skip", "overwrite"):
        raise ValueError(f"predict_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if batch_size < 1:
        raise ValueError(f"predict_files: batch_size must be at least 1, got {batch_size}")
    inputs = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    jobs, is_file = plan_jobs(inputs, out, formats)
    # A wrong colour map or range is one error here, not one per image.
    colorize(np.zeros((1, 1)), "disparity", colormap=colormap, percentiles=percentiles)
    check_png_scale(png_scale)
    folder = Path(out).parent if is_file else Path(out)
    check_writable(folder)
    if existing == "refuse" and not is_file:
        _refuse_existing(jobs)
    outputs = Outputs(folder)
    if existing == "refuse" and is_file:
        _refuse_foreign(jobs, outputs)
    options = InferenceOptions(resize_policy, size, batch_size, device, precision).settle(model)
    check_any_readable([job.source for job in jobs])
    if not isinstance(model, DepthModel):
        from distilldepth.models import load_model

        model = load_model(model, offline=offline)
    estimator = Estimator(model, options)
    if size is not None or resize_policy is not None:
        estimator.check_size()

    info = model.info
    check_png_scale(png_scale, info.quantity)
    report = PredictReport(info.name, info.quantity, info.licence, str(estimator.device), info.notes)
    maker = _Maker(
        model_digest(model),
        {
            "size": size or model.preprocessing.size,
            "resize_policy": resize_policy or model.preprocessing.resize_policy,
            "precision": estimator.precision,
        },
        {
            "png16": {"png_scale": png_scale},
            "color": {"colormap": colormap, "percentiles": list(percentiles)},
            "npy": {},
            "ply": asdict(point_cloud or PointCloudOptions()),
        },
    )
    planned = jobs
    if existing == "skip":
        jobs = _leave_out_what_is_there(planned, maker, outputs, report)
    advance = start(model, len(jobs)) if start is not None else lambda count: None
    write = _Writer(model, png_scale, colormap, percentiles, point_cloud, maker, outputs)

    def fail(job: Job, error: BaseException) -> None:
        report.failures.append((str(job.source), reason(error, job.source)))
        advance(1)

    def finish(job: Job, writing: Future) -> None:
        try:
            entry = writing.result()
            report.written.append(entry)
            if entry.pop("constant"):
                report.constant.append(entry["source"])
            if clipped := entry.pop("clipped"):
                report.clipped[entry["source"]] = clipped
        except FAILURES as error:
            fail(job, error)
        else:
            advance(1)

    began = time.perf_counter()
    with estimator:
        pending: deque[tuple[Job, Future]] = deque()
        for batch in estimator.run(jobs, lambda job: (read_image(job.source), digest_of(job.source)), fail):
            for loaded, values in batch:
                pending.append((loaded.item, estimator.submit(write, loaded, values.cpu().numpy())))
            # Bounded, so that a slow disk does not fill memory with maps that wait to be written.
            while len(pending) > 2 * batch_size:
                finish(*pending.popleft())
        while pending:
            finish(*pending.popleft())
    report.seconds = time.perf_counter() - began
    order = {str(job.source): index for index, job in enumerate(planned)}
    report.written.sort(key=lambda entry: order[entry["source"]])
    report.constant.sort(key=order.__getitem__)
    report.clipped = dict(sorted(report.clipped.items(), key=lambda entry: order[entry[0]]))
    report.failures.sort(key=lambda failure: order[failure[0]])
    return report


@dataclass(frozen=True)
class _Maker:
    """What the outputs of a run have in common."""

    model_sha256: str
    options: dict[str, Any]
    by_format: dict[str, dict[str, Any]]

    def origin(self, form: str, source_sha256: str) -> Origin:
        settings = json.dumps({**self.options, **self.by_format[form]}, sort_keys=True)
        return Origin(self.model_sha256, source_sha256, settings)


@dataclass(frozen=True)
class _Writer:
    """Writes the files of one image; runs in a worker thread."""

    model: DepthModel
    png_scale: float | None
    colormap: str
    percentiles: tuple[float, float]
    point_cloud: PointCloudOptions | None
    maker: _Maker
    outputs: Outputs

    def __call__(self, loaded: LoadedImage, values: np.ndarray) -> dict[str, Any]:
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
            made = {**texts, **asdict(origin)}
            if name == "png16":
                clipped = write_depth_png(path, values, info.quantity, units_per_metre=self.png_scale, texts=made)
            elif name == "color":
                write_color_png(
                    path,
                    values,
                    info.quantity,
                    colormap=self.colormap,
                    percentiles=self.percentiles,
                    texts=made,
                )
            elif name == "npy":
                write_npy(path, values)
            else:
                comments = tuple(f"{key}: {text}" for key, text in texts.items())
                write_point_cloud(
                    path, values, loaded.image, info.quantity, options=self.point_cloud, comments=comments
                )
            if path.suffix.lower() != ".png":
                self.outputs.add(path, origin)
        return {
            "source": str(job.source),
            "height": values.shape[0],
            "width": values.shape[1],
            "resize_policy": policy,
            "constant": bool(without_relief(torch.from_numpy(values)[None])),
            "clipped": clipped,
            "outputs": {name: str(path) for name, path in job.outputs.items()},
        }


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
    todo, remade = [], Counter()
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
