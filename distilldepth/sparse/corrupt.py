"""Points as a completion network is trained on: every pattern, with holes, noise, outliers and borders seen through."""

from __future__ import annotations

import math

import numpy as np

from distilldepth.sparse.patterns import Points, draw_points

FEWEST, MOST = 5, 5000
"""Random points: their number is uniform in its logarithm."""
LINES = (4, 64)
KEYPOINTS = (30, 1500)
HOLES = 0.35
"""Share of the maps with one to three large holes."""
NOISY, NOISE = 0.5, 0.03
"""Share of the maps with noise, and the largest standard deviation of the logarithm of depth."""
SPOILT, OUTLIERS = 0.5, 0.04
"""Share of the maps with outliers, and the largest share of their points that are: 2 % where there are any."""
SEEN_THROUGH, PARALLAX = 0.3, 3
"""Share of the maps whose sensor stood beside the camera, and by how many pixels what it saw is off at most."""
_LEAST_LEFT = 2


def draw_training_points(depth: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw points from a map as sensors of many kinds would have them.

    Half of the maps have 5 to 5000 random points, a fifth has 50 to 1500, where most uses lie; a fifth has 4 to 64
    lines, of which a third lost pixels; the others have keypoints. On these come, independently: holes, ellipses of a
    fifth to half of the frame; noise in the logarithm of depth; outliers, off by a factor of up to e; and borders that
    are seen through: a sensor beside the camera has, next to a near thing, the depth of what is behind it.

    Args:
        depth: float32 `(H, W)`, metres; what is not positive and finite is not known, and never drawn.
        image: uint8 `(H, W, 3)`, for keypoints.
        rng: the only source of chance.

    Returns:
        float32 `(H, W)`, metres, 0 = no point. At least two points where the map knows as many.
    """
    seen = _beside(depth, rng) if rng.random() < SEEN_THROUGH else depth
    drawn = draw_points(seen, _pattern(rng), rng, image=image)
    if rng.random() < 1 / 3:
        drawn = _kept(drawn, rng.random(drawn.shape) < rng.uniform(0.3, 1))
    if rng.random() < HOLES:
        for _ in range(int(rng.integers(1, 4))):
            drawn = _kept(drawn, ~_ellipse(drawn.shape, rng))
    factor = np.zeros(drawn.shape, dtype=np.float32)
    if rng.random() < NOISY:
        factor += rng.standard_normal(drawn.shape, dtype=np.float32) * np.float32(rng.uniform(0, NOISE))
    if rng.random() < SPOILT:
        wrong = rng.random(drawn.shape) < rng.uniform(0, OUTLIERS)
        factor = np.where(wrong, rng.uniform(-1, 1, drawn.shape).astype(np.float32), factor)
    return drawn * np.exp(factor)


def _pattern(rng: np.random.Generator) -> Points:
    kind = rng.random()
    if kind < 0.5:
        return Points("random", _between(FEWEST, MOST, rng))
    if kind < 0.7:
        return Points("random", _between(50, 1500, rng))
    if kind < 0.9:
        return Points("lines", _between(*LINES, rng))
    return Points("keypoints", _between(*KEYPOINTS, rng))


def _between(least: int, most: int, rng: np.random.Generator) -> int:
    """A number, uniform in its logarithm."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def _kept(drawn: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The points there, or all if hardly any were left."""
    left = np.where(where, drawn, np.float32(0))
    return left if np.count_nonzero(left) >= _LEAST_LEFT else drawn


def _ellipse(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """bool: inside an ellipse anywhere, whose axes are a fifth to half of the frame's sides."""
    rows, columns = (np.arange(side) for side in shape)
    down = (rows - rng.uniform(0, shape[0])) / (rng.uniform(0.1, 0.25) * shape[0])
    right = (columns - rng.uniform(0, shape[1])) / (rng.uniform(0.1, 0.25) * shape[1])
    return down[:, None] ** 2 + right[None] ** 2 < 1


def _beside(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a sensor beside the camera brings into the frame: the further of two pixels, behind borders on one side."""
    by = int(rng.integers(1, PARALLAX + 1)) * (1 if rng.random() < 0.5 else -1)
    other = np.roll(depth, by, axis=1)
    known = np.isfinite(depth) & (depth > 0) & np.isfinite(other) & (other > 0)
    # The frame's far side is not beside this one.
    known[:, :by] = False if by > 0 else known[:, :by]
    known[:, by:] = False if by < 0 else known[:, by:]
    return np.where(known, np.maximum(depth, np.where(known, other, 0)), depth)
