"""Shards as tar files: written sample by sample, found again after a kill, and the same bytes either way."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from distilldepth.documents import parse_json
from distilldepth.errors import DistillDepthError
from distilldepth.folders import lock_file
from distilldepth.teachers.shards import LabelSet, Shard, sample_key

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
MAX_MEMBER = 1 << 30
"""Bytes of a member; no region of a permitted size has more."""
PROBLEMS, COUNT = "problems", "problem_count"
"""Keys of a shard's own file under which it names what was wrong with photographs or labels, the first thousand."""
_MOST_PROBLEMS = 1000


def pack_sample(number: int, members: Mapping[str, bytes]) -> bytes:
    """Return the members of a sample as a piece of a tar file that depends on nothing else."""
    pieces: list[bytes] = []
    for name, content in members.items():
        info = tarfile.TarInfo(f"{sample_key(number)}.{name}")
        info.size, info.mode = len(content), 0o644
        pieces += [info.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % _BLOCK)]
    return b"".join(pieces)


def member_names(labels: LabelSet) -> list[str]:
    """Return what follows the key in the names of a sample's members, in their order."""
    names = ["json"]
    if labels.image_format != "none":
        names.append("image.jpg" if labels.image_format == "jpeg" else "image.png")
    ending = "png" if labels.map_format == "png16" else "npy"
    return [*names, f"map.{ending}", *([f"windows.{ending}"] if labels.windows[0] else [])]


