"""Plants, people, animals, cars, street furniture and houses; frames as in furniture.py."""

from __future__ import annotations

import itertools
import math

from distilldepth.scenes.builder import BLACK, BRICKS, CARS, FABRICS, TARMACS, WALLS, WHITE, Builder, tilted


def plant(b: Builder, size: float | None = None) -> tuple[float, float, float]:
    draw = b.draw
    size = size or draw(0.5, 1.6)
    pot = size * draw(0.15, 0.22)
    b.tube(0, 0, 0, pot * 1.6, pot * 0.75, b.stuff("plain", FABRICS, (0.2, 1), 0.2, accent=0.1), draw(0.1, 0.4))
    leaf = b.foliage()
    base = pot * 1.5
    style = draw.unit()
    n = draw.integer(6, 14)
    for i in range(n):
        a, up = i * 2.4 + draw(-0.3, 0.3), draw(0.35, 1.0)
        reach = (size - base) * draw(0.25, 0.6)
        x, y, z = reach * math.cos(a), reach * math.sin(a), base + (size - base) * up
        if style < 0.5:  # long thin leaves
            b.rod((0, 0, base * 0.9), (x, y, z), size * draw(0.02, 0.05), leaf, rounded=True, flat=0.3)
        elif style < 0.8:  # broad leaves on stems
            b.rod((0, 0, base * 0.9), (x, y, z), 0.004, leaf)
            r = size * draw(0.06, 0.12)
            b.ball(x, y, z, r, r * 0.8, r * 0.15, leaf, tilted(a, draw(-0.9, 0.3), draw(-0.4, 0.4)))
        else:  # a bush
            r = size * draw(0.1, 0.2)
            b.ball(x * 0.6, y * 0.6, z - 0.1 * size, r, r, r * 0.8, leaf)
    return size * 0.5, size * 0.5, size


def person(b: Builder) -> tuple[float, float, float]:
    """A standing or walking figure of ellipsoids and capsules."""
    draw = b.draw
    h = draw(1.5, 1.9)
    skin = b.paint("plain", *b.shades(draw.pick(((0.8, 0.6, 0.5), (0.55, 0.38, 0.28), (0.35, 0.24, 0.18))), 0.1))
    shirt, trousers = b.cloth(0.3), b.cloth(0.05)
    step = draw(-0.25, 0.25)
    hip, neck = h * 0.5, h * 0.83
    for s in (-1, 1):
        knee = (s * 0.09, s * step * 0.5, h * 0.27)
        b.rod((s * 0.09, 0, hip + 0.05), knee, 0.085, trousers, rounded=True)
        b.rod((s * 0.09, 0, hip), knee, 0.065, trousers)
        b.rod(knee, (s * 0.1, s * step, 0.05), 0.06, trousers)
        b.ball(s * 0.1, s * step - 0.06, 0.04, 0.05, 0.13, 0.045, b.plastic(0.1))
        elbow = (s * 0.27, -s * step * 0.3, h * 0.63)
        hand = (s * draw(0.2, 0.3), -s * step - draw(0, 0.3), h * draw(0.48, 0.66))
        b.rod((s * 0.2, 0, neck - 0.04), elbow, 0.052, shirt, rounded=True)
        b.rod(elbow, hand, 0.04, shirt if draw.chance(0.6) else skin)
        b.ball(*hand, 0.05, 0.05, 0.06, skin)
    b.ball(0, 0, (hip + neck) / 2 + 0.02, 0.21, 0.13, (neck - hip) / 2 + 0.06, shirt)
    b.box(0, 0, (hip + neck) / 2, 0.16, 0.1, (neck - hip) / 2, shirt)
    b.tube(0, 0, neck - 0.02, neck + 0.08, 0.055, skin)
    b.ball(0, -0.01, h - 0.11, 0.08, 0.1, 0.12, skin)
    b.ball(
        0,
        0.025,
        h - 0.08,
        0.088,
        0.1,
        0.11,
        b.stuff("speckle", ((0.1, 0.07, 0.05), (0.35, 0.24, 0.14), (0.5, 0.45, 0.4)), (0.1, 0.4)),
    )
    return 0.6, 0.5, h


