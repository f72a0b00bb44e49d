"""Layouts of what is near: tables and floors from above, still lifes and heaps, corners of rooms."""

from __future__ import annotations

import math

from distilldepth.scenes import clutter, furniture, props, wares, wayside
from distilldepth.scenes.builder import Builder, Draw, tilted
from distilldepth.scenes.indoor import shell
from distilldepth.scenes.staging import (
    Floor,
    Item,
    Light,
    Plan,
    Point,
    Size,
    coloured,
    daylight,
    put,
    room_light,
    scaled,
    scatter,
    warm,
)

Area = tuple[float, float, float, float]
"""x0, x1, y0, y1."""
Aim = tuple[Point, Point]


def strew(b: Builder, area: Area, z: float, count: int, items: wares.Wares, size: tuple[float, float]) -> list[Point]:
    """Put things of a theme on an area of the current group, close together, many of them turned; returns where."""
    draw = b.draw
    x0, x1, y0, y1 = area
    spots: list[tuple[float, float, float]] = []
    for _ in range(count):
        factor = draw.log(*size)
        gap = 0.075 * factor
        for _ in range(6):
            x, y = draw(x0, x1), draw(y0, y1)
            if all((x - p) ** 2 + (y - q) ** 2 > (gap + r) ** 2 for p, q, r in spots):
                spots.append((x, y, gap))
                b.at(x, y, z, draw(-3.14, 3.14))
                make: Item = draw.weighted(items)
                if factor > 1.15 or factor < 0.85:
                    scaled(b, make, factor)
                else:
                    make(b)
                break
    b.at()
    return [(x, y, z + 0.05) for x, y, _ in spots]


def around(draw: Draw, target: Point, distance: tuple[float, float], elevation: tuple[float, float]) -> Point:
    """A point at a distance from the target, at an elevation (radians) above it, in any direction."""
    r, e, a = draw.log(*distance), draw(*elevation), draw(0, 6.283)
    return (
        target[0] + r * math.cos(e) * math.cos(a),
        target[1] + r * math.cos(e) * math.sin(a),
        target[2] + r * math.sin(e),
    )


def lamps(b: Builder, reach: float, height: float) -> tuple[list[Light], Point]:
    """A main light anywhere above or beside, also behind what is seen; a fill; ambient."""
    draw = b.draw
    if draw.chance(0.25):
        return daylight(b)
    main = Light((draw(-1, 1) * reach, draw(-1, 1) * reach, height * draw(1.2, 2.6)), warm(draw, draw(0.5, 2.5), 0.3))
    main.reach = draw(0.7, 4.0)
    if draw.chance(0.4):
        main = Light((draw(-1, 1), draw(-1, 1), draw(0.25, 1.5)), warm(draw, draw(0.4, 2.0), 0.2), distant=True)
    fill = Light((draw(-1, 1), draw(-1, 1), draw(0.1, 1)), warm(draw, draw(0, 0.4), 0.3), distant=True)
    return [coloured(draw, main), coloured(draw, fill)], warm(draw, draw(0.2, 0.75), 0.12)


# Tables and floors from above


def _table(b: Builder, w: float, d: float, base: float) -> None:
    """A table in the current group, and what is about it on the floor."""
    draw = b.draw
    top = b.cover() if draw.chance(0.7) else b.wood(draw(0, 0.4))
    leg = b.metal() if draw.chance(0.5) else b.wood()
    if draw.chance(0.2) and abs(w - d) < 0.3:
        b.tube(0, 0, base - 0.04, base, w * 0.75, top)
    else:
        b.block(-w, w, -d, d, base - draw(0.02, 0.06), base, top)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.box(sx * w * 0.8, sy * d * 0.8, base / 2, 0.03, 0.03, base / 2 - 0.02, leg)
    b.block(-6, 6, -6, 6, -0.1, 0, b.floor())
    for i in range(draw.integer(0, 3)):
        a = draw(0, 6.28)
        group = b.begin()
        draw.weighted(((3, furniture.chair), (1, furniture.boxes), (0.7, furniture.bin_), (0.7, props.plant)))(b)
        r = (w if i % 2 else d) + draw(0.15, 0.5)
        b.place(group, r * math.cos(a), r * math.sin(a), 0, a - 1.5708 + draw(-0.5, 0.5))


