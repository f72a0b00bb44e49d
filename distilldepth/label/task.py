"""What is to be labelled and how it is stored; and where that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.errors import DistillDepthError
from distilldepth.images.batches import CropDataset, SourceView, fingerprint, split_heldout
from distilldepth.images.crops import CropConfig
from distilldepth.images.sources import check_readable, open_source
from distilldepth.teachers.shards import LabelSet
from distilldepth.teachers.spec import TeacherSpec


@dataclass(frozen=True)
class LabelTask:
    """What decides every byte of a set of labels."""

    out: Path
    images: list[str]
    teachers: list[TeacherSpec]
    crops: CropConfig
    settings: dict[str, Any]
    """The same in the words of a run's configuration, for the set's own record."""
    seed: int
    heldout: int
    group: int
    """Crops in a row that have one teacher: the batch size of a run."""
    views: int
    scene_size: tuple[int, int]
    max_side: int | None
    image_format: str = "jpeg"
    map_format: str = "png16"
    shard_bytes: int = 512_000_000
    precision: str = "auto"
    """Of the teachers."""


@dataclass(frozen=True)
class LabelMachine:
    """Where it runs; decides nothing but speed."""

    device: str = "auto"
    workers: int = 2
    """Processes that decode; 0 = none besides the main one."""
    threads: int = 0
    """Of the network on a CPU; 0 = all."""
    device_batch: int = 0
    """Regions that a teacher sees at once; 0 = what suits the device."""
    offline: bool = False


@dataclass
class Crops:
    """The images of a task, and how they are cut."""

    fingerprint: str
    has_depth: bool
    training: CropDataset
    heldout: CropDataset


def open_crops(task: LabelTask) -> Crops:
    """Open the images of a task.

    Raises:
        DistillDepthError: none can be read.
    """
    source = open_source(task.images, size=task.scene_size, seed=task.seed, max_side=task.max_side)
    training, heldout = split_heldout(source, task.heldout)
    check_readable(source)
    if not len(training):
        raise DistillDepthError(f"label: {source.description}: no image is left for training")
    return crops_of(task, training, heldout, fingerprint(source), source.has_depth)


def crops_of(task: LabelTask, training: SourceView, heldout: SourceView, known: str, has_depth: bool) -> Crops:
    """Return how a task cuts images that are open already."""
    return Crops(
        known,
        has_depth,
        CropDataset(training, task.crops, task.seed, right=False),
        CropDataset(heldout, task.crops.whole(), task.seed, shuffle=False, right=False),
    )


def labels_of(task: LabelTask, crops: Crops) -> dict[str, Any]:
    """Return the fields of a set's record that are known before a teacher is."""
    config = task.crops.to_dict()
    return {
        "images": list(task.images),
        "fingerprint": crops.fingerprint,
        "training": len(crops.training),
        "heldout": len(crops.heldout),
        "views": task.views,
        "group": task.group,
        "seed": task.seed,
        "crops": config,
        "settings": task.settings,
        "image_format": task.image_format,
        "map_format": task.map_format,
    }


def format_of(labels: LabelSet, heldout: bool) -> LabelSet:
    """Return what describes the samples of a shard."""
    return labels.for_heldout() if heldout else labels
