"""Distil big monocular depth estimators into small, fast students.

`import distilldepth` is cheap: torch and the model libraries are imported at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "alignment",
    "completion",
    "datasets",
    "depth",
    "distill",
    "evaluate",
    "images",
    "losses",
    "metrics",
    "models",
    "ops",
    "predict",
    "reference",
    "scenes",
)
_NAMES = {
    "load_model": "distilldepth.models",
    "save_model": "distilldepth.models",
    "complete": "distilldepth.completion",
    "Prediction": "distilldepth.models",
    "DepthModel": "distilldepth.models",
    "DistillDepthError": "distilldepth.errors",
}

__all__ = [*_SUBMODULES, *_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"distilldepth.{name}")
    raise AttributeError(f"module 'distilldepth' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
