"""Things of roads and of the country: lorries, hedges, fences, poles, grass, flowers, animals; as in furniture.py."""

from __future__ import annotations

import math

from distilldepth.scenes.builder import (
    CARS,
    EARTHS,
    FLOWERS,
    FURS,
    GREENS,
    METALS,
    TARMACS,
    WALLS,
    WHITE,
    WOODS,
    Builder,
    tilted,
)


def lorry(b: Builder) -> tuple[float, float, float]:
    """A lorry or a bus; length along y, its front at -y."""
    draw = b.draw
    bus = draw.chance(0.35)
    w, length, h = draw(2.1, 2.55), draw(6.0, 12.0), draw(2.6, 3.8)
    paint = b.stuff("plain", CARS, (0.5, 2), 0.08, accent=0.4, gloss=draw(0, 0.5))
    glass = b.paint("cloud", (0.03, 0.04, 0.05), (0.2, 0.23, 0.26), 2.0, gloss=0.8)
    rubber = b.paint("plain", (0.03,) * 3, (0.07,) * 3)
    front, cab = -length / 2, 0.0 if bus else 2.0
    if bus:
        b.block(-w / 2, w / 2, front, length / 2, 0.35, h, paint)
        for s in (-1, 1):
            b.box(s * w / 2, 0.2, h * 0.62, 0.02, length * 0.44, h * 0.16, glass)
        b.box(0, length / 2, h * 0.65, w * 0.42, 0.02, h * 0.16, glass)
    else:
        low = draw(2.1, 2.7)
        b.block(-w / 2, w / 2, front, front + cab - 0.2, 0.4, low, paint)
        load = b.print("poster", fit=True) if draw.chance(0.3) else b.stuff("plain", CARS + WALLS, (0.5, 2), 0.1)
        if draw.chance(0.75):
            b.block(-w / 2, w / 2, front + cab, length / 2, 0.9, h, load)
        else:  # an open load
            b.block(-w / 2, w / 2, front + cab, length / 2, 0.9, draw(1.1, 1.7), load)
            b.ball(0, cab / 2, 1.2, w * 0.4, length * 0.3, draw(0.5, 1.2), b.stuff("gravel", EARTHS, (1, 2), 0.5))
        b.block(-w * 0.4, w * 0.4, front, length / 2, 0.45, 0.9, rubber)
        h = max(h, low)
    b.box(0, front, (2.4 if not bus else h) * 0.7, w * 0.44, 0.03, 0.42, glass)
    lamp, rear = (
        b.paint("plain", (0.8, 0.8, 0.75), WHITE, emit=0.3),
        b.paint("plain", (0.4, 0.03, 0.03), (0.7, 0.1, 0.1)),
    )
    for s in (-1, 1):
        b.box(s * w * 0.38, front, 0.75, 0.16, 0.03, 0.1, lamp)
        b.box(s * w * 0.42, length / 2, 0.85, 0.1, 0.03, 0.14, rear)
        for y in (front + 1.2, length / 2 - 1.3, length / 2 - 2.4):
            b.rod((s * (w / 2 - 0.25), y, 0.48), (s * (w / 2 + 0.02), y, 0.48), 0.48, rubber)
    b.box(0, length / 2, 0.6, 0.28, 0.03, 0.07, b.print("text"))
    return w, length, h


def rider(b: Builder) -> tuple[float, float, float]:
    """A cyclist or a motorcycle with its rider, length along y."""
    draw = b.draw
    dark, coat = b.paint("plain", (0.05,) * 3, (0.1,) * 3), b.cloth(0.5)
    heavy = draw.chance(0.4)
    for y in (-0.55, 0.55):
        b.rod((-0.06 if heavy else -0.02, y, 0.33), (0.06 if heavy else 0.02, y, 0.33), 0.33, dark)
    b.rod((0, -0.5, 0.55), (0, 0.5, 0.6), 0.16 if heavy else 0.03, b.plastic(0.7), rounded=heavy)
    for s in (-1, 1):
        b.rod((s * 0.1, 0.1, 0.9), (s * 0.15, -0.15, 0.45), 0.075, b.cloth(0.1), rounded=True)
        b.rod((s * 0.17, 0.0, 1.35), (s * 0.22, -0.45, 1.05), 0.05, coat)
    b.rod((0, 0.12, 0.85), (0, -0.02, 1.5), 0.17, coat, rounded=True)
    b.ball(0, -0.08, 1.62, 0.11, 0.13, 0.14, b.plastic(0.5))
    return 0.6, 1.8, 1.7


