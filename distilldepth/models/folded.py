"""A network for inference: batch normalisation as part of the convolution before it, one pass over the map, not two."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from distilldepth.models.base import DepthModel

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold_norms(model: DepthModel) -> DepthModel:
    """Return a network of equal outputs in evaluation mode, without the batch normalisations that follow a convolution.

    With running mean m, variance v, scale g and shift b, `g (w * x + c - m) / sqrt(v + eps) + b` is a convolution by
    `w g / sqrt(v + eps)`. Which normalisations follow a convolution the families say, in `DepthModel.folds`; nothing is
    guessed. Left as they are: normalisations in training mode or without running statistics, layers that stand in
    several places, and sums that the weights' dtype cannot hold.

    Args:
        model: any; it is not changed. What is returned shares all tensors with it but those of the convolutions, so it
            is to be used only as long as the weights stay as they are.

    Returns:
        A copy in evaluation mode, whose parameters need no gradient where they are new; `model` itself if there is
        nothing to fold: another family, one that a user made, or a model with hooks, whose layers somebody watches.
    """
    if "folds" not in vars(type(model)) or any(map(_is_watched, model.modules())):
        return model
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    made: dict[int, nn.Module] = {}
    for owner, convolution, norm in _pairs(model):
        layers = owner.get_submodule(convolution), owner.get_submodule(norm)
        if all(places[id(layer)] == 1 for layer in layers) and (folded := _fold(*layers, model.memory_format)):
            made[id(layers[0])], made[id(layers[1])] = folded, nn.Identity()
    if not made:
        return model
    tensors = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, {**tensors, **made}).eval()


def _is_watched(module: nn.Module) -> bool:
    """Whether more happens when it is called than its class says."""
    return any(getattr(module, name) for name in _HOOKS) or "forward" in vars(module) or is_parametrized(module)


def _pairs(model: DepthModel) -> Iterator[tuple[nn.Module, str, str]]:
    """Convolutions with the normalisation that follows each, as their names in the module that calls both."""
    for owner in model.modules():
        if named := model.folds.get(type(owner)):
            yield owner, *named
        elif isinstance(owner, nn.Sequential) and type(owner).forward is nn.Sequential.forward:
            # A convolution of another kind may do more to its weights.
            for (first, convolution), (second, _) in itertools.pairwise(owner.named_children()):
                if type(convolution) is nn.Conv2d:
                    yield owner, first, second


def _fold(convolution: nn.Module, norm: nn.Module, layout: torch.memory_format) -> nn.Conv2d | None:
    """The convolution that does both; None if these two layers cannot be one."""
    if not isinstance(convolution, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
        return None
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None or norm.num_features != convolution.out_channels:
        return None
    # In float32 at least, and rounded once.
    wide = torch.promote_types(convolution.weight.dtype, torch.float32)
    with torch.no_grad():
        scale = torch.rsqrt(variance.to(wide) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        offset = -mean if convolution.bias is None else convolution.bias.to(wide) - mean
        shift = offset * scale if norm.bias is None else offset * scale + norm.bias
        weight = (convolution.weight * scale[:, None, None, None]).to(convolution.weight.dtype)
        if weight.device.type == "cpu":
            weight = weight.contiguous(memory_format=layout)
        shift = shift.to(weight.dtype)
        if not (weight.isfinite().all() and shift.isfinite().all()):
            return None
    made = nn.Parameter(weight, requires_grad=False)
    # A deep copy takes what it finds in the memo for copied already.
    folded = copy.deepcopy(convolution, {id(convolution.weight): made})
    folded.bias = nn.Parameter(shift, requires_grad=False)
    return folded
