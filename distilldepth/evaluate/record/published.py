"""What the papers print about the benchmarks, to stand beside an evaluation: always theirs, never measured here."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distilldepth.documents import Record, parse_toml
from distilldepth.errors import did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

TASKS = ("estimation", "stereo", "completion")
"""What a method was given: one image, both views of a stereo pair, or an image and sparse depth."""

HEADINGS = {"abs_rel": "AbsRel", "delta1": "delta1", "rmse": "RMSE", "silog": "SILog"}
"""Metrics with a column of their own; the others follow in words."""

_ARXIV = ", arXiv 2502.19204v1"

_NAMES = {
    "nyuv2": "NYUv2",
    "kitti-eigen": "KITTI Eigen",
    "kitti-official": "KITTI official",
    "eth3d": "ETH3D",
    "scannet": "ScanNet",
    "diode": "DIODE",
    "driving-stereo": "DrivingStereo",
}


@dataclass(frozen=True)
class PublishedRow(Record):
    """What a paper prints about one method on one benchmark."""

    model: str
    dataset: str
    """The kind."""
    metrics: dict[str, float]
    """By name, shares between 0 and 1; one whose unit the source does not state is called `..._as_printed`."""
    source: str
    """Paper and table."""
    protocol: str
    """What the source states about it."""
    note: str
    task: str
    """One of `TASKS`."""


def published_kinds() -> tuple[str, ...]:
    """Return the kinds of dataset that there are published numbers for."""
    there = {row.dataset for row in _rows()}
    return tuple(kind for kind in _NAMES if kind in there)


def published_rows(kind: str, *, tasks: Sequence[str] = ("estimation",)) -> list[PublishedRow]:
    """Return what papers print about one benchmark.

    Args:
        kind: the benchmark, for example `nyuv2`; one without published numbers gives no rows.
        tasks: which of `TASKS`: numbers of methods that are given more than one image are not comparable.

    Raises:
        ValueError: unknown task.

    >>> [row.metrics["abs_rel"] for row in published_rows("nyuv2") if row.model == "Marigold"]
    [0.055]
    """
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"published_rows: tasks must be known, got {task!r}{did_you_mean(str(task), TASKS)}")
    return [replace(row, metrics=dict(row.metrics)) for row in _rows() if row.dataset == kind and row.task in tasks]


def make_published_table(kinds: Sequence[str] | None = None) -> Table:
    """Return a rich table of published numbers, each row with the paper and the table that it was read in.

    Args:
        kinds: which benchmarks; None for all.

    Raises:
        ValueError: a benchmark without published numbers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    there = published_kinds()
    for kind in kinds or ():
        if kind not in there:
            raise ValueError(f"make_published_table: kinds must be known, got {kind!r}{did_you_mean(str(kind), there)}")
    rows = [row for kind in kinds or there for row in published_rows(kind, tasks=TASKS)]
    protocols = list(dict.fromkeys(protocol_of(row) for row in rows))
    caption = ["Published by their authors under their own protocols; nothing here was measured by this program."]
    caption += [f"[{number}] {protocol}" for number, protocol in enumerate(protocols, 1)]
    table = Table(
        title="Published numbers", box=box.SIMPLE_HEAD, caption=Text("\n".join(caption)), caption_justify="left"
    )
    for heading, texts in (("dataset", [row.dataset for row in rows]), ("method", map(method_of, rows))):
        # No word is broken: a name is there to be read and typed.
        table.add_column(heading, min_width=max(len(word) for text in texts for word in text.split()))
    shown = [name for name in HEADINGS if any(name in row.metrics for row in rows)]
    for name in shown:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    previous = ""
    for row in rows:
        if row.dataset != previous and previous:
            table.add_section()
        number = protocols.index(protocol_of(row)) + 1
        metrics = row.metrics
        cells = [Text(format_published(name, metrics)) for name in shown]
        table.add_row(
            Text(row.dataset if row.dataset != previous else ""),
            Text("\n".join(filter(None, (method_of(row), other_metrics(metrics))))),
            *cells,
            Text(f"[{number}]"),
        )
        previous = row.dataset
    return table


def method_of(row: PublishedRow) -> str:
    """Return the method's name, and what it was given where that is more than one image."""
    given = {"stereo": ", given both views", "completion": ", given sparse depth"}.get(row.task, "")
    return f"{row.model}{given}"


def protocol_of(row: PublishedRow) -> str:
    """Return where a row was read, what its source says about how it was measured, and what to mind."""
    return f"{row.source}: {row.protocol}{'; ' if row.note else ''}{row.note}"


def short_source(row: PublishedRow) -> str:
    """Return the source without what only a list of sources needs."""
    return row.source.replace(_ARXIV, "")


def format_published(name: str, metrics: dict[str, float]) -> str:
    """Return a number with the digits it was printed with; empty if there is none."""
    if name not in metrics:
        return ""
    text = f"{metrics[name]:g}"
    # Errors and shares are printed with three digits or more: 0.09 was 0.090.
    return text if name not in ("abs_rel", "delta1") or len(text) >= 5 else f"{metrics[name]:.3f}"


def other_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics that have no column of their own, in words."""
    parts = [f"{name.replace('_', ' ')} {value:g}" for name, value in metrics.items() if name not in HEADINGS]
    return ", ".join(parts)


def dataset_title(kind: str) -> str:
    """Return how a benchmark is written, for example `KITTI Eigen`."""
    return _NAMES.get(kind, kind)


@functools.cache
def _rows() -> tuple[PublishedRow, ...]:
    file = importlib.resources.files(__package__) / "published.toml"
    rows = []
    for table in parse_toml(file.read_bytes(), str(file))["table"]:
        columns = [column.split() for column in table["columns"]]
        percent = set(table.get("percent", ()))
        for model, *values in table["rows"]:
            by_kind: dict[str, dict[str, float]] = {}
            for (kind, metric), value in zip(columns, values, strict=True):
                if value != "-":
                    # The division must not add digits that the paper does not print.
                    number = round(value / 100, 6) if metric in percent else float(value)
                    by_kind.setdefault(kind, {})[metric] = number
            for kind, metrics in by_kind.items():
                note = "; ".join(filter(None, (table.get("note"), table.get("notes", {}).get(kind))))
                task = table.get("task", "estimation")
                rows.append(PublishedRow(model, kind, metrics, table["source"], table["protocol"], note, task))
    return tuple(rows)
