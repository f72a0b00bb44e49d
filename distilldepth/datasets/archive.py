"""Where the files of a benchmark are: below a folder or in plain tar files, under whatever folders they were put."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from distilldepth.errors import DistillDepthError
from distilldepth.files import expand_user
from distilldepth.images.decode import natural_key, open_file
from distilldepth.images.tar import is_plain, walk_tar

_DEPTH = 4
"""How many folders may lie between the given root and the layout that is looked for."""
_MAX_FILE = 1 << 31
_MAX_FOLDERS = 20_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z")


class Span(NamedTuple):
    """Where the bytes of a file are."""

    path: str
    offset: int
    size: int


class Readable(ABC):
    """A file of a dataset, wherever its bytes are."""

    @property
    @abstractmethod
    def exists(self) -> bool:
        """Whether the file is there."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the content."""

    def read_array(self, dtype: str) -> np.ndarray:
        """Return the content as a flat, writable array."""
        return np.frombuffer(bytearray(self.read()), dtype)


@dataclass(frozen=True)
class Stored(Readable):
    """One file of a `Folder` or a `Tar`; it need not exist."""

    archive: Folder | Tar
    name: str

    def __str__(self) -> str:
        return self.archive.describe(self.name)

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return self.archive.find(self.name) is not None

    def span(self) -> Span:
        """Return where the bytes are.

        Raises:
            FileNotFoundError: there is no such file.
        """
        span = self.archive.find(self.name)
        if span is None:
            raise FileNotFoundError(f"{self}: no such file")
        return span

    def read(self) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: there is no such file.
            DistillDepthError: it is empty, or cannot be read completely.
        """
        span = self.span()
        if span.size > _MAX_FILE:
            raise DistillDepthError(f"{self}: has {span.size} bytes, more than any image or map ({_MAX_FILE})")
        with open_file(span.path) as (file, _):
            file.seek(span.offset)
            data = file.read(span.size)
        if not data or len(data) != span.size:
            raise DistillDepthError(f"{self}: " + ("is truncated" if data else "is empty"))
        return data

    def read_array(self, dtype: str) -> np.ndarray:
        """Return the content as a flat, writable array, without a second copy in memory.

        Raises:
            FileNotFoundError: there is no such file.
            DistillDepthError: it is empty, truncated, or no whole number of values.
        """
        span, width = self.span(), np.dtype(dtype).itemsize
        if span.size > _MAX_FILE:
            raise DistillDepthError(f"{self}: has {span.size} bytes, more than any map ({_MAX_FILE})")
        if not span.size or span.size % width:
            raise DistillDepthError(f"{self}: must hold values of {width} bytes, has {span.size} bytes")
        with open_file(span.path) as (file, _):
            values = np.fromfile(file, dtype=dtype, count=span.size // width, offset=span.offset)
        if values.size * width != span.size:
            raise DistillDepthError(f"{self}: is truncated")
        return values


class Folder:
    """Files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._levels: list[list[str]] = [[""]]

    def describe(self, name: str) -> str:
        """Return what messages call a file."""
        return str(self.path / name)

    def find(self, name: str) -> Span | None:
        """Return where a file's bytes are; None if there is no such file."""
        path = os.path.join(self.path, name)
        try:
            return Span(path, 0, os.path.getsize(path)) if os.path.isfile(path) else None
        except (OSError, ValueError):
            return None

    def tops(self, tails: Sequence[str]) -> Iterator[str]:
        """The folders in which one of `tails` is a file, the outermost first."""
        for depth in range(_DEPTH + 1):
            for top in self._level(depth):
                if any(os.path.isfile(self.path / top / tail) for tail in tails):
                    yield top

    def glob(self, pattern: str) -> list[str]:
        """The files that match, in natural order; `*` stands for one part of a name."""
        found = (path.relative_to(self.path).as_posix() for path in self.path.glob(pattern) if path.is_file())
        return sorted(filter(_is_wanted, found), key=natural_key)

    def _level(self, depth: int) -> list[str]:
        """The folders that are `depth` below, listed when they are first asked for."""
        while len(self._levels) <= depth:
            below: list[str] = []
            for folder in self._levels[-1]:
                if len(below) < _MAX_FOLDERS:
                    below += sorted(self._folders(folder), key=natural_key)
            self._levels.append(below)
        return self._levels[depth]

    def _folders(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_dir():
                        yield f"{folder}/{entry.name}" if folder else entry.name
        except OSError:
            # A closed folder holds nothing for us; if the data is in it, the message that nothing was found says so.
            return


class Tar:
    """The members of an uncompressed tar file, found once and then read by position."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self, name: str) -> str:
        """Return what messages call a member."""
        return f"{self.path}/{name}"

    def find(self, name: str) -> Span | None:
        """Return where a member's bytes are; None if there is no such member."""
        return self.members.get(name)

    def tops(self, tails: Sequence[str]) -> Iterator[str]:
        """The folders in which one of `tails` is a member, the outermost first."""
        wanted: dict[str, list[str]] = {PurePosixPath(tail).name: [] for tail in tails}
        for tail in tails:
            wanted[PurePosixPath(tail).name].append(tail)
        found = set()
        for name in self.members:
            for tail in wanted.get(name.rpartition("/")[2], ()):
                if name == tail or name.endswith("/" + tail):
                    found.add(name[: -len(tail)].rstrip("/"))
        yield from sorted(found, key=lambda top: (top.count("/") + bool(top), natural_key(top)))

    def glob(self, pattern: str) -> list[str]:
        """The members that match, in natural order; `*` stands for one part of a name."""
        parts = pattern.split("/")
        found = (
            name for name in self.members if name.count("/") + 1 == len(parts) and PurePosixPath(name).match(pattern)
        )
        return sorted(filter(_is_wanted, found), key=natural_key)

    @cached_property
    def members(self) -> dict[str, Span]:
        """Name without `./` and place of every file.

        Raises:
            DistillDepthError: the file is compressed, truncated or no tar file.
        """
        members: dict[str, Span] = {}
        path = str(self.path)
        for name, member in walk_tar(path):
            if member.islnk():
                target = members.get(member.linkname.removeprefix("./"))
                if target is not None:
                    members[name] = target
            elif is_plain(member):
                members[name] = Span(path, member.offset_data, member.size)
        return members


@dataclass(frozen=True)
class Place:
    """A folder of an archive that the names in a list are relative to."""

    archive: Folder | Tar
    top: str

    def file(self, name: str) -> Stored:
        """Return a file of this place."""
        return Stored(self.archive, f"{self.top}/{name}" if self.top else name)


class Root:
    """What the user named: a folder, with the tar files in it, or one tar file.

    Raises:
        FileNotFoundError: there is no such file or folder.
        DistillDepthError: a compressed archive.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = expand_user(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file or folder")
        if self.path.name.lower().endswith(_COMPRESSED):
            raise DistillDepthError(
                f"{self.path}: is compressed, and single files cannot be found in it; unpack it or use a plain .tar"
            )

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def archives(self) -> list[Folder | Tar]:
        """The folder first, then the tar files directly in it or one folder below; a tar is scanned on first use."""
        if self.path.is_file():
            return [Tar(self.path)] if self.path.name.lower().endswith(".tar") else []
        tars = sorted({*self.path.glob("*.tar"), *self.path.glob("*/*.tar")}, key=natural_key)
        return [Folder(self.path), *(Tar(tar) for tar in tars if tar.is_file())]

    @property
    def compressed(self) -> list[str]:
        """Names of the compressed archives directly in the folder, which nothing is found in."""
        if not self.path.is_dir():
            return []
        return sorted(name for name in os.listdir(self.path) if name.lower().endswith(_COMPRESSED))

    def place(self, tails: Iterable[str]) -> Place | None:
        """Find where files of these names are.

        Args:
            tails: some of the names in a list; one that exists is enough.

        Returns:
            The outermost folder in which one of them is a file; None if there is none.
        """
        tails = list(tails)
        for archive in self.archives:
            for top in archive.tops(tails):
                return Place(archive, top)
        return None

    def files(self, names: Sequence[str]) -> list[Stored]:
        """Find files by name, wherever they are: beside the data, in a folder of it, in a tar or beside that.

        Returns:
            The outermost file of each name, in the order of `names`; those that are nowhere are left out.
        """
        archives = list(self.archives)
        if self.path.is_file():
            archives.append(Folder(self.path.parent))
        found = []
        for name in names:
            for archive in archives:
                # Beside a tar, only its own folder is searched: what lies next to it is no business of this data.
                beside = self.path.is_file() and isinstance(archive, Folder)
                tops = [""] if beside and archive.find(name) else [] if beside else archive.tops([name])
                top = next(iter(tops), None)
                if top is not None:
                    found.append(Place(archive, top).file(name))
                    break
        return found

    def glob(self, pattern: str, *, nested: bool = True) -> tuple[Place, list[str]] | None:
        """Find files by a pattern, below as few folders as possible.

        Args:
            pattern: relative path; `*` stands for one part of a name.
            nested: whether there may be folders above.

        Returns:
            The place, and the names relative to it; None if nothing matches. Of several places the one that is called
            `val` or `test` is taken, else all their files are given, relative to the root.
        """
        for archive in self.archives:
            for depth in range(_DEPTH + 1 if nested else 1):
                names = archive.glob("*/" * depth + pattern)
                if not names:
                    continue
                tops = {"/".join(name.split("/")[:depth]) for name in names}
                if len(tops) > 1:
                    tops = {top for top in tops if top.rpartition("/")[2] in ("val", "test")} or tops
                if len(tops) > 1:
                    return Place(archive, ""), names
                top = tops.pop()
                prefix = f"{top}/" if top else ""
                return Place(archive, top), [name[len(prefix) :] for name in names if name.startswith(prefix)]
        return None


def _is_wanted(name: str) -> bool:
    """Whether a file is more than what an operating system leaves behind (`._photo.png`, `__MACOSX`)."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
