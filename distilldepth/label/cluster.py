"""`label --ray`: the same shards, made by many machines.

The unit of work is a piece of a shard, whole batches that are named by their position. Tasks decode, one actor per
device holds the teacher, tasks encode and write pieces, and a task joins the pieces of a shard. A task that runs again
writes the same bytes under the same name, and what a lost machine had not written is made again, so that nothing is
missing and nothing is there twice. What goes from one of these tasks to the next are tensors and plain values.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth.capacity import total_memory
from distilldepth.device import resolve_device
from distilldepth.documents import parse_json
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.images.crops import Cut, Regions
from distilldepth.label.encode import Labeller, pack_batch
from distilldepth.label.folder import claim_labels, complete_index
from distilldepth.label.plan import Part, Shares, find_parts
from distilldepth.label.run import LabelReport, batch_size, explained, prepare
from distilldepth.label.tar import ShardWriter, is_intact, pack_sample, read_samples, write_piece
from distilldepth.label.task import Crops, LabelMachine, LabelTask, format_of, open_crops
from distilldepth.label.teachers import TeacherShelf, check_digest
from distilldepth.machine import resolve_precision
from distilldepth.signals import Interrupted, StopRequest
from distilldepth.teachers.shards import LabelSet
from distilldepth.teachers.teacher import PseudoLabel

_PIECE_BYTES = 32 << 20
"""Pixels and maps of a piece as numbers, about: what travels between machines at once."""
_PROCESSOR = 0.5
"""What a task, or a teacher without a GPU, claims of a processor: on a single one both must find room."""
_FRUITLESS = 3
"""Attempts in a row after which no piece was added, before the job gives up."""


@dataclass(frozen=True)
class Piece:
    """Some samples of a shard."""

    part: Part
    first: int
    """Of the shard's samples, counted in the shard."""
    last: int
    batch: int
    """Regions that the teacher sees at once."""

    def path(self, folder: Path) -> Path:
        """Return its file while the shard is not whole."""
        shard = folder / self.part.url
        return shard.with_name(f".distilldepth-{shard.name}-{self.first:09d}-{self.last:09d}.piece")

    def problems(self, folder: Path) -> Path:
        """Return the file in which it names what was wrong with photographs or maps."""
        return self.path(folder).with_suffix(".problems")

    def batches(self) -> Iterator[tuple[int, int]]:
        """Yield where each batch begins and ends in the shard."""
        for first in range(self.first, self.last, self.batch):
            yield first, min(first + self.batch, self.last)


