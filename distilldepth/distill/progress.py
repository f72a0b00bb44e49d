"""Where the time goes, and the one line that says so."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from distilldepth.teachers.stored import LEFT_OUT

PHASES = ("data", "teacher", "student", "loss", "optimiser")


class Stopwatch:
    """Seconds per phase. On CUDA it records events, which cost no synchronisation until `shares` reads them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str, *, host: bool = False) -> Iterator[None]:
        """Time a block; `host=True` measures waiting on the host (for data) rather than device work."""
        if self._cuda and not host:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """Return each phase's share of the time since the last call, and start again."""
        if self._events:
            torch.cuda.synchronize()
            for phase, start, end in self._events:
                self._seconds[phase] += start.elapsed_time(end) / 1e3
        total = sum(self._seconds.values()) or 1.0
        shares = {phase: self._seconds[phase] / total for phase in PHASES}
        self._seconds.clear()
        self._events.clear()
        return shares


_SHORT = {
    "shared_context": "shared",
    "local_global": "local",
    "gradient": "gradient",
    "feature": "feature",
    "aligned_log": "log",
    "map_mse": "map",
    "map_channel_mse": "map cn+mse",
    "map_channel_kl": "map cn+kl",
    "geometric": "points",
    "feature_mse": "feature mse",
    "feature_channel_mse": "feature cn+mse",
    "feature_channel_kl": "feature cn+kl",
    "feature_spatial_kl": "feature sn+kl",
    "feature_pairwise": "pairs",
    "anchor": "anchor",
}
"""Terms in the order in which they are shown while there is room, and what they are called there."""
_SHORTEST_BAR = 8
_TOLD = 5
"""Unreadable images that are named while the run goes on."""


class ProgressLine:
    """A bar on a terminal, plain lines elsewhere, nothing in processes other than the first.

    The bar moves with every step; the terms beside it are those of the last line of the log, so that nothing waits for
    the device in between.
    """

    def __init__(self, total: int, initial: int, *, enabled: bool) -> None:
        self._total = total
        self._enabled = enabled
        self._bar: tqdm | None = None
        self._unreadable: set[str] = set()
        self._last = time.monotonic()
        self._last_step = initial
        self._next_line = 0.0
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                unit="step",
                # tqdm would otherwise guess after how many steps it is worth to draw again.
                miniters=1,
                dynamic_ncols=True,
                file=sys.stderr,
                bar_format=bar_format(total, {}, {}, _columns()),
            )

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, terms: dict[str, float], shares: dict[str, float]) -> None:
        """Show loss terms and time shares; plain lines come at most every five seconds, and at the last step."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.bar_format = bar_format(self._total, terms, shares, _columns())
            self._bar.refresh()
            return
        now = time.monotonic()
        if now < self._next_line and step < self._total:
            return
        rate = (step - self._last_step) / max(now - self._last, 1e-9)
        left = (self._total - step) / rate if rate > 0 else float("inf")
        self._last, self._last_step, self._next_line = now, step, now + 5
        line = f"step {step}/{self._total}  {rate:.2f} steps/s  {_clock(left)} left  {' '.join(_losses(terms))}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Print a message without disturbing the bar."""
        if self._enabled:
            (tqdm.write if self._bar is not None else print)(text, file=sys.stderr)

    def warn_of_unreadable(self, errors: Iterable[str]) -> None:
        """Name images and labels that could not be read, each once and the first few only."""
        for text in errors:
            if len(self._unreadable) < _TOLD and text not in self._unreadable:
                self._unreadable.add(text)
                instead = "" if text.endswith(LEFT_OUT) else "; another image takes its place"
                self.write(f"distilldepth: warning: {text}{instead}")

    def close(self) -> None:
        """Leave the line."""
        if self._bar is not None:
            self._bar.close()


def bar_format(total: int, terms: dict[str, float], shares: dict[str, float], columns: int) -> str:
    """Return tqdm's format of a bar that fits so many columns: of terms, speed and time shares as many as have room.

    >>> bar_format(600, {"anchor": 0.25, "shared_context": 1.5}, {}, 100)
    '{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}  {remaining} left  shared 1.500 anchor 0.250  {rate_fmt}'
    """
    room = columns - 1 - len("100% ") - _SHORTEST_BAR - len(f" {total}/{total}  100:00:00 left")
    shown: list[str] = []
    for index, loss in enumerate(_losses(terms)):
        room -= len(loss) + (1 if index else 2)
        if room < 0:
            break
        shown.append(loss)
    parts = ["{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}", "{remaining} left", *([" ".join(shown)] if shown else [])]
    times = " ".join(f"{name} {share:.0%}" for name, share in shares.items())
    for text, length in (("{rate_fmt}", len("99.99step/s")), (times, len(times))):
        room -= length + 2
        if text and room >= 0:
            parts.append(text)
    return "  ".join(parts)


def _losses(terms: dict[str, float]) -> list[str]:
    """`shared 0.123`, the most telling first."""
    names = [*(name for name in _SHORT if name in terms), *(name for name in terms if name not in _SHORT)]
    return [f"{_SHORT.get(name, name)} {terms[name]:{'.3f' if abs(terms[name]) < 100 else '.2e'}}" for name in names]


def _columns() -> int:
    """Width of the terminal that standard error goes to."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
