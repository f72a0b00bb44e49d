"""Where checkpoints are: folders on this machine first, then the hub's cache, then the hub. Imports no torch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distilldepth.errors import DistillDepthError, one_line
from distilldepth.files import expand_user
from distilldepth.models.registry import Entry, bundled_alternative

PROBE_SECONDS = 8.0
"""How long the first question to the hub may take, names looked up included."""
RETRY_SECONDS = 60.0
"""After the hub could not be reached it is not asked again for this long."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_unreachable_since: float | None = None


def is_offline(offline: bool = False) -> bool:
    """Whether the network must not be touched: asked for, or `HF_HUB_OFFLINE` / `TRANSFORMERS_OFFLINE` is set."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return offline or any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def checkpoint_folders() -> list[Path]:
    """Folders in which checkpoints are looked for: `$DISTILLDEPTH_CHECKPOINTS`, then `checkpoints` where one stands."""
    named = os.environ.get("DISTILLDEPTH_CHECKPOINTS", "")
    return [expand_user(part) for part in named.split(os.pathsep) if part] + [Path("checkpoints")]


def find_local(entry: Entry) -> Path | None:
    """Return the file or folder that holds a named model's weights on this machine, or None."""
    for folder in checkpoint_folders():
        for name in entry.local_names():
            path = folder / name
            if path.is_file() or (path.is_dir() and _has_weights(path)):
                return path
    if entry.hub_id and (found := cached(entry.hub_id, entry.hub_file)):
        return found
    for name in entry.files if entry.official_id else ():
        if found := cached(entry.official_id, name):
            return found
    return None


def cached(repo_id: str, file: str = "", *, folders: tuple[str, ...] = ()) -> Path | None:
    """Return what the hub's cache has of a repository: one file, or the snapshot's folder if it holds weights.

    Args:
        repo_id: `org/name`.
        file: path inside the repository; empty for the whole snapshot.
        folders: sub-folders that must be there for the snapshot to count.
    """
    snapshots = _cache_folder() / f"models--{repo_id.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return None
    for snapshot in sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        if file:
            if (snapshot / file).is_file():
                return snapshot / file
        elif _has_weights(snapshot) and all((snapshot / name).is_dir() for name in folders):
            return snapshot
    return None


def fetch(
    repo_id: str,
    *,
    file: str = "",
    folders: tuple[str, ...] = (),
    family: str = "",
    offline: bool = False,
    expected: tuple[str, ...] = (),
) -> Path:
    """Return a repository's file or folder: from the cache if it is there, else downloaded.

    Args:
        repo_id: `org/name`.
        file: the one file wanted; empty for a folder.
        folders: sub-folders wanted (a diffusers repository); empty for the files at the top.
        family: family of the model, to name the bundled alternative.
        offline: never touch the network.
        expected: names under a checkpoints folder where the model would be found, for the message.

    Raises:
        DistillDepthError: not in the cache and not to be had; one line with what to do.
    """
    if path := cached(repo_id, file, folders=folders):
        return path
    if is_offline(offline):
        raise _unavailable(repo_id, "offline mode is on", family, expected)
    _check_reachable(repo_id, family, expected)
    try:
        return _download(repo_id, file, folders)
    except Exception as error:
        raise _unavailable(repo_id, _reason(error), family, expected) from error


def unpublished(entry: Entry) -> DistillDepthError:
    """Return the error of a model that is not on this machine and that no repository on the hub has."""
    name = entry.files[0]
    return DistillDepthError(
        f"load_model: no weights of '{entry.name}' on this machine, and the hub has none; get {name} from "
        f"{entry.page}, put it at {checkpoint_folders()[0] / name} or name it {entry.family}@FILE, or use the bundled "
        f"'{bundled_alternative(entry.family)}'"
    )


def _check_reachable(repo_id: str, family: str, expected: tuple[str, ...]) -> None:
    """One short question before any download: the hub client alone would retry for minutes."""
    global _unreachable_since
    if _unreachable_since is not None and time.monotonic() - _unreachable_since < RETRY_SECONDS:
        raise _unavailable(repo_id, "the hub could not be reached a moment ago", family, expected)
    try:
        _within(PROBE_SECONDS, lambda: _probe(repo_id))
        _unreachable_since = None
    except Exception as error:
        reason = _reason(error)
        if reason.startswith("the hub cannot be reached"):
            _unreachable_since = time.monotonic()
        raise _unavailable(repo_id, reason, family, expected) from error


def _probe(repo_id: str) -> None:
    from huggingface_hub import HfApi

    HfApi().model_info(repo_id, timeout=PROBE_SECONDS / 2)


def _download(repo_id: str, file: str, folders: tuple[str, ...]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    if file:
        return Path(hf_hub_download(repo_id, file, etag_timeout=PROBE_SECONDS))
    listed = HfApi().list_repo_files(repo_id)
    wanted = []
    for folder in folders or ("",):
        prefix = f"{folder}/" if folder else ""
        names = [name for name in listed if name.startswith(prefix) and "/" not in name[len(prefix) :]]
        # one format only: the same weights are often there twice and more, also as half precision variants
        weights = [name for name in names if name.endswith(".safetensors") and ".fp16." not in name]
        weights = weights or [name for name in names if name.endswith(".bin") and ".fp16." not in name]
        wanted += weights + [name for name in names if name.endswith((".json", ".txt"))]
    return Path(snapshot_download(repo_id, allow_patterns=wanted, etag_timeout=PROBE_SECONDS))


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Run `function`, but wait no longer than `seconds`: name look-up has no timeout of its own."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True, name="hub-probe")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the repository is gated: accept its terms on the hub and run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository"
    if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", 0) < 500:
        return f"the hub answered {error.response.status_code}"
    return f"the hub cannot be reached: {one_line(error, 120)}"


def _unavailable(repo_id: str, reason: str, family: str, expected: tuple[str, ...]) -> DistillDepthError:
    names = expected or (repo_id.partition("/")[2] or repo_id,)
    places = " or ".join(str(checkpoint_folders()[0] / name) for name in names)
    return DistillDepthError(
        f"load_model: no weights of '{repo_id}' on this machine, and {reason}; "
        f"put them at {places}, or use the bundled '{bundled_alternative(family)}'"
    )


def _cache_folder() -> Path:
    if path := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expand_user(path)
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return expand_user(home) / "hub"


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, at its top or in one of a diffusers repository's sub-folders."""
    return any(path.suffix in _WEIGHT_SUFFIXES for pattern in ("*", "*/*") for path in folder.glob(pattern))
