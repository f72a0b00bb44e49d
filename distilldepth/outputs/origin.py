"""What an output was made from, so that `--skip-existing` keeps only what would come out the same again.

PNGs say their origin in their texts. Of formats that cannot, the folder of the outputs keeps it in a hidden file with
the name of the command (`.predict.jsonl`), a line per output: its path, its digest and its origin.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from distilldepth.documents import parse_json, read_text
from distilldepth.errors import DistillDepthError
from distilldepth.files import file_digest
from distilldepth.images.decode import check_regular, open_file, open_image
from distilldepth.images.listing import is_own_file

INDEX = ".predict.jsonl"
"""Of `predict`; other commands have their own."""
_BYTES = 1 << 30


@dataclass(frozen=True)
class Origin:
    """All that decides an output."""

    model_sha256: str
    """See `model_digest`."""
    source_sha256: str
    """Of the bytes of the photograph, and of what else was read with it: size and time stay the same when a file is
    replaced by a copying program."""
    settings: str
    """JSON of the options that change this format's content."""


class State(Enum):
    """What lies where an output belongs."""

    MISSING = "nothing"
    CURRENT = "what would be written again"
    OTHER_MODEL = "made by another model"
    OTHER_SOURCE = "made from another photograph"
    OTHER_SETTINGS = "made with other options"
    UNKNOWN = "made by this package, from what is not known"
    FOREIGN = "not made by {command}"
    CHANGED = "changed since {command} made it"


class Outputs:
    """The outputs in a folder that say, themselves or in its index, what they were made from.

    Args:
        folder: where they are.
        command: which makes them; each has an index of its own.

    Raises:
        DistillDepthError: the index is a link or no text.
    """

    def __init__(self, folder: Path, command: str = "predict") -> None:
        self.folder = folder
        self.command = command
        self._index = folder / f".{command}.jsonl"
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if not os.path.lexists(self._index):
            return
        remedy = "remove it; what it knew of is then replaced with --overwrite only"
        if self._index.is_symlink():
            raise DistillDepthError(f"{self._index}: is a link, and nothing is written through it; {remedy}")
        for line in read_text(self._index, remedy=remedy, limit=_BYTES).split("\n"):
            # A line that a kill cut off, or that somebody edited, costs that output: it is then none of ours.
            try:
                entry = parse_json(line, self._index.name)
            except DistillDepthError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("path"), str):
                self._entries[entry["path"]] = entry

    def state(self, path: Path, origin: Origin) -> State:
        """Return what lies at an output's path, against what would be written there."""
        if not os.path.lexists(path):
            return State.MISSING
        if is_own_file(path):
            return _compare(_read_texts(path), origin)
        entry = self._entries.get(self._key(path))
        if entry is None:
            return State.FOREIGN
        try:
            if entry.get("sha256") != digest_of(path):
                return State.CHANGED
        except (DistillDepthError, OSError):
            return State.CHANGED
        known = entry.get("origin")
        return _compare(known if isinstance(known, dict) else {}, origin)

    def made(self, path: Path) -> bool:
        """Return whether a file is what some run of the command left there."""
        entry = self._entries.get(self._key(path))
        if entry is None or is_own_file(path):
            return is_own_file(path)
        try:
            return entry.get("sha256") == digest_of(path)
        except (DistillDepthError, OSError):
            return False

    def add(self, path: Path, origin: Origin) -> None:
        """Note an output that was just written and cannot say itself what it is; from any thread.

        Raises:
            OSError: the index cannot be written.
        """
        if not path.is_file():
            return  # A pipe: nothing stays.
        entry = {"path": self._key(path), "sha256": digest_of(path), "origin": asdict(origin)}
        # Appended and in one piece, so that several commands may fill one folder.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with self._lock, open(os.open(self._index, flags, 0o666), "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            start = b"" if not size or file.read(1) == b"\n" else b"\n"
            file.write(start + json.dumps(entry).encode() + b"\n")

    def _key(self, path: Path) -> str:
        # Relative, so that the folder may be moved; forward slashes, whatever the system.
        return path.relative_to(self.folder).as_posix()


def digest_of(path: Path) -> str:
    """Return the digest of a regular file's bytes.

    Raises:
        FileNotFoundError, DistillDepthError: as `check_regular`.
        OSError: it cannot be read.
    """
    check_regular(path)
    return file_digest(path)


def _compare(known: dict[str, Any], origin: Origin) -> State:
    if any(not isinstance(known.get(field.name), str) for field in fields(Origin)):
        return State.UNKNOWN
    if known["model_sha256"] != origin.model_sha256:
        return State.OTHER_MODEL
    if known["source_sha256"] != origin.source_sha256:
        return State.OTHER_SOURCE
    return State.CURRENT if known["settings"] == origin.settings else State.OTHER_SETTINGS


def _read_texts(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as (file, name), open_image(file, name) as image:
            return dict(getattr(image, "text", {}))
    except (DistillDepthError, OSError):
        return {}
