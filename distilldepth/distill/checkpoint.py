"""Checkpoints that are whole or not there: written beside, flushed, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distilldepth.errors import DistillDepthError

_STATE = "run_state.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, state: dict[str, Any], *, keep: int) -> None:
    """Write `folder/step-NNNNNNNN` with everything that a resumed run needs, and drop the oldest beyond `keep`."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / _STATE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        for path in partial.iterdir():
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _flush(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what was saved beside the tensors.

    Raises:
        DistillDepthError: this is no checkpoint, or an unreadable one.
    """
    try:
        return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillDepthError(f"distill: {checkpoint} is not a checkpoint; give a folder step-* of a run") from None
    except (ValueError, OSError) as error:
        raise DistillDepthError(
            f"distill: checkpoint {checkpoint} cannot be read ({error}); remove it and resume"
        ) from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore models, optimiser and registered objects.

    Raises:
        DistillDepthError: the tensors do not belong to this run.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DistillDepthError(
            f"distill: checkpoint {checkpoint} does not fit this run ({reason}); "
            "resume with the run's own config.toml, or start again with --overwrite"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
