"""Files below folders and behind patterns: one walk for both, whatever links there are."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from distilldepth.errors import DistillDepthError, one_line

_LONGEST_NAME = 1000
_JUNK_NAMES = {"__MACOSX", "Thumbs.db", "desktop.ini"}

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 64
"""Chunks before the pixels that are looked at; this package writes its texts first of all."""
_LONGEST_TEXT = 256
"""Bytes that are read of a text: its key and the start of what it says."""
_SOFTWARE = "distilldepth "
_MAP_KEYS = {"quantity", "scale", "offset"}


def walk_files(
    folder: Path, wanted: Callable[[str], bool], *, without: str | os.PathLike | None = None
) -> Iterator[Path]:
    """Yield the files below a folder, links followed; every real folder once, so that links which form a circle end.

    Args:
        folder: where to look.
        wanted: says of a file's name whether it counts; hidden names and an operating system's litter never do.
        without: a folder of which nothing is given, by whatever links it is reached.

    Raises:
        DistillDepthError: the folder itself cannot be read; one below it that is closed holds nothing for us.
    """
    yield from _match(folder, [], wanted, _Walked(folder, without))


def glob_files(pattern: Path, wanted: Callable[[str], bool], *, without: str | os.PathLike | None = None) -> list[Path]:
    """Return the files that a pattern (`*`, `?`, `[...]`, `**`) stands for, and those below the folders among them.

    As `walk_files`: links are followed, every real folder is given once, hidden ones only if the pattern writes them
    out. Arguments and errors are the same; without order.
    """
    fixed = fixed_part(pattern)
    parts = pattern.parts[len(fixed.parts) :]
    if not fixed.is_dir():
        return []
    return list(_match(fixed, list(parts), wanted, _Walked(fixed, without)))


def fixed_part(pattern: Path) -> Path:
    """Return the leading folders of a pattern that hold no wildcard."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


class _Walked:
    """Which folders were seen, by what was looked for in them, and which files were given."""

    def __init__(self, top: Path, without: str | os.PathLike | None) -> None:
        self.top = top
        self.seen: set[tuple[str, int]] = set()
        self.given: set[tuple[str, str]] = set()
        self.without = None if without is None else os.path.realpath(without)

    def enters(self, real: str, position: int) -> bool:
        if self.without is not None and (real == self.without or real.startswith(self.without.rstrip(os.sep) + os.sep)):
            return False
        new = (real, position) not in self.seen
        self.seen.add((real, position))
        return new

    def gives(self, real: str, name: str) -> bool:
        new = (real, name) not in self.given
        self.given.add((real, name))
        return new


def _match(top: Path, parts: list[str], wanted: Callable[[str], bool], walked: _Walked) -> Iterator[Path]:
    """Files whose place below `top` fits the parts of a pattern; beyond its end everything fits."""
    # A stack and no recursion: folders may be nested deeper than Python's calls.
    waiting = [(top, 0)]
    while waiting:
        folder, position = waiting.pop()
        real = os.path.realpath(folder)
        if not walked.enters(real, min(position, len(parts))):
            continue
        part = parts[position] if position < len(parts) else "**"
        is_last = position >= len(parts) - 1
        if part == "**" and not is_last:
            # `**` is no folder at all, too. The last `**` is everything below.
            waiting.append((folder, position + 1))
        if not glob.has_magic(part):
            # Not searched for: `..` is in no listing, and a folder may be closed to listing and not to entering.
            named = folder / part
            if os.path.isdir(named):
                waiting.append((named, position + 1))
            elif is_last and os.path.lexists(named) and wanted(part) and walked.gives(real, part):
                yield named
            continue
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            # A closed subfolder (lost+found on a disk) holds nothing for us; a closed top folder is the user's mistake.
            if folder == walked.top:
                raise DistillDepthError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
            continue
        for entry in found:
            if not _fits(entry.name, part):
                continue
            if _is_dir(entry):
                waiting.append((folder / entry.name, position if part == "**" else position + 1))
            elif is_last and wanted(entry.name) and walked.gives(real, entry.name):
                yield folder / entry.name


