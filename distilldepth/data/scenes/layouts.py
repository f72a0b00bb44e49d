"""Layouts of whole scenes: what stands where, the light, and where a person with a camera would stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distilldepth.data.scenes import furniture as f
from distilldepth.data.scenes.builder import (
    BRICKS, EARTHS, GREENS, PLASTICS, TARMACS, WALLS, WHITE, Builder, Draw, tilted,
)  # fmt: skip
from distilldepth.data.scenes.geometry import terrain_height

Point = tuple[float, float, float]


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


def warm(draw: Draw, power: float, spread: float = 0.18) -> Point:
    t = draw(-spread, spread)
    return power * (1 + t), power, power * (1 - t)


def clutter(b: Builder, surface: tuple, density: float, items=f.CLUTTER) -> list[Point]:
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
                draw.weighted(f.SMALL if room < 0.5 else items)(b)
                break
    b.resume(0)
    return [b.world(group, x, y, z + 0.08) for x, y in spots]


def wall(b: Builder, length: float, height: float, material: int, *, openings: bool = True) -> bool:
    """A wall in the current group: along x, its face at y = 0, the room at y < 0. Returns whether it has a window."""
    draw = b.draw
    x0, x1 = -length / 2, length / 2
    window = False
    if openings and draw.chance(0.45) and length > 1.8:
        door = draw.chance(0.4)
        w = draw(0.75, 1.0) if door else draw(0.7, min(2.4, length - 0.6))
        a = draw(x0 + 0.15, x1 - 0.15 - w)
        low, top = (0.0, 2.05) if door else (draw.pick((draw(0.05, 0.3), draw(0.7, 1.1))), draw(1.9, height - 0.15))
        c = a + w
        b.block(x0, a, 0, 0.15, 0, height, material)
        b.block(c, x1, 0, 0.15, 0, height, material)
        b.block(a, c, 0, 0.15, top, height, material)
        if low > 0:
            b.block(a, c, 0, 0.15, 0, low, material)
        trim = b.stuff("plain", WALLS, (0.5, 1), 0.1)
        for x in (a, c):
            b.block(x - 0.04, x + 0.04, -0.015, 0.15, low, top + 0.04, trim)
        b.block(a, c, -0.015, 0.15, top - 0.04, top + 0.04, trim)
        if door and draw.chance(0.5):
            b.block(a, c, 0.04, 0.08, 0, top, b.panel())
        elif door:  # a look into the next room
            depth = draw(0.8, 4.0)
            b.block(a - 2, c + 2, depth, depth + 0.1, 0, height, b.wall())
            s = draw.sign()
            b.block(a - 0.1 + (w + 0.1 if s > 0 else 0), a + (w + 0.1 if s > 0 else 0), 0.15, depth, 0, height, b.wall())
            if draw.chance(0.4):
                b.box(a + w / 2 + s * 0.45 * w, 0.5, 1.02, 0.02, 0.38, 1.02, b.panel(), tilted(draw(-0.3, 0.3), 0))
        else:
            window = True
            b.block(a, c, -0.03, 0.15, low - 0.03, low, trim)
            view = draw.pick((0.1, 0.12, 0.3, draw(1.0, 5.0)))
            spread = view * 1.5
            bright = draw.log(0.6, 4.0)
            sight = b.print(draw.pick(("landscape", "landscape", "facade", "cloud", "leaves")), emit=bright)
            b.block(a - spread, c + spread, view, view + 0.02, low - spread, top + spread, sight)
            for i in range(1, draw.integer(1, 4)):
                x = a + i * w / 3
                b.block(x - 0.025, x + 0.025, 0.03, 0.08, low, top, trim)
            if draw.chance(0.3):
                b.block(a, c, 0.03, 0.08, (low + top) / 2, (low + top) / 2 + 0.05, trim)
            if draw.chance(0.25):
                b.block(a, c, 0.01, 0.03, low + draw(0, 1) * (top - low), top, b.print("blinds", emit=draw(0, 0.8)))
            if draw.chance(0.5):
                curtain(b, a, c, top)
    else:
        b.block(x0, x1, 0, 0.15, 0, height, material)
    return window


def curtain(b: Builder, a: float, c: float, top: float) -> None:
    draw = b.draw
    m = b.stuff("folds", ((0.75, 0.72, 0.68), (0.5, 0.45, 0.4), (0.85, 0.85, 0.82), (0.4, 0.3, 0.3)), (0.3, 0.9), 0.35, accent=0.1)
    low = draw.pick((0.03, draw(0.5, 0.8)))
    for x0, x1 in ((a - 0.25, a + draw(0.05, 0.5)), (c - draw(0.05, 0.5), c + 0.25)):
        if draw.chance(0.4):  # real folds
            n = max(3, int((x1 - x0) / 0.07))
            for i in range(n):
                x = x0 + (i + 0.5) * (x1 - x0) / n
                b.ball(x, -0.08 + 0.02 * (i % 2), (low + top) / 2 + 0.1, 0.05, 0.05, (top - low) / 2 * 1.25, m)
        b.block(x0, x1, -0.1, -0.06, low, top + 0.12, m)


def decorate(b: Builder, length: float, height: float, amount: float) -> None:
    """Things that hang on a wall (same frame as `wall`)."""
    draw = b.draw
    if draw.chance(0.6):
        z = draw(0.05, 0.12)
        b.block(-length / 2, length / 2, -0.015, 0, 0, z, b.stuff("plain", WALLS + ((0.3, 0.2, 0.14),), (0.5, 1), 0.1))
    if draw.chance(0.08):
        z = draw(0.8, 1.2)
        b.block(-length / 2, length / 2, -0.02, 0, 0, z, b.wood())
    for _ in range(int(amount * length * draw(0, 0.9) + draw.unit())):
        x = draw(-length / 2 + 0.3, length / 2 - 0.3) if length > 0.8 else 0.0
        z = draw(1.1, 1.9)
        what = draw.unit()
        if what < 0.5:
            w, h = draw.log(0.12, 0.6), draw.log(0.12, 0.5)
            t = draw(0.005, 0.03)
            m = b.print(draw.pick(("poster", "poster", "landscape", "text")))
            if draw.chance(0.5):
                b.block(x - w - 0.03, x + w + 0.03, -t, 0, z - h - 0.03, z + h + 0.03, b.wood())
            b.block(x - w, x + w, -t - 0.005, 0, z - h, z + h, m)
        elif what < 0.62:  # a cluster of sheets
            for _ in range(draw.integer(3, 9)):
                w, h = draw(0.07, 0.2), draw(0.1, 0.22)
                u, v = x + draw(-0.6, 0.6), z + draw(-0.5, 0.4)
                b.block(u - w, u + w, -0.004, 0, v - h, v + h, b.print(draw.pick(("text", "poster"))))
        elif what < 0.8:  # a board with things on it
            w, d = draw(0.25, 0.7), draw(0.15, 0.28)
            b.block(x - w, x + w, -d, 0, z - 0.03, z, b.wood())
            for sx in (-0.8, 0.8):
                b.block(x + sx * w - 0.01, x + sx * w + 0.01, -d * 0.8, 0, z - 0.14, z - 0.03, b.metal())
            b.surface(x - w, x + w, -d + 0.05, -0.03, z, 0.45)
        elif what < 0.86:
            r = draw(0.1, 0.2)
            b.rod((x, 0, z), (x, -0.03, z), r, b.plastic(0.1))
            b.rod((x, -0.02, z), (x, -0.034, z), r * 0.88, b.print("text"))
        elif what < 0.93:  # a whiteboard or blackboard
            w, h = draw(0.5, 1.2), draw(0.4, 0.6)
            b.block(x - w, x + w, -0.03, 0, z - h, z + h, b.metal())
            dark = draw.chance(0.3)
            m = b.paint("marble" if dark else "text", (0.1, 0.16, 0.13) if dark else (0.3, 0.3, 0.4),
                        (0.2, 0.26, 0.22) if dark else WHITE, 0.9, gloss=0.2)  # fmt: skip
            b.block(x - w + 0.03, x + w - 0.03, -0.032, 0, z - h + 0.03, z + h - 0.03, m)
        else:  # a cupboard on the wall
            w, h, d = draw(0.25, 0.6), draw(0.2, 0.4), draw(0.2, 0.35)
            b.block(x - w, x + w, -d, 0, z + 0.2 - h, z + 0.2 + h, b.panel())


def ceiling_things(b: Builder, w: float, d: float, h: float) -> list[Point]:
    """Lamps at or from the ceiling; returns their positions."""
    draw = b.draw
    out: list[Point] = []
    style = draw.unit()
    glow = b.paint("plain", (0.9, 0.85, 0.75), WHITE, emit=draw.log(0.8, 4))
    for _ in range(draw.integer(0, 3)):
        x, y = draw(-w / 2 + 0.4, w / 2 - 0.4), draw(-d / 2 + 0.4, d / 2 - 0.4)
        if style < 0.35:
            low = h - draw(0.3, 1.1)
            b.tube(x, y, low, h, 0.008, b.plastic(0))
            r = draw(0.12, 0.28)
            if draw.chance(0.5):
                b.ball(x, y, low, r, r, r * draw(0.5, 1), glow)
            else:
                b.tube(x, y, low - 0.15, low + 0.1, r, b.thing(), -0.7)
            out.append((x, y, low - 0.3))
        elif style < 0.7:
            b.block(x - 0.3, x + 0.3, y - 0.3, y + 0.3, h - 0.03, h, glow)
            out.append((x, y, h - 0.15))
        else:
            b.tube(x, y, h - 0.05, h, 0.09, glow)
            out.append((x, y, h - 0.15))
    if draw.chance(0.12):
        x, m = draw(-w / 3, w / 3), b.wood()
        for i in range(draw.integer(1, 4)):
            b.block(x - 0.08 + i * 0.8, x + 0.08 + i * 0.8, -d / 2, d / 2, h - 0.18, h, m)
    return out


class Floor:
    """Footprints taken so far, to keep furniture apart."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float, float, float]] = []

    def free(self, x0: float, x1: float, y0: float, y1: float) -> bool:
        return all(x1 <= a or x0 >= c or y1 <= e or y0 >= g for a, c, e, g in self.taken)


