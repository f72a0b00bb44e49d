"""Lists of image and depth, a pair per line: two columns, CSV, and the files of TUM RGB-D."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from distilldepth.documents import read_text
from distilldepth.errors import DistillDepthError, shown
from distilldepth.images.decode import path_exists

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
ASSOCIATIONS = ("associations.txt", "associate.txt", "association.txt", "associated.txt")
"""Names in use for what TUM RGB-D's tool writes."""
TUM_SCALE = 5000.0
"""Stored units per metre of TUM RGB-D."""
TUM_SECONDS = 0.02
"""Frames farther apart are no pair; the default of TUM RGB-D's `associate.py`."""

_BYTES = 256 << 20
_LONGEST_LINE = 16_384
_LONGEST_NAME = 4096
_MOST_ROWS = 5_000_000
_MOST_CANDIDATES = 20_000_000
_REMEDY = "a list has an image and its depth on each line"
_IMAGE_NAMES = {"image", "img", "rgb", "color", "colour", "photo"}
_DEPTH_NAMES = {"depth", "gt", "target", "depthmap", "groundtruth"}
_CHANGES_TRUTH = {"scale", "depthscale", "unit", "units", "mask", "depthmask", "valid", "validmask", "invalid"}
_NAME_ENDS = ("path", "file", "filename", "name")


@dataclass(frozen=True)
class Pair:
    """An image and its depth, as the list writes them: below its folder, or absolute."""

    image: str
    depth: str | None
    """None: the list says that there is none."""
    focal_px: float | None = None


def read_pairs(path: Path) -> tuple[list[Pair], float | None]:
    """Read a list.

    | line | columns |
    |---|---|
    | `rgb/1.png depth/1.png` | image and depth, by blanks, tabs, or commas in a `.csv` |
    | `rgb/1.png depth/1.png 518.8` | and the focal length in pixels, as lists for NYU Depth and KITTI have it |
    | `1.1 rgb/1.png 1.2 depth/1.png` | TUM RGB-D's associations |

    A first line with `image` or `rgb`, and `depth` among its words names the columns; others are ignored then. Empty
    lines and those that start with `#` are skipped. `None` in place of a depth is an image without.

    Returns:
        The pairs, and the stored units per metre that the format implies.

    Raises:
        DistillDepthError: a line is not one of these (its number is named), or there is none.
    """
    pairs: list[Pair] = []
    scale, named, columns = None, None, (0, 1)
    for number, fields in _rows(path):
        if named is None:
            header = _header(fields)
            named = header is not None
            if header is not None:
                columns = header
                warn_of_unread(path, {field for i, field in enumerate(fields) if i not in header}, "columns")
                continue
            if len(fields) == 4 and _is_number(fields[0]) and _is_number(fields[2]):
                # The tool writes its first file first, which some give the other way round.
                columns = (3, 1) if PurePosixPath(fields[1]).parts[:1] == ("depth",) else (1, 3)
                scale = TUM_SCALE
        try:
            focal = None
            if named and max(columns) >= len(fields):
                raise ValueError(f"must have at least {max(columns) + 1} columns, as its first line")
            if not named and not scale and len(fields) == 3 and _is_number(fields[2]):
                focal = float(fields[2]) if float(fields[2]) > 0 else None
            elif not named and len(fields) != (4 if scale else 2):
                raise ValueError(
                    f"must be `image depth`, or `time image time depth` as TUM RGB-D's associations, got "
                    f"{len(fields)} columns; names with blanks need tabs between them, or a .csv"
                )
            image, depth = (fields[column] for column in columns)
            pairs.append(Pair(inside(image), None if depth in ("None", "") else inside(depth), focal))
        except ValueError as error:
            raise DistillDepthError(f"{path}:{number}: {error}") from None
    if not pairs:
        raise DistillDepthError(f"{path}: names no image; {_REMEDY}")
    return pairs, scale


