"""Which file of points belongs to which photograph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distilldepth.images.listing import walk_files
from distilldepth.outputs.partners import Failures, PartnerKind, pair_with
from distilldepth.outputs.plan import Job
from distilldepth.sparse.files import SUFFIXES


def pair_jobs(
    jobs: Sequence[Job], sparse: str | Path, out: str | Path, *, whole: bool = False
) -> tuple[list[Job], Failures]:
    """Give every job its file of points; see `distilldepth.outputs.partners.pair_with`.

    Args:
        jobs: of photographs.
        sparse: a file, for one photograph, or a folder.
        out: what is below it are results.
        whole: whether points without a photograph are missed too: the photographs are those of folders.

    Returns:
        The jobs with points, and what was left over.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UsageError: one file for several photographs; an output that would replace points.
        DistillDepthError: no photograph has points.
    """
    return pair_with(jobs, _POINTS, sparse, out, whole=whole)


def _find(folder: Path, without: Path | None) -> Iterable[Path]:
    return walk_files(folder, lambda name: name.lower().endswith(SUFFIXES), without=without)


_OTHERS = ", ".join(SUFFIXES[1:])
_POINTS = PartnerKind(
    field="points",
    option="--sparse",
    one="points",
    several="files of points",
    describe=lambda stem: f"{stem}.npy (nor {_OTHERS})",
    find=_find,
)
