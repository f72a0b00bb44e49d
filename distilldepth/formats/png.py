"""Depth maps as PNG, in 16 bit or in colour, written whole or not at all, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from distilldepth import __version__
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.files import atomic_path
from distilldepth.formats.colormaps import colorize
from distilldepth.formats.options import Picture, WriteOptions

_LARGEST = 65535


def write_depth_png(
    path: str | Path,
    values: np.ndarray,
    quantity: str,
    *,
    units_per_metre: float | None = None,
    texts: dict[str, str] | None = None,
) -> int:
    """Write a map as a 16-bit grey PNG that says what its numbers mean.

    `value = stored * scale + offset`; stored 0 is unknown (not finite, or a metric depth that is not positive).
    `disparity` and `depth` fill 1 to 65535, so near is bright for disparity and dark for depth. `metric_depth` has
    offset 0 and the finest scale of 1 mm, 1/256 m or larger that holds its maximum, as public depth data has it. In a
    constant map every known pixel is 32768 and scale is 0. With `units_per_metre` every map has the same scale:
    stored = rint(metres * units_per_metre), held within 1 and 65535.

    Args:
        path: the file; replaced in one step.
        values: `(H, W)`, any float dtype, in `quantity`.
        quantity: `disparity`, `depth` or `metric_depth`.
        units_per_metre: fixed scale of `metric_depth`, for example 1000 (millimetres) or 256; None as above.
        texts: further text chunks, for example `model` and `licence`.

    Returns:
        How many known pixels a fixed scale could not hold, and are stored as the nearest value that it can.

    Raises:
        ValueError: not a map; a scale that is not positive, or is given for a map that has no metres.
        OSError: the file cannot be written.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"write_depth_png: values must be (H, W) and not empty, got shape {tuple(values.shape)}")
    check_png_scale(units_per_metre, quantity)
    stored, scale, offset, clipped = _to_uint16(values, quantity, units_per_metre)
    chunks = {
        "Description": "value = stored * scale + offset; stored 0 = unknown",
        "quantity": quantity,
        "scale": repr(scale),
        "offset": repr(offset),
        "unit": "m" if quantity == "metric_depth" else "none (known up to scale and shift)",
        "unknown": "0",
        "near_is_bright": "true" if quantity == "disparity" else "false",
        **(texts or {}),
    }
    with atomic_path(Path(path)) as temporary:
        # Level 6 takes four times as long for 3 % less: sixteen bits of a network's output hardly compress.
        Image.fromarray(stored).save(temporary, format="PNG", pnginfo=png_texts(chunks), compress_level=3)
    return clipped


def write_png16(path: Path, picture: Picture, options: WriteOptions) -> int:
    """`write_depth_png` as a format of the table."""
    texts = {**picture.texts, **picture.origin}
    return write_depth_png(path, picture.values, picture.quantity, units_per_metre=options.png_scale, texts=texts)


def check_png_scale(units_per_metre: float | None, quantity: str = "metric_depth") -> None:
    """Raise UsageError unless a scale is positive, or none, and the quantity has metres."""
    if units_per_metre is None:
        return
    if not (1e-9 <= units_per_metre <= 1e9):
        raise UsageError(f"the scale of PNGs must be from 1e-9 to 1e9 units per metre, got {units_per_metre:g}")
    if quantity != "metric_depth":
        raise UsageError(
            f"a fixed scale of PNGs needs metres, and the model predicts {quantity}, which is known up to scale and "
            "shift only, image by image; leave --png-scale out, or take a model that predicts metric depth"
        )


