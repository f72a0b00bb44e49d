"""`predict_files`: from names to written depth maps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth.device import autocast, resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.inference import (
    FAILURES,
    LoadedImage,
    check_side,
    estimate_batch,
    load_batches,
    reason,
    without_relief,
)
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import target_size
from distilldepth.predict.colormaps import colorize
from distilldepth.predict.plan import Job, plan_jobs
from distilldepth.predict.point_cloud import PointCloudOptions, write_point_cloud
from distilldepth.predict.writers import check_writable, write_color_png, write_depth_png, write_npy


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
    """Sources whose outputs were there already."""
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
            "failures": [{"source": source, "error": error} for source, error in self.failures],
        }


def predict_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | DepthModel = "distilldepth-mini",
    formats: Sequence[str] | None = None,
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
        colormap, percentiles: of `color`, see `colorize`.
        point_cloud: camera and depth range of `ply`.
        resize_policy, size: how the network sees an image; None for the model's own. The model's own policy is
            replaced by `upper-bound`, with a warning, for an image so long and thin that it would grow beyond reason.
        batch_size: images of equal size run at once; halved where memory runs out.
        device, precision: see `distilldepth.device`; a model that is given stays where it is under `auto`.
        existing: what to do with outputs that exist: `refuse` before any work (a single `out` file is replaced all the
            same), `skip` images that have all of them, or `overwrite`.
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
    from distilldepth.data.images import check_any_readable, read_image

    if existing not in ("refuse", "skip", "overwrite"):
        raise ValueError(f"predict_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if batch_size < 1:
        raise ValueError(f"predict_files: batch_size must be at least 1, got {batch_size}")
    inputs = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    jobs, is_file = plan_jobs(inputs, out, formats)
    # A wrong colour map or range is one error here, not one per image.
    colorize(np.zeros((1, 1)), "disparity", colormap=colormap, percentiles=percentiles)
    check_writable(Path(out).parent if is_file else Path(out))
    jobs, done = _settle_existing(jobs, existing, is_file)
    skipped = [str(job.source) for job in done]
    if isinstance(model, DepthModel) and device == "auto":
        place = next(model.buffers()).device
    else:
        place = resolve_device(device)
    autocast(place, precision)
    check_any_readable([job.source for job in jobs])
    if not isinstance(model, DepthModel):
        from distilldepth.models import load_model

        if not jobs:
            # Nothing to do: the model is not worth its seconds.
            return PredictReport(str(model), "", "", str(place), skipped=skipped)
        model = load_model(model, offline=offline)
    model.to(place)
    if size is not None or resize_policy is not None:
        side = size or model.preprocessing.size
        check_side(model, place, target_size(side, side, model.preprocessing, policy=resize_policy, size=size))

    info = model.info
    report = PredictReport(info.name, info.quantity, info.licence, str(place), info.notes, skipped=skipped)
    advance = start(model, len(jobs)) if start is not None else lambda count: None
    write = _Writer(model, colormap, percentiles, point_cloud)

    def fail(job: Job, error: BaseException) -> None:
        report.failures.append((str(job.source), reason(error, job.source)))
        advance(1)

    def finish(job: Job, writing: Future) -> None:
        try:
            entry = writing.result()
            report.written.append(entry)
            if entry.pop("constant"):
                report.constant.append(entry["source"])
        except FAILURES as error:
            fail(job, error)
        else:
            advance(1)

    began = time.perf_counter()
    was_training = model.training
    model.eval()
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")
    try:
        pending: deque[tuple[Job, Future]] = deque()
        batches = load_batches(
            jobs,
            lambda job: (read_image(job.source), None),
            model,
            workers,
            fail,
            policy=resize_policy,
            size=size,
            batch_size=batch_size,
        )
        for batch in batches:
            results = estimate_batch(model, batch, place, precision=precision, size=size)
            for loaded, values in zip(batch, results, strict=True):
                if isinstance(values, Exception):
                    fail(loaded.item, values)
                else:
                    pending.append((loaded.item, workers.submit(write, loaded, values.cpu().numpy())))
            # Bounded, so that a slow disk does not fill memory with maps that wait to be written.
            while len(pending) > 2 * batch_size:
                finish(*pending.popleft())
        while pending:
            finish(*pending.popleft())
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        model.train(was_training)
    report.seconds = time.perf_counter() - began
    order = {str(job.source): index for index, job in enumerate(jobs)}
    report.written.sort(key=lambda entry: order[entry["source"]])
    report.constant.sort(key=order.__getitem__)
    report.failures.sort(key=lambda failure: order[failure[0]])
    return report


@dataclass(frozen=True)
class _Writer:
    """Writes the files of one image; runs in a worker thread."""

    model: DepthModel
    colormap: str
    percentiles: tuple[float, float]
    point_cloud: PointCloudOptions | None

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
        for name, path in job.outputs.items():
            if name == "png16":
                write_depth_png(path, values, info.quantity, texts=texts)
            elif name == "color":
                write_color_png(
                    path,
                    values,
                    info.quantity,
                    colormap=self.colormap,
                    percentiles=self.percentiles,
                    texts=texts,
                )
            elif name == "npy":
                write_npy(path, values)
            else:
                comments = tuple(f"{key}: {text}" for key, text in texts.items())
                write_point_cloud(
                    path, values, loaded.image, info.quantity, options=self.point_cloud, comments=comments
                )
        return {
            "source": str(job.source),
            "height": values.shape[0],
            "width": values.shape[1],
            "resize_policy": policy,
            "constant": bool(without_relief(torch.from_numpy(values)[None])),
            "outputs": {name: str(path) for name, path in job.outputs.items()},
        }


def _settle_existing(jobs: list[Job], existing: str, is_file: bool) -> tuple[list[Job], list[Job]]:
    """Split the jobs into those to do and those to skip."""
    from distilldepth.data.images import path_exists

    if existing == "skip":
        todo, done = [], []
        for job in jobs:
            (done if all(path_exists(path) for path in job.outputs.values()) else todo).append(job)
        return todo, done
    if existing == "refuse" and not is_file:
        there = [path for job in jobs for path in job.outputs.values() if path_exists(path)]
        if there:
            count = "this output exists" if len(there) == 1 else f"this and {len(there) - 1} more outputs exist"
            raise ValueError(f"{there[0]}: {count} already; add --skip-existing or --overwrite")
    return jobs, []
