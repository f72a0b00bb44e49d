"""Checkpoints that are whole or not there: written beside, flushed, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

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
    try:
        accelerator.save_state(str(partial))
    except (RuntimeError, SafetensorError) as error:
        # How torch and safetensors report a full disk.
        shutil.rmtree(partial, ignore_errors=True)
        raise DistillDepthError(
            f"distill: checkpoint {final} cannot be written ({_reason(error)}); make room, then continue with "
            "--resume auto"
        ) from error
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
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not {"step", "before", "seconds", "skipped", "unreadable"} <= state.keys():
            raise ValueError("not what was written")
        return state
    except (FileNotFoundError, NotADirectoryError):
        raise DistillDepthError(
            f"distill: {checkpoint} is not a checkpoint; give --resume auto, or a folder step-* of a run"
        ) from None
    except (ValueError, OSError) as error:
        raise DistillDepthError(
            f"distill: checkpoint {checkpoint} cannot be read ({error}); remove it and resume"
        ) from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore models, optimiser and registered objects.

    Raises:
        DistillDepthError: it is damaged, or the tensors do not belong to this run.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:
        # Unpickling a damaged file raises whatever it stumbles over.
        others = [path for path in list_checkpoints(checkpoint.parent) if path.name < checkpoint.name]
        remedy = (
            f"remove it, and --resume auto continues from {others[-1].name}" if others else "start with --overwrite"
        )
        raise DistillDepthError(
            f"distill: checkpoint {checkpoint} is damaged or of another run ({_reason(error)}); {remedy}"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
