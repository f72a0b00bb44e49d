"""`distilldepth evaluate`: scoring a model against measured or rendered depth, by a protocol that is written out.

Reading datasets is the business of `distilldepth.datasets`, running a model of `distilldepth.inference`, the scores
themselves of `distilldepth.metrics`. What an evaluation reads from and writes to disk is in `record`.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "evaluate": "distilldepth.evaluate.run",
    "EvaluateOptions": "distilldepth.evaluate.options",
    "Evaluation": "distilldepth.evaluate.record.result",
    "read_evaluation": "distilldepth.evaluate.record.result",
    "open_data": "distilldepth.datasets.open",
    "StoredPredictions": "distilldepth.evaluate.predictions",
    "bootstrap_interval": "distilldepth.evaluate.statistics",
    "compare": "distilldepth.evaluate.compare",
    "Comparison": "distilldepth.evaluate.compare",
    "Protocol": "distilldepth.evaluate.protocol",
    "PROTOCOLS": "distilldepth.evaluate.protocol",
    "choose_protocol": "distilldepth.evaluate.protocol",
    "load_baseline": "distilldepth.evaluate.baselines",
    "BASELINES": "distilldepth.evaluate.baselines",
    "COMPLETION_BASELINES": "distilldepth.evaluate.completing",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
