"""The kinds of scene: the share of each, and its layout."""

from __future__ import annotations

from collections.abc import Callable

from distilldepth.scenes.builder import Builder
from distilldepth.scenes.indoor import corridor, desk, room
from distilldepth.scenes.outdoor import pile, street, terrain
from distilldepth.scenes.staging import Plan

LAYOUTS: dict[str, tuple[float, Callable[[Builder], Plan]]] = {
    "room": (0.35, room),
    "desk": (0.25, desk),
    "corridor": (0.10, corridor),
    "street": (0.15, street),
    "terrain": (0.08, terrain),
    "pile": (0.07, pile),
}
