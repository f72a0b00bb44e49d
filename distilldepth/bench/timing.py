"""Fair clocks: the backends of a case take turns, so that whatever slows the machine down slows all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

LEAST_REPEATS = 5
SLOW_REPEATS = 3
MOST_REPEATS = 1000
SECONDS_PER_ROW = 0.5
SLOW_SECONDS = 2.0
"""A call that takes longer than this is repeated only `SLOW_REPEATS` times."""
FLUSH_BYTES = 2**28
"""Written between repeats when the cache is to be cold: more than the level-2 cache of any GPU."""


@dataclass
class Timing:
    """What one backend took."""

    first_seconds: float = 0.0
    """The first call, with all that is loaded or compiled for it."""
    seconds: list[float] = field(default_factory=list)
    """The counted calls."""
    result: Any = None
    """What the first call returned."""
    error: Exception | None = None
    """Why there is no result."""


class Clock:
    """Times one call: host time on a CPU, the time between two events on a GPU."""

    def __init__(self, device: torch.device, *, cold: bool = False) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if cold else None
        self._cycles_per_second = self._calibrate() if self._cuda else 0.0

    def __call__(self, call: Callable[[], Any], ahead_seconds: float = 0.0) -> float:
        """Seconds of one call.

        On a GPU the host needs `ahead_seconds` to launch the call. The device is kept busy for that long first, so that
        the events enclose its work and not its waiting for the host, as in a training step, where the queue is full. A
        call that itself waits for the device pays for that.
        """
        if self._flush is not None:
            self._flush.zero_()
        if not self._cuda:
            synchronise(self.device)
            began = time.perf_counter()
            call()
            synchronise(self.device)
            return time.perf_counter() - began
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        torch.cuda._sleep(int(min(ahead_seconds, 0.01) * self._cycles_per_second) + 1)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3

    def _calibrate(self, cycles: int = 10_000_000) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        torch.cuda.synchronize(self.device)
        return cycles / (start.elapsed_time(end) / 1e3)


def time_in_turns(calls: dict[str, Callable[[], Any]], clock: Clock, repeats: int | None = None) -> dict[str, Timing]:
    """Time several calls round by round.

    Every call runs twice before it counts: the first loads and compiles, the second says how many repeats it gets (at
    least 5 and half a second, 3 if one takes more than 2 seconds) unless `repeats` says so. Calls with fewer repeats
    than the others take their turns spread over all rounds. A call that raises is left out with its error.
    """
    timings = {name: Timing() for name in calls}
    counts: dict[str, int] = {}
    ahead: dict[str, float] = {}
    for name, call in calls.items():
        timing = timings[name]
        try:
            began = time.perf_counter()
            timing.result = call()
            synchronise(clock.device)
            timing.first_seconds = time.perf_counter() - began
            began = time.perf_counter()
            call()
            ahead[name] = 1.5 * (time.perf_counter() - began)
            synchronise(clock.device)
            counts[name] = repeats or repeats_for(time.perf_counter() - began)
        except Exception as error:
            # Its traceback would keep alive what ran out of memory.
            timing.result, timing.error = None, error.with_traceback(None)
    rounds = max(counts.values(), default=0)
    names = list(counts)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            # The order rotates, so that nobody always follows the same neighbour.
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                count = counts[name]
                if (turn + 1) * count // rounds > turn * count // rounds:
                    timings[name].seconds.append(clock(calls[name], ahead[name]))
    finally:
        gc.enable()
    return timings


def repeats_for(seconds: float) -> int:
    """How often a call of this length is timed."""
    if seconds > SLOW_SECONDS:
        return SLOW_REPEATS
    return min(max(LEAST_REPEATS, math.ceil(SECONDS_PER_ROW / max(seconds, 1e-6))), MOST_REPEATS)


def quantile(values: list[float], share: float) -> float:
    """Quantile with linear interpolation."""
    return float(torch.tensor(values, dtype=torch.float64, device="cpu").quantile(share))


def synchronise(device: torch.device) -> None:
    """Wait for a device."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
