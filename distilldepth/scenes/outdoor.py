"""Layouts of streets, gardens and hills, and of single objects or heaps as in object photographs."""

from __future__ import annotations

import math

import numpy as np

from distilldepth.scenes import furniture, props
from distilldepth.scenes.builder import EARTHS, GREENS, TARMACS, Builder, Draw, tilted
from distilldepth.scenes.geometry import terrain_height
from distilldepth.scenes.indoor import decorate, wall
from distilldepth.scenes.staging import Plan, Point, daylight, look_at, room_light, scatter


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
        b.block(
            min(s * half, s * (half + walk)), max(s * half, s * (half + walk)), -250, 250, -0.2, max(kerb, 0.005), pave
        )
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
                props.building(b, w, d, h)
                b.place(group, s * (edge + d / 2), y + w / 2, 0, -s * math.pi / 2)
                points.append((s * edge, y + w / 2, draw(1, 3)))
            elif draw.chance(0.8):
                for _ in range(draw.integer(1, 3)):
                    group = b.begin()
                    draw.weighted(((3, props.tree), (1.5, props.bush)))(b)
                    b.place(group, s * (edge + draw(0, 6)), y + draw(0, w), -0.1, draw(0, 6))
            y += w + draw.pick((0, 0, draw(0, 6)))
        # Parked cars, poles, trees, people on this side
        y = draw(-4, 6)
        cars = draw(0, 0.9)
        while y < 42:
            if draw.chance(cars):
                group = b.begin()
                props.car(b)
                x = s * (half - draw(0.9, 1.3))
                b.place(group, x, y, 0, draw.pick((0, math.pi)) + draw(-0.05, 0.05))
                if 0 < y < 25:
                    points.append((x, y, 0.9))
            y += draw(5, 9)
        for _ in range(draw.integer(1, 8)):
            group = b.begin()
            draw.weighted(
                (
                    (2, props.street_lamp),
                    (2, props.tree),
                    (1.5, props.sign),
                    (1.5, props.person),
                    (0.6, props.bench),
                    (0.6, props.bicycle),
                    (0.7, furniture.bin_),
                    (0.8, props.bush),
                )
            )(b)
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
                b.block(
                    x - 0.15, x + 0.15, draw(-10, 2), draw(10, 50), 0, h, b.foliage() if draw.chance(0.5) else b.wall()
                )
    for _ in range(draw.integer(0, 3)):  # traffic
        group = b.begin()
        props.car(b)
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
    waves = np.array(
        [
            [
                relief * draw(0.3, 1.0) * 5 ** (-i * 0.4),
                *[draw.sign() * draw(0.2, 1) * 0.05 * 2.2**i for _ in range(2)],
                draw(0, 1),
            ]
            for i in range(count)
        ]
    ).T
    b.hills(
        waves,
        b.stuff(
            draw.pick(("grass", "gravel", "leaves", "cloud", "speckle")),
            draw.pick((GREENS, EARTHS, GREENS)),
            (0.7, 4),
            0.5,
        ),
    )

    def height(x: float, y: float) -> float:
        return float(terrain_height(waves, np.array([x], np.float32), np.array([y], np.float32))[0])

    points: list[Point] = []
    wild = draw(0, 1)
    makers = (
        (2.5, props.tree),
        (2.0, props.bush),
        (1.5, props.rock),
        (1.0 - 0.7 * wild, props.bench),
        (1.0, props.person),
        (0.4, props.bicycle),
        (0.7, furniture.chair),
        (0.7, furniture.table),
        (0.8, lambda b: props.plant(b, draw(0.4, 1.4))),
        (0.5, furniture.boxes),
        (0.3, props.sign),
        (0.2, props.car),
    )
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
        props.building(b, draw(6, 14), d, draw(2.8, 6))
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
        points += scatter(b, surface, 10)
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
    """One or a few objects, or a heap, on some ground with a backdrop, indoors or out: as in object photographs."""
    draw = b.draw
    outdoor = draw.chance(0.4)
    b.resume(0)
    ground = (
        b.stuff(
            draw.pick(("grass", "gravel", "asphalt", "leaves")), draw.pick((GREENS, EARTHS, TARMACS)), (0.5, 3), 0.4
        )
        if outdoor
        else b.floor()
    )
    b.block(-60, 60, -60, 60, -0.1, 0, ground)
    depth = draw.log(0.6, 6.0)
    if outdoor:
        for _ in range(draw.integer(2, 9)):
            group = b.begin()
            draw.weighted(
                (
                    (2, props.tree),
                    (2, props.bush),
                    (0.6, props.car),
                    (0.5, props.person),
                    (0.4, props.bench),
                )
            )(b)
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
            turn = (
                tilted(draw(0, 6.28), draw(-1.5, 1.5), draw(-1.5, 1.5))
                if draw.chance(0.6)
                else tilted(draw(0, 6.28), 0)
            )
            b.add(
                draw.integer(0, 3),
                (x, y, z),
                (r * draw(0.4, 1.2), r * draw(0.4, 1.2), r * draw(0.4, 1.2)),
                b.thing(),
                turn,
                draw(-0.95, -0.1),
            )
            points.append((x, y, z))
        size = scale
    elif style < 0.8:  # one or two subjects
        size = 0.3
        for i in range(draw.integer(1, 3)):
            group = b.begin()
            make = draw.pick(
                (
                    furniture.chair,
                    props.plant,
                    props.person,
                    furniture.boxes,
                    furniture.sofa,
                    props.bicycle,
                    props.car,
                    props.bench,
                    furniture.table,
                    props.animal,
                    props.animal,
                    props.animal,
                    props.rock,
                    furniture.television,
                )
            )
            made = make(b)
            x, y = (0.0, 0.0) if i == 0 else (draw.sign() * (made[0] + draw(0, 1)), draw(-0.5, 1.5))
            b.place(group, x, y, 0, draw(0, 6.28))
            points.append((x, y, made[2] * draw(0.4, 0.8)))
            size = max(size, made[0] * 0.6, made[1] * 0.6, made[2] * 0.7)
    else:  # small things on a table top that fills the foreground
        base = draw(0.5, 1.0)
        w, d = draw(0.4, 1.0), draw(0.3, 0.7)
        b.block(-w, w, -d, d, base - 0.04, base, b.wood() if draw.chance(0.6) else b.cloth(0.3))
        b.tube(0, 0, 0, base - 0.04, 0.1, b.metal())
        points = scatter(b, (0, -w + 0.1, w - 0.1, -d + 0.05, d - 0.05, base, 9.0), draw(3, 25))
        size = 0.35
        points = points or [(0.0, 0.0, base + 0.1)]
    for surface in list(b.surfaces):
        scatter(b, surface, 8)

    def aim(draw: Draw) -> tuple[Point, Point]:
        t = draw.pick(points)
        up = draw.pick((0.15, 0.5, 0.9)) * draw(0.4, 1.2)
        r = size * draw.log(1.1, 3.0) + 0.25
        p = look_at(draw, t, r * 0.9, r * 1.1, (t[2] + r * up * 0.3, t[2] + r * up), (-2.4, -0.7))
        return (p[0], p[1], max(p[2], 0.25)), (t[0], t[1], t[2] + draw(-0.1, 0.25) * size)

    return Plan(aim, lights, ambient, outdoor=outdoor, field_of_view=(35, 65))
