"""The emulator's library in this process: which GPU it is, in which order threads run, and what was launched."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple


class Gpu(NamedTuple):
    """What the host code asks of a GPU before it decides how to launch."""

    processors: int
    shared_bytes: int
    cluster_sizes: tuple[int, ...]
    architecture: int


GPUS = {
    "sm_90": Gpu(132, 232448, (1, 2, 4, 8, 16), 90),
    "sm_80": Gpu(108, 166912, (1,), 80),
    "small": Gpu(2, 101376, (1,), 80),
    **{f"clusters-{size}": Gpu(132, 232448, (size,), 90) for size in (1, 2, 4, 8, 16)},
}
"""The first is what runs unless another is chosen; `small` has so few processors that blocks take several tiles."""

ORDERS = ("forward", "reverse", "random", "newest")
"""Which thread runs next: in turns from the first or from the last block and thread, anyone, or those that were woken
last, so that single warps and blocks run far ahead of others. The last is the fastest, since it stays in the cache."""


class Launches(NamedTuple):
    """What one instantiation of a kernel did."""

    kernel: str
    signature: str
    launches: int
    blocks: int
    threads: int
    atomics: int
    shared_bytes: int
    cluster_sizes: tuple[int, ...]


class Counts(NamedTuple):
    """What happened since the last reset. Atomics are those in global memory."""

    memsets: int
    memset_bytes: int
    switches: int
    kernels: tuple[Launches, ...]


class Emulator:
    """The functions of a library that `build` made; loading it registers its operations, if it has any."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_emulation_counts.restype = ctypes.c_char_p
        self._library.cuda_emulation_pending.restype = ctypes.c_char_p
        self._numbers = {
            name: self._library.cuda_emulation_add_gpu(
                gpu.processors, gpu.shared_bytes, sum(gpu.cluster_sizes), gpu.architecture
            )
            for name, gpu in GPUS.items()
        }
        self.use()

    def use(self, gpu: str = "sm_90", order: str = "newest", seed: int = 0) -> None:
        """Choose a GPU and an order for the launches to come; `seed` is for the random order."""
        self._library.cuda_emulation_use(self._numbers[gpu], ORDERS.index(order), ctypes.c_uint64(seed))

    def reset(self) -> None:
        self._library.cuda_emulation_reset()

    def counts(self) -> Counts:
        total, *lines = self._library.cuda_emulation_counts().decode().splitlines()
        kernels = []
        for line in lines:
            name, signature, *numbers = line.split("\t")
            *rest, sizes = map(int, numbers)
            if rest[0]:
                kernels.append(Launches(name, signature, *rest, tuple(2**k for k in range(5) if sizes >> k & 1)))
        return Counts(*map(int, total.split("\t")), tuple(kernels))

    def check(self) -> None:
        """Raise what was found after the last launch."""
        text = self._library.cuda_emulation_pending().decode()
        if text:
            raise RuntimeError(text)

    def function(self, name: str) -> ctypes._CFuncPtr:
        """A function that the library exports beside the emulator's."""
        return getattr(self._library, name)
