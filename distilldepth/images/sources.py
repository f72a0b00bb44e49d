"""Where training images come from: folders, globs, lists, tar shards and procedural scenes, all with random access.

Random access makes a run repeatable: step n sees the same images whether or not the run was interrupted before.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from distilldepth.errors import DistillDepthError, UsageError, shown
from distilldepth.files import cache_folder, expand_user
from distilldepth.images.decode import IMAGE_SUFFIXES, decode_image, is_image_name, list_images, path_exists, read_image
from distilldepth.images.listing import glob_files, is_own_picture, natural_key, walk_files, warn_of_own
from distilldepth.images.tar import compressed_error, is_plain, walk_tar

_COMPRESSED_TAR = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|z))$", re.IGNORECASE)


SCENES = ("scenes", STEREO_SCENES := "stereo-scenes")
"""What procedural scenes are asked for by: single views of any camera, and pairs of the views of two fixed ones."""
MAX_SHARDS = 100_000
"""Files that a pattern with braces may stand for."""
MAX_SCENES = 1_000_000
"""Scenes that `scenes:COUNT` may ask for: as many as there are without a count."""
_MAX_BRACES = 100
_MAX_DIGITS = 18
_MAX_FILE = 1 << 30
"""Bytes of an image in a shard; no image of a permitted number of pixels has more."""


class Sample(TypedDict, total=False):
    """One image before cropping. `image` and `name` are always there."""

    image: np.ndarray
    """uint8 `(H, W, 3)`, RGB."""
    name: str
    """The file's path, `shard.tar/member`, or `scene-000123`."""
    depth: np.ndarray
    """float32 `(H, W)`, metres; inf = sky, NaN = unknown. Only where the truth is known."""
    intrinsics: np.ndarray
    """float32 `(3, 3)`, pixels."""
    right: np.ndarray
    """uint8 `(H, W, 3)`, the second view of a rectified stereo pair."""
    baseline_m: float
    """Distance between the two views, metres."""
    mirrored: bool
    """Whether left and right were exchanged."""


