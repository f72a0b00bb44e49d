"""The points of the truth that a completion is given: drawn per frame, the same for everyone, and not scored."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from distilldepth.datasets.truth import Truth
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, shown
from distilldepth.evaluate.words import SCORED
from distilldepth.sparse.patterns import Points, draw_points, parse_points

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Drawn:
    """A frame with its points."""

    points: np.ndarray
    """float32 `(H, W)` of the photograph's size: metres, 0 = no point."""
    truth_points: np.ndarray
    """The same, float32 `(h, w)` of the truth's size."""
    truth: Truth
    """What is scored."""


@dataclass(frozen=True)
class GivenPoints:
    """Which points of the truth are given, and what is scored."""

    points: Points
    score: str = SCORED[0]
    """`unseen`: pixels with truth that were not given; `all`: those too."""
    seed: int = 0
    """With the frame's name it decides where the points are."""

    @classmethod
    def asked_for(cls, points: str | int | Points | None, score: str, seed: int) -> GivenPoints:
        """Return what a user's words mean.

        Raises:
            UsageError: no points, an unknown pattern or word, or a seed that is none.
        """
        if points is None:
            raise UsageError("evaluate: completion needs points, for example --points 500, lines:64 or keypoints")
        if score not in SCORED:
            raise UsageError(f"evaluate: score must be known, got {shown(score)}{did_you_mean(str(score), SCORED)}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
            raise UsageError(f"evaluate: seed must be a whole number from 0 to {_LARGEST_SEED}, got {shown(seed)}")
        return cls(parse_points(points), score, seed)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON: `points` as they are typed, `score` and `seed`."""
        return {"points": str(self.points), "score": self.score, "seed": self.seed}

    def draw(self, frame: str, image: np.ndarray, truth: Truth) -> Drawn:
        """Draw the points of a frame and leave them out of the truth.

        Points are drawn from the valid pixels of the truth. Where it has another size than the photograph, a point goes
        to the pixel of the photograph that its centre lies in, the nearest of several that meet there; keypoints are
        then found on the photograph at the size of the truth. What is left out are the drawn pixels, and every pixel of
        the truth whose centre lies in a pixel of the photograph that has a point.

        Args:
            frame: its name; with the seed it decides where the points are.
            image: uint8 `(H, W, 3)`, as the model sees it.
            truth: of the whole image.

        Raises:
            DistillDepthError: the truth has no unit, fewer known pixels than points, or none but the points.
        """
        if not truth.is_metric:
            raise DistillDepthError("the ground truth has no unit (no focal_px and baseline_m), so no points in metres")
        known = np.where(truth.valid, truth.depth, 0)
        self._check_enough(int(np.count_nonzero(known > 0)), known.shape[0])
        drawn = draw_points(known, self.points, self._generator(frame), image=_resized(image, known.shape))
        if np.count_nonzero(drawn) < 2:
            raise DistillDepthError(f"fewer than two points of {self.points} lie on pixels with ground truth")
        placed = _place(drawn, image.shape[:2])
        valid = truth.valid
        if self.score == "unseen":
            rows, columns = _centres(known.shape, image.shape[:2])
            valid = valid & (drawn == 0) & (placed[np.ix_(rows, columns)] == 0)
            if not valid.any():
                raise DistillDepthError(
                    f"every pixel with ground truth is one of the points {self.points}; give fewer, or score all"
                )
        # What is cut out of the truth by the points is no edge of anything.
        return Drawn(placed, drawn, dataclasses.replace(truth, valid=valid, dense=False))

    def _check_enough(self, known: int, rows: int) -> None:
        there, what = (rows, "rows") if self.points.kind == "lines" else (known, "pixels with ground truth")
        if there < self.points.count:
            raise DistillDepthError(f"has {there} {what}, fewer than the points asked for ({self.points})")

    def _generator(self, frame: str) -> np.random.Generator:
        digest = hashlib.sha256(frame.encode("utf-8", "surrogateescape")).digest()[:16]
        return np.random.default_rng([self.seed, *np.frombuffer(digest, "<u4").tolist()])


def _resized(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The photograph at the size of the truth."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _centres(size: tuple[int, ...], frame: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """In which rows and columns of a frame the centres of the pixels of another size lie."""
    rows, columns = (
        ((np.arange(side) + 0.5) * of / side).astype(np.int64) for side, of in zip(size, frame, strict=True)
    )
    return rows, columns


def _place(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The points on a map of another size."""
    if points.shape == size:
        return points
    rows, columns = _centres(points.shape, size)
    row, column = np.nonzero(points)
    metres = points[row, column]
    order = np.argsort(-metres, kind="stable")  # the nearest is written last
    placed = np.zeros(size, np.float32)
    placed[rows[row[order]], columns[column[order]]] = metres[order]
    return placed
