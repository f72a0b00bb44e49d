"""Layouts of roads as a car's or a walker's camera sees them: towns, suburbs, the country, junctions, bends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distilldepth.scenes import furniture, props, wayside
from distilldepth.scenes.builder import EARTHS, TARMACS, Builder, Draw
from distilldepth.scenes.staging import Item, Plan, Point, daylight

_STEP = 8.0  # metres of road per piece


@dataclass
class Course:
    """A road as an arc from the origin along +y: its bend (1/m), half width, pavement and kerb in metres."""

    bend: float
    half: float
    walk: float
    kerb: float
    junction: float  # distance of a crossing road's middle; negative = none

    def at(self, along: float, aside: float) -> tuple[float, float, float]:
        """x, y and yaw of the point so far along the road and so far to its right."""
        a = along * self.bend
        if abs(self.bend) < 1e-5:
            return aside, along, 0.0
        r = 1 / self.bend
        return r - (r - aside) * math.cos(a), (r - aside) * math.sin(a), -a

    def crossed(self, along: float, reach: float = 0.0) -> bool:
        """Whether the crossing road is there."""
        return self.junction > 0 and abs(along - self.junction) < self.half + self.walk + reach


def _stand(
    b: Builder, course: Course, make: Item, along: float, aside: float, yaw: float = 0.0, z: float = 0.0
) -> Point:
    """Draw a thing in a group of its own beside the road; its own yaw is relative to the road."""
    group = b.begin()
    make(b)
    x, y, turn = course.at(along, aside)
    b.place(group, x, y, z, turn + yaw)
    return x, y, 1.0


def _surface(b: Builder, course: Course, rural: bool) -> None:
    """Ground, road, pavements, kerbs and markings."""
    draw = b.draw
    half, walk, kerb = course.half, course.walk, course.kerb
    b.block(-300, 300, -300, 300, -0.3, -0.06, b.ground() if rural or draw.chance(0.5) else b.floor())
    road = b.stuff("asphalt", TARMACS, (1.5, 6), 0.35) if draw.chance(0.85) else b.stuff("gravel", EARTHS, (1, 3), 0.4)
    texture = draw.pick(("tiles", "asphalt", "speckle", "brick", "pebbles"))
    pave = b.stuff(texture, TARMACS + EARTHS, (1.0, 3.0), 0.25)
    stone = b.stuff("plain", TARMACS, (0.5, 2), 0.15)
    white = b.stuff("plaster", ((0.85, 0.85, 0.82), (0.8, 0.7, 0.3)), (0.5, 2), 0.15)
    dashes, lines, lane = draw.chance(0.75), draw.chance(0.4), draw.pick((0.0, 0.0, half * 0.33))
    for i in range(-1, 20):
        middle = (i + 0.5) * _STEP
        x, y, yaw = course.at(middle, 0.0)
        b.at(x, y, 0.0, yaw)
        # Neighbours overlap; a hair of height keeps them from flickering into each other.
        top = 0.0005 * (i % 2)
        b.block(-half, half, -4.4, 4.4, -0.2, top, road)
        if not course.crossed(middle):
            for s in (-1, 1):
                low, high = sorted((s * half, s * (half + walk)))
                if walk:
                    b.block(low, high, -4.2, 4.2, -0.2, max(kerb, 0.006) + top, pave)
                    b.block(s * half - 0.07, s * half + 0.07, -4.1, 4.1, -0.2, max(kerb, 0.006) + 0.006, stone)
                if lines:
                    b.block(s * (half - 0.3) - 0.06, s * (half - 0.3) + 0.06, -4.1, 4.1, -0.1, 0.004, white)
            if dashes:
                for aside in {lane, -lane}:
                    b.block(aside - 0.06, aside + 0.06, -1.6, 1.6, -0.1, 0.004, white)
    b.at()
    if course.junction > 0:
        x, y, yaw = course.at(course.junction, 0.0)
        b.at(x, y, 0.0, yaw)
        b.block(-120, 120, -half, half, -0.2, 0.001, road)
        if draw.chance(0.5):  # a crossing for people
            for i in range(int(half / 0.5)):
                u = -half + 0.5 + i
                b.block(u - 0.25, u + 0.25, -half - 3.5, -half - 1, -0.1, 0.004, white)
        b.at()


def _houses(b: Builder, course: Course, side: float, setback: float, tall: float) -> list[Point]:
    """A row of houses of varied width, height and distance, with gardens before those that stand back."""
    draw = b.draw
    along, points = draw(-12, -2), []
    gaps, same = draw.unit() * 0.6, draw.chance(0.3)
    w, h = draw(5, 20), draw(3.0, 6.0 + 14 * tall)
    while along < 95:
        if not same:
            w, h = draw.log(4.5, 24), draw(3.0, 6.0 + 14 * tall)
        deep, back = draw(6, 12), setback * draw(0.7, 1.3)
        aside = side * (course.half + course.walk + back + deep / 2 + 0.1)
        if not course.crossed(along + w / 2, w / 2) and not draw.chance(gaps * 0.5):
            group = b.begin()
            props.building(b, w, deep, h)
            x, y, turn = course.at(along + w / 2, aside)
            b.place(group, x, y, 0.0, turn - side * math.pi / 2)
            points.append((x, y, draw(1, 3)))
        along += w + (draw(0, 10) if draw.chance(gaps) else 0.0)
    return points


def _edge(b: Builder, course: Course, side: float, aside: float) -> None:
    """Hedges, fences and walls along the pavement or the field, in pieces of one style or of several."""
    draw = b.draw
    along, one = draw(-6, 2), draw.chance(0.5)
    hedge, h = draw.chance(0.5), draw(0.5, 2.0)
    while along < 70:
        length = draw(5, 13)
        if not one:
            hedge, h = draw.chance(0.5), draw(0.5, 2.0)
        if draw.chance(0.85) and not course.crossed(along + length / 2, length / 2):

            def make(b: Builder, hedge: bool = hedge, length: float = length, h: float = h) -> None:
                (wayside.hedge if hedge else wayside.fence)(b, length, h)

            _stand(b, course, make, along + length / 2, side * aside, math.pi / 2)
        along += length + draw.pick((0.0, 0.0, draw(1, 4)))


def _row(b: Builder, course: Course, side: float, aside: float, make: Item, step: float, last: float = 75) -> None:
    """The same kind of thing again and again: an avenue, lamps, poles."""
    along = b.draw(-2, step)
    while along < last:
        if not course.crossed(along) and b.draw.chance(0.9):
            _stand(b, course, make, along, side * aside, b.draw.pick((0.0, math.pi)), course.kerb)
        along += step * b.draw(0.9, 1.1)


def _green(b: Builder, course: Course, side: float, near: float, far: float, count: int) -> None:
    """Trees and bushes at random distances beside the road."""
    draw = b.draw
    makers = ((3, props.tree), (2, props.bush), (0.8, wayside.trunk), (0.4, props.rock))
    for _ in range(count):
        along, aside = draw.log(3, 110) - 2, draw(near, far)
        if not course.crossed(along, 2.0):
            _stand(b, course, draw.weighted(makers), along, side * aside, draw(0, 6.28), -0.1)


def _belt(b: Builder, course: Course, side: float) -> None:
    """Woods or a ridge far beside the road, so that the horizon is not bare."""
    draw = b.draw
    leaf, other, away = b.foliage(), b.foliage(), draw(15, 60)
    for i in range(draw.integer(5, 12)):
        s = draw(2.0, 6.0)
        x, y, _ = course.at(draw(10, 130), side * (course.half + away * draw(0.8, 1.3)))
        b.crown(x, y, s * 0.6, s * draw(1, 2), s * draw(1, 2), s, leaf if i % 3 else other)


def _traffic(b: Builder, course: Course, parked: float, busy: float) -> list[Point]:
    """Cars at the kerb and on the road, lorries, riders, people."""
    draw = b.draw
    half, points = course.half, []
    vehicles = ((6, props.car), (1.2, wayside.lorry), (0.8, wayside.rider))
    for side in (-1, 1):
        spot = draw(0, 8)
        while spot < 60 and parked:
            if draw.chance(parked) and not course.crossed(spot, 3.0):
                yaw = draw.pick((0, math.pi)) + draw(-0.06, 0.06)
                points.append(_stand(b, course, props.car, spot, side * (half - draw(0.9, 1.15)), yaw))
            spot += draw(5.2, 8.5)
    for _ in range(int(busy * draw(0, 7) + draw.unit())):
        lane = draw.sign()
        along = draw.log(6, 80)
        make = draw.weighted(vehicles)
        at = _stand(b, course, make, along, lane * half * draw(0.25, 0.5), math.pi if lane > 0 else 0.0)
        points.append(at)
    people = ((3, props.person), (0.6, wayside.rider), (0.6, props.bicycle), (0.5, wayside.lying))
    for _ in range(int(busy * draw(0, 6))):
        aside = draw.sign() * (half + course.walk * draw(0.2, 1)) if draw.chance(0.8) else draw(-1, 1) * half
        points.append(_stand(b, course, draw.weighted(people), draw.log(4, 45), aside, draw(0, 6.28), course.kerb))
    return points


def _sides(b: Builder, course: Course, built: float, tall: float, rural: bool) -> list[Point]:
    """All that stands on both sides of the road."""
    draw = b.draw
    points: list[Point] = []
    for side in (-1, 1):
        edge = course.half + course.walk
        if draw.chance(built):
            setback = draw.pick((0.0, draw(0, 3), draw(4, 14)))
            points += _houses(b, course, side, setback, tall)
            if setback > 3 or draw.chance(0.2):
                _edge(b, course, side, edge + 0.3)
                _green(b, course, side, edge + 1, edge + max(setback, 2.0), draw.integer(2, 9))
        else:
            _green(b, course, side, edge + 0.8, edge + draw(3, 25), draw.integer(5, 18))
            if draw.chance(0.6):
                _edge(b, course, side, edge + draw(0.3, 2.0))
            _belt(b, course, side)
        aside = course.half + max(course.walk * 0.25, 0.6)
        if draw.chance(0.35):
            _row(b, course, side, aside + 0.3, props.tree, draw(6, 15))
        if draw.chance(0.5):
            make: Item = wayside.pole if rural or draw.chance(0.3) else props.street_lamp
            _row(b, course, side, aside, make, draw(14, 32))
        odd = ((1.5, props.sign), (1, wayside.pole), (1, furniture.bin_), (0.8, props.bench), (0.8, props.bush))
        for _ in range(draw.integer(0, 5)):
            along = draw.log(3, 50)
            if not course.crossed(along):
                spot = side * (course.half + draw(0.4, max(course.walk, 1.5)))
                points.append(_stand(b, course, draw.weighted(odd), along, spot, draw(-0.3, 0.3), course.kerb))
    return points


def road(b: Builder) -> Plan:
    """A road in a town, a suburb or the country, straight or in a bend, perhaps with a junction."""
    draw = b.draw
    b.resume(0)
    kind = draw.weighted(((3, "town"), (4, "suburb"), (3, "country"), (1, "highway")))
    rural = kind in ("country", "highway")
    half = {"town": draw(2.5, 7.0), "suburb": draw(2.6, 5.0), "country": draw(2.0, 4.0), "highway": draw(6, 10)}[kind]
    walk = draw(1.0, 4.0) if not rural else draw.pick((0.0, 0.0, 1.2))
    bend = draw.pick((0.0, draw(-0.006, 0.006), draw(-0.016, 0.016)))
    junction = draw(14, 45) if kind in ("town", "suburb") and draw.chance(0.35) else -1.0
    course = Course(bend, half, walk, draw(0.0, 0.16) if walk else 0.0, junction)
    _surface(b, course, rural)
    points = _sides(
        b, course, {"town": 0.95, "suburb": 0.75, "country": 0.08, "highway": 0.15}[kind], draw.unit(), rural
    )
    points += _traffic(b, course, draw.pick((0.0, 0.3, 0.8)) if walk else 0.0, draw(0.2, 1.0))
    if junction > 0 and draw.chance(0.4):  # the road ends there
        group = b.begin()
        props.building(b, draw(15, 30), 10, draw(4, 14))
        x, y, turn = course.at(junction + half + walk + 6, 0.0)
        b.place(group, x, y, 0.0, turn)
    lights, ambient = daylight(b)
    near = [p for p in points if 2 < p[1] < 20]

    def aim(draw: Draw) -> tuple[Point, Point]:
        if draw.chance(0.8) or not near:  # from a car
            along, aside = draw(-1, 4), draw(-0.65, 0.65) * half
            x, y, yaw = course.at(along, aside)
            turn = yaw + draw(-0.2, 0.2) + (draw(-0.6, 0.6) if draw.chance(0.15) else 0.0)
            z = draw(1.2, 2.0)
            return (x, y, z), (x - 10 * math.sin(turn), y + 10 * math.cos(turn), z + draw(-1.4, 0.6))
        t = draw.pick(near)  # from the pavement
        x, y, _ = course.at(max(t[1] - draw.log(2.5, 12), -2.0), draw.sign() * (half + walk * draw(0.1, 0.8)))
        return (x, y, draw(1.3, 1.8)), (t[0], t[1], draw(0.6, 1.6))

    return Plan(aim, lights, ambient, outdoor=True, field_of_view=(42, 98), baseline=(0.1, 0.54), shallow=0.04)
