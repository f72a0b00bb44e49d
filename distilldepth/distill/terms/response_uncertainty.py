"""The absolute difference in metres, weighed by the student's own uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.distill.terms.metres import MetresTerm
from distilldepth.images.crops import Regions
from distilldepth.losses.uncertainty import response_uncertainty_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel
from distilldepth.words import LOG_VARIANCE


class ResponseUncertaintyTerm(MetresTerm):
    """`response_uncertainty_loss` of metres; of a student without an uncertainty the same with 0 for it."""

    def __init__(self, weight: float, form: str = "printed", nearest: float = 0.0, farthest: float = 0.0) -> None:
        super().__init__("response_uncertainty", weight, nearest, farthest)
        self.form = form

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        metres, known = self.taught(label)
        spread = student.extras.get(LOG_VARIANCE)
        if spread is None:
            spread = torch.zeros_like(student.values)
        return response_uncertainty_loss(student.values, metres, spread, known, form=self.form, together=self._together)
