"""What happens after the last step: the student is judged and saved, with its card and the page of its run."""

from __future__ import annotations

import dataclasses

from distilldepth.distill.agreement import measure_agreement
from distilldepth.distill.judge import judge
from distilldepth.distill.optimiser import describe_groups
from distilldepth.distill.prepare import Run, whole_student
from distilldepth.distill.recipe import usual_rate
from distilldepth.distill.record.card import model_card
from distilldepth.distill.record.page import read_metrics, write_report
from distilldepth.distill.record.result import RunResult, run_facts, student_kind
from distilldepth.models import save_model
from distilldepth.teachers.stored import AbsentTeacher
from distilldepth.words import LOG_VARIANCE


def finish(run: Run, command: str) -> RunResult:
    """Return what a trained run comes to, after the main process has written it into the folder.

    Args:
        run: after its last step.
        command: the command line, for the model card.
    """
    unreadable = run.log.state().unreadable
    if unreadable:
        kept = any(isinstance(teacher, AbsentTeacher) for teacher in run.teachers.teachers)
        what = "unreadable samples were left out" if kept else "unreadable images were replaced"
        run.progress.write(f"{what} {unreadable} times; metrics.jsonl names them")
    run.progress.close()
    student = whole_student(run).eval()
    # What it was trained at is what it should be shown.
    side = max(min(run.config.height_width), student.preprocessing.multiple)
    student.preprocessing = dataclasses.replace(student.preprocessing, size=side)
    result = RunResult(run.folder, run.config.steps, run.before, run.before, run.log.state().seconds)
    result.quantity, result.kind = student.info.quantity, student_kind(student)
    result.uncertainty = LOG_VARIANCE in student.extra_maps
    result.labels = [
        f"{'; '.join(teacher.info.notes)}; licence {teacher.info.licence}"
        for teacher in run.teachers.teachers
        if isinstance(teacher, AbsentTeacher)
    ]
    if run.accelerator.is_main_process:
        _judge(run, result)
        _save(run, result, command)
    run.trackers.finish()
    run.accelerator.wait_for_everyone()
    return result


def _judge(run: Run, result: RunResult) -> None:
    """Measure the agreement at the end, and what is wrong with the student by it."""
    config = run.config
    pictures = run.folder / "samples" / "after"
    result.after = measure_agreement(
        run.judged, run.teachers.teachers, run.images.heldout, config, pictures, guides=run.guides
    )
    run.agreement.add(config.steps, result.after)
    result.curve = run.agreement.rows
    result.findings = judge(
        result.before,
        result.after,
        read_metrics(run.folder),
        steps=config.steps,
        settings=config.optimiser,
        usual_lr=usual_rate(run.judged)[0],
        in_metres=result.quantity == "metric_depth",
    )


def _save(run: Run, result: RunResult, command: str) -> None:
    student, teachers = run.judged, run.teachers.teachers
    groups = describe_groups(run.learner.trained.optimiser, run.config)
    facts = run_facts(run.config, student, teachers, run.images.description, result, command, run.log.state(), groups)
    taught = f"distilled from {', '.join(teacher.name for teacher in teachers)}"
    student.info = dataclasses.replace(student.info, source=taught)
    save_model(
        student.float(), run.folder / "student", card=model_card(facts), extra={"training": dataclasses.asdict(facts)}
    )
    write_report(run.folder, facts)
