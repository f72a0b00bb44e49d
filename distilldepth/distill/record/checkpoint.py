"""Checkpoints: whole or not there, finite, safe to open; tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distilldepth.distill.ema import WeightAverage
from distilldepth.distill.record.state import RunState
from distilldepth.distill.sharding import here, part_like, parts_like, whole_on_cpu
from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.files import file_digest
from distilldepth.words import PRECISIONS

_STATE = "run_state.json"
_WEIGHTS, _OPTIMISER, _AVERAGE = "weights.safetensors", "optimiser.safetensors", "average.safetensors"
CONTENTS = (_STATE, _WEIGHTS, _OPTIMISER, _AVERAGE)
"""Files of a checkpoint."""
EARLIER_CONTENTS = ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_*.pkl", "scaler.pt")
"""Files of a checkpoint as it was written before: still read, never unpickled beyond plain tensors."""
_MOST_STEPS = 1 << 40


@dataclass
class Trained:
    """What training changes, hence what a checkpoint keeps."""

    module: nn.Module
    """Student and objective, without any wrapper."""
    optimiser: torch.optim.Optimizer
    average: WeightAverage | None = None
    scaler: torch.amp.GradScaler | None = None
    """Gradient scaler of float16."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file."""
        moments = {
            f"{index}.{name}": value
            for index, values in self.optimiser.state_dict()["state"].items()
            for name, value in values.items()
        }
        files = {_WEIGHTS: self.module.state_dict(), _OPTIMISER: moments}
        return files if self.average is None else {**files, _AVERAGE: self.average.state_dict()}

    def whole_tensors(self, *, keep: bool) -> dict[str, dict[str, Tensor]]:
        """The same with none in parts; all processes must ask together, those that do not `keep` them get nothing."""
        return {name: whole_on_cpu(tensors, keep=keep) for name, tensors in self.tensors().items()}

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters in the order of the optimiser's numbers."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def is_finite(self) -> bool:
        """Whether every number that this process holds is finite; waits for the device."""
        flags = [
            torch.isfinite(here(value)).all().cpu()
            for file in self.tensors().values()
            for value in file.values()
            if value.is_floating_point()
        ]
        return bool(torch.stack(flags).all())

    def restore(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Take tensors over.

        Raises:
            ValueError: they are of another student, objective or optimiser.
        """
        _check_same(self.module.state_dict(), files[_WEIGHTS])
        if self.average is not None:
            if _AVERAGE not in files:
                raise ValueError("it has no moving average")
            _check_same(self.average.state_dict(), files[_AVERAGE])
        moments = self._moments(files[_OPTIMISER])
        self.module.load_state_dict(parts_like(files[_WEIGHTS], self.module.state_dict()))
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        if self.average is not None:
            self.average.load_state_dict(files[_AVERAGE])

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        parameters = self.parameters()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            if not index.isdecimal() or int(index) >= len(parameters):
                raise ValueError(f"the optimiser has no parameter {index[:20]}")
            parameter = parameters[int(index)]
            if value.ndim:
                if value.shape != parameter.shape:
                    raise ValueError(f"{key} is {tuple(value.shape)} instead of {tuple(parameter.shape)}")
                # In the parameter's own memory order, which the file does not keep.
                value = torch.empty_like(parameter, requires_grad=False).copy_(part_like(value, parameter))
            moments.setdefault(int(index), {})[name] = value
        return moments


def _check_same(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name in {**own, **found}:
        if name not in own or name not in found:
            raise ValueError(f"{name} is {'missing' if name in own else 'left over'}")
        if own[name].shape != found[name].shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)} instead of {tuple(own[name].shape)}")


def save_checkpoint(
    accelerator: Accelerator, trained: Trained, folder: Path, step: int, state: RunState, *, keep: int
) -> bool:
    """Write `folder/step-NNNNNNNN` with everything that a resumed run needs, and drop the oldest beyond `keep`.

    Returns:
        False, with nothing written or dropped, if a number is not finite.

    Raises:
        DistillDepthError: it cannot be written.
    """
    finite = torch.tensor([int(trained.is_finite())], device=accelerator.device)
    if not bool(accelerator.gather(finite).all()):
        return False
    files = trained.whole_tensors(keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        final, partial = folder / f"step-{step:08d}", folder / f".partial-{step:08d}"
        for left in folder.glob(".partial-*"):
            _remove(left)
        try:
            _write(trained, files, partial, dataclasses.replace(state, step=step))
        except (RuntimeError, SafetensorError) as error:
            # How torch and safetensors report a full disk.
            raise DistillDepthError(
                f"distill: checkpoint {final} cannot be written ({_reason(error)}); make room, then continue with "
                "--resume auto"
            ) from error
        finally:
            if partial.exists() and not (partial / _STATE).is_file():
                _remove(partial)
        _remove(final)
        os.replace(partial, final)
        _flush(folder)
        for old in list_checkpoints(folder)[:-keep]:
            _remove(old)
    accelerator.wait_for_everyone()
    return True


def _write(trained: Trained, files: dict[str, dict[str, Tensor]], folder: Path, state: RunState) -> None:
    folder.mkdir(parents=True)
    digests = {}
    for name, tensors in files.items():
        # Copies, since the format refuses tensors that share memory.
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, folder / name)
        digests[name] = file_digest(folder / name)
        _flush(folder / name)
    kept = dataclasses.asdict(state)
    if trained.scaler is not None:
        kept["scaler"] = trained.scaler.state_dict()
    unfinished = folder / f"{_STATE}.partial"
    unfinished.write_text(json.dumps({**kept, "files": digests}), encoding="utf-8")
    _flush(unfinished)
    os.replace(unfinished, folder / _STATE)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint's own files; whatever else lies in it stays, with the folder."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return
    patterns = (*CONTENTS, f"{_STATE}.partial", *EARLIER_CONTENTS)
    for path in [path for pattern in patterns for path in checkpoint.glob(pattern)]:
        path.unlink()
    if not any(checkpoint.iterdir()):
        checkpoint.rmdir()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def newest_readable(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint of a run that is whole, None if there is no checkpoint at all.

    Args:
        folder: `checkpoints` of a run.
        tell: told of every damaged one that is passed over.

    Raises:
        DistillDepthError: there are some, and all are damaged.
    """
    found = list_checkpoints(folder)
    for checkpoint in reversed(found):
        try:
            read_state(checkpoint)
            read_tensors(checkpoint)
            return checkpoint
        except DistillDepthError as error:
            if checkpoint == found[0]:
                raise
            tell(f"distilldepth: warning: {error}; taking the one before it")
    return None


def read_state(checkpoint: Path) -> RunState:
    """Return what was saved beside the tensors.

    Raises:
        DistillDepthError: this is no checkpoint, or an unreadable one.
    """
    saved = _read_saved(checkpoint)
    return RunState(**{item.name: saved[item.name] for item in dataclasses.fields(RunState)})


def _read_saved(checkpoint: Path) -> dict[str, Any]:
    """The file of the state, with the digests of the tensors' files."""
    path = checkpoint / _STATE
    if not path.is_file():
        raise DistillDepthError(
            f"distill: {checkpoint} is not a checkpoint; give --resume auto, or a folder step-* of a run"
        )
    try:
        state = read_json(path)
    except DistillDepthError as error:
        raise _damaged(checkpoint, str(error)) from None
    wrong = next((key for key, is_right in _FIELDS.items() if not is_right(state.get(key, _DEFAULTS.get(key)))), None)
    if wrong is not None:
        raise _damaged(checkpoint, f"{path.name} has no sensible '{wrong}'")
    return {**_DEFAULTS, **state}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_STEPS


def _is_agreement(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("teachers", {}), dict):
        return False
    rows = [*value.get("teachers", {}).values(), *([value["depth"]] if "depth" in value else [])]
    return all(
        isinstance(row, dict) and all(isinstance(number, int | float) for number in row.values()) for row in rows
    ) and _is_count(value.get("images", 0))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "skipped": _is_count,
    "unreadable": _is_count,
    "seconds": lambda value: isinstance(value, int | float) and math.isfinite(value) and value >= 0,
    "before": _is_agreement,
    "files": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "changes": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "processes": lambda value: value is None or (_is_count(value) and value > 0),
    "images": lambda value: value is None or isinstance(value, str),
    "labels": lambda value: isinstance(value, str),
    "precisions": lambda value: isinstance(value, dict) and all(item in PRECISIONS for item in value.values()),
    "micro_batch": _is_count,
    "teachers": lambda value: isinstance(value, str),
}
"""What a state must hold, and what of it makes sense."""
_DEFAULTS: dict[str, Any] = {
    "files": {},
    "changes": [],
    "processes": None,
    "images": None,
    "labels": "",
    "precisions": {},
    "micro_batch": 0,
    "teachers": "",
}
"""What earlier versions did not keep."""


