"""The terms of the objective: the `loss` section of the configuration, a row per term. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from distilldepth.errors import UsageError, did_you_mean, shown
from distilldepth.settings import option
from distilldepth.words import ADAPTERS, CONTEXTS, DECODER_LEVELS, FEATURE_LEVELS

NORMALISATIONS: dict[str, tuple[int, ...]] = {"hybrid": (1, 2, 4), "global": (1,), "local": (4,), "none": ()}
"""Segments of each normalisation; `none` is plain L1."""
ALL_LEVELS = "all"
"""As `feature_levels`: whatever student and teacher both have."""
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
    metres: bool
    """Whether it compares metres: for students that predict them, and no others, whom the rest is for."""


def _term(
    weight: float,
    doc: str,
    made_by: str,
    *,
    teaches: bool = False,
    features: bool = False,
    metres: bool = False,
    **options: str,
) -> Any:
    """A row of the table: default weight, the sentence of `--help`, and what makes the term."""
    return option(weight, doc, least=0, most=_LARGEST, term=TermRow(made_by, options, teaches, features, metres))


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
        "MetricLogTerm", teaches=True, metres=True, linear="metric_log_linear",
    )  # fmt: skip
    metric_log_linear: float = option(
        0.5, "what the error in metres, over the mean depth, weighs in metric_log", least=0, most=_LARGEST
    )
    silog: float = _term(
        0.0, "weight of the scale-invariant error of log depth (SILog) against the true depth; only for students of "
        "metres", "SilogTerm", teaches=True, metres=True, variance_focus="silog_variance_focus", nearest="nearest",
        farthest="farthest",
    )  # fmt: skip
    silog_variance_focus: float = option(
        0.85, "1 = a common factor costs nothing in silog, 0 = it is the plain error of log depth", least=0, most=1
    )
    response_uncertainty: float = _term(
        0.0, "weight of the absolute difference to the teacher's metres, weighed by the student's own uncertainty "
        "where it has one", "ResponseUncertaintyTerm", teaches=True, metres=True, form="response_form",
        nearest="nearest", farthest="farthest",
    )  # fmt: skip
    response_form: str = option(
        "printed",
        "how the uncertainty enters there: printed, as in the paper, or laplace, which is its distribution's",
        choices=("printed", "laplace"),
    )
    focal_depth: float = _term(
        0.0, "weight of a focal loss of the relative difference to the teacher's metres, which turns to the images "
        "that are worst", "FocalDepthTerm", teaches=True, metres=True, alpha="focal_alpha", gamma="focal_gamma",
        nearest="nearest", farthest="farthest",
    )  # fmt: skip
    focal_alpha: float = option(1.0, "factor of focal_depth", least=1e-6, most=_LARGEST)
    focal_gamma: float = option(
        2.0, "how strongly focal_depth leaves images alone that are nearly right", least=0, most=_LARGEST
    )
    nearest: float = option(
        0.0, "metres; nearer depth is not looked at by silog, response_uncertainty and focal_depth (NeWCRFs: 1)",
        least=0, most=_LARGEST,
    )  # fmt: skip
    farthest: float = option(
        0.0, "metres; nor is farther depth; 0 = as far as the student reaches", least=0, most=_LARGEST
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
        0.0, "weight of the mean squared difference of encoder features", "FeatureMseTerm", features=True,
        adapter="adapter",
    )  # fmt: skip
    feature_uncertainty: float = _term(
        0.0, "weight of their squared difference, half of it, weighed by the student's own uncertainty where it has "
        "one", "FeatureUncertaintyTerm", features=True, adapter="adapter",
    )  # fmt: skip
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
    feature_levels: str = option(
        "encoder",
        "levels at which the terms of features look, each the mean over them: encoder, the last; some of "
        f"{', '.join((*FEATURE_LEVELS, *DECODER_LEVELS))}, with commas; or all, those of them that student and teacher "
        "both have",
    )
    adapter: str = option(
        "none",
        "attention through which the student's features go before feature_mse and feature_uncertainty compare them, "
        "trained and dropped with the run: full, reduced (over 4 x 4 cells), window (within 8 x 8), or none",
        choices=ADAPTERS,
    )
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


def level_names(text: str) -> tuple[str, ...]:
    """Read `feature_levels`: the names of levels, each once, or `all` alone.

    Raises:
        UsageError: there is no such level, or `all` beside others.

    >>> level_names("1/8, 1/4")
    ('1/8', '1/4')
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == (ALL_LEVELS,):
        return names
    known = ("encoder", *FEATURE_LEVELS, *DECODER_LEVELS)
    for name in names:
        if name not in known:
            raise UsageError(
                f"distill: loss.feature_levels must name levels of {', '.join(known)}, or be {ALL_LEVELS}, got "
                f"{shown(text)}{did_you_mean(name, (*known, ALL_LEVELS), otherwise='')}"
            )
    return names


TERMS: dict[str, TermRow] = {
    item.name: item.metadata["term"] for item in dataclasses.fields(LossSection) if "term" in item.metadata
}
"""The terms in the order in which they are reported."""
OPTIONS = tuple(item.name for item in dataclasses.fields(LossSection) if item.name not in TERMS)
"""The keys of the section that are no weights."""
