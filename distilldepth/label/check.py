"""`label --check`: whether a set of labels is what its own record says, byte for byte and value for value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from distilldepth.documents import parse_json, read_json, read_text
from distilldepth.errors import DistillDepthError, one_line, shown
from distilldepth.files import file_digest
from distilldepth.images.tar import is_plain, walk_tar
from distilldepth.label.folder import complete_index, read_labels, read_record
from distilldepth.label.plan import Part, count_samples, find_parts, find_shares, shard_urls
from distilldepth.label.tar import COUNT, MAX_MEMBER, member_names
from distilldepth.label.task import format_of
from distilldepth.teachers.shards import (
    INDEX,
    LABELS,
    LabelledRegion,
    LabelSet,
    StoredTeacher,
    decode_sample,
    parse_index,
    sample_key,
)  # fmt: skip

NO_RELIEF = 1e-3
"""Range of a map, as a share of its largest magnitude, up to which it is called constant."""
_MOST_NAMED = 10
"""Faults of one shard that are named; the others are counted."""
_MOST_ABSENT = 1000
"""Shards that a set may have for each one that is there: machines that label together."""
_PICTURED = 12
"""Samples of each teacher on the page."""


@dataclass
class TeacherRanges:
    """What the maps of one teacher are like."""

    teacher: StoredTeacher
    samples: int = 0
    constant: int = 0
    """Maps without relief, or with nothing known."""
    unknown: float = 0.0
    """Share of the pixels without a value."""
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, other: TeacherRanges) -> None:
        """Take in what was found in a shard."""
        total = self.samples + other.samples
        if total:
            self.unknown = (self.unknown * self.samples + other.unknown * other.samples) / total
        self.samples, self.constant = total, self.constant + other.constant
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class CheckReport:
    """What a set of labels is found to hold."""

    folder: Path
    labels: LabelSet
    faults: list[str] = field(default_factory=list)
    """What is wrong, one line each."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing, and no fault."""
    ranges: list[TeacherRanges] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    size: int = 0
    """Bytes of all shards."""
    pictured: list[tuple[str, LabelledRegion]] = field(default_factory=list)
    """Some samples, by shard and key."""


@dataclass
class _Found:
    """What one shard is found to hold."""

    ranges: TeacherRanges
    faults: list[str] = field(default_factory=list)
    pictured: list[tuple[str, LabelledRegion]] = field(default_factory=list)
    problems: int = 0
    size: int = 0
    more: int = 0

    def fault(self, text: str) -> None:
        """Name a fault, or count it if too many have been named."""
        if len(self.faults) < _MOST_NAMED:
            self.faults.append(text)
        else:
            self.more += 1