def put(b: Builder, make, floor: Floor, place, limits: tuple[float, float, float, float] | None = None):
    """Draw an object in a group of its own and place it by `place(size) -> x, y, z, yaw`; undone if the floor is taken."""
    rows, surfaces = len(b.rows), len(b.surfaces)
    group = b.begin()
    size = make(b)
    x, y, z, yaw = place(size)
    b.place(group, x, y, z, yaw)
    c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
    hx, hy = (c * size[0] + s * size[1]) / 2, (s * size[0] + c * size[1]) / 2
    out = limits is not None and (x - hx < limits[0] or x + hx > limits[1] or y - hy < limits[2] or y + hy > limits[3])
    if out or not floor.free(x - hx, x + hx, y - hy, y + hy):
        del b.rows[rows:], b.surfaces[surfaces:]
        return None
    floor.taken.append((x - hx, x + hx, y - hy, y + hy))
    return x, y, z + size[2] * b.draw(0.3, 0.9)


def look_at(draw: Draw, target: Point, low: float, high: float, heights: tuple[float, float], angle: tuple[float, float]) -> Point:
    """A point at a (log-uniform) distance from the target, in a sector of directions, at a height above zero."""
    r, a = draw.log(low, high), draw(*angle)
    return target[0] + r * math.cos(a), target[1] + r * math.sin(a), draw(*heights)


def room_light(b: Builder, w: float, d: float, h: float, lamps: list[Point], sunny: bool) -> tuple[list[Light], Point, bool]:
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
    at = draw.pick(lamps) if lamps and draw.chance(0.8) else (draw(-w / 2.5, w / 2.5), draw(-d / 2.5, d / 2.5), h * draw(0.7, 0.97))
    lights = [Light(at, warm(draw, draw(0.6, 2.0)), reach=draw(1.0, 5.0)), fill]
    if draw.chance(0.4):
        lights.append(Light((draw(-w / 2.2, w / 2.2), draw(-d / 2.2, d / 2.2), h * draw(0.4, 0.9)), warm(draw, draw(0.2, 1.0), 0.3), reach=draw(0.7, 2)))
    return lights, ambient, False


