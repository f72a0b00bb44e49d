"""What the native libraries are made from, with what, for what, and where they lie."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.files import cache_folder

KINDS = ("cpu", "cuda")
BUILD = "run `distilldepth doctor --build`"

_SOURCES = {"cpu": "*_cpu.cpp", "cuda": "*_cuda.cu"}
_TORCH_FLOOR = (2, 10)

FEATURES = {
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


def obstacle(kind: str) -> str | None:
    """Return why a library cannot be compiled on this machine, None if nothing is known to be in the way."""
    check_kind(kind)
    if build_policy() == "0":
        return "DISTILLDEPTH_BUILD=0 forbids compiling"
    if os.name != "posix":
        return "the native libraries are compiled on Linux and macOS only"
    if not source_files(kind):
        return f"there are no sources {_SOURCES[kind]} in {source_folder()}"
    if kind == "cuda" and find_nvcc() is None:
        return "nvcc was not found (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    if find_compiler() is None:
        asked = os.environ.get("CXX")
        return (
            f"the C++ compiler CXX={asked} was not found" if asked else "no C++ compiler was found (c++, g++, clang++)"
        )
    if not (torch_folder() / "include/torch/csrc/stable/library.h").is_file():
        return f"torch has no headers in {torch_folder() / 'include'}"
    return None


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
    package = Path(__file__).resolve().parents[1]
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


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"native: kind must be cpu or cuda, got {kind!r}{did_you_mean(kind, KINDS)}")


def source_files(kind: str) -> list[Path]:
    return sorted(source_folder().glob(_SOURCES[kind]))


def fingerprint(kind: str) -> str:
    """Hash of the sources and of the headers that they include by name, at any depth."""
    digest = hashlib.sha256()
    seen, waiting = set(), source_files(kind)
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


def compiler_flags(kind: str) -> list[str]:
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


def cuda_archs() -> list[str]:
    text = os.environ.get("DISTILLDEPTH_CUDA_ARCHS") or "80,90,100"
    archs = re.findall(r"[^,; ]+", text)
    if not archs or not all(re.fullmatch(r"\d{2,3}", arch) for arch in archs):
        raise ValueError(f"DISTILLDEPTH_CUDA_ARCHS must be numbers such as 80,90,100, got {text!r}")
    return sorted(archs, key=int)


def gencode(archs: Sequence[str]) -> list[str]:
    """Machine code for every architecture, and PTX of the last one for those to come."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


@dataclass
class Recipe:
    """What a library must have been made from to be loaded."""

    sources: str  # their fingerprint
    flags: list[str]
    machine: str


def make_recipe(kind: str) -> Recipe:
    """What a library that is to be loaded here and now must have been made from."""
    return Recipe(fingerprint(kind), compiler_flags(kind), platform.machine())


def library_path(kind: str) -> Path:
    """Where a library that is compiled here and now is put."""
    if kind == "cuda":
        target: list[str] | None = cuda_archs()
    else:
        flags = cpu_flags()
        target = None if flags is None else [name for name in FEATURES if name in flags]
    key = hashlib.sha256(json.dumps([asdict(make_recipe(kind)), target]).encode()).hexdigest()[:16]
    return cache_folder() / "native" / f"distilldepth_{kind}-{key}.so"


@functools.cache
def cpu_flags() -> frozenset[str] | None:
    """What the processor can do, in the words of Linux; None where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else None


def torch_folder() -> Path:
    """Where torch lies; it is not imported for that."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise DistillDepthError("torch is not installed; install distilldepth again")
    return Path(found.origin).parent
