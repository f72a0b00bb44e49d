"""What this machine is, for the metadata of measurements, and what it is fast at: what precision `auto` means."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from distilldepth import __version__
from distilldepth.errors import UsageError
from distilldepth.words import PRECISIONS

_CLEARLY = 1.2
"""Gain from which bfloat16 is worth its rounding. CPUs with instructions for it reach 1.8 to 8, others 0.01 to 0.5."""
_ATTEMPTS = 6
_HOPELESS = 4.0
"""A type that takes so many times as long is not measured again."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`, see malloc.h."""


def resolve_precision(precision: str, device: torch.device, *, what: str = "the model") -> str:
    """Return `float32`, `bfloat16` or `float16`: what a word of `--precision` means on a device of this machine.

    `auto` is bfloat16 where that is faster than float32 (measured once per process on CPUs, asked of GPUs), else
    float32. A precision that is named is kept; one that is slow here warns with the factor.

    Args:
        precision: `auto`, `float32`, `bfloat16` or `float16`.
        device: where it computes.
        what: who computes, for the warning.

    Raises:
        UsageError: unknown precision, or float16 on the CPU, which has no fast path for it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float16" and device.type == "cpu":
        raise UsageError("precision must be float32, bfloat16 or auto on the CPU, got 'float16'")
    if precision == "auto":
        return "bfloat16" if bfloat16_gain(device.type) >= _CLEARLY else "float32"
    if precision == "bfloat16" and (gain := bfloat16_gain(device.type)) < 1:
        warnings.warn(
            f"{what}: bfloat16 is {1 / gain:.0f} times slower than float32 on this machine, which has no instructions "
            "for it; precision auto or float32 avoids that",
            UserWarning,
            stacklevel=2,
        )
    return precision


@functools.cache
def bfloat16_gain(kind: str) -> float:
    """Return how many times faster than float32 bfloat16 is on a kind of device, about.

    On CPUs a convolution and a matrix product are timed, which takes a few hundredths of a second: flags of the
    processor do not say what torch and oneDNN make of them, nor what was switched off by their variables.
    """
    if kind == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.5
    if kind != "cpu":
        return 1.0
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 64, 32, 32, generator=generator)
    kernel = torch.randn(64, 64, 3, 3, generator=generator)
    matrix = torch.randn(384, 384, generator=generator)
    inputs = {
        dtype: [value.to(dtype) for value in (image, kernel, matrix)] for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(inputs, float("inf"))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        # In turn and the best of several, so that another program's load meets both.
        for attempt in range(_ATTEMPTS):
            for dtype, (image, kernel, matrix) in inputs.items():
                began = time.perf_counter()
                torch.nn.functional.conv2d(image, kernel, padding=1)
                matrix @ matrix
                if attempt:  # The first one prepares.
                    best[dtype] = min(best[dtype], time.perf_counter() - began)
            if best[torch.bfloat16] > _HOPELESS * best[torch.float32]:
                break
    return best[torch.float32] / max(best[torch.bfloat16], 1e-9)


def keep_freed_memory() -> None:
    """Let the C library keep what tensors on the CPU free, for the next ones, instead of giving it back to the system.

    Otherwise every activation above 32 MB, and what lies on top of the heap after each step, is mapped and cleared
    anew, page by page. The process stays as large as it was at its peak. Only glibc has such a switch; elsewhere, and
    where the environment says what is to be done, nothing changes.
    """
    if any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # Who lacks it means other things by the numbers.
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@functools.cache
def multiplies_slowly() -> bool:
    """Whether torch multiplies float32 matrices here at half the speed at which oneDNN in torch does.

    Torch's products on x86 are MKL's, which leaves the 512-bit instructions of AMD's processors unused.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available() and "AMD" in processor_name()


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
    root = Path(__file__).resolve().parents[1]
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