def _to_uint16(
    values: np.ndarray, quantity: str, units_per_metre: float | None
) -> tuple[np.ndarray, float, float, int]:
    """The stored values, scale, offset, and how many values did not fit."""
    values = values.astype(np.float64)
    known = np.isfinite(values)
    if quantity == "metric_depth":
        known &= values > 0
    stored = np.zeros(values.shape, dtype=np.uint16)
    if not known.any():
        return stored, 1 / units_per_metre if units_per_metre else 0.0, 0.0, 0
    low, high = float(values[known].min()), float(values[known].max())
    if units_per_metre is not None:
        scaled = np.rint(values[known] * units_per_metre)
        stored[known] = np.clip(scaled, 1, _LARGEST).astype(np.uint16)
        return stored, 1 / units_per_metre, 0.0, int(((scaled < 1) | (scaled > _LARGEST)).sum())
    if quantity == "metric_depth":
        scale = next((unit for unit in (1 / 1000, 1 / 256) if high <= _LARGEST * unit), high / _LARGEST)
        offset = 0.0
    elif high > low:
        scale = (high - low) / (_LARGEST - 1)
        offset = low - scale
    else:
        stored[known] = 32768
        return stored, 0.0, low, 0
    stored[known] = np.clip(np.rint((values[known] - offset) / scale), 1, _LARGEST).astype(np.uint16)
    return stored, scale, offset, 0


def png_texts(texts: dict[str, str] | None = None) -> PngImagePlugin.PngInfo:
    """Return text chunks for a PNG, the first of which says that this package made it, so that no photograph is seen in
    it later (see `listing.is_own_picture`)."""
    info = PngImagePlugin.PngInfo()
    for key, text in {"Software": f"distilldepth {__version__}", **(texts or {})}.items():
        info.add_text(key, _chunk_text(text))
    return info


def _chunk_text(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")


def read_depth_png(path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a PNG written by `write_depth_png`.

    Args:
        path: the file.

    Returns:
        The float32 `(H, W)` map, NaN where unknown, and its text chunks; `scale` and `offset` are floats and
        `near_is_bright` is a bool.

    Raises:
        FileNotFoundError: no such file.
        DistillDepthError: not an image, or a PNG without the text chunks.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            stored = np.asarray(image)
            texts: dict[str, Any] = dict(getattr(image, "text", {}))
    except FileNotFoundError:
        raise FileNotFoundError(2, "No such file or directory", str(path)) from None
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        raise DistillDepthError(f"{path}: cannot be read as a PNG: {error}") from error
    if stored.ndim != 2 or not {"quantity", "scale", "offset"} <= texts.keys():
        raise DistillDepthError(f"{path}: not a depth PNG of distilldepth (text chunks quantity, scale and offset)")
    texts["scale"], texts["offset"] = float(texts["scale"]), float(texts["offset"])
    texts["near_is_bright"] = texts.get("near_is_bright") == "true"
    values = stored.astype(np.float64) * texts["scale"] + texts["offset"]
    return np.where(stored > 0, values, np.nan).astype(np.float32), texts


def write_color_png(
    path: str | Path,
    values: np.ndarray,
    quantity: str,
    *,
    colormap: str = "spectral",
    percentiles: tuple[float, float] = (1.0, 99.0),
    texts: dict[str, str] | None = None,
) -> None:
    """Write a coloured 8-bit PNG for the eye: near things have the last colour of the map.

    Args:
        path: the file; replaced in one step.
        values, quantity, colormap, percentiles: see `colorize`.
        texts: further text chunks, for example `model` and `licence`.

    Raises:
        ValueError: as `colorize`.
        OSError: the file cannot be written.
    """
    picture = colorize(values, quantity, colormap=colormap, percentiles=percentiles)
    chunks = {
        "Description": "coloured for viewing; the numbers are in the 16-bit PNG or the .npy file",
        "quantity": quantity,
        "colormap": colormap,
        **(texts or {}),
    }
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=png_texts(chunks), compress_level=3)


def write_color(path: Path, picture: Picture, options: WriteOptions) -> int:
    """`write_color_png` as a format of the table."""
    write_color_png(
        path,
        picture.values,
        picture.quantity,
        colormap=options.colormap,
        percentiles=options.percentiles,
        texts={**picture.texts, **picture.origin},
    )
    return 0
