"""Where the points of a sparse depth map lie: patterns by name, drawn from a map that is known in more places."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from distilldepth.errors import UsageError, did_you_mean, shown

PATTERNS = {
    "random": "so many of the known pixels, each as likely as another",
    "lines": "every known pixel on so many rows, evenly spaced, as a spinning LiDAR sees an upright scene",
    "keypoints": "known pixels at corners of the photograph, as structure from motion has them",
}
"""Patterns by the word that names them, and what each is; a number alone is `random`."""

KEYPOINTS = 500
"""Corners where no number is said."""
LEAST = {"random": 2, "lines": 1, "keypoints": 2}
"""Fewest points, or rows, of each: a scale and a shift need two points."""
MOST = 10**8
_NEIGHBOURS = 2
"""A corner has the highest score within so many pixels in each direction."""
_QUALITY = 1e-3
"""And at least this share of the highest score of all, so that rounding on straight edges is no corner."""


@dataclass(frozen=True)
class Points:
    """Which points of a map are given; its text is what `parse_points` takes."""

    kind: str
    """One of `PATTERNS`."""
    count: int
    """How many points, or for `lines` how many rows."""

    def __str__(self) -> str:
        if self.kind == "random":
            return str(self.count)
        return self.kind if (self.kind, self.count) == ("keypoints", KEYPOINTS) else f"{self.kind}:{self.count}"


def parse_points(text: str | int | Points) -> Points:
    """Return the pattern that a user's words mean: `500`, `lines:64` or `keypoints`.

    Args:
        text: a count; or a word of `PATTERNS`, a colon and a count, which only `keypoints` has a usual value for.

    Returns:
        The pattern.

    Raises:
        UsageError: no such pattern, or no such count.

    >>> parse_points("lines:64"), str(parse_points("random:500"))
    (Points(kind='lines', count=64), '500')
    """
    if isinstance(text, Points):
        return text
    kind, colon, number = str(text).strip().partition(":")
    if not colon and re.fullmatch(r"[+-]?[\d.,_]+\w*", kind):
        kind, number = "random", kind
    if kind not in PATTERNS:
        near = did_you_mean(kind, PATTERNS, otherwise="; say 500, lines:64 or keypoints, for example")
        raise UsageError(f"points: a pattern must be known, got {shown(text)}{near}")
    if kind == "keypoints" and not colon:
        return Points(kind, KEYPOINTS)
    if not re.fullmatch(r"[0-9]{1,9}", number) or not LEAST[kind] <= int(number) <= MOST:
        example = {"random": "500", "lines": "lines:64", "keypoints": "keypoints:500"}[kind]
        raise UsageError(
            f"points: {kind} needs a count, a whole number from {LEAST[kind]} to {MOST}, as in {example}, "
            f"got {shown(text)}"
        )
    return Points(kind, int(number))


def draw_points(
    depth: np.ndarray, points: Points, rng: np.random.Generator, *, image: np.ndarray | None = None
) -> np.ndarray:
    """Draw the points of a pattern from a map.

    `random` takes `count` known pixels without putting one back. `lines` takes all known pixels of `count` rows with
    one spacing, the first at random within it. `keypoints` takes the known pixels with the `count` highest corner
    scores (the smaller eigenvalue of the structure tensor over 5 x 5 pixels) that are the highest within two pixels and
    above 0.001 of the photograph's highest; where it has fewer corners the rest are drawn as `random` does.

    Args:
        depth: `(H, W)`, a floating dtype, metres; positive and finite where known, nothing else is drawn.
        points: the pattern.
        rng: decides what is left to chance; its state moves on.
        image: uint8 `(H, W, 3)`, the photograph; needed for `keypoints` only.

    Returns:
        float32 `(H, W)`, metres, 0 = no point. All known pixels where there are fewer than asked for.

    Raises:
        TypeError: depth is not a floating array, image not uint8.
        ValueError: shapes do not fit, an unknown pattern, or no image for `keypoints`.

    Source: `keypoints` after Shi and Tomasi, Good Features to Track (1994).

    >>> drawn = draw_points(np.array([[1.0, 0.0], [np.nan, 3.0]]), Points("random", 2), np.random.default_rng(0))
    >>> drawn.tolist()
    [[1.0, 0.0], [0.0, 3.0]]
    """
    if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
        raise TypeError(f"draw_points: depth must be a floating array (H, W), got {depth.dtype} {depth.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        metres = depth.astype(np.float32)
    known = np.isfinite(metres) & (metres > 0)
    if points.kind == "lines":
        chosen = known & _on_lines(depth.shape[0], points.count, rng)[:, None]
    elif points.kind in ("random", "keypoints"):
        index = np.flatnonzero(known)
        if points.kind == "random":
            index = rng.choice(index, min(points.count, len(index)), replace=False, shuffle=False)
        else:
            index = _best_corners(_check_image(image, depth), index, points.count, rng)
        chosen = np.zeros_like(known)
        chosen.flat[index] = True
    else:
        raise ValueError(f"draw_points: kind must be known, got {points.kind!r}{did_you_mean(points.kind, PATTERNS)}")
    return np.where(chosen, metres, np.float32(0))


def _on_lines(height: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool `(H,)`: the rows of the lines; all rows where there are fewer."""
    rows = ((np.arange(count) + rng.random()) * height / count).astype(np.int64)
    on = np.zeros(height, dtype=bool)
    on[rows[rows < height]] = True
    return on


