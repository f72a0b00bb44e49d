"""What is measured: an operation on inputs that look like depth maps, and the least work that it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distilldepth import ops, reference
from distilldepth.bench import usual as baselines
from distilldepth.bench.choices import DEFAULT_SHAPE, DIRECTIONS, KERNELS, USUAL
from distilldepth.errors import did_you_mean
from distilldepth.words import CONTEXTS, FLOATS

DTYPES = {name: getattr(torch, name) for name in FLOATS}
SEGMENTS = (1, 2, 4)
"""As `distill` uses them, for the region and for its windows."""
CROPS_PER_IMAGE = 4

# Bytes: every input read once, every result written once, nothing in between. Backward of backproject is a call of its
# own, because its gradient arrives later; the losses write their gradient where they compute their value.
# Operations: every addition, multiplication, division, comparison, exponential and absolute value counts as one; what
# is shared by a row, a column or a context is not counted, nor is the selection of medians.
FORMULAS = {
    "hybrid_norm": {
        "bytes": {"forward": "P*(2*i + 1)", "forward+backward": "P*(3*i + 1)"},
        "operations": {"forward": "P*(11*L + 2)", "forward+backward": "P*(21*L + 3)"},
    },
    "crop_ssi": {
        "bytes": {"forward": "P*i + C*(i + 1)", "forward+backward": "2*P*i + C*(i + 1)"},
        "operations": {"forward": "C*(11*L + 10)", "forward+backward": "C*(21*L + 19)"},
    },
    "channel_kl": {
        "bytes": {"forward": "P*2*i", "forward+backward": "P*3*i"},
        "operations": {"forward": "P*13", "forward+backward": "P*19"},
    },
    "backproject": {
        "bytes": {"forward": "P*(i + 12)", "forward+backward": "P*(2*i + 24)"},
        "operations": {"forward": "P*2", "forward+backward": "P*6"},
    },
}
"""The least work of each operation: P pixels of the maps, C pixels of the crops, i bytes per value, L levels."""


@dataclass(frozen=True)
class Case:
    """One operation on fixed inputs."""

    op: str
    contexts: str | None
    """None for operations without contexts."""
    note: str
    inputs: tuple[Tensor, ...]
    """The first one gets a gradient."""
    functions: dict[str, Callable[..., Tensor]]
    """Backend: function of the inputs. `reference`, in float64, is the truth for all."""
    gradient: Tensor | None
    """Incoming gradient of the backward; None for losses, where it is 1."""
    map_bytes: int
    """Size of one whole input map, in which memory is counted."""
    bytes_min: dict[str, int]
    """By direction, see `FORMULAS`."""
    operations_min: dict[str, int]
    """Likewise."""

    def call(self, backend: str, direction: str, dtype: torch.dtype | None = None) -> Callable[[], tuple[Tensor, ...]]:
        """Return a function that runs a backend once and gives its value and, with backward, its gradient."""
        function, backward = self.functions[backend], direction == "forward+backward"
        first, *rest = (x.to(dtype) if dtype is not None and x.is_floating_point() else x for x in self.inputs)
        first = first.detach().clone().requires_grad_(backward)
        gradient = self.gradient if dtype is None or self.gradient is None else self.gradient.to(dtype)

        def once() -> tuple[Tensor, ...]:
            first.grad = None
            with torch.set_grad_enabled(backward):
                value = function(first, *rest)
            if not backward:
                return (value,)
            torch.autograd.backward(value, gradient)
            return value.detach(), first.grad  # type: ignore[return-value]  # backward has filled it in

        return once


def make_case(
    kernel: str,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    dtype: torch.dtype = torch.float32,
    *,
    contexts: str = "range",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """Return the case of a kernel: inputs that look like depth maps, with a tenth of the pixels not valid.

    Args:
        kernel: one of `KERNELS`.
        shape: `(B, H, W)`.
        dtype: of the maps.
        contexts: of hybrid-norm and crop-ssi.
        device: where.
        seed: of the inputs.

    Raises:
        ValueError: unknown kernel or contexts, or an empty shape.
    """
    if kernel not in KERNELS:
        raise ValueError(f"make_case: kernel must be known, got {kernel!r}{did_you_mean(kernel, KERNELS)}")
    if contexts not in CONTEXTS:
        raise ValueError(f"make_case: contexts must be known, got {contexts!r}{did_you_mean(contexts, CONTEXTS)}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"make_case: shape must be three positive numbers B, H, W, got {shape}")
    batch, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    prediction, target = _maps(shape, generator), _maps(shape, generator)
    target = 0.7 * prediction + 0.3 * target
    valid = torch.rand(shape, generator=generator) > 0.1
    prediction, target, valid = prediction.to(device, dtype), target.to(device, dtype), valid.to(device)
    pixels = batch * height * width
    if kernel == "hybrid-norm":
        how: dict[str, Any] = {"segments": SEGMENTS, "contexts": contexts}
        functions = _functions(
            "hybrid_norm", ops.hybrid_norm_loss, reference.hybrid_norm_loss, baselines.mask_list_loss, how
        )
        return _case("hybrid_norm", contexts, "", (prediction, target, valid), functions, pixels)
    if kernel == "crop-ssi":
        count = batch * CROPS_PER_IMAGE
        crop_shape = (count, height, width)
        targets = _maps(crop_shape, generator).to(device, dtype)
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 0.4
        extent = torch.tensor([width, height])
        boxes = torch.cat([corner * extent, (corner + 0.5) * extent], dim=1).to(device)
        index = torch.arange(batch).repeat_interleave(CROPS_PER_IMAGE).to(device)
        crop_valid = (torch.rand(crop_shape, generator=generator) > 0.1).to(device)
        how = {"segments": SEGMENTS, "contexts": contexts}
        functions = _functions("crop_ssi", ops.crop_ssi_loss, reference.crop_ssi_loss, baselines.grid_sample_loss, how)
        inputs = (prediction, targets, boxes, index, crop_valid)
        return _case(
            "crop_ssi", contexts, f"{count} crops of {height}x{width}", inputs, functions, pixels, targets.numel()
        )
    if kernel == "channel-kl":
        how = {"temperature": 1.0}
        functions = _functions("channel_kl", ops.channel_kl_loss, reference.channel_kl_loss, baselines.kl_div_loss, how)
        return _case("channel_kl", None, "", (prediction[:, None], target[:, None]), functions, pixels)
    intrinsics = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    intrinsics = intrinsics.expand(batch, 3, 3).contiguous().to(device)
    grid = baselines.pixel_grid(height, width, device)
    functions = _functions(
        "backproject", ops.backproject, reference.backproject, partial(baselines.meshgrid_points, grid=grid), {}
    )
    gradient = torch.randn(*shape, 3, generator=generator).to(device)
    return _case("backproject", None, "", (prediction, intrinsics), functions, pixels, gradient=gradient)


def _case(
    op: str,
    contexts: str | None,
    note: str,
    inputs: tuple[Tensor, ...],
    functions: dict[str, Callable[..., Tensor]],
    pixels: int,
    crop_pixels: int = 0,
    gradient: Tensor | None = None,
) -> Case:
    item, levels = inputs[0].element_size(), len(SEGMENTS)
    p, c = pixels, crop_pixels
    bytes_min, operations_min = {
        "hybrid_norm": (
            (p * (2 * item + 1), p * (3 * item + 1)),
            (p * (11 * levels + 2), p * (21 * levels + 3)),
        ),
        "crop_ssi": (
            (p * item + c * (item + 1), 2 * p * item + c * (item + 1)),
            (c * (11 * levels + 10), c * (21 * levels + 19)),
        ),
        "channel_kl": ((p * 2 * item, p * 3 * item), (p * 13, p * 19)),
        "backproject": ((p * (item + 12), p * (2 * item + 24)), (p * 2, p * 6)),
    }[op]
    if contexts is not None:
        note = f"{note}{' ' if note else ''}segments={','.join(map(str, SEGMENTS))}"
    return Case(
        op,
        contexts,
        note,
        inputs,
        functions,
        gradient,
        max(p, c) * item,
        dict(zip(DIRECTIONS, bytes_min, strict=True)),
        dict(zip(DIRECTIONS, operations_min, strict=True)),
    )


def _functions(
    op: str,
    public: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    usual: Callable[..., Tensor],
    how: dict[str, Any],
) -> dict[str, Callable[..., Tensor]]:
    """Every backend of an operation; whether it can run here is seen when it is called."""

    def forced(backend: str) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            before = os.environ.get("DISTILLDEPTH_BACKEND")
            os.environ["DISTILLDEPTH_BACKEND"] = backend
            try:
                return public(*inputs, **how)
            finally:
                if before is None:
                    del os.environ["DISTILLDEPTH_BACKEND"]
                else:
                    os.environ["DISTILLDEPTH_BACKEND"] = before

        return run

    return {
        "native": forced("native"),
        "triton": forced("triton"),
        "reference": partial(plain, **how),
        "compile": _compiled(partial(plain, **how)),
        USUAL[op]: partial(usual, **how),
    }


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` of a function, which is imported and starts its processes when it is first called."""
    made: list[Callable[..., Tensor]] = []

    def run(*inputs: Tensor) -> Tensor:
        if not made:
            # Cases share this code, and after a few variants of one function torch would quietly compile no more.
            torch.compiler.reset()
            made.append(torch.compile(lambda *args: function(*args), dynamic=False))
        return made[0](*inputs)

    return run


def _maps(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Smooth positive maps with edges and a little noise, as a network gives."""
    batch, height, width = shape
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    a, b, c = torch.rand(3, batch, 1, 1, generator=generator)
    smooth = 1 + y * (1 + a) + 0.5 * torch.sin(6 * x * (1 + b) + 4 * y) + (x > c).float()
    return smooth + 0.01 * torch.randn(shape, generator=generator)
