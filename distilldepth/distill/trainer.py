"""The training loop, top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from distilldepth.device import resolve_device
from distilldepth.distill.agreement import measure_agreement, some_of
from distilldepth.distill.batches import is_ended_process, loading, next_batch, process_ended
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.finish import finish
from distilldepth.distill.guard import FULL, stop_if_not_finite, stopped
from distilldepth.distill.labels import label_batch
from distilldepth.distill.optimiser import set_learning_rate
from distilldepth.distill.prepare import Run, prepare, step_batches
from distilldepth.distill.processes import make_accelerator, seed_step, settle_precisions
from distilldepth.distill.record.checkpoint import save_checkpoint
from distilldepth.distill.record.folder import recorded_precisions
from distilldepth.distill.record.result import RunResult
from distilldepth.distill.step import StepOutputs
from distilldepth.errors import DistillDepthError
from distilldepth.folders import claim_folder
from distilldepth.images.crops import Regions
from distilldepth.signals import Interrupted, StopRequest
from distilldepth.teachers.spec import check_known, parse_teachers


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
    specs = parse_teachers(config.teachers)
    check_known(specs)
    folder = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    precisions = settle_precisions(config, resolve_device(config.device), recorded_precisions(config, folder))
    accelerator = make_accelerator(config, precisions["student"])
    try:
        with claim_folder(folder, "distill") if accelerator.is_main_process else nullcontext():
            run = prepare(config, specs, folder, accelerator, precisions)
            _train(run)
            return finish(run, command)
    except RuntimeError as error:
        if not is_ended_process(error):
            raise
        raise process_ended(error) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DistillDepthError(
            f"distill: {folder} cannot be written ({error.strerror}); make room, then continue with --resume auto"
        ) from error


def _train(run: Run) -> None:
    config, learner, stop = run.config, run.learner, StopRequest()
    average = learner.trained.average
    learner.module.train()
    pin = run.accelerator.device.type == "cuda"
    with stop.listening(), loading(run.dataset, step_batches(run), config.workers, pin=pin) as loader:
        for step in range(run.start, config.steps):
            seed_step(config.seed, step, run.accelerator.process_index)
            set_learning_rate(learner.optimiser, config, step)
            for part in range(config.grad_accumulation):
                _learn(run, loader, step, part)
            done = step + 1
            if average is not None:
                with learner.stopwatch("optimiser"):
                    average.update(learner.student, step)
            run.progress.advance()
            # Several processes must agree on where to end, which they can where the log waits for all of them.
            signum = stop.signum if run.accelerator.num_processes == 1 else 0
            if done % config.log_every == 0 or done == config.steps:
                signum = _report(run, done, stop.signum)
            if config.agreement_every and done % config.agreement_every == 0 and done < config.steps:
                _measure(run, done)
            if signum or done % config.checkpoint_every == 0 or done == config.steps:
                _save(run, done)
            if signum and done < config.steps:
                raise Interrupted(signum)


def _learn(run: Run, loader: Iterator[Regions], step: int, part: int) -> None:
    """One batch: data, teacher, student with the objective, and with the last part of a step the optimiser."""
    config, accelerator, learner = run.config, run.accelerator, run.learner
    stopwatch = learner.stopwatch
    with stopwatch("data", host=True):
        batch = next_batch(loader)
    teacher = run.teachers.draw(step)
    with stopwatch("teacher"):
        regions, label = label_batch(batch, teacher, config.augment, accelerator.device, features=learner.features)
    with accelerator.accumulate(learner.module):
        outputs: StepOutputs = learner.module(regions, label)
        with stopwatch("student"):
            accelerator.backward(outputs.loss)
        with stopwatch("optimiser"):
            norm = None
            if accelerator.sync_gradients:
                largest = config.optimiser.clip_norm or float("inf")
                norm = accelerator.clip_grad_norm_(learner.module.parameters(), largest)
                if learner.found_infinite is not None:
                    learner.found_infinite.copy_(~torch.isfinite(norm))
            learner.optimiser.step()
            learner.optimiser.zero_grad()
    run.log.add(outputs, norm, batch, teacher.name, step * config.grad_accumulation + part)


def _report(run: Run, done: int, signum: int) -> int:
    """Write a line of the log, show it, and end a run whose numbers are not finite.

    Returns:
        The signal that asked any process to end, 0 if none did.
    """
    row = run.log.flush(done, run.learner.optimiser.param_groups[-1]["lr"], run.learner.stopwatch.shares(), signum)
    run.progress.report(done, row["terms"], row["time"])
    run.progress.warn_of_unreadable(row.get("errors", []))
    stop_if_not_finite(run.config, row, run.log.bad_batch, run.dataset, run.accelerator, run.folder)
    return run.log.signum


def _measure(run: Run, done: int) -> None:
    """Measure the agreement in the middle of the run."""
    if not (run.accelerator.is_main_process and len(run.images.heldout)):
        return
    if run.learner.trained.average is not None:
        run.judged.load_state_dict(run.learner.trained.average.state_dict())
    measured = measure_agreement(run.judged, run.teachers.teachers, some_of(run.images.heldout), run.config)
    run.progress.write(run.agreement.add(done, measured))


def _save(run: Run, done: int) -> None:
    """Write a checkpoint; numbers that are not finite end the run instead."""
    config, log = run.config, run.log
    checkpoints = run.folder / "checkpoints"
    if save_checkpoint(
        run.accelerator, run.learner.trained, checkpoints, done, log.state(), keep=config.keep_checkpoints
    ):
        return
    if log.has_samples:
        log.flush(done, run.learner.optimiser.param_groups[-1]["lr"], run.learner.stopwatch.shares())
    what = "a weight or the optimiser's state is not finite"
    raise stopped(run.config, done, what, log.bad_batch, run.dataset, run.accelerator, run.folder)
