"""A network for inference: batch normalisation as part of the convolution before it, one pass over the map, not two."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from distilldepth.models.base import DepthModel
from distilldepth.models.uncertainty import UncertainDepth

M = TypeVar("M", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold_norms(model: DepthModel, autocast: torch.dtype | None = None) -> DepthModel:
    """Return a network of equal outputs in evaluation mode, without the batch normalisations that follow a convolution.

    With running mean m, variance v, scale g and shift b, `g (w * x + c - m) / sqrt(v + eps) + b` is a convolution by
    `w g / sqrt(v + eps)`. Which normalisations follow a convolution the families say, in `DepthModel.folds`; nothing is
    guessed. Left as they are: normalisations in training mode or without running statistics, layers that stand in
    several places, and sums that the weights' dtype cannot hold.

    Args:
        model: in evaluation mode; it is not changed.
        autocast: what the network will run under, which would cast float32 weights of convolutions to it at every call;
            None if under nothing.

    Returns:
        A copy that shares with the model all that is not folded: no gradients, no other mode, and to be used only as
        long as the weights stay as they are. `model` itself if there is nothing to fold: another family, a class that a
        user made, or a model with hooks, whose layers somebody watches.
    """
    if type(model) is UncertainDepth and not any(map(_is_watched, model.modules())):
        network = fold_norms(model.network, autocast)
        return model if network is model.network else _with_layers(model, {id(model.network): network})
    if "folds" not in vars(type(model)) or any(map(_is_watched, model.modules())):
        return model
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    made: dict[int, nn.Module] = {}
    for owner, convolution, norm in _pairs(model):
        layers = owner.get_submodule(convolution), owner.get_submodule(norm)
        if all(places[id(layer)] == 1 for layer in layers) and (
            folded := _fold(*layers, model.memory_format, autocast)
        ):
            made[id(layers[0])], made[id(layers[1])] = folded, nn.Identity()
    if not made:
        return model
    return _with_layers(model, made)


def _with_layers(module: M, made: dict[int, nn.Module]) -> M:
    """The module with other layers in it, itself if it has none of them; adds to `made` what it copies on the way."""
    if id(module) in made:
        found: Any = made[id(module)]
        return found
    children = {name: child and _with_layers(child, made) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    copied = _shallow(module)
    copied._modules = children
    made[id(module)] = copied
    return copied


def _shallow(module: M) -> M:
    """Another module with the same tensors and layers."""
    copied = object.__new__(type(module))
    copied.__dict__ = module.__dict__ | {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers")}
    return copied


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


def _fold(
    convolution: nn.Module, norm: nn.Module, layout: torch.memory_format, autocast: torch.dtype | None
) -> nn.Conv2d | None:
    """The convolution that does both; None if these two layers cannot be one."""
    if not isinstance(convolution, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
        return None
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None or norm.num_features != convolution.out_channels:
        return None
    # In float32 at least, and rounded once.
    dtype = convolution.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if autocast is not None and dtype == torch.float32:
        dtype = autocast
    with torch.no_grad():
        scale = torch.rsqrt(variance.to(wide) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        offset = -mean if convolution.bias is None else convolution.bias.to(wide) - mean
        shift = offset * scale if norm.bias is None else offset * scale + norm.bias
        weight = (convolution.weight * scale[:, None, None, None]).to(dtype)
        if weight.device.type == "cpu":
            weight = weight.contiguous(memory_format=layout)
        shift = shift.to(dtype)
        narrow = dtype != wide
        if not shift.isfinite().all() or (narrow and not weight.isfinite().all()):
            return None
    folded = _shallow(convolution)
    folded._parameters = {"weight": nn.Parameter(weight, False), "bias": nn.Parameter(shift, False)}
    return folded
