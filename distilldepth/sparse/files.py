"""Files of sparse depth, and whether their points can be what they are taken for."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from distilldepth.errors import DistillDepthError, UsageError, one_line, refuse_url, shown
from distilldepth.formats.npy import read_npy

SUFFIXES = (".npy", ".npz", ".png", ".txt", ".csv")
MAX_BYTES = 1 << 31
"""Larger files are not read, nor what unpacks to more."""
MAX_TEXT_BYTES = 1 << 27
"""Of text: some millions of lines."""
USUAL_SCALES = (1000, 256, 5000)
"""Stored units per metre in use, the most frequent first: millimetres; KITTI; TUM RGB-D."""
FARTHEST, NEAREST = 250.0, 0.02
"""Metres that nearly no point of a photograph is beyond, or short of."""
NEARLY_ALL = 0.95
_DOUBTED = (0.1, 100.0)
"""Medians, in metres, outside of which points are doubted."""
_USUAL = (0.5, 12.0)
"""Medians, in metres, that most sets of points have."""
_SEPARATORS = re.compile(r"[,;\s]+")


def read_sparse(path: str | os.PathLike, size: tuple[int, int], *, scale: float | None = None) -> np.ndarray:
    """Read depth that is known at some pixels of a photograph.

    | file | holds |
    |---|---|
    | `.npy`, `.npz` | `(H, W)` metres, 0 or NaN where nothing is known; whole numbers need a scale |
    | `.png` | 16-bit grey `(H, W)`, stored = metres * scale, 0 where nothing is known |
    | `.txt`, `.csv` | lines `u v depth`: column, row (pixels, from 0), metres; an optional first line of words, `#` |

    A PNG that this package wrote says its scale itself. Of several lines for one pixel the nearest counts.

    Args:
        path: the file.
        size: height and width of the photograph as a viewer shows it, pixels.
        scale: stored units per metre; None: metres, or what the file says.

    Returns:
        float32 `(H, W)`, metres, 0 = none.

    Raises:
        FileNotFoundError: no such file.
        UsageError: a PNG or whole numbers without a scale; a scale that is not positive, or not the file's own; a URL.
        DistillDepthError: not such a file, damaged, larger than `MAX_BYTES`, of another size, with points outside the
            photograph, or points that `check_points` refuses.
    """
    refuse_url(path)
    file = Path(path)
    name = one_line(os.fsdecode(path), 1000)
    if scale is not None and not (0 < scale < math.inf):
        raise UsageError(f"read_sparse: scale must be positive (stored units per metre), got {scale:g}")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DistillDepthError(f"{name}: sparse depth is read from {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    data = _content(file, name, MAX_TEXT_BYTES if suffix in (".txt", ".csv") else MAX_BYTES)
    if suffix in (".txt", ".csv"):
        return check_points(_from_lines(data, name, size, scale or 1.0), name, scale=scale or 1.0)
    if suffix == ".png":
        stored, scale = _from_png(data, name, size, scale)
    else:
        stored = read_npy(io.BytesIO(data), name) if suffix == ".npy" else _from_npz(data, name)
        _check_size(stored.shape, size, name)
        if scale is None and stored.dtype.kind != "f":
            raise UsageError(f"{name}: holds whole numbers and does not say their unit; {_ask_scale()}")
    with np.errstate(over="ignore"):
        metres = stored.astype(np.float64) / (scale or 1.0)
    return check_points(metres, name, scale=scale or 1.0)


def check_points(sparse: np.ndarray, name: str, *, scale: float = 1.0) -> np.ndarray:
    """Return sparse depth as float32 with 0 for none, if it can be that of a photograph.

    Args:
        sparse: `(H, W)`, real numbers, metres, 0 or NaN = none.
        name: what errors call it.
        scale: stored units per metre that they were read with.

    Returns:
        float32 `(H, W)`, metres, 0 = none.

    Raises:
        DistillDepthError: not `(H, W)`; negative or infinite depth; fewer than two points, or all of one depth; nearly
            all beyond 250 m or short of 2 cm, with the scale that would be likely.

    A median that is only unusual is a warning.
    """
    values = np.asarray(sparse)
    if values.ndim != 2:
        raise DistillDepthError(f"{name}: sparse depth must be (H, W), got shape {values.shape}")
    for what, wrong in (("negative", values < 0), ("infinite", np.isinf(values))):
        count = int(wrong.sum())
        if count:
            row, column = np.argwhere(wrong)[0]
            raise DistillDepthError(
                f"{name}: {count} value{'s' * (count != 1)} {'are' if count > 1 else 'is'} {what}, the first at column "
                f"{column}, row {row}; write 0 where nothing is known"
            )
    with np.errstate(over="ignore", under="ignore"):
        metres = np.nan_to_num(values, nan=0.0).astype(np.float32)
    known = metres[metres > 0].astype(np.float64)
    if len(known) < 2:
        there = "no point" if not len(known) else "one point"
        raise DistillDepthError(f"{name}: has {there} of known depth; at least two are needed, at different depths")
    _check_unit(known, name, scale)
    if known.min() == known.max():
        raise DistillDepthError(
            f"{name}: all {len(known)} points are at {known[0]:.4g} m; scale and shift need at least two depths"
        )
    return metres


def _check_unit(known: np.ndarray, name: str, scale: float) -> None:
    """Refuse points that cannot be metres, and doubt those that hardly can."""
    median = float(np.median(known))
    for beyond, words in ((known > FARTHEST, f"beyond {FARTHEST:g} m"), (known < NEAREST, f"short of {NEAREST:g} m")):
        share = float(beyond.mean())
        if share >= NEARLY_ALL:
            raise DistillDepthError(
                f"{name}: {'all' if share == 1 else 'nearly all'} {len(known)} points lie {words} (median {median:.4g} "
                f"m), which cannot be; {_likely(median * scale, scale)}"
            )
    if not _DOUBTED[0] <= median <= _DOUBTED[1]:
        warnings.warn(
            f"{name}: the median of the points is {median:.4g} m; if that is not meant, "
            f"{_likely(median * scale, scale)}",
            UserWarning,
            stacklevel=3,
        )


def _likely(stored: float, scale: float) -> str:
    """Which units per metre would make the median of what is stored likely."""
    found = [(unit, stored / unit) for unit in _UNITS if unit != scale]
    found = [(unit, metres) for unit, metres in found if _DOUBTED[0] <= metres <= _DOUBTED[1]]
    found.sort(key=lambda entry: not _USUAL[0] <= entry[1] <= _USUAL[1])
    if not found:
        return "no usual scale makes it likely: is it depth?"
    named = [f"{metres:.3g} m with {unit:g} ({_UNITS[unit]})" for unit, metres in found]
    return f"it would be {', '.join(named)}: give --sparse-scale {found[0][0]:g}"


_UNITS = {1000: "millimetres", 256: "KITTI", 5000: "TUM RGB-D", 1: "metres", 0.001: "kilometres"}


def _ask_scale() -> str:
    usual = ", ".join(f"{scale} ({_UNITS[scale]})" for scale in USUAL_SCALES)
    return f"give --sparse-scale, the stored units per metre; usual are {usual}"


def _content(file: Path, name: str, limit: int) -> bytes:
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            raise DistillDepthError(f"{name}: is a folder, not a file of points")
        if not stat.S_ISREG(status.st_mode):
            raise DistillDepthError(f"{name}: is no regular file; save its content to a file first")
        if not status.st_size:
            raise DistillDepthError(f"{name}: is empty")
        if status.st_size > limit:
            raise DistillDepthError(f"{name}: has {status.st_size} bytes; sparse depth has at most {limit}")
        with file.open("rb") as opened:
            return opened.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(2, "No such file or directory", name) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise DistillDepthError(f"{name}: cannot be read ({reason})") from error


def _check_size(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Refuse a map that is not of the photograph's size."""
    if tuple(shape) == tuple(size):
        return
    if len(shape) != 2:
        raise DistillDepthError(f"{name}: sparse depth must be one map (H, W), got shape {tuple(shape)}")
    turned = tuple(shape) == tuple(size)[::-1]
    raise DistillDepthError(
        f"{name}: is {shape[0]} x {shape[1]} (height x width), its photograph {size[0]} x {size[1]}"
        + ("; is it turned, as the EXIF orientation turns the photograph?" if turned else "; they must be of one size")
    )


