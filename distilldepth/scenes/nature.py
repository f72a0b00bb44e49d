"""Layouts of open country: meadow, woods, water, beach, hills, rocks, often with an animal or a thing in the middle."""

from __future__ import annotations

import functools
import math

import numpy as np

from distilldepth.scenes import clutter, furniture, props, wayside
from distilldepth.scenes.builder import EARTHS, SANDS, TARMACS, WATERS, Builder, Draw, tilted
from distilldepth.scenes.geometry import terrain_height
from distilldepth.scenes.staging import Item, Plan, Point, daylight, scaled

_PLACES = ((3, "meadow"), (2, "woods"), (2, "shore"), (1.5, "beach"), (1.5, "hill"), (1.5, "rocks"), (2, "garden"))


class _Ground:
    """The ground's height: flat, or hills."""

    def __init__(self, b: Builder, place: str) -> None:
        draw = b.draw
        self.waves: np.ndarray | None = None
        if place == "hill" or (place in ("meadow", "woods", "rocks") and draw.chance(0.35)):
            relief = draw.log(0.1, 0.5) if place != "hill" else draw(0.8, 3.0)
            rows = [
                [relief * 4**-i, *[draw.sign() * draw(0.3, 1) * 0.035 * 2.6**i for _ in range(2)], draw(0, 1)]
                for i in range(3)
            ]
            self.waves = np.array(rows).T

    def __call__(self, x: float, y: float) -> float:
        if self.waves is None:
            return 0.0
        return float(terrain_height(self.waves, np.array([x], np.float32), np.array([y], np.float32))[0])


def _stand(
    b: Builder, ground: _Ground, make: Item, x: float, y: float, sink: float = 0.05
) -> tuple[float, float, float]:
    """Draw a thing in its own group on the ground; returns its size if it has one."""
    group = b.begin()
    size = make(b)
    b.place(group, x, y, ground(x, y) - sink, b.draw(0, 6.28))
    return size if isinstance(size, tuple) else (0.3, 0.3, 0.3)


def _lay(b: Builder, ground: _Ground, place: str) -> float:
    """Ground and water; returns where (y) the water begins, or a large number."""
    draw = b.draw
    material = b.stuff(draw.pick(("sand", "pebbles", "gravel")), SANDS, (1, 4), 0.3) if place == "beach" else b.ground()
    if place == "rocks" and draw.chance(0.5):
        material = b.stuff(draw.pick(("gravel", "cloud", "pebbles", "marble")), TARMACS + EARTHS, (0.8, 4), 0.4)
    if ground.waves is not None:
        b.hills(ground.waves, material)
        return 1e3
    shore = draw(0.5, 7.0) if place in ("shore", "beach") else 1e3
    end = min(shore, 250)
    b.block(-250, 250, -30, end, -0.5, 0, material)
    if shore < 1e3:
        far = draw(12, 60) if place == "shore" else 300.0
        water = b.stuff("water", WATERS, (1.5, 6), 0.5, gloss=draw(0.2, 0.8))
        b.block(-300, 300, end - 0.5, far, -0.9, -0.08, water)
        if place == "beach":
            foam = b.stuff("cloud", ((0.9, 0.92, 0.92),), (0.5, 2), 0.15)
            for _ in range(draw.integer(1, 4)):
                y = end + draw(0, 12)
                b.box(draw(-6, 6), y, -0.06, draw(4, 30), draw(0.1, 0.5), 0.03, foam, tilted(draw(-0.06, 0.06), 0))
        else:
            b.block(-250, 250, far, 300, -0.5, draw(0, 0.6), b.ground())
            leaf, other = b.foliage(), b.foliage()
            for i in range(draw.integer(10, 22)):
                s = draw(0.7, 3.5)
                x, v, turn = draw(-1, 1) * far, far + draw(0.5, 8), tilted(draw(0, 6.28), draw(-0.4, 0.4))
                b.crown(x, v, s * draw(0.3, 1.2), s * 1.2, s, s * draw(0.6, 1.2), leaf if i % 3 else other, turn)
    return shore


def _grow(b: Builder, ground: _Ground, place: str, shore: float) -> None:
    """Plants, stones and wood, near and far."""
    draw = b.draw
    tall = {"meadow": (4, 14), "woods": (14, 34), "shore": (1, 5), "beach": (0, 2), "hill": (6, 20), "rocks": (1, 7)}
    trees = (
        ((1, wayside.trunk), (0.25, props.bush), (0.2, props.tree))
        if place == "woods"
        else ((3, props.tree), (3, props.bush))
    )
    for _ in range(draw.integer(*tall.get(place, (4, 10)))):
        r, a = draw.log(3.5, 45), draw(0.35, 2.8)
        x, y = r * math.cos(a), r * math.sin(a)
        if y < shore - 0.5:
            _stand(b, ground, draw.weighted(trees), x, y, 0.15)
    small: tuple[tuple[float, Item], ...] = (
        (4.0, lambda b: wayside.tuft(b, b.draw.log(0.12, 0.8))),
        (0.6 if place != "beach" else 0.1, wayside.flower),
        (0.7, lambda b: wayside.boulders(b, b.draw.log(0.08, 0.8))),
        (0.4, wayside.log),
        (0.4, lambda b: props.plant(b, b.draw(0.2, 0.8))),
    )
    for _ in range(draw.integer(6, 30) if place != "beach" else draw.integer(2, 9)):
        r, a = draw.log(0.7, 16), draw(0.2, 2.95)
        x, y = r * math.cos(a), r * math.sin(a)
        if y < shore + 0.6:
            _stand(b, ground, draw.weighted(small), x, y, 0.02)
    if place == "rocks":
        for _ in range(draw.integer(5, 14)):
            x, y, size = draw(-10, 10), draw.log(1.5, 30), draw.log(0.3, 3.0)
            if math.hypot(x, y) > size + 1:
                _stand(b, ground, functools.partial(wayside.boulders, size=size), x, y, 0.1)


