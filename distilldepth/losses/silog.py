"""The scale-invariant error of logarithms, against a depth that is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_pair

_SCALE = 10.0


def silog_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    variance_focus: float = 0.85,
    together: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Spread of the logarithm of the depth error over all pixels of the batch, its mean counting but little.

    `10 sqrt(mean g^2 - f (mean g)^2)` with `g = log prediction - log target` over the valid pixels of the batch and f
    the variance focus: with 1 a common factor costs nothing, with 0 this is the root mean square of g.

    Args:
        prediction: `(B, H, W)`, the student's depth, positive, in the target's unit, a floating dtype.
        target: `(B, H, W)`, depth, positive; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        variance_focus: f, 0 to 1.
        together: adds up a tensor over the parts of a batch that several processes share, so that the means are those
            of all; it is called twice. None: the batch is whole.

    Returns:
        Scalar float32 or float64. 0 with zero gradient if there is no valid pixel; not finite if a valid pixel of
        either map is not positive, or not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, a focus out of its range.

    Gradient: to `prediction`; zero where the loss is zero, at which the root has none.

    Source: Eigen et al., Depth Map Prediction from a Single Image (2014), in the form of NeWCRFs (2022), which
    ADU-Depth takes over (L_b).

    >>> depth = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> round(float(silog_loss(2 * depth, depth)), 3)  # 10 sqrt(1 - 0.85) log 2
    2.685
    """
    check_pair("silog_loss", prediction, target, valid)
    if not 0 <= variance_focus <= 1:
        raise ValueError(f"silog_loss: variance_focus must be from 0 to 1, got {variance_focus}")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    prediction, target = prediction.to(dtype), target.to(dtype)
    if valid is not None:
        prediction, target = torch.where(valid, prediction, 1), torch.where(valid, target, 1)
    error = prediction.log() - target.log()
    kept = torch.ones_like(error) if valid is None else valid.to(dtype)
    sums = torch.stack([error.sum(), kept.sum()])
    if together is not None:
        sums = together(sums)
    count = sums[1].clamp(min=1)
    mean = sums[0] / count
    # Deviations add up to 0, so that nothing flows through their mean: it is left out, since parts do not know it.
    deviation = error - mean.detach()
    if valid is not None:
        deviation = torch.where(valid, deviation, 0)
    # As the formula, but a sum of what is not negative: nothing cancels.
    squares = deviation.square().sum()
    if together is not None:
        squares = together(squares)
    square = squares / count + (1 - variance_focus) * mean.square()
    # Written so that a NaN is kept.
    nothing = square <= torch.finfo(dtype).tiny
    return torch.where(nothing, 0 * square, _SCALE * torch.where(nothing, 1, square).sqrt())
