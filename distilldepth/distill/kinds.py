"""Whether student, teachers, images and terms speak of the same thing: relative maps or metres, one view or two."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.terms.table import TERMS
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.batches import SourceView
from distilldepth.models import DepthModel
from distilldepth.teachers.teacher import Teacher

_LOOKED_AT = 8
"""Images whose true depth is looked at before a run."""


class Known(Protocol):
    """What is known of all images of a run."""

    @property
    def has_depth(self) -> bool:
        """True depth."""

    @property
    def has_right(self) -> bool:
        """The other view of a stereo pair."""

    @property
    def has_cameras(self) -> bool:
        """Focal length and baseline of the pair."""


def check_kinds(config: DistillConfig, student: DepthModel, teachers: list[Teacher], images: Known) -> None:
    """Refuse what cannot be compared, before anything is trained.

    Args:
        config: of the run.
        student: as it will be trained.
        teachers: all of them.
        images: what is known of every image.

    Raises:
        UsageError: with the reason and what to do.
    """
    if student.takes_points:
        return  # Whose settings are looked at as soon as they are read.
    if student.info.quantity == "metric_depth":
        _check_metres(config, student, teachers)
    else:
        _check_relative(config, student)
    if config.loss.silog and not images.has_depth:
        raise UsageError(
            "distill: loss.silog compares with true depth, and not all images have it; give --data, or --images "
            "stereo-scenes, or set loss.silog=0"
        )
    pairs = [teacher.name for teacher in teachers if teacher.views > 1]
    pairs += [f"student {student.info.name}"] if student.views > 1 else []
    if pairs and not images.has_right:
        raise UsageError(
            f"distill: {pairs[0]} sees both views of stereo pairs, and the images have one; give pairs with --data, or "
            "--images stereo-scenes"
        )
    pixels = [teacher.name for teacher in teachers if teacher.model is not None and teacher.model.in_pixels]
    if pixels and not images.has_cameras:
        raise UsageError(
            f"distill: {pixels[0]} says disparity in pixels, which is no depth without focal_px and baseline_m of "
            "every pair; add them to the manifest"
        )
    if pairs and config.loss.local_global and config.crop.patches:
        raise UsageError(
            f"distill: {pairs[0]} sees both views of stereo pairs, and windows are cut from one; set "
            "loss.local_global=0, or use --preset adu-depth"
        )


def check_depth(config: DistillConfig, student: DepthModel, training: SourceView) -> None:
    """Refuse true depth of which nothing is looked at, by the first training images.

    Args:
        config: of the run.
        student: as it will be trained.
        training: the images.

    Raises:
        UsageError: with the depth that there is, and the bounds.
    """
    if not config.loss.silog:
        return
    nearest, farthest = config.loss.nearest, config.loss.farthest or student.info.max_depth or math.inf
    medians = []
    for place in range(min(_LOOKED_AT, len(training))):
        try:
            depth = training[place]["depth"]
        except (DistillDepthError, OSError):
            continue  # Of those that cannot be read the training tells.
        known = depth[np.isfinite(depth) & (depth > 0)]
        if ((known > nearest) & (known < farthest)).any():
            return
        medians += [float(np.median(known))] if known.size else []
    if medians:
        raise UsageError(
            f"distill: no true depth of the first images lies between loss.nearest and loss.farthest ({nearest:g} to "
            f"{farthest:g} m), so nothing would be learned; its median is {np.median(medians):.3g} m: set them, or "
            "mend the scale of the data"
        )


def _check_metres(config: DistillConfig, student: DepthModel, teachers: list[Teacher]) -> None:
    relative = [name for name, row in TERMS.items() if getattr(config.loss, name) and not (row.metres or row.features)]
    if config.crop.patches == 0 and "local_global" in relative:
        relative.remove("local_global")
    if relative:
        raise UsageError(
            f"distill: student '{config.student}' predicts metres, and loss.{relative[0]} compares maps up to scale "
            f"and shift; use --preset adu-depth, or set {' '.join(f'loss.{name}=0' for name in relative)} and one of "
            f"{', '.join(f'loss.{name}' for name, row in TERMS.items() if row.metres and row.teaches)}"
        )
    for teacher in teachers:
        if teacher.info.quantity != "metric_depth":
            raise UsageError(
                f"distill: student '{config.student}' predicts metres, and teacher {teacher.name} says "
                f"{teacher.info.quantity} without a scale; name a teacher of metres, or oracle where the truth is known"
            )


def _check_relative(config: DistillConfig, student: DepthModel) -> None:
    metres = [name for name, row in TERMS.items() if getattr(config.loss, name) and row.metres]
    if metres:
        raise UsageError(
            f"distill: loss.{metres[0]} is for students that predict metres, and '{config.student}' predicts "
            f"{student.info.quantity}; name a student such as newcrfs-micro, or set "
            f"{' '.join(f'loss.{name}=0' for name in metres)}"
        )