def hedge(b: Builder, length: float, h: float) -> None:
    """A hedge along x: clipped, or a row of bushes."""
    draw = b.draw
    m, t = b.foliage(), draw(0.3, 0.7)
    if draw.chance(0.4):
        b.block(-length / 2, length / 2, -t, t, -0.2, h, m)
        return
    n = max(2, min(int(length / (h * 0.7)), 14))
    for i in range(n):
        x = -length / 2 + (i + 0.5) * length / n
        s = length / n * draw(0.6, 0.9)
        b.crown(x, draw(-0.2, 0.2), h * 0.45, s, t * draw(1, 1.6), h * draw(0.45, 0.65), m)


def fence(b: Builder, length: float, h: float) -> None:
    """A fence along x: rails, pickets, a wall, or a guard rail."""
    draw = b.draw
    style = draw.unit()
    if style < 0.25:
        b.block(-length / 2, length / 2, -0.12, 0.12, -0.2, h, b.wall())
        b.block(-length / 2, length / 2, -0.16, 0.16, h, h + 0.06, b.stuff("plain", WALLS, (0.5, 2), 0.2))
        return
    if style < 0.4:
        m = b.metal()
        b.block(-length / 2, length / 2, -0.03, 0.03, 0.45, 0.75, m)
        for i in range(min(int(length / 2.5), 16)):
            b.block(-length / 2 + i * 2.5, -length / 2 + i * 2.5 + 0.1, 0.02, 0.1, -0.2, 0.7, m)
        return
    m = b.wood() if draw.chance(0.7) else b.metal()
    step = draw.pick((0.25, 0.6, 1.5, 2.0))
    n = min(int(length / step), 44)
    half = 0.09 if step < 0.3 else 0.05
    for i in range(n):
        x = (i - n / 2) * length / n
        b.block(x - half, x + half, -0.03, 0.03, -0.3, h, m)
    for z in (0.3, 0.85) if draw.chance(0.7) else (0.25, 0.55, 0.9):
        b.block(-length / 2, length / 2, 0.03, 0.06, h * z - 0.05, h * z + 0.05, m)


def pole(b: Builder) -> tuple[float, float, float]:
    """A telegraph pole, traffic light or advertising column."""
    draw = b.draw
    style = draw.unit()
    if style < 0.45:
        h, m = draw(5.0, 8.5), b.wood()
        b.tube(0, 0, -0.3, h, draw(0.09, 0.14), m)
        for z in (0.3, 0.8):
            b.box(0, 0, h - z, 0.9, 0.05, 0.05, m)
    elif style < 0.8:
        h = draw(2.6, 4.0)
        b.tube(0, 0, 0, h, 0.06, b.metal())
        b.box(0, -0.1, h - 0.4, 0.17, 0.13, 0.45, b.paint("plain", (0.03,) * 3, (0.1,) * 3))
        glow = draw.pick(((0.9, 0.1, 0.1), (0.1, 0.8, 0.3), (0.9, 0.6, 0.1)))
        b.rod((0, -0.2, h - 0.15), (0, -0.25, h - 0.15), 0.1, b.paint("plain", glow, glow, emit=1.5))
    else:
        h = draw(1.4, 3.4)
        r = draw(0.25, 0.7)
        b.tube(0, 0, 0, h, r, b.print("poster", fit=False, tile=1.5))
        b.tube(0, 0, h, h + 0.2, r * 1.1, b.metal())
    return 0.6, 0.6, h


