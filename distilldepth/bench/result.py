"""What `distilldepth bench` measures, as it is written to JSON and read again. Imports no torch."""

from __future__ import annotations

from typing import Any, TypedDict


class Row(TypedDict):
    """One operation, backend and direction; `run_benchmark` says what the keys mean."""

    op: str
    backend: str
    direction: str
    dtype: str
    shape: list[int]
    contexts: str | None
    note: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int
    first_ms: float
    map_bytes: int
    bytes_min: int
    operations_min: int
    bandwidth_fraction: float
    peak_bytes: int | None
    max_error: float | None


class LeftOut(TypedDict):
    """A backend that was not run, and why."""

    op: str
    contexts: str | None
    backend: str
    why: str
    failed: bool


class Result(TypedDict):
    """A run: what it depends on, with what was left out as `not_run`, and its rows."""

    metadata: dict[str, Any]
    results: list[Row]
