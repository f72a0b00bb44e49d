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
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.crops import crop_config
from distilldepth.distill.ema import WeightAverage
from distilldepth.distill.feed import Feed
from distilldepth.distill.guard import watch_gradients
from distilldepth.distill.guides import Guides, open_guides
from distilldepth.distill.kept_labels import KeptLabels, open_labels
from distilldepth.distill.micro_batch import MicroBatch, one_image_is_too_little
from distilldepth.distill.objective import DistillationObjective, make_objective
from distilldepth.distill.optimiser import make_optimiser
from distilldepth.distill.processes import ready_for_processes
from distilldepth.distill.progress import ProgressLine, Stopwatch
from distilldepth.distill.recipe import rate_warning, settle_optimiser
from distilldepth.distill.record.checkpoint import Trained, load_checkpoint
from distilldepth.distill.record.folder import METRICS, Start, continue_folder, find_start, start_folder
from distilldepth.distill.record.log import RunLog
from distilldepth.distill.record.state import Agreement, RunState
from distilldepth.distill.sharding import here, is_sharded, whole_on_cpu
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.terms.table import TERMS
from distilldepth.distill.trackers import Trackers, tracker_names
from distilldepth.distill.training_images import Images, check_images, open_images
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.files import expand_user
from distilldepth.images.batches import CropDataset, SourceView
from distilldepth.models import DepthModel, create_student, load_model
from distilldepth.models.digest import model_digest
from distilldepth.models.encoder import keep_encoder, load_encoder
from distilldepth.models.preprocess import nearest_size
from distilldepth.models.registry import lookup
from distilldepth.models.uncertainty import with_uncertainty
from distilldepth.native.recipe import find_compiler
from distilldepth.ops.backend import available_backends
from distilldepth.settings import get_key, keys
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.spec import TeacherSpec
from distilldepth.teachers.stored import AbsentTeacher
from distilldepth.teachers.teacher import Teacher
from distilldepth.words import LOG_VARIANCE


@dataclass
class Learner:
    """Student and objective, and what trains them."""

    module: nn.Module
    """Both, in the wrapper of several processes if there are any."""
    step: DistillationStep
    """Both, without it."""
    student: DepthModel
    features: frozenset[str]
    """The levels of the teachers' encoder features at which the objective looks."""
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
    feed: Feed
    teachers: TeacherPool
    guides: Guides | None
    """Of a student that completes points."""
    learner: Learner
    judged: DepthModel
    """What agreement is measured on and what becomes the student; see `whole_student`."""
    start: int
    """The first step."""
    before: Agreement
    progress: ProgressLine
    log: RunLog
    agreement: AgreementLog
    micro_batch: MicroBatch
    trackers: Trackers


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
    check_compiler(config, device)
    torch.manual_seed(config.seed)
    kept = open_labels(config, (accelerator.process_index, accelerator.num_processes))
    images, state = open_images(config, begin, accelerator, precisions, kept)
    teachers = _open_teachers(config, specs, kept, images, device, precisions["teachers"])
    state = _with_same_teachers(state, teachers.teachers, begin.checkpoint)
    student = _open_student(config, device)
    guides = open_guides(config, student, device)
    check_images(config, student, teachers.teachers, images)
    settled = dataclasses.replace(config, optimiser=settle_optimiser(config.optimiser, student))
    if settled.optimiser.freeze_batch_norm == "on":
        _freeze(student)
    warning = rate_warning(settled.optimiser, student)
    check_single_batch(student, settled)
    objective = make_objective(settled, student, teachers.teachers, images.training)
    learner, judged = _make_learner(settled, student, objective, accelerator, getattr(torch, precisions["muon"]))
    trackers = Trackers(tracker_names(config.log) if main else [], folder, state.step, _settings(settled))
    if begin.checkpoint is not None:
        _check_scores(begin.checkpoint, state.before, teachers.teachers, images.heldout)
        load_checkpoint(learner.trained, begin.checkpoint)
        changes = [f"step {state.step}: {change}" for change in begin.changes]
        state = dataclasses.replace(state, changes=state.changes + changes)
        if main:
            continue_folder(config, folder)
    elif main:
        start_folder(config, folder)
        pictures = folder / "samples" / "before"
        before = measure_agreement(judged, teachers.teachers, images.heldout, settled, pictures, guides=guides)
        state = dataclasses.replace(state, before=before)

    trackers.begin()
    progress = ProgressLine(config.steps, state.step, enabled=main)
    earlier = 0 if any(change.startswith("micro_batch:") for change in begin.changes) else state.micro_batch
    run = Run(
        config=settled,
        folder=folder,
        accelerator=accelerator,
        images=images,
        feed=_open_feed(settled, teachers, student.views, images if specs else None, accelerator),
        teachers=teachers,
        guides=guides,
        learner=learner,
        judged=judged,
        start=state.step,
        before=state.before,
        progress=progress,
        log=RunLog(folder / METRICS if main else None, state, accelerator, trackers),
        agreement=AgreementLog(folder if main else None, state.step, trackers),
        micro_batch=MicroBatch(settled, earlier, learner.step, teachers.teachers, accelerator, progress.write, guides),
        trackers=trackers,
    )
    _tell_start(run, begin.changes, warning)
    if not run.start:
        run.agreement.add(0, run.before)
    return run


