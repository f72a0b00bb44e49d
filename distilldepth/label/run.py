"""`label`: from images and teachers to a set of labels, in one process of one or several."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.images.batches import is_ended_process, process_ended
from distilldepth.images.crops import Regions
from distilldepth.label.encode import Labeller, pack_batch
from distilldepth.label.folder import check_same, claim_labels, complete_index, publish, read_labels, read_record
from distilldepth.label.pipeline import AGAIN, Pace, Progress, label_shards
from distilldepth.label.plan import Part, Shares, find_parts, find_shares
from distilldepth.label.task import Crops, LabelMachine, LabelTask, format_of, labels_of, open_crops
from distilldepth.label.teachers import (
    TeacherShelf,
    check_digest,
    describe_teachers,
    expected_teachers,
    versions,
)  # fmt: skip
from distilldepth.machine import resolve_precision
from distilldepth.signals import Interrupted, StopRequest
from distilldepth.teachers.shards import LabelSet

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MEASURED = 16
"""Samples whose bytes decide how many a shard takes."""
_MOST_LANES = 4
_GPU_MAPS = 32
"""Pictures that a GPU sees at once, unless told otherwise."""


@dataclass
class LabelReport:
    """What a process did."""

    folder: Path
    written: int
    """Samples that it wrote."""
    standing: int
    """Samples of unfinished shards that it went on from."""
    problems: int
    first_problem: str
    missing: list[str]
    """Shards that the set still lacks; others write them."""
    seconds: float
    """Of labelling, without what went before."""


def label(
    task: LabelTask,
    machine: LabelMachine,
    *,
    which: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> LabelReport:
    """Label the images of a task; where an earlier process left some, go on at the next sample.

    Args:
        task: what is labelled, and how it is stored.
        machine: where that runs.
        which: (index, count): of several processes that share the shards, which one this is; from 0.
        overwrite: replace the labels that the folder holds.
        start: told how many samples are to be there in the end, gives what is told how many more are.

    Raises:
        DistillDepthError: the folder holds other labels, an image or a teacher cannot be used, or the disk is full.
        Interrupted: a signal came; what was labelled by then is written.
    """
    device = resolve_device(machine.device)
    crops = open_crops(task)
    with explained(task.out), claim_labels(task.out, which, overwrite=overwrite):
        labels, shares, shelf = prepare(task, crops, machine, device)
        return _label(task, machine, labels, shares, shelf, crops, which, start)


def prepare(
    task: LabelTask, crops: Crops, machine: LabelMachine, device: torch.device
) -> tuple[LabelSet, Shares, TeacherShelf]:
    """Return what the set says of itself, written now or read, and what its shards are made with.

    Raises:
        DistillDepthError: the folder holds other labels.
    """
    found = read_labels(task.out)
    asked = task.precision
    if asked == "auto" and found is not None:
        asked = found.teachers[0].precision
    precision = resolve_precision(asked, device, what="label")
    shelf = TeacherShelf(device, offline=machine.offline, has_depth=crops.has_depth, precision=precision)
    known = labels_of(task, crops)
    shares = Shares([spec.weight for spec in task.teachers], task.seed, task.group, task.views * len(crops.training))
    if found is None:
        teachers = describe_teachers(task, shelf, shares)
        fresh = LabelSet(**known, teachers=teachers, samples_per_shard=1, versions=versions())
        fresh = LabelSet(**{**vars(fresh), "samples_per_shard": _measure(task, fresh, shares, shelf, crops, device)})
        found = publish(task.out, fresh)
        check_same(task.out, found, fresh)
    else:
        expected = expected_teachers(task, found, precision)
        check_same(task.out, found, LabelSet(**known, teachers=expected, samples_per_shard=found.samples_per_shard))
    return found, find_shares(found), shelf


def _measure(
    task: LabelTask, labels: LabelSet, shares: Shares, shelf: TeacherShelf, crops: Crops, device: torch.device
) -> int:
    """How many samples a shard takes, from the bytes of the first ones: a round number of whole batches."""
    place = next((place for place, teacher in enumerate(labels.teachers) if teacher.samples), 0)
    count = min(_MEASURED, labels.teachers[place].samples)
    teacher, _ = shelf.take(task.teachers[place])
    ordinals = shares.ordinals(place).between(0, count)
    sizes = []
    for ordinal in ordinals:
        regions = Regions.collate([crops.training[ordinal]])
        label = Labeller(teacher, device).label(regions)
        packed = pack_batch(regions, label, labels, labels.teachers[place].name, range(1), [ordinal])
        sizes.append(len(packed[0].content))
    raw = max(1, task.shard_bytes * len(sizes) // max(1, sum(sizes)))
    step = max(10 ** (len(str(raw)) - 2), 1)
    return max(task.group, raw // step * step // task.group * task.group)


def _label(
    task: LabelTask,
    machine: LabelMachine,
    labels: LabelSet,
    shares: Shares,
    shelf: TeacherShelf,
    crops: Crops,
    which: tuple[int, int],
    start: Callable[[int], Callable[[int], None]] | None,
) -> LabelReport:
    parts = [list(_open_parts(task.out, labels, shares, place, which)) for place in range(len(labels.teachers))]
    total = sum(part.count for of_teacher in parts for part in of_teacher)
    began, lanes = time.monotonic(), _lanes(machine, shelf.device)
    with StopRequest().listening() as stop:
        progress = Progress(lambda: bool(stop.signum), start(total) if start and total else lambda _: None)
        for place, of_teacher in enumerate(parts):
            if stop.signum:
                continue
            if not of_teacher:
                if not total:  # Nothing else would notice that the weights are others than when these were written.
                    check_digest(labels.teachers[place], shelf.take(task.teachers[place])[1])
                continue
            progress.name = labels.teachers[place].name
            teacher, digest = shelf.take(task.teachers[place])
            check_digest(labels.teachers[place], digest)
            labeller = Labeller(teacher, shelf.device)
            pace = Pace(batch_size(machine, labels, shelf.device), machine.workers, shelf.device.type == "cuda", lanes)
            for heldout, dataset in ((False, crops.training), (True, crops.heldout)):
                chosen = [part for part in of_teacher if part.heldout == heldout]
                if chosen and not stop.signum:
                    label_shards(task.out, iter(chosen), format_of(labels, heldout), dataset, labeller, pace, progress)
            del teacher, labeller
        if stop.signum:
            raise Interrupted(stop.signum)
    return LabelReport(
        folder=task.out,
        written=progress.written,
        standing=progress.standing,
        problems=progress.problems,
        first_problem=progress.first_problem,
        missing=complete_index(task.out, labels),
        seconds=time.monotonic() - began,
    )


def _open_parts(folder: Path, labels: LabelSet, shares: Shares, place: int, which: tuple[int, int]) -> Iterator[Part]:
    """The shards of a teacher that are not done."""
    for part in find_parts(labels, shares, place, which):
        target = folder / part.url
        record = read_record(folder, part.url)
        if record is None or not target.is_file():
            yield part
        elif target.stat().st_size != record.filesize:
            raise DistillDepthError(
                f"label: {target} has {target.stat().st_size} bytes and was written with {record.filesize}; copy it "
                f"again, or remove it, and it is made again"
            )


def batch_size(machine: LabelMachine, labels: LabelSet, device: torch.device) -> int:
    """Return how many regions a teacher sees at once: whole batches of a run, more of them on a GPU."""
    if machine.device_batch:
        return machine.device_batch
    if device.type == "cpu":
        return labels.group
    return labels.group * max(1, _GPU_MAPS // (labels.group * (1 + labels.windows[0])))


def _lanes(machine: LabelMachine, device: torch.device) -> int:
    """How many batches a teacher labels side by side; shares the threads among them.

    Two batches with a thread each are done sooner than one after the other with two: small maps and the steps between
    operations keep a second thread waiting.
    """
    if device.type != "cpu":
        return 1
    threads = machine.threads or max(torch.get_num_threads(), 1)
    lanes = min(_MOST_LANES, threads)
    torch.set_num_threads(max(1, threads // lanes))
    return lanes


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what ends the work for a reason outside it into one line that says how to go on."""
    try:
        yield
    except RuntimeError as error:
        if not is_ended_process(error):
            raise
        raise process_ended(error, "label", AGAIN) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DistillDepthError(
            f"label: {folder} cannot be written ({error.strerror}); what is complete in it stands: make room, then "
            f"{AGAIN}"
        ) from error
