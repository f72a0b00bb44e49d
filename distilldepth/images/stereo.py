"""Rectified stereo pairs: the right view of a left one, its camera, and whether the two may be exchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from distilldepth.errors import DistillDepthError

_SIDE = 256
"""Columns at which views are compared, and rows of them at most."""
_REACH = 0.25
"""Largest shift that is looked for, as a share of the width, to either side."""
_CELL = 9
"""Side of the squares that are compared."""
_LEAST_CELLS = 24
"""Squares that must agree before anything is said of a pair."""
_LEAST_SHIFT = 1.0
"""Columns by which views must be shifted in the median, and the share of squares on that side."""
_LEAST_SHARE = 0.8


@dataclass(frozen=True)
class RightView:
    """What belongs to a left view."""

    image: np.ndarray
    """uint8 `(H, W, 3)`, of the left view's size, rectified with it."""
    focal_px: float | None = None
    """Focal length in pixels of the image; None: not known."""
    baseline_m: float | None = None
    """Metres between the two cameras; None: not known."""

    @property
    def factor(self) -> float | None:
        """Depth times disparity, metres times pixels; None where a number is missing."""
        return None if self.focal_px is None or self.baseline_m is None else self.focal_px * self.baseline_m

    def check_size(self, left: np.ndarray) -> None:
        """Raise DistillDepthError unless both views have one size; `left` is uint8 `(H, W, 3)`."""
        if self.image.shape[:2] != left.shape[:2]:
            sizes = [f"{view.shape[0]} x {view.shape[1]}" for view in (left, self.image)]
            raise DistillDepthError(
                f"the left view is {sizes[0]} and the right one {sizes[1]}; a rectified pair has one size"
            )


def check_camera(focal_px: float | None, baseline_m: float | None, where: str) -> None:
    """Refuse one number without the other, and numbers that are no length.

    Args:
        focal_px: pixels; None for not known.
        baseline_m: metres; None for not known.
        where: for the message.

    Raises:
        ValueError: it says which number is missing or wrong.
    """
    for name, value in (("focal_px", focal_px), ("baseline_m", baseline_m)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{where}: {name} must be positive and finite, got {value}")
    if (focal_px is None) != (baseline_m is None):
        given, missing = ("focal_px", "baseline_m")[:: 1 if baseline_m is None else -1]
        raise ValueError(f"{where}: {given} is given without {missing}; disparity becomes metres by both")


def are_swapped(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two views of a rectified pair look exchanged: most of what is seen in both lies farther right in the
    right one, where it should lie farther left, or stay in its column if it is far away.

    Squares of both views, made 256 columns wide, are compared at every shift up to a quarter of the width, to either
    side. Counted are those that are told apart from their neighbours, of which each finds the other. Where too few are
    left, or most hardly move, nothing is said.

    Args:
        left: uint8 `(H, W, 3)`.
        right: of the same size.

    Returns:
        True if the median shift is negative.

    >>> import numpy as np
    >>> scene = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    >>> are_swapped(scene[:, :80], scene[:, 6:86]), are_swapped(scene[:, 6:86], scene[:, :80])
    (False, True)
    """
    shifts = _shifts(_grey(left), _grey(right))
    if len(shifts) < _LEAST_CELLS:
        return False
    return bool(np.median(shifts) <= -_LEAST_SHIFT and np.mean(shifts < 0) >= _LEAST_SHARE)


def _grey(image: np.ndarray) -> np.ndarray:
    """float32, at most `_SIDE` columns and rows, the middle ones, without what differs between two exposures."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image).convert("L")
    if width > _SIDE:
        picture = picture.resize((_SIDE, max(1, round(height * _SIDE / width))), Image.Resampling.BOX)
    values = np.asarray(picture, np.float32)
    above = max(0, len(values) - _SIDE) // 2
    values = values[above : above + _SIDE]
    return (values - values.mean()) / max(float(values.std()), 1.0)


def _shifts(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far left the content of each square of the left view has gone in the right one, columns; sure ones only."""
    height, width = left.shape
    reach, half = int(_REACH * width), _CELL // 2
    if min(height, width - 2 * reach) < _CELL or reach < 2:
        return np.zeros(0)
    offsets = np.arange(-reach, reach + 1)
    # Where squares are not whole in both views, nothing is known; the same costs twice, by the place in either view.
    of_left, of_right = (np.full((len(offsets), height, width), np.inf, np.float32) for _ in range(2))
    for place, offset in enumerate(range(-reach, reach + 1)):
        first, last = max(offset, 0), width + min(offset, 0)
        means = _means(np.abs(left[:, first:last] - right[:, first - offset : last - offset]))
        rows = slice(half, height - half)
        of_left[place, rows, first + half : last - half] = means
        of_right[place, rows, first - offset + half : last - offset - half] = means
    centres = tuple(slice(half, side - half, half) for side in (height, width))
    costs = of_left[:, centres[0], centres[1]]
    mine = offsets[costs.argmin(0)]
    row, column = (places[centres] for places in np.mgrid[0:height, 0:width])
    # The square in the right view must lead back to where it came from.
    there = np.clip(column - mine, 0, width - 1)
    back = offsets[of_right[:, row, there].argmin(0)]
    # Another shift, not beside the best, must not be nearly as good: repeated and flat things say nothing.
    beside = np.abs(offsets[:, None, None] - mine) <= 2
    second = np.where(beside, np.inf, costs).min(0)
    sure = (np.abs(back - mine) <= 1) & (costs.min(0) < 0.7 * second) & (second > 0.1) & np.isfinite(second)
    return mine[sure]


def _means(values: np.ndarray) -> np.ndarray:
    """Means of all whole squares: `(h, w)` to `(h - _CELL + 1, w - _CELL + 1)`."""
    total = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows = total[_CELL:] - total[:-_CELL]
    return (rows[:, _CELL:] - rows[:, :-_CELL]) / _CELL**2
