"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distilldepth.capacity import check_memory, network_bytes
from distilldepth.device import resolve_device
from distilldepth.distill.agreement import AgreementLog, measure_agreement, some_of
from distilldepth.distill.batches import (
    CropDataset,
    StepBatches,
    crop_config,
    fingerprint,
    is_ended_process,
    loading,
    next_batch,
    process_ended,
    split_heldout,
)
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.ema import WeightAverage
from distilldepth.distill.guard import FULL, stop_if_not_finite, stopped, watch_gradients
from distilldepth.distill.judge import judge
from distilldepth.distill.labels import label_batch
from distilldepth.distill.objective import make_objective
from distilldepth.distill.optimiser import make_optimiser, set_learning_rate
from distilldepth.distill.processes import make_accelerator, seed_step, settle_precisions
from distilldepth.distill.progress import ProgressLine, Stopwatch
from distilldepth.distill.recipe import rate_warning, settle_optimiser, usual_rate
from distilldepth.distill.record.card import model_card
from distilldepth.distill.record.checkpoint import Trained, load_checkpoint, read_state, save_checkpoint
from distilldepth.distill.record.folder import METRICS, continue_folder, find_start, recorded_precisions, start_folder
from distilldepth.distill.record.log import RunLog, keep_lines_until
from distilldepth.distill.record.page import read_metrics, write_report
from distilldepth.distill.record.result import RunResult, run_facts
from distilldepth.distill.step import DistillationStep
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.folders import claim_folder
from distilldepth.images.sources import ImageSource, check_readable, open_source
from distilldepth.models import DepthModel, create_student, load_model, save_model
from distilldepth.models.preprocess import nearest_size
from distilldepth.ops.backend import available_backends
from distilldepth.signals import Interrupted, StopRequest
from distilldepth.teachers.pool import load_teachers
from distilldepth.teachers.spec import TeacherSpec, check_known, parse_teachers
from distilldepth.teachers.teacher import Teacher

_TOLD = 5
"""Unreadable images that are named while the run goes on."""


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
            return _distill(config, specs, folder, accelerator, precisions, command)
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


