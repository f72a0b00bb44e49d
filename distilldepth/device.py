"""Where a model runs and in which precision: the words of `--device` and `--precision`."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from distilldepth.errors import UsageError, shown
from distilldepth.machine import resolve_precision
from distilldepth.words import DEVICES


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: `auto` (the current GPU if torch sees one, else the CPU), `cpu`, `cuda`, `cuda:<index>` or `mps`; a torch
            device is returned as it is.

    Raises:
        TypeError: neither a text nor a torch device.
        UsageError: not one of auto, cpu, cuda, cuda:<index>, mps; or this machine has no such device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    if not isinstance(name, str):
        raise TypeError(f"resolve_device: device must be a name or a torch device, got {name!r}")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise UsageError(f"resolve_device: device must be {DEVICES}, got {shown(name)}")
    kind, _, index = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
            raise UsageError(f"resolve_device: device must be one that this machine has, got {name!r}: {why}; use cpu")
        if int(index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"resolve_device: device must be cuda:0 to cuda:{count - 1} on this machine, got {name!r}")
        return torch.device("cuda", int(index) if index else torch.cuda.current_device())
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("resolve_device: device must be one that this machine has, got 'mps'; use cpu")
    return torch.device(kind)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Return the context in which a model computes.

    Args:
        device: where it computes.
        precision: `auto`, `float32`, `bfloat16` or `float16`; see `machine.resolve_precision`.

    Raises:
        UsageError: unknown precision, or float16 on the CPU, which has no fast path for it.
    """
    precision = resolve_precision(precision, device)
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))
