"""Which implementation of an operation runs: the reference, Triton kernels or the native library."""

from __future__ import annotations

import os

from torch import Tensor

from distilldepth.errors import DistillDepthError, did_you_mean

BACKENDS = ("native", "triton", "reference")
OPS = ("hybrid_norm", "crop_ssi", "channel_kl", "backproject")


def available_backends(op: str, device_type: str) -> tuple[str, ...]:
    """Return the backends that `op` has for tensors on this kind of device, the preferred one first.

    >>> available_backends("hybrid_norm", "cpu")
    ('reference',)
    """
    if op not in OPS:
        raise ValueError(f"available_backends: op must be one of {', '.join(OPS)}, got {op!r}{did_you_mean(op, OPS)}")
    return ("reference",)


def active_backend(op: str, tensor: Tensor) -> str:
    """Return the backend that runs `op` on this tensor: the preferred one, or what DISTILLDEPTH_BACKEND forces.

    Args:
        op: `hybrid_norm`, `crop_ssi`, `channel_kl` or `backproject`.
        tensor: any input of the operation; its device decides.

    Raises:
        ValueError: DISTILLDEPTH_BACKEND is no backend's name.
        DistillDepthError: the forced backend does not exist for this operation and device.
    """
    available = available_backends(op, tensor.device.type)
    forced = os.environ.get("DISTILLDEPTH_BACKEND", "")
    if not forced:
        return available[0]
    if forced not in BACKENDS:
        raise ValueError(
            f"active_backend: DISTILLDEPTH_BACKEND must be one of {', '.join(BACKENDS)}, got {forced!r}"
            f"{did_you_mean(forced, BACKENDS)}"
        )
    if forced not in available:
        raise DistillDepthError(
            f"{op}: DISTILLDEPTH_BACKEND={forced} is not available for {tensor.device.type} tensors; "
            f"unset it or use {' or '.join(available)}"
        )
    return forced
