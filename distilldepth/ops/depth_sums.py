"""Scoring in one operation of the native CPU library; what it computes is defined by `distilldepth.evaluate.score`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distilldepth import native
from distilldepth.errors import DistillDepthError
from distilldepth.ops.backend import forced_backend

FLOORS = ("number", "number / nearest", "number * farthest", "number / farthest")
"""How the lower clip is made of a number and the extremes of the truth that counts; told to the kernel by position."""


@dataclass(frozen=True)
class FitAndClip:
    """How predictions are fitted to the truth, and what the aligned depth is clipped to."""

    in_disparity: bool
    """Whether the space of the fit is inverse depth."""
    fit_positive: bool
    """Whether least squares take only the pixels whose prediction is positive."""
    floor_kind: str
    """One of `FLOORS`, what the aligned map is clipped to below."""
    floor: float
    """The number in it."""
    low: float
    """Lower clip of the aligned depth."""
    high: float
    """Its upper clip."""


def has_depth_sums(prediction: Tensor, truth: Tensor) -> bool:
    """Return whether `depth_sums` takes these maps: float32, on a CPU for which the native library is built.

    DISTILLDEPTH_BACKEND other than `native` keeps it away. There is no kernel for other devices, and none is missed
    when a backend is forced there.

    Raises:
        ValueError: DISTILLDEPTH_BACKEND is no backend's name.
        DistillDepthError: `native` is forced and the library is not there.
    """
    forced = forced_backend()
    if forced not in ("", "native") or prediction.device.type != "cpu":
        return False
    if prediction.dtype != torch.float32 or truth.dtype != torch.float32:
        return False
    status = native.load("cpu")
    if forced and not status.loaded:
        raise DistillDepthError(
            f"depth_sums: DISTILLDEPTH_BACKEND=native is not available for cpu tensors ({status.reason}); unset it or "
            "use reference"
        )
    return status.loaded


def depth_sums(
    prediction: Tensor,
    truth: Tensor,
    valid: Tensor,
    bounds: Tensor,
    box: tuple[int, int, int, int],
    fitted: tuple[Tensor, Tensor] | None,
    how: FitAndClip,
) -> tuple[Tensor, Tensor]:
    """Fit predictions to truth and add up the errors of depth.

    Args:
        prediction: `(B, H, W)` float32, in the space of the fit.
        truth: as prediction; depth, metres.
        valid: bool, as prediction.
        bounds: float32 `(B, 2)`; truth from the first to the second depth counts, both included and finite or NaN, the
            first positive.
        box: top, bottom, left, right of what counts.
        fitted: float64 `(B,)` scale and shift; None = least squares.
        how: the fit, and the clips after it.

    Returns:
        The sums of `distilldepth.metrics.depth.SUMS`, float64 `(B, 14)`; scale, shift, floor and whether the prediction
        is finite on every pixel that counts (1 or 0), float64 `(B, 4)`. Scale and shift of least squares are NaN where
        no pixel is left to fit or one is not finite.
    """
    from distilldepth.ops import library  # noqa: F401  # defines the operations

    return torch.ops.distilldepth.depth_sums(
        prediction.detach().contiguous(),
        truth.detach().contiguous(),
        valid.contiguous(),
        bounds.contiguous(),
        list(box),
        None if fitted is None else torch.stack(fitted, 1),
        how.in_disparity,
        how.fit_positive,
        FLOORS.index(how.floor_kind),
        how.floor,
        how.low,
        how.high,
    )
