"""Full maps from points alone."""

from __future__ import annotations

import numpy as np
import pytest

from distilldepth.sparse.interpolate import linear, morphology, nearest

EVERY = pytest.mark.parametrize("fill", [nearest, linear, morphology])


def points_of(seed: int, size: tuple[int, int] = (19, 31), count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sparse = np.zeros(size, np.float32)
    sparse.flat[rng.choice(sparse.size, count, replace=False)] = rng.uniform(1, 8, count)
    return sparse


def test_nearest_is_that_of_a_slow_loop():
    sparse = points_of(0)
    places = np.argwhere(sparse > 0)
    filled = nearest(sparse)
    for y, x in np.ndindex(sparse.shape):
        distances = ((places - (y, x)) ** 2).sum(1)
        tied = {float(sparse[tuple(place)]) for place in places[distances == distances.min()]}
        assert float(filled[y, x]) in tied


def test_linear_gives_a_plane_back_inside_and_the_nearest_outside():
    rows, columns = np.indices((24, 33))
    plane = 2 + 0.1 * rows + 0.05 * columns
    sparse = np.zeros(plane.shape)
    known = [(2, 3), (3, 28), (20, 30), (21, 4), (11, 15)]
    for place in known:
        sparse[place] = plane[place]
    filled = linear(sparse)
    np.testing.assert_allclose(filled[6:18, 8:25], plane[6:18, 8:25], rtol=1e-5)
    assert filled[0, 0] == np.float32(plane[2, 3])
    assert filled[23, 32] == np.float32(plane[20, 30])


@pytest.mark.parametrize("places", [[(3, 4)], [(3, 4), (5, 9)], [(2, 2), (4, 4), (9, 9)], [(5, 0), (5, 7), (5, 12)]])
def test_linear_is_nearest_where_there_is_no_triangle(places):
    sparse = np.zeros((10, 14))
    for index, place in enumerate(places):
        sparse[place] = 1.5 + index
    np.testing.assert_array_equal(linear(sparse), nearest(sparse))


def test_morphology_lets_near_things_grow_over_far_ones_and_fills_everything():
    sparse = np.zeros((40, 60))
    sparse[::5, ::5] = 6.0
    sparse[15:26:5, 20:41:5] = 2.0
    filled = morphology(sparse)
    assert filled.shape == sparse.shape
    assert filled[20, 30] == pytest.approx(2.0, abs=1e-3)
    assert filled[5, 50] == pytest.approx(6.0, abs=1e-3)
    assert filled[35, 5] == pytest.approx(6.0, abs=1e-3)
    # The near block reached to its last points; it has grown over the far ones' side of the gap.
    assert filled[20, 41] < 3.0
    lone = np.zeros((120, 90))
    lone[100, 80] = 3.0
    np.testing.assert_allclose(morphology(lone), 3.0, rtol=1e-5)


@EVERY
def test_maps_lie_between_the_points_and_are_full(fill):
    sparse = points_of(1)
    filled = fill(sparse)
    assert filled.dtype == np.float32
    known = sparse[sparse > 0]
    assert np.isfinite(filled).all()
    assert known.min() - 1e-4 <= filled.min()
    assert filled.max() <= known.max() + 1e-4


@EVERY
def test_what_is_no_depth_counts_as_none(fill):
    sparse = points_of(2)
    dirty = sparse.copy()
    y, x = np.argwhere(sparse == 0)[:4].T
    dirty[y, x] = (np.nan, np.inf, -np.inf, -2.0)
    np.testing.assert_array_equal(fill(dirty), fill(sparse))
    assert np.isnan(fill(np.zeros((4, 5)))).all()
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        fill(np.zeros((2, 4, 5)))
