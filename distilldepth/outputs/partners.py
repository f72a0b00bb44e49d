"""Which file of a second kind belongs to which photograph: points of known depth, right views."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.files import expand_user
from distilldepth.outputs.plan import Job, check_sources_survive

Failures = list[tuple[str, str]]
"""Source and what is wrong with it."""


@dataclass(frozen=True)
class PartnerKind:
    """What photographs are paired with."""

    field: str
    """Of `Job`, where the partner goes."""
    option: str
    """Which names the file or folder."""
    one: str
    """What a photograph has, in words."""
    several: str
    """What it has if there are several."""
    describe: Callable[[str], str]
    """Says which file is looked for, from the photograph's name without suffix."""
    find: Callable[[Path, Path | None], Iterable[Path]]
    """Gives the files below a folder; without those below the second."""


def pair_with(
    jobs: Sequence[Job], kind: PartnerKind, given: str | Path, out: str | Path, *, whole: bool = False
) -> tuple[list[Job], Failures]:
    """Give every job its file.

    In a folder that is the one with the photograph's name before the suffix; below folders as many of their names are
    compared as there are, so that `photos/a/1.jpg` belongs to `points/a/1.npy` rather than to `points/1.npy`.
    Photographs that lie in the folder of the partners, where that is not theirs, are partners themselves.

    Args:
        jobs: of photographs.
        kind: what they are paired with.
        given: a file, for one photograph, or a folder.
        out: what is below it are results.
        whole: whether files without a photograph are missed too: the photographs are those of folders.

    Returns:
        The jobs with partners, and what was left over.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UsageError: one file for several photographs; an output that would replace what is read.
        DistillDepthError: no photograph has a partner.
    """
    path = expand_user(given)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if not path.is_dir():
        if len(jobs) > 1:
            raise UsageError(f"{kind.option} {path} names one file, but there are {len(jobs)} images; name a folder")
        paired = [_with(job, kind, path) for job in jobs]
        check_sources_survive(paired)
        return paired, []
    jobs = _without_partners(jobs, path)
    found = _by_stem(kind, path, Path(out))
    paired, failures = [], []
    for job in jobs:
        key = _longest(job.source, found)
        if key is None:
            looked_for = kind.describe(job.source.stem)
            failures.append((str(job.source), f"has no {kind.one}: {path} holds no {looked_for}"))
        elif len(found[key]) > 1:
            names = " and ".join(other.name for other in found[key][:3])
            failures.append((str(job.source), f"has several {kind.several} in {path}: {names}; keep one"))
        else:
            paired.append(_with(job, kind, found[key][0]))
    paired, doubled = _without_shared(paired, kind)
    if not paired:
        reason = (failures + doubled)[0] if failures or doubled else (str(path), "there are no photographs for it")
        what = kind.one if kind.one.endswith("s") else f"a {kind.one}"
        raise DistillDepthError(f"no photograph has {what}; the first: {reason[0]}: {reason[1]}")
    if whole:
        used = {other for job in jobs if (key := _longest(job.source, found)) for other in found[key]}
        left = sorted(other for group in found.values() for other in group if other not in used)
        failures += [(str(other), "has no photograph of that name") for other in left]
    check_sources_survive(paired)
    return paired, failures + doubled


def _with(job: Job, kind: PartnerKind, partner: Path) -> Job:
    changes: dict[str, Path] = {kind.field: partner}
    return replace(job, **changes)  # type: ignore[arg-type]  # Both fields are paths.


def _partner(job: Job, kind: PartnerKind) -> Path | None:
    partner: Path | None = getattr(job, kind.field)
    return partner


def _without_partners(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs whose photographs do not lie in the folder of the partners, unless all do."""
    inside = os.path.realpath(folder) + os.sep
    outside = [job for job in jobs if not os.path.realpath(job.source).startswith(inside)]
    return outside or list(jobs)


def _by_stem(kind: PartnerKind, folder: Path, out: Path) -> dict[tuple[str, ...], list[Path]]:
    """Partners by the parts of their place in the folder, without the suffix."""
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for partner in sorted(kind.find(folder, out if out.is_dir() else None)):
        found[partner.relative_to(folder).with_suffix("").parts].append(partner)
    return found


def _longest(source: PurePath, found: dict[tuple[str, ...], list[Path]]) -> tuple[str, ...] | None:
    """The key that shares the most of a photograph's path, from its end."""
    parts = source.with_suffix("").parts
    return next((parts[start:] for start in range(len(parts)) if parts[start:] in found), None)


def _without_shared(jobs: list[Job], kind: PartnerKind) -> tuple[list[Job], Failures]:
    """The jobs that have a partner of their own."""
    users: dict[Path | None, list[Job]] = defaultdict(list)
    for job in jobs:
        users[_partner(job, kind)].append(job)
    shared = [(job, group) for group in users.values() if len(group) > 1 for job in group]
    failures = [
        (
            str(job.source),
            f"shares {_partner(job, kind)} with {len(group) - 1} more image{'s' * (len(group) > 2)} of its name",
        )
        for job, group in shared
    ]
    return [group[0] for group in users.values() if len(group) == 1], failures
