"""Parts of a network whose insides are computed again in the backward pass: less memory for more time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Any], *inputs: Any, module: nn.Module | None = None) -> Any:
    """Call a function without keeping what its backward pass needs; that pass calls it once more.

    The second call is the first one again: same generator states, autocast and attention kernels. The running
    statistics of batch normalisation move in the first alone.

    Args:
        function: what to call.
        inputs: its arguments.
        module: whose running statistics the function moves; None if it moves none.

    Gradient: as that of the function.
    """
    if torch.compiler.is_compiling():
        # The compiler repeats operations rather than calls, and finds the statistics moved once.
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def run_block(block: nn.Module, *inputs: Any, again: bool) -> Any:
    """Run a block of a network; with `again`, in training, its insides are computed again in the backward pass."""
    if again and block.training and torch.is_grad_enabled():
        return recompute(block, *inputs, module=block)
    return block(*inputs)


def _contexts(module: nn.Module | None) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first call and the second one, as `torch.utils.checkpoint` asks for it."""
    return nullcontext(), _as_at_first(module, _attention_kernels())


@contextmanager
def _as_at_first(module: nn.Module | None, kernels: list[SDPBackend]) -> Iterator[None]:
    with sdpa_kernel(kernels) if kernels else nullcontext(), untouched_statistics(module):
        yield


@contextmanager
def untouched_statistics(module: nn.Module | None) -> Iterator[None]:
    """Inside the block, running statistics are copies of the module's own, which are there again after it."""
    # Copies, not a momentum of 0: that would still count the batches, and 0 * inf is no number.
    kept = [
        (layer, name, buffer)
        for layer in (() if module is None else module.modules())
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    for layer, name, buffer in kept:
        layer._buffers[name] = buffer.detach().clone()
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            layer._buffers[name] = buffer


def _attention_kernels() -> list[SDPBackend]:
    """The kernels between which scaled dot product attention may choose here."""
    enabled = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    return [kernel for kernel, is_enabled in enabled.items() if is_enabled]


def recompute_layers(network: Any) -> None:
    """Have a network of transformers compute its layers again in the backward pass.

    Raises:
        TypeError: its type cannot do it.
    """
    # The later name first: the earlier one warns of itself where both are there.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    try:
        enable()
    except ValueError as error:
        raise TypeError(f"{type(network).__name__}: this network has no blocks that can be computed again") from error
    for module in network.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = recompute
