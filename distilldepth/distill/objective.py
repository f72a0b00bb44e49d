"""Objectives: weighted, named terms, each a small module that says what it needs."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.crops import whole_batches
from distilldepth.distill.recipe import is_random
from distilldepth.distill.terms.base import Measured, Term
from distilldepth.distill.terms.table import OPTIONS, TERMS, LossSection, TermRow
from distilldepth.errors import did_you_mean
from distilldepth.images.batches import SourceView
from distilldepth.images.crops import Regions
from distilldepth.losses.largest_errors import without_largest_errors
from distilldepth.losses.normalise import center_and_spread
from distilldepth.models import DepthModel
from distilldepth.models.base import DepthOutput, predict_at
from distilldepth.ops import sample_crops
from distilldepth.teachers.teacher import PseudoLabel, Teacher


class DistillationObjective(nn.Module):
    """A weighted sum of named terms.

    Its parameters (projections, adapters) are trained with the student and never exported with it.

    Args:
        terms: in the order in which they are reported; names must differ.
        drop_share: share of each map's pixels, those with the largest error, that no term looks at; see
            `without_largest_errors`. Of the region and of each window by itself.

    Raises:
        ValueError: two terms of one name.
    """

    def __init__(self, terms: Iterable[Term], drop_share: float = 0.0) -> None:
        super().__init__()
        self.drop_share = drop_share
        self.terms = nn.ModuleList(terms)
        names = [term.name for term in self._terms()]
        if len(set(names)) != len(names):
            raise ValueError(f"DistillationObjective: terms must have different names, got {', '.join(names)}")

    def _terms(self) -> Iterator[Term]:
        return iter(self.terms)  # type: ignore[arg-type]  # torch does not say of what its list is

    @property
    def needs(self) -> frozenset[str]:
        """What any term can make use of: `patches`, `features`, `inverse_depth`."""
        return frozenset(need for term in self._terms() for need in term.needs)

    def join(self, processes: int) -> None:
        """Take as one batch what so many processes see; see `Term.join`."""
        for term in self._terms():
            term.join(processes)

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
            if self.drop_share:
                label = _without_largest_errors(student.values.detach(), label, regions, self.drop_share)
            for term in self._terms():
                if term.is_met(student, label):
                    value = term(student, label, regions)
                    values[term.name] = value.detach()
                    total = total + term.weight * value
        return total, values


def _without_largest_errors(prediction: Tensor, label: PseudoLabel, regions: Regions, share: float) -> PseudoLabel:
    """A label that is valid only where the student's map, and its windows, are not among the worst."""
    valid = without_largest_errors(prediction, label.disparity, label.valid, share=share)
    patches, patch_valid = label.patch_disparity, label.patch_valid
    if patches is not None:
        crops = sample_crops(prediction, regions.boxes.flatten(0, 1), regions.image_index, patches.shape[-2:])
        patch_valid = without_largest_errors(crops, patches, patch_valid, share=share)
    return dataclasses.replace(label, valid=valid, patch_valid=patch_valid)


