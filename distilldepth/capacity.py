"""How much memory there is: work that cannot fit is refused before it begins, with a number."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from distilldepth.errors import DistillDepthError

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_RUN_BYTES, _TRAIN_BYTES = 128, 256
"""Per pixel of the input. Measured on CPUs: the bundled models take 144 to 535."""


def total_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes of memory of a device: of a GPU its own, else of the machine or of the container it is in."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return 1 << 62  # Unknown on this system, so nothing is refused.
    for name in _CGROUP_LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far, without waiting: of a GPU by this process, else by the process itself.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not `ru_maxrss`, which begins with what the process that started this one had.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_memory(
    needed: int,
    what: str,
    remedy: str,
    *,
    device: torch.device | str = "cpu",
    error: type[Exception] = DistillDepthError,
) -> None:
    """Raise unless a device has room for `needed` bytes, however little else is in it.

    Args:
        needed: bytes that the work takes at the very least.
        what: what would take them, the start of the message.
        remedy: what to do, its end.
        device: where.
        error: type to raise.
    """
    there = total_memory(device)
    if needed > there:
        raise error(
            f"{what} would take at least {_gigabytes(needed)} of memory, and this machine has {_gigabytes(there)}"
            f"{f' on {device}' if torch.device(device).type == 'cuda' else ''}; {remedy}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device, or of the host, ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def network_bytes(pixels: int, *, training: bool = False) -> int:
    """Return the bytes that any network here takes at the very least for its inputs of so many pixels, all together.

    No family does with less; most take several times as much.
    """
    return pixels * (_TRAIN_BYTES if training else _RUN_BYTES)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:,.0f} GiB" if count >= 10 * 2**30 else f"{count / 2**30:.1f} GiB"
