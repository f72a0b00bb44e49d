"""Where the batch of each step comes from: photographs for teachers in memory, shards for those with stored labels."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from distilldepth.errors import DistillDepthError
from distilldepth.images.batches import CropDataset, StepBatches, loading
from distilldepth.images.crops import Regions
from distilldepth.teachers.pool import TeacherPool
from distilldepth.teachers.stored import AbsentTeacher, LabelledRegions

_AHEAD = 4
"""Batches of labels that are read ahead of the one that is asked for."""
_MOST_BROKEN = 1000
"""Samples in a row that cannot be read before a run ends, as with images."""


class Feed:
    """The batches of a run, each with the teacher that was drawn for its step.

    Every teacher whose labels are kept has a stream of its own, teachers in memory share that of the photographs: a
    batch is the next one of its stream, whatever other steps were in between.

    Args:
        teachers: of the run.
        photographs: what teachers in memory label; None if there are none.
        batches: of a step.
        batch_size: images of a batch.
        process: number of this process, and how many there are.
    """

    def __init__(
        self,
        teachers: TeacherPool,
        photographs: CropDataset | None,
        *,
        batches: int,
        batch_size: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self.teachers, self.photographs = teachers, photographs
        self.batches, self.batch_size, self.process = batches, batch_size, process
        self._has_labels = any(isinstance(teacher, AbsentTeacher) for teacher in teachers.teachers)

    def plan(self, start: int, stop: int) -> Iterator[tuple[AbsentTeacher | None, int]]:
        """Yield for batches `start .. stop-1` whose stream each is of (None: the photographs), and its number there."""
        if not self._has_labels:
            yield from ((None, number) for number in range(start, stop))
            return
        counts: dict[AbsentTeacher | None, int] = defaultdict(int)
        for step in range(-(-stop // self.batches)):
            teacher = self.teachers.draw(step)
            stream = teacher if isinstance(teacher, AbsentTeacher) else None
            for number in range(step * self.batches, min((step + 1) * self.batches, stop)):
                if number >= start:
                    yield stream, counts[stream]
                counts[stream] += 1

    @contextmanager
    def open(self, start: int, stop: int, workers: int, *, pin: bool) -> Iterator[Iterator[Regions]]:
        """Give the batches `start .. stop-1` of this process, read and decoded ahead."""
        if not self._has_labels:
            with self._live(start, stop, workers, pin=pin) as loader:
                yield loader
            return
        reader = _LabelReader(self.plan(start, stop), workers, pin=pin)
        try:
            if self.photographs is None:
                reader.start()
                yield self._labelled(reader, start, stop)
                return
            first = next((number for stream, number in self.plan(start, stop) if stream is None), 0)
            # Processes before threads: a process that is forked off beside a running thread may find a lock taken.
            with self._live(first, first + stop - start, workers, pin=pin) as loader:
                reader.start()
                yield self._mixed(reader, loader, start, stop)
        finally:
            reader.end()

    def _live(self, first: int, behind: int, workers: int, *, pin: bool) -> AbstractContextManager[Iterator[Regions]]:
        assert self.photographs is not None, "teachers in memory have photographs"
        order = StepBatches(first, behind, self.batch_size, *self.process)
        return loading(self.photographs, order, workers, pin=pin)

    def _labelled(self, reader: _LabelReader, start: int, stop: int) -> Iterator[Regions]:
        for _ in range(start, stop):
            yield reader.next()

    def _mixed(self, reader: _LabelReader, loader: Iterator[Regions], start: int, stop: int) -> Iterator[Regions]:
        for stream, _ in self.plan(start, stop):
            yield next(loader) if stream is None else reader.next()

    def trial(self, number: int) -> Regions:
        """Return a batch like those to come: photographs if there are any, since teachers run on them."""
        if self.photographs is None:
            return self.batch(number)
        return self._photographed(0)

    def batch(self, number: int) -> Regions:
        """Return one batch of this run once more."""
        stream, place = next(iter(self.plan(number, number + 1)))
        if stream is not None:
            reader = stream.stream.again()
            samples = reader.batch(place)
            reader.close()
            return stream.assemble([stream.decode(raw) for raw in samples])
        return self._photographed(place)

    def _photographed(self, place: int) -> Regions:
        assert self.photographs is not None, "teachers in memory have photographs"
        ordinals = next(iter(StepBatches(place, place + 1, self.batch_size, processes=self.process[1])))
        return Regions.collate([self.photographs[ordinal] for ordinal in ordinals])


class _LabelReader:
    """Reads the batches of a plan in one thread and decodes them in others; they come out in the order of the plan."""

    def __init__(self, plan: Iterator[tuple[AbsentTeacher | None, int]], workers: int, *, pin: bool) -> None:
        self._plan, self._pin = plan, pin
        self._decoders = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="labels")
        self._ready: queue.Queue[tuple[AbsentTeacher, Future[LabelledRegions]] | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._reading: AbsentTeacher | None = None
        self._broken: dict[AbsentTeacher, int] = defaultdict(int)
        self._thread = threading.Thread(target=self._read, name="labels", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def next(self) -> LabelledRegions:
        """Return the next batch of labels.

        Raises:
            DistillDepthError: a shard is gone, or too many samples in a row cannot be read.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        teacher, batch = item
        regions = batch.result()
        first = next(filter(None, regions.errors), "")
        for broken in regions.unreadable:
            self._broken[teacher] = self._broken[teacher] + 1 if broken else 0
            if self._broken[teacher] >= min(_MOST_BROKEN, teacher.record.samples):
                raise DistillDepthError(
                    f"{self._broken[teacher]} samples in a row cannot be read; one of them: {first}"
                )
        return regions

    def end(self) -> None:
        """Stop, wherever the threads are."""
        self._stop.set()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        reading = self._reading
        if reading is not None:
            reading.stream.abort()
        if self._thread.is_alive():
            self._thread.join(2)  # One that waits for a disk or a server ends with the program.

    def _read(self) -> None:
        used: set[AbsentTeacher] = set()
        try:
            for teacher, number in self._plan:
                if teacher is None:
                    continue
                used.add(teacher)
                self._reading = teacher
                samples = teacher.stream.batch(number)
                decoded = [self._decoders.submit(teacher.decode, raw) for raw in samples]
                if not self._hand_over((teacher, self._decoders.submit(self._collect, teacher, decoded))):
                    return
        except BaseException as error:
            # Whatever it is, it belongs to the thread that trains.
            self._hand_over(error)
        finally:
            for teacher in used:
                teacher.stream.close()

    def _collect(self, teacher: AbsentTeacher, decoded: list[Future]) -> LabelledRegions:
        # Decoding was submitted before this: it is done, or runs beside it.
        batch = teacher.assemble([sample.result() for sample in decoded])
        return batch.pin_memory() if self._pin else batch

    def _hand_over(self, item: tuple[AbsentTeacher, Future[LabelledRegions]] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
