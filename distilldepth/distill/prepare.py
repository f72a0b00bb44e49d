"""What is built before the first step of a run, and what is taken over from a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from distilldepth.capacity import check_memory, network_bytes
from distilldepth.distill.agreement import AgreementLog, measure_agreement
from distilldepth.distill.batches import CropDataset, SourceView, StepBatches, crop_config, fingerprint, split_heldout
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.ema import WeightAverage
from distilldepth.distill.guard import watch_gradients
from distilldepth.distill.objective import DistillationObjective, make_objective
from distilldepth.distill.optimiser import make_optimiser
from distilldepth.distill.progress import ProgressLine, Stopwatch
from distilldepth.distill.recipe import rate_warning, settle_optimiser
from distilldepth.distill.record.checkpoint import Trained, load_checkpoint, read_state
from distilldepth.distill.record.folder import METRICS, Start, continue_folder, find_start, start_folder
from distilldepth.distill.record.log import RunLog, keep_lines_until
from distilldepth.distill.record.state import Agreement, RunState
from distilldepth.distill.step import DistillationStep
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.sources import check_readable, open_source
from distilldepth.models import DepthModel, create_student, load_model
from distilldepth.models.preprocess import nearest_size
from distilldepth.ops.backend import available_backends
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.spec import TeacherSpec
from distilldepth.teachers.teacher import Teacher


@dataclass
class Images:
    """What `--images` names, divided."""

    description: str
    """One line that says which they are."""
    has_depth: bool
    training: SourceView
    heldout: SourceView


@dataclass
class Learner:
    """Student and objective, and what trains them."""

    module: nn.Module
    """Both, in the wrapper of several processes if there are any."""
    student: DepthModel
    features: bool
    """Whether the objective looks at the teachers' encoder features."""
    optimiser: torch.optim.Optimizer
    found_infinite: Tensor | None
    """Flag that makes the optimiser skip a step; see `watch_gradients`."""
    stopwatch: Stopwatch
    trained: Trained
    """What training changes, without wrappers, and the moving average."""


@dataclass
class Run:
    """A run that is ready for its first step, or for the one after a checkpoint."""

    config: DistillConfig
    """What was asked for, with the optimiser's settings settled."""
    folder: Path
    accelerator: Accelerator
    images: Images
    dataset: CropDataset
    teachers: TeacherPool
    learner: Learner
    judged: DepthModel
    """What agreement is measured on in between: with a moving average it is the average that becomes the student."""
    start: int
    """The first step."""
    before: Agreement
    progress: ProgressLine
    log: RunLog
    agreement: AgreementLog


def prepare(
    config: DistillConfig, specs: list[TeacherSpec], folder: Path, accelerator: Accelerator, precisions: dict[str, str]
) -> Run:
    """Build all that a run needs. What an earlier run left in the folder is replaced only when all is there.

    Raises:
        ValueError: the configuration makes no sense for these images, teachers or student.
        DistillDepthError: a checkpoint, an image source or a model cannot be used.
    """
    device, main = accelerator.device, accelerator.is_main_process
    begin = _agreed_start(config, folder, accelerator)
    check_capacity(config, device)
    torch.manual_seed(config.seed)
    images, state = _open_images(config, begin, accelerator, precisions)
    teachers = load_teachers(
        specs,
        device=device,
        offline=config.offline,
        has_depth=images.has_depth,
        seed=config.seed,
        precision=precisions["teachers"],
    )
    student = _open_student(config, device)
    settled = dataclasses.replace(config, optimiser=settle_optimiser(config.optimiser, student))
    warning = rate_warning(settled.optimiser, student)
    check_single_batch(student, settled)
    objective = make_objective(settled, student, teachers.teachers, images.training)
    learner = _make_learner(settled, student, objective, accelerator, getattr(torch, precisions["muon"]))

    if begin.checkpoint is not None:
        _check_scores(begin.checkpoint, state.before, teachers.teachers, len(images.heldout))
        load_checkpoint(learner.trained, begin.checkpoint)
        changes = [f"step {state.step}: {change}" for change in begin.changes]
        state = dataclasses.replace(state, changes=state.changes + changes)
        if main:
            continue_folder(config, folder)
    elif main:
        start_folder(config, folder)
        pictures = folder / "samples" / "before"
        before = measure_agreement(learner.student, teachers.teachers, images.heldout, settled, pictures)
        state = dataclasses.replace(state, before=before)

    if main:
        keep_lines_until(folder / METRICS, state.step)
    run = Run(
        config=settled,
        folder=folder,
        accelerator=accelerator,
        images=images,
        dataset=CropDataset(images.training, crop_config(settled), config.seed),
        teachers=teachers,
        learner=learner,
        judged=learner.student if learner.trained.average is None else copy.deepcopy(learner.student),
        start=state.step,
        before=state.before,
        progress=ProgressLine(config.steps, state.step, enabled=main),
        log=RunLog(folder / METRICS if main else None, state, accelerator),
        agreement=AgreementLog(folder if main else None, state.step),
    )
    _tell_start(run, begin.changes, warning)
    if not run.start:
        run.agreement.add(0, run.before)
    return run


