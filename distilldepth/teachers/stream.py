"""Samples of one teacher as an endless stream: which sample is where, and how it is read without reading others.

A stream is a pure function of the position. Every sample comes once in an epoch; one that cannot be read keeps its
place, so that all others keep theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from distilldepth.errors import DistillDepthError
from distilldepth.teachers.location import WAITS, Location, Source, TransportError, read_samples
from distilldepth.teachers.shards import LabelSet, Shard, sample_key

BUFFER_SAMPLES = 256
"""Samples in a row that are mixed with each other."""
BUFFER_BYTES = 64 << 20
"""What they may have together, by the index."""


@dataclass(frozen=True)
class StreamOrder:
    """Which sample is where: the whole of every epoch, for all processes together."""

    counts: tuple[int, ...]
    """Samples of each shard."""
    buffer: int
    """Samples in a row that are mixed."""
    seed: int
    stream: int
    """Number of the stream in its run: others are mixed otherwise."""
    as_stored: bool
    """Whether the first epoch has the order of the shards, as an online run with the seed of the labels."""

    @property
    def samples(self) -> int:
        """How many an epoch has."""
        return sum(self.counts)

    def shards(self, epoch: int) -> list[int]:
        """Return the shards in the order of an epoch."""
        if self._is_stored(epoch):
            return list(range(len(self.counts)))
        return np.random.default_rng([self.seed, 5, self.stream, epoch]).permutation(len(self.counts)).tolist()

    def mixed(self, epoch: int, shard: int, buffer: int) -> list[int]:
        """Return the order of the samples of a buffer, as places in the shard."""
        first = buffer * self.buffer
        count = min(self.buffer, self.counts[shard] - first)
        if self._is_stored(epoch):
            return list(range(first, first + count))
        order = np.random.default_rng([self.seed, 6, self.stream, epoch, shard, buffer]).permutation(count)
        return (first + order).tolist()

    def parts(self, epoch: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of shards that hold the places `start .. stop-1` of an epoch: (shard, first, last + 1)."""
        place = 0
        for shard in self.shards(epoch):
            count = self.counts[shard]
            first, last = max(start - place, 0), min(stop - place, count)
            if first < last:
                yield shard, first, last
            place += count

    def at(self, epoch: int, place: int) -> tuple[int, int]:
        """Return the shard and the place in it of one place of an epoch."""
        ((shard, first, _),) = self.parts(epoch, place, place + 1)
        buffer, inside = divmod(first, self.buffer)
        return shard, self.mixed(epoch, shard, buffer)[inside]

    def _is_stored(self, epoch: int) -> bool:
        return self.as_stored and epoch == 0


