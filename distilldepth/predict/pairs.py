"""Right views for the photographs of a run: from a file, a folder or a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.files import place
from distilldepth.images.decode import list_images
from distilldepth.images.stereo import check_camera
from distilldepth.models.base import DepthModel
from distilldepth.outputs.partners import Failures, PartnerKind, pair_with
from distilldepth.outputs.plan import Job


def pair_views(
    jobs: Sequence[Job],
    right: str | Path | None,
    camera: tuple[float | None, float | None],
    out: str | Path,
    *,
    whole: bool = False,
) -> tuple[list[Job], Failures]:
    """Give every job its right view and its camera.

    Args:
        jobs: of left views; those of a manifest may have both already.
        right: the right view of a single job, or the folder with those of all, by name; None for what manifests say.
        camera: focal length in pixels and baseline in metres of all pairs; None for what manifests say.
        out: what is below it are results.
        whole: whether right views without a left one are missed too.

    Returns:
        The jobs, and what was left over.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: `right` beside a manifest that names right views, a view that would be its own right one, or a focal
            length without baseline.
        DistillDepthError: no photograph has a right view.
    """
    check_camera(*camera, "predict")
    given, failures = list(jobs), Failures()
    if right is not None:
        if any(job.right for job in jobs):
            raise UsageError("predict: --right and a manifest with `right` contradict each other; leave --right out")
        given, failures = pair_with(jobs, _RIGHT, right, out, whole=whole)
        for job in given:
            if job.right is not None and place(job.source) == place(job.right):
                raise UsageError(f"--right {right}: these are the left views themselves; name the right ones")
    if camera != (None, None):
        given = [replace(job, focal_px=camera[0], baseline_m=camera[1]) for job in given]
    return given, failures


def check_views(model: DepthModel, jobs: Sequence[Job], *, asked: bool) -> bool:
    """Say in one line that a model and what it is given do not fit.

    Args:
        model: which is to see the jobs.
        jobs: with the right views that are known.
        asked: whether right views or cameras were given besides the photographs.

    Returns:
        Whether disparity in pixels is to become metres: of some pair both focal length and baseline are known.

    Raises:
        UsageError: one view for a model of two, or two for a model of one.
        DistillDepthError: a manifest names no right view at all.
    """
    if model.views != 2:
        if asked:
            model.refuse_two_views()
        return False
    if not any(job.right for job in jobs):
        model.refuse_one_view()
    return model.in_pixels and any(job.focal_px and job.baseline_m for job in jobs)


def _find(folder: Path, without: Path | None) -> Iterable[Path]:
    try:
        return list_images(folder, without=without)
    except DistillDepthError:
        return ()  # That no photograph has a right view says what is missing.


_RIGHT = PartnerKind(
    field="right",
    option="--right",
    one="right view",
    several="right views",
    describe=lambda stem: f"image called {stem}",
    find=_find,
)
