"""Runs cases and gives rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from distilldepth.bench.choices import BACKENDS, DEFAULT_SHAPE, DIRECTIONS, KERNELS, SCALING_SHAPE, WITH_CONTEXTS
from distilldepth.bench.limits import limits
from distilldepth.bench.memory import MemoryServer, cuda_peak_bytes
from distilldepth.bench.timing import Clock, Timing, quantile, time_in_turns
from distilldepth.bench.workloads import DTYPES, FORMULAS, Case, make_case
from distilldepth.capacity import check_memory
from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, first_line
from distilldepth.machine import load_average, machine
from distilldepth.ops.backend import available_backends
from distilldepth.words import BACKENDS as IMPLEMENTATIONS
from distilldepth.words import CONTEXTS

OnRow = Callable[[dict[str, Any]], None]
OnResult = Callable[[dict[str, Any]], None]


def run_benchmark(
    kernels: Sequence[str] = KERNELS,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    dtype: str = "float32",
    *,
    contexts: str | Sequence[str] = "range",
    backends: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    repeats: int | None = None,
    cold: bool = False,
    command: str = "",
    on_row: OnRow | None = None,
    on_result: OnResult | None = None,
) -> dict[str, Any]:
    """Time kernels and return `{metadata, results}`, ready for JSON.

    The backends of a case take turns; every call runs twice before it counts. On a GPU the time is that between two
    events, with the host far enough ahead.

    Args:
        kernels: of `KERNELS`.
        shape: `(B, H, W)`.
        dtype: key of `DTYPES`.
        contexts: of hybrid-norm and crop-ssi, one or several.
        backends: of `BACKENDS`; None = all but `compile`, which can take minutes to compile.
        device: where; `auto` prefers a GPU.
        repeats: timed runs per row; None = at least 5 and half a second, 3 where one takes more than 2 seconds.
        cold: overwrite the level-2 cache of a GPU before every timed run.
        command: written into the metadata.
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
    contexts = [contexts] if isinstance(contexts, str) else list(contexts)
    place = _check(kernels, dtype, contexts, backends, device, repeats, cold)
    metadata = _metadata(place, command, cold)
    _check_shape(shape, place)
    clock, results = Clock(place, cold=cold), []
    with ExitStack() as stack:
        server = stack.enter_context(MemoryServer()) if place.type == "cpu" else None
        for kernel, named in _variants(kernels, contexts):
            with _memory_for(kernel, shape):
                case = make_case(kernel, shape, DTYPES[dtype], contexts=named, device=place)
                names = _runnable(case, backends, place, DTYPES[dtype], metadata["not_run"])
                truth = case.call("reference", "forward+backward", torch.float64)() if names else ()
            for direction in DIRECTIONS if names else ():
                calls = {name: case.call(name, direction) for name in names}
                for name, timing in time_in_turns(calls, clock, repeats).items():
                    error = None if timing.error else _max_error(timing.result[-1], truth[direction != "forward"])
                    if not _is_good(case, name, timing, error, metadata["not_run"]):
                        names.remove(name)
                        continue
                    timing.result = None
                    if server is not None:
                        peak = server.peak_bytes(kernel, shape, dtype, named, name, direction)
                    elif place.type == "cuda":
                        peak = cuda_peak_bytes(calls[name], place)
                    else:
                        peak = None
                    row = _row(case, name, direction, dtype, shape, timing, metadata)
                    results.append({**row, "peak_bytes": peak, "max_error": error})
                    _tell(metadata, results, on_row, on_result)
    return _finish(metadata, results)


def run_scaling(
    kernels: Sequence[str] = KERNELS,
    largest: tuple[int, int, int] = SCALING_SHAPE,
    dtype: str = "float32",
    *,
    contexts: str | Sequence[str] = "range",
    backends: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    repeats: int | None = None,
    cold: bool = False,
    command: str = "",
    on_row: OnRow | None = None,
    on_result: OnResult | None = None,
) -> dict[str, Any]:
    """Time forward+backward at growing sizes and return `{metadata, results}`; `linear_cost` judges the rows.

    Pixels: seven shapes from `(H/8, W/8)` to `(H, W)`, twice the pixels each, for one image and for B. Batch: 1 to 8 B
    images of `(H/4, W/4)`. Rows are those of `run_benchmark` without error and memory.

    Args:
        largest: `(B, H, W)`.
        backends: None = what the operations themselves can run: native, triton, reference.
        kernels, dtype, contexts, device, repeats, cold, command, on_row, on_result: as for `run_benchmark`.

    Raises:
        ValueError: as `run_benchmark`.
    """
    contexts = [contexts] if isinstance(contexts, str) else list(contexts)
    place = _check(kernels, dtype, contexts, backends, device, repeats, cold)
    metadata = _metadata(place, command, cold)
    _check_shape(largest, place)
    clock, results = Clock(place, cold=cold), []
    for kernel, named in _variants(kernels, contexts):
        for shape in scaling_shapes(largest):
            with _memory_for(kernel, shape):
                case = make_case(kernel, shape, DTYPES[dtype], contexts=named, device=place)
            not_run = metadata["not_run"] if shape == scaling_shapes(largest)[0] else []
            names = _runnable(case, backends or IMPLEMENTATIONS, place, DTYPES[dtype], not_run)
            calls = {name: case.call(name, "forward+backward") for name in names}
            for name, timing in time_in_turns(calls, clock, repeats).items():
                if not _is_good(case, name, timing, 0.0, metadata["not_run"]):
                    continue
                timing.result = None
                row = _row(case, name, "forward+backward", dtype, shape, timing, metadata)
                results.append({**row, "peak_bytes": None, "max_error": None})
                _tell(metadata, results, on_row, on_result)
    return _finish(metadata, results)


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