def read_samples(
    file: BinaryIO | FileIO, size: int, first: int, labels: LabelSet
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield the whole samples from where a file stands on, each with the place behind it.

    Ends before the first sample that is not whole, or has other members than `labels` asks for.
    """
    names = member_names(labels)
    number, place = first, file.tell()
    while True:
        members: dict[str, bytes] = {}
        for name in names:
            header = file.read(_BLOCK)
            try:
                info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            except (tarfile.TarError, ValueError):
                return
            stored = -(-info.size // _BLOCK) * _BLOCK
            wanted = info.name == f"{sample_key(number)}.{name}" and info.isreg()
            if not wanted or not 0 <= info.size <= MAX_MEMBER or file.tell() + stored > size:
                return
            members[name] = file.read(stored)[: info.size]
        number, place = number + 1, file.tell()
        yield place, members


def is_intact(members: Mapping[str, bytes], ordinal: int) -> bool:
    """Whether a sample is that of a crop, with the checksums that it was written with."""
    try:
        facts = parse_json(members["json"], "sample")
        return facts["ordinal"] == ordinal and all(
            zlib.crc32(content) == facts["crc32"][name] for name, content in members.items() if name != "json"
        )
    except (DistillDepthError, KeyError, TypeError):
        return False


class ShardWriter:
    """Writes one shard, and goes on with what an earlier process left of it.

    The growing file is `.distilldepth-NAME.partial` beside the shard; `begin` says how many of its samples stand.

    Raises:
        DistillDepthError: another process is writing it.
        OSError: the disk is full, or the file cannot be written.
    """

    def __init__(self, folder: Path, url: str, first: int, ordinals: list[int], labels: LabelSet) -> None:
        self.url, self.first, self.ordinals, self.labels = url, first, ordinals, labels
        self.target = folder / url
        self.partial = self.target.with_name(f".distilldepth-{self.target.name}.partial")
        self._problems = self.target.with_name(f".distilldepth-{self.target.name}.problems")
        self._file: FileIO | None = None
        self._digest = hashlib.sha256()
        self.written = 0
        """Samples that stand in the file."""

    @property
    def record(self) -> Path:
        """The shard's own line of the index, written last."""
        return self.target.with_suffix(".json")

    @property
    def is_done(self) -> bool:
        """Whether the shard and its line of the index are there."""
        return self.record.is_file() and self.target.is_file()

    @property
    def is_open(self) -> bool:
        """Whether its file is open here."""
        return self._file is not None

    def begin(self) -> int:
        """Open what is there, cut it behind its last whole sample, and return how many samples it has."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.target.is_file():
            self._adopt()
            return self.written
        # Without a buffer: after a full disk nothing may be left that is written later.
        self._file = FileIO(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        lock_file(
            self._file,
            f"label: another process is writing {self.target}; give each process its own --shards i/n, with one n for "
            "all",
        )
        self._file.seek(self._walk(self._file))
        self._file.truncate()
        return self.written

    def add(self, content: bytes, problems: list[dict[str, object]]) -> None:
        """Append the next sample, as `pack_sample` gives it, and note what was wrong with it."""
        if self._file is None:
            raise ValueError("ShardWriter.add: begin must be called first")
        if problems:
            # Before the sample, so that a kill in between loses none; a second line for the same crop is dropped.
            with self._problems.open("a", encoding="utf-8") as file:
                # The break comes first: a kill may have left half a line.
                file.writelines("\n" + json.dumps(problem) for problem in problems)
        self._write(content)
        self.written += 1

    def finish(self) -> Shard:
        """Close the shard, give it its name, and write its line of the index."""
        if self.written != len(self.ordinals):
            raise ValueError(f"ShardWriter.finish: {self.written} of {len(self.ordinals)} samples of {self.url}")
        if self._file is not None:
            self._write(_END)
            os.fsync(self._file.fileno())
            os.replace(self.partial, self.target)
            self.close()
        shard = Shard(self.url, self.written, self.target.stat().st_size, self._digest.hexdigest())
        problems = self._read_problems()
        row = {**shard.to_dict(), PROBLEMS: problems[:_MOST_PROBLEMS], COUNT: len(problems)}
        write_piece(self.record, self.target, json.dumps(row, indent=1) + "\n")
        self._problems.unlink(missing_ok=True)
        self.remove_pieces()
        return shard

    def remove_pieces(self) -> None:
        """Remove the pieces from which a cluster joins the shard; see `label.cluster`."""
        for piece in self.target.parent.glob(f".distilldepth-{self.target.name}-*"):
            piece.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _adopt(self) -> None:
        """A shard that has its name already, but no line of the index: a kill came in between."""
        with self.target.open("rb") as file:
            place = self._walk(file)
            if self.written == len(self.ordinals) and file.read(len(_END) + 1) == _END and place:
                self._digest.update(_END)
                return
        raise DistillDepthError(
            f"label: {self.target} has no {self.record.name} and does not hold the samples of these labels; move it "
            "away, and the same command writes it again"
        )

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while self._file is not None and len(left):
            try:
                left = left[self._file.write(left) or 0 :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.target)) from error
        self._digest.update(content)

    def _walk(self, file: BinaryIO | FileIO) -> int:
        """Take over the whole samples of a file that are as they were written; returns the place behind them."""
        place, start, size = 0, 0, os.fstat(file.fileno()).st_size
        for place_behind, members in read_samples(file, size, self.first, self.labels):
            if self.written == len(self.ordinals) or not is_intact(members, self.ordinals[self.written]):
                break
            place = place_behind
            file.seek(start)
            self._digest.update(file.read(place - start))
            start = place
            self.written += 1
        file.seek(place)
        return place

    def _read_problems(self) -> list[dict[str, object]]:
        if not self._problems.is_file():
            return []
        found: dict[str, dict[str, object]] = {}
        for line in filter(None, self._problems.read_text(encoding="utf-8").splitlines()):
            try:
                row = parse_json(line, str(self._problems))
            except DistillDepthError:
                continue  # A line that a kill cut off; its crop was labelled again.
            found[json.dumps(row, sort_keys=True)] = row
        return list(found.values())


def write_piece(path: Path, shard: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; what a kill leaves of it goes when its shard is whole."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    temporary = shard.with_name(f".distilldepth-{shard.name}-{secrets.token_hex(6)}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
