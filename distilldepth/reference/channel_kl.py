"""Channel-wise distillation in plain torch: what `distilldepth.ops.channel_kl_loss` means, in float32 and float64."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_kl_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Kullback-Leibler divergence between the maps as distributions over their positions.

    `temperature^2 * sum over positions of phi_t (log phi_t - log phi_s)`, mean over images and channels, with
    `phi = softmax over positions of map / temperature`. `distilldepth.ops.channel_kl_loss` documents and checks the
    arguments; this function trusts them.

    Args:
        student: `(B, C, H, W)` or `(B, H, W)`, any float dtype.
        teacher: as `student`; no gradient flows to it.
        valid: bool `(B, H, W)`, the positions that the softmax is over; None = all.
        temperature: positive.

    Returns:
        Scalar, float32 (float64 for float64 input). Maps without a valid position do not count; 0 with zero gradient
        if there is none. NaN if a valid position is not finite.

    Gradient: to `student`: `temperature * (phi_s - phi_t) / maps`.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction (2021).
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    channels = student.shape[1] if student.ndim == 4 else 1
    if student.numel() == 0:
        return student.to(dtype).sum() * 0
    student, teacher = (x.to(dtype).reshape(len(x), channels, -1) for x in (student, teacher.detach()))
    if valid is None:
        kept = None
    else:
        kept = valid.reshape(len(valid), 1, -1)
        # -inf leaves a position out of the softmax; an image without any position is left out at the end.
        fill = torch.where(kept.any(2, keepdim=True), -torch.inf, 0.0).to(dtype)
        student, teacher = torch.where(kept, student, fill), torch.where(kept, teacher, fill)
    log_s = torch.log_softmax(student / temperature, 2)
    log_t = torch.log_softmax(teacher / temperature, 2)
    terms = log_t.exp() * (log_t - log_s)
    finite = torch.isfinite(student.detach())
    if kept is not None:
        terms, finite = torch.where(kept, terms, 0), finite | ~kept
    # -inf in the student is a finite distribution with an infinite divergence; it is reported as NaN like the rest.
    divergence = torch.where(finite.all(2), terms.sum(2), torch.nan)
    if kept is None:
        maps = divergence.numel()
    else:
        maps = (kept.any(2).sum() * channels).clamp(min=1)
    return temperature**2 * divergence.sum() / maps
