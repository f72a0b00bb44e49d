"""Files that are written whole or not at all, and what tells one from another."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilldepth.errors import refuse_url


def expand_user(path: str | os.PathLike) -> Path:
    """Return a path with a leading `~` replaced by the home folder; one that names no known user stays as it is.

    Every path that a user types comes through here, or through `check_regular` where a file is opened.

    Raises:
        UsageError: a URL.
    """
    refuse_url(path)
    # Path.expanduser raises a RuntimeError for `~nobody/x`, which may well be the name of a folder.
    return Path(os.path.expanduser(path))


def places(path: Path) -> set[str]:
    """Return every name whose replacement would take away what a path leads to: its own, and those of links on the way.

    Folders among them are real ones; the last name is kept as it is, since a writer replaces names and not what a link
    leads to.
    """
    found: set[str] = set()
    name = os.path.abspath(path)
    while name not in found:
        name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        if name in found:
            break
        found.add(name)
        try:
            name = os.path.join(os.path.dirname(name), os.readlink(name))
        except (OSError, ValueError):
            break  # No link.
    return found


def place(path: Path) -> str:
    """Return the name that a writer of `path` replaces, the links among its folders followed."""
    name = os.path.abspath(path)
    return os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))


TEMPORARY = ".distilldepth-"
"""How the names of files begin that are being written."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; it takes that name if the block ends well, else it is removed.

    A device or a pipe (`/dev/stdout`) is written to, never replaced.

    Raises:
        OSError: it cannot be written; names `path` where the system names nothing, as for a full disk.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"content{path.suffix}"
            yield temporary
            try:
                with temporary.open("rb") as content, path.open("wb") as target:
                    shutil.copyfileobj(content, target)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short and without the stem, so that a stem of the longest legal length still works.
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(6)}{path.suffix}"
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all, and wait until the disk has it; see `atomic_path`.

    Text is written in UTF-8; what a file name may hold that is no text becomes a backslash escape.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "backslashreplace")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return `DISTILLDEPTH_CACHE`, or `~/.cache/distilldepth`. It need not exist yet."""
    return expand_user(os.environ.get("DISTILLDEPTH_CACHE") or "~/.cache/distilldepth")


def check_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written in it.

    Raises:
        OSError: it cannot, with the path.
        UsageError: a URL.
    """
    refuse_url(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"{TEMPORARY}{secrets.token_hex(6)}"
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write here: {error.strerror}", str(folder)) from error
    probe.unlink()
