"""Runs cases and gives rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distilldepth.bench.choices import BACKENDS, DEFAULT_SHAPE, DIRECTIONS, KERNELS, SCALING_SHAPE, WITH_CONTEXTS
from distilldepth.bench.limits import limits
from distilldepth.bench.memory import MemoryServer, cuda_peak_bytes
from distilldepth.bench.result import LeftOut, Result, Row
from distilldepth.bench.timing import Clock, Timing, quantile, time_in_turns
from distilldepth.bench.workloads import DTYPES, FORMULAS, Case, make_case
from distilldepth.capacity import check_memory
from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, first_line
from distilldepth.machine import load_average, machine
from distilldepth.ops.backend import available_backends
from distilldepth.words import BACKENDS as IMPLEMENTATIONS
from distilldepth.words import CONTEXTS

OnRow = Callable[[Row], None]
OnResult = Callable[[Result], None]


@dataclass(frozen=True)
class Request:
    """What is timed, and how."""

    kernels: Sequence[str] = KERNELS
    shape: tuple[int, int, int] | None = None
    """`(B, H, W)`; None = `DEFAULT_SHAPE`. For `run_scaling` the largest; None = `SCALING_SHAPE`."""
    dtype: str = "float32"
    """Key of `DTYPES`."""
    contexts: Sequence[str] = ("range",)
    """Of hybrid-norm and crop-ssi."""
    backends: Sequence[str] | None = None
    """Of `BACKENDS`; None = all but `compile`, which can take minutes to compile. For `run_scaling` what the operations
    themselves can run: native, triton, reference."""
    device: str | torch.device = "auto"
    """Where; `auto` prefers a GPU."""
    repeats: int | None = None
    """Timed runs per row; None = at least 5 and half a second, 3 where one takes more than 2 seconds."""
    cold: bool = False
    """Overwrite the level-2 cache of a GPU before every timed run."""
    command: str = ""
    """Written into the metadata."""


def run_benchmark(request: Request, *, on_row: OnRow | None = None, on_result: OnResult | None = None) -> Result:
    """Time kernels and return `{metadata, results}`, ready for JSON.

    The backends of a case take turns; every call runs twice before it counts. On a GPU the time is that between two
    events, with the host far enough ahead.

    Args:
        request: what is timed.
        on_row: called with every row as soon as it is measured.
        on_result: called after every row with the result so far, so that a run that is cut off keeps its rows.

    Returns:
        `metadata`: the machine, its limits (`copy_bytes_per_s`, `cached_copy_bytes_per_s`, `peak_flops_per_s`), how it
        was measured, when it `finished` (None as long as rows are to come), and `not_run`: what was left out and why.
        `results`: one row per op, contexts, backend and direction: `op, backend, direction, dtype, shape, contexts,
        note, median_ms, p20_ms, p80_ms, repeats, first_ms` (with loading and compiling), `peak_bytes` (None where it
        cannot be measured), `map_bytes` (of one whole input map), `bytes_min` and `operations_min` (see `FORMULAS`),
        `bandwidth_fraction` (of the copy bandwidth) and `max_error`: the largest difference from the float64 reference
        on the same inputs, relative to the largest entry there, of the value (forward) or of the gradient
        (forward+backward). In 16-bit types several pixels tie for a median, and formulations that choose another of
        them differ in the gradient.

    Raises:
        ValueError: unknown kernel, contexts, backend or dtype, no repeats, `cold` without a GPU, or nothing to run.
    """
    shape = request.shape or DEFAULT_SHAPE
    run = _Run(request, shape, on_row, on_result)
    with ExitStack() as stack:
        server = stack.enter_context(MemoryServer()) if run.device.type == "cpu" else None
        for kernel, contexts in run.variants():
            with _memory_for(kernel, shape):
                case = make_case(kernel, shape, run.dtype, contexts=contexts, device=run.device)
                names = run.runnable(case, request.backends, run.not_run)
                truth = case.call("reference", "forward+backward", torch.float64)() if names else ()
            for direction in DIRECTIONS if names else ():
                calls = {name: case.call(name, direction) for name in names}
                for name, timing in time_in_turns(calls, run.clock, request.repeats).items():
                    error = math.nan if timing.error else _max_error(timing.result[-1], truth[direction != "forward"])
                    if not run.is_good(case, name, timing, error):
                        names.remove(name)
                        continue
                    timing.result = peak = None
                    if server is not None:
                        peak = server.peak_bytes(kernel, shape, request.dtype, contexts, name, direction)
                    elif run.device.type == "cuda":
                        peak = cuda_peak_bytes(calls[name], run.device)
                    run.add(case, name, direction, shape, timing, peak_bytes=peak, max_error=error)
    return run.finish()


def run_scaling(request: Request, *, on_row: OnRow | None = None, on_result: OnResult | None = None) -> Result:
    """Time forward+backward at growing sizes and return `{metadata, results}`; `linear_cost` judges the rows.

    Pixels: seven shapes from `(H/8, W/8)` to `(H, W)`, twice the pixels each, for one image and for B. Batch: 1 to 8 B
    images of `(H/4, W/4)`. Rows are those of `run_benchmark` without error and memory; see there for arguments.

    Raises:
        ValueError: as `run_benchmark`.
    """
    largest = request.shape or SCALING_SHAPE
    run = _Run(request, largest, on_row, on_result)
    shapes = scaling_shapes(largest)
    for kernel, contexts in run.variants():
        for shape in shapes:
            with _memory_for(kernel, shape):
                case = make_case(kernel, shape, run.dtype, contexts=contexts, device=run.device)
            names = run.runnable(case, request.backends or IMPLEMENTATIONS, run.not_run if shape == shapes[0] else [])
            calls = {name: case.call(name, "forward+backward") for name in names}
            for name, timing in time_in_turns(calls, run.clock, request.repeats).items():
                if run.is_good(case, name, timing, 0.0):
                    timing.result = None
                    run.add(case, name, "forward+backward", shape, timing, peak_bytes=None, max_error=None)
    return run.finish()


def scaling_shapes(largest: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The shapes of `run_scaling`, each once.

    >>> scaling_shapes((1, 1120, 1120))[:3]
    [(1, 140, 140), (1, 198, 198), (1, 280, 280)]
    """
    batch, height, width = largest
    shrunk = [(max(round(height / 2 ** (k / 2)), 1), max(round(width / 2 ** (k / 2)), 1)) for k in range(6, -1, -1)]
    shapes = [(count, *size) for count in (1, batch) for size in shrunk]
    quarter = max(round(height / 4), 1), max(round(width / 4), 1)
    shapes += [(2**k, *quarter) for k in range(int(math.log2(8 * batch)) + 1)]
    return list(dict.fromkeys(shapes))


