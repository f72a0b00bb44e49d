"""The Markdown of a table: cells, claims with verdicts, and every dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ablation.intervals import Estimate, estimate
from benchmarks.ablation.result import Result
from benchmarks.ablation.table import BASELINES, PROTOCOLS, Pair
from distilldepth.images.sources import SCENES

RAMP = "baseline:ramp"
METRICS = {"delta1": 1, "abs_rel": -1}
"""What is reported, and the sign with which larger is better. The verdict on a claim is that of the first."""
_WORDS = {"delta1": "delta1", "abs_rel": "AbsRel"}


@dataclass(frozen=True)
class Judged:
    """A claim about two cells, on one group of datasets."""

    pair: Pair
    group: str
    difference: Estimate
    """Of delta1, the better one's less the other's."""
    abs_rel: Estimate
    """Of AbsRel, likewise; negative is better."""
    seeds: int
    """That both have; 0 for two models."""
    better_on: int
    """Datasets on which the one that should be better is so, in delta1."""
    datasets: int

    @property
    def verdict(self) -> str:
        """By delta1."""
        return self.difference.verdict


def of_cell(result: Result, cell: str, group: Sequence[str], metric: str) -> Estimate:
    """Return a cell's mean over the datasets, with its interval over seeds and frames."""
    return estimate(result.grids(cell, group, metric)[1], seeds=result.is_trained(cell))


def above_ramp(result: Result, cell: str, group: Sequence[str]) -> int | None:
    """Return on how many datasets a cell has more delta1 than the ramp, which looks at no pixel; None if one failed."""
    mine, ramp = (result.grids(name, group, "delta1")[1] for name in (cell, RAMP))
    if not mine or not ramp:
        return None
    return sum(bool(own.mean() > other.mean()) for own, other in zip(mine, ramp, strict=True))


def judge(result: Result) -> list[Judged]:
    """Return every claim of the table on every group of datasets."""
    judged = []
    for group, datasets in result.groups().items():
        for pair in result.table.pairs:
            found = {metric: _differences(result, pair, datasets, metric) for metric in METRICS}
            seeds, grids = found["delta1"]
            trained = result.is_trained(pair.better) or result.is_trained(pair.worse)
            delta1, abs_rel = (estimate(found[metric][1], seeds=trained) for metric in METRICS)
            better = sum(bool(grid.mean() > 0) for grid in grids)
            judged.append(Judged(pair, group, delta1, abs_rel, seeds if trained else 0, better, len(datasets)))
    return judged


def _differences(result: Result, pair: Pair, datasets: Sequence[str], metric: str) -> tuple[int, list[np.ndarray]]:
    """The number of seeds that both have, and the differences frame by frame on each dataset."""
    seeds_a, better = result.grids(pair.better, datasets, metric)
    seeds_b, worse = result.grids(pair.worse, datasets, metric)
    # A model has no seed, and belongs to every one of the other's.
    both = [(i, j) for i, a in enumerate(seeds_a) for j, b in enumerate(seeds_b) if a == b or a is None or b is None]
    if not both:
        return 0, []
    rows_a, rows_b = map(list, zip(*both, strict=True))
    return len(both), [a[rows_a] - b[rows_b] for a, b in zip(better, worse, strict=True)]


def make_markdown(result: Result) -> str:
    """Return the table of cells, that of claims, and that of datasets."""
    table = result.table
    lines = [f"# {table.title}", ""]
    lines += [f"{table.source}: {table.claim}".strip(": "), ""] if table.source or table.claim else []
    lines += [table.notes, ""] if table.notes else []
    lines += [_how(result), ""]
    lines += [f"FAILED: {name}: {error}\n" for name, error in result.failures.items()]
    lines += [*_cells(result), "", *_claims(result), *_datasets(result)]
    return "\n".join(lines) + "\n"


