"""Which image becomes which files: whatever is wrong about names is found here, before any model is loaded."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distilldepth.errors import UsageError, did_you_mean, refuse_url
from distilldepth.files import expand_user, place, places
from distilldepth.formats.table import FORMATS, PREDICTED, UNCERTAINTY, format_of_suffix, listed_suffixes

if TYPE_CHECKING:
    from distilldepth.datasets.rgbd import ManifestViews

_UNFIT_SUFFIXES = (
    ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".exr", ".npz", ".pfm", ".glb", ".obj",
    ".avif", ".heic", ".csv", ".json", ".txt", ".mat", ".h5", ".hdf5", ".pcd", ".xyz", ".mp4",
)  # fmt: skip


@dataclass
class Job:
    """One image and the files to be made of it."""

    source: Path
    outputs: dict[str, Path] = field(default_factory=dict)
    """Format: file."""
    points: Path | None = None
    """What is known of its depth, where that is a file besides."""
    right: Path | None = None
    """The right view of which the image is the left one, where there is one."""
    focal_px: float | None = None
    """Of the pair's cameras, where a manifest says it."""
    baseline_m: float | None = None
    """Metres between them, likewise."""


@dataclass(frozen=True)
class _Found:
    source: Path
    relative: Path
    missing: bool = False
    views: ManifestViews | None = None
    """What a manifest says of it."""


def plan_jobs(
    inputs: Sequence[str | Path],
    out: str | Path,
    formats: Sequence[str] | None = None,
    *,
    uncertainty: bool = False,
) -> tuple[list[Job], bool]:
    """Return the jobs, and whether `out` is one file (True) or a folder (False).

    `out` is a file if it ends in .png, .npy or .ply and is no folder yet. The format that fits its suffix
    takes that name, further formats are written beside it. Under a folder the tree of every input folder is
    kept: `photos/a/b.jpg` of the input `photos` becomes `out/a/b.png` (png16), `b_color.png`, `b.npy`, `b.ply`.

    Args:
        inputs: files, folders (all images below them, but for those below `out`), glob patterns, .txt lists, .jsonl
            manifests (see `read_views`; the right view and camera of each image go into its job).
        out: a file for one image, or a folder.
        formats: of `PREDICTED`; None for the one that the suffix of `out` says, or png16.
        uncertainty: whether a second map lies beside each, of the same format: `b_uncertainty.png`,
            `b_uncertainty_color.png`, `b_uncertainty.npy`; ply has none.

    Raises:
        FileNotFoundError: nothing was found.
        ValueError: the names contradict each other; nothing has been written then.
    """
    if str(out) in ("", "-"):
        # "" is what an unset variable of a shell becomes, and would be the current folder.
        raise UsageError(f"-o must name a file or a folder, got '{out}'")
    refuse_url(out)
    out = Path(out)
    for name in formats or ():
        if name not in PREDICTED:
            raise UsageError(f"plan_jobs: formats must be known, got {name!r}{did_you_mean(name, PREDICTED)}")
    suffix = out.suffix.lower()
    meant = None if out.is_dir() else format_of_suffix(suffix)
    is_file = meant is not None
    if suffix in _UNFIT_SUFFIXES and not out.is_dir() and not is_file:
        raise UsageError(f"{out}: {suffix} cannot hold a depth map here; name a {listed_suffixes()} file, or a folder")
    if out.exists() and not out.is_dir() and not is_file:
        raise UsageError(f"{out}: this is a file; name a folder, or a {listed_suffixes()} file")
    formats = list(dict.fromkeys(formats)) if formats else [meant or PREDICTED[0]]
    found = _find(inputs, out)
    if uncertainty:
        second = [UNCERTAINTY[name] for name in formats if name in UNCERTAINTY]
        if not second:
            raise UsageError(
                f"--uncertainty: {' and '.join(formats)} cannot hold it; add --as {', '.join(UNCERTAINTY)} or several"
            )
        formats = [*formats, *second]
    if is_file:
        jobs = _plan_file(found, out, formats)
    else:
        jobs = _plan_folder(found, out, formats)
    check_sources_survive(jobs)
    return jobs, is_file


