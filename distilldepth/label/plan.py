"""Which crops each teacher labels, and in which shards they lie: a function of the set's own record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distilldepth.teachers.pool import draw
from distilldepth.teachers.shards import HELDOUT, LabelSet, StoredTeacher, shard_name


class Shares:
    """Which of the crops `0 .. total-1` belong to which teacher.

    Crops come in groups of `group`, as the batches of a run do, and each group has the teacher that a run draws for it.
    """

    def __init__(self, weights: Sequence[float], seed: int, group: int, total: int) -> None:
        self.group, self.total = group, total
        groups = -(-total // group)
        if len(weights) == 1:
            self._drawn = np.zeros(groups, np.int8)
        else:
            self._drawn = np.fromiter((draw(weights, seed, step) for step in range(groups)), np.int8, groups)

    def samples(self, teacher: int) -> int:
        """Return how many crops a teacher labels."""
        groups = np.flatnonzero(self._drawn == teacher)
        if not len(groups):
            return 0
        return int(len(groups) - 1) * self.group + min(self.group, self.total - int(groups[-1]) * self.group)

    def ordinals(self, teacher: int) -> Ordinals:
        """Return the crops of a teacher, in order."""
        return Ordinals(np.flatnonzero(self._drawn == teacher), self.group, self.samples(teacher))


@dataclass(frozen=True)
class Ordinals:
    """The crops of one teacher: sample `number` of its shards is crop `ordinals(number)` of the sequence."""

    groups: np.ndarray
    group: int
    samples: int

    def between(self, first: int, last: int) -> list[int]:
        """Return the crops of the samples `first .. last-1`."""
        numbers = np.arange(first, last)
        return (self.groups[numbers // self.group] * self.group + numbers % self.group).tolist()


@dataclass(frozen=True)
class Part:
    """One shard that is to be written."""

    url: str
    """Path below the set."""
    teacher: int
    heldout: bool
    first: int
    """Number of its first sample among those of its teacher."""
    count: int
    """Samples."""
    crops: Ordinals | None = None
    """The crops of its teacher; None for held-out images, which are numbered."""

    @property
    def ordinals(self) -> list[int]:
        """Crop of each of its samples."""
        last = self.first + self.count
        return list(range(self.first, last)) if self.crops is None else self.crops.between(self.first, last)


def find_shares(labels: LabelSet) -> Shares:
    """Return which teacher labels what in a set."""
    weights = [teacher.weight for teacher in labels.teachers]
    return Shares(weights, labels.seed, labels.group, labels.views * labels.training)


def shard_urls(labels: LabelSet) -> list[str]:
    """Return every shard that a whole set has, in the order of its index."""
    urls: list[str] = []
    for teacher in labels.teachers:
        urls += [shard_name(teacher, number) for number in range(labels.shards(teacher))]
        urls += [shard_name(teacher, HELDOUT)] if labels.heldout else []
    return urls


def find_parts(labels: LabelSet, shares: Shares, place: int, which: tuple[int, int] = (0, 1)) -> Iterator[Part]:
    """Yield the shards of one teacher that one of several processes writes.

    Shard number k is written by process k % count; the held-out images count as the shard behind the last.

    Args:
        labels: the set.
        shares: see `find_shares`.
        place: of the teacher in the set.
        which: (index, count) of the process, from 0.
    """
    teacher: StoredTeacher = labels.teachers[place]
    index, count = which
    ordinals = shares.ordinals(place)
    shards = labels.shards(teacher)
    for number in range(index, shards, count):
        first = number * labels.samples_per_shard
        last = min(first + labels.samples_per_shard, teacher.samples)
        yield Part(shard_name(teacher, number), place, False, first, last - first, ordinals)
    if labels.heldout and shards % count == index:
        yield Part(shard_name(teacher, HELDOUT), place, True, 0, labels.heldout)


def count_samples(url: str, labels: LabelSet) -> int:
    """Return how many samples a shard of a set must have."""
    folder, _, file = url.partition("/")
    teacher = next(teacher for teacher in labels.teachers if teacher.folder == folder)
    if file == f"{HELDOUT}.tar":
        return labels.heldout
    first = int(file.removesuffix(".tar")) * labels.samples_per_shard
    return min(labels.samples_per_shard, teacher.samples - first)
