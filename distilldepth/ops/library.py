"""The operations as torch sees them: schema, what they return without computing it, and their gradients.

`distilldepth::NAME` is implemented by the native libraries (`csrc`), `distilldepth::NAME_triton` by the Triton kernels
(`distilldepth.kernels`). The reference needs no registration, it is plain torch. The normalising losses compute their
gradient together with their value, up to a scale that depends on the whole batch and is their third result; their
backward, `scale_gradient`, only scales it. It is kept in float32 for 16-bit maps, in which a gradient of one over a
million pixels would vanish. `channel_kl` keeps a few numbers per map instead, from which its backward computes the
gradient. `depth_sums` is for scoring and has no gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANNEL_KL_STATISTICS = ("student_peak", "teacher_peak", "student_weight", "teacher_weight", "log_ratio", "share")
"""What `channel_kl` keeps of every map, in float64: `max x` of both, both `1 / Z` with `Z = sum exp((x - max x) / T)`,
`log(Z_s / Z_t)`, and one over the number of maps with a valid position. The weights are NaN for a map that is not
finite and 0 for one without a valid position."""

DEPTH_SUMS, DEPTH_ALIGNMENT = 14, 4
"""How many numbers `depth_sums` gives for every image: those of `distilldepth.metrics.depth.SUMS`; scale, shift, lower
clip, and whether the prediction is finite."""

_library = torch.library.Library("distilldepth", "DEF")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type of losses, points and kept gradients for maps of a type: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_normalising(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = student.shape if arguments[-1] else (0,)
    loss, gradient, scale = (student.new_empty(size, dtype=accumulator(student.dtype)) for size in ((), shape, ()))
    return loss, gradient, scale


def _fake_scale_gradient(gradient: Tensor, scale: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


def _fake_channel_kl(
    student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    statistics = (student.shape[0] * student.shape[1], len(CHANNEL_KL_STATISTICS))
    return student.new_empty((), dtype=accumulator(student.dtype)), student.new_empty(statistics, dtype=torch.float64)


def _fake_channel_kl_backward(grad_loss: Tensor, student: Tensor, *_: Any) -> Tensor:
    return student.new_empty(student.shape)


def _fake_backproject(depth: Tensor, intrinsics: Tensor, valid: Tensor | None) -> Tensor:
    return depth.new_empty((*depth.shape, 3), dtype=intrinsics.dtype)


def _fake_point_cloud(depth: Tensor, intrinsics: Tensor, image: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    count = depth.numel() if valid is None else torch.library.get_ctx().new_dynamic_size()
    return depth.new_empty((count, 3), dtype=intrinsics.dtype), image.new_empty((count, 3))


def _fake_backproject_backward(
    grad_points: Tensor, depth: Tensor, intrinsics: Tensor, valid: Tensor | None, need_intrinsics: bool
) -> tuple[Tensor, Tensor]:
    matrices = len(depth) if need_intrinsics else 0
    return depth.new_empty(depth.shape), intrinsics.new_empty((matrices, 3, 3))


def _fake_depth_sums(prediction: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shapes = ((prediction.shape[0], columns) for columns in (DEPTH_SUMS, DEPTH_ALIGNMENT))
    sums, alignment = (prediction.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return sums, alignment


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.dtype, ctx.others = inputs[0].dtype, len(inputs) - 1
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _normalising_backward(suffix: str) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        scaled = None
        if grad_loss is not None:
            operator = getattr(torch.ops.distilldepth, f"scale_gradient{suffix}")
            scaled = operator(*ctx.saved_tensors, grad_loss, ctx.dtype)
        return (scaled, *[None] * ctx.others)

    return backward


def _keep_scaled(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _scale_gradient_backward(suffix: str) -> Callable[[Any, Tensor], tuple[None, None, Tensor, None]]:
    """Of the backward itself, which is linear in the gradient of the loss."""

    def backward(ctx: Any, grad_scaled: Tensor) -> tuple[None, None, Tensor, None]:
        gradient, scale = ctx.saved_tensors
        return None, None, (grad_scaled * gradient).sum() * scale, None

    return backward


def _keep_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.temperature = inputs[3]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _channel_kl_backward(suffix: str) -> Callable[[Any, Tensor | None, Tensor | None], tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None
        operator = getattr(torch.ops.distilldepth, f"channel_kl_backward{suffix}")
        return operator(grad_loss, *ctx.saved_tensors, ctx.temperature), None, None, None

    return backward


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backproject_backward(suffix: str) -> Callable[[Any, Tensor], tuple[Tensor, Tensor | None, None]]:
    def backward(ctx: Any, grad_points: Tensor) -> tuple[Tensor, Tensor | None, None]:
        operator = getattr(torch.ops.distilldepth, f"backproject_backward{suffix}")
        need_intrinsics = ctx.needs_input_grad[1]
        grad_depth, grad_intrinsics = operator(grad_points.contiguous(), *ctx.saved_tensors, need_intrinsics)
        return grad_depth, grad_intrinsics if need_intrinsics else None, None

    return backward


@dataclass(frozen=True)
class _Operation:
    """What torch is told of an operation."""

    schema: str
    fake: Callable[..., Any]
    """What it returns, without computing it."""
    keep: Callable[..., None] | None = None
    """What autograd keeps once it has run; None if it is not differentiable."""
    backward: Callable[[str], Callable[..., Any]] | None = None
    """Its backward, from the suffix of the backend's operations."""
    has_triton: bool = True


