"""Arrays of others in `.npy`: compared with the size of their file before memory is asked for, never unpickled."""

from __future__ import annotations

import math
import os
from typing import BinaryIO

import numpy as np

from distilldepth.errors import DistillDepthError

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
        read = file.readinto(data)
    except OSError as error:
        raise DistillDepthError(f"{name}: cannot be read ({error.strerror or error})") from error
    if read != needed:
        raise DistillDepthError(f"{name}: is cut off: {read} of {needed} bytes could be read")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
