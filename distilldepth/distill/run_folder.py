"""The run folder: new, continued, or somebody else's and not to be touched."""

from __future__ import annotations

import shutil
from pathlib import Path

from distilldepth.distill.checkpoint import list_checkpoints, read_state
from distilldepth.distill.config import DistillConfig, get_key, keys, load_config, to_toml
from distilldepth.models.load import write_atomically

_RESUME_MAY_CHANGE = {
    "steps", "workers", "threads", "checkpoint_every", "keep_checkpoints", "log_every", "resume", "overwrite",
    "offline", "out", "device", "max_skipped_share",
}  # fmt: skip
"""Keys that a resumed run may change; any other change would make it a different run."""


def prepare_folder(config: DistillConfig, folder: Path) -> Path | None:
    """Make the run folder ready and return the checkpoint to resume from, if any."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"distill: --out must be a folder, {folder} is a file")
    resume_from: Path | None = None
    if config.resume == "auto":
        found = list_checkpoints(folder / "checkpoints")
        resume_from = found[-1] if found else None
    elif config.resume:
        resume_from = Path(config.resume)
        read_state(resume_from)
    if resume_from is not None:
        _same_run(config, folder)
        return resume_from
    used = folder.is_dir() and any(folder.iterdir())
    if used and not (config.overwrite or config.resume):
        raise ValueError(
            f"distill: {folder} is not empty; continue it with --resume auto, replace it with --overwrite, "
            "or choose another --out"
        )
    if used and not (folder / "config.toml").is_file():
        raise ValueError(f"distill: {folder} is not empty and not a run folder; choose another --out")
    if used:
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.toml", to_toml(config).encode())
    return None


def _same_run(config: DistillConfig, folder: Path) -> None:
    saved_file = folder / "config.toml"
    saved = load_config(file=saved_file)
    for key in keys():
        old, new = get_key(saved, key), get_key(config, key)
        if key not in _RESUME_MAY_CHANGE and old != new:
            raise ValueError(
                f"distill: {key} was {old!r} when {folder} was started and is {new!r} now; "
                f"resume with --config {saved_file}, or choose another --out"
            )
