"""Where labels lie: a folder, a web server, or what a command prints; opened by webdataset, tried again, bounded."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from webdataset.gopen import Pipe, gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from distilldepth.documents import MAX_BYTES
from distilldepth.errors import DistillDepthError, UsageError, first_line, shown
from distilldepth.files import expand_user
from distilldepth.teachers.spec import MAX_WEIGHT

T = TypeVar("T")

WAITS = [1.0, 4.0, 16.0]
"""Seconds before another try where a server or command failed."""
_CURL = {
    5: "its proxy is not known",
    6: "the host is not known",
    7: "the connection is refused",
    22: "the server has no such file, or does not give it",
    28: "no answer in time",
    35: "no secure connection",
    60: "the server's certificate is not trusted",
}
_FINAL = (22, 60)
"""What another try does not change."""
_PLAIN, _FOLDER = (b"0", b"\0"), b"5"


class TransportError(OSError):
    """A server, a disk or a command failed, which says nothing of the labels."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final = reason, final

    def __str__(self) -> str:
        # webdataset adds to the arguments of whatever passes through it.
        return self.reason


@dataclass(frozen=True)
class Location:
    """Where a set of labels is, and how much it counts."""

    root: str
    """A folder, `http(s)://...` or `pipe:COMMAND PREFIX`, in front of `/labels.json`."""
    weight: float = 1.0

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return not self.root.startswith(("http://", "https://", "pipe:"))

    def url(self, name: str) -> str:
        """Return what webdataset opens for a file of the set."""
        # A path with a colon would be taken for an address, an absolute one is not.
        root = os.path.abspath(expand_user(self.root)) if self.is_local else self.root
        return f"{root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return a small file of the set, None if a folder has no such file.

        Raises:
            DistillDepthError: it cannot be read, or is larger than any document.
        """
        if self.is_local and not Path(self.url(name)).exists():
            return None
        data = self.try_again(name, lambda: self._read(name))
        if len(data) > MAX_BYTES:
            raise DistillDepthError(f"{self.url(name)}: has more than {MAX_BYTES} bytes")
        return data

    def _read(self, name: str) -> bytes:
        stream = Source(self.url(name))
        try:
            return stream.read(MAX_BYTES + 1)
        finally:
            stream.close()

    def try_again(self, name: str, work: Callable[[], T]) -> T:
        """Return what `work` does, once it does; DistillDepthError where it goes on failing."""
        for wait in [*WAITS, None]:
            try:
                return work()
            except TransportError as error:
                if wait is None or error.final:
                    raise self.failed(name, error) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def failed(self, name: str, error: TransportError) -> DistillDepthError:
        """Return the one line about a file that cannot be read."""
        tried = "" if error.final else f"; tried {len(WAITS) + 1} times"
        return DistillDepthError(f"{self.url(name)}: cannot be read ({error}{tried})")


def parse_location(text: str) -> Location:
    """Read `PATH[=WEIGHT]`; a path that is there as it stands has no weight.

    Raises:
        UsageError: an empty path, a weight that makes no sense, or a kind of address that is not read.

    >>> parse_location("labels/a=0.5")
    Location(root='labels/a', weight=0.5)
    """
    text = text.strip()
    root, equals, number = text.rpartition("=")
    weight = 1.0
    try:
        if equals and not os.path.exists(text):
            weight = float(number)
            text = root
    except ValueError:
        pass  # What is behind the last = is part of the path.
    text = text.rstrip("/") or text[:1]
    if not text:
        raise UsageError("distill: labels must name a folder, http(s)://... or pipe:COMMAND PREFIX, got an empty text")
    if not 0 < weight <= MAX_WEIGHT:
        raise UsageError(f"distill: the weight of labels {shown(text)} must be positive, at most {MAX_WEIGHT:g}")
    head = text.partition(":")[0]
    if "://" in text and head not in ("http", "https", "pipe"):
        raise UsageError(
            f"distill: labels are read from a folder, http(s):// or pipe:, got {shown(text)}; a program that prints a "
            f"file does it too: --labels 'pipe:PROGRAM {text}'"
        )
    if head == "pipe" and len(text.removeprefix("pipe:").split()) < 2:
        raise UsageError(
            f"distill: labels must be pipe:COMMAND PREFIX, got {shown(text)}; the name of a file is put behind PREFIX, "
            'as in "pipe:ssh host cat /data/LABELS"'
        )
    return Location(text, weight)


class Source:
    """Bytes of a file, wherever it is, as webdataset opens it; what fails on the way is a `TransportError`.

    Args:
        url: what to open.
        limit: the most bytes that it may have; None if the reader sees to that.
        largest: the most bytes that a member of it may have if it is a tar file; None if it is none. Then members are
            watched as they pass: webdataset would unpack compressed and sparse ones of any size.
    """

    def __init__(self, url: str, *, limit: int | None = None, largest: int | None = None) -> None:
        self.url, self._left, self._largest = url, limit, largest
        self._header, self._skip = b"", 0
        self._ended = False
        try:
            self._stream: Any = gopen(url, "rb")
        except OSError as error:
            missing = "curl is needed for it" if url.startswith("http") else "no such file"
            what = missing if isinstance(error, FileNotFoundError) else error.strerror or str(error)
            raise TransportError(what, final=True) from error

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer at the end only."""
        try:
            data: bytes = self._stream.read(size)
            if len(data) < size and isinstance(self._stream, Pipe):
                self._stream.wait_for_child()
        except OSError as error:
            raise self._failure(error) from error
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise tarfile.ReadError("it is longer than the index says")
        if self._largest is not None:
            self._watch(data, self._largest)
        return data

    def _failure(self, error: OSError) -> TransportError:
        if not isinstance(self._stream, Pipe):
            return TransportError(error.strerror or str(error))
        code = self._stream.proc.returncode
        if self.url.startswith("pipe:"):
            return TransportError(f"the command ended with {code}")
        return TransportError(_CURL.get(code, f"curl ended with {code}"), final=code in _FINAL)

    def _watch(self, data: bytes, largest: int) -> None:
        """Refuse what is no plain tar file of small members, before anything of it is unpacked."""
        place = 0
        while place < len(data) and not self._ended:
            passed = min(self._skip, len(data) - place)
            self._skip -= passed
            place += passed
            if self._skip or place == len(data):
                return
            taken = data[place : place + tarfile.BLOCKSIZE - len(self._header)]
            self._header += taken
            place += len(taken)
            if len(self._header) < tarfile.BLOCKSIZE:
                return
            header, self._header = self._header, b""
            if not header.strip(b"\0"):
                self._ended = True
                return
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise tarfile.ReadError(f"a header is damaged ({error})") from error
            kind = header[156:157]
            if header[257:262] != b"ustar" or not (kind in _PLAIN or (kind == _FOLDER and not member.size)):
                raise tarfile.ReadError("it is no plain tar file of labels")
            if not 0 <= member.size <= largest:
                raise tarfile.ReadError(f"a member has {member.size} bytes")
            self._skip = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def abort(self) -> None:
        """End the program that prints, if there is one, while another thread reads from it."""
        if isinstance(self._stream, Pipe):
            self._stream.proc.terminate()

    def close(self) -> None:
        """Close it, wherever it stands; a program that still prints is ended."""
        if not isinstance(self._stream, Pipe):
            self._stream.close()
            return
        self._stream.ignore_errors = True
        if self._stream.proc.poll() is None:
            self._stream.proc.terminate()
        self._stream.close()


