"""Waiting in tests: for an event, never for a number of seconds.

That a hang is noticed at all needs a limit. It grows with what this machine takes for something that every test does,
starting Python and importing torch, so that no slow or loaded machine misses it.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable

_LEAST_S = 1200.0
_STARTS = 300
"""How many times the start of Python with torch is the limit."""


@functools.cache
def patience_s() -> float:
    """Seconds after which something hangs, measured once: 20 minutes, or more on a slow machine."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return max(_LEAST_S, _STARTS * (time.monotonic() - began))


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Return once something has happened; fail if the process that should make it happen ends, or if it hangs."""
    deadline = time.monotonic() + patience_s()
    while not happened():
        ended = process is not None and process.poll() is not None
        # Once more, for what happened between the two looks.
        assert not ended or happened(), f"the process ended with {process.returncode} before it happened"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)
