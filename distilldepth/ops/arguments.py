"""Checks that the operations and losses share. None of them waits for a device unless asked to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from distilldepth.errors import did_you_mean
from distilldepth.words import CONTEXTS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floats(function: str, name: str, tensor: object, dims: Sequence[int], shape: str) -> None:
    """Raise unless `tensor` is a floating tensor with one of these numbers of dimensions."""
    if not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise TypeError(f"{function}: {name} must be a tensor {shape}, got {kind}; use torch.as_tensor")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{function}: {name} must be a floating tensor, got {tensor.dtype}; convert it with .float()")
    if tensor.ndim not in dims:
        raise ValueError(f"{function}: {name} must be {shape}, got {tuple(tensor.shape)}")


def check_teacher(function: str, name: str, tensor: Tensor) -> None:
    """Raise if a gradient is wanted where none flows."""
    if tensor.requires_grad:
        raise ValueError(f"{function}: {name} must not require grad, no gradient flows to it; detach it")


def check_same(function: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless two tensors agree in shape and device."""
    if tensor.shape != like.shape:
        raise ValueError(
            f"{function}: {name} must have the shape of {like_name} {tuple(like.shape)}, got {tuple(tensor.shape)}"
        )
    check_device(function, name, tensor, like_name, like)


def check_device(function: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise unless two tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(f"{function}: {name} must be on the device of {like_name} {like.device}, got {tensor.device}")


def check_valid(function: str, valid: Tensor | None, shape: Sequence[int], like_name: str, like: Tensor) -> None:
    """Raise unless `valid` is None or a bool tensor of this shape beside `like`."""
    if valid is None:
        return
    if not isinstance(valid, Tensor):
        raise TypeError(f"{function}: valid must be a bool tensor or None, got {type(valid).__name__}")
    if valid.dtype != torch.bool:
        raise TypeError(f"{function}: valid must be bool (True = use the pixel), got {valid.dtype}; compare with > 0")
    if tuple(valid.shape) != tuple(shape):
        raise ValueError(f"{function}: valid must be {tuple(shape)} as {like_name}, got {tuple(valid.shape)}")
    check_device(function, "valid", valid, like_name, like)


def check_pair(function: str, prediction: Tensor, target: Tensor, valid: Tensor | None) -> None:
    """Raise unless these are a student's map, a teacher's map and their valid pixels."""
    check_floats(function, "prediction", prediction, (3,), "(B, H, W)")
    check_floats(function, "target", target, (3,), "(B, H, W)")
    check_same(function, "target", target, "prediction", prediction)
    check_teacher(function, "target", target)
    check_valid(function, valid, prediction.shape, "prediction", prediction)


def check_distilled(function: str, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> None:
    """Raise unless these are maps or features of a student, the same of a teacher, and their valid positions."""
    check_floats(function, "student", student, (3, 4), "(B, C, H, W) or (B, H, W)")
    check_floats(function, "teacher", teacher, (3, 4), "(B, C, H, W) or (B, H, W)")
    check_same(function, "teacher", teacher, "student", student)
    check_teacher(function, "teacher", teacher)
    check_valid(function, valid, (len(student), *student.shape[-2:]), "student", student)


def check_temperature(function: str, temperature: float) -> None:
    """Raise unless this is what a softmax can divide by."""
    if not isinstance(temperature, (int, float)):
        raise TypeError(f"{function}: temperature must be a number, got {type(temperature).__name__}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{function}: temperature must be positive, got {temperature}")


def check_maps(function: str, prediction: Tensor, valid: Tensor | None = None, **others: Tensor) -> None:
    """Raise unless these are a map or a batch of maps, others of the same shape, and their valid pixels."""
    check_floats(function, "prediction", prediction, (2, 3), "(B, H, W) or (H, W)")
    for name, values in others.items():
        check_floats(function, name, values, (2, 3), "(B, H, W) or (H, W)")
        check_same(function, name, values, "prediction", prediction)
    check_valid(function, valid, prediction.shape, "prediction", prediction)


def check_normaliser(function: str, segments: Sequence[int], contexts: str, spread_eps: float) -> tuple[int, ...]:
    """Raise unless these describe a hybrid normalisation; return the segments as a tuple."""
    if isinstance(segments, int) or not all(isinstance(s, int) and not isinstance(s, bool) for s in segments):
        raise TypeError(f"{function}: segments must be a sequence of ints, got {segments!r}; for example (1, 2, 4)")
    if not segments or min(segments) < 1:
        raise ValueError(f"{function}: segments must be one or more positive ints, got {tuple(segments)}")
    if contexts not in CONTEXTS:
        raise ValueError(
            f"{function}: contexts must be one of {', '.join(CONTEXTS)}, got {contexts!r}"
            f"{did_you_mean(str(contexts), CONTEXTS)}"
        )
    if not (math.isfinite(spread_eps) and spread_eps > 0):
        raise ValueError(f"{function}: spread_eps must be positive, got {spread_eps}; constant contexts divide by it")
    return tuple(segments)


def values_are_checked(tensor: Tensor) -> bool:
    """Whether contents may be looked at: on a CPU, elsewhere with DISTILLDEPTH_CHECK_VALUES=1; never while tracing."""
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" or os.environ.get("DISTILLDEPTH_CHECK_VALUES", "") == "1"