_OPERATIONS = {
    "hybrid_norm": _Operation(
        "(Tensor prediction, Tensor target, Tensor? valid, int[] segments, int contexts, float spread_eps, "
        "bool need_gradient) -> (Tensor, Tensor, Tensor)",
        _fake_normalising,
        _keep_gradient,
        _normalising_backward,
    ),
    "crop_ssi": _Operation(
        "(Tensor prediction, Tensor targets, Tensor boxes, Tensor image_index, Tensor? valid, int[] segments, "
        "int contexts, float spread_eps, bool need_gradient) -> (Tensor, Tensor, Tensor)",
        _fake_normalising,
        _keep_gradient,
        _normalising_backward,
    ),
    "scale_gradient": _Operation(
        "(Tensor gradient, Tensor scale, Tensor grad_loss, ScalarType dtype) -> Tensor",
        _fake_scale_gradient,
        _keep_scaled,
        _scale_gradient_backward,
    ),
    "channel_kl": _Operation(
        "(Tensor student, Tensor teacher, Tensor? valid, float temperature) -> (Tensor, Tensor)",
        _fake_channel_kl,
        _keep_statistics,
        _channel_kl_backward,
    ),
    "channel_kl_backward": _Operation(
        "(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? valid, Tensor statistics, float temperature) "
        "-> Tensor",
        _fake_channel_kl_backward,
    ),
    "backproject": _Operation(
        "(Tensor depth, Tensor intrinsics, Tensor? valid) -> Tensor",
        _fake_backproject,
        _keep_inputs,
        _backproject_backward,
    ),
    "point_cloud": _Operation(
        "(Tensor depth, Tensor intrinsics, Tensor image, Tensor? valid) -> (Tensor, Tensor)",
        _fake_point_cloud,
        has_triton=False,
    ),
    "backproject_backward": _Operation(
        "(Tensor grad_points, Tensor depth, Tensor intrinsics, Tensor? valid, bool need_intrinsics) "
        "-> (Tensor, Tensor)",
        _fake_backproject_backward,
    ),
    "depth_sums": _Operation(
        "(Tensor prediction, Tensor truth, Tensor valid, Tensor bounds, int[] box, Tensor? fitted, bool in_disparity, "
        "bool fit_positive, int floor_kind, float floor, float low, float high) -> (Tensor, Tensor)",
        _fake_depth_sums,
        has_triton=False,
    ),
}


def _with_triton(name: str) -> Callable[..., Any]:
    """The Triton kernel of an operation, imported when it is first called."""

    def run(*arguments: Any) -> Any:
        module = importlib.import_module(f"distilldepth.kernels.{name.removesuffix('_backward')}")
        return getattr(module, name)(*arguments)

    return run


def _define() -> None:
    for name, operation in _OPERATIONS.items():
        for suffix in ("", "_triton") if operation.has_triton else ("",):
            _library.define(f"{name}{suffix}{operation.schema}", tags=(torch.Tag.pt2_compliant_tag,))
            operator = f"distilldepth::{name}{suffix}"
            torch.library.register_fake(operator, operation.fake, lib=_library)
            if operation.backward is not None:
                torch.library.register_autograd(
                    operator, operation.backward(suffix), setup_context=operation.keep, lib=_library
                )
            if suffix:
                _library.impl(f"{name}{suffix}", _with_triton(name), "CompositeExplicitAutograd")


_define()
