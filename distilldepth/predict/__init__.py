"""`distilldepth predict`: depth for files of images; which image becomes which files, and what may be left as it is.

How a map is written is the business of `distilldepth.formats`.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "predict_files": "distilldepth.predict.run",
    "PredictOptions": "distilldepth.predict.run",
    "PredictReport": "distilldepth.predict.run",
    "plan_jobs": "distilldepth.predict.plan",
    "Job": "distilldepth.predict.plan",
    "colorize": "distilldepth.formats.colormaps",
    "COLORMAPS": "distilldepth.formats.colormaps",
    "read_depth_png": "distilldepth.formats.png",
    "write_depth_png": "distilldepth.formats.png",
    "write_color_png": "distilldepth.formats.png",
    "write_npy": "distilldepth.formats.npy",
    "PointCloudOptions": "distilldepth.formats.options",
    "write_point_cloud": "distilldepth.formats.point_cloud",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
