"""Depth as the KITTI benchmark wants it: 16-bit PNG of 256 steps a metre."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distilldepth.files import atomic_path
from distilldepth.formats.options import Picture, WriteOptions

KITTI_SCALE = 256


def write_kitti_png(path: Path, values: np.ndarray, quantity: str) -> None:
    """Write metres as the KITTI benchmark wants them: 16-bit grey PNG, metres x 256, 0 = unknown.

    A depth beyond 255.99 m is stored as that; one between 0 and 1/512 m as 1/256 m, since 0 would say unknown.

    Raises:
        ValueError: the map is not in metres.
    """
    from PIL import Image

    from distilldepth.formats.png import png_texts

    check_metres(quantity)
    known = np.isfinite(values) & (values > 0)
    scaled = np.where(known, np.clip(np.rint(np.where(known, values, 0).astype(np.float64) * KITTI_SCALE), 1, 65535), 0)
    with atomic_path(path) as temporary:
        Image.fromarray(scaled.astype(np.uint16)).save(temporary, format="PNG", pnginfo=png_texts())


def write_kitti(path: Path, picture: Picture, options: WriteOptions) -> int:
    """`write_kitti_png` as a format of the table."""
    write_kitti_png(path, picture.values, picture.quantity)
    return 0


def check_metres(quantity: str) -> None:
    """See that a model's numbers are metres.

    Raises:
        ValueError: they are not.
    """
    if quantity != "metric_depth":
        raise ValueError(
            f"the KITTI format holds metres, and the model predicts {quantity}, which is known up to scale and shift "
            "only; take a model that predicts metric depth, or save as npy"
        )