def _check_image(image: np.ndarray | None, depth: np.ndarray) -> np.ndarray:
    if image is None:
        raise ValueError("draw_points: keypoints are corners of the photograph, which image must be; it is None")
    if image.dtype != np.uint8:
        raise TypeError(f"draw_points: image must be uint8, got {image.dtype}")
    if image.shape != (*depth.shape, 3):
        raise ValueError(f"draw_points: image must be {(*depth.shape, 3)} as depth, got {image.shape}")
    return image


def _best_corners(image: np.ndarray, index: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The indices, among these, of so many corners, the best first; the rest at random."""
    score = corner_score(image)
    summit = (score == _over_neighbours(score, np.maximum, _NEIGHBOURS)) & (score > _QUALITY * score.max())
    rank = np.where(summit, score, 0).flat[index]
    # Of equal scores none is better: where a picture is flat, or repeats itself, chance decides.
    order = np.lexsort((rng.random(len(index)), -rank))
    return index[order[:count]]


def corner_score(image: np.ndarray) -> np.ndarray:
    """Return how much of a corner each pixel is: the smaller eigenvalue of the structure tensor.

    The tensor is the mean, over 5 x 5 pixels, of the products of the central differences of the luminance; the border
    of the image is repeated outwards.

    Args:
        image: uint8 `(H, W, 3)`.

    Returns:
        float32 `(H, W)`, not negative; 0 on plain regions and (but for rounding) on straight edges.

    Source: Shi and Tomasi, Good Features to Track (1994).
    """
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    padded = np.pad(grey, 1, mode="edge")
    down, right = padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]
    rows, columns, mixed = (
        _over_neighbours(part, np.add, 2) / 25 for part in (down * down, right * right, down * right)
    )
    half = (rows + columns) / 2
    return np.maximum(half - np.sqrt(((rows - columns) / 2) ** 2 + mixed**2), 0)


def _over_neighbours(values: np.ndarray, combine: np.ufunc, reach: int) -> np.ndarray:
    """Each pixel combined with those at most `reach` away along rows and columns; the border is repeated outwards."""
    for axis in (0, 1):
        length = values.shape[axis]
        padded = np.pad(values, [(reach, reach) if one == axis else (0, 0) for one in (0, 1)], mode="edge")
        parts = [padded.take(range(start, start + length), axis) for start in range(2 * reach + 1)]
        values = combine.reduce(parts)
    return values
