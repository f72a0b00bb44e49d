"""A frozen network that rests in the host's memory and is on a device only while it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Resting:
    """Brings the weights of a network to a device and takes them off again.

    They never change, so that leaving costs nothing: what the host keeps is put back in place. On CUDA it keeps them in
    pinned memory, which the device copies by itself.

    Args:
        network: frozen, on the CPU.
        device: where it is used.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device = device
        self._tensors = [*network.parameters(), *network.buffers()]
        self._uses = 0
        if device.type == "cuda":
            for tensor in self._tensors:
                tensor.data = tensor.data.pin_memory()
        self._kept = [tensor.data for tensor in self._tensors]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have the network on the device inside the block; blocks may be nested."""
        if not self._uses:
            # Outside inference mode, whose tensors could not take the place of ordinary ones.
            with torch.inference_mode(False):
                for tensor, kept in zip(self._tensors, self._kept, strict=True):
                    tensor.data = to_device(kept, self._device)
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                for tensor, kept in zip(self._tensors, self._kept, strict=True):
                    tensor.data = kept


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for it; as it is if it is there."""
    return tensor.to(device, non_blocking=True)
