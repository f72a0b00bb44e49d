"""What an evaluation says of a model's uncertainty: by its order, and for metres by its size. Imports no torch."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distilldepth.pages import Chart, nice_ticks

if TYPE_CHECKING:
    from distilldepth.evaluate.record.result import Evaluation
    from distilldepth.evaluate.record.rows import Metrics, ScoredSample

SPARSIFIED = {"abs_rel": "AbsRel", "rmse": "RMSE"}
"""Errors whose curves are kept and shown."""
SHARES = tuple(range(10, 100, 10))
"""Percent of a Laplace distribution at which coverage is measured."""
COLUMNS = ("random", "own", "best", "AUSE", "AURG")
UNCERTAINTY_CAPTION = (
    "Uncertainty: the error of the pixels that stay, averaged over the share taken away in random order, by what the "
    "model says of itself (own) and in the best order; AUSE = own - best, AURG = random - own"
)
_LINES = ("own", "best", "random")


@dataclass(frozen=True)
class Sparsified:
    """What is left of an error on the average while pixels are taken away, all means over frames."""

    error: str
    """AbsRel or RMSE."""
    random: float
    """Where they go in random order."""
    own: float
    """Where those go first that the model is least sure of."""
    best: float
    """Where those go first that are worst."""
    ause: float
    """own - best."""
    aurg: float
    """random - own."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """In the order of `COLUMNS`."""
        return self.random, self.own, self.best, self.ause, self.aurg


def sparsified(metrics: Metrics) -> list[Sparsified]:
    """Return what the means of a dataset say of the order; nothing without an uncertainty.

    A random order keeps the error of all pixels, so that the areas follow from it: own = random - AURG, and
    best = own - AUSE.
    """
    rows = []
    for name, title in SPARSIFIED.items():
        found = [metrics.get(key) for key in (name, f"ause_{name}", f"aurg_{name}")]
        numbers = [value for value in found if value is not None and math.isfinite(value)]
        if len(numbers) == len(found):
            error, ause, aurg = numbers
            rows.append(Sparsified(title, error, error - aurg, error - aurg - ause, ause, aurg))
    return rows


def coverage(metrics: Metrics) -> list[tuple[int, float]]:
    """Return percent of the Laplace distribution, and share of pixels within; nothing where it was not measured."""
    found = [(percent, metrics.get(f"coverage_{percent}")) for percent in SHARES]
    return [(percent, value) for percent, value in found if value is not None and math.isfinite(value)]


def uncertainty_lines(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each dataset whose uncertainty was scored."""
    lines = []
    for dataset in evaluation.datasets:
        parts = [
            f"{row.error} left {row.own:.3f} (random order {row.random:.3f}, best {row.best:.3f}; AUSE {row.ause:.3f}, "
            f"AURG {row.aurg:.3f})"
            for row in sparsified(dataset.metrics)
        ]
        if not parts:
            continue
        error = dataset.metrics.get("laplace_error")
        if error is not None and math.isfinite(error):
            shares = ", ".join(f"{percent} %: {value:.0%}" for percent, value in coverage(dataset.metrics)[::4])
            parts.append(f"Laplace intervals off by {error:.3f} on the average ({shares})")
        lines.append(f"uncertainty on {dataset.name}: {'; '.join(parts)}")
    return lines


def uncertainty_table(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return a table, its headings first: a row per dataset and error; nothing without an uncertainty."""
    rows = [
        (dataset.name, row.error, *map(_digits, row.numbers), _shown(dataset.metrics, "laplace_error"))
        for dataset in evaluation.datasets
        for row in sparsified(dataset.metrics)
    ]
    return [("dataset", "error", *COLUMNS, "Laplace error"), *rows] if rows else []


def _digits(value: float) -> str:
    return f"{value:.3f}"


def _shown(metrics: Metrics, name: str) -> str:
    value = metrics.get(name)
    return "" if value is None or not math.isfinite(value) else _digits(value)


def uncertainty_section(metrics: Metrics, samples: Sequence[ScoredSample]) -> str:
    """Return what a page says of the uncertainty on a dataset, as HTML; empty if there is none.

    Args:
        metrics: means of the dataset.
        samples: its frames.
    """
    rows = sparsified(metrics)
    if not rows:
        return ""
    heads = "".join(f'<th class="number">{head}</th>' for head in COLUMNS)
    cells = [[f'<td class="number">{_digits(number)}</td>' for number in row.numbers] for row in rows]
    body = "".join(f"<tr><td>{row.error}</td>{''.join(own)}</tr>" for row, own in zip(rows, cells, strict=True))
    error = _shown(metrics, "laplace_error")
    calibration = (
        f"Laplace intervals of the stated variance hold their share of the pixels to {error} on average, 0 is perfect."
        if error
        else "Only the order is scored: whether the size is right is asked of metres that are scored without a fit."
    )
    return (
        f"<h3>Uncertainty</h3><p class='quiet'>{html.escape(UNCERTAINTY_CAPTION)}. An AUSE of 0 is perfect, an AURG "
        f"above 0 is of use. {html.escape(calibration)}</p>"
        f'<div class="charts">{"".join(_charts(metrics, samples))}</div>'
        f'<div class="wide"><table><tr><th>error</th>{heads}</tr>{body}</table></div>'
    )


def _charts(metrics: Metrics, samples: Iterable[ScoredSample]) -> list[str]:
    charts = []
    curves = [sample.sparsification for sample in samples if sample.sparsification]
    for name, title in SPARSIFIED.items():
        kept = [np.asarray(one[name], dtype=np.float64) for one in curves if name in one]
        if not kept or any(one.shape != kept[0].shape for one in kept):
            continue
        own, best = np.mean(kept, 0)
        lines = {}
        for label, values in zip(_LINES, (own, best, np.full_like(own, own[0])), strict=True):
            shares = np.linspace(0, 100, len(values))
            lines[label] = [(float(share), float(value), "") for share, value in zip(shares, values, strict=True)]
        ticks = nice_ticks(float(max(own.max(), best.max())))
        percent = [(value, f"{value} %") for value in (0, 25, 50, 75, 100)]
        charts.append(Chart(f"{title} of what stays", percent, ticks, "pixels taken away", lines).to_svg())
    if measured := coverage(metrics):
        percent = [(value, f"{value} %") for value in (0, 20, 40, 60, 80, 100)]
        points = [
            (float(share), 100 * value, f"{share} % interval: {value:.1%} of the pixels") for share, value in measured
        ]
        lines = {"measured": points, "perfect": [(0.0, 0.0, ""), (100.0, 100.0, "")]}
        charts.append(Chart("Pixels within", percent, percent, "Laplace interval that should hold", lines).to_svg())
    return charts
