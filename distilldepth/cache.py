"""The folder for what can be made again: rendered scenes, encoded prompts, compiled libraries."""

from __future__ import annotations

import os
from pathlib import Path

from distilldepth.files import expand_user


def cache_folder() -> Path:
    """Return `DISTILLDEPTH_CACHE`, or `~/.cache/distilldepth`. It need not exist yet."""
    return expand_user(os.environ.get("DISTILLDEPTH_CACHE") or "~/.cache/distilldepth")
