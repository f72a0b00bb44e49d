"""The error of a map in metres: in log depth, at its edges, and in metres over the scene's own size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_pair


def metric_log_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    gradient: float = 1.0,
    linear: float = 0.5,
) -> Tensor:
    """Mean `|e|` with `e = log(prediction / target)`, plus its gradients, plus the root mean square error in metres.

    Per image, over the valid pixels with a target above 0:

        mean |e| + gradient (mean |e(x + 1, y) - e(x, y)| + mean |e(x, y + 1) - e(x, y)|)
                 + linear sqrt(mean (prediction - target)^2) / mean target

    The logarithm makes an error count relative to the depth; differences of e, over pairs of such pixels, keep edges
    sharp and surfaces flat; the last part is what RMSE sees, where far pixels decide. All three are unchanged when both
    maps are multiplied by one number.

    Args:
        prediction: `(B, H, W)`, metres, positive, a floating dtype.
        target: `(B, H, W)`, metres; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        gradient: weight of the second part, not negative.
        linear: weight of the third, not negative.

    Returns:
        Scalar float32 or float64, mean over images. Images without a pixel that counts do not count; 0 with zero
        gradient if there is none. NaN if a pixel that counts is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, a weight that is negative
            or not finite.

    Gradient: to `prediction`.

    >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> float(metric_log_loss(target, target)) < 1e-3, float(metric_log_loss(2 * target, target, linear=0)) > 0.69
    (True, True)
    """
    check_pair("metric_log_loss", prediction, target, valid)
    for name, given in (("gradient", gradient), ("linear", linear)):
        if not 0 <= given < math.inf:
            raise ValueError(f"metric_log_loss: {name} must be finite and not negative, got {given}")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    # Not `target > 0`: a NaN must count, so that it shows.
    kept = ~(target <= 0)
    if valid is not None:
        kept = kept & valid
    truth = torch.where(kept, target.to(dtype), 1)
    values = torch.where(kept, prediction.to(dtype), 1)
    error = (values / truth).log()
    weight = kept.to(dtype)
    count = weight.flatten(1).sum(1).clamp(min=1)
    loss = error.abs().flatten(1).sum(1) / count
    if gradient:
        loss = loss + gradient * (_slopes(error, weight, 1) + _slopes(error, weight, 2))
    if linear:
        square = (values - truth).square().flatten(1).sum(1) / count
        size = (truth * weight).flatten(1).sum(1) / count
        # The root has no gradient at 0.
        loss = loss + linear * (square / size.clamp(min=torch.finfo(dtype).tiny).square() + 1e-8).sqrt()
    used = kept.flatten(1).any(1)
    return torch.where(used, loss, 0).sum() / used.sum().clamp(min=1)


def _slopes(error: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Mean over pairs `(B,)` of the differences between neighbours along an axis."""
    length = error.shape[axis] - 1
    pair = weight.narrow(axis, 1, length) * weight.narrow(axis, 0, length)
    step = (error.narrow(axis, 1, length) - error.narrow(axis, 0, length)).abs() * pair
    return step.flatten(1).sum(1) / pair.flatten(1).sum(1).clamp(min=1)