def _behind(b: Builder, ground: _Ground, y: float) -> None:
    """A backdrop of leaves, a hedge, a fence or a wall behind the subject, or woods and ridges far away."""
    draw = b.draw
    style = draw.unit()
    if style < 0.35:
        leaf, other = b.foliage(), b.foliage()
        for i in range(draw.integer(10, 22)):
            s = draw(0.25, 0.9)
            x, v = draw(-4, 4), y + draw(0, 2.5)
            half = s * draw(0.7, 1.4), s * draw(0.7, 1.4), s * draw(0.6, 1.2)
            turn = tilted(draw(0, 6.28), draw(-0.5, 0.5))
            b.crown(x, v, ground(x, v) + draw(0.1, 2.0), *half, leaf if i % 3 else other, turn)
    elif style < 0.6:
        group = b.begin()
        draw.pick((wayside.hedge, wayside.fence, wayside.fence))(b, draw(8, 24), draw(0.6, 2.4))
        b.place(group, draw(-2, 2), y, ground(0, y), draw(-0.4, 0.4))
    elif style < 0.7:
        group = b.begin()
        props.building(b, draw(6, 14), 6, draw(2.6, 6))
        b.place(group, draw(-3, 3), y + 4, ground(0, y), draw(-0.4, 0.4))
    leaf = b.foliage()
    for _ in range(draw.integer(0, 12)):
        s, x = draw(1.5, 5.0), draw(-45, 45)
        b.crown(x, draw(25, 70), s * draw(0.4, 1), s * 1.5, s, s * draw(0.6, 1.2), leaf)


def _subject(b: Builder, place: str) -> Item:
    """What stands in the middle."""
    draw = b.draw
    thing: Item = draw.pick((clutter.ball, clutter.bag, clutter.toy, clutter.bottle, clutter.mug, clutter.carton))
    items: tuple[tuple[float, Item], ...] = (
        (2.0, props.animal), (2.0, wayside.lying), (2.5, wayside.bird), (1.0, wayside.crawler), (1.0, props.person),
        (1.0, wayside.flower), (0.6, lambda b: scaled(b, thing, draw(1, 2.5))), (0.4, furniture.chair),
        (0.4, props.bicycle), (0.4, props.bench), (0.3, props.car), (0.3, furniture.table), (0.4, wayside.log),
        (0.5, lambda b: wayside.boulders(b, draw.log(0.1, 1.0))),
        (0.3, wayside.boat if place == "shore" else props.rock),
    )  # fmt: skip
    return draw.weighted(items)


def nature(b: Builder) -> Plan:
    """Open country, and mostly a subject in the middle of the picture."""
    draw = b.draw
    b.resume(0)
    place = draw.weighted(_PLACES)
    ground = _Ground(b, place)
    shore = _lay(b, ground, place)
    _grow(b, ground, place, shore)
    _behind(b, ground, min(draw.log(2.5, 12), shore + 80))
    subjects: list[tuple[Point, float]] = []
    first = (draw(-0.5, 0.5), draw(1.2, 2.5))
    make = _subject(b, place)
    for i in range(draw.pick((1, 1, 1, 2, 3, 5))):
        if i and draw.chance(0.3):
            make = _subject(b, place)
        x, y = first if i == 0 else (first[0] + draw(-2.5, 2.5), first[1] + draw(0.3, 5))
        size = _stand(b, ground, make, x, y, 0.0)
        subjects.append(((x, y, ground(x, y) + size[2] * 0.5), max(size[0] * 0.5, size[1] * 0.5, size[2] * 0.7)))
    for _ in range(draw.integer(0, 4) if shore < 1e3 else 0):  # on the water
        x, y = draw(-8, 8), shore + draw.log(2, 25)
        _stand(b, ground, wayside.boat if draw.chance(0.5) else wayside.bird, x, y, 0.1)
    lights, ambient = daylight(b)
    wide = draw.chance(0.25)

    def aim(draw: Draw) -> tuple[Point, Point]:
        t, size = draw.pick(subjects) if draw.chance(0.3) else subjects[0]
        r = size * draw.log(1.8, 4.0) + 0.3 if not wide else draw(2.5, 6.0)
        a = -1.571 + draw(-0.7, 0.7)
        x, y = t[0] + r * math.cos(a), t[1] + r * math.sin(a)
        up = draw.pick((draw(0.05, 0.3), draw(0.2, 0.7), draw(0.5, 1.1)))
        z = max(t[2] + r * up * (0.6 if wide else 1.0), ground(x, y) + 0.22)
        return (x, y, z), (
            t[0] + draw(-0.15, 0.15) * r,
            t[1],
            t[2] + draw(-0.05, 0.2) * size + (0.3 * z if wide else 0),
        )

    return Plan(
        aim, lights, ambient, outdoor=True, field_of_view=(34, 66), steep=(0.4, 0.9), baseline=(0.08, 0.3),
        clearance=0.2, shallow=0.5,
    )  # fmt: skip
