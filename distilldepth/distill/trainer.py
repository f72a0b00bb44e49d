"""The training loop, top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from distilldepth.capacity import is_out_of_memory
from distilldepth.device import resolve_device
from distilldepth.distill.agreement import BETWEEN, has_heldout, measure_agreement
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.finish import finish
from distilldepth.distill.guard import FULL, stop_if_not_finite, stop_if_unreadable, stopped
from distilldepth.distill.labels import label_batch
from distilldepth.distill.micro_batch import out_of_memory
from distilldepth.distill.optimiser import rates, set_learning_rate
from distilldepth.distill.peers import (
    ECHO_S,
    StopVote,
    end_in_peace,
    is_lost_peer,
    last_checkpoint,
    lost_peer,
    never_stuck,
)
from distilldepth.distill.prepare import Run, prepare, settle_micro_batch, whole_student
from distilldepth.distill.processes import make_accelerator, seed_step, settle_precisions
from distilldepth.distill.record.checkpoint import save_checkpoint
from distilldepth.distill.record.folder import recorded_precisions
from distilldepth.distill.record.result import RunResult
from distilldepth.distill.sharding import whole
from distilldepth.distill.step import StepOutputs
from distilldepth.distill.trackers import check_trackers
from distilldepth.errors import DistillDepthError
from distilldepth.folders import claim_folder
from distilldepth.images.batches import is_ended_process, next_batch, process_ended
from distilldepth.images.crops import Regions
from distilldepth.machine import keep_freed_memory
from distilldepth.signals import Interrupted, StopRequest
from distilldepth.teachers.spec import check_known
from distilldepth.teachers.teacher import Teacher


def distill(config: DistillConfig, *, command: str = "") -> RunResult:
    """Train a student from its teachers as the configuration says, in `config.out`.

    Args:
        config: a validated configuration.
        command: the command line, for the model card.

    Returns:
        Where the student is and how well it agrees with its teachers.

    Raises:
        ValueError: the configuration makes no sense for these images, teachers or student.
        DistillDepthError: a checkpoint, an image source or a model cannot be used, or too many samples are not finite.
    """
    specs = config.teacher_specs
    check_known(specs)
    check_trackers(config.log)
    folder = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    precisions = settle_precisions(config, resolve_device(config.device), recorded_precisions(config, folder))
    accelerator = make_accelerator(config, precisions["student"])
    try:
        with claim_folder(folder, "distill") if accelerator.is_main_process else nullcontext():
            run = prepare(config, specs, folder, accelerator, precisions)
            _train(run)
            return finish(run, command)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, error) from error
        if isinstance(error, RuntimeError) and is_ended_process(error):
            raise process_ended(error, "distill", last_checkpoint(config)) from error
        if isinstance(error, RuntimeError) and is_lost_peer(error):
            raise lost_peer(config, error) from error
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DistillDepthError(
            f"distill: {folder} cannot be written ({error.strerror}); make room, then continue with --resume auto"
        ) from error


def _train(run: Run) -> None:
    learner, processes = run.learner, run.accelerator.num_processes
    learner.module.train()
    pin = run.accelerator.device.type == "cuda"
    stop = StopRequest(ECHO_S if processes > 1 else 0.0)
    watch = never_stuck(lambda: last_checkpoint(run.config)) if processes > 1 else nullcontext()
    first, behind = (step * run.config.grad_accumulation for step in (run.start, run.config.steps))
    with watch, stop.listening(), run.feed.open(first, behind, run.config.workers, pin=pin) as loader:
        try:
            settle_micro_batch(run)
            _steps(run, loader, stop)
        except (RuntimeError, Interrupted) as error:
            if processes > 1 and (isinstance(error, Interrupted) or is_lost_peer(error)):
                end_in_peace()
            raise


def _steps(run: Run, loader: Iterator[Regions], stop: StopRequest) -> None:
    config, learner, vote = run.config, run.learner, StopVote(run.accelerator.num_processes)
    average = learner.trained.average
    for step in range(run.start, config.steps):
        set_learning_rate(learner.optimiser, config, step)
        _learn(run, loader, step)
        done = step + 1
        if average is not None:
            with learner.stopwatch("optimiser"):
                average.update(learner.student, step)
        run.progress.advance()
        signum = vote.agree(stop.signum)
        if done % config.log_every == 0 or done == config.steps:
            _report(run, done)
        if config.agreement_every and done % config.agreement_every == 0 and done < config.steps:
            _measure(run, done)
        if signum or done % config.checkpoint_every == 0 or done == config.steps:
            _save(run, done)
        if signum and done < config.steps:
            raise Interrupted(signum)
    vote.close()


def _learn(run: Run, loader: Iterator[Regions], step: int) -> None:
    """One step of the optimiser; repeated, with fewer images at once, where memory runs out."""
    config, learner = run.config, run.learner
    with learner.stopwatch("data", host=True):
        batches = _read(loader, config)
    teacher, done = run.teachers.draw(step), list[StepOutputs]()
    while not done:
        seed_step(config.seed, step, run.accelerator.process_index)
        run.accelerator.step = 0  # A repeated step counts its batches anew.
        with run.micro_batch.attempt(step):
            done = [_gradient(run, batch, teacher) for batch in batches]
    with learner.stopwatch("optimiser"):
        largest = config.optimiser.clip_norm or float("inf")
        norm = whole(run.accelerator.clip_grad_norm_(learner.module.parameters(), largest))
        if learner.found_infinite is not None:
            learner.found_infinite.copy_(~torch.isfinite(norm))
        learner.optimiser.step()
        learner.optimiser.zero_grad()
    for part, (outputs, batch) in enumerate(zip(done, batches, strict=True)):
        last = part == len(done) - 1
        run.log.add(outputs, norm if last else None, batch, teacher.name, step * config.grad_accumulation + part)


def _read(loader: Iterator[Regions], config: DistillConfig) -> list[Regions]:
    """The batches of a step; where they can no longer be had, the error says how to go on once they can."""
    try:
        return [next_batch(loader, "distill") for _ in range(config.grad_accumulation)]
    except DistillDepthError as error:
        raise DistillDepthError(f"{error}; {last_checkpoint(config)}") from error


def _gradient(run: Run, batch: Regions, teacher: Teacher) -> StepOutputs:
    """Add the gradient of one batch: teacher, student with the objective."""
    accelerator, learner = run.accelerator, run.learner
    stopwatch, settings = learner.stopwatch, run.config.augment
    with stopwatch("teacher"), teacher.used():
        regions, label = label_batch(
            batch, teacher, settings, accelerator.device, features=learner.features, guides=run.guides
        )
    with accelerator.accumulate(learner.module):
        outputs: StepOutputs = learner.module(regions, label)
        with stopwatch("student"):
            accelerator.backward(outputs.loss)
    return replace(outputs, loss=outputs.loss.detach())


def _report(run: Run, done: int) -> None:
    """Write a line of the log, show it, and end a run whose numbers are not finite."""
    row = run.log.flush(done, rates(run.learner.optimiser), run.learner.stopwatch.shares())
    run.progress.report(done, row["terms"], row["time"])
    run.progress.warn_of_unreadable(row.get("errors", []))
    if run.feed.photographs is None:
        config = run.config
        each = config.batch_size * config.grad_accumulation * run.accelerator.num_processes
        stop_if_unreadable(config, run.log.state().unreadable, done * each, row)
    stop_if_not_finite(run.config, row, run.log.bad_batch, run.feed, run.accelerator, run.folder)


def _measure(run: Run, done: int) -> None:
    """Measure the agreement in the middle of the run."""
    if not has_heldout(run.teachers.teachers, run.images.heldout):
        return
    student = whole_student(run)
    if not run.accelerator.is_main_process:
        return
    teachers, heldout = run.teachers.teachers, run.images.heldout
    measured = measure_agreement(student, teachers, heldout, run.config, most=BETWEEN, guides=run.guides)
    run.progress.write(run.agreement.add(done, measured))


def _save(run: Run, done: int) -> None:
    """Write a checkpoint; numbers that are not finite end the run instead."""
    config, log = run.config, run.log
    checkpoints = run.folder / "checkpoints"
    state = replace(log.state(), micro_batch=run.micro_batch.kept)
    if save_checkpoint(run.accelerator, run.learner.trained, checkpoints, done, state, keep=config.keep_checkpoints):
        return
    if log.has_samples:
        log.flush(done, rates(run.learner.optimiser), run.learner.stopwatch.shares())
    what = "a weight or the optimiser's state is not finite"
    raise stopped(run.config, done, what, log.bad_batch, run.feed, run.accelerator, run.folder)
