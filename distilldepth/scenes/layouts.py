"""The kinds of scene: the share of each, and its layout."""

from __future__ import annotations

from collections.abc import Callable

from distilldepth.scenes.builder import Builder
from distilldepth.scenes.closeups import corner, still_life, tabletop
from distilldepth.scenes.indoor import corridor, desk, room
from distilldepth.scenes.nature import nature
from distilldepth.scenes.outdoor import pile, street, terrain
from distilldepth.scenes.roads import road
from distilldepth.scenes.staging import Plan

LAYOUTS: dict[str, tuple[float, Callable[[Builder], Plan]]] = {
    "room": (0.175, room),
    "desk": (0.125, desk),
    "corridor": (0.05, corridor),
    "street": (0.075, street),
    "terrain": (0.04, terrain),
    "pile": (0.035, pile),
    "tabletop": (0.14, tabletop),
    "still_life": (0.12, still_life),
    "corner": (0.05, corner),
    "road": (0.11, road),
    "nature": (0.08, nature),
}