def step_batches(run: Run) -> StepBatches:
    """Return which crops make the batches that are left."""
    config, accelerator = run.config, run.accelerator
    return StepBatches(
        run.start * config.grad_accumulation,
        config.steps * config.grad_accumulation,
        config.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )


def _agreed_start(config: DistillConfig, folder: Path, accelerator: Accelerator) -> Start:
    """Where the main process finds that the run begins, in every process."""

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    found = [find_start(config, folder, tell) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def _open_images(
    config: DistillConfig, begin: Start, accelerator: Accelerator, precisions: dict[str, str]
) -> tuple[Images, RunState]:
    """The images, and the state in which the run begins: that of a checkpoint must have been trained on them."""
    source = open_source(
        config.images, size=config.scene_height_width, seed=config.seed, max_side=config.crop.max_side or None
    )
    state = RunState(processes=accelerator.num_processes, images=fingerprint(source), precisions=precisions)
    if begin.checkpoint is not None:
        state = _resumed_state(begin.checkpoint, state)
    training, heldout = split_heldout(source, config.heldout, by_name=state.images is not None)
    check_readable(source)
    if len(training) < config.batch_size:
        raise ValueError(
            f"distill: batch_size {config.batch_size} is larger than the {len(training)} training images found; "
            f"use --batch-size {max(len(training), 1)} or add images"
        )
    return Images(source.description, source.has_depth, training, heldout), state


def _resumed_state(checkpoint: Path, fresh: RunState) -> RunState:
    """The state of a checkpoint; ValueError if images or processes are others than before."""
    state = read_state(checkpoint)
    processes, images = state.processes, state.images
    if processes is not None and processes != fresh.processes:
        how = "without torchrun" if processes == 1 else f"with torchrun --nproc_per_node {processes}"
        raise ValueError(
            f"distill: {checkpoint} was trained by {processes} process{'es' * (processes > 1)} and this are "
            f"{fresh.processes}, which would show it other images; continue {how}"
        )
    if images is not None and images != fresh.images:
        raise ValueError(
            f"distill: the images are not those that {checkpoint} was trained on ({images} then, {fresh.images} "
            "now: some were added, removed or renamed); bring them back, or start another run with another --out"
        )
    return state


def _open_student(config: DistillConfig, device: torch.device) -> DepthModel:
    if config.initial_weights == "pretrained":
        student = load_model(config.student, offline=config.offline)
    else:
        student = create_student(config.student, seed=config.seed, offline=config.offline)
    if student.info.quantity != "disparity":
        raise ValueError(
            f"distill: student '{config.student}' predicts {student.info.quantity}; a student must predict disparity"
        )
    if device.type in ("cpu", "cuda"):
        student = student.to(memory_format=torch.channels_last)
    return student


def _check_scores(checkpoint: Path, before: Agreement, teachers: list[Teacher], heldout: int) -> None:
    """Raise DistillDepthError if the agreement from before the training cannot be compared with one from after it."""
    scores = before.get("teachers", {})
    for teacher in teachers if heldout else ():
        if not {"correlation", "ssi_error"} <= scores.get(teacher.name, {}).keys():
            raise DistillDepthError(
                f"distill: checkpoint {checkpoint} is damaged (it has no agreement with {teacher.name} from before the "
                "training); start with --overwrite"
            )


def _make_learner(
    config: DistillConfig,
    student: DepthModel,
    objective: DistillationObjective,
    accelerator: Accelerator,
    precision: torch.dtype,
) -> Learner:
    """Student and objective with their optimiser; Muon's iteration runs in `precision`."""
    stopwatch = Stopwatch(accelerator.device)
    step = DistillationStep(student.train(), objective, stopwatch, compiled=config.compile)
    module, optimiser = accelerator.prepare(step, make_optimiser(config, step, accelerator.device, precision))
    bare = accelerator.unwrap_model(module)
    average = WeightAverage(bare.student, config.optimiser.ema) if config.optimiser.ema else None
    return Learner(
        module=module,
        student=bare.student,
        features="features" in objective.needs,
        optimiser=optimiser,
        found_infinite=watch_gradients(accelerator, optimiser),
        stopwatch=stopwatch,
        trained=Trained(bare, getattr(optimiser, "optimizer", optimiser), average, accelerator.scaler),
    )


def _tell_start(run: Run, changes: list[str], warning: str | None) -> None:
    if run.start:
        run.progress.write(f"resuming {run.folder} at step {run.start}")
        for change in changes:
            run.progress.write(f"changed from step {run.start} on: {change}{_consequence(change)}")
    kind = run.accelerator.device.type
    if available_backends("hybrid_norm", kind) == ("reference",) and kind in ("cpu", "cuda"):
        run.progress.write("the losses run in plain torch; `distilldepth doctor --build` compiles the fused ones")
    if warning:
        run.progress.write(f"distilldepth: warning: {warning}")


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
