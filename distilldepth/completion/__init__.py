"""`distilldepth complete`: dense depth for photographs of which some pixels' depth is known.

The room is not called `complete`, since that is the function that `distilldepth` offers.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "complete": "distilldepth.completion.single",
    "complete_files": "distilldepth.completion.run",
    "CompleteOptions": "distilldepth.completion.run",
    "CompleteReport": "distilldepth.completion.run",
    "pair_jobs": "distilldepth.completion.pairs",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
