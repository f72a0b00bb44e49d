"""The error in depth that is left after scale and shift are fitted: what affine-invariant evaluation measures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.losses.least_squares import least_squares_fit
from distilldepth.ops.arguments import check_pair

_LEAST_RATIO = 0.5


def aligned_log_loss(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, knee: float | None = None
) -> Tensor:
    """Mean `|log depth error|` after a least-squares fit of scale and shift in disparity, per image.

    `mean |log(s prediction + b) - log(target)|` over the valid pixels with `target > 0`, (s, b) the least-squares fit
    of the prediction to the target over them, through which the gradient passes. Scale- and shift-invariant like the
    normalised losses, with two differences. Errors count relative to the depth, so that far regions, whose disparity
    hardly varies, are learned too. And a map that is unsure is fitted with a small scale, where normalisation by its
    own spread makes it as loud as the target. Below half the target the logarithm continues as its tangent: a fitted
    disparity may be negative.

    Only for targets that are inverse depth up to a scale (a renderer, a metric teacher, a stereo teacher): the
    logarithm of a disparity with an unknown shift means nothing.

    With a `knee` each pixel's error e counts as `e / (e + knee)`, at most 1: pixels that are hopelessly wrong no longer
    outweigh those that a small change would bring within a threshold such as delta1's, |e| < log 1.25 = 0.22. Meant
    for students that are already trained: of an untrained one most pixels lie beyond the knee.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype.
        target: `(B, H, W)`, inverse depth in any unit, 0 where infinitely far; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        knee: the error, in units of log depth, that counts half; positive. None: errors count as they are.

    Returns:
        Scalar float32 or float64, mean over images. Images with fewer than two pixels that count do not count; 0 with
        zero gradient if there is none. NaN if a pixel that counts is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, a knee that is not a
            positive number.

    Gradient: to `prediction`. Where the scale comes out negative, or the prediction is constant, the fit is the mean
    of the target, without gradient: another term has to say which way is near.

    >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> float(aligned_log_loss(3 * target + 1, target)) < 1e-5
    True
    """
    check_pair("aligned_log_loss", prediction, target, valid)
    if knee is not None and not 0 < knee < math.inf:
        raise ValueError(f"aligned_log_loss: knee must be positive and finite, or None for no knee, got {knee}")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    values, truth = prediction.flatten(1).to(dtype), target.flatten(1).to(dtype)
    # Not `truth > 0`: a NaN must count, so that it shows.
    kept = ~(truth <= 0)
    if valid is not None:
        kept = kept & valid.flatten(1)
    truth = torch.where(kept, truth, 1)
    ratio = least_squares_fit(values, truth, kept) / truth
    weight = kept.to(dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    high = ratio.clamp(min=_LEAST_RATIO).log().abs()
    error = high + (_LEAST_RATIO - ratio).clamp(min=0) / _LEAST_RATIO
    if knee is not None:
        error = error / (error + knee)
    used = (kept.sum(1) > 1).to(dtype)
    return ((error * weight).sum(1) / count[:, 0] * used).sum() / used.sum().clamp(min=1)
