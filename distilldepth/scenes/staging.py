"""What the layouts share: the plan of a scene, lights, and putting objects where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distilldepth.scenes import clutter
from distilldepth.scenes.builder import Builder, Draw, Point, Surface

Item = Callable[[Builder], object]
"""Draws a thing at the local frame."""
Size = tuple[float, float, float]
"""Width, depth and height."""
Spot = tuple[float, float, float, float]
"""x, y, z and yaw."""


@dataclass
class Light:
    """A light: at a point (with fall-off) or, if `distant`, from the direction `at`; `colour` is linear."""

    at: Point
    colour: Point
    distant: bool = False
    reach: float = 3.0


@dataclass
class Plan:
    """A built scene and how to look at it: `aim` proposes a camera position and a target."""

    aim: Callable[[Draw], tuple[Point, Point]]
    lights: list[Light]
    ambient: Point
    bounds: tuple[float, ...] | None = None  # of the room, for the darkening in corners
    outdoor: bool = False
    field_of_view: tuple[float, float] = (48.0, 72.0)
    baseline: tuple[float, float] = (0.05, 0.15)
    shell: set[int] = field(default_factory=set)  # rows that cast no shadow (walls and ceiling)
    steep: tuple[float, float] | None = None  # how far the camera may look down, radians; None: as people do
    roll: float = 0.0  # the camera may be turned about its axis by so many radians, on top of a little
    clearance: float = 0.28  # metres from the camera to any object
    relief: float = 1.27  # least ratio of far to near depth (95th to 5th percentile)
    shallow: float = 0.1  # share of pictures with a shallow depth of field


def warm(draw: Draw, power: float, spread: float = 0.18) -> Point:
    t = draw(-spread, spread)
    return power * (1 + t), power, power * (1 - t)


def scatter(
    b: Builder, surface: Surface, density: float, items: Sequence[tuple[float, Item]] = clutter.CLUTTER
) -> list[Point]:
    """Put things on a surface; returns where, in the world."""
    draw = b.draw
    group, x0, x1, y0, y1, z, room = surface
    if x1 <= x0 or y1 <= y0:
        return []
    count = min(int((x1 - x0) * (y1 - y0) * density * draw(0.5, 1.5) + draw.unit()), 22)
    if (y1 - y0) < 0.35:
        count = int((x1 - x0) * density * 0.35 * draw(0.4, 1.6) + draw.unit())
    spots: list[tuple[float, float]] = []
    gap = draw(0.11, 0.2)
    b.resume(group)
    for _ in range(count):
        for _ in range(4):
            x, y = draw(x0, x1), draw(y0, y1)
            if all((x - p) ** 2 + (y - q) ** 2 > gap * gap for p, q in spots):
                spots.append((x, y))
                b.at(x, y, z, draw(-0.6, 0.6) if draw.chance(0.7) else draw(-3.14, 3.14))
                draw.weighted(clutter.SMALL if room < 0.5 else items)(b)
                break
    b.resume(0)
    return [b.world(group, x, y, z + 0.08) for x, y in spots]


class Floor:
    """Footprints taken so far, to keep furniture apart."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float, float, float]] = []

    def free(self, x0: float, x1: float, y0: float, y1: float) -> bool:
        return all(x1 <= a or x0 >= c or y1 <= e or y0 >= g for a, c, e, g in self.taken)


def put(
    b: Builder,
    make: Callable[[Builder], Size],
    floor: Floor,
    place: Spot | Callable[[Size], Spot],
    limits: tuple[float, float, float, float] | None = None,
) -> Point | None:
    """Draw an object in its own group and place it at a spot, maybe by its size; undone if the floor is taken."""
    rows, surfaces = len(b.rows), len(b.surfaces)
    group = b.begin()
    size = make(b)
    x, y, z, yaw = place(size) if callable(place) else place
    b.place(group, x, y, z, yaw)
    c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
    hx, hy = (c * size[0] + s * size[1]) / 2, (s * size[0] + c * size[1]) / 2
    out = limits is not None and (x - hx < limits[0] or x + hx > limits[1] or y - hy < limits[2] or y + hy > limits[3])
    if out or not floor.free(x - hx, x + hx, y - hy, y + hy):
        del b.rows[rows:], b.surfaces[surfaces:]
        return None
    floor.taken.append((x - hx, x + hx, y - hy, y + hy))
    return x, y, z + size[2] * b.draw(0.3, 0.9)


