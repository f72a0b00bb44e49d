"""The picture of a table: what every cell reaches, and every claim with its interval."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from benchmarks.ablation.intervals import FAILS, HOLDS, UNKNOWN
from benchmarks.ablation.report import Judged, judge
from benchmarks.ablation.result import Result
from benchmarks.ablation.table import BASELINES

_COLOURS = {HOLDS: "#0072b2", FAILS: "#c1272d", UNKNOWN: "#777777"}
_LINES = dict(zip(BASELINES, (":", "--"), strict=True))
_ROW = 0.3
"""Inches of a label of up to two lines."""
_WRAP = 26
"""Characters of a line of a label beside the axes."""


def draw(result: Result, path: Path) -> None:
    """Draw a PNG or SVG: above, delta1 of every seed and their mean; below, the difference of each claim.

    Args:
        result: of `read_result`.
        path: of the picture; its ending says which.
    """
    from matplotlib.figure import Figure

    groups, judged = result.groups(), judge(result)
    cells = [name for name in result.names() if name not in BASELINES]
    pairs = len(result.table.pairs)
    names = [_label(name) for name in cells]
    claims = {(one.pair.better, one.pair.worse): _label(f"{one.pair.better}\n> {one.pair.worse}") for one in judged}
    heights = [_rows(names), *([_rows(list(claims.values()))] if pairs else [])]
    figure = Figure(figsize=(1.8 + 4.2 * len(groups), _ROW * sum(heights) + 1.6), layout="constrained")
    grid = figure.subplots(len(heights), len(groups), squeeze=False, height_ratios=heights)
    for column, (group, datasets) in enumerate(groups.items()):
        _draw_cells(grid[0, column], result, cells, datasets)
        _lay_out(grid[0, column], names, labelled=column == 0)
        grid[0, column].set_title(group, fontsize=10, loc="left")
        if pairs:
            _draw_claims(grid[1, column], [one for one in judged if one.group == group])
            _lay_out(grid[1, column], list(claims.values()), labelled=column == 0)
    figure.suptitle(result.table.title, fontsize=11)
    handles = _handles([name for name in BASELINES if name in result.names()], pairs > 0)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=path.suffix[1:].lower(), dpi=130)


def _draw_cells(axes: Any, result: Result, cells: list[str], datasets: list[str]) -> None:
    for place, name in enumerate(cells):
        grids = result.grids(name, datasets, "delta1")[1]
        if not grids:
            continue
        seeds = np.mean([grid.mean(1) for grid in grids], axis=0)
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), place), "o", color="#0072b2", alpha=0.35, markersize=4, mew=0)
        axes.plot(seeds.mean(), place, "D" if result.is_trained(name) else "s", color="black", markersize=5)
    for name, style in _LINES.items():
        grids = result.grids(name, datasets, "delta1")[1]
        if grids:
            axes.axvline(np.mean([grid.mean() for grid in grids]), color="#999999", linewidth=1, linestyle=style)
    axes.set_xlabel("delta1", fontsize=8)


def _draw_claims(axes: Any, judged: list[Judged]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, one in enumerate(judged):
        estimate, colour = one.difference, _COLOURS[one.verdict]
        if np.isfinite(estimate.low):
            axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(estimate.value, place, "o", color=colour, markersize=5)
    axes.set_xlabel("difference of delta1, 95 % interval", fontsize=8)


def _label(text: str) -> str:
    return "\n".join(part for line in text.split("\n") for part in wrap(line, _WRAP))


def _rows(labels: list[str]) -> float:
    """Height of a panel, in `_ROW`: each row is as high as the highest label wants it, and there is an axis."""
    lines = max(label.count("\n") + 1 for label in labels)
    return len(labels) * max(1.0, (lines + 1) / 2) + 1.5


def _lay_out(axes: Any, labels: list[str], *, labelled: bool) -> None:
    """Rows from the top down, with their labels on the left panel only."""
    axes.set_yticks(range(len(labels)), labels if labelled else [""] * len(labels), fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _handles(baselines: list[str], claims: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def line(label: str, **look: Any) -> Any:
        return Line2D([], [], label=label, **look)

    handles = [
        line("a seed", color="#0072b2", alpha=0.35, marker="o", linestyle="none", markersize=4, mew=0),
        line("mean of the seeds", color="black", marker="D", linestyle="none", markersize=5),
        line("a model as it is", color="black", marker="s", linestyle="none", markersize=5),
        *(line(name, color="#999999", linestyle=style) for name, style in _LINES.items() if name in baselines),
    ]
    if claims:
        handles += [line("", linestyle="none")] * (-len(handles) % 3)  # Columns of three.
        handles += [line(verdict, color=colour, linewidth=2) for verdict, colour in _COLOURS.items()]
    return handles
