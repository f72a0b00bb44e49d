"""What a setting left to the program becomes: learning rates depend on whether the student has been trained before."""

from __future__ import annotations

import dataclasses

from distilldepth.distill.config import OptimiserSection
from distilldepth.models import DepthModel
from distilldepth.models.encoder import ENCODER_ALONE

RANDOM_WEIGHTS = "random initialisation"
"""`info.source` of a student without trained weights."""

_TRAINED = (5e-5, 0.1)
"""Learning rate and the encoder's share of it, for trained weights: Distill Any Depth, section 4.1."""
_RANDOM = dict.fromkeys(("light", "topformer", "efficientnet-lite", "completion"), (2e-3, 1.0))
"""The same for random weights, by family. At 5e-5 a step moves them so little that a few hundred steps only smooth the
random map: the gradient term falls, and which end of the scene is near stays a matter of chance."""
_RANDOM_OTHERS = (3e-4, 1.0)
"""Transformers without normalisation in the decoder die at larger rates."""
_FAR = 10
"""A rate that many times smaller than the usual one is worth a word."""


def is_random(student: DepthModel) -> bool:
    """Whether a student's map is that of random weights: of a random decoder at least, whatever the encoder is."""
    return student.info.source == RANDOM_WEIGHTS or _has_trained_encoder_alone(student)


def _has_trained_encoder_alone(student: DepthModel) -> bool:
    return student.info.source.endswith(ENCODER_ALONE)


def usual_rate(student: DepthModel) -> tuple[float, float]:
    """Return the learning rate and the encoder's share of it that suit a student."""
    if not is_random(student):
        return _TRAINED
    lr, share = _RANDOM.get(student.info.family, _RANDOM_OTHERS)
    # A trained encoder keeps what it knows at the share that trained students take; the decoder has all to learn.
    return (lr, _TRAINED[1]) if _has_trained_encoder_alone(student) else (lr, share)


def settle_optimiser(settings: OptimiserSection, student: DepthModel) -> OptimiserSection:
    """Return the settings with `lr`, `encoder_lr_share` and `freeze_batch_norm` filled in where they were left open."""
    lr, share = usual_rate(student)
    # Statistics of a large and mixed set are better than those of small batches; a student that was trained as a whole
    # may have seen something else than it does now, and a random encoder has none.
    frozen = "on" if _has_trained_encoder_alone(student) and student.has_encoder_statistics else "off"
    return dataclasses.replace(
        settings,
        lr=settings.lr or lr,
        encoder_lr_share=share if settings.encoder_lr_share < 0 else settings.encoder_lr_share,
        freeze_batch_norm=frozen if settings.freeze_batch_norm == "auto" else settings.freeze_batch_norm,
    )


def rate_warning(settings: OptimiserSection, student: DepthModel) -> str | None:
    """Return what to say of settled learning rates that are far too small for a student with random weights."""
    lr, share = usual_rate(student)
    if not is_random(student) or min(settings.lr, settings.lr * settings.encoder_lr_share) * _FAR > lr * share:
        return None
    in_decoder = " in its decoder" if _has_trained_encoder_alone(student) else ""
    return (
        f"{student.info.name} starts from random weights{in_decoder}, for which optimiser.lr={lr:g} and "
        f"optimiser.encoder_lr_share={share:g} are usual; with {settings.lr:g} and {settings.encoder_lr_share:g} it "
        "learns hardly anything in a short run"
    )
