"""The facts of a finished run, and the model card that tells them."""

from __future__ import annotations

from distilldepth.distill.agreement import replaced_note
from distilldepth.distill.record.result import RunFacts, how_to_use

_KINDS = {
    "disparity": ("A monocular depth estimator", "up to an unknown scale and shift,\nlarger = nearer."),
    "metres": ("A monocular depth estimator", "metres, of the cameras\nthat it was trained with."),
    "stereo": ("A network of both views of a stereo pair", "metres, of the\ncameras that it was trained with."),
    "completion": (
        "A network that completes sparse depth",
        "metres, from a photograph,\npoints of known depth, and the map of a guide that is aligned to them.",
    ),
}
"""What a student is, and what its numbers are, by kind."""


def model_card(facts: RunFacts) -> str:
    """Return the README.md of a student."""
    teachers = "\n".join(
        f"| {t.name} | {t.weight:g} | {t.quantity} | {t.licence} | {t.source} |" for t in facts.teachers
    )
    notes = "".join(f"- {note}\n" for teacher in facts.teachers for note in teacher.notes)
    changes = "".join(f"- Changed on the way, {change}\n" for change in facts.changes)
    wrong = "".join(f"> **Do not use this student as it is.** {f.problem}; {f.advice}.\n\n" for f in facts.findings)
    kind, meaning = _KINDS[facts.kind]
    command = how_to_use(
        facts.kind, "PATH_OF_THIS_FOLDER", "photo.jpg", "points.png", "right.jpg", uncertainty=facts.uncertainty
    )
    return f"""# {facts.student}

{kind} ({facts.family}, {facts.parameters / 1e6:.2f} M parameters) distilled with
distilldepth {facts.distilldepth}. It predicts **{facts.quantity}**: {meaning}

{wrong}    {command}

## Training
- Teachers:

| name | weight | quantity | licence | source |
|---|---|---|---|---|
{teachers}

{notes}- Images: {facts.images}
- Initial weights: {facts.initial_weights} ({facts.initial_licence})
- {facts.steps} steps of {facts.batch_size} images at {facts.size}, {facts.seconds / 60:.1f} minutes
{changes}- Command: `{facts.command or "(called from Python)"}`

## Agreement on held-out images
{agreement_table(facts)}

## Licence
A student learns from its teachers' outputs and its initial weights. Their licences are listed above; whether they
bind the student is for you to judge, and a non-commercial teacher is a reason to ask.
"""


def _fit(facts: RunFacts) -> str:
    return "least squares in disparity" if facts.quantity == "disparity" else "in metres, without a fit"


def agreement_table(facts: RunFacts) -> str:
    """Return a Markdown table of the agreement before and after."""
    before, after = facts.before, facts.after
    if not after.get("images"):
        return "No images were held out."
    lines = [
        f"{after['images']} images{replaced_note(after)}. Correlation of the disparity maps (1 is best) and scale- and "
        "shift-invariant error (0 is best), per image, averaged.",
        "",
        "| against | correlation before | after | SSI error before | after |",
        "|---|---|---|---|---|",
    ]
    for name, scores in after["teachers"].items():
        first = before["teachers"][name]
        lines.append(
            f"| {name} | {first['correlation']:.3f} | {scores['correlation']:.3f} "
            f"| {first['ssi_error']:.3f} | {scores['ssi_error']:.3f} |"
        )
    if "depth" in after:
        lines += [
            "",
            f"Against true depth, {_fit(facts)}: AbsRel {before['depth']['abs_rel']:.3f} before, "
            f"{after['depth']['abs_rel']:.3f} after; delta1 {before['depth']['delta1']:.3f} before, "
            f"{after['depth']['delta1']:.3f} after.",
        ]
    return "\n".join(lines)
