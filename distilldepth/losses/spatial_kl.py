"""Divergence between features as distributions over their channels."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_distilled, check_temperature


def spatial_kl_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence between two stacks of maps as distributions over channels, at each position.

    `temperature^2 * sum over channels of p_t (log p_t - log p_s)`, mean over images and positions, with `p = softmax
    over C of values / temperature`. Unchanged by what is added to all channels of a position. For features: of a single
    channel it is 0.

    Args:
        student: `(B, C, H, W)`, or `(B, H, W)` for one channel, a floating dtype.
        teacher: as `student`; must not require grad.
        temperature: positive; larger is smoother.

    Returns:
        Scalar float32 or float64; 0 for no values. NaN if one is not finite.

    Raises:
        TypeError: not floating tensors, temperature is no number.
        ValueError: shapes or devices differ, the teacher requires grad, temperature is not positive.

    Gradient: to `student`: `temperature * (p_s - p_t) / positions of the batch`.

    Source: Gao et al., Robust Lightweight Depth Estimation Model via Data-Free Distillation, ablation (SN+KL).

    >>> student = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1)
    >>> abs(float(spatial_kl_loss(student, student + 7))) < 1e-6
    True
    """
    check_distilled("spatial_kl_loss", student, teacher)
    check_temperature("spatial_kl_loss", temperature)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    if student.ndim == 3:
        student, teacher = student[:, None], teacher[:, None]
    student, teacher = student.to(dtype), teacher.to(dtype)
    if student.numel() == 0:
        return student.sum()
    finite = torch.isfinite(student.detach()) & torch.isfinite(teacher)
    log_s, log_t = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    divergence = torch.where(finite.all(1), (log_t.exp() * (log_t - log_s)).sum(1), torch.nan)
    return temperature**2 * divergence.mean()
