"""The project's operations on CPU tensors, run by the emulated CUDA kernels."""

from __future__ import annotations

import functools
import os
import shlex

from distilldepth import native
from distilldepth.native import loading

from .build import build, sources
from .library import Emulator

FLAGS = "CUDA_EMULATION_FLAGS"
"""Names the environment variable whose words are added to the compiler's flags."""


@functools.cache
def load_operations(op: str = "") -> Emulator:
    """Compile the kernels, of one operation if it is named, and let them stand for the native CPU library here."""
    import torch

    from distilldepth.ops import library  # noqa: F401  # defines the operations

    if loading.statuses.get("cpu", native.Status("cpu", False)).loaded:
        raise RuntimeError("the native CPU library is loaded already; the emulation needs a process of its own")
    path = build(sources(op), flags=shlex.split(os.environ.get(FLAGS, "")))
    torch.ops.load_library(str(path))
    loading.statuses["cpu"] = native.Status("cpu", True, path)
    return Emulator(path)


def use(emulator: Emulator, words: str) -> None:
    """Choose by a text `GPU:ORDER:SEED`, of which everything may be missing."""
    gpu, _, rest = words.partition(":")
    order, _, seed = rest.partition(":")
    emulator.use(gpu or "sm_90", order or "newest", int(seed or 0))