def _mats(b: Builder, w: float, d: float, base: float) -> None:
    """Cloths, mats, papers and trays that lie flat under the other things."""
    draw = b.draw
    z = base
    for _ in range(draw.integer(0, 4)):
        z += draw.log(0.001, 0.012)
        hx, hy = draw(0.08, 0.6) * w, draw(0.1, 0.6) * d
        x, y = draw(-0.6, 0.6) * w, draw(-0.6, 0.6) * d
        half = (z - base) / 2
        b.box(x, y, base + half, hx, hy, half, b.cover(), tilted(draw.pick((0.0, draw(-0.5, 0.5))), 0))


def tabletop(b: Builder) -> Plan:
    """Many things on a table, a workbench or the floor, seen from above at arm's length."""
    draw = b.draw
    b.resume(0)
    on_floor = draw.chance(0.3)
    base = 0.0 if on_floor else draw(0.45, 0.95)
    w, d = (1.2, 1.2) if on_floor else (draw(0.3, 0.9), draw(0.28, 0.7))
    outdoor = draw.chance(0.15)
    if on_floor:
        b.block(-6, 6, -6, 6, -0.1, 0, b.ground() if outdoor else (b.floor() if draw.chance(0.6) else b.cover()))
    else:
        _table(b, w, d, base)
    for x, y, hx, hy in ((0, 1, 6, 0.1), (0, -1, 6, 0.1), (1, 0, 0.1, 6), (-1, 0, 0.1, 6)):
        away = draw(1.4, 4.0)
        b.block(x * away - hx, x * away + hx, y * away - hy, y * away + hy, 0, 2.6, b.wall())
    _mats(b, min(w, 0.7), min(d, 0.6), base)
    items, size = draw.pick(wares.THEMES), draw.pick(((0.8, 1.2), (0.8, 1.4), (0.6, 1.8)))
    area = (-min(w, 0.7) + 0.06, min(w, 0.7) - 0.06, -min(d, 0.6) + 0.06, min(d, 0.6) - 0.06)
    count = int(draw.log(45, 130) * (area[1] - area[0]) * (area[3] - area[2])) + 5
    points = strew(b, area, base, min(count, 46), items, size)
    if on_floor:
        for _ in range(draw.integer(0, 3)):
            group = b.begin()
            draw.pick((furniture.boxes, furniture.bin_, furniture.chair, props.plant, wayside.lying))(b)
            a = draw(0, 6.28)
            b.place(group, 0.9 * math.cos(a), 0.9 * math.sin(a), 0, draw(0, 6.28))
    points = points or [(0.0, 0.0, base)]
    lights, ambient = lamps(b, 1.2, base + 0.6)
    distance = draw.pick(((0.4, 0.75), (0.55, 1.0), (0.75, 1.25), (0.8, 1.3)))
    elevation = draw.pick(((0.5, 0.9), (0.8, 1.2), (1.1, 1.55)))

    def aim(draw: Draw) -> Aim:
        p, q = draw.pick(points), draw.pick(points)
        target = ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2, base + 0.03)
        return around(draw, target, distance, elevation), target

    return Plan(
        aim, lights, ambient, field_of_view=(40, 76), steep=(1.5, 1.57), roll=draw.pick((0.1, 0.3, 1.6)),
        clearance=0.16, relief=1.12, shallow=0.15,
    )  # fmt: skip


# Still lifes


def _backdrop(b: Builder, depth: float, base: float) -> None:
    """What is behind a still life: a printed or plain board, a wall with boards leaning on it, a corner."""
    draw = b.draw
    turn = draw(-0.35, 0.35)
    b.box(0, depth + 0.1, base + 0.8, 4.0, 0.03, 4.0, b.cover() if draw.chance(0.65) else b.wall(), tilted(turn, 0))
    if draw.chance(0.3):  # a second wall makes a corner
        s = draw.sign()
        b.box(s * draw(0.5, 1.1), 0, base + 0.6, 0.02, 3.0, 3.0, b.cover(), tilted(draw(-0.3, 0.3), 0))
    for _ in range(draw.integer(0, 5)):  # boards, pictures, cloths before it
        x, w, h = draw(-0.8, 0.8), draw.log(0.06, 0.4), draw.log(0.1, 0.5)
        lean = draw(-0.35, 0.0)
        y = depth - abs(math.sin(turn)) * 0.8 - draw(0.02, 0.3)
        b.box(x, y, base + h, w, 0.008, h, b.cover(), tilted(draw(-0.5, 0.5), 0, lean))


