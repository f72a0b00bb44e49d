"""The machine's own limits: how fast it copies and multiplies."""

from __future__ import annotations

from functools import cache

import torch

from distilldepth.bench.timing import Clock, time_in_turns

MEMORY_COPY_BYTES = 2**28
"""Size of each of the two buffers of the copy that gives the memory bandwidth: together more than most caches hold."""
CACHED_COPY_BYTES = 2**22
"""Size of each of the two buffers that stay in a cache: about four maps of 512 x 512 in float32."""


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
