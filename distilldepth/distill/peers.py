"""Processes that train together: they end together, and none waits for one that is gone."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.launch import continuing
from distilldepth.distill.record.checkpoint import list_checkpoints
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.signals import stop_signals

ECHO_S = 5.0
"""In which a launcher passes a signal on that has reached its processes already."""
_AGENT_S = 25.0
"""After which a process that was asked to end gives up its step: torchrun kills after 30 seconds."""
_GRACE_S = 5.0
"""The same when it is asked again."""


class StopVote:
    """The signal that asked any process to end, which all processes learn in the same step.

    Each step begins a sum on the CPU whose result is looked at one step later: nothing waits for a device, and no
    process for another that is less than a step behind.
    """

    def __init__(self, processes: int) -> None:
        self._group = dist.new_group(backend="gloo") if processes > 1 else None
        self._pending: tuple[Tensor, dist.Work] | None = None

    def agree(self, signum: int) -> int:
        """Return the signal that any process had heard of at its last call, 0 if none had.

        Args:
            signum: what this process has heard of; of one process alone it is what comes back.

        Raises:
            RuntimeError: another process ended.
        """
        if self._group is None:
            return signum
        agreed = self.close()
        flag = torch.tensor([signum])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None, "every process is in the group"
        self._pending = flag, work
        return agreed

    def close(self) -> int:
        """Wait for the last sum, and return what it says."""
        if self._pending is None:
            return 0
        (flag, work), self._pending = self._pending, None
        work.wait()
        return int(flag)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error is what a collective fails with when another process is gone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    return isinstance(error, dist.DistError) or bool(
        re.search(r"gloo|connection (closed|reset|refused)", str(error), re.IGNORECASE)
    )


def lost_peer(config: DistillConfig, error: RuntimeError) -> DistillDepthError:
    """Return the one line about another process that ended; the first processes say how to go on."""
    count = dist.get_world_size()
    what = f"distill: another of the {count} processes ended or does not answer"
    if dist.get_rank() > 1:
        return DistillDepthError(what)
    # Without the place in the library's source, which comes first.
    reason = re.sub(r"^\[[^\]]*\]\s*", "", first_line(error, 200))
    return DistillDepthError(f"{what} ({reason}); {last_checkpoint(config)}")


def last_checkpoint(config: DistillConfig) -> str:
    """Return which checkpoint a run goes on from, and the line that does it."""
    found = list_checkpoints(Path(config.out, "checkpoints"))
    if not found:
        return "it had no checkpoint yet, so start again with --overwrite"
    return f"the last checkpoint is {found[-1]}; continue with: {continuing(config)}"


def end_in_peace() -> None:
    """Hear no further request to end: a launcher sends one to every process as soon as the first has ended."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def never_stuck(tell: Callable[[], str]) -> Iterator[None]:
    """End the process if it is asked to inside the block and cannot.

    A collective with a process that is gone may wait for ever, and Python's signal handlers with it, as they run
    between two instructions of the main thread. What the system itself writes into a pipe is read by another thread.

    Args:
        tell: the line that is printed then.
    """
    heard = stop_signals()
    if not heard:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, heard, tell), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.write(writer, b"\0")
        thread.join()
        os.close(writer)
        os.close(reader)


def _watch(reader: int, heard: list[int], tell: Callable[[], str]) -> None:
    first, since, deadline = 0, 0.0, float("inf")
    while True:
        left = None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0)
        if not select.select([reader], [], [], left)[0]:
            print(f"distilldepth: ended by {signal.Signals(first).name} while other processes did not answer; "
                  f"{tell()}", file=sys.stderr, flush=True)  # fmt: skip
            os._exit(128 + first)
        for number in os.read(reader, 64):
            now = time.monotonic()
            if number == 0:
                return
            if number in heard and not first:
                first, since = number, now
                if "TORCHELASTIC_RUN_ID" in os.environ:
                    deadline = now + _AGENT_S
            elif number in heard and now - since >= ECHO_S:
                deadline = min(deadline, now + _GRACE_S)
