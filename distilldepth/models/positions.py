"""What is done to every position of a map alone: linear layers on the faster of two libraries, and work in pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.machine import multiplies_slowly

PIECE = 2048
"""Positions of a piece: what lies between two layers stays in the caches, and a product is still large."""
_FEWEST = 128
"""Positions below which another library is not worth the way to it."""
_FEWEST_TO_LEARN = 1024
"""The same with gradients, whose products are smaller ones."""


class Linear(nn.Linear):
    """The library's, but oneDNN multiplies float32 where torch's own products are slow: the same up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_slow(x):
            return super().forward(x)
        # Torch hands a convolution of one position to oneDNN only if it is more than that, in name: dilated here.
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        product = F.conv2d(rows, self.weight[:, :, None, None], self.bias, dilation=(1, 2))
        return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)

    def _is_slow(self, x: Tensor) -> bool:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return (
            not _is_recorded()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() >= x.shape[-1] * (_FEWEST_TO_LEARN if learns else _FEWEST)
            and not torch.is_autocast_enabled("cpu")
            and multiplies_slowly()
        )


def speed_up_linear(module: nn.Module) -> None:
    """Make every plain linear layer within a module a `Linear`; names, weights and hooks stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def by_position(module: nn.Module, function: Callable[..., Tensor], over: Tensor, *others: Tensor) -> Tensor:
    """Apply what treats every position of maps alone, in pieces where `in_pieces` saves memory.

    Args:
        module: whose work it is; in training it is done at once.
        function: takes maps `(..., C)`; what it returns has the shape of the first one.
        over: the first map, which may be overwritten.
        others: further ones of as many positions.

    Returns:
        `function(over, *others)`.
    """
    if not fits_in_pieces(module, over):
        return function(over, *others)
    flat, *rest = (each.flatten(0, -2) for each in (over, *others))
    return in_pieces(function, flat, *rest).view(over.shape)


def fits_in_pieces(module: nn.Module, x: Tensor) -> bool:
    """Whether work in pieces saves memory: on a CPU, where nothing is kept for gradients and nothing drawn."""
    return not _is_recorded() and x.device.type == "cpu" and not torch.is_grad_enabled() and not module.training


def in_pieces(function: Callable[..., Tensor], over: Tensor, *others: Tensor, size: int = PIECE) -> Tensor:
    """Apply what treats every entry of the first axis alone, some entries after the other.

    Args:
        function: takes pieces; what it returns has the shape of the first one.
        over: `(N, ...)`, overwritten if its type is that of the results.
        others: `(N, ...)`.
        size: of a piece, entries.

    Returns:
        `function(over, *others)`.
    """
    result = over
    for start in range(0, len(over), size):
        piece = function(*(each[start : start + size] for each in (over, *others)))
        if not start and piece.dtype != over.dtype:
            result = torch.empty_like(over, dtype=piece.dtype)
        result[start : start + size] = piece
    return result


def _is_recorded() -> bool:
    """Whether what is done is written down for machines and sizes other than these."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
