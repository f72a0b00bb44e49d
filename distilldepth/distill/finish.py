"""What happens after the last step: the student is judged and saved, with its card and the page of its run."""

from __future__ import annotations

import dataclasses

from distilldepth.distill.agreement import measure_agreement
from distilldepth.distill.judge import judge
from distilldepth.distill.prepare import Run
from distilldepth.distill.recipe import usual_rate
from distilldepth.distill.record.card import model_card
from distilldepth.distill.record.page import read_metrics, write_report
from distilldepth.distill.record.result import RunResult, run_facts
from distilldepth.models import save_model


def finish(run: Run, command: str) -> RunResult:
    """Return what a trained run comes to, after the main process has written it into the folder.

    Args:
        run: after its last step.
        command: the command line, for the model card.
    """
    unreadable = run.log.state().unreadable
    if unreadable:
        run.progress.write(f"unreadable images were replaced {unreadable} times; metrics.jsonl names them")
    run.progress.close()
    student, average = run.learner.student, run.learner.trained.average
    if average is not None:
        student.load_state_dict(average.state_dict())
    student.eval()
    # What it was trained at is what it should be shown.
    side = max(min(run.config.height_width), student.preprocessing.multiple)
    student.preprocessing = dataclasses.replace(student.preprocessing, size=side)
    result = RunResult(run.folder, run.config.steps, run.before, run.before, run.log.state().seconds)
    if run.accelerator.is_main_process:
        _judge(run, result)
        _save(run, result, command)
    run.accelerator.wait_for_everyone()
    return result


def _judge(run: Run, result: RunResult) -> None:
    """Measure the agreement at the end, and what is wrong with the student by it."""
    config = run.config
    pictures = run.folder / "samples" / "after"
    result.after = measure_agreement(run.learner.student, run.teachers.teachers, run.images.heldout, config, pictures)
    run.agreement.add(config.steps, result.after)
    result.curve = run.agreement.rows
    result.findings = judge(
        result.before,
        result.after,
        read_metrics(run.folder),
        steps=config.steps,
        settings=config.optimiser,
        usual_lr=usual_rate(run.learner.student)[0],
    )


def _save(run: Run, result: RunResult, command: str) -> None:
    student, teachers = run.learner.student, run.teachers.teachers
    facts = run_facts(run.config, student, teachers, run.images.description, result, command, run.log.state())
    taught = f"distilled from {', '.join(teacher.name for teacher in teachers)}"
    student.info = dataclasses.replace(student.info, source=taught)
    save_model(
        student.float(), run.folder / "student", card=model_card(facts), extra={"training": dataclasses.asdict(facts)}
    )
    write_report(run.folder, facts)
