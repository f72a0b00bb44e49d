"""Finding the library that fits this machine, checking it, and loading it."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.files import file_digest
from distilldepth.native import recipe


@dataclass
class Record(recipe.Recipe):
    """The JSON file beside a library: what it was made from and what it needs. None is not written."""

    cuda: str | None = None
    archs: list[str] | None = None
    compiler: str | None = None
    cpu_features: list[str] | None = None
    torch: str | None = None
    seconds: float | None = None
    sha256: str | None = None

    def facts(self) -> dict[str, Any]:
        """What is known, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
        record = _read_record(status.path)
        facts |= record.facts() if record is not None else {}
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
            misfit = _cuda_misfit(_read_record(path))
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


def find_misfit(library: Path, wanted: recipe.Recipe) -> str | None:
    """Why this library must not be loaded; an empty text if it simply is not there, None if it fits."""
    record = _read_record(library)
    if record is None or not library.is_file():
        return ""
    for key, what in (
        ("sources", "from other sources"),
        ("flags", "with other flags"),
        ("machine", "for another machine"),
    ):
        if getattr(record, key) != getattr(wanted, key):
            return f"built {what}; {recipe.BUILD}"
    here = recipe.cpu_flags()
    lacking = [] if here is None else [name for name in record.cpu_features or () if name not in here]
    if lacking:
        return f"built for a processor with {', '.join(lacking)}, which this one lacks; {recipe.BUILD}"
    # Loading a file that was cut off would end the process with a bus error.
    if record.sha256 is not None and not _is_whole(library, record.sha256):
        return f"{library.name} is damaged; {recipe.BUILD}"
    return None


def _is_whole(library: Path, sha256: str) -> bool:
    try:
        return file_digest(library) == sha256
    except OSError:
        return False


def _read_record(library: Path) -> Record | None:
    """The record of a library; None if there is none that can be read."""
    try:
        found = read_json(library.with_suffix(".json"), limit=1 << 20)
    except DistillDepthError:
        return None
    for key in ("sources", "machine", "compiler", "torch", "sha256", "cuda"):
        if not isinstance(found.get(key, ""), str):
            return None
    for key in ("flags", "cpu_features", "archs"):
        words = found.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return None
    found = {"sources": "", "flags": [], "machine": "", **found}
    known: dict[str, Any] = {field.name: found.get(field.name) for field in fields(Record)}
    return Record(**known)


def _load_library(kind: str, path: Path) -> Status:
    import torch

    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        what = first_line(error)
        return Status(kind, False, path, f"{path.name} cannot be loaded: {what}; remove it and {recipe.BUILD}")
    return Status(kind, True, path)


def _cuda_misfit(record: Record | None) -> str | None:
    """Why torch, the driver or a GPU cannot run this library. Without a GPU it loads and is never called."""
    import torch

    cuda, archs = (record.cuda or "", record.archs or []) if record is not None else ("", [])
    known = re.match(r"[0-9]{1,3}\.", cuda) and archs
    if not known or not all(re.fullmatch("[0-9]{2,3}", arch) for arch in archs):
        return f"its record does not say for which GPUs it was built; {recipe.BUILD}"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if not torch.cuda.is_available():
        return None
    driver = _driver_version()
    # A driver of CUDA 12 runs what any CUDA 12 compiled, but nothing that CUDA 13 did.
    if driver is not None and driver[0] < int(cuda.partition(".")[0]):
        newest = ".".join(map(str, driver))
        return f"built with CUDA {cuda}, but the driver supports {newest} at most: update it, or build with that"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not covers(archs, capability):
            arch = "".join(map(str, capability))
            return (
                f"built for sm_{', sm_'.join(archs)}, not for the sm_{arch} of cuda:{index}; "
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
