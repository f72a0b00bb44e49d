"""How sure a mean is: bootstrap intervals. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000

_CHUNK = 1_000_000
"""Draws held at once: a few times 8 MB, however many images there are."""


def bootstrap_interval(
    values: Any, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[Any, Any]:
    """Return the percentile bootstrap interval of a mean.

    The images are drawn again with replacement, `resamples` times; low and high are the (1 - confidence) / 2 and
    (1 + confidence) / 2 quantiles of the means. Columns share their draws.

    Args:
        values: `(n,)`, one value per image, or `(n, m)` for m metrics at once; any real dtype.
        seed: of the draws: the same values give the same interval.
        resamples: how many means are drawn.
        confidence: share of the means between low and high.

    Returns:
        `(low, high)`: floats, or float64 `(m,)`. NaN with fewer than two images, or where a value is not finite.

    Raises:
        ValueError: another shape, no resamples, or a confidence outside (0, 1).

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife (1979).

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> 0.39 < low < 0.42 and 0.58 < high < 0.61
    True
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"bootstrap_interval: values must be (n,) or (n, m), got shape {array.shape}")
    if resamples < 1:
        raise ValueError(f"bootstrap_interval: resamples must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval: confidence must be between 0 and 1, got {confidence}")
    columns = array if array.ndim == 2 else array[:, None]
    if len(columns) < 2:
        low = high = np.full(columns.shape[1], np.nan)
    else:
        means = resampled_means(columns, seed, resamples)
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        finite = np.isfinite(columns).all(0)
        low, high = np.where(finite, low, np.nan), np.where(finite, high, np.nan)
    return (low, high) if array.ndim == 2 else (float(low[0]), float(high[0]))


def resampled_means(columns: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the means of images drawn with replacement: what a bootstrap interval is made of.

    Args:
        columns: `(n, m)`, n images and m metrics, which share their draws; a value that is not finite counts as 0.
        seed: of the draws.
        resamples: how many means are drawn.

    Returns:
        float64 `(resamples, m)`.
    """
    count = len(columns)
    random = np.random.default_rng(seed)
    # A value that is not finite would spoil the other columns of the product too.
    known = np.where(np.isfinite(columns), columns, 0)
    rows = max(_CHUNK // count, 1)
    means = []
    for first in range(0, resamples, rows):
        number = min(rows, resamples - first)
        drawn = random.integers(0, count, (number, count))
        # How often each image was drawn: one product then gives the means of all metrics.
        drawn += count * np.arange(number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=number * count).reshape(number, count)
        means.append(times.astype(np.float64) @ known / count)
    return np.concatenate(means)


def mean_intervals(rows: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """Return `[low, high]` for every metric that all rows have as a number; nothing for fewer than two rows."""
    names = [name for name in (rows[0] if rows else ()) if all(row.get(name) is not None for row in rows)]
    if len(rows) < 2 or not names:
        return {}
    low, high = bootstrap_interval([[row[name] for name in names] for row in rows])
    return {name: [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True) if np.isfinite(a + b)}
