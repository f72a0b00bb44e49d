"""Composite objects made of primitives: furniture, clutter, people, cars, trees.

A furniture function draws into the builder's current group, its back towards +y and its foot on z = 0, and returns
(width, depth, height) in metres. A clutter function draws at the builder's local frame, within about 0.4 m.
"""

from __future__ import annotations

import math

from distilldepth.data.scenes.builder import BLACK, CARS, FABRICS, PLASTICS, TARMACS, WHITE, WOODS, Builder, tilted


def table(b: Builder, w: float | None = None, d: float | None = None, h: float | None = None) -> tuple[float, float, float]:
    draw = b.draw
    w = w or draw(0.8, 2.0)
    d = d or draw(0.6, 1.0)
    h = h or draw(0.68, 0.8)
    top = b.stuff("plain", PLASTICS, (0.3, 1), 0.1, gloss=draw(0, 0.3)) if draw.chance(0.3) else b.wood(draw(0, 0.3))
    leg = top if draw.chance(0.4) else draw.pick((b.metal, b.wood, b.plastic))()
    t = draw(0.02, 0.06)
    round_top = draw.chance(0.15)
    if round_top:
        r = min(w, d) * 0.6
        b.tube(0, 0, h - t, h, r, top)
        b.tube(0, 0, 0, h - t, draw(0.03, 0.08), leg)
        b.tube(0, 0, 0, 0.04, r * 0.6, leg)
        b.surface(-r * 0.7, r * 0.7, -r * 0.7, r * 0.7, h)
        return 2 * r, 2 * r, h
    b.block(-w / 2, w / 2, -d / 2, d / 2, h - t, h, top)
    x, y, r = w / 2 - draw(0.04, 0.12), d / 2 - draw(0.04, 0.12), draw(0.015, 0.04)
    if draw.chance(0.2):
        for s in (-1, 1):
            b.block(s * x - 0.015, s * x + 0.015, -y, y, 0, h - t, top)
    else:
        for sx in (-1, 1):
            for sy in (-1, 1):
                b.box(sx * x, sy * y, (h - t) / 2, r, r, (h - t) / 2, leg)
    if draw.chance(0.25):
        b.block(-x, x, y - 0.01, y + 0.01, h * draw(0.3, 0.7), h - t, top)
    b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, h)
    if draw.chance(0.3):
        b.surface(-x + 0.1, x - 0.1, -y + 0.05, y - 0.05, 0.0, h - 0.1)
    return w, d, h


def desk(b: Builder) -> tuple[float, float, float]:
    w, d, h = table(b, b.draw(1.0, 2.0), b.draw(0.6, 0.85))
    if w > d * 1.05 and b.draw.chance(0.5):
        s, m = b.draw.sign(), b.panel()
        x = s * (w / 2 - 0.28)
        b.block(x - 0.2, x + 0.2, -d / 2 + 0.06, d / 2 - 0.05, 0.04, h - 0.08, m)
    return w, d, h


