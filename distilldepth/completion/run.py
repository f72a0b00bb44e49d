"""`complete_files`: from photographs and files of points to written depth maps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distilldepth.completion.pairs import pair_jobs
from distilldepth.errors import UsageError
from distilldepth.formats.colormaps import colorize
from distilldepth.formats.png import check_png_scale
from distilldepth.images.decode import check_any_readable, read_image
from distilldepth.inference.batches import FAILURES
from distilldepth.inference.completer import NETWORK, Completer
from distilldepth.models.base import DepthModel
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
from distilldepth.sparse.files import read_sparse


@dataclass
class CompleteReport(Report):
    """What a run of `complete_files` did; `written` also says of each image `points_from` and `points`."""

    guide: str = ""
    """The model that looked at the photographs."""
    align: str = ""
    """How its maps were brought to the points."""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**super().to_dict(), "guide": self.guide, "align": self.align}


@dataclass(frozen=True)
class CompleteOptions(OutputOptions):
    """How the models are run, what the files look like, and how the points are read and used."""

    sparse_scale: float | None = None
    """Stored units per metre of the points; None for metres, or what their files say."""
    align: str | None = None
    """Method of `align_to_points`; None for the completion network's, `local` without one."""
    align_only: bool = False
    """Whether the completion network is left out."""


def complete_files(
    inputs: str | Path | Sequence[str | Path],
    sparse: str | Path,
    out: str | Path,
    *,
    model: str | Path | DepthModel = NETWORK,
    formats: Sequence[str] | None = None,
    existing: str = "refuse",
    options: CompleteOptions | None = None,
    **others: Any,
) -> CompleteReport:
    """Complete depth for photographs with files of points, and write the results.

    Args:
        inputs: a file, folder, glob pattern or .txt list, or several; see `plan_jobs`.
        sparse: a file of points for one image, or a folder with one for each; see `pair_jobs` and `read_sparse`.
        out: a .png, .npy or .ply file for one image, else a folder.
        model: a completion network, or the model that looks at the photograph before `completion-mini`.
        formats: of `png16`, `color`, `npy`, `ply`; None for the one that `out` says.
        existing: what to do with outputs that exist: `refuse`, `overwrite` or `skip`, as `predict_files` has it; points
            that changed count as another photograph.
        options: see `CompleteOptions`; None for the usual ones.
        others: `offline` (never touch the network for a model), `start` (called with the completer and the number of
            images when the work begins; the function it returns is told how many more images are done), and options
            given by name.

    Returns:
        The report. Images that failed, or have no points, and points without an image are listed there, and raise
        nothing.

    Raises:
        FileNotFoundError: no input found.
        ValueError: names or options that contradict each other, existing outputs under `refuse`, or points that do not
            say their unit.
        OSError: the output cannot be written.
        DistillDepthError: a model cannot be loaded, no image has points, none of several images can be read, or a
            single one or its points cannot be.
        TypeError: no such option.
    """
    offline: bool = others.pop("offline", False)
    start: Callable[[Completer, int], Callable[[int], None]] | None = others.pop("start", None)
    options = (options or CompleteOptions()).changed(others, "complete_files")
    if existing not in EXISTING:
        raise ValueError(f"complete_files: existing must be refuse, skip or overwrite, got {existing!r}")
    if options.batch_size < 1:
        raise ValueError(f"complete_files: batch_size must be at least 1, got {options.batch_size}")
    names = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    planned, is_file = plan_jobs(names, out, formats)
    jobs, unpaired = pair_jobs(planned, sparse, out, whole=any(Path(name).is_dir() for name in names))
    # A wrong colour map or range is one error here, not one per image.
    colorize(np.zeros((1, 1)), "metric_depth", colormap=options.colormap, percentiles=options.percentiles)
    check_png_scale(options.png_scale)
    outputs = open_outputs(jobs, Path(out), is_file, existing, "complete")
    check_any_readable([job.source for job in jobs])
    _check_points(jobs, options)
    completer = Completer(model, options, align=options.align, align_only=options.align_only, offline=offline)
    if options.size is not None or options.resize_policy is not None:
        completer.check_size()
    info = completer.info
    report = CompleteReport(info.name, info.quantity, info.licence, str(completer.device), info.notes)
    report.guide, report.align = completer.model.info.name, completer.align
    report.failures += unpaired
    maker = Maker.of(completer, options, completer.digest, sparse_scale=options.sparse_scale)
    todo = leave_out_what_is_there(jobs, maker, outputs, report, _digest) if existing == "skip" else jobs
    advance = start(completer, len(todo)) if start is not None else lambda count: None
    began = time.perf_counter()
    writer = Writer(info, completer.model.preprocessing.resize_policy, maker, outputs, _describe)
    Run(completer, writer, report, advance, partial(_read, options.sparse_scale)).work(todo)
    report.seconds = time.perf_counter() - began
    report.sort(list(dict.fromkeys([*(str(job.source) for job in planned), *(source for source, _ in unpaired)])))
    return report


@dataclass(frozen=True)
class _Source:
    """What was read with a photograph."""

    digest: str
    points: np.ndarray
    path: Path


def _read(scale: float | None, job: Job) -> tuple[np.ndarray, _Source]:
    image = read_image(job.source)
    points = _points_of(job)
    return image, _Source(_digest(job), read_sparse(points, image.shape[:2], scale=scale), points)


def _points_of(job: Job) -> Path:
    assert job.points is not None, "jobs are paired before they are read"
    return job.points


def _digest(job: Job) -> str:
    """Of photograph and points."""
    return hashlib.sha256(f"{digest_of(job.source)} {digest_of(_points_of(job))}".encode()).hexdigest()


def _describe(read: _Source) -> dict[str, Any]:
    return {"points_from": str(read.path), "points": int((read.points > 0).sum())}


def _check_points(jobs: Sequence[Job], options: CompleteOptions) -> None:
    """Find a missing or contradicting scale before a model is loaded, and not once per image."""
    try:
        _read(options.sparse_scale, jobs[0])
    except UsageError:
        raise
    except FAILURES:
        if len(jobs) == 1:
            raise
        # Else of this image alone: it is told when its turn comes.