def _check(
    kernels: Sequence[str],
    dtype: str,
    contexts: Sequence[str],
    backends: Sequence[str] | None,
    device: str | torch.device,
    repeats: int | None,
    cold: bool,
) -> torch.device:
    def known(what: str, values: Iterable[str], choices: Sequence[str]) -> None:
        for value in values:
            if value not in choices:
                raise UsageError(f"run_benchmark: {what} must be known, got {value!r}{did_you_mean(value, choices)}")

    known("kernel", kernels, KERNELS)
    known("dtype", [dtype], tuple(DTYPES))
    known("contexts", contexts, CONTEXTS)
    known("backend", backends or (), BACKENDS)
    if repeats is not None and repeats < 1:
        raise UsageError(f"run_benchmark: repeats must be at least 1, got {repeats}")
    place = resolve_device(device)
    if cold and place.type != "cuda":
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


def _variants(kernels: Sequence[str], contexts: Sequence[str]) -> list[tuple[str, str]]:
    return [(kernel, named) for kernel in kernels for named in (contexts if kernel in WITH_CONTEXTS else contexts[:1])]


def _runnable(
    case: Case, asked: Sequence[str] | None, device: torch.device, dtype: torch.dtype, not_run: list[dict[str, Any]]
) -> list[str]:
    """The backends of a case that can run here; what was left out is added to `not_run`."""
    available = available_backends(case.op, device.type, dtype)
    names = []
    for name in case.functions:
        if asked is None and name == "compile":
            _leave_out(not_run, case, name, "not asked for; --backend compile", failed=False)
        elif asked is not None and name not in asked:
            continue
        elif name in IMPLEMENTATIONS and name not in available:
            _leave_out(not_run, case, name, _why_absent(name, device), failed=False)
        else:
            names.append(name)
    return names


def _why_absent(backend: str, device: torch.device) -> str:
    if backend == "native":
        from distilldepth import native

        return native.load(device.type).reason if device.type in ("cpu", "cuda") else f"no library for {device.type}"
    return f"not for {device.type} tensors" if device.type != "cuda" else "triton is not installed"


def _is_good(case: Case, name: str, timing: Timing, max_error: float | None, not_run: list[dict[str, Any]]) -> bool:
    """Whether there is a row to report. A kernel that breaks is a failure, a baseline that does is left out."""
    if timing.error is not None:
        why = f"{type(timing.error).__name__}: {first_line(timing.error)}"[:300]
    elif not math.isfinite(max_error):
        why = "the result is not finite"
    else:
        return True
    _leave_out(not_run, case, name, why, failed=name in IMPLEMENTATIONS)
    return False


def _leave_out(not_run: list[dict[str, Any]], case: Case, backend: str, why: str, *, failed: bool) -> None:
    not_run.append({"op": case.op, "contexts": case.contexts, "backend": backend, "why": why, "failed": failed})


def _metadata(device: torch.device, command: str, cold: bool) -> dict[str, Any]:
    return {
        **machine(device),
        **limits(device),
        "command": command,
        "cold_cache": cold,
        "formulas": FORMULAS,
        "started": _now(),
        "finished": None,
        "load_average": load_average(),
        "not_run": [],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _tell(
    metadata: dict[str, Any], results: list[dict[str, Any]], on_row: OnRow | None, on_result: OnResult | None
) -> None:
    # In this order: whoever is told of a row may count on it.
    if on_result is not None:
        on_result({"metadata": metadata, "results": results})
    if on_row is not None:
        on_row(results[-1])


def _finish(metadata: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    if not results:
        reasons = dict.fromkeys(f"{entry['backend']}: {entry['why']}" for entry in metadata["not_run"])
        if not reasons:
            raise UsageError("bench: nothing could be run; no backend of these kernels was named")
        raise DistillDepthError(f"bench: nothing could be run; {'; '.join(reasons)}")
    metadata["finished"] = _now()
    return {"metadata": metadata, "results": results}


def _row(
    case: Case,
    backend: str,
    direction: str,
    dtype: str,
    shape: tuple[int, int, int],
    timing: Timing,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    median = quantile(timing.seconds, 0.5)
    return {
        "op": case.op,
        "backend": backend,
        "direction": direction,
        "dtype": dtype,
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
        "bandwidth_fraction": case.bytes_min[direction] / median / metadata["copy_bytes_per_s"],
    }


def _max_error(got: Tensor, truth: Tensor) -> float:
    truth = truth.double()
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))
