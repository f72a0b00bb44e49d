"""Objectives: weighted, named terms, each a small module that says what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from distilldepth.errors import did_you_mean
from distilldepth.losses.aligned_log import aligned_log_loss
from distilldepth.losses.anchor import anchor_loss
from distilldepth.losses.feature import feature_loss
from distilldepth.losses.gradient import gradient_loss
from distilldepth.losses.pixel import absolute_difference, l1_loss
from distilldepth.ops import crop_ssi_loss, hybrid_norm_loss, sample_crops
from distilldepth.reference.crop_ssi import per_crop_mean

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


@dataclass
class ObjectiveInputs:
    """What the terms of an objective may look at; maps are disparity, larger = nearer."""

    prediction: Tensor
    """`(B, H, W)`, the student's map of the regions."""
    pseudo_label: Tensor
    """`(B, H, W)`, the teacher's map of the same regions."""
    valid: Tensor | None = None
    """bool `(B, H, W)`; None = all."""
    patch_pseudo_labels: Tensor | None = None
    """`(N, h, w)`, the teacher's maps of windows of the regions, of all images together."""
    patch_valid: Tensor | None = None
    """bool `(N, h, w)`; None = all."""
    boxes: Tensor | None = None
    """`(N, 4)` x0, y0, x1, y1 of the windows in pixels of the prediction, edges."""
    image_index: Tensor | None = None
    """`(N,)` int64, the image that each window is from."""
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    """Encoder features by name, each `(B, C, h, w)`."""
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    """Encoder features by name, each `(B, C, h, w)`; empty if this teacher has none."""
    teacher: str = ""
    """Name of the teacher; chooses its projection where two teachers have equally wide features."""
    inverse_depth: bool = False
    """Whether the pseudo-label is inverse depth up to a scale, with no unknown shift."""


class Term(nn.Module):
    """One weighted part of an objective.

    Subclasses set `needs`, a subset of `{"patches", "features", "inverse_depth"}`, and implement `forward`, which
    returns the unweighted value as a scalar. A term whose needs a batch does not meet is left out for that batch.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Term: weight of {name} must be positive, got {weight}; leave the term out instead")
        self.name = name
        self.weight = float(weight)

    def is_met(self, inputs: ObjectiveInputs) -> bool:
        """Whether the inputs hold all that this term needs."""
        patches = inputs.patch_pseudo_labels is not None
        features = bool(inputs.student_features) and bool(inputs.teacher_features)
        met = {"patches": patches, "features": features, "inverse_depth": inputs.inverse_depth}
        return all(met[need] for need in self.needs)

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name}, weight={self.weight:g}"


class SharedContextTerm(Term):
    """Student and teacher on the same region (L_sc)."""

    def __init__(self, weight: float, normalisation: str = "hybrid", contexts: str = "range") -> None:
        super().__init__("shared_context", weight)
        self.segments, self.contexts = _segments(normalisation), contexts

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        if not self.segments:
            return l1_loss(inputs.prediction, inputs.pseudo_label, inputs.valid)
        return hybrid_norm_loss(
            inputs.prediction, inputs.pseudo_label, inputs.valid, segments=self.segments, contexts=self.contexts
        )


class LocalGlobalTerm(Term):
    """Windows of the student's map of the region against the teacher's maps of the windows alone (L_lg)."""

    needs = frozenset({"patches"})

    def __init__(self, weight: float, normalisation: str = "hybrid", contexts: str = "range") -> None:
        super().__init__("local_global", weight)
        self.segments, self.contexts = _segments(normalisation), contexts

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        prediction, targets, boxes = inputs.prediction, inputs.patch_pseudo_labels, inputs.boxes
        if not self.segments:
            crops = sample_crops(prediction, boxes, inputs.image_index, targets.shape[-2:])
            return per_crop_mean(absolute_difference(crops, targets, inputs.patch_valid), inputs.patch_valid)
        return crop_ssi_loss(
            prediction,
            targets,
            boxes,
            inputs.image_index,
            inputs.patch_valid,
            segments=self.segments,
            contexts=self.contexts,
        )


class FeatureTerm(Term):
    """Encoder features of student and teacher (L_feat).

    Where the widths differ a 1x1 projection of the student's features, one per teacher, is trained with the student and
    dropped with the objective. They are made here, not at the first batch, so that optimiser and checkpoints know them.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        weight: float,
        student_channels: int,
        teacher_channels: Mapping[str, int],
        *,
        tolerance: float = 0.15,
        level: str = "encoder",
    ) -> None:
        super().__init__("feature", weight)
        self.tolerance, self.level = tolerance, level
        self._widths = dict(teacher_channels)
        self.projections = nn.ModuleList(
            nn.Identity() if width == student_channels else nn.Conv2d(student_channels, width, 1)
            for width in self._widths.values()
        )

    def is_met(self, inputs: ObjectiveInputs) -> bool:
        return self.level in inputs.student_features and self.level in inputs.teacher_features

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        teacher = inputs.teacher_features[self.level]
        student = self._projection(inputs.teacher, teacher.shape[1])(inputs.student_features[self.level].float())
        return feature_loss(student, teacher, tolerance=self.tolerance)

    def _projection(self, name: str, width: int) -> nn.Module:
        fitting = [i for i, known in enumerate(self._widths.items()) if known[1] == width and name in ("", known[0])]
        if len(fitting) != 1:
            known = ", ".join(f"{key} ({value})" for key, value in self._widths.items())
            raise ValueError(
                f"FeatureTerm: teacher features must come from one of {known}, got {width} channels of {name or 'a'} "
                f"teacher; name the teacher in ObjectiveInputs.teacher"
            )
        return self.projections[fitting[0]]


