"""The terms of the objective by name, in the order in which they are reported. Imports no torch."""

from __future__ import annotations

NORMALISATIONS: dict[str, tuple[int, ...]] = {"hybrid": (1, 2, 4), "global": (1,), "local": (4,), "none": ()}
"""Segments of each normalisation; `none` is plain L1."""


TERMS: dict[str, float] = {
    "shared_context": 1.0,
    "local_global": 0.5,
    "feature": 1.0,
    "gradient": 2.0,
    "aligned_log": 0.0,
    "anchor": 0.1,
}
"""The terms of Distill Any Depth and their default weights, a term for teachers that know depth, and the anchor."""
