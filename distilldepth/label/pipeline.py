"""One process's shards of one teacher: decoding before the model, encoding and writing behind it, all at once."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.utils.data import Sampler

from distilldepth.images.batches import CropDataset, loading, next_batch
from distilldepth.images.crops import Regions
from distilldepth.label.encode import Labeller, Packed, pack_batch
from distilldepth.label.plan import Part
from distilldepth.label.tar import ShardWriter
from distilldepth.teachers.shards import LabelSet
from distilldepth.teachers.teacher import PseudoLabel

AGAIN = "type the same command to go on"


@dataclass
class _Batch:
    """One batch on its way."""

    writer: ShardWriter
    numbers: range
    """Samples of it that are to be written, as their keys count."""
    ordinals: list[int]
    last: bool
    """Whether it completes its shard."""


class _Batches(Sampler[list[int]]):
    """The crops of each batch of several shards; what is there already is left out, and each shard opened in turn.

    Batches begin where they would without an interruption, so that a network that computes batches of another size
    otherwise gives the same numbers.
    """

    def __init__(
        self, folder: Path, parts: Iterator[Part], labels: LabelSet, size: int, stood: Callable[[int], None]
    ) -> None:
        self.folder, self.parts, self.labels, self.size, self.stood = folder, parts, labels, size, stood
        self.waiting: deque[_Batch] = deque()
        """What was given out, in order."""
        self.opened: list[ShardWriter] = []

    def __iter__(self) -> Iterator[list[int]]:
        for part in self.parts:
            ordinals = part.ordinals
            writer = ShardWriter(self.folder, part.url, part.first, ordinals, self.labels)
            if writer.is_done:
                continue
            self.opened = [other for other in self.opened if other.is_open] + [writer]
            begun = writer.begin()
            self.stood(begun)
            count = part.count
            if begun == count:
                writer.finish()
                continue
            for first in range(begun - begun % self.size, count, self.size):
                last = min(first + self.size, count)
                new = max(first, begun)
                numbers = range(part.first + new, part.first + last)
                self.waiting.append(_Batch(writer, numbers, ordinals[new:last], last == count))
                yield ordinals[first:last]

    def close(self) -> None:
        """Close every file; what is in them stays."""
        for writer in self.opened:
            writer.close()


class _Sink:
    """Threads that encode, and one that writes in order; no more than `most` batches wait."""

    def __init__(self, threads: int, most: int, done: Callable[[int, list[dict[str, object]]], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._queue: queue.Queue[tuple[_Batch, Future[list[Packed]]] | None] = queue.Queue(most)
        self._done = done
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="write", daemon=True)
        self._thread.start()

    def put(self, batch: _Batch, pack: Callable[[], list[Packed]]) -> None:
        """Take a batch, waiting while others are before it; raises what went wrong with an earlier one."""
        self.check()
        self._queue.put((batch, self._pool.submit(pack)))

    def check(self) -> None:
        """Raise what went wrong with a batch, if anything did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write what waits, and end the threads."""
        self._queue.put(None)
        self._thread.join()
        self._pool.shutdown()

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            batch, future = item
            if self._error is not None:
                future.cancel()
                continue  # So that nobody waits for room.
            try:
                for packed in future.result():
                    batch.writer.add(packed.content, packed.problems)
                    self._done(1, packed.problems)
                if batch.last:
                    batch.writer.finish()
            except BaseException as error:
                self._error = error


@dataclass(frozen=True)
class Pace:
    """How much goes on at once."""

    batch: int
    """Regions that the teacher sees at once."""
    workers: int
    pin: bool
    lanes: int = 1
    """Batches that are labelled side by side, on a CPU."""

    @property
    def threads(self) -> int:
        """Threads that encode, and label on a CPU: networks and compression keep no lock of Python's."""
        return self.lanes if not self.pin else max(1, min(8, (os.cpu_count() or 2) // 2))


def label_shards(
    folder: Path,
    parts: Iterator[Part],
    labels: LabelSet,
    dataset: CropDataset,
    labeller: Labeller,
    pace: Pace,
    progress: Progress,
) -> None:
    """Write shards of one teacher, from where an earlier process left them.

    Raises:
        DistillDepthError: no image can be read, a process ended, or another one writes the same shard.
        OSError: the disk is full.
        MemoryError: a single region is too much for the device.
    """
    batches = _Batches(folder, parts, labels, pace.batch, progress.stood)
    sink = _Sink(pace.threads, 2 * pace.threads + 2, progress.wrote)
    try:
        with loading(dataset, batches, pace.workers, pin=pace.pin) as loader:
            while not progress.stopping():
                try:
                    regions = next_batch(loader, "label", AGAIN)
                except StopIteration:
                    break
                batch = batches.waiting.popleft()
                # A GPU gets its batch at once, and a thread fetches the maps while the next one runs; on a CPU the
                # thread does both.
                label = labeller.label(regions) if pace.pin else None
                sink.put(batch, partial(_make, labeller, regions, label, labels, progress.name, batch))
    finally:
        try:
            sink.close()
        finally:
            batches.close()
    sink.check()


def _make(
    labeller: Labeller, regions: Regions, label: PseudoLabel | None, labels: LabelSet, name: str, batch: _Batch
) -> list[Packed]:
    if label is None:
        label = labeller.label(regions)
    return pack_batch(regions, label, labels, name, batch.numbers, batch.ordinals)


@dataclass
class Progress:
    """What a process has done, and whether it should go on."""

    stopping: Callable[[], bool]
    advance: Callable[[int], None]
    name: str = ""
    """Of the teacher that labels, in the set."""
    written: int = 0
    standing: int = 0
    """Samples of unfinished shards that an earlier process left."""
    problems: int = 0
    first_problem: str = ""

    def stood(self, count: int) -> None:
        """Count samples that were there."""
        self.standing += count
        self.advance(count)

    def wrote(self, count: int, problems: list[dict[str, object]]) -> None:
        """Count samples that were written."""
        self.written += count
        self.problems += len(problems)
        if problems and not self.first_problem:
            self.first_problem = "; ".join(f"{key}: {value}" for key, value in problems[0].items() if key != "ordinal")
        self.advance(count)