class GradientTerm(Term):
    """Multi-scale gradient matching on the region (L_grad)."""

    def __init__(self, weight: float, scales: int = 4) -> None:
        super().__init__("gradient", weight)
        self.scales = scales

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return gradient_loss(inputs.prediction, inputs.pseudo_label, inputs.valid, scales=self.scales)


class AlignedLogTerm(Term):
    """Relative error in depth after the fit that evaluation makes; see `aligned_log_loss`."""

    needs = frozenset({"inverse_depth"})

    def __init__(self, weight: float, knee: float | None = None) -> None:
        super().__init__("aligned_log", weight)
        self.knee = knee

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return aligned_log_loss(inputs.prediction, inputs.pseudo_label, inputs.valid, knee=self.knee)


class AnchorTerm(Term):
    """A weak pull of the output's center and spread to fixed values; see `anchor_loss` for why."""

    def __init__(self, weight: float, center: float, spread: float) -> None:
        super().__init__("anchor", weight)
        self.center, self.spread = center, spread

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return anchor_loss(inputs.prediction, inputs.valid, center=self.center, spread=self.spread)


class DistillationObjective(nn.Module):
    """A weighted sum of named terms.

    Its parameters (projections, adapters) are trained with the student and never exported with it.

    Args:
        terms: in the order in which they are reported; names must differ.

    Raises:
        ValueError: two terms of one name.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"DistillationObjective: terms must have different names, got {', '.join(names)}")

    @property
    def needs(self) -> frozenset[str]:
        """What any term can make use of: `patches`, `features`, `inverse_depth`."""
        return frozenset().union(*(term.needs for term in self.terms))

    def forward(self, inputs: ObjectiveInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and the unweighted, detached value of each term that this batch can feed.

        Computed in float32 under autocast too, and without waiting for the device. A batch that feeds no term gives 0
        with zero gradient.
        """
        values: dict[str, Tensor] = {}
        # Starting from the prediction keeps a gradient, of 0, when no term is met.
        total = torch.zeros((), device=inputs.prediction.device) + inputs.prediction.reshape(-1)[:0].float().sum()
        with torch.autocast(inputs.prediction.device.type, enabled=False):
            for term in self.terms:
                if term.is_met(inputs):
                    value = term(inputs)
                    values[term.name] = value.detach()
                    total = total + term.weight * value
        return total, values


def distill_any_depth_objective(
    *,
    weights: Mapping[str, float] | None = None,
    normalisation_shared: str = "hybrid",
    normalisation_local_global: str = "hybrid",
    contexts: str = "range",
    aligned_log_knee: float | None = None,
    student_channels: int | None = None,
    teacher_channels: Mapping[str, int] | None = None,
    anchor_center: float = 0.5,
    anchor_spread: float = 0.15,
) -> DistillationObjective:
    """Build the objective of Distill Any Depth: `L = L_sc + 0.5 L_lg + 1.0 L_feat + 2.0 L_grad`, plus the anchor.

    Args:
        weights: by term: shared_context, local_global, feature, gradient, aligned_log, anchor. Those not named keep
            their default; a term of weight 0 is left out and not computed.
        normalisation_shared: `hybrid`, `global`, `local` or `none` (plain L1: only for teachers of one scale).
        normalisation_local_global: likewise.
        contexts: `range`, `quantile` or `spatial`.
        aligned_log_knee: error that counts half in aligned_log; None for errors as they are.
        student_channels: width of the student's encoder features; without it there is no feature term.
        teacher_channels: width of the encoder features of each teacher that has any, by teacher; without it there is no
            feature term.
        anchor_center: median to which the student's output is drawn; the default suits an output between 0 and 1. A
            student that starts from trained weights should be held where it is: see `center_and_spread`.
        anchor_spread: likewise for the mean absolute deviation.

    Raises:
        ValueError: unknown term or normalisation, negative weight, no term left.

    Source: Distill Any Depth, section 3.2.

    >>> [term.name for term in distill_any_depth_objective(weights={"anchor": 0.0}).terms]
    ['shared_context', 'local_global', 'gradient']
    """
    function = "distill_any_depth_objective"
    given = dict(weights or {})
    for name, weight in given.items():
        if name not in TERMS:
            raise ValueError(
                f"{function}: weights must name {', '.join(TERMS)}, got {name!r}{did_you_mean(name, TERMS)}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{function}: weight of {name} must be finite and not negative, got {weight}")
    weight = {**TERMS, **given}
    terms: list[Term] = []
    if weight["shared_context"]:
        terms.append(SharedContextTerm(weight["shared_context"], normalisation_shared, contexts))
    if weight["local_global"]:
        terms.append(LocalGlobalTerm(weight["local_global"], normalisation_local_global, contexts))
    if weight["feature"] and student_channels and teacher_channels:
        terms.append(FeatureTerm(weight["feature"], student_channels, teacher_channels))
    if weight["gradient"]:
        terms.append(GradientTerm(weight["gradient"]))
    if weight["aligned_log"]:
        terms.append(AlignedLogTerm(weight["aligned_log"], aligned_log_knee))
    if weight["anchor"]:
        terms.append(AnchorTerm(weight["anchor"], anchor_center, anchor_spread))
    if not terms:
        raise ValueError(f"{function}: weights must leave at least one term, got {given}")
    return DistillationObjective(terms)


def _segments(normalisation: str) -> tuple[int, ...]:
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"distill_any_depth_objective: normalisation must be one of {', '.join(NORMALISATIONS)}, "
            f"got {normalisation!r}{did_you_mean(normalisation, NORMALISATIONS)}"
        )
    return NORMALISATIONS[normalisation]
