"""Hybrid normalisation loss in Triton: exact medians by radix selection, every sum in float64 and in a fixed order.

The kernels are in `selection` and `normalise`; here the maps are read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distilldepth.kernels.maps import Maps, as_bytes, check_dtype
from distilldepth.kernels.normalise import loss_and_gradient


def hybrid_norm(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None,
    segments: Sequence[int],
    contexts: int,
    spread_eps: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, its gradient `(B, H, W)` over a scale, and the scale, all float32.

    The gradient is `(0,)` if it is not needed.

    Args:
        prediction: `(B, H, W)` float32, float16 or bfloat16, contiguous.
        target: `(B, H, W)`, same dtype, contiguous.
        valid: bool `(B, H, W)`, contiguous; None = all.
        segments: how many contexts each level has.
        contexts: 0 range, 1 quantile, 2 spatial.
        spread_eps: added to every spread.
        need_gradient: whether to compute the gradient.

    Raises:
        TypeError: the maps are float64.
    """
    check_dtype("hybrid_norm", prediction)
    _, height, width = prediction.shape
    maps = Maps(prediction, target, as_bytes(valid), height, width, None)
    return loss_and_gradient(maps, segments, contexts, spread_eps, need_gradient, mean_of_images=False)
