"""How sure a mean over seeds and frames is, and what it says of a claim.

The numbers of a cell lie in a grid for each dataset: a row for each seed, a column for each frame. What is estimated is
the mean over datasets of the mean of each grid. Two cells are compared seed by seed and frame by frame, since both saw
the same order of images with the same seed, and both are scored on the same frames.

Seeds and frames are drawn again with replacement, each for itself: the rows of all datasets together, the columns of
each dataset on its own. Few seeds say little about how much seeds differ, and a bootstrap of five is a third too
narrow; so what the rows add is divided by the square root of a chi-square draw over its degrees of freedom, which makes
Student's t of a normal distribution, and likewise what the columns add. A dataset of one frame, which does not say how
much frames differ, is taken to differ as the others do. Datasets are not drawn: the interval is about these ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distilldepth.evaluate.statistics import CONFIDENCE, resampled_means

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told at this size"
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    """NaN, as `high`, if too little was measured to say."""
    high: float

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)

    @property
    def verdict(self) -> str:
        """What a difference says of the claim that it is positive."""
        if self.low > 0:
            return HOLDS
        return FAILS if self.high < 0 else UNKNOWN


def estimate(grids: Sequence[np.ndarray], *, seeds: bool = True, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean over datasets with its interval.

    Args:
        grids: `(seeds, frames)` for each dataset, with the same seeds.
        seeds: False for a model that is not trained, or two of them: their one row is all there is.
        resamples: draws of the bootstrap.

    Returns:
        The estimate. Without interval for one seed or one frame; with NaN for everything if there is no grid, or a
        number in one is not finite.

    Source: Owen, The pigeonhole bootstrap (2007), for drawing rows and columns; Behrens-Fisher for the sum of a t and
        a normal part.
    """
    nothing = float("nan")
    if not grids or not all(grid.size and np.isfinite(grid).all() for grid in grids):
        return Estimate(nothing, nothing, nothing)
    rows = np.mean([grid.mean(1) for grid in grids], axis=0)
    value = float(rows.mean())
    if seeds and len(rows) < 2:
        return Estimate(value, nothing, nothing)
    random = np.random.default_rng(0)
    moved = _frames_moved([grid.mean(0) for grid in grids], random, resamples)
    if seeds:
        moved += _moved(_inflated(rows - value), 0, resamples) * _widening(len(rows) - 1, random, resamples)
    low, high = np.quantile(moved, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, value + float(low), value + float(high))


def _frames_moved(columns: Sequence[np.ndarray], random: np.random.Generator, resamples: int) -> np.ndarray:
    """How far each draw of the frames of all datasets moves the mean over datasets; NaN if none has two frames."""
    freedom = sum(len(values) - 1 for values in columns)
    if not freedom:
        return np.full(resamples, np.nan)
    deviations = [_inflated(values - values.mean()) for values in columns if len(values) > 1]
    everywhere = np.concatenate(deviations)
    total = np.zeros(resamples)
    for number, values in enumerate(columns, start=1):
        if len(values) > 1:
            total += _moved(_inflated(values - values.mean()), number, resamples)
        else:
            total += random.choice(everywhere, resamples)
    return total / len(columns) * _widening(freedom, random, resamples)


def _inflated(deviations: np.ndarray) -> np.ndarray:
    """Deviations from their own mean, as large as those from the true one."""
    return deviations * np.sqrt(len(deviations) / (len(deviations) - 1))


def _widening(freedom: int, random: np.random.Generator, resamples: int) -> np.ndarray:
    """Factors that make Student's t of a normal distribution."""
    return np.sqrt(freedom / random.chisquare(freedom, resamples))


def _moved(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """How far the mean of each draw is from that of all."""
    return resampled_means(values[:, None], seed, resamples)[:, 0] - values.mean()
