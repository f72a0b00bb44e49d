"""The line to type that starts a run again as it was started: by itself, by torchrun or by accelerate."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from distilldepth.distill.config import DistillConfig

_LAUNCHERS = ("torchrun", "accelerate")


def continuing(config: DistillConfig, *words: str, afresh: bool = False) -> str:
    """Return the line that continues a run from its last checkpoint, by as many processes as it has.

    What runs code no file may name, so that stands in the line too.

    Args:
        config: of the run.
        words: further ones, which change something.
        afresh: start again instead, since there is no checkpoint.
    """
    going_on = ["--overwrite"] if afresh else ["--resume", "auto"]
    typed = [word for text in config.labels if text.startswith("pipe:") for word in ("--labels", text)]
    if "python:" in config.teachers:
        typed += ["--teachers", config.teachers]
    file = str(Path(config.out, "config.toml"))
    return shlex.join([*_start(), "distill", "--config", file, *going_on, *typed, *words])


def is_launched() -> bool:
    """Whether this is one of several processes that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _start() -> list[str]:
    if not is_launched():
        return ["distilldepth"]
    typed = _of_parent()
    if typed and len(sys.argv) > 1 and typed[-len(sys.argv) + 1 :] == sys.argv[1:]:
        typed = typed[: -len(sys.argv) + 1]
        if len(typed) > 1 and Path(typed[1]).name in _LAUNCHERS:
            name = Path(typed[1]).name
            return [name if shutil.which(name) == typed[1] else typed[1], *typed[2:]]
        return typed
    return ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "distilldepth"]


def _of_parent() -> list[str]:
    """The command line of the process that started this one, empty where the system does not tell."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]
