"""The teachers of a set: one in memory at a time, known by what their weights say."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

import torch

from distilldepth import __version__
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.label.plan import Shares
from distilldepth.label.task import LabelTask
from distilldepth.models.digest import model_digest
from distilldepth.teachers.pool import load_teachers
from distilldepth.teachers.shards import LabelSet, StoredTeacher, folder_name
from distilldepth.teachers.spec import ORACLE, TeacherSpec
from distilldepth.teachers.teacher import Teacher


class TeacherShelf:
    """Room for one teacher."""

    def __init__(self, device: torch.device, *, offline: bool, has_depth: bool, precision: str) -> None:
        self.device, self.offline, self.has_depth, self.precision = device, offline, has_depth, precision
        self._held: tuple[TeacherSpec, Teacher, str] | None = None

    def take(self, spec: TeacherSpec) -> tuple[Teacher, str]:
        """Return a teacher and its digest; the one before it leaves the memory first."""
        if self._held is None or self._held[0] != spec:
            self._held = None
            teacher = load_teachers(
                [spec],
                device=self.device,
                offline=self.offline,
                has_depth=self.has_depth,
                seed=0,
                precision=self.precision,
            ).teachers[0]
            if teacher.views > 1:
                raise UsageError(
                    f"label: teacher {teacher.name} sees both views of stereo pairs, and labels are of single images; "
                    "distil from it directly, with distill --teachers"
                )
            self._held = spec, teacher, ORACLE if teacher.model is None else model_digest(teacher.model)
        return self._held[1:]


def describe_teachers(task: LabelTask, shelf: TeacherShelf, shares: Shares) -> list[StoredTeacher]:
    """Load every teacher once, the first one last, and return what the set says of each.

    Raises:
        ValueError: two of them are the same model.
    """
    known: dict[int, StoredTeacher] = {}
    for place in reversed(range(len(task.teachers))):
        spec = task.teachers[place]
        teacher, digest = shelf.take(spec)
        info = teacher.info
        known[place] = StoredTeacher(
            name=info.name,
            spec=spec.model,
            weight=spec.weight,
            folder="",
            samples=shares.samples(place),
            digest=digest,
            quantity=info.quantity,
            licence=info.licence,
            source=info.source,
            precision=shelf.precision,
        )
        del teacher  # Or it would stay while the next one is loaded.
    stored = [known[place] for place in range(len(task.teachers))]
    names = [each.name for each in stored]
    for place, each in enumerate(stored):
        twin = next((other for other in stored[:place] if other.digest == each.digest), None)
        if twin is not None:
            raise ValueError(
                f"label: teachers '{twin.spec}' and '{each.spec}' are the same model; name it once with a weight, "
                f"as {each.spec}=2"
            )
    folders: list[str] = []
    for place, each in enumerate(stored):
        # As in a run: teachers that call themselves the same go by what was asked for.
        name = each.spec if names.count(each.name) > 1 else each.name
        wanted, number = folder_name(name), 1
        while (folder := wanted if number == 1 else f"{wanted}-{number}") in folders:
            number += 1
        folders.append(folder)
        stored[place] = dataclasses.replace(each, name=name, folder=folder)
    return stored


def expected_teachers(task: LabelTask, found: LabelSet, precision: str) -> list[StoredTeacher]:
    """Return what a task says of teachers that are not loaded yet; what only their weights tell is empty."""
    recorded = {teacher.spec: teacher for teacher in found.teachers}
    return [
        StoredTeacher("", spec.model, spec.weight, "", 0, "", "", "", "", precision)
        if spec.model not in recorded
        else dataclasses.replace(recorded[spec.model], weight=spec.weight, precision=precision)
        for spec in task.teachers
    ]


def check_digest(recorded: StoredTeacher, digest: str) -> None:
    """Raise DistillDepthError unless a teacher has the weights that the set was begun with."""
    if digest != recorded.digest:
        raise DistillDepthError(
            f"label: teacher '{recorded.spec}' is not the one that these labels are of (weights {recorded.digest[:16]} "
            f"then, {digest[:16]} now); bring those weights back, or choose another --out"
        )


def versions() -> dict[str, str]:
    """Return what made the labels, for the record."""
    found: dict[str, Any] = {"distilldepth": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "pillow", "transformers", "diffusers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
