"""Compiling the libraries: one build at a time, whole or not at all, with a log."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from distilldepth.errors import DistillDepthError
from distilldepth.files import cache_folder, file_digest
from distilldepth.native import loading, recipe

_TIMEOUT_S = {"cpu": 3600.0, "cuda": 14400.0}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A library that fits this machine, and how long it took to compile; 0 if it was there already."""

    path: Path
    seconds: float


def build(kind: str, *, progress: Progress = lambda line: None) -> Built:
    """Compile a library for this machine unless one that fits is there.

    Two processes that build the same thing do not disturb each other: the second one waits and takes the first one's.

    Args:
        kind: `cpu` or `cuda`.
        progress: called with a line per file.

    Raises:
        ValueError: unknown kind.
        DistillDepthError: it cannot be compiled here, the cache folder cannot be written, or the compiler failed; the
            message then holds the first error and the path of the log.
    """
    reason = recipe.obstacle(kind)
    if reason is not None:
        raise DistillDepthError(f"distilldepth_{kind} cannot be compiled: {reason}")
    try:
        built = _build(kind, recipe.library_path(kind), progress)
    except BrokenPipeError:  # Of who listens to the progress.
        raise
    except OSError as error:
        raise DistillDepthError(
            f"distilldepth_{kind} cannot be compiled: {error.filename or cache_folder()}: {error.strerror or error}; "
            "set DISTILLDEPTH_CACHE to a folder that can be written"
        ) from error
    loading.forget_failure(kind)
    return built


