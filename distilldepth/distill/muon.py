"""Muon: steps of equal size in every direction of a weight matrix; AdamW for the parameters that are no matrices.

Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024); the step's length after Liu et
al., Muon is Scalable for LLM Training (2502.16982).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: singular values from 0.01 to 1 end between 0.68 and 1.14 in five steps."""
_MOMENTUM = 0.95
_LEAST_SIDE = 8
"""Matrices narrower than this are nearly vectors, for which AdamW is the better rule."""


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `"muon": True` are stepped by Muon.

    `torch.optim.Muon` takes matrices only and one after another; this one takes convolutions too (as the matrix from
    all inputs of a position to its outputs), all of one shape at once, and leaves everything as it was where a
    gradient is not finite, without waiting for the device. A step has the root mean square of one of AdamW, so both
    use one learning rate.

    Args:
        groups: parameter groups; those for Muon hold only parameters of two dimensions or more.
        precision: type in which matrices are made orthogonal, which bears bfloat16 where that is fast.
        options: of `torch.optim.AdamW`, which takes the other groups.
    """

    def __init__(self, groups: list[dict[str, Any]], *, precision: torch.dtype = torch.float32, **options: Any) -> None:
        super().__init__([{"muon": False} | group for group in groups], **options)
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # it takes none
        """Change every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon.step: no closure, the gradients must be there")
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        # What a gradient scaler, or `watch_gradients`, leaves here for the fused AdamW holds for these groups too.
        scale, infinite = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for shape, parameters in alike.items():
            momenta = [self._momentum(parameter) for parameter in parameters]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if scale is not None:
                gradients = list(torch._foreach_div(gradients, scale))
            rate: float | Tensor = group["lr"]
            if infinite is not None:
                # A momentum that is moved towards itself stays.
                gradients = [torch.where(infinite > 0, m, g) for m, g in zip(momenta, gradients, strict=True)]
                rate = rate * (infinite == 0)
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
            steps = orthogonalise(torch.stack([step.reshape(shape[0], -1) for step in ahead]), self._precision)
            length = 0.2 * max(steps.shape[-2:]) ** 0.5
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_sub_(parameters, [(rate * length * step).view(shape) for step in steps])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW looks for it in every state that it loads.
        return state["momentum"]


def orthogonalise(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Args:
        matrices: `(N, rows, columns)`.
        precision: type in which the work is done; this iteration bears bfloat16.

    Returns:
        `(N, rows, columns)` in the type of `matrices`. A matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(precision)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def matrix_parameters(module: nn.Module) -> set[int]:
    """Return the `id` of every parameter of a module that Muon is for: weights of linear layers and convolutions."""
    weights = (
        part.weight
        for part in module.modules()
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and getattr(part, "groups", 1) == 1
    )
    return {id(weight) for weight in weights if min(weight.flatten(1).shape) >= _LEAST_SIDE}
