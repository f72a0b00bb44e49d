"""The lists that say which images a benchmark consists of, in the formats that users have them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from distilldepth.datasets.archive import Folder, Root, Stored
from distilldepth.errors import DistillDepthError
from distilldepth.files import expand_user


@dataclass(frozen=True)
class Row:
    """One line of a list."""

    line: int
    fields: tuple[str, ...]
    """Paths relative to some folder, numbers, `None`; without leading `/` or `./`."""
    absolute: bool = False
    """Whether the first path was an absolute one of another machine, or has a `/` in front for no reason."""


@dataclass(frozen=True)
class Split:
    """A list that was read."""

    name: str
    """Its path, for messages."""
    rows: tuple[Row, ...]


def find_splits(root: Root, split: str | os.PathLike | None, names: tuple[str, ...]) -> list[Split]:
    """Read the user's list, or those that lie in the data under their usual names.

    Args:
        root: the data.
        split: a list, or a folder with lists of the usual names; None to look into the data.
        names: the usual names.

    Returns:
        The lists, the most usual first; empty if none is there.

    Raises:
        FileNotFoundError: `split` does not exist, or is a folder without any of the names.
        DistillDepthError: a list cannot be read.
    """
    if split is None:
        return [read_split(file) for file in root.files(names)]
    path = expand_user(split)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such list")
    if path.is_dir():
        if not names:
            raise DistillDepthError(f"{path}: is a folder; name the list itself, it has no usual name")
        found = Root(path).files(names)
        if not found:
            raise FileNotFoundError(f"{path}: no list called {' or '.join(names)} in this folder")
        return [read_split(file) for file in found]
    # The official split of NYU Depth v2 is a MATLAB file, which its reader opens.
    return [] if path.suffix.lower() == ".mat" else [read_split(Stored(Folder(path.parent), path.name))]


def read_split(file: Stored) -> Split:
    """Read a list.

    Each line has one image: its path, then what the benchmark puts there (path of the ground truth, further paths,
    focal length, or frame and side), separated by spaces or, in a `.csv`, by commas. Empty lines and lines that start
    with `#` are left out.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: no text, nothing in it, a line that leaves the data folder, or a line twice.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DistillDepthError(f"{file}: is not a text file in UTF-8; a list has one image per line") from None
    return parse_split(text, str(file))


def parse_split(text: str, name: str) -> Split:
    """Parse the text of a list; see `read_split`.

    >>> parse_split("/study/rgb_1.jpg /study/sync_depth_1.png 518.8579", "list.txt").rows[0].fields
    ('study/rgb_1.jpg', 'study/sync_depth_1.png', '518.8579')
    """
    separator = "," if name.lower().endswith(".csv") else None
    rows: list[Row] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        written = [field.strip().strip('"').replace("\\", "/") for field in line.split(separator)]
        absolute = bool(re.match(r"/|[A-Za-z]:/", written[0]))
        fields = tuple(re.sub(r"^([A-Za-z]:)?(\.?/)+", "", field) for field in written)
        if any(".." in field.split("/") for field in fields):
            raise DistillDepthError(f"{name}:{number}: a path must stay in the data folder, got {line}")
        if fields in seen:
            raise DistillDepthError(f"{name}:{number}: is the same as line {seen[fields]}; an image counts once")
        seen[fields] = number
        rows.append(Row(number, fields, absolute))
    if not rows:
        raise DistillDepthError(f"{name}: names no image; a list has one image per line")
    return Split(name, tuple(rows))
