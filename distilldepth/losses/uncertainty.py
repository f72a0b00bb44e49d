"""Losses in which the student says how far it trusts itself: where it is unsure, an error costs less."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from distilldepth.errors import did_you_mean
from distilldepth.losses.pixel import absolute_difference
from distilldepth.ops.arguments import check_device, check_distilled, check_floats, check_pair, check_same

FORMS = ("printed", "laplace")
"""How the logarithm of the variance enters the loss of responses."""


def response_uncertainty_loss(
    prediction: Tensor,
    target: Tensor,
    log_variance: Tensor,
    valid: Tensor | None = None,
    *,
    form: str = "printed",
    together: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Absolute difference between two maps, weighed by what the student thinks of its own uncertainty.

    With s the logarithm of the variance, over the valid pixels of the batch:

    - `printed`: `mean of sqrt(2) exp(-s) |target - prediction| + s`;
    - `laplace`: `mean of sqrt(2) exp(-s / 2) |target - prediction| + s / 2`.

    The second is the likelihood of a Laplace distribution of variance exp(s), but for a constant. The first, as the
    paper prints it, is that of one of deviation exp(s), while its text calls s the logarithm of the variance. Of a
    pixel whose error e stays, the least loss is at `s = log(sqrt(2) e)` and at twice that.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype.
        target: `(B, H, W)`, the teacher's map, in the same unit; must not require grad.
        log_variance: `(B, H, W)`, s, the student's; bounded by who makes it, as exp(-s) is not.
        valid: bool `(B, H, W)`; None = all.
        form: `printed` or `laplace`.
        together: adds up a tensor over the parts of a batch that several processes share, so that the mean is that of
            all; None: the batch is whole.

    Returns:
        Scalar float32 or float64, of either sign. 0 with zero gradient if there is no valid pixel; not finite if a
        valid pixel is not.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, an unknown form.

    Gradient: to `prediction` and `log_variance`.

    Source: ADU-Depth, equation 8 (L_umr).

    >>> zeros = torch.zeros(1, 1, 2)
    >>> round(float(response_uncertainty_loss(zeros, zeros + 1, zeros)), 4)
    1.4142
    """
    name = "response_uncertainty_loss"
    check_pair(name, prediction, target, valid)
    check_floats(name, "log_variance", log_variance, (3,), "(B, H, W)")
    check_same(name, "log_variance", log_variance, "prediction", prediction)
    if form not in FORMS:
        raise ValueError(f"{name}: form must be {' or '.join(FORMS)}, got {form!r}{did_you_mean(str(form), FORMS)}")
    difference = absolute_difference(prediction, target, valid)
    spread = log_variance.to(torch.promote_types(difference.dtype, log_variance.dtype))
    if valid is not None:
        spread = torch.where(valid, spread, 0)
    if form == "laplace":
        spread = spread / 2
    pixels = math.sqrt(2) * (-spread).exp() * difference + spread
    kept = torch.ones_like(pixels) if valid is None else valid.to(pixels)
    sums = torch.stack([pixels.sum(), kept.sum()])
    if together is not None:
        sums = together(sums)
    return sums[0] / sums[1].clamp(min=1)


def feature_uncertainty_loss(student: Tensor, teacher: Tensor, log_variance: Tensor) -> Tensor:
    """Squared difference between features, weighed by what the student thinks of its uncertainty at their place.

    `mean over positions of exp(-s) / 2 * mean over channels of (teacher - student)^2 + s / 2`, s the logarithm of the
    variance, averaged over the pixels of a position. The paper sums over channels; the mean makes levels of different
    width alike. Of a position whose mean squared difference e stays, the least loss is at `s = log e`.

    Args:
        student: `(B, C, h, w)`, a floating dtype.
        teacher: as `student`; must not require grad.
        log_variance: `(B, H, W)`, s of the map, of any size.

    Returns:
        Scalar float32 or float64, of either sign; 0 for no values. Not finite if one of them is not.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes, batch sizes or devices differ, the teacher requires grad.

    Gradient: to `student` and `log_variance`.

    Source: ADU-Depth, equation 7 (L_umf).

    >>> features = torch.zeros(1, 4, 2, 3)
    >>> feature_uncertainty_loss(features, features + 2, torch.zeros(1, 8, 12))
    tensor(2.)
    """
    name = "feature_uncertainty_loss"
    check_floats(name, "student", student, (4,), "(B, C, h, w)")
    check_distilled(name, student, teacher)
    check_floats(name, "log_variance", log_variance, (3,), "(B, H, W)")
    check_device(name, "log_variance", log_variance, "student", student)
    if len(log_variance) != len(student):
        raise ValueError(
            f"{name}: log_variance must have the student's batch of {len(student)}, got {len(log_variance)}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    dtype = torch.promote_types(dtype, log_variance.dtype)
    student, teacher, log_variance = student.to(dtype), teacher.to(dtype), log_variance.to(dtype)
    if student.numel() == 0 or log_variance.numel() == 0:
        return student.sum() * 0 + log_variance.sum() * 0
    spread = F.adaptive_avg_pool2d(log_variance[:, None], (student.shape[2], student.shape[3]))[:, 0]
    return ((-spread).exp() * (teacher - student).square().mean(1) + spread).mean() / 2
