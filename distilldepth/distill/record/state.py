"""What is known of a run beside its tensors, as its folder keeps it: the state, the agreement, a line of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict


class Agreement(TypedDict, total=False):
    """How well a student agrees with its teachers on held-out images; see `measure_agreement`."""

    images: int
    replaced: int
    constant: int
    teachers: dict[str, dict[str, float]]
    """By teacher: `correlation` and `ssi_error`."""
    depth: dict[str, float]
    """`abs_rel` and `delta1`, where the truth is known."""


class AgreementRow(TypedDict):
    """A line of `agreement.jsonl`."""

    step: int
    images: int
    teachers: dict[str, dict[str, float]]


class MetricsRow(TypedDict, total=False):
    """A line of `metrics.jsonl`: what happened since the one before it, of all processes together."""

    step: int
    loss: float
    terms: dict[str, float]
    """Means of the unweighted terms, each over the batches that fed it."""
    grad_norm: float
    output_center: float
    output_spread: float
    output_peak: float
    lr: float
    """Of the decoder and of everything that is not an encoder."""
    rates: dict[str, float]
    """Learning rate of each part of the student: `encoder`, `decoder`."""
    memory: int
    """Most bytes that any process had in use since it began: of the device on CUDA, of the process elsewhere."""
    samples: int
    skipped: int
    unreadable: int
    images_per_second: float
    time: dict[str, float]
    """Share of each phase."""
    teachers: dict[str, int]
    """How often each was drawn."""
    seconds: float
    errors: list[str]


@dataclass(frozen=True)
class GroupFacts:
    """What is said of a group of parameters that the optimiser treats alike."""

    part: str
    """`encoder` or `decoder`, which stands for everything else too."""
    rule: str
    """`adamw` or `muon`."""
    tensors: int
    parameters: int
    lr: float
    """The largest of the run."""
    weight_decay: float


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps beside the tensors; the log of a run is what brings it forward."""

    seconds: float = 0.0
    """Wall-clock time of training."""
    skipped: int = 0
    """Samples that were not finite."""
    unreadable: int = 0
    """Images that another took the place of."""
    before: Agreement = field(default_factory=Agreement)
    """From before the training."""
    changes: list[str] = field(default_factory=list)
    """What was trained differently after it was resumed."""
    processes: int | None = None
    """How many train together; None if it was not kept."""
    images: str | None = None
    """Fingerprint of the images, likewise."""
    labels: str = ""
    """Identity of the sets of labels; empty if there are none."""
    precisions: dict[str, str] = field(default_factory=dict)
    """Of student, teachers and Muon's iteration."""
    teachers: str = ""
    """Digests of the teachers in memory; empty if they were not kept."""
    step: int = 0
    """Steps that are done."""
    micro_batch: int = 0
    """Images that go through the student at once, 0 for all of a batch."""