def _open_teachers(
    config: DistillConfig,
    specs: list[TeacherSpec],
    kept: KeptLabels,
    images: Images,
    device: torch.device,
    precision: str,
) -> TeacherPool:
    """Those in memory, then those whose labels are kept."""
    here = load_teachers(
        specs,
        device=device,
        offline=config.offline,
        has_depth=images.has_depth,
        seed=config.seed,
        precision=precision,
        offload=config.teacher_offload,
        compiled=config.compile_teachers,
    ).teachers
    for teacher in here:
        if teacher.model is None and config.data:
            teacher.info = dataclasses.replace(
                teacher.info, licence="that of the data", source=f"true depth: {images.description}"
            )
    return TeacherPool(here + kept.teachers([teacher.name for teacher in here]), config.seed)


def _with_same_teachers(state: RunState, teachers: list[Teacher], checkpoint: Path | None) -> RunState:
    """The state with the digests of the teachers; ValueError if those of a checkpoint were others."""
    live = [(teacher.name, teacher.model) for teacher in teachers if teacher.model is not None]
    now = ", ".join(f"{name} {model_digest(model)[:16]}" for name, model in live)
    if checkpoint is not None and state.teachers and state.teachers != now:
        raise ValueError(
            f"distill: the teachers are not those that {checkpoint} was trained with ({state.teachers} then, {now} "
            "now); bring their weights back, or start another run with another --out"
        )
    return dataclasses.replace(state, teachers=now)


def settle_micro_batch(run: Run) -> None:
    """Find out, with several processes, how many images at once fit in every one of them; see `MicroBatch.settle`."""
    if run.accelerator.num_processes > 1 and run.start < run.config.steps:
        first = run.feed.trial(run.start * run.config.grad_accumulation)
        run.micro_batch.settle(first, run.config.augment, features=run.learner.features)


def _open_feed(
    config: DistillConfig, teachers: TeacherPool, student_views: int, images: Images | None, accelerator: Accelerator
) -> Feed:
    # True depth is read by the oracle and by that one term alone, second views by networks that see two.
    depth = any(teacher.model is None for teacher in teachers.teachers) or config.loss.silog > 0
    right = any(views > 1 for views in (student_views, *(teacher.views for teacher in teachers.teachers)))
    crops = crop_config(config)
    return Feed(
        teachers,
        None
        if images is None
        else CropDataset(images.training, crops, config.seed, depth=depth, right=right, points=config.points.draw),
        batches=config.grad_accumulation,
        batch_size=config.batch_size,
        process=(accelerator.process_index, accelerator.num_processes),
    )


def _settings(config: DistillConfig) -> dict[str, str | int | float]:
    """Every key and its value, as trackers take them."""
    values = {key: get_key(config, key) for key in keys(DistillConfig)}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in values.items()}


def _set_apart(student: DepthModel, accelerator: Accelerator) -> DepthModel:
    """A copy of the student that is not trained; in processes other than the main one a hull without memory."""
    return copy.deepcopy(student).to(accelerator.device if accelerator.is_main_process else "meta")