def check_labels(
    folder: Path,
    *,
    which: tuple[int, int] = (0, 1),
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> CheckReport:
    """Read every shard of a set, and write its index if all are there and it has none.

    Args:
        folder: of the set.
        which: (index, count): check every count-th shard of each teacher from number index on.
        start: told how many samples there are, gives what is told how many more are checked.

    Returns:
        What was found; the set is whole if it has no faults.

    Raises:
        DistillDepthError: the folder holds no labels, or its own record is damaged.
    """
    if not folder.is_dir():
        raise DistillDepthError(f"label: {folder}: no such folder")
    labels = read_labels(folder)
    if labels is None:
        raise DistillDepthError(f"label: {folder} holds no labels.json; --check takes a folder that label wrote")
    _check_bounds(folder, labels)
    report = CheckReport(folder, labels, ranges=[TeacherRanges(teacher) for teacher in labels.teachers])
    _check_index(report)
    _check_files(report)
    shares = find_shares(labels)
    parts: list[Part] = []
    for place, teacher in enumerate(labels.teachers):
        if shares.samples(place) != teacher.samples:
            report.faults.append(
                f"labels.json: {teacher.name} labels {teacher.samples} samples, but seed, weights and images give it "
                f"{shares.samples(place)}"
            )
        else:
            parts += find_parts(labels, shares, place, which)
    there = [part for part in parts if (folder / part.url).is_file()]
    advance = start(sum(part.count for part in there)) if start and there else lambda _: None
    chosen = {part.url: _pictured_numbers(part, labels) for part in there}
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        jobs = [partial(_check_shard, folder, part, labels, chosen[part.url], advance) for part in there]
        for part, found in zip(there, pool.map(lambda job: job(), jobs), strict=True):
            _take(report, part, found)
    _judge(report)
    return report


def _check_bounds(folder: Path, labels: LabelSet) -> None:
    """Raise DistillDepthError if labels.json speaks of far more than lies beside it, before it is gone through."""
    there = [path for teacher in labels.teachers for path in (folder / teacher.folder).glob("*.tar")]
    size = sum(path.stat().st_size for path in there)
    shards = sum(labels.shards(teacher) for teacher in labels.teachers)
    samples = sum(teacher.samples for teacher in labels.teachers)
    # A share of many machines is a part of the shards; a sample takes two headers of a tar at least.
    held = samples if shards <= len(there) else (len(there) - len(labels.teachers)) * labels.samples_per_shard
    if shards > _MOST_ABSENT * (len(there) + 1) or held * 1024 > size:
        raise DistillDepthError(
            f"label: {folder / LABELS} speaks of {samples} samples in {shards} shards, and {len(there)} shards of "
            f"{size} bytes are there; it is damaged, or the shards are missing: copy the set again"
        )


def _pictured_numbers(part: Part, labels: LabelSet) -> range:
    """Which samples of a shard are shown: a few of each teacher, spread over its shards."""
    if part.heldout:
        return range(0, part.count, max(1, part.count // 2))[:2]
    shards = labels.shards(labels.teachers[part.teacher])
    each = -(-_PICTURED // shards)
    if int(part.url.rpartition("/")[2].removesuffix(".tar")) % max(1, shards // _PICTURED):
        return range(0)
    return range(0, part.count, max(1, part.count // each))[:each]


def _take(report: CheckReport, part: Part, found: _Found) -> None:
    report.shards += 1
    report.samples += found.ranges.samples
    report.size += found.size
    report.faults += found.faults
    if found.more:
        report.faults.append(f"{part.url}: {found.more} more faults")
    if found.problems:
        report.notes.append(
            f"{part.url}: {found.problems} samples with photographs or maps that are not as they should be, named in "
            f"{part.url.removesuffix('.tar')}.json"
        )
    if not part.heldout:
        report.ranges[part.teacher].add(found.ranges)
    report.pictured += found.pictured


def _judge(report: CheckReport) -> None:
    for ranges in report.ranges:
        if ranges.constant and 2 * ranges.constant > ranges.samples:
            report.faults.append(
                f"{ranges.teacher.name}: {ranges.constant} of {ranges.samples} maps are constant or unknown; this "
                "teacher has nothing to teach"
            )
        elif ranges.constant:
            report.notes.append(f"{ranges.teacher.name}: {ranges.constant} of {ranges.samples} maps are constant")


def _check_index(report: CheckReport) -> None:
    folder, labels = report.folder, report.labels
    expected = shard_urls(labels)
    missing = []
    for url in expected:
        try:
            record = read_record(folder, url)
        except DistillDepthError as error:
            report.faults.append(one_line(error))
            continue
        if record is None or not (folder / url).is_file():
            missing.append(url)
        elif record.nsamples != count_samples(url, labels):
            report.faults.append(
                f"{url}: its .json counts {record.nsamples} samples, labels.json gives it {count_samples(url, labels)}"
                "; is the labels.json that of another set?"
            )
    if missing:
        some = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        report.faults.append(f"{len(missing)} of {len(expected)} shards are missing, or their .json is: {some}")
    path = folder / INDEX
    if not path.exists():
        if not missing and not report.faults:
            complete_index(folder, labels)
            report.notes.append("index.json was not there, and was written")
        return
    try:
        rows = parse_index(read_text(path), str(path))
    except DistillDepthError as error:
        report.faults.append(one_line(error))
        return
    listed = {row.url: row for row in rows}
    for url in sorted(listed.keys() - set(expected)):
        report.faults.append(f"index.json names {url}, which this set does not have")
    for url in expected:
        if url not in listed:
            report.faults.append(f"index.json does not name {url}")
        elif url not in missing and _record_or_none(folder, url) not in (None, listed[url]):
            report.faults.append(f"index.json and {url.removesuffix('.tar')}.json differ about {url}")


def _record_or_none(folder: Path, url: str) -> object:
    try:
        return read_record(folder, url)
    except DistillDepthError:
        return None


def _check_files(report: CheckReport) -> None:
    """Name what lies in the folder and belongs to nothing."""
    expected = set(shard_urls(report.labels))
    known = expected | {url.removesuffix(".tar") + ".json" for url in expected}
    for path in sorted(report.folder.rglob("*")):
        name = path.relative_to(report.folder).as_posix()
        if path.is_dir() or "/" not in name:
            continue
        if path.name.startswith(".distilldepth-"):
            if path.name.endswith(".partial"):
                report.notes.append(f"{name}: a shard that is not finished; the same label command goes on with it")
        elif name not in known:
            report.faults.append(f"{name}: belongs to no shard of this set")


def _check_shard(folder: Path, part: Part, labels: LabelSet, shown_numbers: range, advance: Callable) -> _Found:
    found = _Found(TeacherRanges(labels.teachers[part.teacher]))
    path = folder / part.url
    found.size = path.stat().st_size
    try:
        record = read_record(folder, part.url)
        if record is not None:
            row = read_json(path.with_suffix(".json"))
            found.problems = row[COUNT] if isinstance(row.get(COUNT), int) else 0
            if record.filesize != found.size:
                found.fault(f"{part.url}: has {found.size} bytes, its .json says {record.filesize}; copy it again")
            elif file_digest(path) != record.sha256:
                found.fault(f"{part.url}: is not what was written (checksum); copy it again")
        _check_samples(path, part, labels, shown_numbers, found, advance)
    except (DistillDepthError, OSError) as error:
        found.fault(f"{part.url}: {one_line(str(error).removeprefix(f'{path}: '))}")
    return found


def _check_samples(
    path: Path, part: Part, labels: LabelSet, shown_numbers: range, found: _Found, advance: Callable
) -> None:
    form = format_of(labels, part.heldout)
    names, ordinals = member_names(form), part.ordinals
    seen = 0
    with path.open("rb") as file:
        for number, members in _samples(str(path), part, names, found):
            contents = {}
            for name, (offset, size) in members.items():
                file.seek(offset)
                contents[name] = file.read(size)
            advance(1)
            seen += 1
            key = f"{part.url}/{sample_key(part.first + number)}"
            try:
                sample = decode_sample(contents, form, key)
            except DistillDepthError as error:
                found.fault(one_line(error))
                continue
            _check_sample(sample, contents, key, ordinals[number], labels.teachers[part.teacher], found)
            _measure(sample, found.ranges)
            if number in shown_numbers:
                found.pictured.append((key, sample))
    if seen != part.count:
        found.fault(f"{part.url}: has {seen} samples, {part.count} are expected")


def _samples(
    path: str, part: Part, names: list[str], found: _Found
) -> Iterator[tuple[int, dict[str, tuple[int, int]]]]:
    """The samples of a shard by number, with the place and size of their members; anything else is a fault."""
    current = ""
    members: dict[str, tuple[int, int]] = {}
    wanted = {sample_key(part.first + number): number for number in range(part.count)}
    done: set[str] = set()

    def complete() -> Iterator[tuple[int, dict[str, tuple[int, int]]]]:
        if current in wanted and current not in done:
            done.add(current)
            if list(members) != names and set(members) == set(names):
                found.fault(f"{part.url}/{current}: its members are not in the order {' '.join(names)}")
            yield wanted[current], members

    for name, member in walk_tar(path):
        key, _, kind = name.partition(".")
        if name.startswith("/") or ".." in name.split("/"):
            found.fault(f"{part.url}: names a member {shown(name)}, outside the place where it is unpacked")
        elif not is_plain(member) or member.size > MAX_MEMBER or key not in wanted or kind not in names:
            found.fault(f"{part.url}: has a member {shown(name)}, which no sample of it has")
        elif key != current and key in done:
            found.fault(f"{part.url}: has a member {shown(name)} away from its sample")
        else:
            if key != current:
                yield from complete()
                current, members = key, {}
            if kind in members:
                found.fault(f"{part.url}: has the member {shown(name)} twice")
            members[kind] = (member.offset_data, member.size)
    yield from complete()


def _check_sample(
    sample: LabelledRegion, contents: dict[str, bytes], key: str, ordinal: int, teacher: StoredTeacher, found: _Found
) -> None:
    if sample.ordinal != ordinal:
        found.fault(f"{key}: is crop {sample.ordinal}, crop {ordinal} is expected there")
    if sample.teacher != teacher.name:
        found.fault(f"{key}: is labelled by {shown(sample.teacher)}, this is the shard of {teacher.name}")
    elif parse_json(contents["json"], key).get("digest") != teacher.digest:
        found.fault(f"{key}: is labelled by a {teacher.name} of other weights than labels.json says")


def _measure(sample: LabelledRegion, ranges: TeacherRanges) -> None:
    known = np.isfinite(sample.disparity)
    ranges.samples += 1
    ranges.unknown += (1 - float(known.mean()) - ranges.unknown) / ranges.samples
    if not known.any():
        ranges.constant += 1
        return
    low, high = float(sample.disparity[known].min()), float(sample.disparity[known].max())
    ranges.constant += not high - low > NO_RELIEF * max(abs(low), abs(high))
    ranges.low, ranges.high = min(ranges.low, low), max(ranges.high, high)
