"""Furniture made of primitives.

A function draws into the builder's current group, its back towards +y and its foot on z = 0, and returns
(width, depth, height) in metres.
"""

from __future__ import annotations

import math

from distilldepth.scenes import clutter, props
from distilldepth.scenes.builder import PLASTICS, TARMACS, WOODS, Builder, tilted


def table(
    b: Builder, w: float | None = None, d: float | None = None, h: float | None = None
) -> tuple[float, float, float]:
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
        b.ball(
            x0 + inner / n / 2,
            d / 2 - 0.2,
            (seat + top) / 2,
            inner / n / 2 * 1.02,
            0.12,
            (top - seat) / 2 + 0.06,
            cloth,
        )
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
        b.ball(
            x,
            d / 2 - 0.28,
            h + 0.07,
            w * (0.4 if w < 1.2 else 0.22),
            0.22,
            0.1,
            sheet if draw.chance(0.5) else b.cloth(0.2),
        )
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
    b.block(
        -w / 2,
        w / 2,
        -d / 2 - 0.02,
        d / 2,
        h - 0.04,
        h,
        b.stuff(
            draw.pick(("marble", "plain", "speckle", "wood")),
            draw.pick((WOODS, PLASTICS, TARMACS)),
            (0.3, 1),
            0.3,
            gloss=draw(0, 0.4),
        ),
    )
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
                b.block(
                    x0,
                    x1,
                    -d / 2 + draw(0.01, 0.1),
                    d / 2 - 0.01,
                    z + 0.01,
                    z + 0.01 + room * draw(0.6, 0.9),
                    b.print("books"),
                )
            elif what < 0.7:
                clutter.books(b, -w / 2 + 0.03, w / 2 - 0.03, 0, z + 0.01, room, 10)
            else:
                b.surface(-w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, z + 0.01, room)
    return w, d, h


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
    b.tube(
        0,
        0,
        h - 0.05,
        h + draw(0.15, 0.35),
        draw(0.13, 0.22),
        b.paint("plain", (0.8, 0.72, 0.6), (0.98, 0.92, 0.8), emit=draw(0.0, 1.6)),
        draw(-0.5, -0.2),
    )
    return 0.35, 0.35, h


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


def television(b: Builder) -> tuple[float, float, float]:
    """A television on a low board, or a machine with a screen."""
    draw = b.draw
    w, d, h, body = draw(1.0, 1.8), draw(0.35, 0.5), draw(0.35, 0.6), b.wood()
    b.block(-w / 2, w / 2, -d / 2, d / 2, 0.05, h, body)
    tw = w * draw(0.5, 0.95)
    z, m = h + 0.08, b.plastic(0)
    b.block(-0.12, 0.12, -0.06, 0.06, h, z, m)
    clutter.flat_screen(b, 0, 0, z, tw, tw * 0.58, m)
    b.surface(-w / 2, w / 2, -d / 2 + 0.05, -0.08, h)
    return w, d, h


ALONG_WALLS = (
    (1.3, sofa),
    (1.0, bed),
    (1.4, cabinet),
    (1.5, shelf),
    (1.0, desk),
    (0.8, wardrobe),
    (0.9, table),
    (0.8, chair),
    (0.6, floor_lamp),
    (0.7, props.plant),
    (0.5, counter),
    (0.6, radiator),
    (0.6, boxes),
    (0.4, bin_),
    (0.5, television),
    (0.3, props.person),
)
