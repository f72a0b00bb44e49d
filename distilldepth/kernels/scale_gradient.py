"""The backward of the normalising losses in Triton: their gradient times two scalars, in the type of the maps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4


def scale_gradient(gradient: Tensor, scale: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `gradient * scale * grad_loss` in `dtype`.

    Args:
        gradient: any shape, float32, contiguous.
        scale: float32 scalar.
        grad_loss: float32 scalar.
        dtype: of the maps.
    """
    scaled = torch.empty_like(gradient, dtype=dtype)
    if gradient.numel() == 0:
        return scaled
    with torch.cuda.device_of(gradient):
        _scale[(triton.cdiv(gradient.numel(), BLOCK),)](
            gradient, scale, grad_loss, scaled, gradient.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return scaled


@triton.jit
def _scale(
    gradient,  # (count,)
    scale,  # ()
    grad_loss,  # ()
    scaled,  # (count,), out
    count,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = place < count
    factor = tl.load(scale) * tl.load(grad_loss)
    tl.store(scaled + place, tl.load(gradient + place, mask=ok, other=0.0) * factor, mask=ok)
