"""Which implementation of an operation runs: the native library, Triton kernels or the reference."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distilldepth import native
from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.kernels import interpreted
from distilldepth.words import BACKENDS, OPS


def available_backends(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Return the backends that `op` has for maps on this kind of device and of this type, the preferred one first.

    The native library is loaded by the first call, never compiled. Triton has no float64; on a CPU it only runs in its
    interpreter (TRITON_INTERPRET=1), which is for tests and comes last.

    Raises:
        ValueError: unknown op.
    """
    if op not in OPS:
        raise ValueError(f"available_backends: op must be one of {', '.join(OPS)}, got {op!r}{did_you_mean(op, OPS)}")
    found = ["reference"]
    if device_type in ("cpu", "cuda") and native.load(device_type).loaded:
        found.insert(0, "native")
    if dtype != torch.float64 and _has_triton(device_type):
        found.insert(len(found) if device_type == "cpu" else len(found) - 1, "triton")
    return tuple(found)


def active_backend(op: str, tensor: Tensor) -> str:
    """Return the backend that runs `op` on this tensor: the preferred one, or what DISTILLDEPTH_BACKEND forces.

    Args:
        op: `hybrid_norm`, `crop_ssi`, `channel_kl` or `backproject`.
        tensor: a map of the operation; its device and type decide.

    Raises:
        ValueError: DISTILLDEPTH_BACKEND is no backend's name.
        DistillDepthError: the forced backend does not exist for this operation, device and type.
    """
    return _choose(op, tensor.device.type, tensor.dtype)


def forced_backend() -> str:
    """Return the backend that DISTILLDEPTH_BACKEND forces, empty if none.

    Raises:
        ValueError: it is no backend's name.
    """
    forced = os.environ.get("DISTILLDEPTH_BACKEND", "")
    if forced and forced not in BACKENDS:
        raise ValueError(
            f"DISTILLDEPTH_BACKEND must be one of {', '.join(BACKENDS)}, got {forced!r}{did_you_mean(forced, BACKENDS)}"
        )
    return forced


def kernel(op: str, backend: str) -> Callable[..., Any]:
    """Return the registered operation of a backend other than the reference."""
    from distilldepth.ops import library  # noqa: F401  # defines the operations

    return getattr(torch.ops.distilldepth, op if backend == "native" else f"{op}_{backend}")


def prepare(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the maps as the kernels take them: contiguous, and both in the wider of their types."""
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return (
        student.to(dtype).contiguous(),
        teacher.to(dtype).contiguous(),
        None if valid is None else valid.contiguous(),
    )


def _choose(op: str, device_type: str, dtype: torch.dtype) -> str:
    """`active_backend` for constants, so that torch.compile takes its answer as one."""
    available = available_backends(op, device_type, dtype)
    forced = forced_backend()
    if not forced:
        return available[0]
    if forced not in available:
        why = ""
        if forced == "native" and device_type in ("cpu", "cuda"):
            why = f" ({native.load(device_type).reason})"
        raise DistillDepthError(
            f"{op}: DISTILLDEPTH_BACKEND={forced} is not available for {device_type} tensors of "
            f"{str(dtype).removeprefix('torch.')}{why}; unset it or use {' or '.join(available)}"
        )
    return forced


# What torch.compiler.assume_constant_result does, without what it imports: torch's whole compiler, for a second and a
# half of every command that never compiles.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _has_triton(device_type: str) -> bool:
    return _triton_installed() and (device_type == "cuda" or (device_type == "cpu" and interpreted()))
