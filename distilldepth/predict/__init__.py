"""Depth for files: readers, writers, colours and point clouds."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "predict_files": "distilldepth.predict.run",
    "PredictReport": "distilldepth.predict.run",
    "plan_jobs": "distilldepth.predict.plan",
    "Job": "distilldepth.predict.plan",
    "colorize": "distilldepth.formats.colormaps",
    "COLORMAPS": "distilldepth.formats.colormaps",
    "read_depth_png": "distilldepth.formats.png",
    "write_depth_png": "distilldepth.formats.png",
    "write_color_png": "distilldepth.formats.png",
    "write_npy": "distilldepth.formats.npy",
    "PointCloudOptions": "distilldepth.formats.point_cloud",
    "write_point_cloud": "distilldepth.formats.point_cloud",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can read the names of the colour maps without importing torch.
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'distilldepth.predict' has no attribute '{name}'")
