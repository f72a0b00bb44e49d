"""An evaluation as a table."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSE log",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "delta1",
    "delta2": "delta2",
    "delta3": "delta3",
}
"""Metrics of the table with their headings; the JSON has all of them."""


def make_table(evaluation: Any) -> Any:
    """Return a rich table: a row per dataset, and their mean if there are several."""
    from rich.table import Table

    table = Table()
    table.add_column("dataset", no_wrap=True)
    table.add_column("frames", justify="right")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for dataset in evaluation.datasets:
        frames = str(dataset["frames"])
        if dataset["failed"]:
            frames += f" of {dataset['frames'] + dataset['failed']}"
        table.add_row(dataset["name"], frames, *_cells(dataset["metrics"]))
    if len(evaluation.datasets) > 1:
        table.add_section()
        table.add_row("mean of datasets", "", *_cells(evaluation.mean))
    return table


def _cells(metrics: dict[str, float | None]) -> list[str]:
    values = (metrics.get(name) for name in COLUMNS)
    return ["" if value is None else f"{value:.3f}" for value in values]
