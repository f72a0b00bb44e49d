"""The run folder: new, continued, or somebody else's and not to be touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilldepth.distill.checkpoint import list_checkpoints, read_state
from distilldepth.distill.config import DistillConfig, get_key, keys, load_config, to_toml
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically

_LOCK = ".lock"
_RESUME_MAY_CHANGE = {
    "steps", "workers", "threads", "checkpoint_every", "keep_checkpoints", "log_every", "agreement_every", "resume",
    "overwrite", "offline", "out", "device", "max_skipped_share",
}  # fmt: skip
"""Keys that a resumed run may change; any other change would make it a different run."""


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it until the block ends or the process does.

    Raises:
        ValueError: it is a file.
        DistillDepthError: another run writes into it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"distill: --out must be a folder, {folder} is a file")
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with path.open("a") as file:
        try:
            import fcntl

            # Not flock: the processes that decode images would inherit it, and outlive a killed run for seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DistillDepthError(
                f"distill: another run is writing into {folder}; wait for it, stop it, or choose another --out"
            ) from None
        except (ImportError, OSError):
            pass  # This system or file system has no locks: go on without.
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()  # Nothing was begun.


def find_start(config: DistillConfig, folder: Path) -> Path | None:
    """Return the checkpoint to resume from, None to start anew; nothing is changed yet.

    Raises:
        ValueError: the folder holds something that this run may not replace or cannot continue.
        DistillDepthError: a checkpoint cannot be read.
    """
    resume_from: Path | None = None
    if config.resume == "auto":
        found = list_checkpoints(folder / "checkpoints")
        resume_from = found[-1] if found else None
    elif config.resume:
        resume_from = Path(config.resume)
    if resume_from is not None:
        done = read_state(resume_from)["step"]
        _same_run(config, folder)
        if done > config.steps:
            raise ValueError(f"distill: steps is {config.steps}, but {resume_from} has {done} done; use --steps {done}")
        return resume_from
    if not any(item.name != _LOCK for item in folder.iterdir()):
        return None
    if not (config.overwrite or config.resume):
        raise ValueError(
            f"distill: {folder} is not empty; continue it with --resume auto, replace it with --overwrite, "
            "or choose another --out"
        )
    if not _is_run(folder):
        raise ValueError(f"distill: {folder} is not empty and not a run folder; choose another --out")
    if not config.overwrite:
        _same_run(config, folder)
        if (folder / "student").exists():
            raise ValueError(
                f"distill: {folder} has a student but no checkpoint to continue from; replace it with --overwrite, "
                "or choose another --out"
            )
    return None


def start_folder(config: DistillConfig, folder: Path) -> None:
    """Remove what an earlier run left, and write the configuration."""
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != _LOCK:
            item.unlink()
    (folder / "checkpoints").mkdir()
    write_atomically(folder / "config.toml", to_toml(config).encode())


def _is_run(folder: Path) -> bool:
    """Other programs call their files config.toml too."""
    try:
        load_config(file=folder / "config.toml")
    except (OSError, ValueError):
        return False
    return True


def _same_run(config: DistillConfig, folder: Path) -> None:
    saved_file = folder / "config.toml"
    if not saved_file.is_file():
        raise ValueError(f"distill: {folder} has no config.toml to continue with; name the run's own folder with --out")
    saved = load_config(file=saved_file)
    for key in keys():
        old, new = get_key(saved, key), get_key(config, key)
        if key not in _RESUME_MAY_CHANGE and old != new:
            raise ValueError(
                f"distill: {key} was {old!r} when {folder} was started and is {new!r} now; "
                f"resume with --config {saved_file}, or choose another --out"
            )
