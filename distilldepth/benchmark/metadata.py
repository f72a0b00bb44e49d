"""What a measurement depends on: versions, device, threads, and the machine's own limits."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from distilldepth import __version__
from distilldepth.benchmark.timing import Clock, time_in_turns

MEMORY_COPY_BYTES = 2**28
"""Size of each of the two buffers of the copy that gives the memory bandwidth: together more than most caches hold."""
CACHED_COPY_BYTES = 2**22
"""Size of each of the two buffers that stay in a cache: about four maps of 512 x 512 in float32."""


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what a measurement depends on: versions, device, driver, threads."""
    device = torch.device(device)
    name = processor_name() if device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "distilldepth": __version__,
        "commit": _commit(),
        "device": f"{device.type}: {name}",
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def processor_name() -> str:
    """Return the processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def limits(device: torch.device) -> dict[str, float]:
    """Measure what the device can do at most: the best of several repeats, because this is a ceiling.

    Returns:
        `copy_bytes_per_s`: bytes read and written per second by a copy of 256 MiB; `cached_copy_bytes_per_s`: by a copy
        of 4 MiB; `peak_flops_per_s`: float32 multiplications and additions per second of a matrix product.
    """
    clock = Clock(device)
    memory, cached = (
        (torch.ones(size // 4, device=device), torch.empty(size // 4, device=device))
        for size in (MEMORY_COPY_BYTES, CACHED_COPY_BYTES)
    )
    side = 8192 if device.type == "cuda" else 1024
    factor, product = torch.rand(side, side, device=device), torch.empty(side, side, device=device)
    calls = {
        "memory": lambda: memory[1].copy_(memory[0]),
        "cached": lambda: cached[1].copy_(cached[0]),
        "product": lambda: torch.mm(factor, factor, out=product),
    }
    best = {name: min(timing.seconds) for name, timing in time_in_turns(calls, clock).items()}
    return {
        "copy_bytes_per_s": 2 * MEMORY_COPY_BYTES / best["memory"],
        "cached_copy_bytes_per_s": 2 * CACHED_COPY_BYTES / best["cached"],
        "peak_flops_per_s": 2 * side**3 / best["product"],
    }


def load_average() -> float | None:
    """Processes that wanted to run during the last minute; with more than there are cores, distrust the times."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def command_line() -> str:
    """Return the command that was typed, for the metadata."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit; None for an installed package, whose version says it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
