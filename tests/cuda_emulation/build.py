"""Compiles the translated kernels and the emulator into a library, once for what they are made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distilldepth import native
from distilldepth.files import cache_folder
from distilldepth.native import compiling, recipe
from distilldepth.words import OPS

from . import translate

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

SANITIZED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
"""Flags of the build that stops at undefined behaviour: misaligned vectors, shifts, overflows, wrong enumerators."""

_TIMEOUT_S = 3600.0
_KEPT_S = 14 * 24 * 3600.0
"""How long objects and libraries that nobody uses are kept."""


def obstacle() -> str | None:
    """Return why the kernels cannot be emulated on this machine, None if nothing is known to be in the way."""
    if os.name != "posix" or not os.path.isdir("/proc/self"):
        return "the emulation runs on Linux only"
    if native.build_policy() == "0":
        return "DISTILLDEPTH_BUILD=0 forbids compiling"
    if native.find_compiler() is None:
        return "no C++ compiler on this machine"
    return None


def sources(op: str = "") -> list[Path]:
    """Return the CUDA sources and headers; without those of other operations if one is named."""
    others = {f"{other}_cuda" for other in OPS if op and other != {"point_cloud": "backproject"}.get(op, op)}
    return sorted(path for path in [*CSRC.glob("*.cu"), *CSRC.glob("*.cuh")] if path.stem not in others)


def build(
    files: Sequence[Path] = (), *, flags: Sequence[str] = (), progress: Callable[[str], None] = lambda line: None
) -> Path:
    """Compile CUDA sources, all of `csrc` unless others are given, for this machine; return the library.

    Every object lies in the cache folder under a hash of all that it is made from, so that a change of one source
    compiles that source only.
    """
    files = list(files) or sources()
    compiler = native.find_compiler() or []
    torch_folder = recipe.torch_folder()
    options = ["-std=c++20", "-O1", "-g1", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    options += flags
    includes = [f"-I{HERE / 'include'}", f"-I{torch_folder / 'include'}"]
    own = {path.name: path.read_text(encoding="utf-8") for path in [*HERE.glob("include/*.h"), HERE / "emulator.cpp"]}
    texts = {path.name: translate.translate(path) for path in files}
    headers = {name: text for name, text in texts.items() if name.endswith(".cuh")}
    units = {name: text for name, text in texts.items() if name.endswith(".cu")}
    units["emulator.cpp"] = own.pop("emulator.cpp")
    made_with = [options, compiling.output([*compiler, "--version"]), sorted(recipe.cpu_flags() or ())]
    made_with += [importlib.metadata.version("torch"), own]
    keys = {name: _hash([made_with, text, headers if name != "emulator.cpp" else {}]) for name, text in units.items()}

    libraries: list[str] = []
    if any("STABLE_TORCH_LIBRARY" in text for text in units.values()):
        libraries = [f"-L{torch_folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]

    folder = cache_folder() / "emulation"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{_hash([keys, libraries])}.so"
    with (
        compiling.exclusive(folder / "lock", _TIMEOUT_S, progress),
        tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as temporary,
        (folder / "log").open("w", encoding="utf-8") as log,
    ):
        if not library.exists():
            work, objects = Path(temporary), {name: folder / f"{key}.o" for name, key in keys.items()}
            for name, text in {**units, **headers}.items():
                (work / name).write_text(text, encoding="utf-8")
            commands = {
                name: [*compiler, *options, *includes, "-x", "c++", "-c", name, "-o", f"{keys[name]}.o"]
                for name in sorted(units, key=lambda name: -len(units[name]))
                if not objects[name].exists()
            }
            # The largest first, as they come in; all processors, as in every build.
            jobs, deadline = len(os.sched_getaffinity(0)), time.monotonic() + _TIMEOUT_S
            compiling.run_all(commands, work, jobs, deadline, log, progress)
            for name in commands:
                os.replace(work / objects[name].name, objects[name])
            link = [*compiler, *flags, "-shared", *map(str, objects.values()), *libraries, "-o", "library"]
            compiling.run_all({"linking": link}, work, 1, deadline, log, progress)
            os.replace(work / "library", library)
        for path in [library, *(folder / f"{key}.o" for key in keys.values())]:
            if path.exists():
                os.utime(path)
        _remove_old(folder)
    return library


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _remove_old(folder: Path) -> None:
    for path in [*folder.glob("*.o"), *folder.glob("*.so")]:
        if time.time() - path.stat().st_mtime > _KEPT_S:
            path.unlink(missing_ok=True)
