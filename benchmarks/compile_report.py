"""What the compilers say of every GPU kernel: registers, shared memory, spills. Needs nvcc and triton, and no GPU.

    python benchmarks/compile_report.py --json benchmarks/results/compile-report.json
    python benchmarks/compile_report.py --triton cuda:90 --json -

CUDA: read from the log of `distilldepth doctor --build cuda`, built first if need be. Triton: the operations are
called with tensors on the CPU while triton believes that it drives the target, and each launch compiles what it would
have run. Dynamic shared memory of CUDA kernels is chosen at launch and not in the report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from distilldepth import native
from distilldepth.machine import command_line, machine
from distilldepth.words import OPS

MODULES = sorted([*OPS, "scale_gradient"])
"""Those of distilldepth.kernels that are an operation; the others are parts of them."""
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")


def cuda_rows() -> list[dict[str, Any]]:
    """A row per CUDA kernel, element type and architecture."""
    log = native.build("cuda", progress=lambda line: print(line, file=sys.stderr)).path.with_suffix(".log")
    rows, names = [], []
    entry = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'\n.*\n"
        r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
        r".*?Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
    )
    for found in entry.finditer(log.read_text()):
        names.append(found["name"])
        names_of = {
            "registers": "registers",
            "static_shared_bytes": "shared",
            "stack_bytes": "stack",
            "spill_store_bytes": "stores",
            "spill_load_bytes": "loads",
        }
        numbers = {key: int(found[group] or 0) for key, group in names_of.items()}
        rows.append({"backend": "native", "arch": found["arch"], **numbers})
    if not rows:
        raise SystemExit(f"compile_report: no kernel in {log}")
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    for row, name in zip(rows, plain.splitlines(), strict=True):
        row["kernel"] = _readable(name)
    return sorted(rows, key=lambda row: (row["kernel"], len(row["arch"]), row["arch"]))


def _readable(name: str) -> str:
    """`void distilldepth::(anonymous namespace)::f<float>(float const*)` as `f<float>`."""
    name = name.replace("(anonymous namespace)::", "").replace("distilldepth::", "").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def call_every_operation(module: str, operations: Any) -> None:
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
        operations.backproject_backward(torch.zeros(2, 70, 33, 3), maps, intrinsics, valid, True)
        operations.backproject_backward(torch.zeros(2, 70, 33, 3), maps, intrinsics, valid, False)
    elif module == "scale_gradient":
        for dtype in (torch.float32, torch.bfloat16):
            operations.scale_gradient(maps, torch.ones(()), torch.ones(()), dtype)
    else:
        raise ValueError(f"compile_report: say here how the kernels of {module} are launched")


class TargetDriver:
    """As much of a triton driver as compiling asks for."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def triton_rows(target: str) -> list[dict[str, Any]]:
    """A row per Triton kernel and variant of its code, compiled for a target such as `cuda:90` or `hip:gfx942`."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    backend, _, arch = target.partition(":")
    gpu = GPUTarget(backend, int(arch), 32) if backend == "cuda" else GPUTarget(backend, arch, 64)
    driver.set_active(TargetDriver(gpu))
    run, rows, seen = JITFunction.run, [], set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        switches = {name: value for name, value in kwargs.items() if isinstance(value, bool) or name == "CONTEXTS"}
        sampled = getattr(args[0], "sampling", None) is not None
        dtype = getattr(args[0], "dtype", None)
        variant = (self.fn.__module__, self.fn.__name__, dtype, sampled, *switches.items())
        if variant in seen:
            return None
        seen.add(variant)
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        rows.append(
            {
                "backend": "triton",
                "arch": f"sm_{arch}" if backend == "cuda" else arch,
                "kernel": f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}",
                "variant": ", ".join([str(dtype).removeprefix("torch."), *(f"{k}={v}" for k, v in switches.items())]),
                "warps": compiled.metadata.num_warps,
                **(_cubin_usage(compiled.asm["cubin"]) if backend == "cuda" else _amdgcn_usage(compiled.asm["amdgcn"])),
                "shared_bytes": compiled.metadata.shared,
            }
        )
        return compiled

    JITFunction.run = compile_only
    for module in MODULES:
        call_every_operation(module, importlib.import_module(f"distilldepth.kernels.{module}"))
    return rows


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [shutil.which("cuobjdump") or str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def _amdgcn_usage(text: str) -> dict[str, int]:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return {
        "registers": number("vgpr_count"),
        "spilled_registers": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "stack_bytes": number("private_segment_fixed_size"),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Per backend and architecture: kernels, most registers, and every kernel that spills or has a stack."""
    lines = []
    for key in dict.fromkeys((row["backend"], row["arch"]) for row in rows):
        chosen = [row for row in rows if (row["backend"], row["arch"]) == key]
        signs = ("spill_store_bytes", "spilled_registers", "stack_bytes")
        names = ", ".join(sorted({row["kernel"] for row in chosen if any(row.get(sign) for sign in signs)})) or "none"
        lines.append(
            f"{key[0]:7} {key[1]:7} {len(chosen):3} kernels, at most {max(row['registers'] for row in chosen)} "
            f"registers, with a stack: {names}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="where the report goes; - is stdout")
    parser.add_argument("--triton", metavar="TARGET", help=f"only the Triton kernels for one of {', '.join(TARGETS)}")
    options = parser.parse_args()
    if options.triton:
        rows = triton_rows(options.triton)
    else:
        rows = cuda_rows()
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        for target in TARGETS:
            # A process per target: what triton drives is fixed once.
            command = [sys.executable, __file__, "--triton", target]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rows += json.loads(done.stdout)["results"]
    text = json.dumps({"metadata": {**machine(), "command": command_line()}, "results": rows}, indent=1)
    if options.json == "-":
        print(text)
    else:
        Path(options.json).write_text(text + "\n")
    print(summary(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
