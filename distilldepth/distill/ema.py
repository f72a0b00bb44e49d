"""A moving average of the student's weights: smoother than the last step, at the cost of one more copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distilldepth.distill.sharding import here, part_like


class WeightAverage:
    """Exponential moving average of a module's parameters and float buffers; other buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights; early steps move faster, so that the initial weights are forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                floats[0].append(here(self.tensors[name]))
                floats[1].append(here(value.detach()))
            else:
                self.tensors[name].copy_(value)
        torch._foreach_lerp_(floats[0], floats[1], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged tensors."""
        return self.tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the averaged tensors."""
        for name, value in state.items():
            self.tensors[name].copy_(part_like(value, self.tensors[name]))