def chair(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d, seat, top = draw(0.4, 0.5), draw(0.4, 0.5), draw(0.42, 0.5), draw(0.8, 1.05)
    frame = draw.pick((b.wood, b.metal, b.plastic))()
    pad = frame if draw.chance(0.35) else b.cloth(0.2)
    b.block(-w / 2, w / 2, -d / 2, d / 2, seat - draw(0.03, 0.08), seat, pad)
    tilt = draw(0.05, 0.25)
    yb = d / 2
    lean = (top - seat) * tilt
    style = draw.unit()
    if style < 0.45:  # solid back
        b.box(0, yb + lean / 2, (seat + top) / 2 + 0.05, w / 2, 0.02, (top - seat) / 2, pad, tilted(0, 0, -tilt))
    else:  # rails or slats
        for s in (-1, 1):
            b.rod((s * w * 0.46, yb, seat - 0.05), (s * w * 0.46, yb + lean, top), 0.018, frame)
        if style < 0.75:
            for f in (0.35, 0.65, 0.95):
                z = seat + (top - seat) * f
                b.box(0, yb + lean * f, z, w * 0.46, 0.012, 0.035, frame)
        else:
            b.box(0, yb + lean, top, w * 0.48, 0.015, 0.04, frame)
            for f in (-0.3, -0.1, 0.1, 0.3):
                b.rod((f * w, yb, seat), (f * w, yb + lean, top), 0.01, frame)
    if draw.chance(0.3):  # office chair
        b.rod((0, 0, 0.1), (0, 0, seat), 0.03, frame)
        for i in range(5):
            a = i * 1.2566 + 0.3
            b.rod((0, 0, 0.12), (0.3 * math.cos(a), 0.3 * math.sin(a), 0.05), 0.022, frame)
        if draw.chance(0.6):
            for s in (-1, 1):
                b.box(s * (w / 2 + 0.03), 0, seat + 0.2, 0.025, d * 0.35, 0.015, frame)
                b.rod((s * (w / 2 + 0.03), 0.05, seat), (s * (w / 2 + 0.03), 0.05, seat + 0.2), 0.015, frame)
    else:
        spread = draw(0.0, 0.05)
        for sx in (-1, 1):
            for sy in (-1, 1):
                p = (sx * (w / 2 - 0.03), sy * (d / 2 - 0.03), seat - 0.04)
                b.rod(p, (p[0] + sx * spread, p[1] + sy * spread, 0), draw(0.012, 0.022), frame)
    if draw.chance(0.15):
        b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.1, seat)
    return w, d + 0.1, top


