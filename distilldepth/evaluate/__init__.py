"""Scoring a model against measured or rendered depth."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "evaluate": "distilldepth.evaluate.run",
    "Evaluation": "distilldepth.evaluate.result",
    "read_evaluation": "distilldepth.evaluate.result",
    "open_data": "distilldepth.evaluate.data",
    "StoredPredictions": "distilldepth.evaluate.predictions",
    "bootstrap_interval": "distilldepth.evaluate.statistics",
    "compare": "distilldepth.evaluate.statistics",
    "Comparison": "distilldepth.evaluate.statistics",
    "Protocol": "distilldepth.evaluate.protocol",
    "PROTOCOLS": "distilldepth.evaluate.protocol",
    "choose_protocol": "distilldepth.evaluate.protocol",
    "load_baseline": "distilldepth.evaluate.baselines",
    "BASELINES": "distilldepth.evaluate.baselines",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can list protocols without importing torch.
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'distilldepth.evaluate' has no attribute '{name}'")
