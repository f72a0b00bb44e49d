"""Squared difference between encoder features, weighed by the student's own uncertainty."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distilldepth.distill.terms.projected import ProjectedTerm
from distilldepth.losses.uncertainty import feature_uncertainty_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel
from distilldepth.words import LOG_VARIANCE


class FeatureUncertaintyTerm(ProjectedTerm):
    """`feature_uncertainty_loss` of features; of a student without an uncertainty the same with 0 for it."""

    def __init__(
        self,
        weight: float,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, Mapping[str, int]],
        adapter: str = "none",
    ) -> None:
        super().__init__("feature_uncertainty", weight, student_channels, teacher_channels, adapter=adapter)

    def at_level(self, level: str, student: DepthOutput, label: PseudoLabel) -> Tensor:
        own, target = self.comparable(level, student, label)
        spread = student.extras.get(LOG_VARIANCE)
        if spread is None:
            spread = torch.zeros_like(student.values)
        return feature_uncertainty_loss(own, target.float(), spread.float())
