"""The scale-invariant error of log depth against the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.distill.terms.metres import MetresTerm
from distilldepth.images.crops import Regions
from distilldepth.losses.silog import silog_loss
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel


class SilogTerm(MetresTerm):
    """SILog against the true depth of the images, whoever teaches beside it; see `silog_loss`."""

    def __init__(
        self, weight: float, variance_focus: float = 0.85, nearest: float = 0.0, farthest: float = 0.0
    ) -> None:
        super().__init__("silog", weight, nearest, farthest)
        self.variance_focus = variance_focus

    def is_met(self, student: DepthOutput, label: PseudoLabel) -> bool:
        return True

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        assert regions.depth is not None, "true depth is there wherever this term is"
        # A sample whose label or map was found unusable is one here too.
        usable = label.valid.flatten(1).any(1)[:, None, None]
        known = torch.isfinite(regions.depth) & (regions.depth > 0) & self.in_range(regions.depth) & usable
        return silog_loss(
            student.values, regions.depth, known, variance_focus=self.variance_focus, together=self._together
        )
