"""Every Triton kernel compiles for every GPU that is promised, on a machine that has none of them."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
KERNELS = REPOSITORY / "distilldepth" / "kernels"
MODULES = sorted(path.stem for path in KERNELS.glob("*.py") if path.stem != "__init__")
WITHOUT_KERNELS = ("hybrid_norm", "maps")
"""Modules that launch nothing themselves."""


def launched_kernels(module: str) -> set[str]:
    """Names of the functions that a module launches, that is, calls as `name[grid](...)`."""
    calls = (
        node.func for node in ast.walk(ast.parse((KERNELS / f"{module}.py").read_text())) if isinstance(node, ast.Call)
    )
    return {call.value.id for call in calls if isinstance(call, ast.Subscript) and isinstance(call.value, ast.Name)}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_every_kernel_compiles(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "compile_report.py"), "--triton", target, "--json", "-"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)["results"]
    for module in MODULES:
        kernels = launched_kernels(module)
        assert bool(kernels) == (module not in WITHOUT_KERNELS), module
        assert {f"{module}.{kernel}" for kernel in kernels} <= {row["kernel"] for row in rows}
    for row in rows:
        assert 0 < row["registers"] <= 512
        assert row["shared_bytes"] <= 64 * 1024, "more than every promised GPU has without asking"
        assert row["stack_bytes"] == 0, f"{row['kernel']} ({row['variant']}) spills on {target}"


def test_the_committed_report_covers_every_architecture():
    report = json.loads((REPOSITORY / "benchmarks" / "results" / "compile-report.json").read_text())
    seen = {(row["backend"], row["arch"]) for row in report["results"]}
    assert seen == {("native", f"sm_{n}") for n in (80, 90, 100)} | {
        ("triton", name) for name in ("sm_80", "sm_90", "sm_100", "gfx942")
    }
    for row in report["results"]:
        assert row["kernel"]
        assert 0 < row["registers"] <= 255
