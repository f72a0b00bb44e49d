"""Small things on tables, shelves and floors, drawn at the builder's local frame within about 0.4 m.

x is right, -y towards the viewer, z = 0 the surface.
"""

from __future__ import annotations

import math

from distilldepth.scenes import props
from distilldepth.scenes.builder import FABRICS, WHITE, Builder, tilted


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


def flat_screen(b: Builder, x: float, y: float, z: float, w: float, h: float, frame: int) -> None:
    draw = b.draw
    b.block(x - w / 2, x + w / 2, y - 0.01, y + 0.03, z, z + h, frame)
    if draw.chance(0.5):
        picture = b.paint("plain", (0.02, 0.02, 0.025), (0.06, 0.06, 0.07), gloss=0.6)
    else:
        picture = b.print("screen", emit=draw(0.2, 1.2))
    rim = draw(0.008, 0.03)
    b.block(x - w / 2 + rim, x + w / 2 - rim, y - 0.013, y - 0.009, z + rim, z + h - rim, picture)


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
    b.box(
        0,
        0.013 + 0.11 * math.sin(open_),
        0.112 * math.cos(open_) + 0.011,
        w * 0.93,
        0.004,
        0.1,
        b.print("screen", emit=b.draw(0, 1)),
        tilted(0, 0, -open_),
    )


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
    b.tube(
        0, 0, 0, b.draw(0.05, 0.2), r, b.print(fit=False, tile=b.draw(0.1, 0.3)) if b.draw.chance(0.6) else b.thing()
    )


def book_stack(b: Builder) -> None:
    z = 0.0
    for _ in range(b.draw.integer(1, 6)):
        hz = b.draw(0.006, 0.03)
        b.box(
            b.draw(-0.02, 0.02),
            b.draw(-0.02, 0.02),
            z + hz,
            b.draw(0.07, 0.13),
            b.draw(0.1, 0.16),
            hz,
            b.print("poster") if b.draw.chance(0.6) else b.thing(),
            tilted(b.draw(-0.5, 0.5), 0),
        )
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
    b.tube(
        reach,
        -0.05,
        h * 0.72,
        h * 0.95,
        0.09,
        m if draw.chance(0.5) else b.paint("plain", (0.8, 0.75, 0.6), WHITE, emit=1.0),
        -0.6,
    )


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


def dish(b: Builder) -> None:
    """A tape roll, plate or bowl: low round things."""
    draw = b.draw
    r = draw(0.05, 0.14)
    b.tube(0, 0, 0, draw(0.01, 0.06), r, b.thing(), draw.pick((0.0, 0.3, 0.6)))


def vase(b: Builder) -> None:
    props.plant(b, b.draw(0.15, 0.5))


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
    b.add(
        draw.integer(0, 3),
        (0, 0, r),
        (r * draw(0.5, 1.4), r * draw(0.5, 1.4), r * draw(0.5, 1.4)),
        b.thing(),
        turn,
        draw(-0.95, -0.1),
    )


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
    (1.0, mug),
    (1.0, bottle),
    (0.8, can),
    (1.2, book_stack),
    (0.8, book_row),
    (1.2, papers),
    (1.6, carton),
    (0.4, ball),
    (0.3, fruit),
    (0.4, desk_lamp),
    (0.3, table_lamp),
    (0.6, toy),
    (0.3, phone),
    (0.6, dish),
    (0.5, vase),
    (0.4, frame),
    (0.6, shape),
    (0.3, laptop),
    (0.3, keyboard),
)


SMALL = (
    (1.0, mug),
    (1.0, bottle),
    (0.8, can),
    (0.8, carton),
    (0.6, book_stack),
    (0.4, toy),
    (0.4, vase),
    (0.3, frame),
    (0.4, shape),
    (0.5, book_row),
)


FLOOR_CLUTTER = (
    (1.0, carton),
    (0.8, bag),
    (0.5, shoes),
    (0.6, ball),
    (0.5, toy),
    (0.5, book_stack),
    (0.4, papers),
    (0.5, shape),
)
