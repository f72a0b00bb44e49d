"""Training a student from its teachers: configuration, what is built for it, loop, and what comes after.

What the terms of the objective weigh are functions in `distilldepth.losses`; who teaches is `distilldepth.teachers`.
"""

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
