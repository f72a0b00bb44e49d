"""The CUDA kernels on a CPU: `csrc/*.cu` as C++, a fiber for every CUDA thread.

    python -m pytest --backend emulated tests/test_channel_kl.py     # the tests of an operation
    python -m tests.cuda_emulation                                   # every kernel, and launches per operation

All tests of channel_kl or of backproject take half a minute of processor time that way, those of hybrid_norm many
minutes; `tests/test_cuda_emulation.py` runs a choice. `--emulate sm_80`, `--emulate sm_90:random:7` or
`--emulate :reverse` choose the GPU, the order in which threads run, and its seed; `library.GPUS` and `library.ORDERS`
say which there are.

What it shows: whether kernels and their launches compute what they should, in every order in which threads may run;
barriers that some threads miss or pass elsewhere, warp operations without some of their lanes, deadlocks; reads of
shared memory before it is written (it is full of NaN) or after its block has ended; accesses beside shared memory and
beside tensors that the host code made (they lie between guard pages); too much shared memory, clusters that are too
large, too many threads. Each is an error of the launch. Stricter than CUDA: a barrier wants every thread of the block,
also those that have ended.

What it does not show. Memory is strongly ordered and there is one processor: a missing fence is not noticed, nor a race
between accesses without a barrier, a warp operation, an atomic, a fence or `__ldcg` between them. The code is the host
compiler's, not nvcc's: registers, inlining, the choice of instructions and whether nvcc takes it at all are not seen.
Fast and approximate intrinsics (`exp2f`, `__expf`) are exact, with other last bits than a GPU's. Nothing is said of
time. Inputs have no guard pages. Constructs that the headers in `include` lack do not compile.
"""

from __future__ import annotations

from .build import SANITIZED, build, obstacle, sources
from .library import GPUS, ORDERS, Counts, Emulator
from .operations import load_operations, use
from .translate import TranslationError, kernels, translate

__all__ = [
    "GPUS",
    "ORDERS",
    "SANITIZED",
    "Counts",
    "Emulator",
    "TranslationError",
    "build",
    "kernels",
    "load_operations",
    "obstacle",
    "sources",
    "translate",
    "use",
]