def whole_student(run: Run) -> DepthModel:
    """Return the student as it would be saved now: whole, and with the averaged weights if there are any.

    All processes must ask together; only the main one may use it.
    """
    if run.judged is not run.learner.student:
        average, main = run.learner.trained.average, run.accelerator.is_main_process
        trained = run.learner.student if average is None else average
        state = whole_on_cpu(trained.state_dict(), keep=main)
        if main:
            run.judged.load_state_dict(state)
    return run.judged


def _agreed_start(config: DistillConfig, folder: Path, accelerator: Accelerator) -> Start:
    """Where the main process finds that the run begins, in every process."""

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    found = [find_start(config, folder, tell) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def _open_student(config: DistillConfig, device: torch.device) -> DepthModel:
    if config.initial_weights == "pretrained":
        student = load_model(config.student, offline=config.offline)
    elif config.initial_weights == "encoder":
        student = keep_encoder(load_model(config.student, offline=config.offline), seed=config.seed)
    elif config.initial_weights == "random":
        student = create_student(config.student, seed=config.seed, offline=config.offline)
    else:
        student = _with_encoder(config)
    try:
        _ = student.architecture
    except TypeError as error:
        raise UsageError(f"distill: student '{config.student}' could not be saved: {error}") from error
    if student.info.quantity == "depth":
        raise ValueError(
            f"distill: student '{config.student}' predicts relative depth; a student must predict disparity, or metres"
        )
    if config.two_views:
        student = _with_two_views(student)
    if config.uncertainty and LOG_VARIANCE not in student.extra_maps:
        student = with_uncertainty(student, seed=config.seed)
    if config.gradient_checkpointing:
        try:
            student.enable_gradient_checkpointing()
        except TypeError as error:
            raise UsageError(f"distill: {error}; leave out gradient_checkpointing") from error
    if device.type in ("cpu", "cuda"):
        student = student.to(memory_format=torch.channels_last)
    return student


def _with_two_views(student: DepthModel) -> DepthModel:
    from distilldepth.models.families.newcrfs import NeWCRFsDepth, with_two_views

    if student.views == 2:
        return student
    if LOG_VARIANCE in student.extra_maps:
        raise UsageError(
            f"distill: two_views is for students without an uncertainty module, and {student.info.name} has one; begin "
            "with another, or leave it out"
        )
    if not isinstance(student, NeWCRFsDepth):
        raise UsageError(
            f"distill: two_views is for students of the family newcrfs, and {student.info.name} is none; leave it out"
        )
    return with_two_views(student)


def _freeze(student: DepthModel) -> None:
    try:
        student.freeze_encoder_statistics()
    except TypeError as error:
        raise UsageError(f"distill: {error}; leave out optimiser.freeze_batch_norm") from error


def _with_encoder(config: DistillConfig) -> DepthModel:
    """A student of random weights with the encoder of a file."""
    path = expand_user(config.initial_weights)
    if lookup(config.student) is None:
        raise UsageError(
            f"distill: student '{config.student}' has weights of its own, so initial_weights cannot be the file "
            f"{path}; give the student by name, see distilldepth list students"
        )
    return load_encoder(create_student(config.student, seed=config.seed, offline=config.offline), path)


def _check_scores(checkpoint: Path, before: Agreement, teachers: list[Teacher], heldout: SourceView) -> None:
    """Raise DistillDepthError if the agreement from before the training cannot be compared with one from after it."""
    scores = before.get("teachers", {})
    for teacher in teachers:
        asked = len(heldout if teacher.heldout is None else teacher.heldout)
        if asked and not {"correlation", "ssi_error"} <= scores.get(teacher.name, {}).keys():
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
) -> tuple[Learner, DepthModel]:
    """Student and objective with their optimiser, and what is judged; Muon's iteration runs in `precision`."""
    stopwatch = Stopwatch(accelerator.device)
    apart = _set_apart(student, accelerator) if config.optimiser.ema or accelerator.is_fsdp2 else None
    student = ready_for_processes(student, accelerator)
    if accelerator.num_processes > 1:
        objective.join(accelerator.num_processes)
    step = DistillationStep(student.train(), objective, stopwatch, compiled=config.compile)
    module, optimiser = accelerator.prepare(step, make_optimiser(config, step, accelerator.device, precision))
    if accelerator.is_fsdp2:
        # As accelerate does for every other wrapper.
        module.forward = accelerator.autocast()(module.forward)
    bare = accelerator.unwrap_model(module)
    average = WeightAverage(bare.student, config.optimiser.ema) if config.optimiser.ema else None
    learner = Learner(
        module=module,
        step=bare,
        student=bare.student,
        features=objective.levels,
        optimiser=optimiser,
        found_infinite=watch_gradients(accelerator, optimiser, accelerator.device),
        stopwatch=stopwatch,
        trained=Trained(bare, getattr(optimiser, "optimizer", optimiser), average, accelerator.scaler),
    )
    return learner, bare.student if apart is None else apart