def car(b: Builder) -> tuple[float, float, float]:
    """Length along y."""
    draw = b.draw
    w, length, belt, h = draw(1.6, 1.85), draw(3.6, 4.8), draw(0.85, 1.0), draw(1.4, 1.65)
    van = draw.chance(0.15)
    if van:
        h, length = draw(1.9, 2.4), draw(4.6, 5.6)
    paint = b.stuff("plain", CARS, (0.5, 2), 0.05, accent=0.2, gloss=draw(0.3, 0.8))
    glass, rubber = (
        b.paint("cloud", (0.03, 0.04, 0.05), (0.2, 0.23, 0.26), 2.0, gloss=0.8),
        b.paint("plain", (0.03,) * 3, (0.07,) * 3),
    )
    b.box(0, 0, (belt + 0.22) / 2, w / 2, length / 2 * 0.94, (belt - 0.22) / 2, paint)
    b.ball(0, 0, (belt + 0.2) / 2, w / 2 * 1.01, length / 2, (belt - 0.15) / 2, paint)
    back, front = (length * 0.45, -length * 0.4) if van else (length * draw(0.3, 0.46), -length * draw(0.12, 0.2))
    mid, half = (back + front) / 2, (back - front) / 2
    b.box(0, mid, (belt + h) / 2, w * 0.45, half, (h - belt) / 2, glass)
    b.box(0, mid, h, w * 0.42, half * 0.86, 0.035, paint)
    for s, y in ((-1, front), (1, back)):  # slanted windows
        t = 0.0 if van else draw(0.3, 0.7)
        b.box(0, y - s * 0.02, (belt + h) / 2, w * 0.44, 0.05, (h - belt) / 2 + 0.05, glass, tilted(0, 0, s * t))
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (w / 2 - 0.1), sy * length * 0.31
            b.rod((x - 0.1, y, 0.31), (x + 0.11, y, 0.31), 0.31, rubber)
            b.rod((x + sx * 0.1, y, 0.31), (x + sx * 0.115, y, 0.31), 0.19, b.metal() if sx + sy == 2 else rubber)
        lamp = b.paint("plain", (0.8, 0.8, 0.75), WHITE, emit=0.3)
        b.box(sx * w * 0.36, -length / 2 * 0.93, belt * 0.72, 0.15, 0.06, 0.07, lamp)
        b.box(
            sx * w * 0.38,
            length / 2 * 0.93,
            belt * 0.8,
            0.12,
            0.06,
            0.09,
            b.paint("plain", (0.4, 0.03, 0.03), (0.6, 0.06, 0.05)),
        )
    b.box(0, length / 2 * 0.945, belt * 0.6, 0.26, 0.05, 0.06, b.print("text"))
    return w, length, h


def tree(b: Builder, h: float | None = None) -> tuple[float, float, float]:
    draw = b.draw
    h = h or draw(2.5, 9.0)
    bark, leaf = (
        b.stuff("wood", ((0.3, 0.24, 0.18), (0.4, 0.36, 0.3), (0.22, 0.18, 0.15)), (0.3, 1.2), 0.5),
        b.foliage(),
    )
    r = h * draw(0.015, 0.03)
    if draw.chance(0.2):  # a conifer
        b.tube(0, 0, 0, h * 0.3, r, bark)
        for i in range(4):
            z = h * (0.12 + 0.2 * i)
            b.tube(0, 0, z, z + h * 0.34, h * 0.2 * (1 - 0.2 * i), leaf, -0.97)
        return h * 0.4, h * 0.4, h
    trunk = h * draw(0.3, 0.5)
    lean = (draw(-0.08, 0.08) * h, draw(-0.08, 0.08) * h)
    b.rod((0, 0, -0.3), (lean[0], lean[1], trunk * 1.2), r, bark)
    crown = h - trunk
    put = b.crown if draw.chance(0.75) else b.ball
    wide = crown * draw(0.4, 0.7)
    second = leaf if draw.chance(0.6) else b.foliage()
    for i in range(draw.integer(7, 16)):
        a, rho = i * 2.4, draw(0, 1) ** 0.5 * wide
        x, y, z = lean[0] + rho * math.cos(a), lean[1] + rho * math.sin(a), trunk + crown * draw(0.15, 0.85)
        s = crown * draw(0.14, 0.28)
        if i % 3 == 0:
            b.rod((lean[0], lean[1], trunk), (x, y, z), r * 0.35, bark)
        put(
            x,
            y,
            z,
            s * draw(0.8, 1.3),
            s * draw(0.8, 1.3),
            s * draw(0.6, 1),
            leaf if i % 2 else second,
            tilted(draw(0, 6), draw(-0.4, 0.4)),
        )
    return 2 * wide, 2 * wide, h