def _distill(
    config: DistillConfig,
    specs: list[TeacherSpec],
    folder: Path,
    accelerator: Accelerator,
    precisions: dict[str, str],
    command: str,
) -> RunResult:
    found = [find_start(config, folder, _tell) if accelerator.is_main_process else None]
    begin = broadcast_object_list(found)[0]
    device = accelerator.device
    check_capacity(config, device)
    torch.manual_seed(config.seed)

    source = open_source(
        config.images, size=config.scene_height_width, seed=config.seed, max_side=config.crop.max_side or None
    )
    state = _first_state(source, accelerator, precisions)
    if begin.checkpoint is not None:
        state = _resumed_state(begin.checkpoint, state)
    training, heldout = split_heldout(source, config.heldout, by_name=state["images"] is not None)
    check_readable(source)
    if len(training) < config.batch_size:
        raise ValueError(
            f"distill: batch_size {config.batch_size} is larger than the {len(training)} training images found; "
            f"use --batch-size {max(len(training), 1)} or add images"
        )
    teachers = load_teachers(
        specs,
        device=device,
        offline=config.offline,
        has_depth=source.has_depth,
        seed=config.seed,
        precision=precisions["teachers"],
    )
    if config.initial_weights == "pretrained":
        student = load_model(config.student, offline=config.offline)
    else:
        student = create_student(config.student, seed=config.seed, offline=config.offline)
    if student.info.quantity != "disparity":
        raise ValueError(
            f"distill: student '{config.student}' predicts {student.info.quantity}; a student must predict disparity"
        )
    if device.type == "cpu" or device.type == "cuda":
        student = student.to(memory_format=torch.channels_last)
    told, usual_lr = config, usual_rate(student)[0]
    config = dataclasses.replace(config, optimiser=settle_optimiser(config.optimiser, student))
    warning = rate_warning(config.optimiser, student)

    check_single_batch(student, config)

    stopwatch = Stopwatch(device)
    objective = make_objective(config, student, teachers.teachers, training)
    step_module = DistillationStep(student.train(), objective, stopwatch, compiled=config.compile)
    optimiser = make_optimiser(config, step_module, device, getattr(torch, precisions["muon"]))
    step_module, optimiser = accelerator.prepare(step_module, optimiser)
    bare = accelerator.unwrap_model(step_module)
    average = WeightAverage(bare.student, config.optimiser.ema) if config.optimiser.ema else None
    trained = Trained(bare, getattr(optimiser, "optimizer", optimiser), average, accelerator.scaler)

    start = 0
    if begin.checkpoint is not None:
        start = state.pop("step")
        _check_scores(begin.checkpoint, state["before"], teachers.teachers, len(heldout))
        load_checkpoint(trained, begin.checkpoint)
        state["changes"] += [f"step {start}: {change}" for change in begin.changes]
        if accelerator.is_main_process:
            continue_folder(told, folder)
    elif accelerator.is_main_process:
        # Only now, when everything that was asked for is there, is an earlier run replaced.
        start_folder(told, folder)
        state["before"] = measure_agreement(
            bare.student, teachers.teachers, heldout, config, folder / "samples" / "before"
        )
    before = state["before"]

    metrics_path = folder / METRICS
    if accelerator.is_main_process:
        keep_lines_until(metrics_path, start)
    batches = StepBatches(
        start * config.grad_accumulation,
        config.steps * config.grad_accumulation,
        config.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )
    dataset = CropDataset(training, crop_config(config), config.seed)
    progress = ProgressLine(config.steps, start, enabled=accelerator.is_main_process)
    if start:
        progress.write(f"resuming {folder} at step {start}")
        for change in begin.changes:
            progress.write(f"changed from step {start} on: {change}{_consequence(change)}")
    if available_backends("hybrid_norm", device.type) == ("reference",) and device.type in ("cpu", "cuda"):
        progress.write("the losses run in plain torch; `distilldepth doctor --build` compiles the fused ones")
    log = RunLog(metrics_path if accelerator.is_main_process else None, state, accelerator)
    stop = StopRequest()
    found_infinite = watch_gradients(accelerator, optimiser, device)
    if warning:
        progress.write(f"distilldepth: warning: {warning}")
    agreement = AgreementLog(folder if accelerator.is_main_process else None, start)
    if not start:
        agreement.add(0, before)
    # With a moving average it is the average that becomes the student.
    judged = bare.student if average is None else copy.deepcopy(bare.student)

    def save(done: int) -> None:
        checkpoints = folder / "checkpoints"
        if not save_checkpoint(accelerator, trained, checkpoints, done, log.state(), keep=config.keep_checkpoints):
            row = log.flush(done, optimiser.param_groups[-1]["lr"], stopwatch.shares()) if log.has_samples else {}
            what = "a weight or the optimiser's state is not finite"
            raise stopped(config, row | {"step": done}, what, log.bad_batch, dataset, accelerator, folder)

    unreadable: set[str] = set()
    step_module.train()
    pin = device.type == "cuda"
    with stop.listening(), loading(dataset, batches, config.workers, pin=pin) as loader:
        for step in range(start, config.steps):
            seed_step(config.seed, step, accelerator.process_index)
            set_learning_rate(optimiser, config, step)
            for part in range(config.grad_accumulation):
                with stopwatch("data", host=True):
                    batch = next_batch(loader)
                teacher = teachers.draw(step)
                with stopwatch("teacher"):
                    regions, label = label_batch(
                        batch, teacher, config.augment, device, features="features" in objective.needs
                    )
                with accelerator.accumulate(step_module):
                    outputs = step_module(regions, label)
                    with stopwatch("student"):
                        accelerator.backward(outputs.loss)
                    with stopwatch("optimiser"):
                        norm = None
                        if accelerator.sync_gradients:
                            largest = config.optimiser.clip_norm or float("inf")
                            norm = accelerator.clip_grad_norm_(step_module.parameters(), largest)
                            if found_infinite is not None:
                                found_infinite.copy_(~torch.isfinite(norm))
                        optimiser.step()
                        optimiser.zero_grad()
                log.add(outputs, norm, batch, teacher.name, step * config.grad_accumulation + part)
            done = step + 1
            if average is not None:
                with stopwatch("optimiser"):
                    average.update(bare.student, step)
            progress.advance()
            # Several processes must agree on where to end, which they can where the log waits for all of them.
            signum = stop.signum if accelerator.num_processes == 1 else 0
            if done % config.log_every == 0 or done == config.steps:
                row = log.flush(done, optimiser.param_groups[-1]["lr"], stopwatch.shares(), stop.signum)
                signum = log.signum
                progress.report(done, row["terms"], row["time"])
                for text in row.get("errors", ()):
                    if len(unreadable) < _TOLD and text not in unreadable:
                        unreadable.add(text)
                        progress.write(f"distilldepth: warning: {text}; another image takes its place")
                stop_if_not_finite(config, row, log.bad_batch, dataset, accelerator, folder)
            between = config.agreement_every and done % config.agreement_every == 0 and done < config.steps
            if between and accelerator.is_main_process and len(heldout):
                if average is not None:
                    judged.load_state_dict(average.state_dict())
                measured = measure_agreement(judged, teachers.teachers, some_of(heldout), config)
                progress.write(agreement.add(done, measured))
            if signum or done % config.checkpoint_every == 0 or done == config.steps:
                save(done)
            if signum and done < config.steps:
                raise Interrupted(signum)
    if state["unreadable"]:
        progress.write(f"unreadable images were replaced {state['unreadable']} times; metrics.jsonl names them")
    progress.close()

    if average is not None:
        bare.student.load_state_dict(average.state_dict())
    bare.student.eval()
    # What it was trained at is what it should be shown.
    side = max(min(config.height_width), student.preprocessing.multiple)
    student.preprocessing = dataclasses.replace(student.preprocessing, size=side)
    result = RunResult(folder, config.steps, before, before, log.state()["seconds"])
    if accelerator.is_main_process:
        result.after = measure_agreement(bare.student, teachers.teachers, heldout, config, folder / "samples" / "after")
        agreement.add(config.steps, result.after)
        result.curve = agreement.rows
        result.findings = judge(
            before, result.after, read_metrics(folder), steps=config.steps, settings=config.optimiser, usual_lr=usual_lr
        )
        facts = run_facts(config, bare.student, teachers.teachers, source.description, result, command, log.state())
        taught = f"distilled from {', '.join(teacher.name for teacher in teachers.teachers)}"
        bare.student.info = dataclasses.replace(bare.student.info, source=taught)
        save_model(bare.student.float(), folder / "student", card=model_card(facts), extra={"training": facts})
        write_report(folder, facts)
    accelerator.wait_for_everyone()
    return result


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _first_state(source: ImageSource, accelerator: Accelerator, precisions: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint keeps beside the tensors, at the start of a run."""
    return {
        "seconds": 0.0,
        "skipped": 0,
        "unreadable": 0,
        "before": {},
        "changes": [],
        "processes": accelerator.num_processes,
        "images": fingerprint(source),
        "precisions": precisions,
    }


def _resumed_state(checkpoint: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, with `step`; ValueError if images or processes are others than before."""
    state = read_state(checkpoint)
    for name in ("files", "scaler"):
        state.pop(name, None)
    processes, images = state["processes"], state["images"]
    if processes is not None and processes != fresh["processes"]:
        how = "without torchrun" if processes == 1 else f"with torchrun --nproc_per_node {processes}"
        raise ValueError(
            f"distill: {checkpoint} was trained by {processes} process{'es' * (processes > 1)} and this are "
            f"{fresh['processes']}, which would show it other images; continue {how}"
        )
    if images is not None and images != fresh["images"]:
        raise ValueError(
            f"distill: the images are not those that {checkpoint} was trained on ({images} then, {fresh['images']} "
            "now: some were added, removed or renamed); bring them back, or start another run with another --out"
        )
    return state


def _check_scores(checkpoint: Path, before: dict[str, Any], teachers: list[Teacher], heldout: int) -> None:
    """Raise DistillDepthError if the agreement from before the training cannot be compared with one from after it."""
    scores = before.get("teachers", {})
    for teacher in teachers if heldout else ():
        if not {"correlation", "ssi_error"} <= scores.get(teacher.name, {}).keys():
            raise DistillDepthError(
                f"distill: checkpoint {checkpoint} is damaged (it has no agreement with {teacher.name} from before the "
                "training); start with --overwrite"
            )


def _consequence(change: str) -> str:
    """What a change means that is not plain from its key."""
    return "; the learning rate now falls to its end at the new last step" if change.startswith("steps:") else ""


def check_capacity(config: DistillConfig, device: torch.device) -> None:
    """Raise UsageError for batches that cannot fit into the memory."""
    height, width = config.height_width
    window_height, window_width = config.patch_height_width
    windows = config.crop.patches if config.loss.local_global else 0
    # A window costs its picture as bytes and as numbers; the network of the student sees the region alone.
    needed = network_bytes(config.batch_size * height * width, training=True)
    needed += 15 * config.batch_size * windows * window_height * window_width
    check_memory(
        needed,
        f"distill: batches of {config.batch_size} x {height} x {width} pixels",
        "use a smaller --size or --batch-size",
        device=device,
        error=UsageError,
    )


@torch.no_grad()
def check_single_batch(student: DepthModel, config: DistillConfig) -> None:
    """Raise UsageError if batches of one image leave a batch normalisation a single value, which has no spread."""
    if config.batch_size > 1:
        return
    height, width = nearest_size(*config.height_width, student.preprocessing.multiple)
    trial = copy.deepcopy(student).train()  # A copy, since a pass changes running means.
    try:
        trial(torch.zeros(1, 3, height, width, device=next(trial.parameters()).device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"distill: one image of {height} x {width} is too little for {student.info.name} to normalise over; "
            "use --batch-size 2 or a larger --size"
        ) from error