def _tell_start(run: Run, changes: list[str], warning: str | None) -> None:
    if run.start:
        run.progress.write(f"resuming {run.folder} at step {run.start}")
        for change in changes:
            run.progress.write(f"changed from step {run.start} on: {change}{_consequence(change)}")
    if is_sharded(parameters := dict(run.learner.module.named_parameters())):
        everything = parameters.values()
        held, all_of_it = (sum(map(Tensor.numel, some)) for some in (map(here, everything), everything))
        run.progress.write(f"FSDP: this process holds {held / 1e6:.2f} of {all_of_it / 1e6:.2f} M parameters")
    kind = run.accelerator.device.type
    if available_backends("hybrid_norm", kind) == ("reference",) and kind in ("cpu", "cuda"):
        run.progress.write("the losses run in plain torch; `distilldepth doctor --build` compiles the fused ones")
    stored = [teacher.name for teacher in run.teachers.teachers if isinstance(teacher, AbsentTeacher)]
    of_features = [f"loss.{name}" for name, row in TERMS.items() if row.features and getattr(run.config.loss, name)]
    if stored and of_features:
        left_out = f"{', '.join(of_features)} {'is' if len(of_features) == 1 else 'are'} left out"
        run.progress.write(f"labels hold no features: {left_out} for {', '.join(stored)}")
    if run.config.optimiser.freeze_batch_norm == "on":
        run.progress.write("batch normalisation in the encoder keeps its statistics (optimiser.freeze_batch_norm)")
    if warning:
        run.progress.write(f"distilldepth: warning: {warning}")


def _consequence(change: str) -> str:
    """What a change means that is not plain from its key."""
    return "; the learning rate now falls to its end at the new last step" if change.startswith("steps:") else ""


def check_compiler(config: DistillConfig, device: torch.device) -> None:
    """Raise DistillDepthError for a run that compiles on a CPU without a compiler."""
    asked = [key for key in ("compile", "compile_teachers") if getattr(config, key)]
    if asked and device.type == "cpu" and find_compiler() is None:
        raise DistillDepthError(
            f"distill: {asked[0]} needs a C++ compiler, and none was found (CXX, c++, g++, clang++); install one, or "
            "leave it out"
        )


def check_capacity(config: DistillConfig, device: torch.device) -> None:
    """Raise UsageError for batches that cannot fit into the memory."""
    height, width = config.height_width
    window_height, window_width = config.patch_height_width
    windows = config.crop.patches if config.loss.local_global else 0
    # A window costs its picture as bytes and as numbers; the network of the student sees the region alone.
    at_once = min(config.micro_batch or config.batch_size, config.batch_size)
    needed = network_bytes(at_once * height * width, training=True)
    needed += 15 * (config.batch_size - at_once) * height * width
    needed += 15 * config.batch_size * windows * window_height * window_width
    check_memory(
        needed,
        f"distill: batches of {config.batch_size} x {height} x {width} pixels",
        "use a smaller --size, --batch-size or --micro-batch",
        device=device,
        error=UsageError,
    )


def check_single_batch(student: DepthModel, config: DistillConfig) -> None:
    """Raise UsageError if parts of one image leave a batch normalisation a single value, which has no spread."""
    at_once = min(config.micro_batch or config.batch_size, config.batch_size)
    if config.batch_size // -(-config.batch_size // at_once) > 1 or not one_image_is_too_little(student, config):
        return
    height, width = nearest_size(*config.height_width, student.preprocessing.multiple)
    remedy = "use --batch-size 2" if config.batch_size == 1 else "do without --micro-batch, with a larger one"
    raise UsageError(
        f"distill: one image of {height} x {width} is too little for {student.info.name} to normalise over; "
        f"{remedy} or a larger --size"
    )
