"""The pull of the output's centre and spread to fixed values."""

from __future__ import annotations

from torch import Tensor

from distilldepth.distill.terms.base import ObjectiveInputs, Term
from distilldepth.losses.anchor import anchor_loss


class AnchorTerm(Term):
    """A weak pull of the output's center and spread to fixed values; see `anchor_loss` for why."""

    def __init__(self, weight: float, center: float, spread: float) -> None:
        super().__init__("anchor", weight)
        self.center, self.spread = center, spread

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        return anchor_loss(inputs.prediction, inputs.valid, center=self.center, spread=self.spread)
