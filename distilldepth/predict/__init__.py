"""`distilldepth predict`: depth for files of images.

Which image becomes which files, and what may be left as it is, is the business of `distilldepth.outputs`; how a map is
written that of `distilldepth.formats`.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "predict_files": "distilldepth.predict.run",
    "PredictOptions": "distilldepth.predict.run",
    "PredictReport": "distilldepth.predict.run",
    "plan_jobs": "distilldepth.outputs.plan",
    "Job": "distilldepth.outputs.plan",
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
