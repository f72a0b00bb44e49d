"""Folders that this package fills: they carry a mark, are written by one process, and lose nothing that is not ours."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import IO, Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically

MARK = ".distilldepth.json"
"""File that says which of our kinds of folder this is."""
LOCK = ".lock"
_LEFT = ".distilldepth-*"
"""What a killed process left half written."""


@dataclass(frozen=True)
class FolderKind:
    """One kind of folder, and everything that is ever written into it."""

    name: str
    """`run`, `evaluation`, ...; stands in the mark."""
    command: str
    """The command that fills it, for messages."""
    contents: tuple[str, ...]
    """Patterns of relative paths, a `*` never crossing a `/`; folders count if a pattern goes on below them."""
    version: int = 1

    def mark(self, folder: Path) -> None:
        """Make the folder one of ours."""
        mark = {"format": f"distilldepth {self.name}", "version": self.version}
        write_atomically(folder / MARK, json.dumps(mark) + "\n")

    def is_marked(self, folder: Path) -> bool:
        """Whether the folder carries the mark of this kind."""
        if not (folder / MARK).is_file():
            return False
        try:
            return read_json(folder / MARK).get("format") == f"distilldepth {self.name}"
        except DistillDepthError:
            return False

    def check_clearable(self, folder: Path, written: Collection[Path] = ()) -> None:
        """Raise DistillDepthError, with the name of what is foreign, unless the folder may be emptied; see `clear`."""
        self._own_items(folder, written)

    def clear(self, folder: Path, written: Collection[Path] = ()) -> None:
        """Remove what this package wrote; nothing at all if anything else is there.

        The lock and the folder itself stay.

        Args:
            folder: to be emptied.
            written: files in it that are ours though no pattern says so, since users chose their names.

        Raises:
            DistillDepthError: no mark of this kind, or a file, folder or link that this package did not make.
        """
        items = self._own_items(folder, written)
        # The mark goes last, so that what an interrupted removal leaves is still ours.
        for item in sorted(items, key=lambda item: (item == folder / MARK, -len(item.parts))):
            if item.is_dir():
                item.rmdir()
            elif item != folder / LOCK:
                item.unlink()

    def _own_items(self, folder: Path, written: Collection[Path]) -> list[Path]:
        if not self.is_marked(folder):
            raise DistillDepthError(
                f"{self.command}: {folder} is not empty and does not carry the mark of a distilldepth {self.name}, so "
                "nothing in it is removed; choose another --out, or empty it yourself"
            )
        listed = {path.relative_to(folder).parts for path in written}
        listed_folders = {parts[:length] for parts in listed for length in range(1, len(parts))}
        items: list[Path] = []
        for root, folders, files in os.walk(folder):
            for name in (*folders, *files):
                item = Path(root, name)
                path = item.relative_to(folder)
                known = path.parts in (listed_folders if item.is_dir() else listed)
                if item.is_symlink() or not (known or self._is_own(path, item.is_dir())):
                    raise DistillDepthError(
                        f"{self.command}: {item} was not made by distilldepth {self.command}, so nothing in {folder} "
                        "is removed; move it away, or choose another --out"
                    )
                items.append(item)
        return items

    def _is_own(self, path: PurePath, is_folder: bool) -> bool:
        if not is_folder and (
            str(path) in (MARK, LOCK) or fnmatchcase(str(path), f"{LOCK}-*") or fnmatchcase(path.name, _LEFT)
        ):
            return True
        for pattern in self.contents:
            parts = pattern.split("/")
            fits = len(path.parts) < len(parts) if is_folder else len(path.parts) == len(parts)
            if fits and all(map(fnmatchcase, path.parts, parts)):
                return True
        return False


def lock_file(file: IO[Any], refusal: str) -> None:
    """Keep other processes out of an open file until it is closed or this process ends.

    Raises:
        DistillDepthError: another process has it; `refusal` is what it says.
    """
    try:
        import fcntl

        # Not flock: the processes that decode images would inherit it, and outlive a killed run for seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DistillDepthError(refusal) from None
    except (ImportError, OSError):
        pass  # This system or file system has no locks: go on without.


@contextmanager
def claim_folder(folder: Path, command: str, part: str = "") -> Iterator[None]:
    """Make the folder and keep other processes out of it until the block ends or the process does.

    A folder that was made here and is still empty at the end is removed again.

    Args:
        folder: where the process writes.
        command: for messages.
        part: what of the folder is claimed, where several processes may write into it; empty for all of it.

    Raises:
        ValueError: it is a file.
        DistillDepthError: another process writes into it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{command}: --out must be a folder, {folder} is a file")
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{LOCK}-{part}" if part else LOCK)
    with path.open("a") as file:
        refusal = f"{command}: another run is writing into {folder}; wait for it, stop it, or choose another --out"
        lock_file(file, refusal)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()  # Nothing was begun.