def _fits(name: str, part: str) -> bool:
    if is_hidden(name) and not part.startswith("."):
        return False
    return part == "**" or fnmatch(name, part)


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # A link in a circle with itself.


def is_hidden(name: str) -> bool:
    """Say whether a name begins with a dot or is an operating system's litter."""
    return name.startswith(".") or name in _JUNK_NAMES


def natural_key(path: str | os.PathLike) -> tuple:
    """Return a sort key that orders numbers inside names by value, folder by folder, the same in every locale.

    >>> sorted(["a/img10.png", "a/img2.png", "a/img02.png"], key=natural_key)
    ['a/img02.png', 'a/img2.png', 'a/img10.png']
    """
    text = os.fspath(path)
    parts = re.split(r"[\\/]", text) if os.sep == "\\" else text.split("/")
    # Odd places of the split are digits, so that numbers only ever meet numbers; the text itself breaks ties.
    numbered = [
        [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"([0-9]+)", part))]
        for part in parts
    ]
    return numbered, text


def is_own_picture(file: BinaryIO) -> bool:
    """Say whether a PNG is a depth map or another picture that this package made, as its texts say.

    Reads at most the heads of `_MAX_CHUNKS` chunks before the pixels, from where the file stands, and decodes nothing.

    Raises:
        OSError: it cannot be read.
    """
    if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
        return False
    keys = set()
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            return False
        taken = file.read(min(length, _LONGEST_TEXT)) if kind in (b"tEXt", b"iTXt", b"zTXt") else b""
        key, _, text = taken.partition(b"\0")
        keys.add(key.decode("latin-1"))
        if (key == b"Software" and text.startswith(_SOFTWARE.encode())) or keys >= _MAP_KEYS:
            return True
        file.seek(length - len(taken) + 4, os.SEEK_CUR)
    return False


def is_own_file(path: str | os.PathLike) -> bool:
    """Say whether a file is one of `is_own_picture`; only those named .png are opened, and what cannot be is none."""
    if not os.fspath(path).lower().endswith(".png"):
        return False
    try:
        # Not open: a pipe that is called .png would wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            return is_own_picture(file)
    except (OSError, ValueError):
        return False


def without_own(paths: Sequence[Path], name: str) -> list[Path]:
    """Return the images without those that this package made, and warn of how many these are.

    Args:
        paths: images.
        name: where they were found, for messages.

    Raises:
        DistillDepthError: none is left.
    """
    own = [path for path in paths if is_own_file(path)]
    warn_of_own(name, [printable(path) for path in own], len(paths))
    if not own:
        return list(paths)
    left_out = set(own)
    return [path for path in paths if path not in left_out]


def warn_of_own(name: str, own: Sequence[str], count: int) -> None:
    """Warn that some of `count` images are depth maps of this package and left out.

    Raises:
        DistillDepthError: all of them are.
    """
    if not own:
        return
    if len(own) == count:
        which = "it is a picture" if count == 1 else f"all {count} images are pictures"
        raise DistillDepthError(f"{name}: {which} of depth that distilldepth made, not {_A_PHOTOGRAPH[count > 1]}")
    are = "1 is a picture" if len(own) == 1 else f"{len(own)} are pictures"
    some = ", ".join(own[:2]) + (", ..." if len(own) > 2 else "")
    warnings.warn(
        f"{name}: of {count} images {are} of depth that distilldepth made, as the PNG says, and left out: {some}",
        UserWarning,
        stacklevel=2,
    )


_A_PHOTOGRAPH = (
    "a photograph; name the photograph it was made from",
    "photographs; name the folder of the photographs",
)


def printable(path: str | os.PathLike) -> str:
    """Return a path on one line, in characters that can always be printed."""
    text = one_line(os.fsdecode(path).encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."
