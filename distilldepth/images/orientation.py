"""The EXIF orientation of a photograph, for what belongs to its pixels: depth, and the camera."""

from __future__ import annotations

import numpy as np

QUARTERS = (5, 6, 7, 8)
"""Orientations that exchange the sides."""


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return a map as a viewer shows pixels that are stored with an orientation.

    Args:
        values: `(H, W)`, or with more axes behind.
        orientation: 1 to 8, the EXIF tag; any other is none.

    >>> turn(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation in QUARTERS:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def turn_intrinsics(matrix: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Return the intrinsics of the upright photograph.

    The camera turns with its pixels: `K' = A K L^-1`, A being what happens to pixel coordinates, whose origin is the
    middle of the first pixel, and L its linear part.

    Args:
        matrix: `(3, 3)`, pixels as they are stored.
        orientation: 1 to 8, the EXIF tag; any other is none.
        size: (height, width) of the stored pixels.
    """
    height, width = size
    affine = np.eye(3)
    if orientation in QUARTERS:
        affine = affine[[1, 0, 2]]
        height, width = width, height
    if orientation in (3, 4, 7, 8):
        affine = np.array([[1, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ affine
    if orientation in (2, 3, 6, 7):
        affine = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ affine
    linear = np.eye(3)
    linear[:2, :2] = affine[:2, :2]
    # Turned and mirrored axes are their own inverse, transposed.
    return affine @ matrix @ linear.T


def belongs_to_stored_pixels(shape: tuple[int, int], upright: tuple[int, int], orientation: int) -> bool:
    """Say whether a map has to be turned with its photograph.

    Sensors and most tools write depth like the pixels, without an orientation of its own; programs that read the
    photograph upright write an upright map. Where the sides are exchanged and differ, the shape tells the two apart. A
    square map and one upside down or mirrored look alike either way, and are taken to be like the pixels.

    Args:
        shape: (height, width) of the map; may be another resolution.
        upright: (height, width) of the photograph as a viewer shows it.
        orientation: 1 to 8, the EXIF tag; any other is none.
    """
    if orientation not in range(2, 9):
        return False
    if orientation not in QUARTERS:
        return True
    as_shown, as_stored = upright[0] / upright[1], upright[1] / upright[0]
    ratio = shape[0] / shape[1]
    return abs(np.log(ratio / as_stored)) <= abs(np.log(ratio / as_shown))
