"""Predictors that look at no pixel: a model that does not beat them has learned nothing useful."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distilldepth.errors import UsageError, did_you_mean
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing

BASELINES = ("constant", "ramp")
"""`constant`: the same everywhere. `ramp`: disparity grows linearly from the first row (0) to the last (1)."""


class Baseline(DepthModel):
    """A disparity that depends on the size of the image only."""

    def __init__(self, kind: str) -> None:
        info = ModelInfo(f"baseline:{kind}", "baseline", "disparity", "Apache-2.0", "computed")
        super().__init__(info, Preprocessing(size=1, multiple=1, resize_policy="square"))
        self.kind = kind

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        """Return `(B, H, W)` at the images' own size, whatever policy and size say: there is no network to please."""
        return self(images).values

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Return the map for images `(B, 3, H, W)`; there are no features."""
        batch, _, height, width = images.shape
        rows = torch.ones(height) if self.kind == "constant" else torch.linspace(0, 1, height)
        return DepthOutput(rows.to(images.device)[None, :, None].expand(batch, height, width))


def load_baseline(kind: str) -> Baseline:
    """Return the baseline called `kind`: a model that looks at no pixel.

    Args:
        kind: `constant`, or `ramp`: nearer towards the lower edge.

    Returns:
        A `DepthModel` without parameters to train, in evaluation mode; disparity `(B, H, W)` as every other.

    Raises:
        UsageError: no such baseline.
    """
    if kind not in BASELINES:
        raise UsageError(f"load_baseline: kind must be known, got {kind!r}{did_you_mean(kind, BASELINES)}")
    return Baseline(kind).eval()


def open_model(model: str | Path | DepthModel, offline: bool = False) -> DepthModel:
    """Return the model that `evaluate` would score: a name, path or hub id, or `baseline:constant` and so on."""
    if isinstance(model, DepthModel):
        return model
    kind, colon, name = str(model).partition(":")
    if colon and kind == "baseline":
        return load_baseline(name)
    from distilldepth.models import load_model

    return load_model(model, offline=offline)
