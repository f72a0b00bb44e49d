"""Gradient matching at several scales."""

from __future__ import annotations

from torch import Tensor

from distilldepth.losses.normalise import normalise, unless_all
from distilldepth.ops.arguments import check_pair


def gradient_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, scales: int = 4) -> Tensor:
    """Differences between neighbours of the residual of two normalised maps, summed over scales.

    `sum over k < scales of (sum |R(x + s, y) - R(x, y)| + sum |R(x, y + s) - R(x, y)|) / count`, s = 2^k, over every
    s-th row and column (subsampled, not averaged), with `R = N(prediction) - N(target)`, N the global median and mean
    absolute deviation of the valid pixels, and count the valid pixels of that scale; mean over images. Pairs count
    where both pixels are valid. It keeps edges sharp and flat regions flat, which a loss on pixels alone does not see.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype.
        target: `(B, H, W)`, the teacher's map; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        scales: how many strides 1, 2, 4, ... are taken.

    Returns:
        Scalar float32 or float64. Images without a valid pixel do not count; 0 with zero gradient if there is none.
        NaN if a valid pixel is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, scales below 1.

    Gradient: to `prediction`.

    Source: Ranftl et al., Towards Robust Monocular Depth Estimation (2020), gradient matching; Distill Any Depth,
    section 3.2 (L_grad). The papers do not say which normalisation comes first.

    >>> import torch
    >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> float(gradient_loss(3 * target + 1, target)) < 1e-5
    True
    """
    check_pair("gradient_loss", prediction, target, valid)
    if scales < 1:
        raise ValueError(f"gradient_loss: scales must be at least 1, got {scales}")
    valid = unless_all(valid)
    residual = normalise(prediction, valid) - normalise(target, valid)
    kept = None if valid is None else valid.to(residual)
    if residual.numel() == 0:
        return residual.sum()
    total = residual.new_zeros(len(residual))
    for scale in range(scales):
        step = 2**scale
        part = residual[:, ::step, ::step]
        across, down = (part[:, :, 1:] - part[:, :, :-1]).abs(), (part[:, 1:] - part[:, :-1]).abs()
        if kept is None:
            count: int | Tensor = part[0].numel()
        else:
            # The residual is 0 where not valid, so a product leaves such pairs out without 0 * NaN.
            here = kept[:, ::step, ::step]
            across, down = across * (here[:, :, 1:] * here[:, :, :-1]), down * (here[:, 1:] * here[:, :-1])
            count = here.flatten(1).sum(1).clamp(min=1)
        total = total + (across.flatten(1).sum(1) + down.flatten(1).sum(1)) / count
    if valid is None:
        return total.mean()
    return total.sum() / valid.flatten(1).any(1).sum().clamp(min=1)
