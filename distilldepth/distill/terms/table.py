"""The terms of the objective: the `loss` section of the configuration, a row per term. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from distilldepth.settings import option
from distilldepth.words import CONTEXTS

NORMALISATIONS: dict[str, tuple[int, ...]] = {"hybrid": (1, 2, 4), "global": (1,), "local": (4,), "none": ()}
"""Segments of each normalisation; `none` is plain L1."""
_LARGEST = 1e6
"""Far beyond any use."""


@dataclass(frozen=True)
class TermRow:
    """How a term is made; its name is the key of its weight, and its module in `terms` is called so too."""

    made_by: str
    """Its class."""
    options: dict[str, str]
    """The keys of the section that it is given, by what its class calls them."""
    teaches: bool
    """Whether a student can learn from it alone."""


def _term(weight: float, doc: str, made_by: str, *, teaches: bool = False, **options: str) -> Any:
    """A row of the table: default weight, the sentence of `--help`, and what makes the term."""
    return option(weight, doc, least=0, most=_LARGEST, term=TermRow(made_by, options, teaches))


@dataclass
class LossSection:
    """Weight of each term (0 leaves it out) and how the maps are normalised."""

    shared_context: float = _term(
        1.0, "weight of the distillation loss on the shared region", "SharedContextTerm", teaches=True,
        normalisation="normalisation_shared", contexts="contexts",
    )  # fmt: skip
    local_global: float = _term(
        0.5, "weight of the loss between windows of the student's map and the teacher's view of each",
        "LocalGlobalTerm", teaches=True, normalisation="normalisation_local_global", contexts="contexts",
    )  # fmt: skip
    feature: float = _term(1.0, "weight of the feature alignment; absent for teachers without features", "FeatureTerm")
    gradient: float = _term(2.0, "weight of the multi-scale gradient matching", "GradientTerm", teaches=True)
    aligned_log: float = _term(
        0.0, "weight of the log error in depth after a fit of scale and shift; only for teachers that know depth",
        "AlignedLogTerm", knee="aligned_log_knee",
    )  # fmt: skip
    aligned_log_knee: float = option(
        0.0,
        "error in log depth that counts half in aligned_log, for students already trained; 0 = errors as they are",
        least=0,
        most=_LARGEST,
    )
    anchor: float = _term(0.1, "weight of the pull of the output's centre and spread to fixed values", "AnchorTerm")
    drop_share: float = option(
        0.0,
        "share of each map's pixels, those with the largest error, that no term looks at (Depth Anything: 0.1); 0 = "
        "none",
        least=0,
        below=1,
    )
    normalisation_shared: str = option("hybrid", f"one of {', '.join(NORMALISATIONS)}", choices=NORMALISATIONS)
    normalisation_local_global: str = option("hybrid", f"one of {', '.join(NORMALISATIONS)}", choices=NORMALISATIONS)
    contexts: str = option(
        "range", f"how hybrid and local normalisation split the pixels: {', '.join(CONTEXTS)}", choices=CONTEXTS
    )


TERMS: dict[str, TermRow] = {
    item.name: item.metadata["term"] for item in dataclasses.fields(LossSection) if "term" in item.metadata
}
"""The terms in the order in which they are reported."""
OPTIONS = tuple(item.name for item in dataclasses.fields(LossSection) if item.name not in TERMS)
"""The keys of the section that are no weights."""
