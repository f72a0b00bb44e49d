"""Channel-wise distillation loss."""

from __future__ import annotations

from torch import Tensor

from distilldepth import reference
from distilldepth.ops.arguments import check_distilled, check_temperature
from distilldepth.ops.backend import active_backend, kernel, prepare


def channel_kl_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Kullback-Leibler divergence between two maps as distributions over their positions.

    `temperature^2 * sum over positions of phi_t (log phi_t - log phi_s)`, mean over images and channels, with
    `phi = softmax over H * W of map / temperature`. Unchanged by a shift of either map, not by a scale: bring both maps
    to one scale first (`distilldepth.losses.normalise`).

    Args:
        student: `(B, C, H, W)` or `(B, H, W)`, a floating dtype.
        teacher: as `student`; must not require grad.
        valid: bool `(B, H, W)`, the positions that the softmax is over; None = all.
        temperature: positive; larger is smoother.

    Returns:
        Scalar float32; float64 if an input is float64. Images without a valid position do not count; 0 with zero
        gradient if there is none. NaN if a valid position is not finite.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool, temperature is no number.
        ValueError: shapes or devices differ, the teacher requires grad, temperature is not positive.
        DistillDepthError: DISTILLDEPTH_BACKEND forces a backend that is not there.

    Gradient: to `student`, in its dtype: `temperature * (phi_s - phi_t) / maps`.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction (2021).

    >>> import torch
    >>> student = torch.tensor([[[0.0, 1.0, 3.0]]])
    >>> abs(float(channel_kl_loss(student, student + 7))) < 1e-6
    True
    """
    name = "channel_kl_loss"
    check_distilled(name, student, teacher, valid)
    check_temperature(name, temperature)
    backend = active_backend("channel_kl", student)
    if backend == "reference":
        return reference.channel_kl_loss(student, teacher, valid, temperature=temperature)
    batch, positions = len(student), student.shape[-2] * student.shape[-1]
    channels = student.shape[1] if student.ndim == 4 else 1
    student, teacher, valid = prepare(
        student.reshape(batch, channels, positions),
        teacher.reshape(batch, channels, positions),
        None if valid is None else valid.reshape(batch, positions),
    )
    return kernel("channel_kl", backend)(student, teacher, valid, temperature)[0]
