"""Builds, finds and loads the two native libraries: `distilldepth_cpu` and `distilldepth_cuda`.

Nothing is compiled when the package is installed, imported or used, only by `distilldepth doctor --build`. At install
it could not work: pip builds a wheel before torch, whose headers the sources need, is there; and a wheel with code for
this very processor would go into pip's cache and on to other machines. So wheels stay pure Python and carry the sources
(`csrc`), and the libraries lie in the user's cache folder as `native/distilldepth_<kind>-<key>.so`. The key covers
sources, flags and processor, so that checkouts and machines that share a home do not disturb each other.

Beside each library lies a JSON file that says what it was made from and what it needs. A library that does not fit the
sources, the flags or the machine, or that is damaged, is not loaded. It fits every torch from 2.10 on: the sources use
its stable ABI only.

Environment:
    DISTILLDEPTH_BUILD: `auto` builds what this machine has compilers for; `1` makes a missing compiler an error;
        `0` forbids compiling.
    DISTILLDEPTH_CXXFLAGS: added to the flags of the CPU library; one built with others is not loaded.
    DISTILLDEPTH_CUDA_ARCHS: what the CUDA library is compiled for, `80,90,100` if unset; later GPUs run the last one.
    CXX, CUDA_HOME, CUDA_PATH: where the compilers are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.files import cache_folder

KINDS = ("cpu", "cuda")
BUILD = "run `distilldepth doctor --build`"

_SOURCES = {"cpu": "*_cpu.cpp", "cuda": "*_cuda.cu"}
_TIMEOUT_S = {"cpu": 3600.0, "cuda": 14400.0}
_TORCH_FLOOR = (2, 10)

_FEATURES = {
    "pni": "__SSE3__",
    "ssse3": "__SSSE3__",
    "sse4_1": "__SSE4_1__",
    "sse4_2": "__SSE4_2__",
    "popcnt": "__POPCNT__",
    "movbe": "__MOVBE__",
    "abm": "__LZCNT__",
    "bmi1": "__BMI__",
    "bmi2": "__BMI2__",
    "f16c": "__F16C__",
    "fma": "__FMA__",
    "avx": "__AVX__",
    "avx2": "__AVX2__",
    "avx_vnni": "__AVXVNNI__",
    "avx512f": "__AVX512F__",
    "avx512cd": "__AVX512CD__",
    "avx512bw": "__AVX512BW__",
    "avx512dq": "__AVX512DQ__",
    "avx512vl": "__AVX512VL__",
    "avx512ifma": "__AVX512IFMA__",
    "avx512vbmi": "__AVX512VBMI__",
    "avx512_vbmi2": "__AVX512VBMI2__",
    "avx512_vnni": "__AVX512VNNI__",
    "avx512_bitalg": "__AVX512BITALG__",
    "avx512_vpopcntdq": "__AVX512VPOPCNTDQ__",
    "avx512_bf16": "__AVX512BF16__",
    "avx512_fp16": "__AVX512FP16__",
    "atomics": "__ARM_FEATURE_ATOMICS",
    "asimdhp": "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC",
    "asimddp": "__ARM_FEATURE_DOTPROD",
    "bf16": "__ARM_FEATURE_BF16",
    "i8mm": "__ARM_FEATURE_MATMUL_INT8",
    "sve": "__ARM_FEATURE_SVE",
    "sve2": "__ARM_FEATURE_SVE2",
}
"""Instruction sets by the name that /proc/cpuinfo gives them: the macro of a compiler that uses them."""

_RECORD = {
    "sources": str, "machine": str, "compiler": str, "torch": str, "sha256": str, "cuda": str,
    "flags": list, "cpu_features": list, "archs": list,
}  # fmt: skip
"""Types of the keys of a record; lists are of texts."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """Whether a library is loaded; if not, why, in one sentence."""

    kind: str
    loaded: bool
    path: Path | None = None
    reason: str = ""


@dataclass(frozen=True)
class Built:
    """A library that fits this machine, and how long it took to compile; 0 if it was there already."""

    path: Path
    seconds: float


_statuses: dict[str, Status] = {}
_loading = threading.Lock()


def load(kind: str) -> Status:
    """Load a library if there is one that fits, and remember the answer; never compiles.

    Args:
        kind: `cpu` or `cuda`.

    Raises:
        ValueError: unknown kind.
    """
    _check_kind(kind)
    if kind not in _statuses:
        with _loading:
            if kind not in _statuses:
                _statuses[kind] = _load(kind)
    return _statuses[kind]


def obstacle(kind: str) -> str | None:
    """Return why a library cannot be compiled on this machine, None if nothing is known to be in the way."""
    _check_kind(kind)
    if build_policy() == "0":
        return "DISTILLDEPTH_BUILD=0 forbids compiling"
    if os.name != "posix":
        return "the native libraries are compiled on Linux and macOS only"
    if not _sources(kind):
        return f"there are no sources {_SOURCES[kind]} in {source_folder()}"
    if kind == "cuda" and find_nvcc() is None:
        return "nvcc was not found (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    if find_compiler() is None:
        asked = os.environ.get("CXX")
        return (
            f"the C++ compiler CXX={asked} was not found" if asked else "no C++ compiler was found (c++, g++, clang++)"
        )
    if not (_torch_folder() / "include/torch/csrc/stable/library.h").is_file():
        return f"torch has no headers in {_torch_folder() / 'include'}"
    return None


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
    reason = obstacle(kind)
    if reason is not None:
        raise DistillDepthError(f"distilldepth_{kind} cannot be compiled: {reason}")
    try:
        built = _build(kind, _library_path(kind), progress)
    except BrokenPipeError:  # Of who listens to the progress.
        raise
    except OSError as error:
        raise DistillDepthError(
            f"distilldepth_{kind} cannot be compiled: {error.filename or cache_folder()}: {error.strerror or error}; "
            "set DISTILLDEPTH_CACHE to a folder that can be written"
        ) from error
    with _loading:
        if kind in _statuses and not _statuses[kind].loaded:
            del _statuses[kind]
    return built


def describe(kind: str) -> dict[str, Any]:
    """Load a library and return what is known about it, ready for JSON."""
    status = load(kind)
    facts: dict[str, Any] = {"loaded": status.loaded, "path": None, "reason": status.reason or None}
    if status.path is not None:
        facts["path"] = str(status.path)
        facts |= _read_record(status.path) or {}
    facts["obstacle"] = obstacle(kind)
    return facts


def build_policy() -> str:
    """Return DISTILLDEPTH_BUILD: `auto`, `0` or `1`.

    Raises:
        ValueError: it is something else.
    """
    policy = os.environ.get("DISTILLDEPTH_BUILD") or "auto"
    if policy not in ("auto", "0", "1"):
        raise ValueError(f"DISTILLDEPTH_BUILD must be auto, 0 or 1, got {policy!r}")
    return policy


def source_folder() -> Path:
    """Return the folder of the C++ and CUDA sources: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "csrc"
    return inside if inside.is_dir() else package.parent / "csrc"