def _find(inputs: Sequence[str | Path], out: Path) -> list[_Found]:
    from distilldepth.datasets.rgbd import read_views
    from distilldepth.images.decode import list_images, path_exists
    from distilldepth.images.listing import fixed_part, without_own

    groups: list[tuple[Path | None, list[Path]]] = []
    views: dict[str, ManifestViews] = {}
    target = os.path.realpath(out)
    for item in inputs:
        if item == "":
            raise UsageError("an input must name a file, a folder or a glob pattern, got ''")
        path = expand_user(item)
        if path.is_dir():
            if os.path.realpath(path) == target:
                raise UsageError(f"-o {out}: this is the input folder; name another folder")
            # A second run must not take the first one's results for photographs.
            groups.append((path, list_images(path, without=out)))
        elif path.exists() and path.suffix.lower() == ".txt":
            images = list_images(path)
            groups.append((Path(os.path.commonpath([image.parent for image in images])), images))
        elif path.exists() and path.suffix.lower() == ".jsonl":
            read = read_views(path)
            images = [each.image for each in read]
            if len({image.is_absolute() for image in images}) > 1:
                images = [Path(os.path.abspath(image)) for image in images]
            views |= {os.path.abspath(each.image): each for each in read}
            groups.append((Path(os.path.commonpath([image.parent for image in images])), images))
        elif path.exists() or not glob.has_magic(str(path)):
            groups.append((None, [path]))
        else:
            folder = fixed_part(path)
            if os.path.realpath(folder) == target:
                raise UsageError(f"-o {out}: this is the folder of the input {path}; name another folder")
            groups.append((folder, list_images(path, without=out)))
    folders = {os.path.abspath(folder) for folder, _ in groups if folder is not None}
    single = [index for index, (folder, _) in enumerate(groups) if folder is None]
    if single:
        # A shell replaces `photos/*.png` by the files before this program sees it.
        names = [image for index in single for image in groups[index][1]]
        kept = set(without_own(names, str(names[0]) if len(names) == 1 else "the input"))
        groups = [(folder, [image for image in images if folder or image in kept]) for folder, images in groups]
    # By place: `a.jpg`, `./a.jpg` and a glob that matches it are one image.
    found: dict[str, _Found] = {}
    for base, images in groups:
        for image in images:
            relative = Path(image.name) if base is None else image.relative_to(base)
            if base is not None and len(folders) > 1:
                relative = Path(base.resolve().name) / relative
            place = os.path.abspath(image)
            missing = not path_exists(image)
            found.setdefault(place, _Found(image, relative, missing, views.get(place)))
    if not found:
        raise UsageError("no input given; name files, folders or glob patterns")
    items = list(found.values())
    if all(item.missing for item in items):
        raise FileNotFoundError(2, "No such file or directory", str(items[0].source))
    return items


def _plan_file(found: list[_Found], out: Path, formats: list[str]) -> list[Job]:
    if len(found) > 1:
        raise UsageError(f"-o {out} names one file, but there are {len(found)} images; name a folder")
    suffix = out.suffix.lower()
    # The table has png16 before color: if both are asked for, the plain name is the one with the numbers.
    own = next((name for name in PREDICTED if name in formats and FORMATS[name].suffix == suffix), None)
    if own is None:
        raise UsageError(
            f"-o {out} contradicts --as {','.join(formats)}; name a {FORMATS[formats[0]].suffix} file or a folder"
        )
    outputs = {name: out if name == own else out.with_name(out.stem + FORMATS[name].ending) for name in formats}
    return [_job(found[0], outputs)]


def _job(found: _Found, outputs: dict[str, Path]) -> Job:
    views = found.views
    if views is None:
        return Job(found.source, outputs)
    return Job(found.source, outputs, right=views.right, focal_px=views.focal_px, baseline_m=views.baseline_m)


def _plan_folder(found: list[_Found], out: Path, formats: list[str]) -> list[Job]:
    relatives = [item.relative for item in found]
    if _repeated(relative.with_suffix("") for relative in relatives):
        # Equal names from several places: keep as much of each path as tells them apart.
        if _repeated(relatives):
            absolute = [Path(os.path.abspath(item.source)) for item in found]
            common = Path(os.path.commonpath([path.parent for path in absolute]))
            relatives = [path.relative_to(common) for path in absolute]
        stems = Counter(relative.with_suffix("") for relative in relatives)
        relatives = [
            relative.with_name(relative.name + ".x") if stems[relative.with_suffix("")] > 1 else relative
            for relative in relatives
        ]
    jobs = []
    for item, relative in zip(found, relatives, strict=True):
        stem = relative.with_suffix("").name
        outputs = {name: out / relative.parent / (stem + FORMATS[name].ending) for name in formats}
        jobs.append(_job(item, outputs))
    taken = Counter(path for job in jobs for path in job.outputs.values())
    for job in jobs:
        for path in job.outputs.values():
            if taken[path] > 1:
                raise ValueError(f"{path}: {taken[path]} images would be written to this file; rename one of them")
    return jobs


def _repeated(items: Iterable[Path]) -> bool:
    return any(count > 1 for count in Counter(items).values())


def check_sources_survive(jobs: Sequence[Job]) -> None:
    """Raise UsageError if an output would replace what is read; a source that is a link is lost with the link and with
    what it leads to."""
    images = {name for job in jobs for name in places(job.source)}
    points = {name for job in jobs if job.points for name in places(job.points)}
    rights = {name for job in jobs if job.right for name in places(job.right)}
    for path in (path for job in jobs for path in job.outputs.values()):
        if place(path) in images | points | rights:
            what = "a file of points" if place(path) in points else "an input image"
            raise UsageError(f"{path}: this output would replace {what}; choose another name or folder")
