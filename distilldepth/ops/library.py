"""The operations as torch sees them: schema, what they return without computing it, and their gradients.

`distilldepth::NAME` is implemented by the native libraries (`csrc`), `distilldepth::NAME_triton` by the Triton kernels
(`distilldepth.kernels`). The reference needs no registration, it is
plain torch. The losses compute their gradient together with their value, where it is known; their backward only scales
it. It is kept in float32 for 16-bit maps, in which a gradient of one over a million pixels would vanish.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CONTEXTS = ("range", "quantile", "spatial")
"""How contexts are told to the kernels: by position."""

_SCHEMAS = {
    "hybrid_norm": "(Tensor prediction, Tensor target, Tensor? valid, int[] segments, int contexts, float spread_eps, "
    "bool need_gradient) -> (Tensor, Tensor)",
    "crop_ssi": "(Tensor prediction, Tensor targets, Tensor boxes, Tensor image_index, Tensor? valid, int[] segments, "
    "int contexts, float spread_eps, bool need_gradient) -> (Tensor, Tensor)",
    "channel_kl": "(Tensor student, Tensor teacher, Tensor? valid, float temperature, bool need_gradient) "
    "-> (Tensor, Tensor)",
    "backproject": "(Tensor depth, Tensor intrinsics, Tensor? valid) -> Tensor",
    "point_cloud": "(Tensor depth, Tensor intrinsics, Tensor image, Tensor? valid) -> (Tensor, Tensor)",
    "backproject_backward": "(Tensor grad_points, Tensor depth, Tensor intrinsics, Tensor? valid) -> (Tensor, Tensor)",
}
_LOSSES = ("hybrid_norm", "crop_ssi", "channel_kl")

_library = torch.library.Library("distilldepth", "DEF")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type of losses, points and kept gradients for maps of a type: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_loss(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator(student.dtype)
    shape = student.shape if arguments[-1] else (0,)
    return student.new_empty((), dtype=dtype), student.new_empty(shape, dtype=dtype)


def _fake_backproject(depth: Tensor, intrinsics: Tensor, valid: Tensor | None) -> Tensor:
    return depth.new_empty((*depth.shape, 3), dtype=intrinsics.dtype)


def _fake_point_cloud(depth: Tensor, intrinsics: Tensor, image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    count = depth.numel() if valid is None else torch.library.get_ctx().new_dynamic_size()
    return depth.new_empty((count, 3), dtype=intrinsics.dtype), image.new_empty((count, 3))


def _fake_backproject_backward(
    grad_points: Tensor, depth: Tensor, intrinsics: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    return grad_points.new_empty(depth.shape), torch.empty_like(intrinsics)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype, ctx.others = inputs[0].dtype, len(inputs) - 1
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    scaled = None if grad_loss is None else (gradient * grad_loss).to(ctx.dtype)
    return (scaled, *[None] * ctx.others)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backproject_backward(suffix: str) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, None]]:
    def backward(ctx: Any, grad_points: Tensor) -> tuple[Tensor, Tensor, None]:
        operator = getattr(torch.ops.distilldepth, f"backproject_backward{suffix}")
        grad_depth, grad_intrinsics = operator(grad_points.contiguous(), *ctx.saved_tensors)
        return grad_depth.to(ctx.saved_tensors[0].dtype), grad_intrinsics, None

    return backward


def _with_triton(name: str) -> Callable[..., Any]:
    """The Triton kernel of an operation, imported when it is first called."""

    def run(*arguments: Any) -> Any:
        module = importlib.import_module(f"distilldepth.kernels.{name.removesuffix('_backward')}")
        return getattr(module, name)(*arguments)

    return run


def _define() -> None:
    for name, schema in _SCHEMAS.items():
        for suffix in ("",) if name == "point_cloud" else ("", "_triton"):
            _library.define(f"{name}{suffix}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
            operator = f"distilldepth::{name}{suffix}"
            if name in _LOSSES:
                torch.library.register_fake(operator, _fake_loss, lib=_library)
                torch.library.register_autograd(operator, _scale_gradient, setup_context=_keep_gradient, lib=_library)
            elif name == "backproject":
                torch.library.register_fake(operator, _fake_backproject, lib=_library)
                torch.library.register_autograd(
                    operator, _backproject_backward(suffix), setup_context=_keep_inputs, lib=_library
                )
            else:
                fake = _fake_point_cloud if name == "point_cloud" else _fake_backproject_backward
                torch.library.register_fake(operator, fake, lib=_library)
            if suffix:
                _library.impl(f"{name}{suffix}", _with_triton(name), "CompositeExplicitAutograd")


_define()