class Samples(Protocol):
    """A fixed sequence of images; an unreadable one raises `DistillDepthError` or `FileNotFoundError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class ImageSource(Samples, Protocol):
    """What `--images` names."""

    @property
    def has_depth(self) -> bool:
        """Every sample has `depth`."""

    @property
    def description(self) -> str:
        """One line for reports."""

    @property
    def has_right(self) -> bool:
        """Every sample has `right`, the second view of a rectified stereo pair."""

    @property
    def has_cameras(self) -> bool:
        """Every sample has `right` with `intrinsics` and `baseline_m`, which make metres of disparity."""

    @property
    def names(self) -> Sequence[str] | None:
        """Of each image, the same wherever the whole collection lies; None for scenes, which have numbers."""


class FolderSource:
    """Image files on disk, each decoded when it is asked for.

    Args:
        spec: a folder, glob, `.txt` list or single file; see `list_images`.
        max_side: images with a longer side are divided by 2, 3, ... until they fit; see `images.read_image`.

    Raises:
        FileNotFoundError, DistillDepthError: nothing is found.
    """

    has_depth = has_right = has_cameras = False

    def __init__(self, spec: str | os.PathLike, *, max_side: int | None = None) -> None:
        self.paths = [str(path) for path in list_images(spec)]
        self.max_side = _checked_max_side(max_side)
        root = os.path.expanduser(spec)
        self.names = [os.path.relpath(path, root) for path in self.paths] if os.path.isdir(root) else list(self.paths)
        self.description = f"{os.fspath(spec)} ({_count(len(self.paths), 'image')})"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[_checked_index(self, index)]
        return {"image": read_image(path, max_side=self.max_side), "name": path}


class TarSource:
    """The image members of uncompressed tar shards, found once and then read by position.

    A shard is opened for each read: nothing is shared between worker processes, whether forked or spawned.

    Args:
        paths: the shards.
        max_side: images with a longer side are divided by 2, 3, ... until they fit; see `images.read_image`.

    Raises:
        FileNotFoundError: a shard does not exist.
        DistillDepthError: a shard is compressed, truncated or no tar file, or there is no image in any of them.
        ValueError: no shard is given, or `max_side` is below 1.
    """

    has_depth = has_right = has_cameras = False

    def __init__(self, paths: Sequence[str | os.PathLike], *, max_side: int | None = None) -> None:
        if not paths:
            raise ValueError("TarSource: paths must not be empty, got none; give at least one shard")
        self.paths = [os.fspath(path) for path in paths]
        self.max_side = _checked_max_side(max_side)
        shards, offsets, sizes, self._names, own = [], [], [], [], []
        for shard, path in enumerate(self.paths):
            for name, member in walk_tar(path):
                if is_plain(member) and _is_wanted(name):
                    if name.lower().endswith(".png") and _is_own_member(path, member.offset_data):
                        own.append(f"{path}/{name}")
                        continue
                    if member.size > _MAX_FILE:
                        raise DistillDepthError(
                            f"{path}/{name}: has {member.size} bytes, an image has at most {_MAX_FILE}; the shard is "
                            "damaged"
                        )
                    shards.append(shard)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    self._names.append(name)
        # Arrays, not tuples: a million members stay small, and pickle to a worker quickly.
        self._shards = np.array(shards, dtype=np.int32)
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int64)
        self.names = [
            f"{os.path.basename(self.paths[shard])}/{name}" for shard, name in zip(shards, self._names, strict=True)
        ]
        where = self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} tar shards from {self.paths[0]}"
        warn_of_own(where, own, len(own) + len(self._names))
        if not self._names:
            raise DistillDepthError(f"{where}: no image among the members; searched for {' '.join(IMAGE_SUFFIXES)}")
        self.description = f"{where} ({_count(len(self._names), 'image')})"

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        index = _checked_index(self, index)
        path = self.paths[self._shards[index]]
        name = f"{path}/{self._names[index]}"
        try:
            with open(path, "rb") as file:
                file.seek(int(self._offsets[index]))
                data = file.read(int(self._sizes[index]))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; it was there when the shard was scanned") from None
        except OSError as error:
            raise DistillDepthError(f"{name}: cannot be read ({error.strerror or error})") from error
        return {"image": decode_image(data, name, max_side=self.max_side), "name": name}


class ConcatSource:
    """Several sources one after the other. It has depth, or second views, only if all of them have; otherwise these are
    left out.

    Raises:
        ValueError: no source is given.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        if not sources:
            raise ValueError("ConcatSource: sources must not be empty, got none; give at least one")
        self.sources = list(sources)
        self.has_depth = all(source.has_depth for source in sources)
        self.has_right = all(source.has_right for source in sources)
        self.has_cameras = all(source.has_cameras for source in sources)
        self.description = " + ".join(source.description for source in sources)
        self.names: list[str] | None = None
        if any(source.names is not None for source in self.sources):
            self.names = [name for source in self.sources for name in source.names or map(str, range(len(source)))]
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        index = _checked_index(self, index)
        which = bisect.bisect_right(self._ends, index)
        sample = self.sources[which][index - (self._ends[which - 1] if which else 0)]
        left_out = [key for key, has in (("depth", self.has_depth), ("right", self.has_right)) if not has]
        if any(key in sample for key in left_out):
            sample = sample.copy()
            for key in left_out:
                sample.pop(key, None)  # type: ignore[misc]
        return sample


