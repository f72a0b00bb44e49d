"""What `--images` reads: files, folders, patterns, lists and tar shards as photographs, and the regions cut from them.

Depth that belongs to a photograph is the business of `distilldepth.datasets`.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "ImageSource": "distilldepth.images.sources",
    "open_source": "distilldepth.images.sources",
    "read_image": "distilldepth.images.decode",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
