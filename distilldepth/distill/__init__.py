"""Training a student from its teachers: configuration, loop, checkpoints, report."""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "DistillConfig": "distilldepth.distill.config",
    "load_config": "distilldepth.distill.config",
    "RunResult": "distilldepth.distill.record.result",
    "distill": "distilldepth.distill.trainer",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