def open_source(
    spec: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    max_side: int | None = None,
) -> ImageSource:
    """Open what `--images` names.

    | spec | source |
    |---|---|
    | `scenes` | endless procedural scenes; a folder of that name is `./scenes` |
    | `scenes:5000` | a fixed set of scenes, rendered once and kept in the cache folder |
    | `stereo-scenes`, `stereo-scenes:5000` | the same of roads and streets, as pairs of views of two fixed cameras |
    | a folder | its images and those of its subfolders; its `.tar` shards if it has no images |
    | `photos/*.jpg`, `list.txt`, `one.jpg` | the files; see `list_images` |
    | `shards/a.tar`, `shards/*.tar`, `shards/{000..012}.tar` | the images in uncompressed tar shards |

    Several specs are joined, each image counting once.

    Args:
        spec: one of the above, or a list of them.
        size: (height, width) of procedural scenes; None for their default.
        seed: seed of procedural scenes.
        max_side: photographs whose longer side exceeds this many pixels are divided by the smallest whole number that
            makes them fit (for JPEG mostly while decoding, which is several times faster); None keeps every pixel.

    Returns:
        The source, with a sample at each index; nothing is decoded yet.

    Raises:
        FileNotFoundError: the path does not exist.
        DistillDepthError: no image is found, or a shard cannot be used.
        UsageError: no spec, a scene count that is not a positive whole number, or a pattern for too many files.
    """
    specs = [spec] if isinstance(spec, (str, os.PathLike)) else list(spec)
    if not specs or not all(os.fspath(item).strip() for item in specs):
        raise UsageError("open_source: spec must name a folder, glob, list, tar shard or `scenes`, got an empty one")
    sources = [_open_one(os.fspath(item), size, seed, max_side) for item in specs]
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def parse_count(text: str) -> int | None:
    """Return the number of scenes that a text says, None unless it is from 1 to `MAX_SCENES`."""
    if not (text.isdecimal() and len(text) <= _MAX_DIGITS and 1 <= int(text) <= MAX_SCENES):
        return None
    return int(text)


def check_readable(source: ImageSource, max_tries: int = 1000) -> None:
    """Raise unless an image can be read: of each of several joined sources, so that none is replaced in silence.

    Args:
        source: any.
        max_tries: of more images so many are tried, spread evenly.

    Raises:
        DistillDepthError: none can be read; the message has the first reason.
    """
    if isinstance(source, ConcatSource):
        for part in source.sources:
            check_readable(part, max_tries)
        return
    count, first = len(source), None
    step = max(count / max_tries, 1.0)
    tried = [int(number * step) for number in range(min(count, max_tries))]
    for index in tried:
        try:
            source[index]
        except (DistillDepthError, FileNotFoundError) as error:
            first = first or error
        else:
            return
    if count == 1:
        raise DistillDepthError(str(first))
    some = f"all {count} images" if len(tried) == count else f"{len(tried)} of {count} images, spread evenly,"
    raise DistillDepthError(f"{source.description}: {some} cannot be read; the first: {first}")


def load_or_replace(
    source: Samples, index: int, max_tries: int = 1000
) -> tuple[Sample, list[DistillDepthError | FileNotFoundError]]:
    """Load an image, or the next readable one after it (from the start again after the last).

    The replacement depends only on the index and the files, so a resumed run replaces the same way.

    Returns:
        The sample, and the errors of the images that could not be read: empty if all was well.

    Raises:
        DistillDepthError: `max_tries` images in a row, or all there are, cannot be read.
    """
    errors: list[DistillDepthError | FileNotFoundError] = []
    count = len(source)
    for step in range(min(max_tries, count)):
        try:
            return source[(index + step) % count], errors
        except (DistillDepthError, FileNotFoundError) as error:
            errors.append(error)
    if len(errors) < 2:
        raise DistillDepthError(str(errors[0])) from errors[0]
    raise DistillDepthError(f"{len(errors)} images in a row cannot be read; the first: {errors[0]}") from errors[0]


