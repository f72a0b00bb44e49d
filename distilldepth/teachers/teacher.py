"""The teachers of a run: loaded once, one drawn per step, every output brought to disparity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distilldepth.depth import depth_to_inverse_depth, to_disparity
from distilldepth.models import DepthModel
from distilldepth.models.base import ModelInfo
from distilldepth.models.preprocess import nearest_size, resize, restore
from distilldepth.teachers.spec import ORACLE, TeacherSpec


@dataclass
class PseudoLabel:
    """What a teacher says about a batch."""

    disparity: Tensor
    """`(B, H, W)` float32, larger = nearer."""
    valid: Tensor
    """bool `(B, H, W)`, True where the teacher knows."""
    features: dict[str, Tensor]
    """The teacher's encoder features; empty if it has none."""


class Teacher:
    """A frozen model, or the renderer's truth (`oracle`)."""

    def __init__(self, spec: TeacherSpec, model: DepthModel | None, precision: torch.dtype = torch.float32) -> None:
        self.weight = spec.weight
        self.precision = precision
        self.model = model
        if model is None:
            self.info = ModelInfo(ORACLE, ORACLE, "metric_depth", "Apache-2.0", "the renderer's depth buffer")
        else:
            self.model = model.eval().requires_grad_(False)
            self.info = model.info
        self.name = self.info.name

    def label(self, images: Tensor, depth: Tensor | None, *, features: bool = False) -> PseudoLabel:
        """Label images `(B, 3, H, W)` in [0, 1]; `depth` `(B, H, W)` in metres is what the oracle reads.

        Runs in the teacher's own precision, whatever autocast surrounds it.
        """
        if self.model is None:
            inverse = depth_to_inverse_depth(depth)
            return PseudoLabel(inverse, ~torch.isnan(inverse), {})
        reduced = self.precision != torch.float32
        with torch.inference_mode(), torch.autocast(images.device.type, self.precision, enabled=reduced):
            height, width = images.shape[-2:]
            preprocessing = self.model.preprocessing
            output = self.model(
                resize(images, nearest_size(height, width, preprocessing.multiple), preprocessing.interpolation),
                features=features,
            )
            values = restore(output.values, (height, width), preprocessing)
            disparity = to_disparity(values, self.info.quantity)
        # Tensors made in inference mode may not enter a graph; a clone made outside it may.
        disparity = disparity.clone()
        # Interpolation may bring metres below 0 beside a deep edge, and the inverse is unknown; the step looks for NaN.
        valid = ~(values <= 0) if self.info.quantity == "metric_depth" else torch.ones_like(disparity, dtype=torch.bool)
        return PseudoLabel(
            disparity,
            valid,
            {name: value.clone() for name, value in output.features.items()},
        )
