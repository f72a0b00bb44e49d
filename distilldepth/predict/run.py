"""`predict_files`: from names to written depth maps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.formats.colormaps import colorize
from distilldepth.formats.png import check_png_scale
from distilldepth.images.decode import check_any_readable, read_image
from distilldepth.images.stereo import RightView, are_swapped
from distilldepth.inference.estimator import Estimator
from distilldepth.inference.stereo import StereoEstimator
from distilldepth.models import load_model
from distilldepth.models.base import DepthModel
from distilldepth.models.digest import model_digest
from distilldepth.outputs.origin import digest_of
from distilldepth.outputs.plan import Job, plan_jobs
from distilldepth.outputs.writing import (
    EXISTING,
    Maker,
    OutputOptions,
    Report,
    Run,
    Writer,
    leave_out_what_is_there,
    open_outputs,
)
from distilldepth.predict.pairs import check_views, pair_views
from distilldepth.words import LOG_VARIANCE


@dataclass
class PredictReport(Report):
    """What a run of `predict_files` did."""


@dataclass(frozen=True)
class PredictOptions(OutputOptions):
    """How the model is run, what the files look like, and the other view for models of two."""

    right: str | Path | None = None
    """The right view of one left one, or the folder with those of all, by name; None for what a manifest says."""
    focal_px: float | None = None
    """Focal length of all pairs in pixels of the photographs; with the baseline, disparity in pixels becomes metres."""
    baseline_m: float | None = None
    """Metres between the cameras of all pairs."""

    uncertainty: bool = False
    """Whether what the model says of its own uncertainty is written beside each map; see `plan_jobs`."""


def predict_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | DepthModel = "distilldepth-mini",
    formats: Sequence[str] | None = None,
    existing: str = "refuse",
    options: PredictOptions | None = None,
    offline: bool = False,
    start: Callable[[Estimator, int], Callable[[int], None]] | None = None,
    **changes: Any,
) -> PredictReport:
    """Predict depth for files and write the results.

    Args:
        inputs: a file, folder, glob pattern, .txt list or .jsonl manifest, or several; left views for a model of two.
        out: a .png, .npy or .ply file for one image, else a folder; see `plan_jobs`.
        model: a model, or what `load_model` takes.
        formats: of `png16`, `color`, `npy`, `ply`; None for the one that `out` says.
        existing: what to do with outputs that exist: `refuse` before any work (a single `out` file that predict made is
            replaced all the same), `overwrite`, or `skip` images of which all are what would be written again: made by
            the same weights, from the same photograph, with the same options (see `Origin`). Others of this package are
            made again; a file that is not known to be is left, and the image is a failure.
        options: size, device, colours and so on, see `InferenceOptions` and `WriteOptions`, and `uncertainty` for a
            second map beside each; None for the usual ones.
        offline: never touch the network for the model.
        start: called with the estimator, whose `info` says what comes out, and the number of images when the work
            begins; the function it returns is told how many more images are done.
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
    if existing not in EXISTING:
        raise ValueError(f"predict_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if options.batch_size < 1:
        raise ValueError(f"predict_files: batch_size must be at least 1, got {options.batch_size}")
    names = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    planned, is_file = plan_jobs(names, out, formats, uncertainty=options.uncertainty)
    camera = options.focal_px, options.baseline_m
    asked = options.right is not None or camera != (None, None)
    whole = any(Path(name).is_dir() for name in names)
    jobs, unpaired = pair_views(planned, options.right, camera, out, whole=whole)
    # A wrong colour map or range is one error here, not one per image.
    colorize(np.zeros((1, 1)), "disparity", colormap=options.colormap, percentiles=options.percentiles)
    check_png_scale(options.png_scale)
    outputs = open_outputs(jobs, Path(out), is_file, existing, "predict")
    settled = options.settle(model)
    check_any_readable([job.source for job in jobs])
    loaded = model if isinstance(model, DepthModel) else load_model(model, offline=offline)
    metric = check_views(loaded, jobs, asked=asked)
    if options.uncertainty:
        check_uncertain(loaded)
    stereo = loaded.views == 2
    estimator = StereoEstimator(loaded, settled, metric=metric) if stereo else Estimator(loaded, settled)
    if options.size is not None or options.resize_policy is not None:
        estimator.check_size()
    info = estimator.info
    check_png_scale(options.png_scale, info.quantity)
    report = PredictReport(info.name, info.quantity, info.licence, str(estimator.device), info.notes)
    report.failures += unpaired
    maker = Maker.of(estimator, options, model_digest(estimator.model))
    digest = _pair_digest if stereo else _digest
    todo = leave_out_what_is_there(jobs, maker, outputs, report, digest) if existing == "skip" else jobs
    advance = start(estimator, len(todo)) if start is not None else lambda count: None
    began = time.perf_counter()
    policy = estimator.model.preprocessing.resize_policy
    writer = Writer(info, policy, maker, outputs, _describe_pair) if stereo else Writer(info, policy, maker, outputs)
    Run(estimator, writer, report, advance, _read_pair if stereo else _read).work(todo)
    report.seconds = time.perf_counter() - began
    report.swapped = [str(entry["source"]) for entry in report.written if entry.get("swapped")]
    report.sort(list(dict.fromkeys([*(str(job.source) for job in planned), *(source for source, _ in unpaired)])))
    return report


def check_uncertain(model: DepthModel) -> None:
    """Raise UsageError, with the way to a model that does, unless a model says how uncertain it is."""
    if LOG_VARIANCE not in model.extra_maps:
        raise UsageError(
            f"{model.info.name} says nothing of its own uncertainty; leave --uncertainty out, or train a student that "
            "does: distilldepth distill --set uncertainty=true"
        )


@dataclass(frozen=True)
class _Source:
    """What was read with a photograph: nothing."""

    digest: str


def _read(job: Job) -> tuple[np.ndarray, _Source]:
    return read_image(job.source), _Source(_digest(job))


def _digest(job: Job) -> str:
    return digest_of(job.source)


@dataclass(frozen=True)
class _Pair:
    """What was read with a left view."""

    digest: str
    right: RightView | None
    path: Path | None
    swapped: bool
    """Whether the views look exchanged."""


def _read_pair(job: Job) -> tuple[np.ndarray, _Pair]:
    image = read_image(job.source)
    if job.right is None:
        raise DistillDepthError("has no right view: the manifest names none for it")
    right = RightView(read_image(job.right), job.focal_px, job.baseline_m)
    right.check_size(image)
    return image, _Pair(_pair_digest(job), right, job.right, are_swapped(image, right.image))


def _pair_digest(job: Job) -> str:
    """Of both views and the camera."""
    digests = digest_of(job.source), "" if job.right is None else digest_of(job.right)
    return hashlib.sha256(f"{' '.join(digests)} {job.focal_px} {job.baseline_m}".encode()).hexdigest()


def _describe_pair(read: _Pair) -> dict[str, Any]:
    return {"right": str(read.path), **({"swapped": True} if read.swapped else {})}