def bush(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    s, leaf = draw(0.4, 1.3), b.foliage()
    put = b.crown if draw.chance(0.7) else b.ball
    for i in range(draw.integer(2, 6)):
        put(
            s * 0.5 * math.cos(i * 2.2),
            s * 0.5 * math.sin(i * 2.2),
            s * draw(0.3, 0.6),
            s * draw(0.4, 0.7),
            s * draw(0.4, 0.7),
            s * draw(0.3, 0.6),
            leaf,
        )
    return 2 * s, 2 * s, s


def street_lamp(b: Builder) -> tuple[float, float, float]:
    h, m = b.draw(3.5, 8.0), b.metal()
    b.tube(0, 0, 0, h, b.draw(0.05, 0.1), m)
    if b.draw.chance(0.7):
        b.rod((0, 0, h), (b.draw(0.6, 1.6), 0, h + 0.2), 0.05, m)
    return 0.3, 0.3, h


def sign(b: Builder) -> tuple[float, float, float]:
    h, m = b.draw(1.8, 2.8), b.metal()
    b.tube(0, 0, 0, h, 0.035, m)
    face = b.paint("poster", BLACK, WHITE, fit=True) if b.draw.chance(0.5) else b.plastic(0.9)
    if b.draw.chance(0.5):
        b.rod((0, -0.04, h - 0.2), (0, -0.06, h - 0.2), b.draw(0.25, 0.4), face)
    else:
        b.box(0, -0.05, h - 0.2, b.draw(0.2, 0.6), 0.015, b.draw(0.15, 0.4), face)
    return 0.3, 0.3, h


def bench(b: Builder) -> tuple[float, float, float]:
    m, k = b.wood(), b.metal()
    for i in range(3):
        b.box(0, -0.18 + 0.16 * i, 0.44, 0.8, 0.065, 0.02, m)
    for i in range(2):
        b.box(0, 0.28, 0.6 + 0.16 * i, 0.8, 0.015, 0.06, m)
    for s in (-1, 1):
        b.box(s * 0.65, 0.0, 0.21, 0.03, 0.22, 0.21, k)
        b.box(s * 0.65, 0.29, 0.6, 0.03, 0.015, 0.2, k)
    return 1.6, 0.6, 0.8


def bicycle(b: Builder) -> tuple[float, float, float]:
    """Length along y; wheels as thin rings of rods."""
    m, dark = b.plastic(0.7), b.paint("plain", (0.05,) * 3, (0.1,) * 3)
    for y in (-0.52, 0.52):
        points = [(0.0, y + 0.33 * math.cos(a * 0.6283), 0.34 + 0.33 * math.sin(a * 0.6283)) for a in range(11)]
        for p, q in itertools.pairwise(points):
            b.rod(p, q, 0.018, dark)
    pedal, seat, head = (0, 0.05, 0.3), (0, 0.2, 0.8), (0, -0.35, 0.75)
    for p, q in (
        (pedal, seat),
        (seat, head),
        (pedal, head),
        (pedal, (0, 0.52, 0.34)),
        (seat, (0, 0.52, 0.34)),
        (head, (0, -0.52, 0.34)),
    ):
        b.rod(p, q, 0.018, m)
    b.rod(head, (0, -0.38, 1.0), 0.015, m)
    b.rod((-0.28, -0.38, 1.0), (0.28, -0.38, 1.0), 0.014, dark)
    b.box(0, 0.22, 0.9, 0.06, 0.12, 0.03, dark)
    return 0.6, 1.7, 1.0


def rock(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    s = draw.log(0.15, 1.2)
    m = b.stuff(draw.pick(("cloud", "marble", "speckle")), TARMACS, (0.3, 2), 0.4)
    for _ in range(draw.integer(1, 3)):
        b.ball(
            draw(-0.3, 0.3) * s,
            draw(-0.3, 0.3) * s,
            s * 0.3,
            s * draw(0.5, 1),
            s * draw(0.5, 1),
            s * draw(0.3, 0.7),
            m,
            tilted(draw(0, 6), draw(-0.3, 0.3)),
        )
    return s * 2, s * 2, s


def building(b: Builder, w: float, d: float, h: float) -> None:
    """A house in the current group: body, roof, doors, balconies; its front at y = -d / 2."""
    draw = b.draw
    style = draw.unit()
    if style < 0.6:
        low, high = (
            b.tint(((0.05, 0.06, 0.08), (0.12, 0.1, 0.1), (0.2, 0.22, 0.25))),
            b.tint(draw.pick((WALLS, BRICKS, WALLS))),
        )
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
        glass, trim = (
            b.paint("cloud", (0.04, 0.05, 0.06), (0.3, 0.34, 0.38), 3.0, gloss=0.5),
            b.stuff("plain", WALLS, (1, 2), 0.1),
        )
        for i in range(min(nx, 6)):
            for j in range(min(nz, 4)):
                x, z = -w / 2 + (i + 0.5) * w / nx, (j + 0.55) * h / nz
                b.box(x, -d / 2, z, 0.55, 0.06, 0.75, trim)
                b.box(x, -d / 2, z, 0.47, 0.075, 0.67, glass)
    if draw.chance(0.5):
        b.block(
            -w / 2 - 0.4, w / 2 + 0.4, -d / 2 - 0.4, d / 2 + 0.4, h, h + 0.35, b.stuff("plain", TARMACS, (1, 3), 0.2)
        )
    else:  # a pitched roof
        tiles, s = b.stuff("tiles", BRICKS + TARMACS, (0.8, 2), 0.3), draw(0.5, 0.9)
        for side in (-1, 1):
            n = (d / 4 + 0.4) / math.cos(s)
            b.box(0, side * d / 4, h + d / 4 * math.tan(s) - 0.2, w / 2 + 0.4, n, 0.1, tiles, tilted(0, 0, -side * s))
    b.box(draw(-0.3, 0.3) * w, -d / 2, 1.05, 0.5, 0.1, 1.05, b.panel())
    if draw.chance(0.3):
        m = b.cloth(0.5)
        b.box(draw(-0.2, 0.2) * w, -d / 2 - 0.6, 2.7, w * 0.25, 0.7, 0.03, m, tilted(0, 0, 0.35))


def animal(b: Builder) -> tuple[float, float, float]:
    """A four-legged creature of ellipsoids."""
    draw = b.draw
    s = draw.log(0.15, 0.7)
    m = b.stuff(
        draw.pick(("cloud", "spots", "speckle", "stripes", "plain")),
        ((0.4, 0.3, 0.2), (0.15, 0.12, 0.1), (0.8, 0.75, 0.68), (0.5, 0.48, 0.45), (0.62, 0.42, 0.24)),
        (0.2, 1.5),
        0.5,
        turn=True,
    )
    leg, up = s * draw(0.5, 1.2), s * draw(0.0, 0.8)
    b.ball(0, 0, leg + s * 0.4, s * 0.38, s, s * 0.42, m)
    for sx in (-1, 1):
        for y in (-0.65, 0.65):
            b.rod(
                (sx * s * 0.22, y * s, leg + s * 0.35), (sx * s * 0.22, y * s + draw(-0.15, 0.15) * s, 0), s * 0.12, m
            )
    b.rod((0, -s * 0.7, leg + s * 0.5), (0, -s * 1.1, leg + s * 0.75 + up), s * 0.2, m)
    b.ball(0, -s * 1.25, leg + s * 0.85 + up, s * 0.24, s * 0.36, s * 0.25, m)
    for sx in (-1, 1):
        b.ball(sx * s * 0.2, -s * 1.05, leg + s * 1.08 + up, s * 0.08, s * 0.05, s * draw(0.12, 0.3), m)
        b.ball(sx * s * 0.13, -s * 1.5, leg + s * 0.93 + up, s * 0.04, s * 0.04, s * 0.04, b.plastic(0))
    b.rod((0, s * 0.9, leg + s * 0.5), (draw(-0.3, 0.3) * s, s * 1.5, leg + s * draw(0.1, 1.2)), s * 0.06, m)
    return 2 * s, 2.6 * s, leg + s + up
