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
    features: bool
    """Whether it is about encoder features, and absent where student or teacher have none."""


def _term(
    weight: float, doc: str, made_by: str, *, teaches: bool = False, features: bool = False, **options: str
) -> Any:
    """A row of the table: default weight, the sentence of `--help`, and what makes the term."""
    return option(weight, doc, least=0, most=_LARGEST, term=TermRow(made_by, options, teaches, features))


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
    feature: float = _term(
        1.0, "weight of the feature alignment; absent for teachers without features", "FeatureTerm", features=True
    )
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
    metric_log: float = _term(
        0.0, "weight of the error in log depth, at its edges and in metres; only for students that complete points",
        "MetricLogTerm", teaches=True, linear="metric_log_linear",
    )  # fmt: skip
    metric_log_linear: float = option(
        0.5, "what the error in metres, over the mean depth, weighs in metric_log", least=0, most=_LARGEST
    )
    map_mse: float = _term(
        0.0, "weight of the mean squared difference of the maps, each over its median and deviation", "MapMseTerm",
        teaches=True,
    )  # fmt: skip
    map_channel_mse: float = _term(
        0.0, "weight of the squared difference of such maps as distributions over the pixels (CN+MSE), about 1 over "
        "their number", "MapChannelMseTerm", teaches=True, temperature="temperature",
    )  # fmt: skip
    map_channel_kl: float = _term(
        0.0, "weight of the divergence of such maps as distributions over the pixels (CN+KL)", "MapChannelKlTerm",
        teaches=True, temperature="temperature",
    )  # fmt: skip
    geometric: float = _term(
        0.0, "weight of the squared difference of the maps as points in space, and of a frozen PointNet's features of "
        "the points; beside a term that says which way is near", "GeometricTerm", points="geometric_points",
    )  # fmt: skip
    geometric_points: int = option(4096, "points of each map that the PointNet sees", least=1, most=1_000_000)
    feature_mse: float = _term(
        0.0, "weight of the mean squared difference of encoder features", "FeatureMseTerm", features=True
    )
    feature_channel_mse: float = _term(
        0.0, "weight of their squared difference as distributions over the positions (CN+MSE)",
        "FeatureChannelMseTerm", features=True, temperature="temperature",
    )  # fmt: skip
    feature_channel_kl: float = _term(
        0.0, "weight of their divergence as distributions over the positions (CN+KL)", "FeatureChannelKlTerm",
        features=True, temperature="temperature",
    )  # fmt: skip
    feature_spatial_kl: float = _term(
        0.0, "weight of their divergence as distributions over the channels (SN+KL)", "FeatureSpatialKlTerm",
        features=True, temperature="temperature",
    )  # fmt: skip
    feature_pairwise: float = _term(
        0.0, "weight of the squared difference of how alike the places of an image are in them (PWD)",
        "FeaturePairwiseTerm", features=True,
    )  # fmt: skip
    temperature: float = option(
        1.0, "divides maps and features in CN and SN before the softmax; larger = smoother", least=1e-6, most=_LARGEST
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
