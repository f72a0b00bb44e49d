"""Layouts of indoor scenes: rooms, desks and other places seen from near by, corridors and stairs."""

from __future__ import annotations

import math

from distilldepth.scenes import clutter, furniture, props
from distilldepth.scenes.builder import WALLS, WHITE, Builder, Draw, tilted
from distilldepth.scenes.staging import Floor, Light, Plan, Point, Size, Spot, look_at, put, room_light, scatter, warm


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
            b.block(
                a - 0.1 + (w + 0.1 if s > 0 else 0), a + (w + 0.1 if s > 0 else 0), 0.15, depth, 0, height, b.wall()
            )
            if draw.chance(0.4):
                b.box(a + w / 2 + s * 0.45 * w, 0.5, 1.02, 0.02, 0.38, 1.02, b.panel(), tilted(draw(-0.3, 0.3), 0))
        else:
            window = True
            b.block(a, c, -0.03, 0.15, low - 0.03, low, trim)
            view = draw.pick((0.1, 0.12, 0.3, draw(1.0, 5.0)))
            spread = view * 1.5
            bright = draw.log(0.6, 4.0) if draw.chance(0.8) else draw.log(4.0, 12.0)
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
    m = b.stuff(
        "folds",
        ((0.75, 0.72, 0.68), (0.5, 0.45, 0.4), (0.85, 0.85, 0.82), (0.4, 0.3, 0.3)),
        (0.3, 0.9),
        0.35,
        accent=0.1,
    )
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
        b.block(-length / 2, length / 2, -0.015, 0, 0, z, b.stuff("plain", (*WALLS, (0.3, 0.2, 0.14)), (0.5, 1), 0.1))
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
            m = b.paint(
                "marble" if dark else "text",
                (0.1, 0.16, 0.13) if dark else (0.3, 0.3, 0.4),
                (0.2, 0.26, 0.22) if dark else WHITE,
                0.9,
                gloss=0.2,
            )
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


