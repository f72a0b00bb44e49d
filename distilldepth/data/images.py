"""Image files to RGB arrays: every mode as a viewer would show it, and one clear line for a file that is not a picture."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distilldepth.errors import DistillDepthError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga",
)  # fmt: skip
"""Suffixes that make a file in a folder, glob or tar an image, in any case. A file named directly may have any suffix."""

MAX_PIXELS = 178_956_970
"""Images with more pixels than this are refused; `DISTILLDEPTH_MAX_PIXELS` sets another limit. It is Pillow's own limit."""

# Pillow hands EPS files to Ghostscript: a program is not run for a file from an unknown source.
_REFUSED_FORMATS = {"EPS"}

_JUNK_NAMES = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def read_image(path: str | os.PathLike, *, min_side: int | None = None, max_side: int | None = None) -> np.ndarray:
    """Read an image file as RGB, the way a viewer shows it.

    EXIF orientation is applied and the first frame of an animation is taken. The file's content decides, not its suffix.
    Modes become 8-bit RGB as follows:

    | in the file | becomes |
    |---|---|
    | 1-bit, grey, palette, HSV, CMYK, YCbCr, LAB | its colour; embedded colour profiles are not applied |
    | transparency of any kind | laid over white, since hidden pixels hold arbitrary colours |
    | 16-bit grey | value / 257 |
    | 16 bits per colour | the high byte |
    | 32-bit integer grey | as 16-bit grey if all values fit, else its range stretched to 0..255 |
    | floating point grey | x 255 if within 0..1, as it is within 0..255, as 16-bit grey within 0..65535, else stretched |

    Args:
        path: the file.
        min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster, as long as its
            shorter side keeps this many pixels.
        max_side: an image whose longer side exceeds this many pixels is reduced to it.

    Returns:
        uint8 `(H, W, 3)`, contiguous and writable.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: the file is a folder, unreadable, empty, truncated, too large or no image.
    """
    name = _printable(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise DistillDepthError(f"{name}: is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise DistillDepthError(f"{name}: is not a regular file; save the image to a file first")
        with open(path, "rb") as file:
            return decode_image(file, name, min_side=min_side, max_side=max_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except PermissionError:
        raise DistillDepthError(f"{name}: no permission to read it") from None
    except (OSError, ValueError) as error:
        raise DistillDepthError(f"{name}: cannot be read ({_one_line(error)})") from error


def decode_image(
    data: bytes | BinaryIO, name: str, *, min_side: int | None = None, max_side: int | None = None
) -> np.ndarray:
    """Decode an image held in memory or in an open file; `name` is what errors call it. Otherwise as `read_image`.

    Raises:
        DistillDepthError: empty, truncated, too large or no image.
    """
    file = io.BytesIO(data) if isinstance(data, (bytes, bytearray, memoryview)) else data
    if not file.read(1):
        raise DistillDepthError(f"{name}: is empty")
    file.seek(0)
    limit = max_pixels()
    with warnings.catch_warnings():
        # Damaged metadata and the first of Pillow's two size limits are warnings there; here the limit below decides.
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > limit:
                    raise Image.DecompressionBombError
                # Draft decoding looks at the file's own axes; equal sides make it independent of the orientation.
                side = _draft_side(width, height, min_side, max_side)
                if side:
                    image.draft(None, (side, side))
                image.load()
                return _shrink(_to_rgb(_upright(image)), max_side)
        except Image.DecompressionBombError:
            raise DistillDepthError(
                f"{name}: has more than {limit} pixels; if that is meant, set DISTILLDEPTH_MAX_PIXELS"
            ) from None
        except UnidentifiedImageError:
            hint = "; convert it to JPEG or PNG first" if name.lower().endswith((".heic", ".heif", ".svg")) else ""
            raise DistillDepthError(f"{name}: is not an image in a known format{hint}") from None
        except MemoryError:
            raise DistillDepthError(f"{name}: does not fit into memory") from None
        except Exception as error:
            # Pillow's plugins raise whatever a damaged file makes them stumble over, from KeyError to struct.error.
            raise DistillDepthError(f"{name}: is damaged or truncated ({_one_line(error)})") from error


def as_rgb(image: str | os.PathLike | Image.Image | np.ndarray) -> np.ndarray:
    """Return any accepted kind of image as uint8 RGB `(H, W, 3)`.

    Args:
        image: a path, a PIL image (converted as `read_image` says; not changed), or a uint8 array `(H, W)`, `(H, W, 1)`,
            `(H, W, 3)` RGB or `(H, W, 4)` RGBA.

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
        name = _printable(getattr(image, "filename", "") or "image")
        try:
            image.load()
        except Exception as error:
            raise DistillDepthError(f"{name}: is damaged or truncated ({_one_line(error)})") from error
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


def list_images(spec: str | os.PathLike) -> list[Path]:
    """Return the image files that a folder, glob, list file or single file names, in natural order (`img2` before `img10`).

    A folder is searched with its subfolders, links included and hidden names left out. A glob (`*`, `?`, `[...]`, `**`)
    gives image files and the content of folders. A `.txt` list has one path per line, relative to the list's folder or
    else to the current one; empty lines and lines starting with `#` are skipped, and the list's order is kept. A path
    that exists is taken literally, whatever characters it holds.

    Raises:
        FileNotFoundError: the path does not exist, or a line of the list names a file that does not.
        DistillDepthError: nothing is found, or the list cannot be read.
    """
    name = _printable(spec)
    path = Path(spec).expanduser()
    if _exists(path):
        if path.is_dir():
            found = sorted(_walk(path), key=natural_key)
            if not found:
                raise DistillDepthError(
                    f"{name}: no image in this folder or below it; searched for {' '.join(IMAGE_SUFFIXES)}"
                )
            return found
        return _read_list(path) if path.suffix.lower() == ".txt" else [path]
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"{name}: no such file or folder")
    found = []
    for match in glob.iglob(str(path), recursive=True):
        matched = Path(match)
        if matched.is_dir():
            found += _walk(matched)
        elif is_image_name(matched.name):
            found.append(matched)
    if not found:
        raise DistillDepthError(f"{name}: no image matches this pattern; searched for {' '.join(IMAGE_SUFFIXES)}")
    return sorted(set(found), key=natural_key)


def is_image_name(name: str) -> bool:
    """Say whether a file name has an image suffix and is neither hidden nor an operating system's litter."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)


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


def max_pixels() -> int:
    """Return the pixel limit in force, `DISTILLDEPTH_MAX_PIXELS` or `MAX_PIXELS`.

    Raises:
        DistillDepthError: the variable is not a positive whole number.
    """
    text = os.environ.get("DISTILLDEPTH_MAX_PIXELS", "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise DistillDepthError(f"DISTILLDEPTH_MAX_PIXELS: must be a positive whole number, got {text!r}")
    limit = int(text)
    # Pillow refuses at twice its own number before this module sees the size, so a higher limit has to reach it too.
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    return limit


def _formats() -> list[str]:
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _draft_side(width: int, height: int, min_side: int | None, max_side: int | None) -> int | None:
    """The shorter side that decoding has to keep, or None to decode in full."""
    sides = [] if min_side is None else [max(min_side, 1)]
    if max_side is not None and max(width, height) > max_side:
        # Twice the final size leaves the last step enough to filter.
        sides.append(max(2 * max_side * min(width, height) // max(width, height), 1))
    return max(sides) if sides and (min_side is None or len(sides) == 2) else (sides[0] if sides else None)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # An EXIF block that cannot be parsed says nothing about the pixels: show them as they are stored.
        return image


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
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    return image.convert("RGB")


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Values of 16 or 32 bits as uint8; see `read_image` for the rules."""
    if grey.dtype == np.uint16:
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


def _shrink(image: Image.Image, max_side: int | None) -> np.ndarray:
    longer = max(image.size)
    if max_side is not None and longer > max_side:
        size = [max(round(side * max_side / longer), 1) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.array(image)


def _walk(folder: Path) -> Iterator[Path]:
    """Image files below `folder`; every real folder once, so that links which form a circle end."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(root, name) for name in files if is_image_name(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _JUNK_NAMES


def _read_list(path: Path) -> list[Path]:
    name = _printable(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DistillDepthError(f"{name}: is not a text file in UTF-8; a list has one image path per line") from None
    except OSError as error:
        raise DistillDepthError(f"{name}: cannot be read ({_one_line(error)})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        written = Path(entry).expanduser()
        candidates = [path.parent / written, written]
        existing = next((candidate for candidate in candidates if _exists(candidate)), None)
        if existing is None:
            raise FileNotFoundError(f"{name}:{number}: no such file: {entry} (relative to {_printable(path.parent)})")
        if existing.is_dir():
            raise DistillDepthError(f"{name}:{number}: is a folder, a list names image files: {entry}")
        found.append(existing)
    if not found:
        raise DistillDepthError(f"{name}: names no image; a list has one image path per line")
    return found


def _exists(path: Path) -> bool:
    """Like `Path.exists`, but a name too long or malformed for the system does not exist either."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _printable(path: str | os.PathLike) -> str:
    """The path on one line, in characters that can always be printed."""
    return _one_line(os.fsdecode(path).encode("utf-8", "backslashreplace").decode())


def _one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__
