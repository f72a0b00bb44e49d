"""Squared differences, plain and between distributions over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_distilled, check_temperature


def mse_loss(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared difference over the valid positions of the whole batch, without any normalisation.

    Maps of unknown scale and shift want one first (`distilldepth.losses.normalise`).

    Args:
        student: `(B, C, H, W)` or `(B, H, W)`, a floating dtype.
        teacher: as `student`; must not require grad.
        valid: bool `(B, H, W)`; None = all.

    Returns:
        Scalar float32 or float64. 0 with zero gradient if there is no valid position; not finite if a valid one is not.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a teacher that requires grad.

    Gradient: to `student`.

    >>> mse_loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
    tensor(5.)
    """
    check_distilled("mse_loss", student, teacher, valid)
    student, teacher, kept = _over_positions(student, teacher, valid)
    if kept is None:
        return (student - teacher).square().sum() / max(student.numel(), 1)
    difference = torch.where(kept, student, 0) - torch.where(kept, teacher, 0)
    return difference.square().sum() / (kept.sum() * student.shape[1]).clamp(min=1)


def channel_mse_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Squared difference between two maps as distributions over their positions.

    `sum over positions of (phi_t - phi_s)^2`, mean over images and channels, with `phi = softmax over H * W of map /
    temperature`. Unchanged by a shift of either map, not by a scale: bring both maps to one scale first
    (`distilldepth.losses.normalise`). The more positions, the smaller: of n positions each phi is about 1 / n, the sum
    about 1 / n too, where `channel_kl_loss` does not depend on n.

    Args:
        student: `(B, C, H, W)` or `(B, H, W)`, a floating dtype.
        teacher: as `student`; must not require grad.
        valid: bool `(B, H, W)`, the positions that the softmax is over; None = all.
        temperature: positive; larger is smoother.

    Returns:
        Scalar float32 or float64. Images without a valid position do not count; 0 with zero gradient if there is none.
        NaN if a valid position is not finite.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool, temperature is no number.
        ValueError: shapes or devices differ, the teacher requires grad, temperature is not positive.

    Gradient: to `student`.

    Source: Gao et al., Robust Lightweight Depth Estimation Model via Data-Free Distillation, ablation (CN+MSE).

    >>> student = torch.tensor([[[0.0, 1.0, 3.0]]])
    >>> float(channel_mse_loss(student, student + 7)) < 1e-12
    True
    """
    check_distilled("channel_mse_loss", student, teacher, valid)
    check_temperature("channel_mse_loss", temperature)
    student, teacher, kept = _over_positions(student, teacher, valid)
    if student.numel() == 0:
        return student.sum()
    finite = torch.isfinite(student.detach()) & torch.isfinite(teacher)
    if kept is not None:
        # -inf leaves a position out of the softmax; an image without any position is left out at the end.
        fill = torch.where(kept.any(2, keepdim=True), -torch.inf, 0.0).to(student)
        student, teacher = torch.where(kept, student, fill), torch.where(kept, teacher, fill)
        finite = finite | ~kept
    phi_s, phi_t = (student / temperature).softmax(2), (teacher / temperature).softmax(2)
    # Of an infinite value the softmax would make a distribution, of all others' absence.
    maps = torch.where(finite.all(2), (phi_t - phi_s).square().sum(2), torch.nan)
    if kept is None:
        return maps.mean()
    used = kept.any(2)
    return torch.where(used, maps, 0).sum() / (used.sum() * maps.shape[1]).clamp(min=1)


def _over_positions(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both as `(B, C, H * W)` of at least float32, and valid as `(B, 1, H * W)`."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    batch, positions = len(student), student.shape[-2] * student.shape[-1]
    shape = batch, student.shape[1] if student.ndim == 4 else 1, positions
    kept = None if valid is None else valid.reshape(batch, 1, positions)
    return student.to(dtype).reshape(shape), teacher.to(dtype).reshape(shape), kept