def read_timed_pairs(rgb: Path, depth: Path) -> list[Pair]:
    """Pair the frames of TUM RGB-D's `rgb.txt` and `depth.txt` as its tool does: the nearest in time first, each frame
    once, at most `TUM_SECONDS` apart.

    Raises:
        DistillDepthError: a line is no time and name, times that are too dense to pair, or no pair at all.
    """
    images, depths = _read_times(rgb), _read_times(depth)
    times, others = (np.array(sorted(frames)) for frames in (images, depths))
    low = np.searchsorted(others, times - TUM_SECONDS, side="right")
    high = np.searchsorted(others, times + TUM_SECONDS, side="left")
    counts = np.maximum(high - low, 0)
    if counts.sum() > _MOST_CANDIDATES:
        raise DistillDepthError(f"{rgb}: its times and those of {depth.name} are too dense to pair; are they seconds?")
    first = np.repeat(np.arange(len(times)), counts)
    second = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    order = np.lexsort((second, first, np.abs(times[first] - others[second])))
    free, found = (np.ones(len(times), bool), np.ones(len(others), bool)), []
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if free[0][a] and free[1][b]:
            free[0][a] = free[1][b] = False
            found.append((a, b))
    if not found:
        raise DistillDepthError(
            f"{rgb}: no frame is within {TUM_SECONDS:g} s of one of {depth.name}; are both of one recording?"
        )
    return [Pair(images[times[a]], depths[others[b]]) for a, b in sorted(found)]


def warn_of_unread(path: Path, names: Iterable[str], what: str, read: Collection[str] = ()) -> None:
    """Warn of names that would change the ground truth if they were read, such as a mask or a scale of each line."""
    unread = sorted(name for name in names if name not in read and _letters(name) in _CHANGES_TRUTH)
    if unread:
        warnings.warn(
            f"{path}: its {what} {', '.join(map(shown, unread))} are not read; a manifest's `scale` and `invalid` "
            "and the option --truth-scale say how depth is stored",
            UserWarning,
            stacklevel=2,
        )


def inside(name: str) -> str:
    """Return a name of a list as a path below the list's folder; a leading slash, as some lists have, is dropped.

    An absolute path of a file that exists is returned as it is.

    Raises:
        ValueError: it is empty or too long, or leads out of the folder.
    """
    path = name.strip().replace("\\", "/")
    if path.startswith("/") and 1 < len(path) <= _LONGEST_NAME and "\0" not in path and path_exists(Path(path)):
        return path
    path = path.lstrip("/")
    if not path or len(name) > _LONGEST_NAME or "\0" in name:
        raise ValueError(f"must name a file in at most {_LONGEST_NAME} characters, got {shown(name)}")
    if ".." in path.split("/") or ":" in path.split("/")[0]:
        raise ValueError(f"must name a file below the folder of the list, got {shown(name)}")
    return path


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of every line that says something."""
    lines = read_text(path, remedy=_REMEDY, limit=_BYTES).splitlines()
    if len(lines) > _MOST_ROWS:
        raise DistillDepthError(f"{path}: has more than {_MOST_ROWS} lines; split it")
    separator = None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(line) > _LONGEST_LINE:
            raise DistillDepthError(f"{path}:{number}: has more than {_LONGEST_LINE} characters; {_REMEDY}")
        if separator is None:
            # A comma may be part of a name, but not in a table.
            table = path.suffix.lower() == ".csv" or ("," in line and len(line.split()) == 1)
            separator = next((mark for mark in "\t;," if mark in line and (mark == "\t" or table)), " ")
        if separator == " ":
            # `a.png, b.png`: the comma parts the names as the blank does.
            fields = [field.rstrip(",") for field in line.split()]
        else:
            try:
                fields = [field.strip() for field in next(csv.reader([line], delimiter=separator))]
            except csv.Error as error:
                raise DistillDepthError(f"{path}:{number}: is no line of a table ({error})") from None
        yield number, fields


def _header(fields: list[str]) -> tuple[int, int] | None:
    """Columns of image and depth, if this line names them."""
    words = []
    for field in fields:
        word = _letters(field)
        for end in _NAME_ENDS:
            word = word.removesuffix(end)
        words.append(word)
    # `filename,depth`: what is left of `filename` is empty.
    image = next((i for i, word in enumerate(words) if word in _IMAGE_NAMES or word in ("", "file")), None)
    depth = next((i for i, word in enumerate(words) if word in _DEPTH_NAMES), None)
    is_path = any("/" in field or PurePosixPath(field).suffix for field in fields)
    return None if image is None or depth is None or is_path else (image, depth)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha())


def _read_times(path: Path) -> dict[float, str]:
    frames: dict[float, str] = {}
    for number, fields in _rows(path):
        try:
            if len(fields) < 2 or not _is_number(fields[0]):
                raise ValueError("must be `time name`, as TUM RGB-D has it")
            frames[float(fields[0])] = inside(fields[1])
        except ValueError as error:
            raise DistillDepthError(f"{path}:{number}: {error}") from None
    if not frames:
        raise DistillDepthError(f"{path}: names no frame; it must have `time name` on each line")
    return frames


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
