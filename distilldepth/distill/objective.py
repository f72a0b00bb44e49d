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
from distilldepth.distill.terms.table import ALL_LEVELS, OPTIONS, TERMS, LossSection, TermRow, level_names
from distilldepth.errors import UsageError, did_you_mean
from distilldepth.images.batches import SourceView
from distilldepth.images.crops import Regions
from distilldepth.losses.largest_errors import without_largest_errors
from distilldepth.losses.normalise import center_and_spread
from distilldepth.models import DepthModel
from distilldepth.models.base import DepthOutput, predict_at
from distilldepth.ops import sample_crops
from distilldepth.teachers.stored import AbsentTeacher
from distilldepth.teachers.teacher import PseudoLabel, Teacher
from distilldepth.words import DECODER_LEVELS, FEATURE_LEVELS


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

    @property
    def levels(self) -> frozenset[str]:
        """The levels of features at which any term looks."""
        return frozenset(level for term in self._terms() for level in term.levels)

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
    student_channels: int | Mapping[str, int] | None = None,
    teacher_channels: Mapping[str, int | Mapping[str, int]] | None = None,
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
        student_channels: width of the student's encoder features by level; a single number is that of `encoder`.
            Without it there are no terms of features.
        teacher_channels: likewise of each teacher that has any, by teacher; without it there are no terms of features.
        anchor_center: median to which the student's output is drawn; the default suits an output between 0 and 1. A
            student that starts from trained weights should be held where it is: see `center_and_spread`.
        anchor_spread: likewise for the mean absolute deviation.
        options: any other key of the configuration's `loss` section. `normalisation_shared` and
            `normalisation_local_global`: `hybrid`, `global`, `local` or `none` (plain L1: only for teachers of one
            scale). `contexts`: `range`, `quantile` or `spatial`. `aligned_log_knee`: error that counts half in
            aligned_log; None for errors as they are. `drop_share`: share of the pixels with the largest error that is
            left out. `feature_levels`: at which levels terms of features look. `temperature`: of the softmax over
            positions or channels. `geometric_points`: of each map that the PointNet sees.

    Raises:
        ValueError: unknown term or normalisation, negative weight, no term left; a level that the student or a teacher
            lacks.
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
    own = _by_level(student_channels)
    looked_at = {
        teacher: widths
        for teacher, given in (teacher_channels or {}).items()
        if (widths := _looked_at(values["feature_levels"], own, teacher, _by_level(given)))
    }
    measured = Measured(own, looked_at, anchor_center, anchor_spread)
    made = [
        _term_class(name, row).make(values[name], {kind: values[key] for kind, key in row.options.items()}, measured)
        for name, row in TERMS.items()
        if values[name]
    ]
    terms = [term for term in made if term is not None]
    if not terms:
        raise ValueError(f"{function}: weights must leave at least one term, got {given}")
    return DistillationObjective(terms, values["drop_share"])


def _by_level(channels: int | Mapping[str, int] | None) -> Mapping[str, int]:
    return {"encoder": channels} if isinstance(channels, int) else channels or {}


def _looked_at(levels: str, student: Mapping[str, int], teacher: str, widths: Mapping[str, int]) -> dict[str, int]:
    """The widths of a teacher's levels at which terms look, which the student has too; none if one has no features."""
    if not (student and widths):
        return {}
    names = level_names(levels)
    if names == (ALL_LEVELS,):
        # Where the two share no size there is still the last level of each.
        named = (*FEATURE_LEVELS, *DECODER_LEVELS)
        names = tuple(name for name in named if name in student and name in widths) or ("encoder",)
    if any(name not in student or name not in widths for name in names):
        raise _lacking(names, "the student", student, teacher, widths)
    return {name: widths[name] for name in names}


def _lacking(
    names: Iterable[str], student: str, own: Iterable[str], teacher: str, of_teacher: Iterable[str]
) -> UsageError:
    has = " and ".join(
        f"{who} has {', '.join(levels) or 'none'}" for who, levels in ((student, own), (teacher, of_teacher))
    )
    return UsageError(
        f"distill: loss.feature_levels = {', '.join(names)}, but of these levels {has}; name those that both have, or "
        f"{ALL_LEVELS}"
    )


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
    student_channels: dict[str, int] = {}
    teacher_channels: dict[str, dict[str, int]] = {}
    if of_features := [name for name, row in TERMS.items() if row.features and weights[name]]:
        teacher_channels = {t.name: widths for t in teachers if (widths := feature_widths(t.model))}
        student_channels = feature_widths(student)
        if not (student_channels and teacher_channels):
            _refuse_to_leave_out(loss.feature_levels, student, student_channels, teachers, teacher_channels)
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
        **{key: getattr(loss, key) for key in OPTIONS} | {"farthest": loss.farthest or student.info.max_depth or 0.0},
    )


@torch.inference_mode()
def output_range(
    student: DepthModel, training: SourceView, config: DistillConfig, images: int = 16
) -> tuple[float, float]:
    """Return the mean centre and spread of a student's maps on the first training images."""
    student.eval()
    some = SourceView(training, range(min(images, len(training))))
    parts = [
        center_and_spread(predict_at(student, batch.views(student.views).float() / 255))
        for batch in whole_batches(some, config)
    ]
    center, spread = (torch.cat(values).mean() for values in zip(*parts, strict=True))
    return float(center), max(float(spread), 1e-3)


def _refuse_to_leave_out(
    levels: str,
    student: DepthModel,
    student_channels: Mapping[str, int],
    teachers: list[Teacher],
    teacher_channels: Mapping[str, Mapping[str, int]],
) -> None:
    """Raise UsageError if sizes are named and nobody in memory has any; without them such terms are just absent."""
    names = level_names(levels)
    live = [teacher.name for teacher in teachers if not isinstance(teacher, AbsentTeacher)]
    if live and any(name in (*FEATURE_LEVELS, *DECODER_LEVELS) for name in names):
        raise _lacking(names, student.info.name, student_channels, live[0], teacher_channels.get(live[0], {}))


def feature_widths(model: DepthModel | None) -> dict[str, int]:
    """Return the channels of a model's encoder features by level, empty if it offers none."""
    if model is None or model.takes_points:
        return {}
    was_training = model.training
    device = next(model.buffers()).device  # Every model has some; a callable has no parameters.
    side = max(-(-64 // model.preprocessing.multiple), 1) * model.preprocessing.multiple
    with torch.inference_mode():
        pixels = torch.zeros(1, 3 * model.views, side, side, device=device)
        features = model.eval()(pixels, features=True).features
    model.train(was_training)
    return {level: values.shape[1] for level, values in features.items()}
