"""A teacher, and what it says about images: whatever it predicts is brought to disparity."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distilldepth.depth import depth_to_inverse_depth, to_disparity
from distilldepth.models.base import DepthModel, ModelInfo, run_resized
from distilldepth.teachers.spec import ORACLE, TeacherSpec


@dataclass
class PseudoLabel:
    """What a teacher says about a batch of regions, and about their windows seen alone."""

    disparity: Tensor
    """`(B, H, W)` float32, larger = nearer."""
    valid: Tensor
    """bool `(B, H, W)`, True where the teacher knows."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """The teacher's encoder features by name, each `(B, C, h, w)`; empty if it has none."""
    patch_disparity: Tensor | None = None
    """`(B * N, h, w)` float32, the maps of the windows, of all regions together; None if there are no windows."""
    patch_valid: Tensor | None = None
    """bool `(B * N, h, w)`, likewise."""
    teacher: str = ""
    """Name of the teacher; chooses its projection where two teachers have equally wide features."""
    inverse_depth: bool = False
    """Whether the maps are inverse depth up to a scale, with no unknown shift."""


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
            if depth is None:
                raise ValueError(f"Teacher.label: depth must be given to {self.name}, which reads it, got None")
            inverse = depth_to_inverse_depth(depth)
            return PseudoLabel(inverse, ~torch.isnan(inverse), teacher=self.name, inverse_depth=True)
        reduced = self.precision != torch.float32
        with torch.inference_mode(), torch.autocast(images.device.type, self.precision, enabled=reduced):
            output = run_resized(self.model, images, features=features)
            values = output.values
            disparity = to_disparity(values, self.info.quantity)
        # Tensors made in inference mode may not enter a graph; a clone made outside it may.
        disparity = disparity.clone()
        # Interpolation may bring metres below 0 beside a deep edge, and the inverse is unknown; the step looks for NaN.
        valid = ~(values <= 0) if self.info.quantity == "metric_depth" else torch.ones_like(disparity, dtype=torch.bool)
        return PseudoLabel(
            disparity,
            valid,
            {name: value.clone() for name, value in output.features.items()},
            teacher=self.name,
            inverse_depth=self.info.quantity == "metric_depth",
        )
