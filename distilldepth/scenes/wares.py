"""What lies on tables, workbenches and floors beside the things of clutter.py: kitchen ware, food, tools, toys, boxes.

Drawn at the builder's local frame as there: x is right, -y towards the viewer, z = 0 the surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from distilldepth.scenes import clutter, props
from distilldepth.scenes.builder import EARTHS, FABRICS, FLOWERS, Builder, tilted

Wares = tuple[tuple[float, Callable[[Builder], object]], ...]


def bowl(b: Builder) -> None:
    """A bowl or plate with something in it."""
    draw = b.draw
    r, h = draw.log(0.05, 0.16), draw(0.02, 0.09)
    m = b.thing() if draw.chance(0.6) else b.plastic(0.3)
    b.tube(0, 0, 0, h, r * 0.6, m, draw(0.4, 0.7))
    inside = b.stuff("speckle", FABRICS + EARTHS, (0.05, 0.3), 0.5, accent=0.5)
    b.tube(0, 0, h, h + 0.001, r * 0.88, inside)
    for i in range(draw.integer(0, 7)):
        s, a = r * draw(0.15, 0.35), i * 2.4
        rho = draw(0, 0.6) * r
        b.ball(rho * math.cos(a), rho * math.sin(a), h + s * 0.3, s, s * draw(0.5, 1), s * draw(0.5, 1), inside)


def plate(b: Builder) -> None:
    draw = b.draw
    r, m = draw(0.08, 0.15), b.plastic(0.2)
    b.tube(0, 0, 0, 0.012, r * 0.7, m, 0.4)
    b.tube(0, 0, 0.012, 0.013, r * 0.8, b.plastic(0.05))
    food = b.stuff(draw.pick(("speckle", "gravel", "cloud", "leaves")), FABRICS, (0.05, 0.3), 0.6, accent=0.6)
    for _ in range(draw.integer(0, 6)):
        x, y, s = draw(-0.45, 0.45) * r, draw(-0.45, 0.45) * r, draw(0.015, 0.05)
        b.ball(x, y, 0.012, s, s * draw(0.5, 1), s * draw(0.3, 0.9), food, tilted(draw(0, 6), 0))


def pot(b: Builder) -> None:
    """A pot or pan with a handle."""
    draw = b.draw
    r, h, m = draw(0.07, 0.15), draw(0.04, 0.16), b.metal() if draw.chance(0.6) else b.plastic(0.4)
    b.tube(0, 0, 0, h, r, m)
    if draw.chance(0.5):
        b.ball(0, 0, h, r, r, 0.02, m)
        b.tube(0, 0, h + 0.01, h + 0.045, 0.015, b.plastic(0))
    else:
        b.tube(0, 0, h, h + 0.001, r * 0.93, b.stuff("cloud", FABRICS, (0.05, 0.4), 0.4, accent=0.3))
    b.rod((r * 0.9, 0, h * 0.8), (r + draw(0.1, 0.22), 0, h * draw(0.8, 1.2)), 0.012, b.plastic(0.1))


def jar(b: Builder) -> None:
    draw = b.draw
    r, h = draw(0.03, 0.07), draw(0.07, 0.2)
    b.tube(0, 0, 0, h, r, b.thing())
    b.tube(0, 0, h * 0.25, h * 0.75, r * 1.01, b.print(fit=False, tile=draw(0.1, 0.3)))
    b.tube(0, 0, h, h + 0.015, r * 0.9, b.plastic(0.5))


def spray(b: Builder) -> None:
    """A tall bottle with a head, or a tin with a spout."""
    draw = b.draw
    r, h, m = draw(0.03, 0.05), draw(0.16, 0.3), b.thing()
    b.ball(0, 0, h * 0.4, r, r * draw(0.6, 1), h * 0.42, m)
    b.tube(0, 0, 0, h * 0.5, r * 0.9, m)
    b.tube(0, 0, h * 0.7, h, 0.012, m)
    b.box(0.015, 0, h, 0.035, 0.012, 0.018, b.plastic(0.6), tilted(draw(0, 6), draw(-0.3, 0.3)))


def cutlery(b: Builder) -> None:
    m = b.metal()
    for i in range(b.draw.integer(1, 3)):
        x = 0.03 * i
        turn = b.draw(-0.15, 0.15)
        b.box(x, -0.03, 0.004, 0.006, 0.07, 0.003, m, tilted(turn, 0))
        b.ball(x, 0.06, 0.006, 0.016, 0.032, 0.005, m, tilted(turn, 0))


def screwdriver(b: Builder) -> None:
    draw = b.draw
    length, grip = draw(0.06, 0.14), b.plastic(0.8)
    b.rod((-0.11, 0, 0.016), (0, 0, 0.016), 0.016, grip)
    b.rod((-0.1, 0, 0.016), (-0.01, 0, 0.016), 0.019, b.plastic(0.3), rounded=True)
    b.rod((0, 0, 0.014), (length, 0, 0.006), 0.004, b.metal())


def hammer(b: Builder) -> None:
    length = b.draw(0.12, 0.2)
    b.rod((-length, 0, 0.016), (length, 0, 0.018), 0.014, b.wood())
    b.rod((length, -0.06, 0.018), (length, 0.06, 0.018), 0.018, b.metal())


def pliers(b: Builder) -> None:
    m, grip, open_ = b.metal(), b.plastic(0.9), b.draw(0.02, 0.05)
    for s in (-1, 1):
        b.rod((0, 0, 0.01), (-0.13, s * open_, 0.01), 0.009, grip, rounded=True)
        b.rod((0, 0, 0.01), (0.05, s * open_ * 0.2, 0.01), 0.008, m)
    b.tube(0, 0, 0, 0.018, 0.012, m)


def pens(b: Builder) -> None:
    for _ in range(b.draw.integer(1, 5)):
        x, y, a = b.draw(-0.08, 0.08), b.draw(-0.06, 0.06), b.draw(0, 6.28)
        c, s = 0.07 * math.cos(a), 0.07 * math.sin(a)
        b.rod((x - c, y - s, 0.005), (x + c, y + s, 0.005), 0.005, b.plastic(0.8))


def holder(b: Builder) -> None:
    """A beaker of pens, brushes or spoons."""
    draw = b.draw
    r, h = draw(0.03, 0.06), draw(0.08, 0.16)
    b.tube(0, 0, 0, h, r, b.thing())
    for _ in range(draw.integer(3, 8)):
        a, lean, top = draw(0, 6.28), draw(0.3, 1.3) * r, h * draw(1.2, 2.2)
        end = (lean * math.cos(a) * 1.6, lean * math.sin(a) * 1.6, top)
        b.rod((0.5 * lean * math.cos(a), 0.5 * lean * math.sin(a), h * 0.3), end, 0.004, b.plastic(0.7))
        if draw.chance(0.5):
            b.ball(*end, 0.012, 0.008, 0.022, b.thing())


def cable(b: Builder) -> None:
    """A cable or rope in a few bends."""
    draw = b.draw
    m, r = b.plastic(0.3), draw(0.003, 0.012)
    x, y, a = draw(-0.1, 0.1), draw(-0.1, 0.1), draw(0, 6.28)
    for _ in range(draw.integer(5, 12)):
        u, v = x + 0.05 * math.cos(a), y + 0.05 * math.sin(a)
        b.rod((x, y, r), (u, v, r), r, m)
        x, y, a = u, v, a + draw(-0.9, 0.9)


def crate(b: Builder) -> None:
    """An open box with things in it."""
    draw = b.draw
    w, d, h, t = draw(0.08, 0.22), draw(0.06, 0.16), draw(0.04, 0.16), 0.006
    m = b.wood() if draw.chance(0.5) else b.thing()
    b.block(-w, w, -d, d, 0, t, m)
    for s in (-1, 1):
        b.block(s * w - t, s * w + t, -d, d, 0, h, m)
        b.block(-w, w, s * d - t, s * d + t, 0, h, m)
    for _ in range(draw.integer(2, 8)):
        x, y, r = draw(-0.7, 0.7) * w, draw(-0.7, 0.7) * d, draw(0.015, 0.05)
        z = r + draw(0, 0.6) * h
        turn = tilted(draw(0, 6.28), draw(-1, 1), draw(-1, 1))
        b.add(draw.integer(0, 2), (x, y, z), (r * draw(0.5, 1.5), r, r * draw(0.5, 1.5)), b.thing(), turn)


def fruits(b: Builder) -> None:
    """Loose fruit and vegetables."""
    draw = b.draw
    m = b.stuff("cloud", FLOWERS, (0.05, 0.3), 0.3, accent=0.7, gloss=0.2)
    long, r = draw.chance(0.3), draw(0.025, 0.05)
    for i in range(draw.integer(1, 6)):
        a = i * 2.4
        rho = 0.045 * math.sqrt(i)
        x, y = rho * math.cos(a) * 1.5, rho * math.sin(a) * 1.5
        b.ball(x, y, r * 0.9, r * (2.6 if long else 1), r, r * 0.92, m, tilted(draw(0, 6.28), 0))


def cup(b: Builder) -> None:
    """A wine glass, goblet or candle: a stem with a body."""
    draw = b.draw
    h, r, m = draw(0.1, 0.26), draw(0.025, 0.05), b.thing()
    b.tube(0, 0, 0, 0.008, r * 0.9, m)
    b.tube(0, 0, 0, h * 0.5, 0.006, m)
    b.ball(0, 0, h * 0.72, r, r, h * 0.3, m)


def flowers(b: Builder) -> None:
    """A vase or pot with flowers."""
    draw = b.draw
    h, r = draw(0.08, 0.2), draw(0.03, 0.06)
    b.tube(0, 0, 0, h, r, b.thing(), draw(-0.4, 0.5))
    stem, petals = b.foliage(), b.stuff("plain", FLOWERS, (0.05, 0.2), 0.3)
    for i in range(draw.integer(3, 9)):
        a, lean, top = i * 2.4, draw(0.02, 0.14), h + draw(0.06, 0.24)
        x, y = lean * math.cos(a), lean * math.sin(a)
        b.rod((0, 0, h * 0.8), (x, y, top), 0.004, stem)
        s = draw(0.012, 0.035)
        b.ball(x, y, top, s, s, s * draw(0.4, 1), petals, tilted(a, -0.5))
        if i % 2:
            b.ball(x * 0.6, y * 0.6, (h + top) / 2, 0.03, 0.012, 0.004, stem, tilted(a, draw(-0.8, 0.2)))


def cloth(b: Builder) -> None:
    """A cloth left in a heap, or folded."""
    draw = b.draw
    m = b.cloth(0.3)
    if draw.chance(0.5):
        b.box(0, 0, 0.012, draw(0.07, 0.18), draw(0.06, 0.14), 0.012, m, tilted(draw(0, 6), 0))
        return
    for i in range(draw.integer(3, 7)):
        s, a = draw(0.04, 0.11), i * 2.4
        turn = tilted(draw(0, 6), draw(-0.4, 0.4), draw(-0.4, 0.4))
        b.ball(0.05 * math.cos(a), 0.05 * math.sin(a), s * 0.25, s, s * 0.6, s * draw(0.25, 0.5), m, turn)


def remote(b: Builder) -> None:
    """A telephone, calculator or remote control lying flat."""
    draw = b.draw
    w, d, h = draw(0.02, 0.045), draw(0.06, 0.1), draw(0.004, 0.014)
    b.box(0, 0, h, w, d, h, b.plastic(0.1))
    face = b.print(draw.pick(("keys", "screen")), emit=draw(0, 0.5))
    b.box(0, 0, 2 * h, w * 0.88, d * 0.92, 0.001, face)


def machine(b: Builder) -> None:
    """A kitchen or workshop machine of a few bodies."""
    draw = b.draw
    w, d, h, m = draw(0.08, 0.18), draw(0.08, 0.15), draw(0.12, 0.34), b.plastic(0.3)
    b.block(-w, w, -d * 0.3, d, 0, h, m)
    b.block(-w, w, -d, d, 0, h * draw(0.1, 0.25), b.plastic(0.1) if draw.chance(0.5) else m)
    b.block(-w * 0.9, w * 0.9, -d * draw(0.5, 1), d, h * 0.75, h, m)
    b.rod((0, -d * 0.3, h * 0.6), (0, -d * 0.3 - 0.02, h * 0.6), draw(0.015, 0.05), b.metal())
    b.box(w * 0.5, -d * 0.31, h * 0.5, w * 0.3, 0.004, h * 0.1, b.print(draw.pick(("screen", "text", "keys"))))


def blocks(b: Builder) -> None:
    """Building blocks, scattered or piled up."""
    draw = b.draw
    s = draw(0.012, 0.03)
    for i in range(draw.integer(3, 10)):
        x, y = draw(-0.09, 0.09), draw(-0.09, 0.09)
        z = s * (1 if i < 5 else 3)
        b.box(x, y, z, s * draw.pick((1, 1, 2)), s, s, b.plastic(0.9), tilted(draw(0, 6.28), 0))


def model(b: Builder) -> None:
    """A toy car."""
    draw = b.draw
    s, m, wheel = draw(0.03, 0.08), b.plastic(0.9), b.paint("plain", (0.03,) * 3, (0.08,) * 3)
    b.box(0, 0, s * 0.65, s * 0.5, s * 1.1, s * 0.3, m)
    b.box(0, s * 0.15, s * 1.1, s * 0.42, s * 0.6, s * 0.28, b.plastic(0.3))
    for x in (-0.5, 0.5):
        for y in (-0.7, 0.7):
            b.rod((x * s - 0.1 * s, y * s, s * 0.3), (x * s + 0.1 * s, y * s, s * 0.3), s * 0.3, wheel)


def board(b: Builder) -> None:
    """A cutting board, tray, magazine or tile under other things."""
    draw = b.draw
    w, d, t = draw(0.1, 0.25), draw(0.08, 0.18), draw.log(0.002, 0.025)
    b.box(0, 0, t, w, d, t, b.cover(), tilted(draw(0, 6.28), 0))
    for _ in range(draw.integer(0, 3)):
        r = draw(0.015, 0.04)
        b.ball(draw(-0.6, 0.6) * w, draw(-0.6, 0.6) * d, 2 * t + r * 0.8, r, r * draw(0.7, 1.5), r, b.thing())


KITCHEN: Wares = (
    (1.2, bowl), (1.2, plate), (1.0, pot), (0.8, jar), (0.8, clutter.bottle), (0.8, clutter.mug), (0.8, cutlery),
    (0.8, fruits), (0.6, board), (0.5, cup), (0.4, machine), (0.5, clutter.can), (0.4, cloth), (0.4, clutter.carton),
    (0.3, flowers), (0.3, spray), (0.3, holder),
)  # fmt: skip
WORKSHOP: Wares = (
    (1.0, screwdriver), (1.0, hammer), (1.0, pliers), (0.8, crate), (0.8, cable), (0.7, clutter.can), (0.7, spray),
    (0.5, machine), (0.6, holder), (0.6, clutter.carton), (0.5, jar), (0.5, clutter.shape), (0.4, board),
    (0.3, clutter.desk_lamp), (0.3, clutter.papers),
)  # fmt: skip
STUDY: Wares = (
    (1.2, clutter.book_stack), (1.0, clutter.papers), (0.8, pens), (0.7, holder), (0.6, remote), (0.6, clutter.mug),
    (0.5, clutter.keyboard), (0.4, clutter.laptop), (0.4, clutter.frame), (0.5, clutter.book_row), (0.4, clutter.phone),
    (0.4, flowers), (0.3, clutter.table_lamp), (0.4, clutter.carton), (0.3, cable), (0.3, clutter.bottle),
)  # fmt: skip
NURSERY: Wares = (
    (1.2, clutter.toy), (1.0, blocks), (1.0, model), (0.8, clutter.ball), (0.6, crate), (0.6, clutter.book_stack),
    (0.6, clutter.shape), (0.4, clutter.shoes), (0.4, cloth), (0.4, clutter.carton), (0.3, clutter.bag), (0.3, pens),
)  # fmt: skip
GARDEN: Wares = (
    (1.0, clutter.vase), (0.8, flowers), (0.8, crate), (0.7, clutter.can), (0.6, pot), (0.5, fruits), (0.4, hammer),
    (0.5, lambda b: props.plant(b, b.draw(0.12, 0.4))), (0.4, spray), (0.4, clutter.bottle), (0.3, clutter.shape),
)  # fmt: skip
THEMES: tuple[Wares, ...] = (
    KITCHEN, KITCHEN, WORKSHOP, STUDY, NURSERY, GARDEN, clutter.CLUTTER, KITCHEN + WORKSHOP + STUDY + NURSERY + GARDEN,
)  # fmt: skip
