"""Objectives: weighted, named terms, each a small module that says what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from distilldepth.distill.batches import SourceView, whole_batches
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.recipe import is_random
from distilldepth.distill.terms.aligned_log import AlignedLogTerm
from distilldepth.distill.terms.anchor import AnchorTerm
from distilldepth.distill.terms.base import Term
from distilldepth.distill.terms.feature import FeatureTerm
from distilldepth.distill.terms.gradient import GradientTerm
from distilldepth.distill.terms.local_global import LocalGlobalTerm
from distilldepth.distill.terms.shared_context import SharedContextTerm
from distilldepth.distill.terms.table import TERMS
from distilldepth.errors import did_you_mean
from distilldepth.images.crops import Regions
from distilldepth.losses.normalise import center_and_spread
from distilldepth.models import DepthModel
from distilldepth.models.base import DepthOutput, predict_at
from distilldepth.teachers.teacher import PseudoLabel, Teacher


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

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and the unweighted, detached value of each term that this batch can feed.

        Computed in float32 under autocast too, and without waiting for the device. A batch that feeds no term gives 0
        with zero gradient.
        """
        values: dict[str, Tensor] = {}
        # Starting from the prediction keeps a gradient, of 0, when no term is met.
        device = student.values.device
        total = torch.zeros((), device=device) + student.values.reshape(-1)[:0].float().sum()
        with torch.autocast(device.type, enabled=False):
            for term in self.terms:
                if term.is_met(student, label):
                    value = term(student, label, regions)
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


def make_objective(
    config: DistillConfig, student: DepthModel, teachers: list[Teacher], training: SourceView
) -> DistillationObjective:
    """Return the weighted terms of the run.

    Feature projections are sized from the models' own widths. A student with trained weights is anchored at the centre
    and spread that it has on some of the training images; a random one at the default.
    """
    loss = config.loss
    weights = {
        "shared_context": loss.shared_context,
        "local_global": loss.local_global if config.crop.patches else 0.0,
        "feature": loss.feature,
        "gradient": loss.gradient,
        "aligned_log": loss.aligned_log,
        "anchor": loss.anchor,
    }
    student_channels, teacher_channels = None, None
    if loss.feature:
        teacher_channels = {t.name: w for t in teachers if (w := feature_width(t.model)) is not None}
        student_channels = feature_width(student) if teacher_channels else None
        if student_channels is None or not teacher_channels:
            weights["feature"] = 0.0
    anchor: dict[str, float] = {}
    if loss.anchor and not is_random(student):
        anchor["anchor_center"], anchor["anchor_spread"] = output_range(student, training, config)
    return distill_any_depth_objective(
        **anchor,
        weights=weights,
        normalisation_shared=loss.normalisation_shared,
        normalisation_local_global=loss.normalisation_local_global,
        contexts=loss.contexts,
        aligned_log_knee=loss.aligned_log_knee or None,
        student_channels=student_channels,
        teacher_channels=teacher_channels or None,
    )


@torch.inference_mode()
def output_range(
    student: DepthModel, training: SourceView, config: DistillConfig, images: int = 16
) -> tuple[float, float]:
    """Return the mean centre and spread of a student's maps on the first training images."""
    student.eval()
    some = SourceView(training, range(min(images, len(training))))
    parts = [
        center_and_spread(predict_at(student, batch.image.float() / 255))
        for batch in whole_batches(some, config, config.batch_size)
    ]
    center, spread = (torch.cat(values).mean() for values in zip(*parts, strict=True))
    return float(center), max(float(spread), 1e-3)


def feature_width(model: torch.nn.Module | None) -> int | None:
    """Return the channels of a model's last encoder features, None if it offers none."""
    if model is None:
        return None
    was_training = model.training
    device = next(model.parameters()).device
    side = max(-(-64 // model.preprocessing.multiple), 1) * model.preprocessing.multiple
    with torch.inference_mode():
        features = model.eval()(torch.zeros(1, 3, side, side, device=device), features=True).features
    model.train(was_training)
    return features["encoder"].shape[1] if "encoder" in features else None