def find_compiler() -> list[str] | None:
    """Return the C++ compiler's command: `CXX`, else the first of c++, g++, clang++; None if there is none.

    Raises:
        ValueError: `CXX` is no command: a quotation mark is not closed.
    """
    asked = _words("CXX")
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    return None


def find_nvcc() -> str | None:
    """Return the path of nvcc: from CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; None if there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [str(Path(home) / "bin" / "nvcc") for home in homes if home] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"native: kind must be cpu or cuda, got {kind!r}{did_you_mean(kind, KINDS)}")


# What a library is made from


def _sources(kind: str) -> list[Path]:
    return sorted(source_folder().glob(_SOURCES[kind]))


def _fingerprint(kind: str) -> str:
    """Hash of the sources and of the headers that they include by name, at any depth."""
    digest = hashlib.sha256()
    seen, waiting = set(), _sources(kind)
    while waiting:
        path = waiting.pop(0)
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
        included = re.findall(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', content, re.MULTILINE)
        waiting += [path.parent / os.fsdecode(name) for name in included]
    return digest.hexdigest()


def _flags(kind: str) -> list[str]:
    """What is asked of the compiler. The compiler itself is not part of it: loading must not need one."""
    target = "-DTORCH_TARGET_VERSION=" + hex(_TORCH_FLOOR[0] << 56 | _TORCH_FLOOR[1] << 48)
    if kind == "cuda":
        return ["-O3", "-std=c++20", target, "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]
    native = "-mcpu=native" if sys.platform == "darwin" and platform.machine() == "arm64" else "-march=native"
    # -ffast-math would let the compiler assume that there is no NaN, and these kernels look for them.
    flags = [
        "-O3",
        "-std=c++20",
        target,
        native,
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fPIC",
        "-fvisibility=hidden",
    ]
    return [*flags, *_words("DISTILLDEPTH_CXXFLAGS")]


def _words(variable: str) -> list[str]:
    """The words of an environment variable, as a shell splits them."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{variable} must be words as a shell takes them, got {text!r}: {error}") from error


