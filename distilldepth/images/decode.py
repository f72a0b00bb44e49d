"""Image files to RGB arrays: every mode as a viewer shows it, and one clear line for a file that is not a picture."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from distilldepth.documents import read_text
from distilldepth.errors import DistillDepthError, UsageError, one_line, refuse_url, shown
from distilldepth.files import expand_user
from distilldepth.images.listing import glob_files, is_hidden, natural_key, printable, walk_files, without_own

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".heic", ".heif",
)  # fmt: skip
"""Suffixes of images in folders, globs and tar shards, in any case. A file named directly may have any suffix. The HEIC
of telephones is among them although Pillow alone cannot read it: passed over in silence, it would be missed."""

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused; `DISTILLDEPTH_MAX_PIXELS` sets another limit. It is Pillow's own limit."""

# Pillow hands EPS files to Ghostscript: a program is not run for a file from an unknown source.
_REFUSED_FORMATS = {"EPS"}

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_image(path: str | os.PathLike, *, min_side: int | None = None, max_side: int | None = None) -> np.ndarray:
    """Read an image file as RGB, the way a viewer shows it.

    EXIF orientation is applied and the first frame of an animation is taken. Content decides, not the suffix. Modes
    become 8-bit RGB as follows:

    | in the file | becomes |
    |---|---|
    | 1-bit, grey, palette, HSV, CMYK, YCbCr, LAB | its colour; embedded colour profiles are not applied |
    | transparency of any kind | laid over white, since hidden pixels hold arbitrary colours |
    | 16-bit grey | value / 257 |
    | 16 bits per colour | the high byte |
    | 32-bit integer grey | as 16-bit grey if all values fit, else its range stretched to 0..255 |
    | floating point grey | x 255 within 0..1, unchanged within 0..255, as 16-bit grey within 0..65535, else stretched |

    Args:
        path: the file.
        min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster, as long as its
            shorter side keeps this many pixels.
        max_side: an image whose longer side exceeds this many pixels is averaged over blocks of n x n pixels, with the
            smallest n that makes it fit: cheaper than an exact resize, and JPEG decoding does n = 2, 4, 8 itself.

    Returns:
        uint8 `(H, W, 3)`, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: the file is a folder, unreadable, empty, truncated, too large or no image.
    """
    with open_file(path) as (file, name):
        return decode_image(file, name, min_side=min_side, max_side=max_side)


def read_oriented(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Read an image as `read_image` does, and the EXIF orientation that was applied, 1 to 8 (1: none).

    What belongs to the pixels and lies in files of its own has to be turned alike; see `data.orientation`.
    """
    with open_file(path) as (file, name), open_image(file, name) as image:
        orientation = _orientation(image)
        image.load()
        return np.array(_to_rgb(_upright(image))), orientation


def decode_image(
    data: bytes | BinaryIO, name: str, *, min_side: int | None = None, max_side: int | None = None
) -> np.ndarray:
    """Decode an image held in memory or in an open file; `name` is what errors call it. Otherwise as `read_image`.

    Raises:
        DistillDepthError: empty, truncated, too large or no image.
    """
    if isinstance(data, bytes) and not data:
        raise DistillDepthError(f"{name}: is empty")
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with open_image(file, name) as image:
        draft = _draft_factor(*image.size, min_side, max_side)
        if draft > 1:
            image.draft(None, (max(image.width // draft, 1), max(image.height // draft, 1)))
        image.load()
        upright = _to_rgb(_upright(image))
        factor = _fitting_factor(*upright.size, max_side)
        return np.array(upright.reduce(factor) if factor > 1 else upright)


def check_regular(path: str | os.PathLike) -> os.stat_result:
    """Raise unless a path is a regular file; nothing is opened, so that a pipe or a device cannot hang.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it is a folder, a device, a pipe or a socket, or its folder is closed.
        UsageError: it is a URL.
    """
    refuse_url(path)
    name = printable(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name}: no such file") from None
    except PermissionError:
        raise DistillDepthError(f"{name}: no permission to read it") from None
    except (OSError, ValueError) as error:
        raise DistillDepthError(f"{name}: cannot be read ({one_line(error)})") from error
    if stat.S_ISDIR(status.st_mode):
        raise DistillDepthError(f"{name}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for test, word in _KINDS if test(status.st_mode)), "something else")
        raise DistillDepthError(f"{name}: is {kind}, not a regular file; save its content to a file first")
    return status


@contextmanager
def open_file(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, str]]:
    """Open a regular file that is not empty; gives it and the name that errors call it.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it is a folder, a device, unreadable or empty.
    """
    name = printable(path)
    try:
        if not check_regular(path).st_size:
            raise DistillDepthError(f"{name}: is empty")
        with open(path, "rb") as file:
            yield file, name
    except UsageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except PermissionError:
        raise DistillDepthError(f"{name}: no permission to read it") from None
    except (OSError, ValueError) as error:
        raise DistillDepthError(f"{name}: cannot be read ({one_line(error)})") from error


@contextmanager
def open_image(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image of a permitted size in any format but those that run other programs; pixels are not decoded yet.

    Raises:
        DistillDepthError: too large, no image, or whatever fails inside the `with` block because the file is damaged.
    """
    limit = max_pixels()
    with warnings.catch_warnings():
        # Damaged metadata and the first of Pillow's two size limits are warnings there; here the limit above decides.
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=_formats()) as image:
                if image.width * image.height > limit:
                    raise Image.DecompressionBombError
                yield image
        except DistillDepthError:
            raise
        except Image.DecompressionBombError:
            raise DistillDepthError(
                f"{name}: has more than {limit} pixels; if that is meant, set DISTILLDEPTH_MAX_PIXELS"
            ) from None
        except UnidentifiedImageError:
            foreign = name.lower().endswith((".heic", ".heif", ".svg"))
            hint = "; convert it to JPEG or PNG first" if foreign else ""
            raise DistillDepthError(f"{name}: is not an image in a known format{hint}") from None
        except MemoryError:
            raise DistillDepthError(f"{name}: does not fit into memory") from None
        except Exception as error:
            # Pillow's plugins raise whatever a damaged file makes them stumble over, from KeyError to struct.error.
            raise DistillDepthError(f"{name}: is damaged or truncated ({one_line(error)})") from error


