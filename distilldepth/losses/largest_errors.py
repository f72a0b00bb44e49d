"""The pixels in which two maps differ most, which some objectives leave out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.losses.normalise import normalise
from distilldepth.ops.arguments import check_pair

_ROUNDING = 1e-6
"""Makes 0.29 of 100 be 29, which in binary is a little less."""


@torch.no_grad()
def without_largest_errors(prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, share: float) -> Tensor:
    """Leave out, of each map, the share of its valid pixels in which it differs most from the target.

    Of the n valid pixels of an image `floor(share n)` are left out, those with the largest `|N(prediction) -
    N(target)|`, N the normalisation by median and mean absolute deviation over them: the error after one map is brought
    to the centre and spread of the other. Of pixels with equal errors it may be either.

    Args:
        prediction: `(B, H, W)`, the student's map, a floating dtype, finite where valid.
        target: `(B, H, W)`, the teacher's map, likewise; must not require grad.
        valid: bool `(B, H, W)`; None = all.
        share: of the valid pixels, at least 0 and below 1.

    Returns:
        bool `(B, H, W)`, a part of `valid`. An image with a valid pixel keeps one.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a share out of its range.

    Gradient: none; which pixels count is taken as given.

    Source: Depth Anything (Yang et al. 2024), section 4, the 10 % with the largest loss per map.

    >>> without_largest_errors(torch.tensor([[[0.0, 1.0, 2.0, 9.0]]]), torch.arange(4.0).view(1, 1, 4), share=0.25)
    tensor([[[ True,  True,  True, False]]])
    """
    check_pair("without_largest_errors", prediction.detach(), target, valid)
    if not 0 <= share < 1:
        raise ValueError(f"without_largest_errors: share must be at least 0 and below 1, got {share}")
    kept = torch.ones_like(prediction, dtype=torch.bool) if valid is None else valid
    pixels = kept.shape[1] * kept.shape[2]
    most = min(math.floor(pixels * share + _ROUNDING), pixels - 1) if kept.numel() else 0
    if not most:
        return kept.clone()
    error = (normalise(prediction, kept) - normalise(target, kept)).abs().flatten(1)
    kept = kept.flatten(1)
    # Each image leaves out another number, known to the device alone: it is the first of what the fullest would.
    worst = torch.where(kept, error, -1.0).topk(most, dim=1).indices
    count = kept.sum(1)
    wide = torch.float32 if kept.device.type == "mps" else torch.float64
    dropped = torch.minimum((count.to(wide) * share + _ROUNDING).floor().long(), (count - 1).clamp(min=0))
    stays = torch.arange(most, device=kept.device) >= dropped[:, None]
    return kept.scatter(1, worst, stays & kept.gather(1, worst)).view(prediction.shape)