def sofa(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d, seat, top, arm = draw(0.8, 2.4), draw(0.8, 1.0), draw(0.38, 0.48), draw(0.7, 1.0), draw(0.1, 0.25)
    cloth = b.cloth()
    b.block(-w / 2, w / 2, -d / 2, d / 2, 0.06, seat - 0.12, cloth)
    n = 1 if w < 1.1 else (2 if w < 1.9 else 3)
    inner = w - 2 * arm
    for i in range(n):
        x0 = -inner / 2 + i * inner / n
        b.block(x0 + 0.006, x0 + inner / n - 0.006, -d / 2 - 0.02, d / 2 - 0.2, seat - 0.12, seat, cloth)
        b.ball(x0 + inner / n / 2, d / 2 - 0.2, (seat + top) / 2, inner / n / 2 * 1.02, 0.12, (top - seat) / 2 + 0.06, cloth)
    b.block(-w / 2, w / 2, d / 2 - 0.18, d / 2, 0.06, top, cloth)
    b.rod((-w / 2, d / 2 - 0.09, top), (w / 2, d / 2 - 0.09, top), 0.09, cloth)
    for s in (-1, 1):
        x = s * (w / 2 - arm / 2)
        b.block(x - arm / 2, x + arm / 2, -d / 2, d / 2, 0.06, seat + 0.15, cloth)
        b.rod((x, -d / 2, seat + 0.15), (x, d / 2, seat + 0.15), arm / 2, cloth)
    for _ in range(draw.integer(0, 3)):
        cushion(b, draw(-inner / 2 + 0.2, inner / 2 - 0.2) if inner > 0.5 else 0, d / 2 - 0.38, seat + 0.2)
    return w, d, top


def cushion(b: Builder, x: float, y: float, z: float) -> None:
    draw = b.draw
    m, r = b.cloth(0.35), draw(0.17, 0.26)
    turn = tilted(draw(-0.4, 0.4), 0, -draw(0.1, 0.6))
    b.ball(x, y, z, r, 0.09, r, m, turn)
    b.box(x, y, z, r * 0.86, 0.035, r * 0.86, m, turn)


def bed(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d, h = draw(0.9, 1.9), draw(1.9, 2.1), draw(0.4, 0.65)
    wood, sheet, blanket = b.wood(), b.cloth(0.02), b.cloth(0.2)
    b.block(-w / 2, w / 2, -d / 2, d / 2, 0.1, h * 0.6, wood)
    b.block(-w / 2 + 0.02, w / 2 - 0.02, -d / 2 + 0.02, d / 2 - 0.02, h * 0.6, h, sheet)
    b.block(-w / 2 - 0.01, w / 2 + 0.01, -d / 2, d * draw(0, 0.2), h * 0.45, h + 0.04, blanket)
    b.block(-w / 2, w / 2, d / 2 - 0.02, d / 2 + 0.04, 0, h + draw(0.2, 0.7), wood)
    if draw.chance(0.4):
        b.block(-w / 2, w / 2, -d / 2 - 0.04, -d / 2, 0, h + draw(0.0, 0.35), wood)
    for i in range(1 if w < 1.2 else 2):
        x = 0 if w < 1.2 else (i - 0.5) * w * 0.48
        b.ball(x, d / 2 - 0.28, h + 0.07, w * (0.4 if w < 1.2 else 0.22), 0.22, 0.1, sheet if draw.chance(0.5) else b.cloth(0.2))
    if draw.chance(0.4):
        cushion(b, draw(-0.3, 0.3), d / 2 - 0.5, h + 0.16)
    if draw.chance(0.4):
        b.surface(-w / 2 + 0.1, w / 2 - 0.1, -d / 2 + 0.1, 0.3, h + 0.04)
    return w, d, h + 0.5


def cabinet(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d = draw(0.4, 1.6), draw(0.35, 0.6)
    h = draw.pick((draw(0.5, 1.0), draw(0.75, 0.95), draw(1.2, 2.1)))
    body, front = b.wood(), b.panel()
    b.block(-w / 2, w / 2, -d / 2 + 0.02, d / 2, 0, h, body)
    n = max(1, round(w / draw(0.4, 0.9)))
    for i in range(n):
        x0 = -w / 2 + i * w / n
        b.block(x0 + 0.005, x0 + w / n - 0.005, -d / 2, -d / 2 + 0.02, 0.05, h - 0.02, front)
    if draw.chance(0.5):
        b.block(-w / 2 - 0.02, w / 2 + 0.02, -d / 2 - 0.02, d / 2, h, h + 0.03, b.wood() if draw.chance(0.5) else body)
        h += 0.03
    if h < 1.6:
        b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, h)
    return w, d, h


def counter(b: Builder) -> tuple[float, float, float]:
    """A kitchen counter: fronts, a worktop, hanging cupboards above."""
    draw = b.draw
    w, d, h = draw(1.6, 3.0), draw(0.55, 0.68), draw(0.85, 0.95)
    front, body = b.panel(), b.plastic(0.2)
    n = max(2, round(w / draw(0.4, 0.7)))
    b.block(-w / 2, w / 2, -d / 2 + 0.02, d / 2, 0.1, h - 0.04, body)
    for i in range(n):
        x0 = -w / 2 + i * w / n
        b.block(x0 + 0.004, x0 + w / n - 0.004, -d / 2, -d / 2 + 0.02, 0.1, h - 0.05, front)
    b.block(-w / 2, w / 2, -d / 2 - 0.02, d / 2, h - 0.04, h, b.stuff(draw.pick(("marble", "plain", "speckle", "wood")),
            draw.pick((WOODS, PLASTICS, TARMACS)), (0.3, 1), 0.3, gloss=draw(0, 0.4)))  # fmt: skip
    b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, h, 0.5)
    if draw.chance(0.65):
        z = draw(1.35, 1.55)
        for i in range(n):
            x0 = -w / 2 + i * w / n
            if draw.chance(0.85):
                b.block(x0 + 0.003, x0 + w / n - 0.003, d / 2 - 0.34, d / 2, z, z + 0.7, front)
    return w, d, h


def shelf(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d, h = draw(0.6, 1.6), draw(0.25, 0.4), draw(0.8, 2.2)
    wood = b.wood() if draw.chance(0.7) else b.plastic(0.1)
    n = max(2, round(h / draw(0.28, 0.45)))
    for s in (-1, 1):
        b.block(s * w / 2 - 0.012, s * w / 2 + 0.012, -d / 2, d / 2, 0, h, wood)
    if draw.chance(0.6):
        b.block(-w / 2, w / 2, d / 2 - 0.01, d / 2, 0, h, wood)
    for i in range(n + 1):
        z = 0.04 + i * (h - 0.06) / n
        b.block(-w / 2, w / 2, -d / 2, d / 2, z - 0.01, z + 0.01, wood)
        room = (h - 0.06) / n - 0.02
        if i == n:
            b.surface(-w / 2, w / 2, -d / 2 + 0.03, d / 2, z + 0.01)
        elif draw.chance(0.75):
            what = draw.unit()
            if what < 0.4:  # a row of books as one box
                x0 = draw(-w / 2 + 0.02, 0)
                x1 = min(x0 + draw(0.2, w), w / 2 - 0.02)
                b.block(x0, x1, -d / 2 + draw(0.01, 0.1), d / 2 - 0.01, z + 0.01, z + 0.01 + room * draw(0.6, 0.9), b.print("books"))
            elif what < 0.7:
                books(b, -w / 2 + 0.03, w / 2 - 0.03, 0, z + 0.01, room, 10)
            else:
                b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, z + 0.01, room)
    return w, d, h


def books(b: Builder, x0: float, x1: float, y: float, z: float, room: float, most: int) -> None:
    """Upright books along x, side by side, now and then leaning."""
    draw = b.draw
    x = draw(x0, (x0 + x1) / 2)
    for _ in range(draw.integer(3, most)):
        t, h, d = draw(0.015, 0.06), min(draw(0.17, 0.32), room * 0.95), draw(0.1, 0.18)
        if x + t > x1:
            break
        m = b.print("poster") if draw.chance(0.4) else b.thing()
        lean = draw(-0.25, 0.25) if draw.chance(0.1) else 0.0
        b.box(x + t / 2, y - draw(0, 0.03), z + h / 2, t / 2 - 0.001, d / 2, h / 2, m, tilted(0, lean))
        x += t
    return


def wardrobe(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    w, d, h = draw(0.8, 2.2), draw(0.5, 0.65), draw(1.8, 2.3)
    body, front = b.wood(), b.panel()
    b.block(-w / 2, w / 2, -d / 2 + 0.02, d / 2, 0, h, body)
    n = max(1, round(w / 0.6))
    for i in range(n):
        x0 = -w / 2 + i * w / n
        b.block(x0 + 0.004, x0 + w / n - 0.004, -d / 2, -d / 2 + 0.02, 0.06, h - 0.03, front)
    return w, d, h


def floor_lamp(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    h, m = draw(1.2, 1.8), b.metal()
    b.tube(0, 0, 0, 0.03, 0.14, m)
    b.tube(0, 0, 0, h, 0.013, m)
    b.tube(0, 0, h - 0.05, h + draw(0.15, 0.35), draw(0.13, 0.22), b.paint("plain", (0.8, 0.72, 0.6), (0.98, 0.92, 0.8),
           emit=draw(0.0, 1.6)), draw(-0.5, -0.2))  # fmt: skip
    return 0.35, 0.35, h


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
    b.ball(0, 0.025, h - 0.08, 0.088, 0.1, 0.11, b.stuff("speckle", ((0.1, 0.07, 0.05), (0.35, 0.24, 0.14), (0.5, 0.45, 0.4)), (0.1, 0.4)))
    return 0.6, 0.5, h


def radiator(b: Builder) -> tuple[float, float, float]:
    w, h = b.draw(0.6, 1.4), b.draw(0.5, 0.7)
    b.block(-w / 2, w / 2, -0.05, 0.03, 0.12, h, b.paint("stripes", (0.7, 0.7, 0.7), (0.9, 0.9, 0.88), 0.6))
    return w, 0.12, h


def boxes(b: Builder) -> tuple[float, float, float]:
    """A stack of cartons or crates."""
    draw = b.draw
    z, w = 0.0, draw(0.3, 0.6)
    for _ in range(draw.integer(1, 4)):
        hx, hy, hz = w / 2 * draw(0.6, 1), w / 2 * draw(0.6, 1), draw(0.08, 0.22)
        m = b.stuff("plain", WOODS, (0.3, 1), 0.2) if draw.chance(0.6) else b.thing()
        b.box(draw(-0.05, 0.05), draw(-0.05, 0.05), z + hz, hx, hy, hz, m, tilted(draw(-0.4, 0.4), 0))
        z += 2 * hz
    return w, w, z


def bin_(b: Builder) -> tuple[float, float, float]:
    r, h = b.draw(0.12, 0.2), b.draw(0.25, 0.6)
    b.tube(0, 0, 0, h, r, b.plastic(0.3), b.draw(0.05, 0.3))
    return 2 * r, 2 * r, h


def piano(b: Builder) -> tuple[float, float, float]:
    """A television on a low board, or a machine with a screen."""
    draw = b.draw
    w, d, h, body = draw(1.0, 1.8), draw(0.35, 0.5), draw(0.35, 0.6), b.wood()
    b.block(-w / 2, w / 2, -d / 2, d / 2, 0.05, h, body)
    tw = w * draw(0.5, 0.95)
    z, m = h + 0.08, b.plastic(0)
    b.block(-0.12, 0.12, -0.06, 0.06, h, z, m)
    flat_screen(b, 0, 0, z, tw, tw * 0.58, m)
    b.surface(-w / 2, w / 2, -d / 2 + 0.05, -0.08, h)
    return w, d, h


def flat_screen(b: Builder, x: float, y: float, z: float, w: float, h: float, frame: int) -> None:
    draw = b.draw
    b.block(x - w / 2, x + w / 2, y - 0.01, y + 0.03, z, z + h, frame)
    if draw.chance(0.5):
        picture = b.paint("plain", (0.02, 0.02, 0.025), (0.06, 0.06, 0.07), gloss=0.6)
    else:
        picture = b.print("screen", emit=draw(0.2, 1.2))
    rim = draw(0.008, 0.03)
    b.block(x - w / 2 + rim, x + w / 2 - rim, y - 0.013, y - 0.009, z + rim, z + h - rim, picture)


# Clutter: drawn at the local frame, x right, -y towards the viewer, about 5 to 40 cm.


def monitor(b: Builder) -> None:
    draw = b.draw
    w = draw(0.4, 0.65)
    h, z, m = w * draw(0.56, 0.75), draw(0.08, 0.18), b.plastic(0)
    b.block(-0.12, 0.12, -0.08, 0.1, 0, 0.015, m)
    b.block(-0.03, 0.03, 0.03, 0.06, 0, z + h * 0.4, m)
    flat_screen(b, 0, 0, z, w, h, m)
    if draw.chance(0.15):  # an old one with a tube
        b.block(-w * 0.4, w * 0.4, 0.03, 0.35, z + 0.03, z + h * 0.9, m)


def laptop(b: Builder) -> None:
    m, w, open_ = b.plastic(0.05), b.draw(0.15, 0.19), b.draw(0.1, 0.5)
    b.box(0, -0.1, 0.01, w, 0.12, 0.01, m)
    b.box(0, -0.08, 0.0205, w * 0.9, 0.06, 0.001, b.print("keys"))
    b.box(0, 0.02 + 0.11 * math.sin(open_), 0.11 * math.cos(open_) + 0.01, w, 0.005, 0.11, m, tilted(0, 0, -open_))
    b.box(0, 0.013 + 0.11 * math.sin(open_), 0.112 * math.cos(open_) + 0.011, w * 0.93, 0.004, 0.1,
          b.print("screen", emit=b.draw(0, 1)), tilted(0, 0, -open_))  # fmt: skip


def keyboard(b: Builder) -> None:
    w, m = b.draw(0.17, 0.23), b.plastic(0)
    b.box(0, 0, 0.01, w, 0.075, 0.01, m)
    b.box(0, 0, 0.021, w * 0.97, 0.068, 0.002, b.print("keys"))
    if b.draw.chance(0.6):
        b.ball(w + 0.1, 0, 0.012, 0.032, 0.055, 0.02, b.plastic(0))


def mug(b: Builder) -> None:
    draw = b.draw
    r, h, m = draw(0.03, 0.055), draw(0.07, 0.14), b.thing()
    b.tube(0, 0, 0, h, r, m, draw.pick((0.0, 0.0, 0.15, 0.3)))
    b.tube(0, 0, h, h + 0.001, r * 0.85, b.paint("plain", (0.05, 0.04, 0.03), (0.15, 0.1, 0.07)))
    if draw.chance(0.6):
        a = draw(0, 6.28)
        c, s = math.cos(a), math.sin(a)
        p, q = (c * r, s * r, h * 0.8), (c * r, s * r, h * 0.25)
        e = (c * (r + 0.028), s * (r + 0.028), h * 0.55)
        b.rod(p, e, 0.006, m)
        b.rod(e, q, 0.006, m)


def bottle(b: Builder) -> None:
    draw = b.draw
    r, h, m = draw(0.025, 0.05), draw(0.15, 0.33), b.thing()
    b.tube(0, 0, 0, h * 0.65, r, m)
    b.tube(0, 0, h * 0.65, h * 0.8, r, m, -0.6)
    b.tube(0, 0, h * 0.8, h, r * 0.4, b.plastic(0.5))


def can(b: Builder) -> None:
    r = b.draw(0.025, 0.06)
    b.tube(0, 0, 0, b.draw(0.05, 0.2), r, b.print(fit=False, tile=b.draw(0.1, 0.3)) if b.draw.chance(0.6) else b.thing())


def book_stack(b: Builder) -> None:
    z = 0.0
    for _ in range(b.draw.integer(1, 6)):
        hz = b.draw(0.006, 0.03)
        b.box(b.draw(-0.02, 0.02), b.draw(-0.02, 0.02), z + hz, b.draw(0.07, 0.13), b.draw(0.1, 0.16), hz,
              b.print("poster") if b.draw.chance(0.6) else b.thing(), tilted(b.draw(-0.5, 0.5), 0))  # fmt: skip
        z += 2 * hz


def book_row(b: Builder) -> None:
    books(b, -0.2, 0.25, 0, 0, 0.4, 8)


def papers(b: Builder) -> None:
    z = 0.0005
    for _ in range(b.draw.integer(1, 5)):
        m = b.print("text" if b.draw.chance(0.7) else "poster")
        b.box(b.draw(-0.12, 0.12), b.draw(-0.1, 0.1), z, 0.105, 0.148, 0.0005, m, tilted(b.draw(-1.5, 1.5), 0))
        z += 0.001


def carton(b: Builder) -> None:
    draw = b.draw
    hx, hy, hz = draw.log(0.03, 0.2), draw.log(0.03, 0.15), draw.log(0.02, 0.2)
    turn = tilted(0, 0)
    if draw.chance(0.1):
        turn = tilted(draw(0, 6), draw(-0.6, 0.6), draw(-0.6, 0.6))
    b.box(0, 0, hz, hx, hy, hz, b.print("poster") if draw.chance(0.4) else b.thing(), turn)


def ball(b: Builder) -> None:
    r = b.draw.log(0.025, 0.15)
    b.ball(0, 0, r, r, r, r, b.thing())


def fruit(b: Builder) -> None:
    m = b.stuff("plain", FABRICS, (0.05, 0.3), 0.3, accent=0.8, gloss=0.2)
    b.tube(0, 0, 0, 0.05, 0.07, b.thing(), b.draw(0.4, 0.9))
    for i in range(b.draw.integer(2, 6)):
        b.ball(0.05 * math.cos(i * 2.1), 0.05 * math.sin(i * 2.1), 0.065 + 0.012 * i, 0.04, 0.04, 0.038, m)


def desk_lamp(b: Builder) -> None:
    draw = b.draw
    m, h, reach = b.plastic(0.3), draw(0.25, 0.5), draw(0.1, 0.3)
    b.tube(0, 0, 0, 0.02, 0.08, m)
    b.rod((0, 0, 0), (-reach * 0.4, 0.05, h), 0.01, m)
    b.rod((-reach * 0.4, 0.05, h), (reach, -0.05, h * 0.95), 0.01, m)
    b.tube(reach, -0.05, h * 0.72, h * 0.95, 0.09, m if draw.chance(0.5) else b.paint("plain", (0.8, 0.75, 0.6), WHITE, emit=1.0), -0.6)


def table_lamp(b: Builder) -> None:
    h = b.draw(0.12, 0.3)
    b.ball(0, 0, h * 0.5, 0.07, 0.07, h * 0.5, b.thing())
    b.tube(0, 0, h, h + 0.2, 0.14, b.paint("plain", (0.8, 0.72, 0.6), (0.98, 0.92, 0.8), emit=b.draw(0, 1.4)), -0.35)


def toy(b: Builder) -> None:
    """A sitting animal or doll of ellipsoids."""
    draw = b.draw
    s, m = draw(0.06, 0.16), b.cloth(0.4)
    m2 = m if draw.chance(0.5) else b.cloth(0.4)
    b.ball(0, 0, s * 0.9, s * 0.75, s * 0.65, s * 0.9, m)
    b.ball(0, -s * 0.1, s * 2.1, s * 0.6, s * 0.6, s * 0.55, m2)
    for i in (-1, 1):
        b.ball(i * s * 0.45, 0, s * 2.6, s * 0.2, s * 0.12, s * draw(0.15, 0.5), m2)
        b.ball(i * s * 0.8, -s * 0.3, s * 1.2, s * 0.2, s * 0.45, s * 0.22, m)
        b.ball(i * s * 0.5, -s * 0.7, s * 0.25, s * 0.25, s * 0.6, s * 0.25, m)
        b.ball(i * s * 0.22, -s * 0.62, s * 2.2, s * 0.08, s * 0.08, s * 0.08, b.plastic(0))


def phone(b: Builder) -> None:
    m = b.plastic(0.1)
    b.box(0, 0, 0.025, 0.08, 0.1, 0.025, m, tilted(0, 0, 0.1))
    b.rod((-0.07, -0.09, 0.065), (-0.07, 0.09, 0.075), 0.02, m, rounded=True)


def headphones(b: Builder) -> None:
    """A tape roll, plate or bowl: low round things."""
    draw = b.draw
    r = draw(0.05, 0.14)
    b.tube(0, 0, 0, draw(0.01, 0.06), r, b.thing(), draw.pick((0.0, 0.3, 0.6)))


def vase(b: Builder) -> None:
    plant(b, b.draw(0.15, 0.5))


def frame(b: Builder) -> None:
    """A standing picture frame."""
    w, h = b.draw(0.06, 0.15), b.draw(0.07, 0.15)
    t = tilted(0, 0, -0.2)
    b.box(0, 0, h, w, 0.01, h, b.wood(), t)
    b.box(0, -0.004, h, w * 0.86, 0.01, h * 0.86, b.print(b.draw.pick(("poster", "landscape"))), t)


def shape(b: Builder) -> None:
    """Any primitive in any orientation."""
    draw = b.draw
    r = draw.log(0.03, 0.14)
    turn = tilted(draw(0, 6.28), draw(-1.5, 1.5), draw(-1.5, 1.5))
    b.add(draw.integer(0, 3), 0, 0, r, r * draw(0.5, 1.4), r * draw(0.5, 1.4), r * draw(0.5, 1.4), b.thing(), turn, draw(-0.95, -0.1))


def bag(b: Builder) -> None:
    draw = b.draw
    m, s = b.cloth(0.3), draw(0.12, 0.25)
    b.ball(0, 0, s * 0.8, s, s * 0.55, s, m)
    b.box(0, 0, s * 0.6, s * 0.8, s * 0.4, s * 0.6, m)
    b.rod((-s * 0.4, 0, s * 1.6), (s * 0.4, 0, s * 1.7), 0.02, m)


def shoes(b: Builder) -> None:
    m = b.thing()
    for s in (-1, 1):
        b.ball(s * 0.07, 0, 0.045, 0.05, 0.14, 0.05, m)
        b.ball(s * 0.07, 0.06, 0.07, 0.045, 0.07, 0.06, m)


CLUTTER = (
    (1.0, mug), (1.0, bottle), (0.8, can), (1.2, book_stack), (0.8, book_row), (1.2, papers), (1.6, carton), (0.4, ball),
    (0.3, fruit), (0.4, desk_lamp), (0.3, table_lamp), (0.6, toy), (0.3, phone), (0.6, headphones), (0.5, vase), (0.4, frame),
    (0.6, shape), (0.3, laptop), (0.3, keyboard),
)  # fmt: skip
SMALL = ((1.0, mug), (1.0, bottle), (0.8, can), (0.8, carton), (0.6, book_stack), (0.4, toy), (0.4, vase), (0.3, frame),
         (0.4, shape), (0.5, book_row))  # fmt: skip
FLOOR_CLUTTER = ((1.0, carton), (0.8, bag), (0.5, shoes), (0.6, ball), (0.5, toy), (0.5, book_stack), (0.4, papers), (0.5, shape))
# Weight, function: what stands along the walls of a room.
ALONG_WALLS = (
    (1.3, sofa), (1.0, bed), (1.4, cabinet), (1.5, shelf), (1.0, desk), (0.8, wardrobe), (0.9, table), (0.8, chair),
    (0.6, floor_lamp), (0.7, plant), (0.5, counter), (0.6, radiator), (0.6, boxes), (0.4, bin_), (0.5, piano), (0.3, person),
)  # fmt: skip


# Outdoors


def car(b: Builder) -> tuple[float, float, float]:
    """Length along y."""
    draw = b.draw
    w, length, belt, h = draw(1.6, 1.85), draw(3.6, 4.8), draw(0.85, 1.0), draw(1.4, 1.65)
    van = draw.chance(0.15)
    if van:
        h, length = draw(1.9, 2.4), draw(4.6, 5.6)
    paint = b.stuff("plain", CARS, (0.5, 2), 0.05, accent=0.2, gloss=draw(0.3, 0.8))
    glass, rubber = b.paint("cloud", (0.03, 0.04, 0.05), (0.2, 0.23, 0.26), 2.0, gloss=0.8), b.paint("plain", (0.03,) * 3, (0.07,) * 3)
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
        b.box(sx * w * 0.38, length / 2 * 0.93, belt * 0.8, 0.12, 0.06, 0.09, b.paint("plain", (0.4, 0.03, 0.03), (0.6, 0.06, 0.05)))
    b.box(0, length / 2 * 0.945, belt * 0.6, 0.26, 0.05, 0.06, b.print("text"))
    return w, length, h


def tree(b: Builder, h: float | None = None) -> tuple[float, float, float]:
    draw = b.draw
    h = h or draw(2.5, 9.0)
    bark, leaf = b.stuff("wood", ((0.3, 0.24, 0.18), (0.4, 0.36, 0.3), (0.22, 0.18, 0.15)), (0.3, 1.2), 0.5), b.foliage()
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
        put(x, y, z, s * draw(0.8, 1.3), s * draw(0.8, 1.3), s * draw(0.6, 1), leaf if i % 2 else second, tilted(draw(0, 6), draw(-0.4, 0.4)))
    return 2 * wide, 2 * wide, h


def bush(b: Builder) -> tuple[float, float, float]:
    draw = b.draw
    s, leaf = draw(0.4, 1.3), b.foliage()
    put = b.crown if draw.chance(0.7) else b.ball
    for i in range(draw.integer(2, 6)):
        put(s * 0.5 * math.cos(i * 2.2), s * 0.5 * math.sin(i * 2.2), s * draw(0.3, 0.6), s * draw(0.4, 0.7), s * draw(0.4, 0.7),
               s * draw(0.3, 0.6), leaf)  # fmt: skip
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
        for p, q in zip(points, points[1:], strict=False):
            b.rod(p, q, 0.018, dark)
    pedal, seat, head = (0, 0.05, 0.3), (0, 0.2, 0.8), (0, -0.35, 0.75)
    for p, q in ((pedal, seat), (seat, head), (pedal, head), (pedal, (0, 0.52, 0.34)), (seat, (0, 0.52, 0.34)), (head, (0, -0.52, 0.34))):
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
        b.ball(draw(-0.3, 0.3) * s, draw(-0.3, 0.3) * s, s * 0.3, s * draw(0.5, 1), s * draw(0.5, 1), s * draw(0.3, 0.7), m,
               tilted(draw(0, 6), draw(-0.3, 0.3)))  # fmt: skip
    return s * 2, s * 2, s