def shell(
    b: Builder, w: float, d: float, h: float, decor: float, sides: tuple[int, ...] = (0, 1, 2, 3)
) -> tuple[bool, set[int]]:
    """Floor, ceiling and walls of a room about the origin. Returns whether there is a window, and the walls' rows."""
    draw = b.draw
    rows: set[int] = set()
    b.resume(0)
    main, second = b.wall(), b.wall()
    far = 6.0
    b.block(-w / 2 - far, w / 2 + far, -d / 2 - far, d / 2 + far, -0.1, 0, b.floor())
    rows.add(len(b.rows))
    b.block(
        -w / 2 - 0.15,
        w / 2 + 0.15,
        -d / 2 - 0.15,
        d / 2 + 0.15,
        h,
        h + 0.1,
        b.stuff(
            draw.weighted(((4, "plain"), (1, "tiles"), (1, "plaster"), (0.4, "planks"))), WALLS[:3], (0.8, 2.4), 0.08
        ),
    )
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

            def place(
                size: Size, x: float = x, other: float = other, yaw: float = yaw, span: list[float] = span
            ) -> Spot:
                span.append(size[0])
                u, v = x + size[0] / 2, other / 2 - size[1] / 2 - draw(0.01, 0.12)
                turn = draw(-0.5, 0.5) if size[0] < 0.6 else draw(-0.03, 0.03)
                c, s = math.cos(yaw), math.sin(yaw)
                return c * u - s * v, s * u + c * v, 0.0, yaw + turn

            limits = (-w / 2 - 0.1, w / 2 + 0.1, -d / 2 - 0.1, d / 2 + 0.1)
            at = put(b, draw.weighted(furniture.ALONG_WALLS), floor, place, limits)
            if at:
                points.append(at)
            x += (span[0] if at else 0.3) + draw(0.0, 0.5)
    limits = (-w / 2 + 0.1, w / 2 - 0.1, -d / 2 + 0.1, d / 2 - 0.1)
    for _ in range(draw.integer(0, 3)):  # tables with chairs, and single pieces in the middle
        cx, cy, yaw = draw(-w / 3, w / 3), draw(-d / 3, d / 3), draw(-0.3, 0.3) + draw.pick((0, 1.5708))
        low = draw.chance(0.35)
        make = (
            (lambda b: furniture.table(b, None, None, draw(0.35, 0.5)))
            if low
            else draw.pick(
                (furniture.table, furniture.table, furniture.chair, furniture.sofa, furniture.boxes, props.plant)
            )
        )
        at = put(b, make, floor, (cx, cy, 0.0, yaw), limits)
        if at:
            points.append(at)
            for _ in range(draw.integer(0, 4)):
                a = draw(0, 6.283)
                r = draw(0.7, 1.2)
                spot = (cx + r * math.cos(a), cy + r * math.sin(a), 0.0, a - 1.5708 + draw(-0.5, 0.5))
                chair = put(b, furniture.chair, floor, spot, limits)
                if chair:
                    points.append(chair)
    if draw.chance(0.4):  # a carpet
        cx, cy = draw(-w / 4, w / 4), draw(-d / 4, d / 4)
        group = b.begin()
        b.block(-draw(0.5, 1.3), draw(0.5, 1.3), -draw(0.5, 1.0), draw(0.5, 1.0), 0, 0.012, b.cloth(0.2))
        b.place(group, cx, cy, 0, draw(0, 3))
    density = draw(1, 12)
    for surface in list(b.surfaces):
        points += scatter(b, surface, density)
    points += scatter(b, (0, *limits, 0.0, 9.0), draw(0, 0.6), clutter.FLOOR_CLUTTER)
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
    make = {
        "desk": furniture.desk,
        "table": furniture.table,
        "counter": furniture.counter,
        "shelf": furniture.shelf,
        "floor": furniture.boxes,
        "low": lambda b: furniture.table(b, None, None, draw(0.35, 0.5)),
    }[kind]
    size: list[Size] = []

    def place(s: Size) -> Spot:
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
            draw.pick((clutter.monitor, clutter.monitor, clutter.laptop))(b)
            points.append(b.world(group, x, 0, sh + 0.2))
        if draw.chance(0.7):
            b.at(draw(-0.25, 0.25) * sw, draw(-0.4, -0.15) * sd, sh, draw(-0.2, 0.2))
            clutter.keyboard(b)
        b.resume(0)
    for surface in tops:
        points += scatter(b, surface, density)
    if kind == "floor":
        gx, gy, _, _ = b.groups[group]
        points += scatter(
            b, (0, gx - 0.8, gx + 0.8, gy - 0.9, gy + 0.3, 0.0, 9.0), density, clutter.FLOOR_CLUTTER + clutter.CLUTTER
        )
    gx, gy, _, _ = b.groups[group]
    for _ in range(draw.integer(0, 2)):  # a chair at the desk
        spot = (gx + draw(-0.6, 0.6) * sw, gy - sd / 2 - draw(-0.1, 0.5), 0.0, math.pi + draw(-0.9, 0.9))
        floor.taken.clear()
        if kind != "floor":
            put(b, furniture.chair, floor, spot)
    for _ in range(draw.integer(1, 6)):  # furniture about
        side = draw.pick((-1, 1))
        x = side * (w / 2 - 0.4) if draw.chance(0.5) else gx + side * (sw / 2 + draw(0.3, 1.0))
        y = d / 2 - draw(0.3, 2.5)

        def about(_: Size, x: float = x, y: float = y) -> Spot:
            return x, y, 0.0, draw(-0.1, 0.1)

        floor.taken[:] = [(gx - sw / 2, gx + sw / 2, gy - sd / 2, gy + sd / 2)]
        put(
            b,
            draw.weighted(furniture.ALONG_WALLS),
            floor,
            about,
            (-w / 2 - 0.1, w / 2 + 0.1, -d / 2 - 0.1, d / 2 + 0.1),
        )
    for surface in b.surfaces[first + len(tops) :]:
        scatter(b, surface, density * 0.5)
    # The boards on the wall behind get things too; they hang in the upper image.
    for surface in b.surfaces[:first]:
        scatter(b, surface, 12)
    points = points or [(gx, gy, sh)]
    points.append((gx, gy, sh * draw(0.7, 1.1)))
    lights, ambient, cast = room_light(b, w, d, h, lamps, window)
    facing = -math.pi / 2 + (turn if behind >= 0.3 else 0)

    def aim(draw: Draw) -> tuple[Point, Point]:
        target = draw.pick(points)
        reach = draw.pick((1.0, 1.0, 1.6, 0.6))
        up = draw.pick((draw(0.05, 0.3), draw(0.2, 0.6), draw(0.5, 1.0)))
        spread = draw.pick((0.4, 0.9, 1.3))
        p = look_at(
            draw,
            target,
            0.45 * reach,
            1.6 * reach,
            (target[2] - 0.05 + up, target[2] + up),
            (facing - spread, facing + spread),
        )
        p = (
            max(min(p[0], w / 2 - 0.3), 0.3 - w / 2),
            max(min(p[1], d / 2 - 0.3), 0.3 - d / 2),
            min(max(p[2], 0.3), h - 0.3),
        )
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
            b.block(
                s * w / 2 - (0.1 if s < 0 else 0.005), s * w / 2 + (0.1 if s > 0 else 0.005), -d / 2, d / 2, 0, z, high
            )
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
            b.block(x0, x1, y0 + i * tread, y0 + n * tread + 1.5, 0, (i + 1) * rise, m)
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
                b.block(
                    min(x, x - s * 0.02),
                    max(x, x - s * 0.02),
                    y - 0.4,
                    y + 0.4,
                    1.0,
                    1.0 + draw(0.4, 0.9),
                    b.print("poster"),
                )
                y += 0.6
            elif what < 0.8:
                group = b.begin()
                size = draw.pick(
                    (
                        furniture.cabinet,
                        furniture.shelf,
                        furniture.chair,
                        props.plant,
                        furniture.boxes,
                        furniture.bin_,
                        furniture.radiator,
                        furniture.wardrobe,
                    )
                )(b)
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
        draw.pick((props.person, furniture.chair, furniture.boxes, furniture.bin_))(b)
        x, y = draw(-w / 3, w / 3), draw(-d / 2 + 1.5, d / 2 - 1)
        b.place(group, x, y, 0, draw(0, 6.28))
        points.append((x, y, 1.0))
    for surface in list(b.surfaces):
        points += scatter(b, surface, 8)
    points += [(draw(-w / 2, w / 2), end, draw(0.5, 1.8)), (draw.sign() * w / 2, draw(-d / 4, end), draw(0.5, 1.8))]
    lights = [
        Light((0, draw(-d / 3, d / 3), h - 0.1), warm(draw, draw(0.4, 1.5)), reach=draw(2, 6)),
        Light((draw(-0.3, 0.3), draw(-1, 1), 1), warm(draw, draw(0.1, 0.4)), distant=True),
    ]

    def aim(draw: Draw) -> tuple[Point, Point]:
        target = draw.pick(points)
        y = target[1] - draw.log(0.8, max(d * 0.6, 1.0))
        p = (draw(-w / 2 + 0.3, w / 2 - 0.3), max(y, -d / 2 + 0.3), draw(0.6, 1.9))
        return p, (target[0], max(target[1], p[1] + 0.6), target[2] + draw(0.2, 1.0) * (p[2] - target[2]))

    return Plan(aim, lights, warm(draw, draw(0.35, 0.8), 0.1), (-w / 2, w / 2, -d / 2, d / 2, 0, h), shell=walls)