def read_samples(
    location: Location, name: str, *, limit: int, largest: int, opened: Callable[[Source], None]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members of every sample of a shard, as far as it can be read.

    Args:
        location: of the set.
        name: of the shard below it.
        limit: its bytes, as the index has them.
        largest: the most bytes of a member.
        opened: told of the file, so that somebody else can close it.

    Raises:
        TransportError: a server, a disk or a command failed.
        DistillDepthError: the shard is damaged from here on; the message says how.
    """
    url = location.url(name)
    source = Source(url, limit=limit, largest=largest)
    opened(source)
    failures: list[Exception] = []

    def stop(error: Exception) -> bool:
        # A second member of one name is dropped; what is behind damage is not where it seems to be.
        failures.append(error)
        return isinstance(error, ValueError)

    try:
        files = tar_file_expander([{"url": url, "stream": source}], handler=stop)
        for sample in group_by_keys(files, handler=stop):
            if any(isinstance(error, TransportError) for error in failures):
                break  # Its last members may be missing.
            members = {key: value for key, value in sample.items() if isinstance(value, bytes)}
            yield str(sample["__key__"]), members
    finally:
        source.close()
    for error in failures:
        if isinstance(error, TransportError):
            raise error
        if not isinstance(error, ValueError):
            said = str(error.args[0] if error.args else error).partition(" @ ")[0]
            raise DistillDepthError(first_line(said, 200)) from error