def _hung(b: Builder, depth: float, base: float) -> None:
    """A shelf board with things on the wall behind a workbench, tools on nails."""
    draw = b.draw
    z = base + draw(0.35, 0.6)
    b.block(-0.9, 0.9, depth - 0.2, depth, z, z + 0.025, b.wood())
    strew(b, (-0.8, 0.8, depth - 0.16, depth - 0.05), z + 0.025, draw.integer(3, 12), wares.WORKSHOP, (0.7, 1.2))
    for _ in range(draw.integer(0, 8)):
        x, h, m = draw(-0.8, 0.8), draw(0.08, 0.24), b.thing()
        top = z - draw(0.02, 0.1)
        b.rod((x, depth - 0.02, top), (x + draw(-0.03, 0.03), depth - 0.03, top - h), draw(0.005, 0.015), m)
        b.box(x, depth - 0.025, top - h, draw(0.01, 0.06), 0.012, draw(0.01, 0.05), b.thing())


def _large(b: Builder, area: Area, base: float) -> list[Point]:
    """Large simple bodies for a still life: cartons, tubes, cones, balls, plants, sticks that lean."""
    draw = b.draw
    out: list[Point] = []
    for _ in range(draw.integer(5, 14)):
        x, y, s = draw(area[0], area[1]), draw(area[2], area[3]), draw.log(0.06, 0.24)
        b.at(x, y, base, draw(0, 6.28))
        what = draw.unit()
        if what < 0.3:
            b.box(0, 0, s, s * draw(0.3, 1), s * draw(0.2, 0.8), s, b.cover() if draw.chance(0.6) else b.thing())
        elif what < 0.45:
            b.tube(0, 0, 0, 2 * s, s * draw(0.2, 0.6), b.thing(), draw.pick((0.0, -0.95, -0.5, 0.4)))
        elif what < 0.55:
            b.ball(0, 0, s * 0.8, s * 0.8, s * 0.8, s * 0.8, b.thing())
        elif what < 0.7:
            props.plant(b, s * 2.2)
        elif what < 0.8:
            scaled(b, clutter.toy, draw(1.0, 1.8))
        elif what < 0.9:
            b.rod((0, 0, 0), (draw(-0.3, 0.3), draw(0, 0.3), s * 3), draw(0.004, 0.02), b.thing())
        else:
            turn = tilted(draw(0, 6.28), draw(-1.5, 1.5), draw(-1.5, 1.5))
            b.add(
                draw.integer(0, 3),
                (0, 0, s),
                (s * draw(0.4, 1), s, s * draw(0.4, 1)),
                b.thing(),
                turn,
                draw(-0.9, -0.1),
            )
        out.append((x, y, base + s))
    b.at()
    return out


def _heap(b: Builder, base: float) -> list[Point]:
    """Things of a theme thrown over each other."""
    draw = b.draw
    items, scale, out = draw.pick(wares.THEMES), draw(0.2, 0.5), []
    for i in range(draw.integer(12, 34)):
        rho, a = scale * math.sqrt(draw.unit()), draw(0, 6.28)
        x, y = rho * math.cos(a) * 1.4, rho * math.sin(a)
        z = base + max(0.0, (1 - rho / scale) * scale * draw(0.2, 0.9)) * (i > 6)
        b.at(x, y, z, draw(0, 6.28))
        scaled(b, draw.weighted(items), draw.log(0.7, 1.7))
        out.append((x, y, z + 0.06))
    b.at()
    if draw.chance(0.4):  # on a cloth
        b.ball(0, 0, base, scale * 1.1, scale * 0.9, scale * 0.3, b.cloth())
    return out + _large(b, (-0.6, 0.6, 0.1, 0.4), base)