def trunk(b: Builder) -> tuple[float, float, float]:
    """A forest tree whose crown begins high up."""
    draw = b.draw
    h, r = draw(7.0, 18.0), draw.log(0.07, 0.3)
    bark = b.stuff(draw.pick(("bark", "bark", "wood", "cloud")), WOODS + TARMACS, (0.4, 1.6), 0.6)
    lean = draw(-0.06, 0.06) * h, draw(-0.06, 0.06) * h
    b.rod((0, 0, -0.5), (lean[0], lean[1], h), r, bark)
    b.tube(0, 0, -0.4, r * 3, r * 1.7, bark, -0.45)
    leaf = b.foliage()
    for i in range(draw.integer(3, 7)):
        z, a, s = h * draw(0.3, 1.0), i * 2.4, h * draw(0.06, 0.16)
        x, y = lean[0] * z / h + s * math.cos(a), lean[1] * z / h + s * math.sin(a)
        b.rod((lean[0] * z / h * 0.9, lean[1] * z / h * 0.9, z * 0.9), (x, y, z), r * 0.25, bark)
        b.crown(x, y, z, s, s, s * draw(0.4, 0.8), leaf)
    return 0.8, 0.8, h


def tuft(b: Builder, size: float = 0.4) -> None:
    """Blades of grass, reeds or fern that spread from one root, at the local frame."""
    draw = b.draw
    leaf = b.stuff(draw.pick(("plain", "stripes", "cloud")), GREENS, (0.1, 0.6), 0.5)
    thick, spread = draw.log(0.006, 0.03) * size / 0.4, draw(0.2, 0.9)
    for i in range(draw.integer(6, 12)):
        a, lean, top = i * 2.4 + draw(-0.4, 0.4), draw(0.1, 1) * spread * size, size * draw(0.5, 1.1)
        end = (lean * math.cos(a), lean * math.sin(a), top)
        b.rod((0.1 * end[0], 0.1 * end[1], -0.03), end, thick, leaf, rounded=True, flat=0.4)


def flower(b: Builder) -> tuple[float, float, float]:
    """Flowers on stems, some with petals about a heart."""
    draw = b.draw
    stem, petals = b.foliage(), b.stuff("plain", FLOWERS, (0.05, 0.2), 0.3)
    heart = b.stuff("speckle", FLOWERS, (0.05, 0.2), 0.4)
    h = draw(0.12, 0.6)
    for i in range(draw.integer(1, 6)):
        a, top, s = i * 2.4, h * draw(0.7, 1.1), h * draw(0.06, 0.16)
        x, y = 0.18 * h * math.sqrt(i) * math.cos(a) * 2, 0.18 * h * math.sqrt(i) * math.sin(a) * 2
        b.rod((x * 0.3, y * 0.3, -0.02), (x, y, top), h * 0.012, stem)
        b.ball(x * 0.7, y * 0.7, top * 0.5, h * 0.16, h * 0.05, h * 0.01, stem, tilted(a, -0.5))
        if draw.chance(0.6):
            for j in range(6):
                c = j * 1.047
                turn = tilted(c, draw(-0.4, 0.1))
                b.ball(x + s * math.cos(c), y + s * math.sin(c), top, s * 0.8, s * 0.4, s * 0.12, petals, turn)
        b.ball(x, y, top, s * 0.5, s * 0.5, s * 0.35, heart)
    return h * 0.6, h * 0.6, h


