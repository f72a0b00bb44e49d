"""Training a student from its teachers: configuration, loop, checkpoints, report."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "DistillConfig": "distilldepth.distill.config",
    "load_config": "distilldepth.distill.config",
    "RunResult": "distilldepth.distill.trainer",
    "distill": "distilldepth.distill.trainer",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a configuration does not import torch.
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'distilldepth.distill' has no attribute '{name}'")