def check_any_readable(paths: Sequence[str | os.PathLike], max_tries: int = 1000) -> None:
    """Raise if several images are named and none can be read; the first that can ends the search.

    Args:
        paths: image files; of more than `max_tries` so many are tried, spread evenly.
        max_tries: see `paths`.

    Raises:
        DistillDepthError: none can be read; the message has the count and the first reason.
    """
    count, first = len(paths), None
    tried = range(count) if count <= max_tries else [number * count // max_tries for number in range(max_tries)]
    for index in tried:
        try:
            read_image(paths[index])
        except (DistillDepthError, FileNotFoundError) as error:
            first = first or error
        else:
            return
    if count > 1:
        some = f"all {count} images" if len(tried) == count else f"{len(tried)} of {count} images, spread evenly,"
        raise DistillDepthError(f"{some} cannot be read; the first: {first}")


def as_rgb(image: str | os.PathLike | Image.Image | np.ndarray) -> np.ndarray:
    """Return any accepted kind of image as uint8 RGB `(H, W, 3)`.

    Args:
        image: a path, a PIL image (converted as `read_image` says; not changed), or a uint8 array `(H, W)`,
            `(H, W, 1)`, `(H, W, 3)` RGB or `(H, W, 4)` RGBA.

    Returns:
        uint8 `(H, W, 3)`, contiguous. An RGB array that is contiguous already is returned itself.

    Raises:
        TypeError: another type, or an array that is not uint8.
        ValueError: an array of another shape, or without pixels.
        FileNotFoundError, DistillDepthError: as `read_image`.

    >>> as_rgb(np.zeros((4, 6), dtype=np.uint8)).shape
    (4, 6, 3)
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise ValueError(f"as_rgb: image must have at least one pixel, got size {image.size}")
        name = printable(getattr(image, "filename", "") or "image")
        try:
            image.load()
        except Exception as error:
            raise DistillDepthError(f"{name}: is damaged or truncated ({one_line(error)})") from error
        return np.array(_to_rgb(_upright(image)))
    if not isinstance(image, np.ndarray):
        raise TypeError(f"as_rgb: image must be a path, a PIL image or a uint8 array, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(
            f"as_rgb: image must be uint8 with values 0..255, got {image.dtype}; scale and convert it first"
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(f"as_rgb: image must have shape (H, W, 3), (H, W, 4) or (H, W), got {image.shape}")
    if not image.size:
        raise ValueError(f"as_rgb: image must have at least one pixel, got shape {image.shape}")
    if channels == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return np.array(_to_rgb(Image.fromarray(np.ascontiguousarray(image))))
    return np.ascontiguousarray(image)


def list_images(spec: str | os.PathLike, *, without: str | os.PathLike | None = None) -> list[Path]:
    """Return the image files that a folder, glob, list file or single file names, in natural order (2 before 10).

    A folder is searched with its subfolders; hidden names are left out, links are followed, and every real folder is
    searched once. A glob (`*`, `?`, `[...]`, `**`) gives image files and the content of folders, by the same rules. A
    `.txt` list has one path per line, relative to the list's folder or else to the current one; empty lines and lines
    starting with `#` are skipped, and the list's order is kept. A path that exists is taken literally, whatever
    characters it holds. PNGs that say that this package made them (depth maps, coloured ones, samples of a run) are no
    photographs: they are left out with a warning, and refused if there is nothing else.

    Args:
        spec: what to list.
        without: a folder of which nothing is given, where the results go that lie below the photographs; a list that
            names files in it means them.

    Raises:
        FileNotFoundError: the path does not exist, or a line of the list names a file that does not.
        DistillDepthError: nothing is found, it is a device or a pipe, or the list cannot be read.
    """
    name = printable(spec)
    path = expand_user(spec)
    searched = f"searched for {' '.join(IMAGE_SUFFIXES)}" + ("" if without is None else f" outside {without}")
    if path_exists(path):
        if path.is_dir():
            found = list(walk_files(path, is_image_name, without=without))
            if not found:
                raise DistillDepthError(f"{name}: no image in this folder or below it; {searched}")
        else:
            check_regular(path)
            if path.suffix.lower() == ".txt":
                return without_own(_read_list(path), name)
            found = [path]
    elif not glob.has_magic(str(path)):
        raise FileNotFoundError(f"{name}: no such file or folder")
    else:
        found = glob_files(path, is_image_name, without=without)
        if not found:
            raise DistillDepthError(f"{name}: no image matches this pattern; {searched}")
    return without_own(sorted(found, key=natural_key), name)


def is_image_name(name: str) -> bool:
    """Say whether a file name has an image suffix and is neither hidden nor an operating system's litter."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def max_pixels() -> int:
    """Return the pixel limit in force, `DISTILLDEPTH_MAX_PIXELS` or `MAX_PIXELS`.

    Raises:
        DistillDepthError: the variable is not a positive whole number.
    """
    text = os.environ.get("DISTILLDEPTH_MAX_PIXELS", "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise DistillDepthError(
            f"DISTILLDEPTH_MAX_PIXELS: must be a positive whole number of at most 18 digits, got {shown(text)}"
        )
    limit = int(text)
    # Pillow refuses at twice its own number before this module sees the size, so a higher limit has to reach it too.
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    return limit


def _formats() -> list[str]:
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _fitting_factor(width: int, height: int, max_side: int | None) -> int:
    """The smallest whole number by which an image has to be divided to fit into `max_side`."""
    return 1 if max_side is None else max(-(-max(width, height) // max_side), 1)


def _draft_factor(width: int, height: int, min_side: int | None, max_side: int | None) -> int:
    """The factor by which a JPEG may be reduced while it is decoded."""
    fitting = _fitting_factor(width, height, max_side)
    spare = 1 if min_side is None else min(width, height) // max(min_side, 1)
    return next(factor for factor in (8, 4, 2, 1) if fitting % factor == 0 or spare >= factor)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # An EXIF block that cannot be parsed says nothing about the pixels: show them as they are stored.
        return image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1  # As in `_upright`.
    return next((number for number in range(2, 9) if number == orientation), 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; see `read_image` for the rules."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode in ("I", "F") or mode.startswith("I;16"):
        return Image.fromarray(_grey_to_8_bit(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or (mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, (255, 255, 255, 255)), colours).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None, "there is an image where none is converted in place"
        return converted
    return image.convert("RGB")


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Values of 16 or 32 bits as uint8; see `read_image` for the rules."""
    if grey.dtype.kind == "u" and grey.dtype.itemsize == 2:
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    elif grey.dtype.kind != "f" or high > 255:
        values = values / 257
    elif high <= 1:
        values = values * 255
    return np.rint(values).astype(np.uint8)


def _read_list(path: Path) -> list[Path]:
    name = printable(path)
    found = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path, remedy=_LIST_REMEDY)), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        # Blanks around a path are somebody's habit, but may also be part of a name.
        try:
            written = [expand_user(text) for text in dict.fromkeys((entry, line))]
        except UsageError as error:
            raise DistillDepthError(f"{name}:{number}: {error}") from None
        candidates = [place for text in written for place in (path.parent / text, text)]
        existing = next((candidate for candidate in candidates if path_exists(candidate)), None)
        if existing is None:
            raise FileNotFoundError(
                f"{name}:{number}: no such file: {printable(entry)} (relative to {printable(path.parent)})"
            )
        if existing.is_dir():
            raise DistillDepthError(f"{name}:{number}: is a folder, a list names image files: {printable(entry)}")
        try:
            check_regular(existing)
        except DistillDepthError as error:
            raise DistillDepthError(f"{name}:{number}: {error}") from None
        found.append(existing)
    if not found:
        raise DistillDepthError(f"{name}: names no image; {_LIST_REMEDY}")
    # All of one kind, so that paths can be told by what they have in common.
    mixed = len({image.is_absolute() for image in found}) > 1
    return [image.absolute() for image in found] if mixed else found


_LIST_REMEDY = "a list has one image path per line"


def path_exists(path: Path) -> bool:
    """Like `Path.exists`, but a name too long or malformed for the system does not exist either."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
