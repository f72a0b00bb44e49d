"""What a finished run leaves behind, and the facts that its card and its page tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

import distilldepth
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.judge import Finding
from distilldepth.distill.record.state import Agreement, AgreementRow, GroupFacts, RunState
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
    before: Agreement
    """Agreement on held-out images before training, by teacher."""
    after: Agreement
    """The same after training."""
    seconds: float
    """Wall-clock time of training, resumed parts included."""
    curve: list[AgreementRow] = field(default_factory=list)
    """Agreement in the course of the run: `step`, `images`, `teachers` with scores by name."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the student, the worst first; empty if it is as it should be."""
    quantity: str = "disparity"
    """What the student's numbers mean."""
    kind: str = "disparity"
    """What it is given, and what it gives: `disparity`, `metres`, `stereo` or `completion`; see `student_kind`."""
    uncertainty: bool = False
    """Whether it says how unsure it is."""
    labels: list[str] = field(default_factory=list)
    """Of each teacher that was not in memory: its set of labels, its licence, and the digests of both."""


@dataclass(frozen=True)
class TeacherFacts:
    """What is said of a teacher; see `ModelInfo`."""

    name: str
    weight: float
    quantity: str
    licence: str
    source: str
    notes: list[str]


@dataclass(frozen=True)
class RunFacts:
    """What the model card and the page say of a run, ready for JSON with `dataclasses.asdict`."""

    distilldepth: str
    """Version, as that of torch."""
    torch: str
    command: str
    student: str
    family: str
    quantity: str
    kind: str
    uncertainty: bool
    parameters: int
    initial_weights: str
    """Where the student's weights came from."""
    initial_licence: str
    teachers: list[TeacherFacts]
    images: str
    steps: int
    batch_size: int
    """Images per optimiser step and process."""
    size: str
    seconds: float
    skipped_samples: int
    unreadable_images: int
    before: Agreement
    after: Agreement
    agreement: list[AgreementRow]
    changes: list[str]
    findings: list[Finding]
    groups: list[GroupFacts]
    """Of the optimiser."""
    config: str
    """As a TOML file."""


def student_kind(student: DepthModel) -> str:
    """Return what a student is given, and what it gives, in a word."""
    if student.takes_points:
        return "completion"
    if student.info.quantity == "disparity":
        return "disparity"
    return "metres" if student.views == 1 else "stereo"


def how_to_use(
    kind: str,
    model: str | Path,
    image: str = "IMAGE",
    points: str = "POINTS",
    right: str = "RIGHT",
    *,
    uncertainty: bool = False,
) -> str:
    """Return the command line that runs a student of a kind; see `student_kind`.

    >>> how_to_use("disparity", "student")
    'distilldepth predict IMAGE -o depth.png --model student'
    """
    command, more = ("complete", f" --sparse {points}") if kind == "completion" else ("predict", "")
    if kind == "stereo":
        more = f" --right {right}"
    more += " --uncertainty" if uncertainty else ""
    return f"distilldepth {command} {image}{more} -o depth.png --model {model}"


def run_facts(
    config: DistillConfig,
    student: DepthModel,
    teachers: list[Teacher],
    images: str,
    result: RunResult,
    command: str,
    state: RunState,
    groups: list[GroupFacts],
) -> RunFacts:
    """Collect what the model card and the page say."""
    return RunFacts(
        distilldepth=distilldepth.__version__,
        torch=torch.__version__,
        command=command,
        student=student.info.name,
        family=student.info.family,
        quantity=student.info.quantity,
        kind=result.kind,
        uncertainty=result.uncertainty,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        initial_weights=student.info.source,
        initial_licence=student.info.licence,
        teachers=[
            TeacherFacts(
                teacher.name,
                teacher.weight,
                teacher.info.quantity,
                teacher.info.licence,
                teacher.info.source,
                list(teacher.info.notes),
            )
            for teacher in teachers
        ],
        images=images,
        steps=result.steps,
        batch_size=config.batch_size * config.grad_accumulation,
        size=config.size,
        seconds=round(result.seconds, 1),
        skipped_samples=state.skipped,
        unreadable_images=state.unreadable,
        before=result.before,
        after=result.after,
        agreement=result.curve,
        changes=state.changes,
        findings=result.findings,
        groups=groups,
        config=to_toml(config),
    )
