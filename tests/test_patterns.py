"""Which points of a depth map are given: patterns by name, and what each draws."""

from __future__ import annotations

import numpy as np
import pytest

from distilldepth.errors import UsageError
from distilldepth.sparse.patterns import Points, corner_score, draw_points, parse_points

HEIGHT, WIDTH = 47, 61


def some_depth(seed: int = 0, unknown: float = 0.3) -> np.ndarray:
    """Depth with 0, NaN, infinity and negative numbers where nothing is known."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 9, (HEIGHT, WIDTH))
    nothing = rng.choice([0.0, np.nan, np.inf, -np.inf, -2.0], (HEIGHT, WIDTH))
    return np.where(rng.random((HEIGHT, WIDTH)) < unknown, nothing, depth)


def known(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def a_photograph(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("text", "kind", "count", "again"),
    [
        ("500", "random", 500, "500"),
        (500, "random", 500, "500"),
        ("random:2", "random", 2, "2"),
        (" lines:64 ", "lines", 64, "lines:64"),
        ("lines:1", "lines", 1, "lines:1"),
        ("keypoints", "keypoints", 500, "keypoints"),
        ("keypoints:500", "keypoints", 500, "keypoints"),
        ("keypoints:30", "keypoints", 30, "keypoints:30"),
    ],
)
def test_words_are_patterns_and_patterns_words(text, kind, count, again):
    points = parse_points(text)
    assert points == Points(kind, count)
    assert str(points) == again
    assert parse_points(again) == points
    assert parse_points(points) is points


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("line:64", r"got 'line:64'; did you mean 'lines'\?"),
        ("", "got ''; say 500, lines:64 or keypoints, for example"),
        ("lines", "lines needs a count, a whole number from 1 to 100000000, as in lines:64, got 'lines'"),
        ("lines:0", "lines needs a count"),
        ("lines:6.5", "lines needs a count"),
        ("keypoints:", "keypoints needs a count.*from 2"),
        ("1", "random needs a count, a whole number from 2"),
        ("-5", "random needs a count"),
        ("5e2", "random needs a count"),
        ("9" * 300, "random needs a count"),
        ("٣٠٠", "random needs a count"),
    ],
)
def test_other_words_are_refused_with_what_to_say(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_points(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["40", "lines:5", "keypoints:40"])
def test_what_is_drawn_is_what_is_known_there_and_the_same_for_one_seed(text):
    depth, image = some_depth(), a_photograph()
    before = depth.copy()
    first, again, other = (
        draw_points(depth, parse_points(text), np.random.default_rng(seed), image=image) for seed in (3, 3, 4)
    )
    assert first.dtype == np.float32
    assert first.shape == depth.shape
    drawn = first != 0
    assert (known(depth) | ~drawn).all()
    assert np.array_equal(first[drawn], depth[drawn].astype(np.float32))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (text == "keypoints:40")  # corners are where they are
    np.testing.assert_array_equal(depth, before)


def test_random_points_are_as_many_as_asked_for_and_everywhere():
    depth = some_depth()
    rng, hits = np.random.default_rng(0), np.zeros(depth.shape)
    for _ in range(300):
        drawn = draw_points(depth, Points("random", 200), rng) > 0
        assert drawn.sum() == 200
        hits += drawn
    expected = 300 * 200 / known(depth).sum()
    assert (hits[known(depth)] > 0.3 * expected).all()
    assert (hits[known(depth)] < 2 * expected).all()


@pytest.mark.parametrize("kind", ["random", "lines", "keypoints"])
def test_all_points_are_drawn_where_there_are_too_few(kind):
    depth = np.zeros((5, 7), np.float32)
    depth[1, 2], depth[3, 4] = 2.5, 4.5
    image = a_photograph()[:5, :7]
    assert np.array_equal(draw_points(depth, Points(kind, 9), np.random.default_rng(0), image=image), depth)
    depth[:] = np.nan
    depth = depth.astype(np.float64)
    depth[2, 3], depth[4, 4] = 1e-60, 1e60  # not in float32
    assert not draw_points(depth, Points(kind, 9), np.random.default_rng(0), image=image).any()


@pytest.mark.parametrize("count", [1, 4, 16, HEIGHT])
def test_lines_are_whole_rows_evenly_spaced(count):
    depth = some_depth(unknown=0.2)
    firsts = set()
    for seed in range(20):
        drawn = draw_points(depth, Points("lines", count), np.random.default_rng(seed)) > 0
        rows = np.flatnonzero(drawn.any(1))
        assert len(rows) == count
        assert np.array_equal(drawn[rows], known(depth)[rows])
        assert np.ptp(np.diff(rows)) <= 1 if count > 2 else True
        assert rows[0] < HEIGHT / count
        assert rows[-1] >= HEIGHT - 1 - HEIGHT / count
        firsts.add(rows[0])
    assert len(firsts) > 1 or count == HEIGHT


def squares() -> np.ndarray:
    image = np.full((40, 60, 3), 30, np.uint8)
    image[8:20, 10:25] = 220
    image[24:35, 36:52] = (20, 90, 200)
    return image


def test_keypoints_are_the_corners_of_the_photograph():
    image = squares()
    depth = np.full(image.shape[:2], 3.0)
    drawn = draw_points(depth, Points("keypoints", 8), np.random.default_rng(0), image=image)
    found = np.argwhere(drawn)
    assert len(found) == 8
    corners = [(8, 10), (8, 24), (19, 10), (19, 24), (24, 36), (24, 51), (34, 36), (34, 51)]
    for row, column in corners:
        assert (np.abs(found - (row, column)).max(1) <= 2).any(), (row, column)


def test_a_corner_without_depth_is_not_drawn_and_the_rest_is_left_to_chance():
    image = squares()
    depth = np.full(image.shape[:2], 3.0)
    depth[:22] = np.nan  # the first square, which is the stronger one
    first, second = (
        draw_points(depth, Points("keypoints", 30), np.random.default_rng(seed), image=image) for seed in (0, 1)
    )
    assert (first > 0).sum() == (second > 0).sum() == 30
    assert not first[:22].any()
    both = np.argwhere((first > 0) & (second > 0))
    assert len(both) < 30
    for row, column in ((24, 36), (24, 51), (34, 36), (34, 51)):
        assert (np.abs(both - (row, column)).max(1) <= 2).any()


def slow_corner_score(image: np.ndarray) -> np.ndarray:
    """The definition, in float64 and a loop."""
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    height, width = grey.shape

    def at(values: np.ndarray, row: int, column: int) -> float:
        return values[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]

    down, right, score = np.zeros_like(grey), np.zeros_like(grey), np.zeros_like(grey)
    for row in range(height):
        for column in range(width):
            down[row, column] = at(grey, row + 1, column) - at(grey, row - 1, column)
            right[row, column] = at(grey, row, column + 1) - at(grey, row, column - 1)
    for row in range(height):
        for column in range(width):
            near = [(row + i, column + j) for i in range(-2, 3) for j in range(-2, 3)]
            a, b = np.array([[at(down, *place), at(right, *place)] for place in near]).T
            score[row, column] = np.linalg.eigvalsh([[a @ a, a @ b], [a @ b, b @ b]])[0] / 25
    return score


def test_corner_score_is_the_smaller_eigenvalue():
    image = a_photograph(5)[:13, :17]
    np.testing.assert_allclose(corner_score(image), slow_corner_score(image), rtol=1e-3, atol=1e-6)
    edge = np.zeros((20, 24, 3), np.uint8)
    edge[:, 11:] = 255
    assert corner_score(edge).max() < 1e-6
    assert corner_score(squares()).max() > 1e-3


def test_wrong_arguments_are_named():
    depth, rng = some_depth(), np.random.default_rng(0)
    with pytest.raises(TypeError, match="depth must be a floating array"):
        draw_points(np.ones((3, 4), np.int32), Points("random", 5), rng)
    with pytest.raises(TypeError, match=r"\(H, W\)"):
        draw_points(depth[None], Points("random", 5), rng)
    with pytest.raises(ValueError, match="image must be; it is None"):
        draw_points(depth, Points("keypoints", 5), rng)
    with pytest.raises(ValueError, match="as depth"):
        draw_points(depth, Points("keypoints", 5), rng, image=a_photograph()[1:])
    with pytest.raises(TypeError, match="uint8"):
        draw_points(depth, Points("keypoints", 5), rng, image=a_photograph().astype(np.float32))
    with pytest.raises(ValueError, match="did you mean 'lines'"):
        draw_points(depth, Points("line", 5), rng)