def _archs() -> list[str]:
    text = os.environ.get("DISTILLDEPTH_CUDA_ARCHS") or "80,90,100"
    archs = re.findall(r"[^,; ]+", text)
    if not archs or not all(re.fullmatch(r"\d{2,3}", arch) for arch in archs):
        raise ValueError(f"DISTILLDEPTH_CUDA_ARCHS must be numbers such as 80,90,100, got {text!r}")
    return sorted(archs, key=int)


def _gencode(archs: Sequence[str]) -> list[str]:
    """Machine code for every architecture, and PTX of the last one for those to come."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def _wanted(kind: str) -> dict[str, Any]:
    """What a library must have been made from to be loaded."""
    return {"sources": _fingerprint(kind), "flags": _flags(kind), "machine": platform.machine()}


def _library_path(kind: str) -> Path:
    """Where a library that is compiled here and now is put."""
    if kind == "cuda":
        target: list[str] | None = _archs()
    else:
        flags = _cpu_flags()
        target = None if flags is None else [name for name in _FEATURES if name in flags]
    key = hashlib.sha256(json.dumps([_wanted(kind), target]).encode()).hexdigest()[:16]
    return cache_folder() / "native" / f"distilldepth_{kind}-{key}.so"


@functools.cache
def _cpu_flags() -> frozenset[str] | None:
    """What the processor can do, in the words of Linux; None where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else None


