"""What a term of the objective is, and what it may look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn


@dataclass
class ObjectiveInputs:
    """What the terms of an objective may look at; maps are disparity, larger = nearer."""

    prediction: Tensor
    """`(B, H, W)`, the student's map of the regions."""
    pseudo_label: Tensor
    """`(B, H, W)`, the teacher's map of the same regions."""
    valid: Tensor | None = None
    """bool `(B, H, W)`; None = all."""
    patch_pseudo_labels: Tensor | None = None
    """`(N, h, w)`, the teacher's maps of windows of the regions, of all images together."""
    patch_valid: Tensor | None = None
    """bool `(N, h, w)`; None = all."""
    boxes: Tensor | None = None
    """`(N, 4)` x0, y0, x1, y1 of the windows in pixels of the prediction, edges."""
    image_index: Tensor | None = None
    """`(N,)` int64, the image that each window is from."""
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    """Encoder features by name, each `(B, C, h, w)`."""
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    """Encoder features by name, each `(B, C, h, w)`; empty if this teacher has none."""
    teacher: str = ""
    """Name of the teacher; chooses its projection where two teachers have equally wide features."""
    inverse_depth: bool = False
    """Whether the pseudo-label is inverse depth up to a scale, with no unknown shift."""


class Term(nn.Module):
    """One weighted part of an objective.

    Subclasses set `needs`, a subset of `{"patches", "features", "inverse_depth"}`, and implement `forward`, which
    returns the unweighted value as a scalar. A term whose needs a batch does not meet is left out for that batch.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Term: weight of {name} must be positive, got {weight}; leave the term out instead")
        self.name = name
        self.weight = float(weight)

    def is_met(self, inputs: ObjectiveInputs) -> bool:
        """Whether the inputs hold all that this term needs."""
        patches = inputs.patch_pseudo_labels is not None
        features = bool(inputs.student_features) and bool(inputs.teacher_features)
        met = {"patches": patches, "features": features, "inverse_depth": inputs.inverse_depth}
        return all(met[need] for need in self.needs)

    def forward(self, inputs: ObjectiveInputs) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name}, weight={self.weight:g}"
