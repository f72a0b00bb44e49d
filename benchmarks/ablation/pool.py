"""Runs side by side, each in a process with one thread; one that fails stops no other, a signal stops all cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ablation.jobs import LOG, TRAIN, Job, prepare
from distilldepth.errors import one_line
from distilldepth.signals import Interrupted

_REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = ("-m", "benchmarks.ablation.worker")
"""What a run is begun with, behind the name of the interpreter."""
_POLL_S = 0.1
_PATIENCE_S = 120.0
"""For a run that was asked to end: a step, and a checkpoint on a slow disk."""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    began: float


@dataclass
class Clock:
    """How long the runs that are left will take, from those that are done."""

    expected_s: float
    """Of a run of which nothing is known yet; 0 for no idea."""
    width: int
    """Runs side by side."""
    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds of the runs that are done, by cell."""

    def left(self, waiting: Sequence[Job], running: Sequence[tuple[Job, float]]) -> str:
        """Return the time left in words, empty if nothing is known.

        Args:
            waiting: not begun yet.
            running: with the seconds since each began.
        """
        each = [self._expected(job) for job in waiting]
        each += [max(self._expected(job) - since, 0) for job, since in running]
        if not each or not all(self._expected(job) for job in (*waiting, *(job for job, _ in running))):
            return ""
        return f"about {in_words(max(sum(each) / self.width, *each))} left"

    def _expected(self, job: Job) -> float:
        own = self.taken.get(job.cell)
        if own:
            return sum(own) / len(own)
        if job.seed is None:
            return 30.0
        trained = [
            seconds for cell, times in self.taken.items() if not cell.startswith("baseline:") for seconds in times
        ]
        return sum(trained) / len(trained) if trained else self.expected_s


def in_words(seconds: float) -> str:
    """Return a time for people.

    >>> in_words(59), in_words(600), in_words(7400)
    ('1 min', '10 min', '2 h 3 min')
    """
    minutes = max(round(seconds / 60), 1)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def run_jobs(
    jobs: Sequence[Job],
    width: int,
    expected_s: float,
    tell: Callable[[str], None],
    worker: Sequence[str] = WORKER,
) -> dict[Path, str]:
    """Bring every run to the end that is not there yet; cells that are told the same share theirs.

    Args:
        jobs: in the order in which they are begun.
        width: how many run side by side.
        expected_s: seconds of a run, for the time that is left; 0 for no idea.
        tell: is told of every run that ends.
        worker: what each is begun with.

    Returns:
        What went wrong, by the folder of the run; empty if all are scored.

    Raises:
        Interrupted: this process was asked to end; those that it started have ended.
    """
    jobs = list({job.folder: job for job in reversed(jobs)}.values())[::-1]
    waiting = [job for job in jobs if not job.scores.is_file()]
    # One that is known by its scores alone is trained again where another wants to be taught by it.
    wanted = {job.after for job in waiting}
    waiting = [
        job
        for job in jobs
        if job in waiting or (job.folder in wanted and not (job.folder / TRAIN / "student").is_dir())
    ]
    done = [job for job in jobs if job not in waiting]
    if done:
        tell(f"{len(done)} of {len(jobs)} runs are there already")
    clock, failed, running = Clock(expected_s, width), dict[Path, str](), list[_Running]()
    ended = len(done)
    try:
        while waiting or running:
            while waiting and len(running) < width:
                ready = next((job for job in waiting if _is_ready(job, waiting, running)), None)
                if ready is None:
                    break
                waiting.remove(ready)
                running.append(_start(ready, worker))
            time.sleep(_POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                ended += 1
                seconds = time.monotonic() - one.began
                error = _error(one)
                if error:
                    failed[one.job.folder] = error
                    outcome = f"FAILED: {error}"
                else:
                    clock.taken[one.job.cell].append(seconds)
                    outcome = f"{seconds:.0f} s"
                now = time.monotonic()
                left = clock.left(waiting, [(other.job, now - other.began) for other in running])
                tell("; ".join(filter(None, [f"[{ended}/{len(jobs)}] {one.job.name}: {outcome}", left])))
    finally:
        if running:
            _stop(running, tell)
    return failed


def _is_ready(job: Job, waiting: Sequence[Job], running: Sequence[_Running]) -> bool:
    """Whether the run that teaches it, if there is one, is over; where that failed, its own will say so."""
    return all(other.folder != job.after for other in (*waiting, *(one.job for one in running)))


def _start(job: Job, worker: Sequence[str]) -> _Running:
    prepare(job)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    with (job.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *worker, *job.command],
            stdin=subprocess.PIPE,  # Its end tells the run that this process is gone.
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once.
        )
    return _Running(job, process, time.monotonic())


def _error(one: _Running) -> str:
    """What a process that ended says of its failure; empty if it did what it should."""
    if one.process.stdin is not None:
        one.process.stdin.close()
    code = one.process.returncode
    if code == 0 and one.job.scores.is_file():
        return ""
    log = one.job.folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return one_line(said.removeprefix("error: ") if code == 1 and said else how, 400) + f" (see {log})"


def _stop(running: list[_Running], tell: Callable[[str], None]) -> None:
    """Ask the processes to end, and wait until they have; a second signal, or no end in sight, kills them."""
    for one in running:
        one.process.terminate()
    tell(f"stopping {len(running)} run{'s' * (len(running) > 1)}, which save what they have")
    try:
        deadline = time.monotonic() + _PATIENCE_S
        for one in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(deadline - time.monotonic(), 0))
    except Interrupted:
        pass
    finally:
        for one in running:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