def _torch_folder() -> Path:
    """Where torch lies; it is not imported for that."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise DistillDepthError("torch is not installed; install distilldepth again")
    return Path(found.origin).parent


# Finding and loading


def _load(kind: str) -> Status:
    try:
        candidates = _candidates(kind)
    except OSError as error:
        return Status(kind, False, reason=f"the cache folder cannot be read: {error}")
    wanted, reason = _wanted(kind), ""
    for path in candidates:
        misfit = _misfit(path, wanted)
        if misfit is None and kind == "cuda":
            misfit = _cuda_misfit(_read_record(path) or {})
        if misfit is None:
            return _load_library(kind, path)
        # The newest library that does not fit is the one that the user will wonder about.
        reason = reason or misfit
    return Status(kind, False, reason=reason or f"not built; {BUILD}")


def _candidates(kind: str) -> list[Path]:
    """The library that is made for this machine, then all others, the newest first: a shared home may hold several."""
    exact = _library_path(kind)
    others = [path.with_suffix(".so") for path in exact.parent.glob(f"distilldepth_{kind}-*.json")]
    ages = {path: path.stat().st_mtime for path in others if path.is_file()}
    return list(dict.fromkeys([exact, *sorted(ages, key=ages.__getitem__, reverse=True)]))


def _misfit(library: Path, wanted: dict[str, Any]) -> str | None:
    """Why this library must not be loaded; an empty text if it simply is not there, None if it fits."""
    record = _read_record(library)
    if record is None or not library.is_file():
        return ""
    for key, what in (
        ("sources", "from other sources"),
        ("flags", "with other flags"),
        ("machine", "for another machine"),
    ):
        if record.get(key) != wanted[key]:
            return f"built {what}; {BUILD}"
    here = _cpu_flags()
    lacking = [] if here is None else [name for name in record.get("cpu_features", ()) if name not in here]
    if lacking:
        return f"built for a processor with {', '.join(lacking)}, which this one lacks; {BUILD}"
    # Loading a file that was cut off would end the process with a bus error.
    if "sha256" in record and record["sha256"] != _digest(library):
        return f"{library.name} is damaged; {BUILD}"
    return None


def _digest(library: Path) -> str:
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def _read_record(library: Path) -> dict[str, Any] | None:
    try:
        record = read_json(library.with_suffix(".json"), limit=1 << 20)
    except DistillDepthError:
        return None
    for key, kind in _RECORD.items():
        value = record.get(key, kind())
        if not isinstance(value, kind) or not all(isinstance(word, str) for word in value):
            return None
    return record


def _load_library(kind: str, path: Path) -> Status:
    import torch

    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        what = str(error).partition("\n")[0]
        return Status(kind, False, path, f"{path.name} cannot be loaded: {what}; remove it and {BUILD}")
    return Status(kind, True, path)


def _cuda_misfit(record: dict[str, Any]) -> str | None:
    """Why torch, the driver or a GPU cannot run this library. Without a GPU it loads and is never called."""
    import torch

    archs = record.get("archs", [])
    known = re.match(r"[0-9]{1,3}\.", record.get("cuda", "")) and archs
    if not known or not all(re.fullmatch("[0-9]{2,3}", arch) for arch in archs):
        return f"its record does not say for which GPUs it was built; {BUILD}"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if not torch.cuda.is_available():
        return None
    driver = _driver_version()
    # A driver of CUDA 12 runs what any CUDA 12 compiled, but nothing that CUDA 13 did.
    if driver is not None and driver[0] < int(record["cuda"].partition(".")[0]):
        newest = ".".join(map(str, driver))
        return (
            f"built with CUDA {record['cuda']}, but the driver supports {newest} at most: update it, or build with that"
        )
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not _covers(record["archs"], capability):
            arch = "".join(map(str, capability))
            return (
                f"built for sm_{', sm_'.join(record['archs'])}, not for the sm_{arch} of cuda:{index}; "
                f"run `DISTILLDEPTH_CUDA_ARCHS={arch} distilldepth doctor --build`"
            )
    return None


def _covers(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU runs the machine code of one of these, or can compile the PTX of the last one."""
    codes = [divmod(int(arch), 10) for arch in archs]
    same = any(major == capability[0] and minor <= capability[1] for major, minor in codes)
    return same or codes[-1] <= capability


