"""Depth models: one protocol, one file per family, `load_model` for all of them.

Names are imported at first use, so that the registry can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "BundledModelWarning": "distilldepth.models.load",
    "CheckpointWarning": "distilldepth.models.load",
    "DepthModel": "distilldepth.models.base",
    "DepthOutput": "distilldepth.models.base",
    "ModelInfo": "distilldepth.models.base",
    "Prediction": "distilldepth.models.base",
    "Preprocessing": "distilldepth.models.preprocess",
    "count_parameters": "distilldepth.models.load",
    "create_student": "distilldepth.models.load",
    "describe": "distilldepth.models.registry",
    "load_model": "distilldepth.models.load",
    "model_digest": "distilldepth.models.digest",
    "save_model": "distilldepth.models.load",
    "student_names": "distilldepth.models.registry",
    "teacher_names": "distilldepth.models.registry",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'distilldepth.models' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