def read_tensors(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file of a checkpoint, on the CPU.

    Raises:
        DistillDepthError: a file is missing, damaged or not what was written.
    """
    digests = _read_saved(checkpoint)["files"]
    if not digests:
        return _read_earlier(checkpoint)
    if not {_WEIGHTS, _OPTIMISER} <= digests.keys() <= set(CONTENTS):
        raise _damaged(checkpoint, f"{_STATE} lists other files than a checkpoint has")
    files = {}
    for name, digest in digests.items():
        try:
            if file_digest(checkpoint / name) != digest:
                raise _damaged(checkpoint, f"{name} is not what was written")
            files[name] = load_file(checkpoint / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(checkpoint, f"{name}: {_reason(error)}") from error
    return files


def _read_earlier(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """A checkpoint written before digests were kept; its pickles are opened only as far as they hold plain tensors."""
    average = checkpoint / "custom_checkpoint_0.pkl"
    try:
        files = {_WEIGHTS: load_file(checkpoint / "model.safetensors")}
        saved = torch.load(checkpoint / "optimizer.bin", map_location="cpu", weights_only=True)
        files[_OPTIMISER] = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, values in saved["state"].items()
            for name, value in values.items()
        }
        if average.is_file():
            files[_AVERAGE] = torch.load(average, map_location="cpu", weights_only=True)
            if not all(isinstance(value, Tensor) for value in files[_AVERAGE].values()):
                raise ValueError(f"{average.name} holds other things than tensors")
    except Exception as error:
        # torch refuses a foreign pickle, and stumbles over a damaged one, with errors of many kinds.
        raise _damaged(checkpoint, _reason(error)) from error
    return files


def load_checkpoint(trained: Trained, checkpoint: Path) -> None:
    """Restore weights, optimiser, average and gradient scaler.

    Raises:
        DistillDepthError: it is damaged, or the tensors do not belong to this run.
    """
    files, saved = read_tensors(checkpoint), _read_saved(checkpoint)
    try:
        trained.restore(files)
        if trained.scaler is not None and "scaler" in saved:
            trained.scaler.load_state_dict(saved["scaler"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise DistillDepthError(
            f"distill: checkpoint {checkpoint} is of another run ({_reason(error)}); start with --overwrite, or choose "
            "another --out"
        ) from error


def _damaged(checkpoint: Path, why: str) -> DistillDepthError:
    others = [path for path in list_checkpoints(checkpoint.parent) if path.name < checkpoint.name]
    remedy = f"remove it, and --resume auto continues from {others[-1].name}" if others else "start with --overwrite"
    return DistillDepthError(f"distill: checkpoint {checkpoint} is damaged ({why}); {remedy}")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error, 100)}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