def bird(b: Builder) -> tuple[float, float, float]:
    """A bird on its legs, its beak at -y."""
    draw = b.draw
    s = draw.log(0.06, 0.35)
    m = b.stuff(draw.pick(("cloud", "plain", "speckle", "stripes")), FURS, (0.1, 0.8), 0.5, accent=0.25, turn=True)
    wing = (
        m if draw.chance(0.4) else b.stuff(draw.pick(("stripes", "cloud", "plain")), FURS, (0.05, 0.4), 0.5, accent=0.2)
    )
    horn = b.stuff("plain", FLOWERS + METALS, (0.1, 0.3), 0.2)
    leg, neck, lean = s * draw(0.1, 1.3), s * draw(0.2, 1.2), draw(0.1, 0.9)
    b.ball(0, 0, leg + s * 0.55, s * 0.48, s * 0.9, s * 0.5, m, tilted(0, 0, -lean * 0.5))
    for side in (-1, 1):
        b.ball(
            side * s * 0.4,
            s * 0.2,
            leg + s * 0.6,
            s * 0.12,
            s * 0.85,
            s * 0.35,
            wing,
            tilted(side * 0.1, 0, -lean * 0.5),
        )
        b.rod((side * s * 0.18, 0, leg + s * 0.3), (side * s * 0.2, -s * 0.05, 0), s * 0.05, horn)
        b.ball(side * s * 0.2, -s * 0.15, 0.01, s * 0.1, s * 0.2, s * 0.03, horn)
    head = (0.0, -s * (0.75 + 0.3 * neck / s * (1 - lean)), leg + s * 0.8 + neck)
    b.rod((0, -s * 0.5, leg + s * 0.6), head, s * draw(0.14, 0.3), m)
    b.ball(*head, s * 0.27, s * 0.32, s * 0.27, m)
    b.rod((0, head[1] - s * 0.2, head[2]), (0, head[1] - s * draw(0.5, 1.0), head[2] - s * 0.08), s * 0.08, horn)
    for side in (-1, 1):
        b.ball(side * s * 0.2, head[1] - s * 0.15, head[2] + s * 0.06, s * 0.05, s * 0.05, s * 0.05, b.plastic(0))
    b.box(0, s * 1.1, leg + s * 0.5, s * 0.2, s * 0.5, s * 0.05, wing, tilted(0, 0, -lean * 0.4))
    return s, 2.4 * s, leg + s + neck


def lying(b: Builder) -> tuple[float, float, float]:
    """A dog, cat, sheep or such that lies or sits."""
    draw = b.draw
    s = draw.log(0.12, 0.5)
    m = b.stuff(
        draw.pick(("cloud", "speckle", "blades", "spots", "plain", "stripes")), FURS, (0.15, 1.2), 0.5, turn=True
    )
    sits = draw.chance(0.5)
    top = s * (1.5 if sits else 0.75)
    b.ball(0, s * 0.3, s * 0.42, s * 0.5, s * (0.6 if sits else 1.0), s * 0.45, m)
    b.rod((0, s * 0.4, s * 0.3), (0, -s * 0.35, top), s * 0.42, m, rounded=True)
    head = (draw(-0.2, 0.2) * s, -s * 0.6, top + s * 0.3)
    b.rod((0, -s * 0.2, top * 0.8), head, s * 0.25, m)
    b.ball(*head, s * 0.32, s * 0.36, s * 0.32, m)
    b.ball(head[0], head[1] - s * 0.35, head[2] - s * 0.08, s * 0.15, s * 0.24, s * 0.14, m)
    b.ball(head[0], head[1] - s * 0.57, head[2] - s * 0.05, s * 0.06, s * 0.05, s * 0.05, b.plastic(0))
    for side in (-1, 1):
        x = head[0] + side * s * 0.24
        b.ball(
            x, head[1] + s * 0.05, head[2] + s * draw(0.1, 0.35), s * 0.1, s * 0.07, s * 0.2, m, tilted(0, side * 0.3)
        )
        b.ball(
            head[0] + side * s * 0.13, head[1] - s * 0.29, head[2] + s * 0.1, s * 0.05, s * 0.05, s * 0.05, b.plastic(0)
        )
        b.rod((side * s * 0.25, -s * 0.25, s * 0.5), (side * s * 0.28, -s * 0.85, s * 0.09), s * 0.1, m)
        b.ball(side * s * 0.45, s * 0.45, s * 0.25, s * 0.2, s * 0.45, s * 0.25, m)
    b.rod((0, s * 1.0, s * 0.2), (draw(-0.8, 0.8) * s, s * 1.6, s * 0.12), s * 0.08, m)
    return 1.2 * s, 2.4 * s, top + s * 0.6


