"""What a model says of its own uncertainty as files that lie beside those of its map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from distilldepth.files import atomic_path
from distilldepth.formats.colormaps import colorize
from distilldepth.formats.npy import write_npy
from distilldepth.formats.options import Picture, WriteOptions
from distilldepth.formats.png import png_texts
from distilldepth.words import LOG_VARIANCE

COLORMAP = "magma"
"""Dark where the model is certain; none that depth is usually painted in."""

_LARGEST = 65535
_LOWEST, _HIGHEST = -5.0, 5.0
"""Of the models' modules: one scale for every file, so that files can be compared."""


def write_uncertainty_png(path: Path, picture: Picture, options: WriteOptions) -> int:
    """Write a log-variance as a 16-bit grey PNG that says what its numbers mean.

    `value = stored * scale + offset` is s = log sigma^2 of the numbers of the map beside it; stored 0 is unknown. Every
    file has the same scale: 1 to 65535 are -5 to 5, which no module goes beyond.

    Args:
        path: the file; replaced in one step.
        picture: `values` is the log-variance, `quantity` that of the map beside it.
        options: nothing of it matters.

    Returns:
        0.

    Raises:
        OSError: the file cannot be written.
    """
    scale = (_HIGHEST - _LOWEST) / (_LARGEST - 1)
    offset = _LOWEST - scale
    known = np.isfinite(picture.values)
    share = (np.where(known, picture.values, 0).astype(np.float64) - offset) / scale
    stored = np.where(known, np.clip(np.rint(share), 1, _LARGEST), 0).astype(np.uint16)
    chunks = {
        "Description": "value = stored * scale + offset; stored 0 = unknown",
        **_meaning(picture),
        "scale": repr(scale),
        "offset": repr(offset),
        "unit": "log of m^2" if picture.quantity == "metric_depth" else "log of the map's own numbers squared",
        "unknown": "0",
        **picture.texts,
        **picture.origin,
    }
    with atomic_path(path) as temporary:
        Image.fromarray(stored).save(temporary, format="PNG", pnginfo=png_texts(chunks), compress_level=3)
    return 0


def write_uncertainty_color(path: Path, picture: Picture, options: WriteOptions) -> int:
    """Write a log-variance as a coloured 8-bit PNG for the eye: dark is certain, bright is not.

    Args:
        path: the file; replaced in one step.
        picture: `values` is the log-variance, `quantity` that of the map beside it.
        options: `percentiles` is shown as the first and the last colour.

    Returns:
        0.

    Raises:
        OSError: the file cannot be written.
    """
    painted = colorize(picture.values, "disparity", colormap=COLORMAP, percentiles=options.percentiles)
    chunks = {
        "Description": "coloured for viewing, bright = less certain; numbers are in the 16-bit PNG or the .npy file",
        **_meaning(picture),
        "colormap": COLORMAP,
        **picture.texts,
        **picture.origin,
    }
    with atomic_path(path) as temporary:
        Image.fromarray(painted).save(temporary, format="PNG", pnginfo=png_texts(chunks), compress_level=3)
    return 0


def write_uncertainty_array(path: Path, picture: Picture, options: WriteOptions) -> int:
    """Write a log-variance as float32 `.npy`, exactly as the model says it; see `write_npy`."""
    write_npy(path, picture.values)
    return 0


def _meaning(picture: Picture) -> dict[str, str]:
    return {
        "quantity": LOG_VARIANCE,
        "meaning": "log of the variance of the map's numbers as the model itself estimates it, sigma = exp(value / 2); "
        "larger = less certain",
        "of": picture.quantity,
    }
