"""Depth models: one protocol, one file per family, `load_model` for all of them; what they see of an image, and their
names, files and folders. Running one over many images is in `inference`, training one in `distill`.

Names are imported at first use, so that the registry can be read without importing torch.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "AttentionAdapter": "distilldepth.models.attention_adapter",
    "BundledModelWarning": "distilldepth.models.load",
    "CheckpointWarning": "distilldepth.models.load",
    "DepthModel": "distilldepth.models.base",
    "DepthOutput": "distilldepth.models.base",
    "ModelInfo": "distilldepth.models.base",
    "Prediction": "distilldepth.models.base",
    "Preprocessing": "distilldepth.models.preprocess",
    "count_parameters": "distilldepth.models.base",
    "create_student": "distilldepth.models.load",
    "describe": "distilldepth.models.inventory",
    "load_model": "distilldepth.models.load",
    "model_digest": "distilldepth.models.digest",
    "save_model": "distilldepth.models.saved",
    "student_names": "distilldepth.models.registry",
    "teacher_names": "distilldepth.models.registry",
    "with_uncertainty": "distilldepth.models.uncertainty",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