def crawler(b: Builder) -> tuple[float, float, float]:
    """A lizard, crab or beetle."""
    draw = b.draw
    s = draw.log(0.04, 0.2)
    m = b.stuff(draw.pick(("spots", "cloud", "stripes", "speckle")), FURS, (0.05, 0.3), 0.6, accent=0.4, turn=True)
    long = draw(1.0, 2.6)
    b.ball(0, 0, s * 0.3, s * 0.42, s * long * 0.6, s * 0.28, m)
    b.ball(0, -s * long * 0.7, s * 0.33, s * 0.3, s * 0.4, s * 0.24, m)
    b.rod((0, s * long * 0.4, s * 0.22), (draw(-0.6, 0.6) * s, s * long * 1.4, s * 0.08), s * 0.1, m)
    for i in range(draw.integer(2, 4)):
        for side in (-1, 1):
            y = s * (0.4 - 0.4 * i)
            knee = (side * s * 0.8, y + draw(-0.2, 0.2) * s, s * draw(0.3, 0.7))
            b.rod((side * s * 0.3, y, s * 0.3), knee, s * 0.08, m)
            b.rod(knee, (side * s * 1.0, knee[1] - s * 0.2, 0), s * 0.06, m)
    return 2 * s, 2 * s * long, s * 0.7


def boat(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    s, m = draw(1.0, 3.0), b.stuff("planks", WOODS + CARS, (0.5, 2), 0.3, accent=0.4)
    b.ball(0, 0, s * 0.1, s * 0.42, s, s * 0.3, m)
    b.block(-s * 0.3, s * 0.3, -s * 0.6, s * 0.6, s * 0.2, s * 0.36, b.wood())
    if draw.chance(0.6):
        b.block(-s * 0.22, s * 0.22, -s * 0.1, s * 0.4, s * 0.3, s * draw(0.5, 0.9), b.plastic(0.3))
    if draw.chance(0.5):
        b.tube(0, 0, 0, s * 2.2, s * 0.03, b.metal())
        if draw.chance(0.5):
            b.box(0, s * 0.35, s * 1.2, 0.01, s * 0.35, s * 0.8, b.cloth(0.2))
    return s, 2 * s, s


def boulders(b: Builder, size: float) -> None:
    """A group of rocks of one stone, at the local frame."""
    draw = b.draw
    m = b.stuff(draw.pick(("cloud", "marble", "speckle", "bark", "gravel")), TARMACS + EARTHS, (0.4, 2.5), 0.45)
    for i in range(draw.integer(2, 6)):
        s = size * draw(0.25, 1.0)
        x, y = draw(-1, 1) * size * 0.8, draw(-1, 1) * size * 0.6
        turn = tilted(draw(0, 6), draw(-0.5, 0.5), draw(-0.4, 0.4))
        half = s * draw(0.5, 1), s * draw(0.4, 0.8), s * draw(0.3, 0.7)
        (b.box if i % 3 == 2 else b.ball)(x, y, s * 0.2, *half, m, turn)


def log(b: Builder) -> None:
    """A fallen trunk or branch, at the local frame."""
    draw = b.draw
    r = draw.log(0.03, 0.22)
    m = b.stuff("bark", WOODS + EARTHS, (0.3, 1.2), 0.6)
    a, length = draw(0, 6.28), r * draw(8, 16)
    end = (length * math.cos(a), length * math.sin(a), r + draw(0, 0.25) * length)
    b.rod((0, 0, r * 0.7), end, r, m)
    for _ in range(draw.integer(0, 4)):
        f, c = draw(0.2, 0.9), draw(0, 6.28)
        p = (end[0] * f, end[1] * f, r + (end[2] - r) * f)
        b.rod(p, (p[0] + 3 * r * math.cos(c), p[1] + 3 * r * math.sin(c), p[2] + draw(1, 6) * r), r * 0.35, m)