@dataclass(frozen=True)
class Share:
    """What of a stream one of several processes reads.

    With a shard for each, every process has a part of its own of each epoch: whole shards where they divide evenly, so
    that hardly a byte is read twice. With fewer shards each reads everything and takes its batches out of the others.
    """

    process: int
    processes: int
    batch: int
    """Samples of a batch."""
    own: bool
    """Whether it has a part of its own."""
    samples: int
    """Of an epoch, of all processes together."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The places of an epoch that it reads."""
        if not self.own:
            return 0, self.samples
        return tuple((self.process + end) * self.samples // self.processes for end in (0, 1))  # type: ignore[return-value]

    def first(self, number: int) -> int:
        """Return the position of the first sample of batch `number` in what it reads."""
        return number * self.batch if self.own else (number * self.processes + self.process) * self.batch

    def place(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position and the place in it."""
        begin, end = self.bounds
        epoch, inside = divmod(position, end - begin)
        return epoch, begin + inside


@dataclass
class RawSample:
    """A sample as it was read: its members, or why there are none."""

    name: str
    """Shard and key."""
    members: dict[str, bytes]
    error: str = ""


class LabelStream:
    """Reads the samples of one teacher in the order of a run.

    Args:
        location: of the set.
        labels: what the set says of itself.
        shards: of this teacher, in order.
        order: see `StreamOrder`.
        share: see `Share`.
    """

    def __init__(
        self, location: Location, labels: LabelSet, shards: list[Shard], order: StreamOrder, share: Share
    ) -> None:
        self.location, self.labels, self.shards = location, labels, shards
        self.order, self.share = order, share
        height, width = labels.size
        count, window_height, window_width = labels.windows
        pixels = max(3 * height * width, 2 * count * window_height * window_width)
        self.largest_member = (1 << 20) + 2 * pixels
        self._reader: Iterator[RawSample] | None = None
        self._position = 0
        self._source: Source | None = None
        self._aborted = threading.Event()

    def batch(self, number: int) -> list[RawSample]:
        """Return the samples of batch `number`; batches in rising order are read in one go.

        Raises:
            DistillDepthError: a shard is gone, or a server or command goes on failing.
        """
        first = self.share.first(number)
        if self._reader is None or first < self._position:
            self.close()
            self._reader, self._position = self._read_from(first), first
        while self._position < first:
            next(self._reader)
            self._position += 1
        samples = [next(self._reader) for _ in range(self.share.batch)]
        self._position += len(samples)
        return samples

    def again(self) -> LabelStream:
        """Return another reader of the same samples."""
        return LabelStream(self.location, self.labels, self.shards, self.order, self.share)

    def abort(self) -> None:
        """Make a thread that is reading stop, with an error."""
        self._aborted.set()
        if self._source is not None:
            self._source.abort()

    def close(self) -> None:
        """Close the shard that is being read."""
        self._reader = None
        if self._source is not None:
            self._source.close()
            self._source = None

    def _read_from(self, position: int) -> Iterator[RawSample]:
        end = self.share.bounds[1]
        while True:
            epoch, start = self.share.place(position)
            for shard, first, last in self.order.parts(epoch, start, end):
                yield from self._read_part(epoch, shard, first, last)
            position += end - start

    def _read_part(self, epoch: int, shard: int, first: int, last: int) -> Iterator[RawSample]:
        """Places `first .. last-1` of a shard as an epoch has them."""
        buffer = self.order.buffer
        start = first // buffer
        reader = self._read_shard(shard, start * buffer)
        for number in range(start, -(-last // buffer)):
            mixed = self.order.mixed(epoch, shard, number)
            held = {place: next(reader) for place in sorted(mixed)}
            for place, at in enumerate(mixed, start=number * buffer):
                sample = held.pop(at)
                if first <= place < last:
                    yield sample
        reader.close()

    def _read_shard(self, shard: int, first: int) -> Generator[RawSample, None, None]:
        """The samples of a shard from place `first` on, each once and in order, whatever the shard holds."""
        row = self.shards[shard]
        base = shard * self.labels.samples_per_shard
        wanted, behind = base + first, base + row.nsamples
        waits = iter(WAITS)
        reason = "it is not there"
        while wanted < behind:
            try:
                for key, members in read_samples(
                    self.location, row.url, limit=row.filesize, largest=self.largest_member, opened=self._opened
                ):
                    number = int(key) if key.isascii() and key.isdecimal() and key == sample_key(int(key)) else -1
                    for missing in range(wanted, min(number, behind)):
                        yield self._unreadable(row, missing, "it is not there")
                    wanted = max(wanted, min(number, behind))
                    if number == wanted < behind:
                        yield RawSample(self._name(row, wanted), members)
                        wanted += 1
                        waits = iter(WAITS)
                    if wanted == behind:
                        return
                break
            except TransportError as error:
                wait = None if error.final else next(waits, None)
                if wait is None or self._aborted.wait(wait):
                    raise self.location.failed(row.url, error) from error
            except DistillDepthError as error:
                reason = f"the shard cannot be read to its end: {error}"
                break
        for missing in range(wanted, behind):
            yield self._unreadable(row, missing, reason)

    def _opened(self, source: Source) -> None:
        self._source = source

    def _name(self, row: Shard, number: int) -> str:
        return f"{self.location.root}/{row.url}/{sample_key(number)}"

    def _unreadable(self, row: Shard, number: int, why: str) -> RawSample:
        name = self._name(row, number)
        return RawSample(name, {}, f"{name}: {why}")


def buffer_size(shards: list[Shard]) -> int:
    """Return how many samples in a row are mixed: as many as fit into the memory meant for it."""
    each = sum(shard.filesize for shard in shards) / max(sum(shard.nsamples for shard in shards), 1)
    return int(max(1, min(BUFFER_SAMPLES, BUFFER_BYTES / max(each, 1))))
