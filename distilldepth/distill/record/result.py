"""What a finished run leaves behind, and the facts that its card and its page tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import distilldepth
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.judge import Finding, as_dicts
from distilldepth.models import DepthModel
from distilldepth.settings import to_toml
from distilldepth.teachers.teacher import Teacher


@dataclass
class RunResult:
    """What a finished run leaves behind."""

    folder: Path
    """The run folder."""
    steps: int
    """Steps that the student was trained for."""
    before: dict[str, Any]
    """Agreement on held-out images before training, by teacher."""
    after: dict[str, Any]
    """The same after training."""
    seconds: float
    """Wall-clock time of training, resumed parts included."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Agreement in the course of the run: `step`, `images`, `teachers` with scores by name."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the student, the worst first; empty if it is as it should be."""


def run_facts(
    config: DistillConfig,
    student: DepthModel,
    teachers: list[Teacher],
    images: str,
    result: RunResult,
    command: str,
    state: dict[str, Any],
) -> dict[str, Any]:
    """Collect what the model card and the report say, as plain data."""
    return {
        "distilldepth": distilldepth.__version__,
        "torch": torch.__version__,
        "command": command,
        "student": student.info.name,
        "family": student.info.family,
        "quantity": student.info.quantity,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "initial_weights": student.info.source,
        "initial_licence": student.info.licence,
        "teachers": [
            {
                "name": teacher.name,
                "weight": teacher.weight,
                "quantity": teacher.info.quantity,
                "licence": teacher.info.licence,
                "source": teacher.info.source,
                "notes": list(teacher.info.notes),
            }
            for teacher in teachers
        ],
        "images": images,
        "steps": result.steps,
        "batch_size": config.batch_size * config.grad_accumulation,
        "size": config.size,
        "seconds": round(result.seconds, 1),
        "skipped_samples": state["skipped"],
        "unreadable_images": state["unreadable"],
        "before": result.before,
        "after": result.after,
        "agreement": result.curve,
        "changes": state["changes"],
        "findings": as_dicts(result.findings),
        "config": to_toml(config),
    }
