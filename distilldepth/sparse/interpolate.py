"""A full map from a sparse one without looking at the photograph: what any completion has to be better than."""

from __future__ import annotations

import numpy as np

MORPHOLOGY_RANGE = 1.05
"""Inverted depth is this times the furthest point, less the depth: positive for every point, larger = nearer."""


def nearest(sparse: np.ndarray) -> np.ndarray:
    """Give every pixel the depth of the point nearest to it.

    Args:
        sparse: `(H, W)`, depth, metres, 0 = none; NaN, infinite and negative values count as none.

    Returns:
        float32 `(H, W)`; NaN everywhere without a point.

    Raises:
        ValueError: not `(H, W)`.

    >>> nearest(np.array([[1.0, 0.0, 0.0, 0.0, 3.0]])).round(2).tolist()[0][:2]
    [1.0, 1.0]
    """
    known = _known("nearest", sparse)
    if not known.any():
        return np.full(sparse.shape, np.nan, np.float32)
    from scipy import ndimage

    place = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(sparse, np.float32)[tuple(place)]


def linear(sparse: np.ndarray) -> np.ndarray:
    """Interpolate linearly over the Delaunay triangles of the points, and take the nearest point outside of them.

    Args:
        sparse: as `nearest`.

    Returns:
        float32 `(H, W)`; as `nearest` where there is no triangle (fewer than three points, or all on a line); NaN
        everywhere without a point.

    Raises:
        ValueError: not `(H, W)`.

    >>> linear(np.array([[1.0, 0, 3.0], [0, 0, 0], [1.0, 0, 3.0]]))[1].tolist()
    [1.0, 2.0, 3.0]
    """
    known = _known("linear", sparse)
    filled = nearest(sparse)
    rows, columns = np.nonzero(known)
    if len(rows) < 3:
        return filled
    from scipy import interpolate, spatial

    try:
        triangles = spatial.Delaunay(np.stack((rows, columns), 1))
    except spatial.QhullError:  # all on a line
        return filled
    every = np.indices(known.shape).reshape(2, -1).T
    values = np.asarray(sparse, np.float64)[rows, columns]
    inside = interpolate.LinearNDInterpolator(triangles, values)(every).reshape(known.shape)
    return np.where(np.isfinite(inside), inside, filled).astype(np.float32)


def morphology(sparse: np.ndarray) -> np.ndarray:
    """Fill a sparse map by widening its points, nearer ones over further ones, and smoothing what comes out.

    In inverted depth: every point grows to a diamond, small holes are closed, holes of the size of a window are filled
    from around them, columns are continued upwards from their topmost value, what is left is filled by ever larger
    windows, and a median and a Gaussian remove what sticks out.

    Args:
        sparse: as `nearest`.

    Returns:
        float32 `(H, W)`; NaN everywhere without a point.

    Raises:
        ValueError: not `(H, W)`.

    Source: the idea of Ku et al., In Defense of Classical Image Processing: Fast Depth Completion on the CPU (2018).

    >>> morphology(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])).round(3).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    known = _known("morphology", sparse)
    if not known.any():
        return np.full(sparse.shape, np.nan, np.float32)
    from scipy import ndimage

    top = MORPHOLOGY_RANGE * float(np.asarray(sparse, np.float64)[known].max())
    inverted = np.where(known, top - np.where(known, sparse, 0), 0)
    diamond = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)
    inverted = ndimage.grey_dilation(inverted, footprint=diamond)
    inverted = ndimage.grey_closing(inverted, size=5)
    inverted = np.where(inverted > 0, inverted, ndimage.grey_dilation(inverted, size=7))
    # The topmost value of a column goes on to the upper border, as walls and trees do.
    first = (inverted > 0).argmax(0)
    above = np.arange(len(inverted))[:, None] < first
    inverted = np.where(above, inverted[first, np.arange(inverted.shape[1])], inverted)
    window = 31
    while not (inverted > 0).all():
        inverted = np.where(inverted > 0, inverted, ndimage.grey_dilation(inverted, size=window))
        window = 2 * window + 1
    inverted = ndimage.median_filter(inverted, size=5)
    inverted = ndimage.gaussian_filter(inverted, 1.0, truncate=2.0)
    return (top - inverted).astype(np.float32)


def _known(function: str, sparse: np.ndarray) -> np.ndarray:
    if np.ndim(sparse) != 2:
        raise ValueError(f"{function}: sparse must be (H, W), got {np.shape(sparse)}")
    return np.isfinite(sparse) & (np.asarray(sparse) > 0)
