"""Every Triton kernel compiles for every GPU that is promised, on a machine that has none of them.

The operations are called with tensors on the CPU while triton believes that it drives the target, and each launch
compiles what it would have run. That happens in a process of its own: this one may have been told to interpret kernels.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).resolve().parents[1] / "distilldepth" / "kernels"
MODULES = sorted(path.stem for path in KERNELS.glob("*.py") if path.stem != "__init__")
TARGETS = (("cuda", 80), ("cuda", 90), ("cuda", 100), ("hip", "gfx942"))


def launched_kernels(module: str) -> set[str]:
    """Names of the functions that a module launches, that is, calls as `name[grid](...)`."""
    calls = (
        node.func for node in ast.walk(ast.parse((KERNELS / f"{module}.py").read_text())) if isinstance(node, ast.Call)
    )
    return {call.value.id for call in calls if isinstance(call, ast.Subscript) and isinstance(call.value, ast.Name)}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("backend", "arch"), TARGETS)
def test_every_kernel_compiles(backend, arch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, backend, str(arch)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = json.loads(done.stdout.splitlines()[-1])
    for module in MODULES:
        kernels = launched_kernels(module)
        assert kernels, f"{module} launches nothing"
        assert kernels <= set(compiled[f"distilldepth.kernels.{module}"])


def call_every_operation(module: str, operations) -> None:
    """Call the functions of one module of distilldepth.kernels so that all its kernels are launched."""
    maps = torch.zeros(2, 70, 33)
    valid = torch.zeros(maps.shape, dtype=torch.bool)
    intrinsics = torch.zeros(2, 3, 3)
    if module == "hybrid_norm":
        operations.hybrid_norm(maps, maps, valid, [1, 3], 1, 1e-6, True)
        operations.hybrid_norm(maps[:1, :1, :1].bfloat16(), maps[:1, :1, :1].bfloat16(), None, [1], 2, 1e-6, True)
    elif module == "crop_ssi":
        boxes, index = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
        operations.crop_ssi(maps.half(), maps.half(), boxes, index, valid, [1], 0, 1e-6, True)
    elif module == "channel_kl":
        for some, kept in ((maps, valid[:, 0]), (maps.bfloat16(), None), (maps.double(), valid[:, 0])):
            _, statistics = operations.channel_kl(some, some, kept, 1.0)
            grad_loss = torch.ones((), dtype=torch.promote_types(some.dtype, torch.float32))
            operations.channel_kl_backward(grad_loss, some, some, kept, statistics, 1.0)
    elif module == "backproject":
        operations.backproject(maps, intrinsics, valid)
        operations.backproject(maps.double(), intrinsics.double(), None)
        operations.backproject_backward(torch.zeros(2, 70, 33, 3), maps, intrinsics, valid)
    else:
        raise ValueError(f"test_kernels_compile: say here how the kernels of {module} are launched")


class TargetDriver:
    """As much of a triton driver as compiling asks for."""

    def __init__(self, target) -> None:
        self._target = target

    def get_current_target(self):
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_every_kernel(backend: str, arch: int | str) -> dict[str, list[str]]:
    """Compile what the operations launch, each kernel once per variant of its code; return the names by module."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(TargetDriver(GPUTarget(backend, arch, 64 if backend == "hip" else 32)))
    run, compiled = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **kwargs):
        variants = compiled.setdefault(self.fn.__module__, {}).setdefault(self.fn.__name__, set())
        switches = {name: value for name, value in kwargs.items() if isinstance(value, bool) or name == "CONTEXTS"}
        sampled = getattr(args[0], "sampling", None) is not None
        variant = (getattr(args[0], "dtype", None), sampled, *switches.items())
        if variant in variants:
            return None
        variants.add(variant)
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only
    for module in MODULES:
        call_every_operation(module, importlib.import_module(f"distilldepth.kernels.{module}"))
    return {module: sorted(names) for module, names in compiled.items()}


if __name__ == "__main__":
    print(json.dumps(compile_every_kernel(sys.argv[1], int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])))
