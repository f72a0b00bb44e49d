"""`--teachers dav2:large=7,genpercept@weights/unet=3`: the text, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distilldepth.errors import UsageError, refuse_url, shown
from distilldepth.models.registry import PYTHON_PREFIX

ORACLE = "oracle"
"""The teacher that is the renderer's own truth; works on procedural scenes only."""

MAX_WEIGHT = 1e9
"""Beyond this, the weights of the others are lost in rounding."""


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher of the list."""

    model: str
    """What `load_model` is asked for: `name`, `name:variant`, `name@path`, a path, a hub id or a callable."""
    weight: float
    """How often it is drawn, relative to the others."""


def parse_teachers(text: str) -> list[TeacherSpec]:
    """Read a comma-separated list of teachers, each perhaps with `=weight` behind it.

    A teacher is `name[:variant]`, `name@path`, a path or hub id, or `python:module:function`.

    Raises:
        UsageError: an empty list, a repeated teacher, or a weight that is not a positive number.

    >>> parse_teachers("dav2:large=7,genpercept=3")[0]
    TeacherSpec(model='dav2:large', weight=7.0)
    """
    specs: list[TeacherSpec] = []
    for item in text.split(","):
        item = item.strip()
        if not item:
            raise UsageError(f"distill: teachers must be a comma-separated list of names, got {shown(text)}")
        # A weight stands behind the last colon of a callable; in the path before it an = is any letter.
        before, colon, last = item.rpartition(":") if item.startswith(PYTHON_PREFIX) else ("", "", item)
        model, equals, number = last.rpartition("=")
        model = f"{before}{colon}{model}"
        if not equals:
            model, number = item, "1"
        model = model.strip()
        if not model:
            raise UsageError(f"distill: a teacher must have a name, got {shown(item)}")
        try:
            weight = float(number)
        except ValueError:
            raise UsageError(
                f"distill: the weight of teacher '{model}' must be a number, got {shown(number)}"
            ) from None
        if not 0 < weight <= MAX_WEIGHT:
            raise UsageError(
                f"distill: the weight of teacher '{model}' must be positive and finite, at most {MAX_WEIGHT:g}, "
                f"got {shown(number)}"
            )
        if model.endswith("@"):
            raise UsageError(f"distill: teacher '{model}' must name a file or folder behind the @")
        if any(spec.model == model for spec in specs):
            raise UsageError(f"distill: teacher '{model}' is given twice; name it once with a weight, as {model}=2")
        specs.append(TeacherSpec(model, weight))
    return specs


def check_known(specs: list[TeacherSpec]) -> None:
    """Raise UsageError with the nearest name for a bare name that neither the registry nor a file carries.

    A callable's module is imported here, so that what is wrong with it is heard of before anything else is loaded.
    """
    from distilldepth.images.decode import path_exists
    from distilldepth.models.registry import teacher_names, what_else

    known = {ORACLE, *teacher_names()}
    for spec in specs:
        if spec.model.startswith(PYTHON_PREFIX):
            from distilldepth.models.families.python import find_callable

            find_callable(spec.model)
            continue
        refuse_url(spec.model.partition("@")[2] or spec.model)
        name = spec.model.partition("@")[0].partition(":")[0]
        bare = not any(mark in spec.model for mark in "/\\.@") and not path_exists(Path(spec.model))
        if bare and name not in known:
            raise UsageError(f"distill: unknown teacher '{spec.model}'{what_else(spec.model, known, 'teachers')}")
