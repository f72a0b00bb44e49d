"""SIGTERM and SIGHUP as exceptions, so that what a command has begun is put in order before it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; `signum` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells say it."""
        return 128 + self.signum


def raise_on_signals() -> None:
    """Raise `Interrupted` on Ctrl-C, SIGTERM and SIGHUP; one that is ignored, as by `nohup`, stays ignored."""
    for number in stop_signals():
        signal.signal(number, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def stop_signals() -> list[int]:
    """Return the signals to listen to: none outside the main thread, where Python does not allow it."""
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


class StopRequest:
    """Whether the process was asked to end, for work that ends at a point of its own choosing.

    Args:
        echo_s: seconds in which a second signal counts as the first one heard again: a launcher passes on to its
            processes what a terminal or a scheduler has sent them already.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.signum = 0
        """The signal, 0 as long as none came."""
        self._echo_s, self._since = echo_s, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Note the first signal inside the block instead of raising; a second one raises at once.

        A signal that is ignored by the end of the block stays ignored.
        """
        earlier = {number: signal.signal(number, self._note) for number in stop_signals()}
        try:
            yield self
        finally:
            for number, handler in earlier.items():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._since = signum, now
        elif now - self._since >= self._echo_s:
            raise Interrupted(signum)