def _driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver supports."""
    import ctypes

    version = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


# Compiling


def _build(kind: str, library: Path, progress: Progress) -> Built:
    library.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(library.parent / f"{kind}.lock", _TIMEOUT_S[kind], progress):
        if _misfit(library, _wanted(kind)) is None:
            return Built(library, 0.0)
        began = time.monotonic()
        _remove_remains(library.parent)
        # In the same folder, so that the finished library is renamed into place: no process ever sees half of it.
        with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as folder:
            record = _compile(kind, Path(folder), library.with_suffix(".log"), progress)
            seconds = time.monotonic() - began
            record["seconds"] = round(seconds, 1)
            record["sha256"] = _digest(Path(folder) / "library")
            (Path(folder) / "record").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(Path(folder) / "library", library)
            os.replace(Path(folder) / "record", library.with_suffix(".json"))
    return Built(library, seconds)


def _compile(kind: str, folder: Path, log: Path, progress: Progress) -> dict[str, Any]:
    """Compile and link into `folder/library`; return the record."""
    record, sources, torch_folder = _wanted(kind), _sources(kind), _torch_folder()
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Linked with libtorch, which brings in libtorch_cuda where there is one, but without a path to it: the process that
    # loads the library has loaded libtorch already, and not necessarily the one that is here now.
    libraries = ["-L" + str(torch_folder / "lib"), "-ltorch", "-ltorch_cpu"]
    if kind == "cuda":
        compiler = [str(find_nvcc())]
        record["cuda"], record["archs"] = _cuda_version(compiler), _supported(compiler, _archs())
        record["compiler"] = f"nvcc {record['cuda']}"
        flags = [*record["flags"], *_gencode(record["archs"])]
        compile_flags = [*flags, f"--threads={max(1, jobs // len(sources))}"]
        # The library has a CUDA runtime of its own, whose names must not meet those of torch's.
        link_flags = [*flags, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL,--no-as-needed"]
    else:
        compiler = find_compiler() or []
        flags = compile_flags = record["flags"]
        version = _output([*compiler, "--version"], "; set CXX to a C++ compiler")
        record["compiler"] = version.partition("\n")[0].strip()
        macros = set(_output([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]).split())
        record["cpu_features"] = [name for name, macro in _FEATURES.items() if macro in macros]
        link_flags = [*flags, "-shared", "-Wl,--no-as-needed"]
        if sys.platform == "darwin":
            link_flags, libraries = [*flags, "-shared", "-undefined", "dynamic_lookup"], []
    record["torch"] = importlib.metadata.version("torch")
    include = "-I" + str(torch_folder / "include")
    objects = {source.name: f"{source.name}.o" for source in sources}
    commands = {
        source.name: [*compiler, *compile_flags, include, "-c", str(source), "-o", objects[source.name]]
        for source in sources
    }
    link = {"linking": [*compiler, *link_flags, *objects.values(), *libraries, "-o", "library"]}
    deadline = time.monotonic() + _TIMEOUT_S[kind]
    with log.open("w", encoding="utf-8") as stream:
        _run_all(commands, folder, jobs, deadline, stream, progress)
        _run_all(link, folder, jobs, deadline, stream, progress)
    if not (folder / "library").is_file():
        raise DistillDepthError(f"{shlex.join(compiler)} ran and made no library: it is no compiler; its log: {log}")
    if _fingerprint(kind) != record["sources"]:
        raise DistillDepthError("the sources changed while they were compiled; build again")
    return record


def _remove_remains(folder: Path) -> None:
    """Remove what builds that were killed left behind: no build is as old as the longest one may take."""
    for remains in folder.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - remains.stat().st_mtime > 2 * max(_TIMEOUT_S.values()):
                shutil.rmtree(remains)


def _run_all(
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
    line = line.replace(f"{source_folder()}{os.sep}", "")
    return line if line.startswith(name) else f"{name}: {line}"


def _output(command: Sequence[str], advice: str = "") -> str:
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
    found = re.search(r"release (\d+\.\d+)", _output([*nvcc, "--version"]))
    return found.group(1) if found else "0.0"


def _supported(nvcc: Sequence[str], archs: Sequence[str]) -> list[str]:
    """The architectures that this nvcc has code for.

    Raises:
        DistillDepthError: none.
    """
    known = set(_output([*nvcc, "--list-gpu-code"]).split())
    found = [arch for arch in archs if f"sm_{arch}" in known]
    if not found:
        raise DistillDepthError(
            f"{nvcc[0]} knows none of the architectures {', '.join(archs)}; set DISTILLDEPTH_CUDA_ARCHS"
        )
    return found


@contextlib.contextmanager
def _exclusive(path: Path, patience_s: float, progress: Progress) -> Iterator[None]:
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