def distill_any_depth_objective(
    *,
    weights: Mapping[str, float] | None = None,
    student_channels: int | None = None,
    teacher_channels: Mapping[str, int] | None = None,
    anchor_center: float = Measured.center,
    anchor_spread: float = Measured.spread,
    **options: str | float | None,
) -> DistillationObjective:
    """Build the objective of Distill Any Depth: `L = L_sc + 0.5 L_lg + 1.0 L_feat + 2.0 L_grad`, plus the anchor.

    Args:
        weights: by term: shared_context, local_global, feature, gradient, aligned_log, anchor, and those of label-free
            distillation: map_mse, map_channel_mse, map_channel_kl, geometric, feature_mse, feature_channel_mse,
            feature_channel_kl, feature_spatial_kl, feature_pairwise. Those not named keep their default, 0 for the
            latter and aligned_log; a term of weight 0 is left out and not computed.
        student_channels: width of the student's encoder features; without it there are no terms of features.
        teacher_channels: width of the encoder features of each teacher that has any, by teacher; without it there are
            no terms of features.
        anchor_center: median to which the student's output is drawn; the default suits an output between 0 and 1. A
            student that starts from trained weights should be held where it is: see `center_and_spread`.
        anchor_spread: likewise for the mean absolute deviation.
        options: any other key of the configuration's `loss` section. `normalisation_shared` and
            `normalisation_local_global`: `hybrid`, `global`, `local` or `none` (plain L1: only for teachers of one
            scale). `contexts`: `range`, `quantile` or `spatial`. `aligned_log_knee`: error that counts half in
            aligned_log; None for errors as they are. `drop_share`: share of the pixels with the largest error that is
            left out. `temperature`: of the softmax over positions or channels. `geometric_points`: of each map that
            the PointNet sees.

    Raises:
        ValueError: unknown term or normalisation, negative weight, no term left.
        TypeError: unknown option.

    Source: Distill Any Depth, section 3.2; Gao et al., Robust Lightweight Depth Estimation Model via Data-Free
    Distillation.

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
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{function}: unexpected argument {name!r}{did_you_mean(name, OPTIONS)}")
    values = {**dataclasses.asdict(LossSection()), **options, **given}
    measured = Measured(student_channels, teacher_channels or {}, anchor_center, anchor_spread)
    made = [
        _term_class(name, row).make(values[name], {kind: values[key] for kind, key in row.options.items()}, measured)
        for name, row in TERMS.items()
        if values[name]
    ]
    terms = [term for term in made if term is not None]
    if not terms:
        raise ValueError(f"{function}: weights must leave at least one term, got {given}")
    return DistillationObjective(terms, values["drop_share"])


def _term_class(name: str, row: TermRow) -> type[Term]:
    return getattr(importlib.import_module(f"distilldepth.distill.terms.{name}"), row.made_by)


def make_objective(
    config: DistillConfig, student: DepthModel, teachers: list[Teacher], training: SourceView
) -> DistillationObjective:
    """Return the weighted terms of the run.

    Feature projections are sized from the models' own widths. A student with trained weights is anchored at the centre
    and spread that it has on some of the training images; a random one at the default.
    """
    loss = config.loss
    weights = {name: getattr(loss, name) for name in TERMS}
    if not config.crop.patches:
        weights["local_global"] = 0.0
    student_channels: int | None = None
    teacher_channels: dict[str, int] = {}
    if of_features := [name for name, row in TERMS.items() if row.features and weights[name]]:
        teacher_channels = {t.name: w for t in teachers if (w := feature_width(t.model)) is not None}
        student_channels = feature_width(student) if teacher_channels else None
        if student_channels is None:
            weights |= dict.fromkeys(of_features, 0.0)
    center, spread = Measured.center, Measured.spread
    if loss.anchor and not is_random(student):
        center, spread = output_range(student, training, config)
    return distill_any_depth_objective(
        weights=weights,
        student_channels=student_channels,
        teacher_channels=teacher_channels,
        anchor_center=center,
        anchor_spread=spread,
        **{key: getattr(loss, key) for key in OPTIONS},
    )


@torch.inference_mode()
def output_range(
    student: DepthModel, training: SourceView, config: DistillConfig, images: int = 16
) -> tuple[float, float]:
    """Return the mean centre and spread of a student's maps on the first training images."""
    student.eval()
    some = SourceView(training, range(min(images, len(training))))
    parts = [center_and_spread(predict_at(student, batch.image.float() / 255)) for batch in whole_batches(some, config)]
    center, spread = (torch.cat(values).mean() for values in zip(*parts, strict=True))
    return float(center), max(float(spread), 1e-3)


def feature_width(model: DepthModel | None) -> int | None:
    """Return the channels of a model's last encoder features, None if it offers none."""
    if model is None:
        return None
    was_training = model.training
    device = next(model.buffers()).device  # Every model has some; a callable has no parameters.
    side = max(-(-64 // model.preprocessing.multiple), 1) * model.preprocessing.multiple
    with torch.inference_mode():
        features = model.eval()(torch.zeros(1, 3, side, side, device=device), features=True).features
    model.train(was_training)
    return features["encoder"].shape[1] if "encoder" in features else None
