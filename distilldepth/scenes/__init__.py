"""Procedural scenes by ray casting: RGB, metric depth, intrinsics and the second view of a rectified stereo pair.

Everything follows from a seed: rooms and their corners, desks, corridors and stairs, table tops from above, still
lifes, streets and roads, gardens and open country, piles of objects, with natural and odd textures, lights with
shadows, and a camera's faults. Depth is measured along the optical axis in metres; the
sky is inf. Images that somebody else has are the business of `distilldepth.images`.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "KINDS": "distilldepth.scenes.render",
    "RENDERER_VERSION": "distilldepth.scenes.render",
    "Scene": "distilldepth.scenes.render",
    "SceneSource": "distilldepth.scenes.source",
    "render_scene": "distilldepth.scenes.render",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