def _check(request: Request) -> torch.device:
    """Where it runs; raises UsageError for what cannot be run."""

    def known(what: str, values: Iterable[str], choices: Sequence[str]) -> None:
        for value in values:
            if value not in choices:
                raise UsageError(f"run_benchmark: {what} must be known, got {value!r}{did_you_mean(value, choices)}")

    known("kernel", request.kernels, KERNELS)
    known("dtype", [request.dtype], tuple(DTYPES))
    known("contexts", request.contexts, CONTEXTS)
    known("backend", request.backends or (), BACKENDS)
    if request.repeats is not None and request.repeats < 1:
        raise UsageError(f"run_benchmark: repeats must be at least 1, got {request.repeats}")
    place = resolve_device(request.device)
    if request.cold and place.type != "cuda":
        raise UsageError(f"run_benchmark: cold must be False without a GPU, got device {place}; leave it out")
    return place


def _check_shape(shape: tuple[int, int, int], place: torch.device) -> None:
    """Raise UsageError for maps beyond the memory: the truth alone is input, target, result and gradient in float64."""
    check_memory(
        math.prod(shape) * 4 * 8,
        f"bench: maps of {'x'.join(map(str, shape))}",
        "use a smaller --shape",
        device=place,
        error=UsageError,
    )


@contextmanager
def _memory_for(kernel: str, shape: tuple[int, int, int]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # What torch raises on a CPU is a plain RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate" not in str(error):
            raise
        size = "x".join(map(str, shape))
        raise DistillDepthError(f"bench: not enough memory for {kernel} at {size}; try a smaller --shape") from error


class _Run:
    """One run: where and how, and the rows so far."""

    def __init__(
        self, request: Request, largest: tuple[int, int, int], on_row: OnRow | None, on_result: OnResult | None
    ) -> None:
        self.request = request
        self.device = _check(request)
        self.dtype = DTYPES[request.dtype]
        self.not_run: list[LeftOut] = []
        self.metadata: dict[str, Any] = {
            **machine(self.device),
            **limits(self.device),
            "command": request.command,
            "cold_cache": request.cold,
            "formulas": FORMULAS,
            "started": _now(),
            "finished": None,
            "load_average": load_average(),
            "not_run": self.not_run,
        }
        _check_shape(largest, self.device)
        self.clock = Clock(self.device, cold=request.cold)
        self.results: list[Row] = []
        self._on_row, self._on_result = on_row, on_result

    def variants(self) -> list[tuple[str, str]]:
        """Kernels and contexts."""
        every = self.request.contexts
        return [
            (kernel, contexts)
            for kernel in self.request.kernels
            for contexts in (every if kernel in WITH_CONTEXTS else every[:1])
        ]

    def runnable(self, case: Case, asked: Sequence[str] | None, not_run: list[LeftOut]) -> list[str]:
        """The backends of a case that can run here; what was left out is added to `not_run`."""
        available = available_backends(case.op, self.device.type, self.dtype)
        names = []
        for name in case.functions:
            if asked is None and name == "compile":
                _leave_out(not_run, case, name, "not asked for; --backend compile", failed=False)
            elif asked is not None and name not in asked:
                continue
            elif name in IMPLEMENTATIONS and name not in available:
                _leave_out(not_run, case, name, _why_absent(name, self.device), failed=False)
            else:
                names.append(name)
        return names

    def is_good(self, case: Case, name: str, timing: Timing, max_error: float) -> bool:
        """Whether there is a row to report. A kernel that breaks is a failure, a baseline that does is left out."""
        if timing.error is not None:
            why = f"{type(timing.error).__name__}: {first_line(timing.error)}"[:300]
        elif not math.isfinite(max_error):
            why = "the result is not finite"
        else:
            return True
        _leave_out(self.not_run, case, name, why, failed=name in IMPLEMENTATIONS)
        return False

    def add(
        self,
        case: Case,
        backend: str,
        direction: str,
        shape: tuple[int, int, int],
        timing: Timing,
        *,
        peak_bytes: int | None,
        max_error: float | None,
    ) -> None:
        """Make a row of what was timed, and tell who wants to know."""
        median = quantile(timing.seconds, 0.5)
        row: Row = {
            "op": case.op,
            "backend": backend,
            "direction": direction,
            "dtype": self.request.dtype,
            "shape": list(shape),
            "contexts": case.contexts,
            "note": case.note,
            "median_ms": median * 1e3,
            "p20_ms": quantile(timing.seconds, 0.2) * 1e3,
            "p80_ms": quantile(timing.seconds, 0.8) * 1e3,
            "repeats": len(timing.seconds),
            "first_ms": timing.first_seconds * 1e3,
            "map_bytes": case.map_bytes,
            "bytes_min": case.bytes_min[direction],
            "operations_min": case.operations_min[direction],
            "bandwidth_fraction": case.bytes_min[direction] / median / self.metadata["copy_bytes_per_s"],
            "peak_bytes": peak_bytes,
            "max_error": max_error,
        }
        self.results.append(row)
        # In this order: whoever is told of a row may count on it.
        if self._on_result is not None:
            self._on_result(self._result())
        if self._on_row is not None:
            self._on_row(row)

    def finish(self) -> Result:
        """The result of a run that has come to its end."""
        if not self.results:
            reasons = dict.fromkeys(f"{entry['backend']}: {entry['why']}" for entry in self.not_run)
            if not reasons:
                raise UsageError("bench: nothing could be run; no backend of these kernels was named")
            raise DistillDepthError(f"bench: nothing could be run; {'; '.join(reasons)}")
        self.metadata["finished"] = _now()
        return self._result()

    def _result(self) -> Result:
        return {"metadata": self.metadata, "results": self.results}


def _why_absent(backend: str, device: torch.device) -> str:
    if backend == "native":
        from distilldepth import native

        return native.load(device.type).reason if device.type in ("cpu", "cuda") else f"no library for {device.type}"
    return f"not for {device.type} tensors" if device.type != "cuda" else "triton is not installed"


def _leave_out(not_run: list[LeftOut], case: Case, backend: str, why: str, *, failed: bool) -> None:
    not_run.append({"op": case.op, "contexts": case.contexts, "backend": backend, "why": why, "failed": failed})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _max_error(got: Tensor, truth: Tensor) -> float:
    truth = truth.double()
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))
