"""Extra memory at the peak of one call.

On a GPU torch's allocator knows. On a CPU it does not: kernels allocate behind its back (`std::vector`, thread stacks).
What counts there is the high-water mark of the process's resident memory, taken in a process of its own, where nothing
else comes and goes. One server imports torch without running anything and forks a child per measurement, which costs a
fraction of a second instead of the seconds of a new interpreter.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from distilldepth.bench.workloads import DTYPES, Case, make_case
from distilldepth.errors import first_line


def cuda_peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that torch's allocator handed out at the peak of a call, beyond what it held before."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


class MemoryServer:
    """Measures rows on the CPU in forked processes; `peak_bytes` is None where the system cannot tell."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> MemoryServer:
        if _can_reset_peak():
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            # Without this glibc keeps large blocks for reuse, and what was freed would still count as used.
            environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from distilldepth.bench.memory import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            for pipe in self._pipes(self._process):
                pipe.close()
            self._process.wait()

    @staticmethod
    def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
        assert process.stdin is not None and process.stdout is not None, "both were asked for"  # noqa: PT018
        return process.stdin, process.stdout

    def peak_bytes(
        self, kernel: str, shape: tuple[int, int, int], dtype: str, contexts: str, backend: str, direction: str
    ) -> int | None:
        """Measure one row; None if it cannot be measured here or the process ran out of memory."""
        if self._process is None or self._process.poll() is not None:
            return None
        request = {
            "kernel": kernel,
            "shape": shape,
            "dtype": dtype,
            "contexts": contexts,
            "backend": backend,
            "direction": direction,
            "threads": torch.get_num_threads(),
        }
        requests, answers = self._pipes(self._process)
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            return None
        return json.loads(answer) if answer else None


def serve() -> None:
    """Answer requests on standard input until it ends: bytes, or null with the reason on standard error."""
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            code = 1
            try:
                os.write(write, str(_measure(json.loads(line))).encode())
                code = 0
            except Exception as error:
                why = f"{type(error).__name__}: {first_line(error, 300)}"
                print(f"memory not measured: {why}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        print(text or "null", flush=True)


def _measure(request: dict[str, Any]) -> int:
    torch.set_num_threads(request["threads"])
    shape, dtype = tuple(request["shape"]), DTYPES[request["dtype"]]
    backend, direction = request["backend"], request["direction"]

    def case(of: tuple[int, int, int]) -> Case:
        return make_case(request["kernel"], of, dtype, contexts=request["contexts"])

    # Libraries and threads come with the first call and stay: they are not what a call costs. It is a small one, so
    # that workspace that an implementation keeps for the next call of the same size still counts. What torch.compile
    # makes fits one shape only.
    if backend == "compile":
        call = case(shape).call(backend, direction)
        call()
    else:
        case((1, 16, 16)).call(backend, direction)()
        call = case(shape).call(backend, direction)
    before = reset_peak()
    result = call()
    peak = peak_since(before)
    del result
    return peak


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def reset_peak() -> int:
    """Set the high-water mark of this process to what it uses now, and return that in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_since(before: int) -> int:
    """Bytes by which the high-water mark has risen over what `reset_peak` returned."""
    return max(_status("VmHWM") - before, 0)


def _can_reset_peak() -> bool:
    try:
        _status("VmHWM")
        return os.access("/proc/self/clear_refs", os.W_OK) and hasattr(ctypes.CDLL(None), "malloc_trim")
    except OSError:
        return False
