"""The fit of scale and shift that losses make, with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares_fit(values: Tensor, wanted: Tensor, kept: Tensor) -> Tensor:
    """Return `scale * values + shift`, the least-squares fit to `wanted` over what is kept, of each row.

    Evaluation fits with `distilldepth.alignment`, which takes any scale and gives no gradient.

    Args:
        values: `(B, P)`, float32 or float64.
        wanted: as values, without gradient; finite where kept.
        kept: bool `(B, P)`.

    Returns:
        As values; the mean of what is wanted where not kept. NaN if a value that is kept is.

    Gradient: to `values`, through scale and shift. Where the scale comes out negative, or the values are constant, the
    fit is the mean of what is wanted, without gradient.
    """
    values, wanted = torch.where(kept, values, 0), torch.where(kept, wanted, 0)
    count = kept.sum(1, keepdim=True).clamp(min=1).to(values)
    centre, level = values.sum(1, keepdim=True) / count, wanted.sum(1, keepdim=True) / count
    deviation, rise = torch.where(kept, values - centre, 0), torch.where(kept, wanted - level, 0)
    variance = deviation.square().sum(1, keepdim=True)
    # Constant values have no slope: the division would give their gradient as 0 * inf.
    noise = count * (torch.finfo(values.dtype).eps * centre).square()
    constant = variance <= noise.clamp(min=torch.finfo(values.dtype).tiny)
    scale = (deviation * rise).sum(1, keepdim=True) / torch.where(constant, 1, variance)
    return level + torch.where(constant, 0, scale).clamp(min=0) * deviation
