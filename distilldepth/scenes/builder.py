"""Collects the primitives, materials and surfaces of a scene while the layout functions draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from distilldepth.scenes.geometry import BOX, CONE, CYLINDER, ELLIPSOID, FOLIAGE, TERRAIN, Objects, mul
from distilldepth.scenes.textures import atlas

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
Rotation = tuple[float, ...]
"""Nine numbers, row by row."""
Surface = tuple[int, float, float, float, float, float, float]
"""A place to put clutter: group, x0, x1, y0, y1, z, headroom."""
T = TypeVar("T")
_IDENTITY: Rotation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

# Columns of the material table.
TEXTURE, SCALE, U0, V0, COS, SIN, FIT, LOW, HIGH, DETAIL, DETAIL_SCALE, DETAIL_GAIN, GLOSS, EMIT = (
    *range(8),
    10,
    13,
    14,
    15,
    16,
    17,
)


class Draw:
    """Random numbers in blocks: a scene needs thousands of single draws, and a Generator's own calls are slow."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._block: list[float] = []

    def unit(self) -> float:
        if not self._block:
            self._block = self.rng.random(512).tolist()
        return self._block.pop()

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def log(self, low: float, high: float) -> float:
        return low * (high / low) ** self.unit()

    def integer(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, p: float) -> bool:
        return self.unit() < p

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[tuple[float, T]]) -> T:
        """Pick from (weight, item) pairs."""
        x = self.unit() * sum(item[0] for item in items)
        for weight, item in items:
            x -= weight
            if x < 0:
                return item
        return items[-1][1]

    def sign(self) -> float:
        return 1.0 if self.unit() < 0.5 else -1.0


def palette(colours: str) -> tuple[Colour, ...]:
    """sRGB colours in 0..1 from hexadecimal ones."""
    return tuple(_rgb([int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)]) for c in colours.split())


def _rgb(channels: Sequence[float]) -> Colour:
    red, green, blue = channels
    return red, green, blue


WALLS = palette(
    "e0dbd1 ccccc7 d1c7ad b8bfc2 99a8b8 ccb89e ebebeb b2a38f bdad85 9ead94 8c8075 a86657 80858f dbcccc 596170"
)
WOODS = palette("8c6138 664226 bd9161 422b1c d6ba8f a1754c 80472e ad9e8a e6d6bd 5c4f47")
FABRICS = palette("4c4c54 8c8070 bfb8ad 404c6b 733838 52614c 9e8f66 242429 946b61 66808f dbd6cc 805c80 a84c33 5c3d29")
PLASTICS = palette("0f0f12 262629 d9d9d4 999999 595c61 ededed b8b29e")
ACCENTS = palette("bf1f1a 1f4ca6 d9b21a 268040 d9661a 732680 1a8c99 cc5980 8c1a26 80b240")
METALS = palette("99999e 66696e 333336 bfbfc2 807361")
GREENS = palette("38541f 4c6b29 29401a 667533 425c38 73662e 805224")
EARTHS = palette("735c42 8f7a5c 594733 9e9480 80807a 666b47")
TARMACS = palette("4c4c4f 666666 38383d 7a7570 8c8a85")
BRICKS = palette("8c4c38 9e6b52 733d2e a8947a 807570 c7bdad")
CARS = palette("0f0f12 bfc2c4 e6e6e6 595c61 801414 1a2959 808075 334038")
SANDS = palette("c2a878 b39b72 d6c39a a68f6b 9c8f80 cbbfa8")
WATERS = palette("3f5f6e 56707a 2c4a4f 6f8a94 4a5d45 7f8f99")
FLOWERS = palette("d9b21a e6e6e6 c2338f 8f3fb3 d94a2b e08fb0 4a5fc2 f0e070")
FURS = palette("66503a 26201c ccbfad 807a73 9e6b3d e0dcd4 4a3a2e b08a5e")
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_GREY_TEXTURES = (
    "plaster",
    "cloud",
    "speckle",
    "wood",
    "planks",
    "brick",
    "tiles",
    "checker",
    "stripes",
    "weave",
    "plaid",
    "spots",
    "gravel",
    "marble",
    "leaves",
    "poster",
    "photograph",
    "motif",
    "pebbles",
    "blades",
)