def _how(result: Result) -> str:
    commits = sorted({run.commit for run in result.runs})
    trained = [cell for cell in result.table.cells if not cell.model]
    steps = sorted({cell.settings["steps"] for cell in trained if "steps" in cell.settings})
    parts = [f"{len(trained)} cells x {result.table.seeds} seeds"]
    parts += [f"{', '.join(map(str, steps))} steps"] if steps else []
    parts += ["without photographs in training"] if not result.metadata["photographs"] else []
    parts += [str(result.metadata["device"]), f"commit {', '.join(commits)}"]
    text = "; ".join(parts) + f". `{result.metadata['command']}`"
    if len(commits) > 1:
        text += "\n\nThe runs are of several versions of the code."
    return text


def _cells(result: Result) -> list[str]:
    groups = result.groups()
    heads = [f"{group}: {_WORDS[metric]}" for group in groups for metric in METRICS]
    wanted = [(datasets, metric) for datasets in groups.values() for metric in METRICS]
    ramp = any(name in BASELINES for name in result.names())  # Which know no metres.
    heads += ["above the ramp on"] if ramp else []
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in result.names():
        numbers = [_mean(of_cell(result, name, datasets, metric)) for datasets, metric in wanted]
        counts = [(above_ramp(result, name, datasets), len(datasets)) for datasets in groups.values()]
        above = "; ".join("not measured" if count is None else f"{count} of {of}" for count, of in counts)
        numbers += [above if name != RAMP else ""] if ramp else []
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    fit = "" if result.table.protocol == PROTOCOLS[0] else "In metres, without a fit. "
    return [*lines, "", f"{fit}In brackets: 95 % intervals over seeds and frames."]


def _claims(result: Result) -> list[str]:
    judged = judge(result)
    if not judged:
        return []
    lines = ["| claim | on | delta1 | verdict | AbsRel | better on | seeds | the paper |", "|---" * 8 + "|"]
    for one in judged:
        claim = f"{one.pair.better} > {one.pair.worse}"
        better, paper = f"{one.better_on} of {one.datasets}", one.pair.paper.replace("|", "\\|")
        numbers = f"{_change(one.difference)} | **{one.verdict}** | {_change(one.abs_rel)}"
        lines.append(f"| {claim} | {one.group} | {numbers} | {better} | {one.seeds or ''} | {paper} |")
    lines += [
        "",
        "Differences are paired by seed and frame, then averaged over frames and over datasets; 95 % intervals from "
        "drawing seeds and frames again. A claim holds if the interval of delta1 lies on its side of 0, and does not "
        f"hold if it lies on the other. Of {len(judged)} verdicts where there is no effect at all, "
        f"{len(judged) * 0.05:.1f} would be told by chance.",
    ]
    return [*lines, ""]


def _datasets(result: Result) -> list[str]:
    names = list(dict.fromkeys(name for datasets in result.groups().values() for name in datasets))
    if len(names) < 2:
        return []
    frames = {name: dataset["frames"] for run in result.runs[:1] for name, dataset in run.datasets.items()}
    cells = result.names()
    means = {cell: [grid.mean() for grid in result.grids(cell, names, "delta1")[1]] for cell in cells}
    lines = [f"| delta1 | frames | {' | '.join(cells)} |", "|---" * (len(cells) + 2) + "|"]
    for place, name in enumerate(names):
        row = [f"{means[cell][place]:.3f}" if means[cell] else "" for cell in cells]
        lines.append(f"| {name} | {frames[name]} | {' | '.join(row)} |")
    note = "" if any(name in SCENES for name in names) else " The scenes were not scored."
    return [*lines, "", f"Means over frames, then over seeds.{note}"]


def _mean(one: Estimate) -> str:
    if not np.isfinite(one.value):
        return "not measured"
    return f"{one.value:.3f}" + (f" [{one.low:.3f}, {one.high:.3f}]" if np.isfinite(one.low) else "")


def _change(one: Estimate) -> str:
    if not np.isfinite(one.value):
        return "not measured"
    return f"{one.value:+.4f}" + (f" [{one.low:+.4f}, {one.high:+.4f}]" if np.isfinite(one.low) else "")