def still_life(b: Builder) -> Plan:
    """Close clutter at arm's length with a backdrop near behind it: a workbench, a shelf, a heap, boards and bodies."""
    draw = b.draw
    b.resume(0)
    base, depth = draw(0.4, 1.0), draw(0.3, 1.1)
    b.block(-2.5, 2.5, -draw(0.5, 1.2), depth + 1.5, base - 0.05, base, b.cover())
    b.block(-8, 8, -8, 8, -0.1, 0, b.floor())
    _backdrop(b, depth, base)
    area = (-0.6, 0.6, -0.3, depth - 0.08)
    style = draw.unit()
    points: list[Point] = []
    if style < 0.3:
        depth_at = depth - 0.25
        _hung(b, depth_at, base)
        points += strew(b, area, base, draw.integer(12, 30), draw.pick((wares.WORKSHOP, wares.KITCHEN)), (0.8, 1.7))
    elif style < 0.55:
        points += _heap(b, base)
    else:
        points += _large(b, area, base)
        points += strew(b, area, base, draw.integer(8, 26), draw.pick(wares.THEMES), (0.7, 2.0))
    points = points or [(0.0, 0.0, base + 0.1)]
    lights, ambient = lamps(b, 1.0, base + 0.5)
    rise = draw.pick(((-0.05, 0.25), (0.1, 0.5), (0.3, 0.8)))

    def aim(draw: Draw) -> Aim:
        target = draw.pick(points)
        e, r, a = draw(*rise), draw.log(0.45, 1.6), -1.571 + draw(-0.6, 0.6)
        flat = r * math.cos(e)
        p = (target[0] + flat * math.cos(a), target[1] + flat * math.sin(a), target[2] + 0.08 + r * math.sin(e))
        return (p[0], min(p[1], depth - 0.5), max(p[2], base + 0.1)), (
            target[0],
            target[1],
            target[2] + draw(-0.1, 0.2),
        )

    return Plan(
        aim,
        lights,
        ambient,
        field_of_view=(34, 70),
        steep=(0.8, 1.1),
        roll=draw.pick((0.05, 0.05, 0.5)),
        clearance=0.18,
        relief=1.2,
        shallow=0.15,
    )


# Corners


def corner(b: Builder) -> Plan:
    """A corner of a room from near by, and pieces of furniture that fill the picture."""
    draw = b.draw
    w, d, h = draw(2.4, 4.5), draw(2.4, 4.5), draw(2.3, 2.9)
    window, walls = shell(b, w, d, h, draw(0.2, 1.6))
    floor = Floor()
    points: list[Point] = [(w / 2, d / 2, draw(0.1, 1.6))] * 2 + [(w / 2, d / 2, draw(1.8, h))]
    limits = (-w / 2 - 0.1, w / 2 + 0.1, -d / 2 - 0.1, d / 2 + 0.1)
    for i in range(draw.integer(3, 7)):
        right = i % 2 == 1
        x = (d if right else w) / 2 - draw.log(0.05, 1.2)

        def place(size: Size, x: float = x, right: bool = right) -> tuple[float, float, float, float]:
            u, gap = x - size[0] / 2, size[1] / 2 + draw(0.01, 0.15)
            turn = draw(-0.05, 0.05)
            return (w / 2 - gap, u, 0.0, -math.pi / 2 + turn) if right else (u, d / 2 - gap, 0.0, turn)

        at = put(b, draw.weighted(furniture.ALONG_WALLS), floor, place, limits)
        if at:
            points += [at, at]
    for surface in list(b.surfaces):
        points += scatter(b, surface, draw(3, 16))
    points += strew(
        b, (0.0, w / 2 - 0.2, 0.0, d / 2 - 0.2), 0.0, draw.integer(0, 7), draw.pick(wares.THEMES), (0.8, 2.2)
    )
    lights, ambient, cast = room_light(b, w, d, h, [], window)

    def aim(draw: Draw) -> Aim:
        target = draw.pick(points)
        r, a = draw.log(0.6, 2.4), -2.36 + draw(-0.9, 0.9)
        z = target[2] + draw.pick((draw(-0.3, 0.5), draw(0.3, 1.2)))
        x, y = target[0] + r * math.cos(a), target[1] + r * math.sin(a)
        p = (max(min(x, w / 2 - 0.35), 0.3 - w / 2), max(min(y, d / 2 - 0.35), 0.3 - d / 2), max(min(z, h - 0.3), 0.25))
        return p, (target[0], target[1], target[2] + draw(0, 0.5) * (p[2] - target[2]))

    bounds = (-w / 2, w / 2, -d / 2, d / 2, 0, h)
    return Plan(
        aim,
        lights,
        ambient,
        bounds,
        field_of_view=(45, 85),
        steep=(0.6, 1.1),
        clearance=0.25,
        shell=set() if cast else walls,
    )