def _from_npz(data: bytes, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            named = [member for member in members if member.filename in ("sparse.npy", "depth.npy")]
            chosen = named[:1] or members
            if len(chosen) != 1:
                raise DistillDepthError(f"{name}: holds {len(members)} arrays; name the one that is meant `depth`")
            if chosen[0].file_size > MAX_BYTES:
                raise DistillDepthError(f"{name}: unpacks to {chosen[0].file_size} bytes; at most {MAX_BYTES} are read")
            with archive.open(chosen[0]) as member:
                return read_npy(io.BytesIO(member.read(MAX_BYTES)), name)
    except DistillDepthError:
        raise
    except Exception as error:  # A damaged archive makes zipfile and zlib stumble in many ways.
        raise DistillDepthError(f"{name}: is no readable .npz file ({one_line(error, 200)})") from error


def _from_png(data: bytes, name: str, size: tuple[int, int], scale: float | None) -> tuple[np.ndarray, float]:
    """Stored values and their units per metre."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                # The size is known before a pixel is decoded, and is bounded by that of the photograph.
                _check_size((image.height, image.width), size, name)
                if image.mode not in ("I;16", "I;16B", "I"):
                    raise DistillDepthError(
                        f"{name}: is no 16-bit grey PNG (it is {image.mode}), so it is a picture and not depth"
                    )
                stored = np.asarray(image)
                texts = dict(getattr(image, "text", {}))
    except DistillDepthError:
        raise
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over.
        raise DistillDepthError(f"{name}: is damaged or no PNG ({one_line(error, 200)})") from error
    if not {"quantity", "scale", "offset"} <= texts.keys():
        if scale is None:
            raise UsageError(f"{name}: does not say its unit; {_ask_scale()}")
        return stored, scale
    if texts["quantity"] != "metric_depth":
        raise DistillDepthError(f"{name}: says that it holds {shown(texts['quantity'])}, not depth in metres")
    try:
        own, offset = 1 / float(texts["scale"]), float(texts["offset"])
    except (ValueError, ZeroDivisionError):
        own, offset = math.nan, math.nan
    if not (0 < own < math.inf) or offset != 0:
        raise DistillDepthError(f"{name}: its text says no usable scale ({shown(texts['scale'])})")
    if scale is not None and not math.isclose(own, scale, rel_tol=1e-6):
        raise UsageError(
            f"{name}: says itself that it stores {own:g} units per metre, and {scale:g} were given; leave them out"
        )
    return stored, own


def _from_lines(data: bytes, name: str, size: tuple[int, int], scale: float) -> np.ndarray:
    """Lines `u v depth` as a map; of several for one pixel the nearest."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DistillDepthError(f"{name}: is no text; sparse depth as text has lines `u v depth`") from None
    height, width = size
    places: list[int] = []
    depths: list[float] = []
    outside: list[tuple[int, float, float]] = []
    is_first = True
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        words = _SEPARATORS.split(line)
        was_first, is_first = is_first, False
        try:
            u, v, depth = map(float, words)
        except ValueError:
            if was_first and not any(map(_is_number, words)):
                continue  # The names of the columns.
            raise DistillDepthError(f"{name}: line {number}: must be `u v depth`, got {shown(line)}") from None
        if not 0 < depth < math.inf:
            raise DistillDepthError(f"{name}: line {number}: depth must be positive and finite, got {depth:g}")
        if not (-0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5):
            outside.append((number, u, v))
            continue
        places.append(math.floor(v + 0.5) * width + math.floor(u + 0.5))
        depths.append(depth / scale)
    if outside:
        raise DistillDepthError(_outside(name, outside, len(places) + len(outside), size))
    sparse = np.full(height * width, np.inf)
    np.minimum.at(sparse, np.array(places, dtype=np.int64), np.array(depths, dtype=np.float64))
    return np.where(np.isinf(sparse), 0, sparse).reshape(height, width)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _outside(name: str, outside: list[tuple[int, float, float]], count: int, size: tuple[int, int]) -> str:
    """What is said of points that are not on the photograph."""
    height, width = size
    number, u, v = outside[0]
    swapped = all(-0.5 <= other_v < width - 0.5 and -0.5 <= other_u < height - 0.5 for _, other_u, other_v in outside)
    hint = "; u is the column and v the row: are they swapped?" if swapped else ""
    return (
        f"{name}: {len(outside)} of {count} points lie outside the photograph, {width} wide and {height} high; the "
        f"first in line {number}: u {u:g}, v {v:g}{hint}"
    )
