"""Which metrics the tables of an evaluation show, and under which headings: depth and completion have their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distilldepth.evaluate.record.result import Evaluation


@dataclass(frozen=True)
class Columns:
    """The metrics of a table."""

    headings: dict[str, str]
    """By metric, in their order; the JSON and the CSV have all metrics."""
    with_interval: tuple[str, ...]
    """Those that are shown with their interval."""
    narrower: tuple[tuple[str, ...], ...]
    """What is shown where there is less and less room."""

    @property
    def layouts(self) -> list[tuple[tuple[str, ...], str | None]]:
        """From wide to narrow: metrics, and what stands between a number and its interval (None = it is left out)."""
        every = tuple(self.headings)
        return [(every, " "), (every, "\n"), *((names, "\n") for names in self.narrower), (self.narrower[-1], None)]


DEPTH = Columns(
    {
        "abs_rel": "AbsRel",
        "sq_rel": "SqRel",
        "rmse": "RMSE",
        "rmse_log": "RMSE log",
        "log10": "log10",
        "silog": "SILog",
        "delta1": "delta1",
        "delta2": "delta2",
        "delta3": "delta3",
    },
    ("abs_rel", "delta1"),
    (
        ("abs_rel", "rmse", "silog", "delta1", "delta2", "delta3"),
        ("abs_rel", "rmse", "delta1"),
        ("abs_rel", "delta1"),
    ),
)
COMPLETION = Columns(
    {
        "rmse": "RMSE",
        "mae": "MAE",
        "irmse_km": "iRMSE [1/km]",
        "imae_km": "iMAE [1/km]",
        "abs_rel": "AbsRel",
        "delta_1.05": "delta 1.05",
        "delta_1.10": "delta 1.10",
        "delta1": "delta 1.25",
        "whdr": "WHDR",
    },
    ("rmse", "abs_rel"),
    (
        ("rmse", "mae", "abs_rel", "delta_1.05", "delta1", "whdr"),
        ("rmse", "mae", "abs_rel", "delta1"),
        ("rmse", "abs_rel"),
    ),
)
"""RMSE and MAE in metres, iRMSE and iMAE in 1/km as the KITTI benchmark states them."""


def columns_of(evaluation: Evaluation) -> Columns:
    """Return what the tables of an evaluation show."""
    return DEPTH if evaluation.metadata.points is None else COMPLETION
