"""Which file of points belongs to which photograph."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.files import expand_user
from distilldepth.images.listing import walk_files
from distilldepth.outputs.plan import Job, check_sources_survive
from distilldepth.sparse.files import SUFFIXES

Failures = list[tuple[str, str]]
"""Source and what is wrong with it."""


def pair_jobs(
    jobs: Sequence[Job], sparse: str | Path, out: str | Path, *, whole: bool = False
) -> tuple[list[Job], Failures]:
    """Give every job its file of points.

    In a folder that is the one with the photograph's name before the suffix; below folders as many of their names are
    compared as there are, so that `photos/a/1.jpg` belongs to `points/a/1.npy` rather than to `points/1.npy`.
    Photographs that lie in the folder of the points, where that is not theirs, are points themselves.

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
    path = expand_user(sparse)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if not path.is_dir():
        if len(jobs) > 1:
            raise UsageError(f"--sparse {path} names one file, but there are {len(jobs)} images; name a folder")
        paired = [replace(job, points=path) for job in jobs]
        check_sources_survive(paired)
        return paired, []
    jobs = _without_points(jobs, path)
    found = _by_stem(path, Path(out))
    paired, failures = [], []
    for job in jobs:
        key = _longest(job.source, found)
        if key is None:
            failures.append((str(job.source), f"has no points: {path} holds no {job.source.stem}.npy (nor {_OTHERS})"))
        elif len(found[key]) > 1:
            names = " and ".join(points.name for points in found[key][:3])
            failures.append((str(job.source), f"has several files of points in {path}: {names}; keep one"))
        else:
            paired.append(replace(job, points=found[key][0]))
    paired, doubled = _without_shared(paired)
    if not paired:
        reason = (failures + doubled)[0] if failures or doubled else (str(path), "there are no photographs for it")
        raise DistillDepthError(f"no photograph has points; the first: {reason[0]}: {reason[1]}")
    if whole:
        used = {points for job in jobs if (key := _longest(job.source, found)) for points in found[key]}
        left = sorted(points for group in found.values() for points in group if points not in used)
        failures += [(str(points), "has no photograph of that name") for points in left]
    check_sources_survive(paired)
    return paired, failures + doubled


_OTHERS = ", ".join(SUFFIXES[1:])


def _without_points(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs whose photographs do not lie in the folder of the points, unless all do."""
    inside = os.path.realpath(folder) + os.sep
    outside = [job for job in jobs if not os.path.realpath(job.source).startswith(inside)]
    return outside or list(jobs)


def _by_stem(folder: Path, out: Path) -> dict[tuple[str, ...], list[Path]]:
    """Files of points by the parts of their place in the folder, without the suffix."""
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    without = out if out.is_dir() else None
    for points in sorted(walk_files(folder, lambda name: name.lower().endswith(SUFFIXES), without=without)):
        found[points.relative_to(folder).with_suffix("").parts].append(points)
    return found


def _longest(source: PurePath, found: dict[tuple[str, ...], list[Path]]) -> tuple[str, ...] | None:
    """The key that shares the most of a photograph's path, from its end."""
    parts = source.with_suffix("").parts
    return next((parts[start:] for start in range(len(parts)) if parts[start:] in found), None)


def _without_shared(jobs: list[Job]) -> tuple[list[Job], Failures]:
    """The jobs that have points of their own."""
    users: dict[Path | None, list[Job]] = defaultdict(list)
    for job in jobs:
        users[job.points].append(job)
    shared = [(job, group) for group in users.values() if len(group) > 1 for job in group]
    failures = [
        (str(job.source), f"shares {job.points} with {len(group) - 1} more image{'s' * (len(group) > 2)} of its name")
        for job, group in shared
    ]
    return [group[0] for group in users.values() if len(group) == 1], failures