def label_on_cluster(
    task: LabelTask,
    machine: LabelMachine,
    address: str,
    *,
    overwrite: bool = False,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> LabelReport:
    """Label the images of a task on a Ray cluster; folder and images must be in reach of every machine.

    Args:
        task: what is labelled, and how it is stored.
        machine: `device`, `threads`, `device_batch` and `offline` of each teacher.
        address: `local` starts Ray here, `auto` finds the cluster of this machine, else host:port.
        overwrite: replace the labels that the folder holds.
        start: told how many samples are to be there in the end, gives what is told how many more are.

    Raises:
        DistillDepthError: Ray is not installed or not there, the folder holds other labels, an image or a teacher
            cannot be used, the disk is full, or the cluster loses its machines again and again.
        Interrupted: a signal came; pieces that were written by then stand.
    """
    task = replace(task, out=task.out.absolute(), images=[_absolute(name) for name in task.images])
    crops = open_crops(task)
    with explained(task.out), claim_labels(task.out, (0, 1), overwrite=overwrite), _connected(address) as ray:
        devices = _Devices.of(ray, machine)
        task = replace(task, precision=_settle_precision(ray, task, devices))
        labels, shares, shelf = prepare(task, crops, machine, resolve_device("cpu"))
        del shelf
        return _Job(ray, task, machine, labels, shares, crops, devices).run(start)


def _absolute(name: str) -> str:
    # Tasks run in another folder; globs and lists stay what they are behind it.
    return name if name == "scenes" or name.startswith("scenes:") else os.path.abspath(os.path.expanduser(name))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
        import ray.data.exceptions
    except ImportError as error:
        raise DistillDepthError(
            f"label: --ray needs Ray, which is not installed ({first_line(error)}); pip install 'distilldepth[ray]'"
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    began = not ray.is_initialized()
    if began:
        options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if address == "local":
            memory = max(80 << 20, min(2 << 30, total_memory() // 10))
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": memory}
        else:
            options |= {"address": address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise DistillDepthError(f"label: no Ray cluster at {address!r} ({first_line(error)})") from error
    try:
        yield ray
    finally:
        if began:
            ray.shutdown()


@dataclass(frozen=True)
class _Devices:
    """What the cluster has for teachers."""

    count: int
    gpu: bool

    @classmethod
    def of(cls, ray: Any, machine: LabelMachine) -> _Devices:
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        if gpus and machine.device != "cpu":
            return cls(gpus, True)
        # Half of the processors label, the others decode and write.
        return cls(max(1, int(there.get("CPU", 1)) // 2), False)

    @property
    def wanted(self) -> dict[str, float]:
        """Resources of one teacher."""
        return {"num_gpus": 1, "num_cpus": 0} if self.gpu else {"num_cpus": _PROCESSOR}

    @property
    def device(self) -> str:
        """Where it runs."""
        return "cuda" if self.gpu else "cpu"


def _settle_precision(ray: Any, task: LabelTask, devices: _Devices) -> str:
    """What `auto` means where the teachers run; labels that were begun keep theirs."""
    from distilldepth.label.folder import read_labels

    found = read_labels(task.out)
    if task.precision != "auto" or found is not None:
        return task.precision

    def ask(device: str) -> str:
        return resolve_precision("auto", torch.device(device), what="label")

    return ray.get(ray.remote(ask).options(**devices.wanted).remote(devices.device))


@dataclass
class _Job:
    ray: Any
    task: LabelTask
    machine: LabelMachine
    labels: LabelSet
    shares: Shares
    crops: Crops
    devices: _Devices

    def run(self, start: Callable[[int], Callable[[int], None]] | None) -> LabelReport:
        """Label teacher after teacher."""
        ray, folder, labels = self.ray, self.task.out, self.labels
        parts = [
            [part for part in find_parts(labels, self.shares, place) if not self._writer(part).is_done]
            for place in range(len(labels.teachers))
        ]
        total = sum(part.count for of_teacher in parts for part in of_teacher)
        advance = start(total) if start and total else lambda _: None
        began, written, standing = time.monotonic(), 0, 0
        datasets = ray.put({False: self.crops.training, True: self.crops.heldout})
        with StopRequest().listening() as stop:
            for place, of_teacher in enumerate(parts):
                pieces = [piece for part in of_teacher for piece in self._pieces(part)]
                there = sum(piece.last - piece.first for piece in pieces if piece.path(folder).exists())
                standing += there
                advance(there)
                fruitless = 0
                while fruitless < _FRUITLESS and not stop.signum:
                    left = [piece for piece in pieces if not piece.path(folder).exists()]
                    if not left:
                        break
                    count, error = self._attempt(place, left, datasets, advance, stop)
                    written += count
                    fruitless = 0 if count else fruitless + 1
                    if error is not None and fruitless == _FRUITLESS:
                        raise DistillDepthError(
                            f"label: the cluster lost its work {_FRUITLESS} times in a row ({first_line(error, 200)}); "
                            "see whether its machines have memory and the folder, then type the same command again"
                        ) from error
                if stop.signum:
                    raise Interrupted(stop.signum)
                self._join(of_teacher)
        problems = self._problems([part for of_teacher in parts for part in of_teacher])
        first = "; ".join(f"{key}: {value}" for key, value in problems[0].items()) if problems else ""
        missing = complete_index(folder, labels)
        return LabelReport(folder, written, standing, len(problems), first, missing, time.monotonic() - began)

    def _writer(self, part: Part) -> ShardWriter:
        return ShardWriter(self.task.out, part.url, part.first, part.ordinals, format_of(self.labels, part.heldout))

    def _pieces(self, part: Part) -> Iterator[Piece]:
        batch = batch_size(self.machine, self.labels, torch.device(self.devices.device))
        count, height, width = self.labels.windows
        sample = 7 * (self.labels.size[0] * self.labels.size[1] + count * height * width)
        step = batch * max(1, _PIECE_BYTES // (batch * sample))
        for first in range(0, part.count, step):
            yield Piece(part, first, min(first + step, part.count), batch)

    def _attempt(
        self, place: int, pieces: list[Piece], datasets: Any, advance: Callable[[int], None], stop: StopRequest
    ) -> tuple[int, Exception | None]:
        """Make pieces until all are there, or until the cluster loses an actor.

        Returns:
            How many samples were written, and what ended the attempt early.
        """
        ray, written = self.ray, 0
        # Asked again each time: after a loss there are fewer, and teachers must leave room for the tasks.
        count = min(_Devices.of(ray, self.machine).count, len(pieces))
        given = ray.put(pieces)
        data = (
            ray.data.from_items([{"piece": number} for number in range(len(pieces))], override_num_blocks=len(pieces))
            .map(functools.partial(_decode, pieces=given, datasets=datasets), num_cpus=_PROCESSOR)
            .map_batches(
                _TeacherActor,
                fn_constructor_args=(self.task, self.machine, self.labels, place, self.devices.device),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                # An actor that is lost ends the attempt: its successor might wait for a device that does not come back.
                max_restarts=0,
                max_task_retries=0,
                **self.devices.wanted,
            )
            .map(functools.partial(_write, folder=self.task.out, pieces=given, labels=self.labels), num_cpus=_PROCESSOR)
        )
        try:
            for row in data.iter_rows():
                if row["failure"]:
                    _raise(row["failure"])
                written += row["samples"]
                advance(row["samples"])
                if stop.signum:
                    break
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            if isinstance(error, ray.exceptions.UserCodeException):
                raise
            # What was written before the loss, and not told.
            told = written
            written = sum(piece.last - piece.first for piece in pieces if piece.path(self.task.out).exists())
            advance(max(0, written - told))
            return written, error
        return written, None

    def _join(self, parts: list[Part]) -> None:
        join = self.ray.remote(_join).options(num_cpus=_PROCESSOR, max_retries=-1)
        waiting = [
            join.remote(self.task.out, list(self._pieces(part)), format_of(self.labels, part.heldout)) for part in parts
        ]
        for failure in self.ray.get(waiting):
            if failure:
                _raise(failure)

    def _problems(self, parts: list[Part]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for part in parts:
            row = json.loads(self._writer(part).record.read_text(encoding="utf-8"))
            found += row.get("problems", [])
        return found


def _failure(error: Exception) -> str:
    """What went wrong in a task, as text that travels with the piece: Ray keeps nothing else of an error."""
    kind = next((kind for kind in _KINDS if isinstance(error, _KINDS[kind])), "")
    number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, str(error))
    return json.dumps([kind, number, text or type(error).__name__, getattr(error, "filename", None)])


def _raise(failure: str) -> None:
    kind, number, text, name = json.loads(failure)
    if kind == "system":
        raise OSError(number, text, name)
    raise _KINDS[kind](text) if kind else RuntimeError(text)


_KINDS: dict[str, type[Exception]] = {
    "system": OSError, "known": DistillDepthError, "memory": MemoryError, "value": ValueError,
}  # fmt: skip


_shared: dict[str, Any] = {}


def _get(reference: Any) -> Any:
    """What the tasks of a job share, fetched once per process: a list of ten million photographs is not small."""
    import ray

    key = reference.hex()
    if key not in _shared:
        while len(_shared) > 1:
            del _shared[next(iter(_shared))]
        _shared[key] = ray.get(reference)
    return _shared[key]


def _decode(row: dict[str, Any], pieces: Any, datasets: Any) -> dict[str, Any]:
    """A task: the regions of a piece."""
    torch.set_num_threads(1)
    try:
        piece: Piece = _get(pieces)[int(row["piece"])]
        dataset, ordinals = _get(datasets)[piece.part.heldout], piece.part.ordinals
        batches = [
            Regions.collate([dataset[ordinal] for ordinal in ordinals[first:last]]) for first, last in piece.batches()
        ]
    except Exception as error:
        return {"piece": row["piece"], "work": b"", "failure": _failure(error)}
    return {"piece": row["piece"], "work": _pack([(regions, None) for regions in batches]), "failure": ""}


def _pack(batches: list[tuple[Regions, PseudoLabel | None]]) -> bytes:
    """Batches and their labels as bytes."""
    plain = [
        ({**vars(regions), "cut": [astuple(cut) for cut in regions.cut]}, None if label is None else vars(label))
        for regions, label in batches
    ]
    content = io.BytesIO()
    torch.save(plain, content)
    return content.getvalue()


def _unpack(content: bytes) -> list[tuple[Regions, PseudoLabel | None]]:
    """What `_pack` packed; no object in it is run."""
    plain = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return [
        (
            Regions(**{**regions, "cut": [Cut(*cut) for cut in regions["cut"]]}),
            None if label is None else PseudoLabel(**label),
        )
        for regions, label in plain
    ]


class _TeacherActor:
    """Holds a teacher, and labels the regions of a piece."""

    def __init__(self, task: LabelTask, machine: LabelMachine, labels: LabelSet, place: int, device: str) -> None:
        self.failure = ""
        try:
            where = resolve_device(device)
            if where.type == "cpu":
                torch.set_num_threads(machine.threads or 1)
            recorded = labels.teachers[place]
            shelf = TeacherShelf(where, offline=machine.offline, has_depth=True, precision=recorded.precision)
            teacher, digest = shelf.take(task.teachers[place])
            check_digest(recorded, digest)
            self.labeller = Labeller(teacher, where)
        except Exception as error:
            self.failure = _failure(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        failure, work = self.failure or str(batch["failure"][0]), b""
        if not failure:
            try:
                given = _unpack(batch["work"][0])
                work = _pack([(regions, _fetched(self.labeller.label(regions))) for regions, _ in given])
            except Exception as error:
                failure = _failure(error)
        return {"piece": batch["piece"], "work": np.array([work], object), "failure": np.array([failure], object)}


def _fetched(label: PseudoLabel) -> PseudoLabel:
    return replace(
        label,
        disparity=label.disparity.cpu(),
        valid=label.valid.cpu(),
        features={},
        patch_disparity=None if label.patch_disparity is None else label.patch_disparity.cpu(),
        patch_valid=None if label.patch_valid is None else label.patch_valid.cpu(),
    )


def _write(row: dict[str, Any], folder: Path, pieces: Any, labels: LabelSet) -> dict[str, Any]:
    """A task: the samples of a piece, as a file of its own."""
    if row["failure"]:
        return {"samples": 0, "failure": row["failure"]}
    try:
        piece: Piece = _get(pieces)[int(row["piece"])]
        form, name = format_of(labels, piece.part.heldout), labels.teachers[piece.part.teacher].name
        ordinals = piece.part.ordinals
        contents: list[bytes] = []
        problems: list[dict[str, object]] = []
        for (first, last), (regions, said) in zip(piece.batches(), _unpack(row["work"]), strict=True):
            assert said is not None, "the actor labels all or fails"
            numbers = range(piece.part.first + first, piece.part.first + last)
            for packed in pack_batch(regions, said, form, name, numbers, ordinals[first:last]):
                contents.append(packed.content)
                problems += packed.problems
        if problems:
            write_piece(piece.problems(folder), folder / piece.part.url, json.dumps(problems))
        write_piece(piece.path(folder), folder / piece.part.url, b"".join(contents))
    except Exception as error:
        return {"samples": 0, "failure": _failure(error)}
    return {"samples": piece.last - piece.first, "failure": ""}


def _join(folder: Path, pieces: list[Piece], labels: LabelSet) -> str:
    """A task: a shard from its pieces, which go when it is there; returns what went wrong."""
    try:
        _join_pieces(folder, pieces, labels)
    except Exception as error:
        return _failure(error)
    return ""


def _join_pieces(folder: Path, pieces: list[Piece], labels: LabelSet) -> None:
    part = pieces[0].part
    ordinals = part.ordinals
    writer = ShardWriter(folder, part.url, part.first, ordinals, labels)
    if not writer.is_done:
        try:
            begun = writer.begin()
            for piece in pieces:
                _append(folder, piece, writer, begun, ordinals, labels)
            writer.finish()
        finally:
            writer.close()
    writer.remove_pieces()


def _append(folder: Path, piece: Piece, writer: ShardWriter, begun: int, ordinals: list[int], labels: LabelSet) -> None:
    if piece.last <= begun:
        return
    path, number = piece.path(folder), piece.first
    problems: list[dict[str, object]] = []
    if piece.problems(folder).is_file():
        problems = parse_json(piece.problems(folder).read_bytes(), str(piece.problems(folder)))
    with path.open("rb") as file:
        for _, members in read_samples(file, path.stat().st_size, piece.part.first + piece.first, labels):
            if number >= piece.last or not is_intact(members, ordinals[number]):
                break
            if number >= begun:
                own = [problem for problem in problems if problem["ordinal"] == ordinals[number]]
                writer.add(pack_sample(piece.part.first + number, members), own)
            number += 1
    if number != piece.last:
        path.unlink()
        raise DistillDepthError(f"label: {path} is not what was written; type the same command to make it again")