def expand_braces(pattern: str) -> list[str]:
    """Return the names that `{000..012}` and `{a,b}` in a pattern stand for, in order, leading zeros kept.

    Raises:
        UsageError: more than `MAX_SHARDS` names.

    >>> expand_braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    names = list(itertools.islice(_expand(pattern, 0), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise UsageError(f"open_source: {shown(pattern)} stands for more than {MAX_SHARDS} files; name fewer at once")
    return names


def _expand(pattern: str, depth: int) -> Iterator[str]:
    """One name after the other, so that a pattern that stands for billions costs nothing until they are asked for."""
    if depth > _MAX_BRACES:
        raise UsageError(f"open_source: {shown(pattern)} has more than {_MAX_BRACES} braces; name fewer files at once")
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    bounds = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1])
    choices: Iterable[str]
    if bounds:
        if max(map(len, bounds.groups())) > _MAX_DIGITS:
            raise UsageError(f"open_source: {shown(pattern)} counts with more than {_MAX_DIGITS} digits")
        first, last = int(bounds[1]), int(bounds[2])
        counted = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices = (str(number).zfill(len(bounds[1])) for number in counted)
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        # Not a brace pattern: keep these braces and look at the rest.
        for tail in _expand(pattern[match.end() :], depth + 1):
            yield pattern[: match.end()] + tail
        return
    for choice in choices:
        yield from _expand(pattern[: match.start()] + choice + pattern[match.end() :], depth + 1)


def _open_one(spec: str, size: tuple[int, int] | None, seed: int, max_side: int | None) -> ImageSource:
    if spec.partition(":")[0] in SCENES:
        return _open_scenes(spec, size, seed)
    path = expand_user(spec)
    if path_exists(path) and path.is_dir():
        try:
            return FolderSource(path, max_side=max_side)
        except DistillDepthError:
            shards = sorted(filter(os.path.isfile, walk_files(path, _is_tar_name)), key=natural_key)
            if not shards:
                raise
            return TarSource(shards, max_side=max_side)
    if _COMPRESSED_TAR.search(spec):
        raise compressed_error(spec, "compressed")
    if spec.lower().endswith(".tar"):
        return TarSource(_list_shards(path), max_side=max_side)
    return FolderSource(spec, max_side=max_side)


def _open_scenes(spec: str, size: tuple[int, int] | None, seed: int) -> ImageSource:
    word, _, text = spec.partition(":")
    count = None
    if ":" in spec:
        count = parse_count(text)
        if count is None:
            raise UsageError(
                f"open_source: {word}:COUNT must have a positive whole number, at most {MAX_SCENES}, got {shown(spec)}"
            )
    from distilldepth.scenes.render import CAR
    from distilldepth.scenes.source import SceneSource

    cache = cache_folder() / "scenes" if count else None
    rig = CAR if word == STEREO_SCENES else None
    # Scenes lie below images: their samples are dictionaries that know nothing of `Sample`.
    return SceneSource(size or (192, 256), count=count, seed=seed, cache=cache, rig=rig)  # type: ignore[return-value]


def _list_shards(path: Path) -> list[str]:
    """The shards that a path, brace pattern or glob names."""
    if path_exists(path):
        return [str(path)]
    shards = []
    for name in expand_braces(str(path)):
        if path_exists(Path(name)) or not glob.has_magic(name):
            shards.append(name)
            continue
        matches = [str(match) for match in sorted(glob_files(Path(name), _is_tar_name), key=natural_key)]
        if not matches:
            raise DistillDepthError(f"{name}: no tar shard matches this pattern")
        shards += matches
    return shards


def _is_own_member(path: str, offset: int) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return is_own_picture(file)
    except OSError:
        return False


def _is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar")


def _is_wanted(name: str) -> bool:
    *folders, file = name.split("/")
    return is_image_name(file) and not any(folder.startswith(".") or folder == "__MACOSX" for folder in folders)


def _checked_index(source: Sized, index: int) -> int:
    """The index counted from 0; sequences end with IndexError, which is what stops a plain `for`."""
    count = len(source)
    if not -count <= index < count:
        raise IndexError(f"index must be in 0..{count - 1}, got {index}")
    return int(index) % count


def _checked_max_side(max_side: int | None) -> int | None:
    if max_side is not None and max_side < 1:
        raise ValueError(f"open_source: max_side must be at least 1, got {max_side}")
    return max_side


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
