"""What follows from rows: ratios and the judgement of the linear-cost rule. Nothing here is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from distilldepth.bench.choices import USUAL
from distilldepth.bench.result import Row

FOUR_TIMES_THE_PIXELS = 4.6
"""How many times longer four times the pixels may take."""
_LEAST_RUNS = 3
"""Runs from which p20 and p80 mean something."""


def speedups(rows: Sequence[Row]) -> list[dict[str, float | None]]:
    """How many times faster each row is than `reference`, `compile` and the `usual` formulation in the same rows.

    Returns:
        One dict per row; None where that baseline was not measured.
    """
    return [
        {word: None if base is None else base["median_ms"] / row["median_ms"] for word, base in found.items()}
        for row, found in zip(rows, compared_with(rows), strict=True)
    ]


def uncertainty(*rows: Row) -> float:
    """How far the median of a row, or a ratio of the medians of several, can be trusted: relative standard error.

    The middle 60 % of the runs, from p20 to p80, span 1.68 standard deviations; the median of n runs is off by 1.25 of
    them over the root of n. Fewer than three runs say nothing, which is infinite.
    """
    total = 0.0
    for row in rows:
        if row["repeats"] < _LEAST_RUNS:
            return math.inf
        total += (1.25 / 1.68 * (row["p80_ms"] - row["p20_ms"]) / row["median_ms"]) ** 2 / row["repeats"]
    return math.sqrt(total)


def compared_with(rows: Sequence[Row]) -> list[dict[str, Row | None]]:
    """Return for each row those of `reference`, `compile` and the `usual` formulation of the same case, or None."""
    there = {(_case(row), row["backend"]): row for row in rows}
    names = [{"reference": "reference", "compile": "compile", "usual": USUAL[row["op"]]} for row in rows]
    return [
        {word: there.get((_case(row), name)) for word, name in words.items()}
        for row, words in zip(rows, names, strict=True)
    ]


class Check(TypedDict):
    """Whether the rule of linear cost holds between two rows."""

    op: str
    contexts: str | None
    backend: str
    dtype: str
    what: str
    ratio: float
    limit: float
    holds: bool


def linear_cost(rows: Sequence[Row]) -> list[Check]:
    """Judge the rule of linear cost: four times the pixels at most 4.6 times the time, N images at most N times one.

    Returns:
        One check per pair of rows that differ by four times the pixels, or in the number of images against one.
    """
    checks: list[Check] = []
    for small in rows:
        for large in rows:
            if _series(small) != _series(large):
                continue
            (images, *size), (many, *large_size) = small["shape"], large["shape"]
            growth = math.prod(large_size) / math.prod(size)
            if images == many and 3.8 < growth < 4.2:
                # Sides are whole numbers, so four times the pixels is not exactly four.
                limit = FOUR_TIMES_THE_PIXELS * growth / 4
                what = f"{_shape(small)} to {_shape(large)}"
            elif images == 1 and many > 1 and size == large_size:
                limit, what = float(many), f"1 to {many} images of {_shape(small)[2:]}"
            else:
                continue
            ratio = large["median_ms"] / small["median_ms"]
            checks.append(
                {
                    "op": small["op"],
                    "contexts": small["contexts"],
                    "backend": small["backend"],
                    "dtype": small["dtype"],
                    "what": what,
                    "ratio": ratio,
                    "limit": limit,
                    "holds": ratio <= limit,
                }
            )
    return checks


class Growth(TypedDict):
    """Time per pixel, and how many times longer twice the pixels or twice the images take; None without such a row."""

    ns_per_pixel: float
    pixels: float | None
    batch: float | None


def per_doubling(rows: Sequence[Row]) -> list[Growth]:
    """Time per pixel of each row, and how the time grew since the row with half as many pixels or images.

    Returns:
        One per row.
    """
    grown: list[Growth] = []
    for row in rows:
        count, *size = row["shape"]
        pixels = math.prod(size)
        found: Growth = {"ns_per_pixel": row["median_ms"] * 1e6 / (count * pixels), "pixels": None, "batch": None}
        for other in rows:
            if _series(other) != _series(row):
                continue
            other_count, *other_size = other["shape"]
            if other_count == count and 1.8 < pixels / math.prod(other_size) < 2.2:
                found["pixels"] = row["median_ms"] / other["median_ms"]
            elif 2 * other_count == count and other_size == size:
                found["batch"] = row["median_ms"] / other["median_ms"]
        grown.append(found)
    return grown


def _series(row: Row) -> tuple[str | None, ...]:
    return row["op"], row["contexts"], row["backend"], row["direction"], row["dtype"]


def _case(row: Row) -> tuple[str | None, ...]:
    return row["op"], row["contexts"], row["direction"], row["dtype"], _shape(row)


def _shape(row: Row) -> str:
    return "x".join(map(str, row["shape"]))