def shell(b: Builder, w: float, d: float, h: float, decor: float, sides: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[bool, set[int]]:
    """Floor, ceiling and walls of a room about the origin. Returns whether there is a window, and the walls' rows."""
    draw = b.draw
    rows: set[int] = set()
    b.resume(0)
    main, second = b.wall(), b.wall()
    far = 6.0
    b.block(-w / 2 - far, w / 2 + far, -d / 2 - far, d / 2 + far, -0.1, 0, b.floor())
    rows.add(len(b.rows))
    b.block(-w / 2 - 0.15, w / 2 + 0.15, -d / 2 - 0.15, d / 2 + 0.15, h, h + 0.1, b.stuff(draw.weighted(((4, "plain"), (1, "tiles"),
            (1, "plaster"), (0.4, "planks"))), WALLS[:3], (0.8, 2.4), 0.08))  # fmt: skip
    window = False
    for side in sides:
        length = d if side % 2 else w
        start = len(b.rows)
        group = b.begin()
        window |= wall(b, length, h, main if draw.chance(0.75) else second)
        rows.update(range(start, len(b.rows)))
        decorate(b, length, h, decor)
        x, y = ((0, d / 2), (-w / 2, 0), (0, -d / 2), (w / 2, 0))[side]
        b.place(group, x, y, 0, (0, math.pi / 2, math.pi, -math.pi / 2)[side])
    return window, rows


def room(b: Builder) -> Plan:
    draw = b.draw
    w, d, h = draw(2.6, 7.5), draw(2.6, 7.5), draw(2.3, 3.1)
    window, walls = shell(b, w, d, h, draw(0.1, 0.8))
    lamps = ceiling_things(b, w, d, h)
    floor = Floor()
    points: list[Point] = []
    full = draw(0.45, 1.0)
    for side in range(4):
        length, other = (d, w) if side % 2 else (w, d)
        yaw = (0, math.pi / 2, math.pi, -math.pi / 2)[side]
        x = -length / 2 + draw(0, 0.8)
        for _ in range(7):
            if x > length / 2 - 0.3:
                break
            if not draw.chance(full):
                x += draw(0.3, 1.2)
                continue
            span: list[float] = []

            def place(size, x=x, other=other, yaw=yaw, span=span):
                span.append(size[0])
                u, v = x + size[0] / 2, other / 2 - size[1] / 2 - draw(0.01, 0.12)
                turn = draw(-0.5, 0.5) if size[0] < 0.6 else draw(-0.03, 0.03)
                c, s = math.cos(yaw), math.sin(yaw)
                return c * u - s * v, s * u + c * v, 0.0, yaw + turn

            limits = (-w / 2 - 0.1, w / 2 + 0.1, -d / 2 - 0.1, d / 2 + 0.1)
            at = put(b, draw.weighted(f.ALONG_WALLS), floor, place, limits)
            if at:
                points.append(at)
            x += (span[0] if at else 0.3) + draw(0.0, 0.5)
    limits = (-w / 2 + 0.1, w / 2 - 0.1, -d / 2 + 0.1, d / 2 - 0.1)
    for _ in range(draw.integer(0, 3)):  # tables with chairs, and single pieces in the middle
        cx, cy, yaw = draw(-w / 3, w / 3), draw(-d / 3, d / 3), draw(-0.3, 0.3) + draw.pick((0, 1.5708))
        low = draw.chance(0.35)
        make = (lambda b: f.table(b, None, None, draw(0.35, 0.5))) if low else draw.pick((f.table, f.table, f.chair, f.sofa, f.boxes, f.plant))
        at = put(b, make, floor, lambda size, cx=cx, cy=cy, yaw=yaw: (cx, cy, 0.0, yaw), limits)
        if at:
            points.append(at)
            for _ in range(draw.integer(0, 4)):
                a = draw(0, 6.283)
                r = draw(0.7, 1.2)
                spot = (cx + r * math.cos(a), cy + r * math.sin(a), 0.0, a - 1.5708 + draw(-0.5, 0.5))
                chair = put(b, f.chair, floor, lambda size, spot=spot: spot, limits)
                if chair:
                    points.append(chair)
    if draw.chance(0.4):  # a carpet
        cx, cy = draw(-w / 4, w / 4), draw(-d / 4, d / 4)
        group = b.begin()
        b.block(-draw(0.5, 1.3), draw(0.5, 1.3), -draw(0.5, 1.0), draw(0.5, 1.0), 0, 0.012, b.cloth(0.2))
        b.place(group, cx, cy, 0, draw(0, 3))
    density = draw(1, 12)
    for surface in list(b.surfaces):
        points += clutter(b, surface, density)
    points += clutter(b, (0, *limits, 0.0, 9.0), draw(0, 0.6), f.FLOOR_CLUTTER)
    for _ in range(2):
        points.append((draw.sign() * w / 2, draw(-d / 2, d / 2), draw(0.3, 2)))
        points.append((draw(-w / 2, w / 2), draw.sign() * d / 2, draw(0.3, 2)))
    lights, ambient, cast = room_light(b, w, d, h, lamps, window)

    def aim(draw: Draw) -> tuple[Point, Point]:
        target = draw.pick(points)
        heights = draw.pick(((1.3, 1.75), (0.9, 1.6), (0.4, 1.2), (1.5, 2.1)))
        p = look_at(draw, target, 0.6, 5.0, heights, (0, 6.283))
        if draw.chance(0.3):
            p = (draw(-w / 2, w / 2), draw(-d / 2, d / 2), p[2])
        inside = abs(p[0]) < w / 2 - 0.25 and abs(p[1]) < d / 2 - 0.25 and p[2] < h - 0.2
        if not inside:
            p = (max(min(p[0], w / 2 - 0.3), 0.3 - w / 2), max(min(p[1], d / 2 - 0.3), 0.3 - d / 2), min(p[2], h - 0.3))
        level = draw.unit() * 0.7  # people tilt the camera less than all the way to the target
        return p, (target[0], target[1], target[2] + level * (p[2] - target[2]))

    return Plan(aim, lights, ambient, (-w / 2, w / 2, -d / 2, d / 2, 0, h), shell=set() if cast else walls)


def desk(b: Builder) -> Plan:
    """A table, desk, counter or shelf seen from near by, with a wall or a room behind."""
    draw = b.draw
    behind, h = draw.pick((0.0, 0.0, 0.0, draw(0.1, 0.8), draw(0.8, 3.0))), draw(2.4, 3.0)
    w, d = draw(2.5, 6.0), draw(2.5, 6.0)
    window, walls = shell(b, w, d, h, draw(0.4, 1.5))
    lamps = ceiling_things(b, w, d, h)
    floor = Floor()
    kind = draw.weighted(((5, "desk"), (2, "table"), (1, "counter"), (1, "shelf"), (0.6, "low"), (0.5, "floor")))
    along = draw.pick((0.0, draw(-0.6, 0.6) * w / 2))
    if draw.chance(0.2):  # in a corner
        along = draw.sign() * (w / 2 - 0.75)
    turn = draw(-0.06, 0.06) if behind < 0.3 else draw(-1.5, 1.5)
    make = {"desk": f.desk, "table": f.table, "counter": f.counter, "shelf": f.shelf, "floor": f.boxes,
            "low": lambda b: f.table(b, None, None, draw(0.35, 0.5))}[kind]  # fmt: skip
    size: list[tuple[float, float, float]] = []

    def place(s):
        size.append(s)
        x = max(min(along, w / 2 - s[0] / 2), s[0] / 2 - w / 2)
        return x, d / 2 - s[1] / 2 - 0.02 - behind, 0.0, turn

    first = len(b.surfaces)
    put(b, make, floor, place)
    group = len(b.groups) - 1
    tops = b.surfaces[first:]
    sw, sd, sh = size[0]
    points: list[Point] = []
    density = draw.log(4, 26)
    if kind == "desk" or (kind in ("table", "low") and draw.chance(0.3)):
        b.resume(group)
        for _ in range(draw.pick((1, 1, 2)) if draw.chance(0.8) else 0):
            x = draw(-0.3, 0.3) * sw
            b.at(x, draw(-0.05, 0.25) * sd, sh, draw(-0.5, 0.5))
            draw.pick((f.monitor, f.monitor, f.laptop))(b)
            points.append(b.world(group, x, 0, sh + 0.2))
        if draw.chance(0.7):
            b.at(draw(-0.25, 0.25) * sw, draw(-0.4, -0.15) * sd, sh, draw(-0.2, 0.2))
            f.keyboard(b)
        b.resume(0)
    for surface in tops:
        points += clutter(b, surface, density)
    if kind == "floor":
        gx, gy, _, _ = b.groups[group]
        points += clutter(b, (0, gx - 0.8, gx + 0.8, gy - 0.9, gy + 0.3, 0.0, 9.0), density, f.FLOOR_CLUTTER + f.CLUTTER)
    gx, gy, _, _ = b.groups[group]
    for _ in range(draw.integer(0, 2)):  # a chair at the desk
        spot = (gx + draw(-0.6, 0.6) * sw, gy - sd / 2 - draw(-0.1, 0.5), 0.0, math.pi + draw(-0.9, 0.9))
        floor.taken.clear()
        if kind != "floor":
            put(b, f.chair, floor, lambda s, spot=spot: spot)
    for _ in range(draw.integer(1, 6)):  # furniture about
        side = draw.pick((-1, 1))
        spot = (side * (w / 2 - 0.4) if draw.chance(0.5) else gx + side * (sw / 2 + draw(0.3, 1.0)), d / 2 - draw(0.3, 2.5))
        floor.taken[:] = [(gx - sw / 2, gx + sw / 2, gy - sd / 2, gy + sd / 2)]
        put(b, draw.weighted(f.ALONG_WALLS), floor, lambda s, spot=spot: (*spot, 0.0, draw(-0.1, 0.1)),
            (-w / 2 - 0.1, w / 2 + 0.1, -d / 2 - 0.1, d / 2 + 0.1))  # fmt: skip
    for surface in b.surfaces[first + len(tops) :]:
        clutter(b, surface, density * 0.5)
    # The boards on the wall behind get things too; they hang in the upper image.
    for surface in b.surfaces[:first]:
        clutter(b, surface, 12)
    points = points or [(gx, gy, sh)]
    points.append((gx, gy, sh * draw(0.7, 1.1)))
    lights, ambient, cast = room_light(b, w, d, h, lamps, window)
    facing = -math.pi / 2 + (turn if behind >= 0.3 else 0)

    def aim(draw: Draw) -> tuple[Point, Point]:
        target = draw.pick(points)
        reach = draw.pick((1.0, 1.0, 1.6, 0.6))
        up = draw.pick((draw(0.05, 0.3), draw(0.2, 0.6), draw(0.5, 1.0)))
        spread = draw.pick((0.4, 0.9, 1.3))
        p = look_at(draw, target, 0.45 * reach, 1.6 * reach, (target[2] - 0.05 + up, target[2] + up), (facing - spread, facing + spread))
        p = (max(min(p[0], w / 2 - 0.3), 0.3 - w / 2), max(min(p[1], d / 2 - 0.3), 0.3 - d / 2), min(max(p[2], 0.3), h - 0.3))
        level = draw(-0.1, 0.55)
        return p, (target[0] + draw(-0.2, 0.2), target[1], target[2] + level * (p[2] - target[2]))

    return Plan(aim, lights, ambient, (-w / 2, w / 2, -d / 2, d / 2, 0, h), shell=set() if cast else walls)


def corridor(b: Builder) -> Plan:
    draw = b.draw
    w, d, h = draw(1.3, 3.2), draw(5.0, 22.0), draw(2.3, 3.2)
    b.resume(0)
    walls: set[int] = set()
    low, high = (b.wall(), b.wall())
    b.block(-w, w, -d / 2, d / 2 + 8, -0.1, 0, b.floor())
    start = len(b.rows)
    b.block(-w, w, -d / 2, d / 2 + 8, h, h + 0.1, b.stuff(draw.pick(("tiles", "plain")), WALLS[:3], (0.6, 2), 0.1))
    for s in (-1, 1):
        if draw.chance(0.5):
            z = draw(0.8, 1.4)
            b.block(s * w / 2 - (0.1 if s < 0 else 0), s * w / 2 + (0.1 if s > 0 else 0), -d / 2, d / 2, z, h, low)
            b.block(s * w / 2 - (0.1 if s < 0 else 0.005), s * w / 2 + (0.1 if s > 0 else 0.005), -d / 2, d / 2, 0, z, high)
        else:
            b.block(s * w / 2 - (0.1 if s < 0 else 0), s * w / 2 + (0.1 if s > 0 else 0), -d / 2, d / 2, 0, h, low)
    stairs = draw.chance(0.4)
    points: list[Point] = []
    end = d / 2
    if stairs:
        n, rise, tread = draw.integer(5, 16), draw(0.14, 0.2), draw(0.24, 0.34)
        m, y0 = (b.floor() if draw.chance(0.5) else b.wood()), draw(-d / 2 + 2.5, d / 2 - 1.5)
        x0, x1 = (-w / 2, w / 2) if draw.chance(0.6) else (draw(-w / 2, -0.1), w / 2)
        for i in range(n):
            b.block(x0, x1, y0 + i * tread, y0 + n * tread + 1.5, 0 if i else 0, (i + 1) * rise, m)
            if (i + 1) * rise > h - 0.4:
                break
        if draw.chance(0.7):  # a rail
            rail = b.metal()
            x = draw.pick((x0 + 0.06, x1 - 0.06))
            b.rod((x, y0, 0.9), (x, y0 + n * tread, 0.9 + n * rise), 0.025, rail)
            for i in range(0, n, 2):
                b.rod((x, y0 + (i + 0.5) * tread, i * rise), (x, y0 + (i + 0.5) * tread, i * rise + 0.95), 0.012, rail)
        points += [(0, y0 + 1, 0.8), (0, y0 + 2, 1.2)]
    b.block(-w, w, end, end + 0.1, 0, h, b.wall())
    b.block(-w, w, -d / 2 - 0.1, -d / 2, 0, h, b.wall())
    walls.update(range(start, len(b.rows)))
    if draw.chance(0.6):
        b.block(-0.45, 0.45, end - 0.03, end, 0, 2.05, b.panel())
    elif draw.chance(0.5):
        b.block(-w * 0.4, w * 0.4, end - 0.02, end, 0.8, 2.1, b.print("landscape", emit=draw(0.8, 3)))
    door, trim = b.panel(), b.stuff("plain", WALLS, (0.5, 1), 0.1)
    for s in (-1, 1):
        y = -d / 2 + draw(0.5, 2)
        while y < d / 2 - 1:
            what = draw.unit()
            x = s * w / 2
            if what < 0.4:
                b.block(min(x, x - s * 0.03), max(x, x - s * 0.03), y - 0.5, y + 0.5, 0, 2.12, trim)
                b.block(min(x, x - s * 0.04), max(x, x - s * 0.04), y - 0.43, y + 0.43, 0, 2.05, door)
                y += 1.0
            elif what < 0.6:
                b.block(min(x, x - s * 0.02), max(x, x - s * 0.02), y - 0.4, y + 0.4, 1.0, 1.0 + draw(0.4, 0.9), b.print("poster"))
                y += 0.6
            elif what < 0.8:
                group = b.begin()
                size = draw.pick((f.cabinet, f.shelf, f.chair, f.plant, f.boxes, f.bin_, f.radiator, f.wardrobe))(b)
                if size[1] < w * 0.45:
                    b.place(group, x - s * size[1] / 2, y, 0, -s * math.pi / 2)
                    points.append((x - s * size[1], y, size[2] * 0.7))
                else:
                    b.place(group, 0, 0, -50)
                y += size[0]
            y += draw(0.3, 2.0)
    glow = b.paint("plain", (0.9, 0.9, 0.85), WHITE, emit=draw.log(0.8, 4))
    step = draw(1.5, 4.0)
    for i in range(int(d / step)):
        b.block(-0.15, 0.15, -d / 2 + i * step + 0.5, -d / 2 + i * step + 1.3, h - 0.03, h, glow)
    if draw.chance(0.3):
        pipe = b.metal()
        b.rod((-w / 2 + 0.15, -d / 2, h - 0.2), (-w / 2 + 0.15, d / 2, h - 0.2), draw(0.03, 0.1), pipe)
    for _ in range(draw.integer(0, 2)):
        group = b.begin()
        draw.pick((f.person, f.chair, f.boxes, f.bin_))(b)
        x, y = draw(-w / 3, w / 3), draw(-d / 2 + 1.5, d / 2 - 1)
        b.place(group, x, y, 0, draw(0, 6.28))
        points.append((x, y, 1.0))
    for surface in list(b.surfaces):
        points += clutter(b, surface, 8)
    points += [(draw(-w / 2, w / 2), end, draw(0.5, 1.8)), (draw.sign() * w / 2, draw(-d / 4, end), draw(0.5, 1.8))]
    lights = [Light((0, draw(-d / 3, d / 3), h - 0.1), warm(draw, draw(0.4, 1.5)), reach=draw(2, 6)),
              Light((draw(-0.3, 0.3), draw(-1, 1), 1), warm(draw, draw(0.1, 0.4)), distant=True)]  # fmt: skip

    def aim(draw: Draw) -> tuple[Point, Point]:
        target = draw.pick(points)
        y = target[1] - draw.log(0.8, max(d * 0.6, 1.0))
        p = (draw(-w / 2 + 0.3, w / 2 - 0.3), max(y, -d / 2 + 0.3), draw(0.6, 1.9))
        return p, (target[0], max(target[1], p[1] + 0.6), target[2] + draw(0.2, 1.0) * (p[2] - target[2]))

    return Plan(aim, lights, warm(draw, draw(0.35, 0.8), 0.1), (-w / 2, w / 2, -d / 2, d / 2, 0, h), shell=walls)


def daylight(b: Builder) -> tuple[list[Light], Point]:
    draw = b.draw
    sunny = draw.chance(0.65)
    sun = Light((draw(-1, 1), draw(-1, 1), draw(0.3, 1.2)), warm(draw, draw(1.2, 2.8) if sunny else draw(0.1, 0.4), 0.12), distant=True)
    sky = draw(0.35, 0.7)
    return [sun], (sky * 0.92, sky, sky * draw(1.0, 1.15))


def building(b: Builder, w: float, d: float, h: float) -> None:
    """A house in the current group: body, roof, doors, balconies; its front at y = -d / 2."""
    draw = b.draw
    style = draw.unit()
    if style < 0.6:
        low, high = b.tint(((0.05, 0.06, 0.08), (0.12, 0.1, 0.1), (0.2, 0.22, 0.25))), b.tint(draw.pick((WALLS, BRICKS, WALLS)))
        m = b.paint("facade", low, high, draw(6.0, 14.0))
        # Upright windows: no turn of the texture.
        row = list(b.materials[m])
        row[4], row[5] = 1.0, 0.0
        b.materials[m] = tuple(row)
    else:
        m = b.stuff(draw.pick(("brick", "plaster", "cloud", "planks")), draw.pick((BRICKS, WALLS)), (1.0, 4.0), 0.25)
    b.block(-w / 2, w / 2, -d / 2, d / 2, -1, h, m)
    if style >= 0.6:  # real windows
        nx, nz = max(1, int(w / draw(1.8, 3.5))), max(1, int(h / draw(2.6, 3.4)))
        glass, trim = b.paint("cloud", (0.04, 0.05, 0.06), (0.3, 0.34, 0.38), 3.0, gloss=0.5), b.stuff("plain", WALLS, (1, 2), 0.1)
        for i in range(min(nx, 6)):
            for j in range(min(nz, 4)):
                x, z = -w / 2 + (i + 0.5) * w / nx, (j + 0.55) * h / nz
                b.box(x, -d / 2, z, 0.55, 0.06, 0.75, trim)
                b.box(x, -d / 2, z, 0.47, 0.075, 0.67, glass)
    if draw.chance(0.5):
        b.block(-w / 2 - 0.4, w / 2 + 0.4, -d / 2 - 0.4, d / 2 + 0.4, h, h + 0.35, b.stuff("plain", TARMACS, (1, 3), 0.2))
    else:  # a pitched roof
        tiles, s = b.stuff("tiles", BRICKS + TARMACS, (0.8, 2), 0.3), draw(0.5, 0.9)
        for side in (-1, 1):
            n = (d / 4 + 0.4) / math.cos(s)
            b.box(0, side * d / 4, h + d / 4 * math.tan(s) - 0.2, w / 2 + 0.4, n, 0.1, tiles, tilted(0, 0, -side * s))
    b.box(draw(-0.3, 0.3) * w, -d / 2, 1.05, 0.5, 0.1, 1.05, b.panel())
    if draw.chance(0.3):
        m = b.cloth(0.5)
        b.box(draw(-0.2, 0.2) * w, -d / 2 - 0.6, 2.7, w * 0.25, 0.7, 0.03, m, tilted(0, 0, 0.35))


def street(b: Builder) -> Plan:
    draw = b.draw
    b.resume(0)
    half = draw(2.5, 7.0)  # of the road
    walk = draw(1.2, 4.0)
    kerb = draw(0.0, 0.16)
    ground = b.stuff(draw.pick(("grass", "asphalt", "gravel")), draw.pick((GREENS, TARMACS, EARTHS)), (1, 4), 0.4)
    b.block(-250, 250, -250, 250, -0.3, -0.05, ground)
    b.block(-half, half, -250, 250, -0.2, 0, b.stuff("asphalt", TARMACS, (1.5, 6), 0.35))
    pave = b.stuff(draw.pick(("tiles", "asphalt", "speckle", "brick")), TARMACS + EARTHS, (1.0, 3.0), 0.25)
    for s in (-1, 1):
        b.block(min(s * half, s * (half + walk)), max(s * half, s * (half + walk)), -250, 250, -0.2, max(kerb, 0.005), pave)
    if draw.chance(0.75):
        paint = b.stuff("plaster", ((0.85, 0.85, 0.82), (0.8, 0.7, 0.3)), (0.5, 2), 0.15)
        gap, lane = draw(3, 9), draw.pick((0.0, half * 0.33))
        for i in range(12):
            for x in {lane, -lane}:
                b.block(x - 0.07, x + 0.07, i * gap, i * gap + gap * 0.4, -0.05, 0.004, paint)
        if draw.chance(0.5):
            for s in (-1, 1):
                b.block(s * (half - 0.35) - 0.06, s * (half - 0.35) + 0.06, -20, 120, -0.05, 0.004, paint)
    built = draw(0, 1)
    points: list[Point] = []
    for s in (-1, 1):
        y = draw(-12, -4)
        edge = half + walk + draw(0.0, 5.0)
        while y < draw(40, 80):
            w, d, h = draw(6, 16), draw(6, 12), draw(3.5, 16)
            if draw.chance(built):
                group = b.begin()
                building(b, w, d, h)
                b.place(group, s * (edge + d / 2), y + w / 2, 0, -s * math.pi / 2)
                points.append((s * edge, y + w / 2, draw(1, 3)))
            elif draw.chance(0.8):
                for _ in range(draw.integer(1, 3)):
                    group = b.begin()
                    draw.weighted(((3, f.tree), (1.5, f.bush)))(b)
                    b.place(group, s * (edge + draw(0, 6)), y + draw(0, w), -0.1, draw(0, 6))
            y += w + draw.pick((0, 0, draw(0, 6)))
        # Parked cars, poles, trees, people on this side
        y = draw(-4, 6)
        cars = draw(0, 0.9)
        while y < 42:
            if draw.chance(cars):
                group = b.begin()
                f.car(b)
                x = s * (half - draw(0.9, 1.3))
                b.place(group, x, y, 0, draw.pick((0, math.pi)) + draw(-0.05, 0.05))
                if 0 < y < 25:
                    points.append((x, y, 0.9))
            y += draw(5, 9)
        for _ in range(draw.integer(1, 8)):
            group = b.begin()
            draw.weighted(((2, f.street_lamp), (2, f.tree), (1.5, f.sign), (1.5, f.person), (0.6, f.bench), (0.6, f.bicycle), (0.7, f.bin_),
                           (0.8, f.bush)))(b)  # fmt: skip
            x, y = s * (half + draw(0.3, walk)), draw.log(2, 40)
            b.place(group, x, y, kerb, draw.pick((0, 1.57, 3.14)) + draw(-0.2, 0.2))
            if y < 15:
                points.append((x, y, 1.2))
        if draw.chance(0.35):  # a fence, wall or hedge along the pavement
            x, h = s * (half + walk + 0.1), draw(0.6, 2.2)
            if draw.chance(0.4):
                m = b.metal()
                for i in range(24):
                    b.box(x, i * 1.2, h / 2, 0.02, 0.02, h / 2, m)
                b.block(x - 0.015, x + 0.015, -5, 29, h - 0.06, h, m)
                b.block(x - 0.015, x + 0.015, -5, 29, h * 0.4, h * 0.4 + 0.05, m)
            else:
                b.block(x - 0.15, x + 0.15, draw(-10, 2), draw(10, 50), 0, h, b.foliage() if draw.chance(0.5) else b.wall())
    for _ in range(draw.integer(0, 3)):  # traffic
        group = b.begin()
        f.car(b)
        x, y = draw(-half * 0.5, half * 0.5), draw.log(6, 45)
        b.place(group, x, y, 0, draw.pick((0, math.pi)) + draw(-0.1, 0.1))
        points.append((x, y, 0.8))
    lights, ambient = daylight(b)

    def aim(draw: Draw) -> tuple[Point, Point]:
        if draw.chance(0.6) or not points:  # a driver's view
            p = (draw(-half * 0.6, half * 0.6), draw(-2, 1), draw(1.2, 1.9))
            return p, (p[0] + draw(-4, 4), p[1] + 12, p[2] + draw(-1.3, 0.9))
        t = draw.pick(points)
        p = look_at(draw, t, 2.0, 14.0, (0.9, 2.0), (-2.6, -0.5))
        x = max(min(p[0], half + walk - 0.3), 0.3 - half - walk)
        return (x, max(p[1], -3.0), p[2] + kerb), (t[0], t[1], p[2] + draw(-0.8, 0.6))

    return Plan(aim, lights, ambient, outdoor=True, field_of_view=(45, 80), baseline=(0.1, 0.54))


def terrain(b: Builder) -> Plan:
    """Hilly ground with plants, rocks, people, perhaps a house: a garden, a park, a meadow, woods."""
    draw = b.draw
    b.resume(0)
    relief = draw.log(0.03, 1.0)
    count = draw.integer(2, 4)
    waves = np.array([[relief * draw(0.3, 1.0) * 5 ** (-i * 0.4), *[draw.sign() * draw(0.2, 1) * 0.05 * 2.2**i for _ in range(2)], draw(0, 1)]
                      for i in range(count)]).T  # fmt: skip
    b.hills(waves, b.stuff(draw.pick(("grass", "gravel", "leaves", "cloud", "speckle")), draw.pick((GREENS, EARTHS, GREENS)), (0.7, 4), 0.5))

    def height(x: float, y: float) -> float:
        return float(terrain_height(waves, np.array([x], np.float32), np.array([y], np.float32))[0])

    points: list[Point] = []
    wild = draw(0, 1)
    makers = ((2.5, f.tree), (2.0, f.bush), (1.5, f.rock), (1.0 - 0.7 * wild, f.bench), (1.0, f.person), (0.4, f.bicycle),
              (0.7, f.chair), (0.7, f.table), (0.8, lambda b: f.plant(b, draw(0.4, 1.4))), (0.5, f.boxes), (0.3, f.sign), (0.2, f.car))  # fmt: skip
    for _ in range(draw.integer(8, 26)):
        group = b.begin()
        rows = len(b.rows)
        size = draw.weighted(makers)(b)
        r, a = draw.log(1.0, 35), draw(0.5, 2.65)
        x, y = r * math.cos(a), r * math.sin(a)
        if math.hypot(x, y) < max(size[0], size[1]) / 2 + 0.6:
            del b.rows[rows:]
            continue
        z = height(x, y)
        b.place(group, x, y, z - 0.05, draw(0, 6.28))
        if r < 14:
            points.append((x, y, z + min(size[2] * draw(0.3, 0.9), 1.6)))
    if draw.chance(0.45):
        group = b.begin()
        d = draw(5, 10)
        building(b, draw(6, 14), d, draw(2.8, 6))
        y = draw(5, 25)
        b.place(group, draw(-10, 10), y + d / 2, 0, draw(-0.5, 0.5))
    if draw.chance(0.4):  # a fence
        y, h, m = draw(3, 12), draw(0.7, 1.8), b.wood() if draw.chance(0.7) else b.metal()
        group = b.begin()
        solid = draw.chance(0.3)
        for i in range(-9, 10):
            b.block(i * 1.2 - 0.05, i * 1.2 + 0.05, -0.05, 0.05, -1, h, m)
        for z in (h * 0.35, h * 0.85):
            b.block(-11, 11, -0.07, -0.05, z - 0.06, z + 0.06, m)
        if solid:
            b.block(-11, 11, -0.05, -0.03, -1, h, m)
        b.place(group, 0, y, height(0, y), draw(-0.5, 0.5))
    if draw.chance(0.7):  # a belt of trees or a hedge at the back
        y, m = draw(18, 50), b.foliage()
        for i in range(draw.integer(6, 14)):
            s = draw(2.0, 5.0)
            b.crown(draw(-40, 40), y + draw(-3, 3), s * 0.5, s, s, s, m if i % 3 else b.foliage())
    for surface in list(b.surfaces):
        points += clutter(b, surface, 10)
    lights, ambient = daylight(b)
    points = points or [(0.0, 6.0, 0.5)]

    def aim(draw: Draw) -> tuple[Point, Point]:
        t = draw.pick(points)
        near = math.hypot(t[0], t[1])
        back = 1.0 - min(draw.log(0.8, 6.0) / max(near, 0.1), 1.0) if draw.chance(0.6) else 0.0
        x, y = t[0] * back + draw(-0.5, 0.5), t[1] * back
        p = (x, y, height(x, y) + draw.pick((draw(0.3, 0.9), draw(1.2, 1.8))))
        return p, (t[0], t[1], p[2] + draw(0.0, 1.0) * (t[2] - p[2]) + draw(-0.1, 0.1) * near)

    return Plan(aim, lights, ambient, outdoor=True, baseline=(0.08, 0.3))


def pile(b: Builder) -> Plan:
    """One or a few objects or a heap of anything on some ground, with a backdrop, indoors or out: as in object photographs."""
    draw = b.draw
    outdoor = draw.chance(0.4)
    b.resume(0)
    ground = b.stuff(draw.pick(("grass", "gravel", "asphalt", "leaves")), draw.pick((GREENS, EARTHS, TARMACS)), (0.5, 3), 0.4) if outdoor else b.floor()
    b.block(-60, 60, -60, 60, -0.1, 0, ground)
    depth = draw.log(0.6, 6.0)
    if outdoor:
        for _ in range(draw.integer(2, 9)):
            group = b.begin()
            draw.weighted(((2, f.tree), (2, f.bush), (0.6, f.car), (0.5, f.person), (0.4, f.bench)))(b)
            a, r = draw(0.4, 2.7), draw.log(4.0, 30)
            b.place(group, r * math.cos(a), r * math.sin(a), 0, draw(0, 6.28))
        lights, ambient = daylight(b)
        if draw.chance(0.5):
            b.block(-20, 20, depth + 4, depth + 4.3, 0, draw(1, 6), b.foliage() if draw.chance(0.5) else b.wall())
    else:
        group = b.begin()
        wall(b, 14, draw(2.6, 4), b.wall())
        decorate(b, 6, 2.8, draw(0, 1))
        b.place(group, 0, depth, 0, draw(-0.5, 0.5))
        if draw.chance(0.4):
            s, m = draw.sign(), b.wall()
            b.block(s * 2.5 - 0.1, s * 2.5 + 0.1, -6, depth + 3, 0, 3, m)
        lights, ambient, _ = room_light(b, 4, 4, 2.8, [], False)
    base = 0.0
    style = draw.unit()
    points: list[Point] = []
    if style < 0.45:  # a heap
        scale = draw.log(0.5, 3.0)
        n = draw.integer(8, 40)
        for i in range(n):
            x, y = draw(-0.6, 0.6) * scale, draw(-0.5, 0.5) * scale
            r = scale * draw.log(0.05, 0.3)
            z = r * 0.8 + (draw(0, 0.6) * scale if i > n * 0.4 else 0)
            turn = tilted(draw(0, 6.28), draw(-1.5, 1.5), draw(-1.5, 1.5)) if draw.chance(0.6) else tilted(draw(0, 6.28), 0)
            b.add(draw.integer(0, 3), x, y, z, r * draw(0.4, 1.2), r * draw(0.4, 1.2), r * draw(0.4, 1.2), b.thing(), turn, draw(-0.95, -0.1))
            points.append((x, y, z))
        size = scale
    elif style < 0.8:  # one or two subjects
        size = 0.3
        for i in range(draw.integer(1, 3)):
            group = b.begin()
            make = draw.pick((f.chair, f.plant, f.person, f.boxes, f.sofa, f.bicycle, f.car, f.bench, f.table, animal, animal, animal, f.rock, f.piano))
            s = make(b)
            x, y = (0.0, 0.0) if i == 0 else (draw.sign() * (s[0] + draw(0, 1)), draw(-0.5, 1.5))
            b.place(group, x, y, 0, draw(0, 6.28))
            points.append((x, y, s[2] * draw(0.4, 0.8)))
            size = max(size, s[0] * 0.6, s[1] * 0.6, s[2] * 0.7)
    else:  # small things on a table top that fills the foreground
        base = draw(0.5, 1.0)
        w, d = draw(0.4, 1.0), draw(0.3, 0.7)
        b.block(-w, w, -d, d, base - 0.04, base, b.wood() if draw.chance(0.6) else b.cloth(0.3))
        b.tube(0, 0, 0, base - 0.04, 0.1, b.metal())
        points = clutter(b, (0, -w + 0.1, w - 0.1, -d + 0.05, d - 0.05, base, 9.0), draw(3, 25))
        size = 0.35
        points = points or [(0.0, 0.0, base + 0.1)]
    for surface in list(b.surfaces):
        clutter(b, surface, 8)

    def aim(draw: Draw) -> tuple[Point, Point]:
        t = draw.pick(points)
        up = draw.pick((0.15, 0.5, 0.9)) * draw(0.4, 1.2)
        r = size * draw.log(1.1, 3.0) + 0.25
        p = look_at(draw, t, r * 0.9, r * 1.1, (t[2] + r * up * 0.3, t[2] + r * up), (-2.4, -0.7))
        return (p[0], p[1], max(p[2], 0.25)), (t[0], t[1], t[2] + draw(-0.1, 0.25) * size)

    return Plan(aim, lights, ambient, outdoor=outdoor, field_of_view=(35, 65))


def animal(b: Builder) -> tuple[float, float, float]:
    """A four-legged creature of ellipsoids."""
    draw = b.draw
    s = draw.log(0.15, 0.7)
    m = b.stuff(draw.pick(("cloud", "spots", "speckle", "stripes", "plain")), ((0.4, 0.3, 0.2), (0.15, 0.12, 0.1), (0.8, 0.75, 0.68), (0.5, 0.48, 0.45),
                (0.62, 0.42, 0.24)), (0.2, 1.5), 0.5, turn=True)  # fmt: skip
    leg, up = s * draw(0.5, 1.2), s * draw(0.0, 0.8)
    b.ball(0, 0, leg + s * 0.4, s * 0.38, s, s * 0.42, m)
    for sx in (-1, 1):
        for y in (-0.65, 0.65):
            b.rod((sx * s * 0.22, y * s, leg + s * 0.35), (sx * s * 0.22, y * s + draw(-0.15, 0.15) * s, 0), s * 0.12, m)
    b.rod((0, -s * 0.7, leg + s * 0.5), (0, -s * 1.1, leg + s * 0.75 + up), s * 0.2, m)
    b.ball(0, -s * 1.25, leg + s * 0.85 + up, s * 0.24, s * 0.36, s * 0.25, m)
    for sx in (-1, 1):
        b.ball(sx * s * 0.2, -s * 1.05, leg + s * 1.08 + up, s * 0.08, s * 0.05, s * draw(0.12, 0.3), m)
        b.ball(sx * s * 0.13, -s * 1.5, leg + s * 0.93 + up, s * 0.04, s * 0.04, s * 0.04, b.plastic(0))
    b.rod((0, s * 0.9, leg + s * 0.5), (draw(-0.3, 0.3) * s, s * 1.5, leg + s * draw(0.1, 1.2)), s * 0.06, m)
    return 2 * s, 2.6 * s, leg + s + up


# Share of each kind, and its layout.
LAYOUTS: dict[str, tuple[float, Callable[[Builder], Plan]]] = {
    "room": (0.35, room),
    "desk": (0.25, desk),
    "corridor": (0.10, corridor),
    "street": (0.15, street),
    "terrain": (0.08, terrain),
    "pile": (0.07, pile),
}