def look_at(
    draw: Draw, target: Point, low: float, high: float, heights: tuple[float, float], angle: tuple[float, float]
) -> Point:
    """A point at a (log-uniform) distance from the target, in a sector of directions, at a height above zero."""
    r, a = draw.log(low, high), draw(*angle)
    return target[0] + r * math.cos(a), target[1] + r * math.sin(a), draw(*heights)


def scaled(b: Builder, make: Item, factor: float) -> None:
    """Draw a thing at the local frame, `factor` times as large."""
    first = len(b.rows)
    make(b)
    ax, ay, az = b.origin
    for i in range(first, len(b.rows)):
        kind, x, y, z, hx, hy, hz, *rest = b.rows[i]
        middle = ax + (x - ax) * factor, ay + (y - ay) * factor, az + (z - az) * factor
        b.rows[i] = (kind, *middle, hx * factor, hy * factor, hz * factor, *rest)


def coloured(draw: Draw, light: Light) -> Light:
    """Now and then the light of a coloured lamp."""
    if draw.chance(0.08):
        power = max(light.colour)
        light.colour = power * draw(0.25, 1), power * draw(0.25, 1), power * draw(0.25, 1)
    return light


def room_light(
    b: Builder, w: float, d: float, h: float, lamps: list[Point], sunny: bool
) -> tuple[list[Light], Point, bool]:
    """Main light first, ambient, and whether the walls cast shadows (sun through a window)."""
    draw = b.draw
    ambient = warm(draw, draw(0.3, 0.75), 0.12)
    fill = Light((draw(-1, 1), draw(-1, 1), draw(0.1, 1)), warm(draw, draw(0, 0.35)), distant=True)
    if sunny and draw.chance(0.3):
        sun = Light((draw(-1, 1), draw(-1, 1), draw(0.3, 0.9)), warm(draw, draw(2.0, 4.0), 0.1), distant=True)
        return [sun, fill], ambient, True
    if draw.chance(0.25):  # light from a side, as of a large window
        side = Light((draw(-1, 1), draw(-1, 1), draw(0.25, 0.9)), warm(draw, draw(0.3, 1.0)), distant=True)
        return [side, fill], ambient, False
    at = (
        draw.pick(lamps)
        if lamps and draw.chance(0.8)
        else (draw(-w / 2.5, w / 2.5), draw(-d / 2.5, d / 2.5), h * draw(0.7, 0.97))
    )
    lights = [coloured(draw, Light(at, warm(draw, draw(0.6, 2.0)), reach=draw(1.0, 5.0))), fill]
    if draw.chance(0.4):
        lights.append(
            Light(
                (draw(-w / 2.2, w / 2.2), draw(-d / 2.2, d / 2.2), h * draw(0.4, 0.9)),
                warm(draw, draw(0.2, 1.0), 0.3),
                reach=draw(0.7, 2),
            )
        )
    return lights, ambient, False


def daylight(b: Builder) -> tuple[list[Light], Point]:
    draw = b.draw
    sunny = draw.chance(0.65)
    sun = Light(
        (draw(-1, 1), draw(-1, 1), draw(0.3, 1.2)),
        warm(draw, draw(1.2, 2.8) if sunny else draw(0.1, 0.4), 0.12),
        distant=True,
    )
    if draw.chance(0.12):  # late light: low and yellow
        x, y, _ = sun.at
        sun.at, sun.colour = (x, y, draw(0.08, 0.3)), (draw(1.5, 3.5), draw(0.9, 1.8), draw(0.3, 0.8))
    sky = draw(0.35, 0.7)
    return [sun], (sky * 0.92, sky, sky * draw(1.0, 1.15))
