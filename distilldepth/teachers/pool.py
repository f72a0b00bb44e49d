"""The teachers of a run: loaded once, one drawn per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from distilldepth.errors import DistillDepthError
from distilldepth.models import DepthModel, load_model
from distilldepth.teachers.spec import ORACLE, TeacherSpec
from distilldepth.teachers.teacher import Teacher


class TeacherPool:
    """Draws one teacher per step with its weight: the same one in every process and after every resume."""

    def __init__(self, teachers: list[Teacher], seed: int) -> None:
        self.teachers = teachers
        self.seed = seed
        self._weights = [teacher.weight for teacher in teachers]

    def draw(self, step: int) -> Teacher:
        """Return the teacher of a step."""
        return self.teachers[draw(self._weights, self.seed, step)]


def draw(weights: Sequence[float], seed: int, step: int) -> int:
    """Return which teacher labels the batch of a step: a pure function of weights, seed and step."""
    cumulative = np.cumsum(np.array(weights) / np.sum(weights))
    point = np.random.default_rng([seed, 3, step]).random()
    return min(int(np.searchsorted(cumulative, point, side="right")), len(weights) - 1)


def load_teachers(
    specs: list[TeacherSpec],
    *,
    device: torch.device,
    offline: bool,
    has_depth: bool,
    seed: int,
    precision: str = "float32",
    offload: bool = False,
    compiled: bool = False,
) -> TeacherPool:
    """Load every teacher of the list.

    With `offload` they rest in the host's memory; on a CPU, where that is where they are, it changes nothing.

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
            away = device if offload and device.type != "cpu" else None
            model = load_model(spec.model, device=device if away is None else "cpu", offline=offline)
            teachers.append(Teacher(spec, model, getattr(torch, precision), offload=away, compiled=compiled))
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
    return (
        a.identity == b.identity
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )
