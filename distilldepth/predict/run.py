"""Many images through one model: decoding and writing overlap with the model, one bad file never stops the rest."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth.device import autocast, resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import Preprocessing, target_size
from distilldepth.predict.colormaps import colormap_table
from distilldepth.predict.plan import Job, plan_jobs
from distilldepth.predict.point_cloud import PointCloudOptions, write_point_cloud
from distilldepth.predict.writers import check_writable, write_color_png, write_depth_png, write_npy

_BATCH_PIXELS = 16_000_000
"""Images of one batch have at most this many pixels together, so that eight photographs of 48 MP do not fill memory."""

_LARGEST_STRETCH = 16
"""A policy that makes the network see more than this many times size x size pixels is not used unasked."""

FAILURES = (DistillDepthError, OSError, ValueError, TypeError, MemoryError, RuntimeError)


@dataclass
class PredictReport:
    """What a run of `predict_files` did."""

    model: str
    quantity: str
    licence: str
    device: str
    written: list[dict[str, Any]] = field(default_factory=list)
    """Per image: `source`, `height`, `width`, `resize_policy`, `outputs` by format."""
    skipped: list[str] = field(default_factory=list)
    """Sources whose outputs were there already."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Source and what was wrong with it."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {
            "model": self.model,
            "quantity": self.quantity,
            "licence": self.licence,
            "device": self.device,
            "seconds": round(self.seconds, 3),
            "written": self.written,
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
        inputs: a file, folder or glob pattern, or several.
        out: a .png, .npy or .ply file for one image, else a folder; see `plan_jobs`.
        model: a model, or what `load_model` takes.
        formats: of `png16`, `color`, `npy`, `ply`; None for the one that `out` says.
        colormap, percentiles: of `color`, see `colorize`.
        point_cloud: camera and depth range of `ply`.
        resize_policy, size: how the network sees an image; None for the model's own. The model's own policy is
            replaced by `upper-bound`, with a warning, for an image so long and thin that it would grow beyond reason.
        batch_size: images of equal size run at once; halved where memory runs out.
        device, precision: see `distilldepth.device`.
        existing: what to do with outputs that exist: `refuse` before any work (a single `out` file is replaced all the
            same), `skip` images that have all of them, or `overwrite`.
        offline: never touch the network for the model.
        start: called with the model and the number of images when the work begins; the function it returns is told how
            many images are done.

    Returns:
        The report. Images that failed are listed there and raise nothing.

    Raises:
        FileNotFoundError: no input found.
        ValueError: names or options that contradict each other, or existing outputs under `refuse`.
        OSError: the output cannot be written.
        DistillDepthError: the model cannot be loaded.
    """
    if existing not in ("refuse", "skip", "overwrite"):
        raise ValueError(f"predict_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if batch_size < 1:
        raise ValueError(f"predict_files: batch_size must be at least 1, got {batch_size}")
    inputs = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    jobs, is_file = plan_jobs(inputs, out, formats)
    colormap_table(colormap)
    check_writable(Path(out).parent if is_file else Path(out))
    jobs, skipped = _settle_existing(jobs, existing, is_file)
    place = resolve_device(device)
    autocast(place, precision)
    if not isinstance(model, DepthModel):
        from distilldepth.models import load_model

        if not jobs:
            # Nothing to do: the model is not worth its seconds.
            return PredictReport(str(model), "", "", str(place), skipped=[str(job.source) for job in skipped])
        model = load_model(model, device=place, offline=offline)
    if size is not None:
        # An impossible size or policy is one error here, not one per image.
        target_size(size, size, model.preprocessing, policy=resize_policy, size=size)
    report = PredictReport(
        model.info.name,
        model.info.quantity,
        model.info.licence,
        str(place),
        skipped=[str(job.source) for job in skipped],
    )
    advance = start(model, len(jobs)) if start is not None else lambda count: None
    began = time.perf_counter()
    write = _Writer(model, colormap, percentiles, point_cloud)
    was_training = model.training
    model.eval()
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")
    try:
        pending: deque[tuple[Job, Future]] = deque()
        for batch in _batches(jobs, workers, model, report, advance, resize_policy, size, batch_size):
            policy = batch[0].policy
            for item, values in zip(batch, _run(model, batch, place, precision, policy, size), strict=True):
                if isinstance(values, Exception):
                    report.failures.append((str(item.job.source), _reason(values)))
                    advance(1)
                    continue
                pending.append((item.job, workers.submit(write, item, values)))
            while len(pending) > 2 * batch_size:
                _finish(*pending.popleft(), report, advance)
        while pending:
            _finish(*pending.popleft(), report, advance)
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        model.train(was_training)
    report.seconds = time.perf_counter() - began
    order = {str(job.source): index for index, job in enumerate(jobs)}
    report.written.sort(key=lambda entry: order[entry["source"]])
    report.failures.sort(key=lambda failure: order[failure[0]])
    return report


@dataclass
class _Item:
    job: Job
    image: np.ndarray
    policy: str | None


@dataclass(frozen=True)
class _Writer:
    """Writes the files of one image; runs in a worker thread."""

    model: DepthModel
    colormap: str
    percentiles: tuple[float, float]
    point_cloud: PointCloudOptions | None

    def __call__(self, item: _Item, values: np.ndarray) -> dict[str, Any]:
        info, policy = self.model.info, item.policy or self.model.preprocessing.resize_policy
        quantity = info.quantity
        texts = {"model": info.name, "licence": info.licence, "resize_policy": policy}
        texts["source"] = item.job.source.name
        comments = tuple(f"{key}: {text}" for key, text in texts.items())
        for name, path in item.job.outputs.items():
            if name == "png16":
                write_depth_png(path, values, quantity, texts=texts)
            elif name == "color":
                write_color_png(
                    path, values, quantity, colormap=self.colormap, percentiles=self.percentiles, texts=texts
                )
            elif name == "npy":
                write_npy(path, values)
            else:
                write_point_cloud(path, values, item.image, quantity, options=self.point_cloud, comments=comments)
        return {
            "source": str(item.job.source),
            "height": values.shape[0],
            "width": values.shape[1],
            "resize_policy": policy,
            "outputs": {name: str(path) for name, path in item.job.outputs.items()},
        }


def _settle_existing(jobs: list[Job], existing: str, is_file: bool) -> tuple[list[Job], list[Job]]:
    """Split the jobs into those to do and those to skip."""
    if existing == "skip":
        todo, done = [], []
        for job in jobs:
            (done if all(path.exists() for path in job.outputs.values()) else todo).append(job)
        return todo, done
    if existing == "refuse" and not is_file:
        there = [path for job in jobs for path in job.outputs.values() if path.exists()]
        if there:
            count = "this output exists" if len(there) == 1 else f"this and {len(there) - 1} more outputs exist"
            raise ValueError(f"{there[0]}: {count} already; add --skip-existing or --overwrite")
    return jobs, []


def choose_policy(
    height: int, width: int, preprocessing: Preprocessing, policy: str | None, size: int | None
) -> str | None:
    """Return the policy to use for an image: `policy`, or `upper-bound` where the model's own explodes (None = own).

    `lower-bound` makes a strip of 8 x 5000 pixels 518 x 323750.

    Raises:
        ValueError: the policy that was asked for explodes.
    """
    inner = target_size(height, width, preprocessing, policy=policy, size=size)
    side = size or preprocessing.size
    if inner[0] * inner[1] <= _LARGEST_STRETCH * side * side:
        return policy
    told = f"an image of {height} x {width} would be seen as {inner[0]} x {inner[1]}"
    if policy is not None:
        raise ValueError(f"--resize-policy {policy}: {told}; use upper-bound or square")
    return "upper-bound"


def _batches(
    jobs: list[Job],
    workers: ThreadPoolExecutor,
    model: DepthModel,
    report: PredictReport,
    advance: Callable[[int], None],
    policy: str | None,
    size: int | None,
    batch_size: int,
) -> Iterator[list[_Item]]:
    """Yield decoded images in groups of one size, reading ahead by two batches at most."""
    from distilldepth.data.images import read_image

    waiting = iter(jobs)
    reading: deque[tuple[Job, Future]] = deque()
    groups: dict[tuple[int, int], list[_Item]] = {}

    def read_ahead() -> None:
        while len(reading) < max(2, batch_size) and (job := next(waiting, None)) is not None:
            reading.append((job, workers.submit(read_image, job.source)))

    read_ahead()
    while reading:
        job, future = reading.popleft()
        read_ahead()
        try:
            image = future.result()
            height, width = image.shape[:2]
            chosen = choose_policy(height, width, model.preprocessing, policy, size)
        except FAILURES as error:
            report.failures.append((str(job.source), _reason(error, job.source)))
            advance(1)
            continue
        if chosen != policy:
            warnings.warn(f"{job.source}: long and thin, so resized by {chosen}", UserWarning, stacklevel=2)
        group = groups.setdefault((height, width), [])
        group.append(_Item(job, image, chosen))
        if len(group) >= batch_size or (len(group) + 1) * height * width > _BATCH_PIXELS:
            yield groups.pop((height, width))
        elif sum(len(items) for items in groups.values()) > 4 * batch_size or _pixels(groups) > 4 * _BATCH_PIXELS:
            # Many sizes: the group that has waited longest goes out unfilled rather than memory filling up.
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


def _pixels(groups: dict[tuple[int, int], list[_Item]]) -> int:
    return sum(height * width * len(items) for (height, width), items in groups.items())


@torch.inference_mode()
def _run(
    model: DepthModel, batch: list[_Item], device: torch.device, precision: str, policy: str | None, size: int | None
) -> list[np.ndarray | Exception]:
    """Predict one batch; where memory runs out, by halves."""
    try:
        images = torch.from_numpy(np.stack([item.image for item in batch])).to(device)
        with autocast(device, precision):
            values = model.estimate(images.permute(0, 3, 1, 2).float() / 255, policy=policy, size=size)
        return list(values.float().cpu().numpy())
    except (torch.OutOfMemoryError, MemoryError) as error:
        if len(batch) == 1:
            height, width = batch[0].image.shape[:2]
            return [MemoryError(f"not enough memory for {height} x {width} pixels; try a smaller --size ({error})")]
    except (RuntimeError, ValueError, TypeError) as error:
        if len(batch) == 1:
            return [error]
    half = len(batch) // 2
    return _run(model, batch[:half], device, precision, policy, size) + _run(
        model, batch[half:], device, precision, policy, size
    )


def _finish(job: Job, future: Future, report: PredictReport, advance: Callable[[int], None]) -> None:
    try:
        report.written.append(future.result())
    except FAILURES as error:
        report.failures.append((str(job.source), _reason(error)))
    advance(1)


def _reason(error: BaseException, source: Path | None = None) -> str:
    """What was wrong, in one line, without the name of the source that stands before it."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None or str(error.filename) == str(source) else f"{error.filename}: "
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{source}: ")
