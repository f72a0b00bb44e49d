"""The teachers of a run: loaded once, one drawn per step, every output brought to disparity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distilldepth.depth import depth_to_inverse_depth, to_disparity
from distilldepth.distill.spec import ORACLE, TeacherSpec
from distilldepth.errors import DistillDepthError
from distilldepth.models import DepthModel, load_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.preprocess import resize, restore


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


def nearest_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the size nearest to (height, width) whose sides are multiples of `multiple`."""
    return tuple(max(round(side / multiple), 1) * multiple for side in (height, width))


class TeacherPool:
    """Draws one teacher per step with its weight: the same one in every process and after every resume."""

    def __init__(self, teachers: list[Teacher], seed: int) -> None:
        self.teachers = teachers
        self.seed = seed
        weights = np.array([teacher.weight for teacher in teachers])
        self._cumulative = np.cumsum(weights / weights.sum())

    def draw(self, step: int) -> Teacher:
        """Return the teacher of a step."""
        point = np.random.default_rng([self.seed, 3, step]).random()
        return self.teachers[min(int(np.searchsorted(self._cumulative, point, side="right")), len(self.teachers) - 1)]


def load_teachers(
    specs: list[TeacherSpec],
    *,
    device: torch.device,
    offline: bool,
    has_depth: bool,
    seed: int,
    precision: str = "float32",
) -> TeacherPool:
    """Load every teacher of the list.

    Teachers that call themselves the same, such as two checkpoints of one family, go by what was asked for.

    Raises:
        ValueError: two of them are the same model.
        DistillDepthError: `oracle` is asked for where the images have no true depth.
    """
    teachers: list[Teacher] = []
    for spec in specs:
        if spec.model == ORACLE:
            if not has_depth:
                raise DistillDepthError("distill: teacher 'oracle' knows procedural scenes only; use --images scenes")
            teachers.append(Teacher(spec, None))
        else:
            model = load_model(spec.model, device=device, offline=offline)
            teachers.append(Teacher(spec, model, getattr(torch, precision)))
    called = [teacher.info.name for teacher in teachers]
    for place, (spec, teacher) in enumerate(zip(specs, teachers, strict=True)):
        if called.count(teacher.info.name) == 1:
            continue
        teacher.name = spec.model
        for other_spec, other in zip(specs[:place], teachers[:place], strict=True):
            if _same_weights(teacher.model, other.model):
                raise ValueError(
                    f"distill: teachers '{other_spec.model}' and '{spec.model}' are the same model; "
                    f"name it once with a weight, as {spec.model}=2"
                )
    return TeacherPool(teachers, seed)


def _same_weights(a: DepthModel | None, b: DepthModel | None) -> bool:
    if a is None or b is None:
        return False
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
