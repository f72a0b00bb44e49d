"""Finding the library that fits this machine, checking it, and loading it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.native import recipe

_RECORD = {
    "sources": str, "machine": str, "compiler": str, "torch": str, "sha256": str, "cuda": str,
    "flags": list, "cpu_features": list, "archs": list,
}  # fmt: skip
"""Types of the keys of a record; lists are of texts."""


@dataclass(frozen=True)
class Status:
    """Whether a library is loaded; if not, why, in one sentence."""

    kind: str
    loaded: bool
    path: Path | None = None
    reason: str = ""


statuses: dict[str, Status] = {}
_loading = threading.Lock()


def load(kind: str) -> Status:
    """Load a library if there is one that fits, and remember the answer; never compiles.

    Args:
        kind: `cpu` or `cuda`.

    Raises:
        ValueError: unknown kind.
    """
    recipe.check_kind(kind)
    if kind not in statuses:
        with _loading:
            if kind not in statuses:
                statuses[kind] = _load(kind)
    return statuses[kind]


def forget_failure(kind: str) -> None:
    """Let the next `load` look again, unless the library is loaded."""
    with _loading:
        if kind in statuses and not statuses[kind].loaded:
            del statuses[kind]


def describe(kind: str) -> dict[str, Any]:
    """Load a library and return what is known about it, ready for JSON."""
    status = load(kind)
    facts: dict[str, Any] = {"loaded": status.loaded, "path": None, "reason": status.reason or None}
    if status.path is not None:
        facts["path"] = str(status.path)
        facts |= read_record(status.path) or {}
    facts["obstacle"] = recipe.obstacle(kind)
    return facts


def _load(kind: str) -> Status:
    try:
        candidates = _candidates(kind)
    except OSError as error:
        return Status(kind, False, reason=f"the cache folder cannot be read: {error}")
    wanted, reason = recipe.make_recipe(kind), ""
    for path in candidates:
        misfit = find_misfit(path, wanted)
        if misfit is None and kind == "cuda":
            misfit = _cuda_misfit(read_record(path) or {})
        if misfit is None:
            return _load_library(kind, path)
        # The newest library that does not fit is the one that the user will wonder about.
        reason = reason or misfit
    return Status(kind, False, reason=reason or f"not built; {recipe.BUILD}")


def _candidates(kind: str) -> list[Path]:
    """The library that is made for this machine, then all others, the newest first: a shared home may hold several."""
    exact = recipe.library_path(kind)
    others = [path.with_suffix(".so") for path in exact.parent.glob(f"distilldepth_{kind}-*.json")]
    ages = {path: path.stat().st_mtime for path in others if path.is_file()}
    return list(dict.fromkeys([exact, *sorted(ages, key=ages.__getitem__, reverse=True)]))


def find_misfit(library: Path, wanted: dict[str, Any]) -> str | None:
    """Why this library must not be loaded; an empty text if it simply is not there, None if it fits."""
    record = read_record(library)
    if record is None or not library.is_file():
        return ""
    for key, what in (
        ("sources", "from other sources"),
        ("flags", "with other flags"),
        ("machine", "for another machine"),
    ):
        if record.get(key) != wanted[key]:
            return f"built {what}; {recipe.BUILD}"
    here = recipe.cpu_flags()
    lacking = [] if here is None else [name for name in record.get("cpu_features", ()) if name not in here]
    if lacking:
        return f"built for a processor with {', '.join(lacking)}, which this one lacks; {recipe.BUILD}"
    # Loading a file that was cut off would end the process with a bus error.
    if "sha256" in record and record["sha256"] != digest(library):
        return f"{library.name} is damaged; {recipe.BUILD}"
    return None


def digest(library: Path) -> str:
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def read_record(library: Path) -> dict[str, Any] | None:
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
        return Status(kind, False, path, f"{path.name} cannot be loaded: {what}; remove it and {recipe.BUILD}")
    return Status(kind, True, path)


def _cuda_misfit(record: dict[str, Any]) -> str | None:
    """Why torch, the driver or a GPU cannot run this library. Without a GPU it loads and is never called."""
    import torch

    archs = record.get("archs", [])
    known = re.match(r"[0-9]{1,3}\.", record.get("cuda", "")) and archs
    if not known or not all(re.fullmatch("[0-9]{2,3}", arch) for arch in archs):
        return f"its record does not say for which GPUs it was built; {recipe.BUILD}"
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
        if not covers(record["archs"], capability):
            arch = "".join(map(str, capability))
            return (
                f"built for sm_{', sm_'.join(record['archs'])}, not for the sm_{arch} of cuda:{index}; "
                f"run `DISTILLDEPTH_CUDA_ARCHS={arch} distilldepth doctor --build`"
            )
    return None


def covers(archs: Sequence[str], capability: tuple[int, int]) -> bool:
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
