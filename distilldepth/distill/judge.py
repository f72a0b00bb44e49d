"""What is wrong with a student, by its agreement with the teachers and the size of its output, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distilldepth.distill.config import OptimiserSection
from distilldepth.distill.record.state import Agreement, MetricsRow

_LOSS_OF_CORRELATION = 0.02
_GAIN_OF_ERROR = 0.05
"""Changes smaller than these two are not called worse."""
_GROWTH_OF_ABS_REL = 1.05
"""The same of the error of a student of metres."""
_HARDLY = 0.3
"""Correlation below which a student is said to have learned hardly anything."""
_DRIFT = 10.0
"""The output's spread may change by this factor in the second half of a run."""
_FEW_STEPS = 100


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to change."""

    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.advice}"


def judge(
    before: Agreement,
    after: Agreement,
    rows: Sequence[MetricsRow],
    *,
    steps: int,
    settings: OptimiserSection,
    usual_lr: float,
    in_metres: bool = False,
) -> list[Finding]:
    """Return what is wrong with a trained student, the worst first; nothing for one that is as it should be.

    Args:
        before, after: agreement as `measure_agreement` returns it.
        rows: lines of metrics.jsonl, oldest first.
        steps: how many steps it was trained.
        settings: the optimiser's settings, settled.
        usual_lr: the learning rate that suits this student.
        in_metres: whether it predicts metres, so that its error against true depth, if that is known, must not grow.
    """
    advice = _advice(steps, settings, usual_lr)
    findings = []
    images, constant = after.get("images", 0), after.get("constant", 0)
    if constant:
        what = "every held-out image" if constant == images else f"{constant} of {images} held-out images"
        smaller = f"start again with a smaller learning rate, --set optimiser.lr={min(settings.lr, usual_lr) / 5:g}"
        findings.append(Finding(f"the student predicts a constant map for {what}", smaller))
    for name, scores in after.get("teachers", {}).items():
        findings += _against_teacher(name, before.get("teachers", {}).get(name), scores, advice)
    if in_metres and "depth" in after:
        first, last = before["depth"]["abs_rel"], after["depth"]["abs_rel"]
        if not last <= first * _GROWTH_OF_ABS_REL:
            findings.append(
                Finding(f"the student is further from the truth than before (AbsRel {first:.3f} -> {last:.3f})", advice)
            )
    drift = _drift(rows)
    if drift is not None:
        findings.append(
            Finding(
                f"the spread of the student's output changed by a factor of {drift:.0f} in the second half of the run",
                f"raise loss.anchor or lower the learning rate, --set optimiser.lr={settings.lr / 3:g}",
            )
        )
    return findings


def _against_teacher(name: str, before: dict[str, float] | None, after: dict[str, float], advice: str) -> list[Finding]:
    correlation = after["correlation"]
    found = []
    if not math.isfinite(correlation):
        return [Finding(f"the agreement with {name} is not a number", advice)]
    if correlation < 0:
        found.append(Finding(f"the student calls near what {name} calls far (correlation {correlation:.2f})", advice))
    elif before is not None and (
        correlation < before["correlation"] - _LOSS_OF_CORRELATION
        or after["ssi_error"] > before["ssi_error"] + _GAIN_OF_ERROR
    ):
        change = (
            f"correlation {before['correlation']:.2f} -> {correlation:.2f}, "
            f"SSI error {before['ssi_error']:.2f} -> {after['ssi_error']:.2f}"
        )
        found.append(Finding(f"the student agrees less with {name} than before the training ({change})", advice))
    elif correlation < _HARDLY:
        found.append(Finding(f"the student hardly agrees with {name} (correlation {correlation:.2f})", advice))
    return found


def _advice(steps: int, settings: OptimiserSection, usual_lr: float) -> str:
    """What to change, the likeliest cause first."""
    slowest = min(settings.lr, settings.lr * settings.encoder_lr_share) if settings.encoder_lr_share else settings.lr
    if slowest < usual_lr / 3:
        if settings.lr >= usual_lr / 3:
            return "the encoder hardly moves; try --set optimiser.encoder_lr_share=1"
        return f"the learning rate is small for this student; try --set optimiser.lr={usual_lr:g}"
    if settings.lr > usual_lr * 3:
        return f"the learning rate is large for this student; try --set optimiser.lr={usual_lr:g}"
    if steps < _FEW_STEPS:
        return f"{steps} step{'s' * (steps != 1)} are few; give it more with --steps"
    return "train longer (--steps), give more images, or look at the teachers' maps in the report"


def _drift(rows: Sequence[MetricsRow]) -> float | None:
    """The factor by which the output's spread changed in the second half of a run, if it is large."""
    spreads = [row["output_spread"] for row in rows if row.get("output_spread", 0) > 0]
    if len(spreads) < 4:
        return None
    ratio = spreads[-1] / spreads[len(spreads) // 2]
    factor = max(ratio, 1 / ratio)
    return factor if factor > _DRIFT else None
