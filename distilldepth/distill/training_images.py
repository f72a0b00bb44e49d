"""What a run is trained on: opened, divided, and checked against what student, teachers and terms want of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from distilldepth.datasets.training import open_truth
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.kept_labels import KeptLabels
from distilldepth.distill.kinds import check_depth, check_kinds
from distilldepth.distill.record.checkpoint import read_state
from distilldepth.distill.record.folder import Start
from distilldepth.distill.record.state import RunState
from distilldepth.images.batches import SourceView, fingerprint, split_heldout
from distilldepth.images.sources import ConcatSource, ImageSource, check_readable, open_source
from distilldepth.models import DepthModel
from distilldepth.teachers.teacher import Teacher


@dataclass
class Images:
    """What `--images` and `--data` name, divided."""

    description: str
    """One line that says which they are."""
    has_depth: bool
    has_right: bool
    has_cameras: bool
    training: SourceView
    heldout: SourceView


def open_images(
    config: DistillConfig, begin: Start, accelerator: Accelerator, precisions: dict[str, str], kept: KeptLabels
) -> tuple[Images, RunState]:
    """Return the images, and the state in which the run begins: that of a checkpoint must have been trained on them.

    Args:
        config: of the run.
        begin: where it begins.
        accelerator: of the run.
        precisions: of the run, by who.
        kept: labels on disk; without teachers in memory they are all that there is.

    Raises:
        ValueError: too few images; other images, labels or processes than those of the checkpoint.
        FileNotFoundError, DistillDepthError, UsageError: images cannot be had; see `open_source` and `open_truth`.
    """
    state = RunState(processes=accelerator.num_processes, labels=kept.identity, precisions=precisions)
    if not config.teacher_specs:
        if begin.checkpoint is not None:
            state = _resumed_state(begin.checkpoint, state)
        return Images(kept.description, False, False, False, kept.first_regions(), SourceView([], [])), state
    source = _open_source(config)
    state = dataclasses.replace(state, images=fingerprint(source))
    if begin.checkpoint is not None:
        state = _resumed_state(begin.checkpoint, state)
    training, heldout = split_heldout(source, config.heldout, by_name=state.images is not None)
    check_readable(source)
    if len(training) < config.batch_size:
        raise ValueError(
            f"distill: batch_size {config.batch_size} is larger than the {len(training)} training images found; "
            f"use --batch-size {max(len(training), 1)} or add images"
        )
    description = " + ".join(filter(None, [source.description, kept.description]))
    return Images(description, source.has_depth, source.has_right, source.has_cameras, training, heldout), state


def _open_source(config: DistillConfig) -> ImageSource:
    """What `images` and `data` name, one after the other."""
    sources: list[ImageSource] = []
    if config.images:
        side = config.crop.max_side or None
        sources.append(open_source(config.images, size=config.scene_height_width, seed=config.seed, max_side=side))
    if config.data:
        sources.append(open_truth(config.data, root=config.root or None, split=config.split))
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


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
    if state.labels != fresh.labels:
        raise ValueError(
            f"distill: the labels are not those that {checkpoint} was trained on ({state.labels or 'none'} then, "
            f"{fresh.labels or 'none'} now); bring them back, or start another run with another --out"
        )
    return state


def check_images(config: DistillConfig, student: DepthModel, teachers: list[Teacher], images: Images) -> None:
    """Raise UsageError for images, or a student and teachers, that do not go together.

    Args:
        config: of the run.
        student: as it will be trained.
        teachers: all of them.
        images: what is trained on.
    """
    check_kinds(config, student, teachers, images)
    check_depth(config, student, images.training)