def _build(kind: str, library: Path, progress: Progress) -> Built:
    library.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(library.parent / f"{kind}.lock", _TIMEOUT_S[kind], progress):
        if loading.find_misfit(library, recipe.make_recipe(kind)) is None:
            return Built(library, 0.0)
        began = time.monotonic()
        _remove_remains(library.parent)
        # In the same folder, so that the finished library is renamed into place: no process ever sees half of it.
        folder = library.parent / f".build-{secrets.token_hex(8)}"
        try:  # Before the folder is there: a signal may come as soon as it is.
            folder.mkdir(mode=0o700)
            record = _compile(kind, folder, library.with_suffix(".log"), progress)
            seconds = time.monotonic() - began
            record.seconds, record.sha256 = round(seconds, 1), file_digest(folder / "library")
            (folder / "record").write_text(json.dumps(record.facts(), indent=2) + "\n", encoding="utf-8")
            os.replace(folder / "library", library)
            os.replace(folder / "record", library.with_suffix(".json"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Built(library, seconds)


def _compile(kind: str, folder: Path, log: Path, progress: Progress) -> loading.Record:
    """Compile and link into `folder/library`; return the record."""
    record = loading.Record(**asdict(recipe.make_recipe(kind)))
    sources, torch_folder = recipe.source_files(kind), recipe.torch_folder()
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Linked with libtorch, which brings in libtorch_cuda where there is one, but without a path to it: the process that
    # loads the library has loaded libtorch already, and not necessarily the one that is here now.
    libraries = ["-L" + str(torch_folder / "lib"), "-ltorch", "-ltorch_cpu"]
    if kind == "cuda":
        compiler = [str(recipe.find_nvcc())]
        record.cuda, record.archs = _cuda_version(compiler), _supported(compiler, recipe.cuda_archs())
        record.compiler = f"nvcc {record.cuda}"
        flags = [*record.flags, *recipe.gencode(record.archs)]
        compile_flags = [*flags, f"--threads={max(1, jobs // len(sources))}"]
        # The library has a CUDA runtime of its own, whose names must not meet those of torch's.
        link_flags = [*flags, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL,--no-as-needed"]
    else:
        compiler = recipe.find_compiler() or []
        flags = compile_flags = record.flags
        version = output([*compiler, "--version"], "; set CXX to a C++ compiler")
        record.compiler = version.partition("\n")[0].strip()
        macros = set(output([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]).split())
        record.cpu_features = [name for name, macro in recipe.FEATURES.items() if macro in macros]
        link_flags = [*flags, "-shared", "-Wl,--no-as-needed"]
        if sys.platform == "darwin":
            link_flags, libraries = [*flags, "-shared", "-undefined", "dynamic_lookup"], []
    record.torch = importlib.metadata.version("torch")
    include = "-I" + str(torch_folder / "include")
    objects = {source.name: f"{source.name}.o" for source in sources}
    commands = {
        source.name: [*compiler, *compile_flags, include, "-c", str(source), "-o", objects[source.name]]
        for source in sources
    }
    link = {"linking": [*compiler, *link_flags, *objects.values(), *libraries, "-o", "library"]}
    deadline = time.monotonic() + _TIMEOUT_S[kind]
    with log.open("w", encoding="utf-8") as stream:
        run_all(commands, folder, jobs, deadline, stream, progress)
        run_all(link, folder, jobs, deadline, stream, progress)
    if not (folder / "library").is_file():
        raise DistillDepthError(f"{shlex.join(compiler)} ran and made no library: it is no compiler; its log: {log}")
    if recipe.fingerprint(kind) != record.sources:
        raise DistillDepthError("the sources changed while they were compiled; build again")
    return record


def _remove_remains(folder: Path) -> None:
    """Remove what builds that were killed left behind: no build is as old as the longest one may take."""
    for remains in folder.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - remains.stat().st_mtime > 2 * max(_TIMEOUT_S.values()):
                shutil.rmtree(remains)


def run_all(
    commands: dict[str, list[str]], folder: Path, jobs: int, deadline: float, log: IO[str], progress: Progress
) -> None:
    """Run commands, `jobs` at a time, and write what they print into the log; the first failure ends them all."""
    waiting: list[str] = list(commands)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = _start(commands[name], folder, folder / f"{name}.out"), time.monotonic()
            time.sleep(0.02)
            late = time.monotonic() > deadline
            for name, (process, began) in list(running.items()):
                if process.poll() is None and not late:
                    continue
                text = (folder / f"{name}.out").read_text(encoding="utf-8", errors="replace")
                log.write(f"$ {shlex.join(commands[name])}\n{text}\n")
                log.flush()
                if process.returncode is None:
                    raise DistillDepthError(f"{name}: the compiler took too long; its log: {log.name}")
                del running[name]
                if process.returncode != 0:
                    raise DistillDepthError(f"{_first_error(name, text, process.returncode)}; its log: {log.name}")
                progress(f"{name}: {time.monotonic() - began:.1f} s")
    finally:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: Sequence[str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a compiler in a session of its own, so that it can be ended together with the processes that it starts."""
    with output.open("wb") as stream:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )


def _first_error(name: str, text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|undefined reference)\b", line)]
    line = (errors or lines or [f"the compiler ended with code {code}"])[0]
    line = line.replace(f"{recipe.source_folder()}{os.sep}", "")
    return line if line.startswith(name) else f"{name}: {line}"


def output(command: Sequence[str], advice: str = "") -> str:
    """What a quick command prints.

    Raises:
        DistillDepthError: it failed; the message ends with the advice.
    """
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DistillDepthError(f"{command[0]}: {error}{advice}") from error
    if run.returncode != 0:
        raise DistillDepthError(f"{_first_error(command[0], run.stderr, run.returncode)}{advice}")
    return run.stdout


def _cuda_version(nvcc: Sequence[str]) -> str:
    found = re.search(r"release (\d+\.\d+)", output([*nvcc, "--version"]))
    return found.group(1) if found else "0.0"


def _supported(nvcc: Sequence[str], archs: Sequence[str]) -> list[str]:
    """The architectures that this nvcc has code for.

    Raises:
        DistillDepthError: none.
    """
    known = set(output([*nvcc, "--list-gpu-code"]).split())
    found = [arch for arch in archs if f"sm_{arch}" in known]
    if not found:
        raise DistillDepthError(
            f"{nvcc[0]} knows none of the architectures {', '.join(archs)}; set DISTILLDEPTH_CUDA_ARCHS"
        )
    return found


@contextlib.contextmanager
def exclusive(path: Path, patience_s: float, progress: Progress) -> Iterator[None]:
    """Hold a lock while the block runs, or do without it after `patience_s`.

    The system frees the lock with the process that holds it, however that ends: a lock file that is left behind blocks
    nobody. Nothing breaks without the lock, which some network folders do not have: work is only done twice.
    """
    import fcntl

    with path.open("a+", encoding="utf-8") as file:
        deadline, told = time.monotonic() + patience_s, False
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    progress(f"waiting for {file.read().strip() or 'another process'}, which is building")
                    told = True
                time.sleep(0.1)
            except OSError:
                break
            else:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                break
        yield
