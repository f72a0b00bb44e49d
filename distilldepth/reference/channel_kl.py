"""Channel-wise distillation in plain torch: what `distilldepth.ops.channel_kl_loss` means, in float32 and float64."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_kl_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """What `distilldepth.ops.channel_kl_loss` means; see there for arguments, which this function trusts.

    Returns:
        Scalar, float32 (float64 for float64 input).
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
    maps = divergence.numel() if kept is None else (kept.any(2).sum() * channels).clamp(min=1)
    return temperature**2 * divergence.sum() / maps