class Builder:
    """Primitives in nested frames: a group (placed later with yaw and position) and a local frame in it.

    Surfaces are places to put clutter: rectangles in a group's frame.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.draw = Draw(rng)
        self.names = atlas().names
        self.rows: list[tuple[float, ...]] = []
        self.materials: list[tuple[float, ...]] = []
        self.groups: list[tuple[float, float, float, float]] = [(0.0, 0.0, 0.0, 0.0)]
        self.surfaces: list[Surface] = []
        self.terrain: np.ndarray | None = None
        self.contrast = self.draw(0.5, 1.15)  # of all the scene's textures
        self.odd = self.draw.pick((0.0, 0.0, 0.05, 0.15, 0.5))  # share of materials drawn at random
        self._group = 0
        self._at = (0.0, 0.0, 0.0, 1.0, 0.0)

    # Frames

    def begin(self) -> int:
        """Start a group in its own frame; `place` puts it into the world."""
        self.groups.append((0.0, 0.0, 0.0, 0.0))
        self._group = len(self.groups) - 1
        self.at()
        return self._group

    def place(self, group: int, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        self.groups[group] = (x, y, z, yaw)
        self._group = 0
        self.at()

    def resume(self, group: int) -> None:
        self._group = group
        self.at()

    def at(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> None:
        """Set the local frame of the next primitives within the group."""
        self._at = (x, y, z, math.cos(yaw), math.sin(yaw))

    @property
    def origin(self) -> Point:
        """The local frame's origin in the group."""
        return self._at[:3]

    def surface(self, x0: float, x1: float, y0: float, y1: float, z: float, headroom: float = 9.0) -> None:
        self.surfaces.append((self._group, x0, x1, y0, y1, z, headroom))

    def world(self, group: int, x: float, y: float, z: float) -> Point:
        gx, gy, gz, yaw = self.groups[group]
        c, s = math.cos(yaw), math.sin(yaw)
        return gx + c * x - s * y, gy + s * x + c * y, gz + z

    # Primitives

    def add(
        self, kind: int, centre: Point, half: Point, material: int, rotation: Rotation = _IDENTITY, taper: float = 0.0
    ) -> None:
        """Any primitive by centre and half sizes."""
        ax, ay, az, c, s = self._at
        x, y, z = centre
        if s != 0.0 or c != 1.0:
            x, y = c * x - s * y, s * x + c * y
            r = rotation
            rotation = (
                c * r[0] - s * r[3],
                c * r[1] - s * r[4],
                c * r[2] - s * r[5],
                s * r[0] + c * r[3],
                s * r[1] + c * r[4],
                s * r[2] + c * r[5],
                r[6],
                r[7],
                r[8],
            )
        self.rows.append((kind, x + ax, y + ay, z + az, *half, taper, material, self._group, *rotation))

    def box(
        self,
        x: float,
        y: float,
        z: float,
        hx: float,
        hy: float,
        hz: float,
        material: int,
        rotation: Rotation = _IDENTITY,
    ) -> None:
        """Box by centre and half sizes."""
        self.add(BOX, (x, y, z), (hx, hy, hz), material, rotation)

    def block(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, material: int) -> None:
        """Box by its bounds."""
        centre = (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2
        self.add(BOX, centre, ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2), material)

    def ball(
        self,
        x: float,
        y: float,
        z: float,
        hx: float,
        hy: float,
        hz: float,
        material: int,
        rotation: Rotation = _IDENTITY,
    ) -> None:
        self.add(ELLIPSOID, (x, y, z), (hx, hy, hz), material, rotation)

    def crown(
        self,
        x: float,
        y: float,
        z: float,
        hx: float,
        hy: float,
        hz: float,
        material: int,
        rotation: Rotation = _IDENTITY,
    ) -> None:
        """Ellipsoid of leaves, with holes and a ragged outline."""
        self.add(FOLIAGE, (x, y, z), (hx, hy, hz), material, rotation)

    def tube(self, x: float, y: float, z0: float, z1: float, r: float, material: int, taper: float = 0.0) -> None:
        """Upright cylinder (or cone: `taper` = top / bottom radius - 1) between two heights."""
        kind = CONE if taper else CYLINDER
        self.add(kind, (x, y, (z0 + z1) / 2), (r, r, (z1 - z0) / 2), material, taper=taper)

    def rod(self, p: Point, q: Point, r: float, material: int, *, rounded: bool = False, flat: float = 1.0) -> None:
        """Cylinder (or ellipsoid, if rounded) from p to q."""
        dx, dy, dz = q[0] - p[0], q[1] - p[1], q[2] - p[2]
        n = math.sqrt(dx * dx + dy * dy + dz * dz) or 1e-6
        kind = ELLIPSOID if rounded else CYLINDER
        self.add(
            kind,
            ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2, (p[2] + q[2]) / 2),
            (r, r * flat, n / 2),
            material,
            along(dx / n, dy / n, dz / n),
        )

    def hills(self, waves: np.ndarray, material: int) -> None:
        self.terrain = waves
        self.add(TERRAIN, (0, 0, 0), (500, 500, 100), material)

    # Materials

    def paint(
        self,
        texture: str,
        low: Colour,
        high: Colour,
        tile: float = 1.0,
        *,
        fit: bool = False,
        gloss: float = 0.0,
        emit: float = 0.0,
        turn: bool = False,
        detail: float = 0.15,
    ) -> int:
        """A material: a texture between two sRGB colours, a repeat per `tile` metres, or one per face (`fit`)."""
        draw = self.draw
        if fit:
            u, v, angle, scale = 0.0, 0.0, 0.0, 1.0
        else:
            u, v, scale = draw.unit(), draw.unit(), 1.0 / tile
            angle = draw(0, 6.283) if turn else draw.pick((0.0, 0.0, 1.5707963, 3.1415926))
        grain = draw.pick(self.names[draw.pick(("cloud", "plaster", "speckle", "plaster"))])
        self.materials.append(
            (
                draw.pick(self.names[texture]),
                scale,
                u,
                v,
                math.cos(angle),
                math.sin(angle),
                float(fit),
                *(linear(c) for c in low),
                *(linear(c) for c in high),
                grain,
                1.0 / draw.log(0.15, 3.0),
                detail * draw(0.3, 1.6) * self.contrast,
                gloss,
                emit,
            )
        )
        return len(self.materials) - 1

    def shades(self, colour: Colour, spread: float) -> tuple[Colour, Colour]:
        """A dark and a bright version of a colour."""
        s = spread * self.contrast
        return _rgb([c * (1 - s) for c in colour]), _rgb([min(c * (1 + s) + 0.1 * s, 1.0) for c in colour])

    def tint(self, palette: Sequence[Colour], accent: float = 0.0) -> Colour:
        """A colour near one of the palette's (or, with probability `accent`, of the saturated ones)."""
        draw = self.draw
        base = draw.pick(ACCENTS if draw.chance(accent) else palette)
        gain = draw(0.75, 1.2)
        return _rgb([min(max(c * gain + draw(-0.03, 0.03), 0.02), 0.97) for c in base])

    def stuff(
        self,
        texture: str,
        palette: Sequence[Colour],
        tile: tuple[float, float] = (0.3, 2.0),
        spread: float = 0.35,
        *,
        accent: float = 0.0,
        gloss: float = 0.0,
        turn: bool = False,
    ) -> int:
        """A material of a natural palette; now and then anything at all, so that no texture tells a surface."""
        draw = self.draw
        if draw.chance(self.odd):
            return self.paint(
                draw.pick(_GREY_TEXTURES),
                self.tint(FABRICS, 0.25),
                self.tint(WALLS, 0.25),
                draw.log(0.1, 4.0),
                gloss=gloss,
                turn=draw.chance(0.5),
            )
        low, high = self.shades(self.tint(palette, accent), spread * draw(0.4, 1.3))
        return self.paint(texture, low, high, draw.log(*tile), gloss=gloss, turn=turn)

    def wood(self, gloss: float | None = None) -> int:
        return self.stuff(
            self.draw.pick(("wood", "wood", "plain")),
            WOODS,
            (0.4, 1.6),
            0.35,
            gloss=self.draw(0, 0.25) if gloss is None else gloss,
        )

    def wall(self) -> int:
        draw = self.draw
        kind = draw.weighted(
            (
                (6, "plaster"),
                (2, "plain"),
                (0.6, "brick"),
                (0.5, "stripes"),
                (0.4, "tiles"),
                (0.4, "planks"),
                (0.3, "marble"),
                (0.2, "spots"),
                (0.2, "plaid"),
            )
        )
        spread = {"plaster": 0.12, "plain": 0.08}.get(kind, 0.22)
        tile = {"brick": (0.7, 1.6), "planks": (0.8, 2), "tiles": (0.5, 2)}.get(kind, (0.4, 3.0))
        return self.stuff(kind, BRICKS if kind == "brick" and draw.chance(0.7) else WALLS, tile, spread, accent=0.04)

    def floor(self) -> int:
        draw = self.draw
        kind = draw.weighted(
            (
                (4, "planks"),
                (3, "speckle"),
                (2, "tiles"),
                (1, "plaster"),
                (1, "wood"),
                (0.6, "checker"),
                (1, "weave"),
                (0.6, "plaid"),
                (0.6, "marble"),
                (0.5, "cloud"),
            )
        )
        palette = WOODS if kind in ("planks", "wood") else draw.pick((FABRICS, EARTHS, WALLS))
        return self.stuff(kind, palette, (0.6, 2.5), 0.35, gloss=draw(0, 0.3), accent=0.03)

    def cloth(self, accent: float = 0.08) -> int:
        kind = self.draw.pick(("weave", "plaster", "cloud", "plain", "folds", "plaid", "stripes", "plain"))
        return self.stuff(kind, FABRICS, (0.15, 1.2), 0.3, accent=accent, turn=self.draw.chance(0.2))

    def plastic(self, accent: float = 0.15) -> int:
        return self.stuff("plain", PLASTICS, (0.2, 1.0), 0.15, accent=accent, gloss=self.draw(0, 0.5))

    def metal(self) -> int:
        return self.stuff("plain", METALS, (0.2, 1.0), 0.2, gloss=self.draw(0.2, 0.7))

    def panel(self) -> int:
        """The front of a cabinet or a door."""
        low, high = self.shades(self.tint(self.draw.pick((WOODS, WALLS, PLASTICS)), 0.05), 0.5)
        return self.paint("panel", low, high, fit=True, gloss=self.draw(0, 0.3))

    def foliage(self) -> int:
        kind = self.draw.pick(("leaves", "leaves", "cloud", "speckle", "gravel"))
        return self.stuff(kind, GREENS, (0.25, 1.6), 0.7, accent=0.02, turn=True)

    def print(
        self, texture: str = "poster", fit: bool = True, tile: float = 0.4, emit: float = 0.0, gloss: float = 0.0
    ) -> int:
        """A picture in its own colours, a little faded."""
        draw = self.draw
        fade, ink = draw(0.02, 0.15), draw(0.6, 0.95)
        return self.paint(
            texture,
            (fade, fade, fade),
            (ink * draw(0.9, 1), ink * draw(0.9, 1), ink * draw(0.85, 1)),
            tile,
            fit=fit,
            emit=emit,
            gloss=gloss,
            detail=0.05,
        )

    def ground(self) -> int:
        """Open ground: grass, earth, sand, gravel."""
        texture, palette = self.draw.pick(
            (
                ("grass", GREENS),
                ("blades", GREENS),
                ("leaves", GREENS + EARTHS),
                ("gravel", EARTHS),
                ("pebbles", TARMACS + SANDS),
                ("sand", SANDS),
                ("cloud", EARTHS),
                ("speckle", EARTHS + GREENS),
            )
        )
        return self.stuff(texture, palette, (0.6, 3.0), 0.45, turn=True)

    def cover(self) -> int:
        """What a table, a board or a cloth on it is covered with; anything from plain to printed."""
        draw = self.draw
        what = draw.unit()
        if what < 0.3:
            return self.wood()
        if what < 0.45:
            return self.cloth(0.2)
        if what < 0.7:
            texture = draw.pick(("motif", "carpet", "photograph", "newspaper", "poster", "text", "landscape"))
            return self.print(texture, fit=draw.chance(0.4), tile=draw.log(0.25, 1.2))
        if what < 0.85:
            texture = draw.pick(("marble", "speckle", "checker", "plaid", "stripes", "weave", "tiles", "sand"))
            return self.stuff(texture, FABRICS + WALLS, (0.15, 1.0), 0.4, accent=0.1, gloss=draw(0, 0.4))
        return self.stuff("plain", PLASTICS + WALLS, (0.3, 1.0), 0.1, accent=0.1, gloss=draw(0, 0.4))

    def thing(self) -> int:
        """Any small object's material."""
        what = self.draw.unit()
        if what < 0.3:
            return self.plastic(0.3)
        if what < 0.45:
            return self.print(fit=self.draw.chance(0.6), tile=self.draw.log(0.08, 0.5))
        if what < 0.6:
            return self.wood()
        if what < 0.75:
            return self.cloth(0.25)
        if what < 0.85:
            return self.metal()
        return self.stuff(self.draw.pick(_GREY_TEXTURES), FABRICS, (0.05, 0.6), 0.5, accent=0.25)

    # Result

    def objects(self) -> Objects:
        table = np.array(self.rows, np.float64)
        groups = np.array(self.groups, np.float64)[table[:, 9].astype(int)]
        c, s = np.cos(groups[:, 3]), np.sin(groups[:, 3])
        turn = np.zeros((len(table), 3, 3))
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = c, -s, s, c, 1
        centre = mul(turn, table[:, 1:4]) + groups[:, :3]
        rotation = mul(turn, table[:, 10:].reshape(-1, 3, 3))
        return Objects(
            table[:, 0].astype(np.int64),
            centre,
            rotation,
            np.maximum(table[:, 4:7], 1e-3),
            table[:, 7],
            table[:, 8].astype(np.int64),
            self.terrain,
        )


def linear(c: float) -> float:
    """sRGB value to linear light."""
    return max(c, 0.0) ** 2.2


def along(x: float, y: float, z: float) -> tuple[float, ...]:
    """Rotation (row-major) whose third column is the unit vector x, y, z."""
    if abs(z) < 0.9:
        n = math.sqrt(x * x + y * y)
        ux, uy, uz = -y / n, x / n, 0.0
    else:
        n = math.sqrt(y * y + z * z)
        ux, uy, uz = 0.0, -z / n, y / n
    vx, vy, vz = y * uz - z * uy, z * ux - x * uz, x * uy - y * ux
    return (ux, vx, x, uy, vy, y, uz, vz, z)


def tilted(yaw: float, pitch: float, roll: float = 0.0) -> tuple[float, ...]:
    """Rotation (row-major) by roll about x, then pitch about y, then yaw about z."""
    a, b, c, d, e, f = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
    return (a * c, a * d * f - b * e, a * d * e + b * f, b * c, b * d * f + a * e, b * d * e - a * f, -d, c * f, c * e)
