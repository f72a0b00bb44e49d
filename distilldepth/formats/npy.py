"""Arrays in `.npy`, written and read; those of others are compared with the size of their file before memory is asked
for, and never unpickled."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distilldepth.errors import DistillDepthError
from distilldepth.files import atomic_path
from distilldepth.formats.options import Picture, WriteOptions

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By version of the format; a third one is for names of fields that are not ASCII, which no map has."""


def read_npy(file: BinaryIO, name: str) -> np.ndarray:
    """Read an array of real numbers.

    Args:
        file: open at the start of the `.npy` file; can be sought in.
        name: of the file, for messages.

    Returns:
        The array, in its own type and shape.

    Raises:
        DistillDepthError: no `.npy` file, damaged, cut off, or something else than real numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = _HEADERS[version](file)
        start = file.tell()
        there = file.seek(0, os.SEEK_END) - start
        file.seek(start)
    except Exception as error:
        # A hostile header makes numpy stumble over anything, up to its parser, and its advice is to trust the file.
        raise DistillDepthError(f"{name}: is not a readable .npy file (damaged header)") from error
    if dtype.hasobject:
        raise DistillDepthError(f"{name}: holds Python objects, which could run a program and are not opened")
    if dtype.kind not in "fiu" or dtype.itemsize > 16:
        raise DistillDepthError(f"{name}: must hold one array of real numbers")
    needed = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or needed > there:
        raise DistillDepthError(f"{name}: is cut off or damaged: it promises more than the {there} bytes it has")
    data = bytearray(needed)
    try:
        read = file.readinto(data)  # type: ignore[attr-defined]  # Binary files have it, typing's word for them not.
    except OSError as error:
        raise DistillDepthError(f"{name}: cannot be read ({error.strerror or error})") from error
    if read != needed:
        raise DistillDepthError(f"{name}: is cut off: {read} of {needed} bytes could be read")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def write_npy(path: str | Path, values: np.ndarray) -> None:
    """Write the map as float32 `.npy`, exactly as predicted.

    Args:
        path: the file; replaced in one step.
        values: `(H, W)`, any float dtype.

    Raises:
        OSError: the file cannot be written.
    """
    # Through memory: on a full disk numpy's own writing says how many bytes it wrote, and not why no more.
    content = io.BytesIO()
    np.save(content, values.astype(np.float32), allow_pickle=False)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(content.getbuffer())


def write_array(path: Path, picture: Picture, options: WriteOptions) -> int:
    """`write_npy` as a format of the table."""
    write_npy(path, picture.values)
    return 0
