"""Weights in a narrower dtype: batch normalisations whose statistics outgrow it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

_KEPT = 2.0**10
"""Variances are brought down to this, so far above the normalisation's epsilon that it still does not count."""


def state_that_fits(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the weights of a model, of equal outputs, with running variances that a narrower dtype can hold.

    What a batch normalisation gives does not depend on the scale of the convolution before it. A channel whose variance
    outgrows the dtype (float16 ends at 65504, variances of a million occur) has the convolution's weights and the
    running mean divided by a power of two, and the variance by its square. The model itself is not changed.

    Args:
        model: any network; normalisations that follow a convolution without bias inside an `nn.Sequential` are
            looked at.
        dtype: of the file; None leaves everything as it is.

    Returns:
        `model.state_dict()`, with other tensors where needed.
    """
    state = dict(model.state_dict())
    if dtype is None or not dtype.is_floating_point:
        return state
    largest = torch.finfo(dtype).max
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (first, convolution), (second, norm) in itertools.pairwise(children):
            if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            if convolution.bias is None and norm.running_var is not None and norm.running_var.max() >= largest:
                path = f"{name}." if name else ""
                _shrink(state, f"{path}{first}.weight", f"{path}{second}.", largest)
    return state


def _shrink(state: dict[str, Tensor], weight: str, norm: str, largest: float) -> None:
    """Divide the channels that need it by a power of two each."""
    variance = state[f"{norm}running_var"]
    scale = torch.exp2((variance / _KEPT).log2().div(2).ceil())
    scale = torch.where(variance >= largest, scale, 1.0)
    state[weight] = state[weight] / scale[:, None, None, None]
    state[f"{norm}running_mean"] = state[f"{norm}running_mean"] / scale
    state[f"{norm}running_var"] = variance / scale.square()
