"""The texture atlas: tileable 256x256 patterns with mipmaps, made once per process from fixed seeds.

A texture is three numbers per texel in [0, 1]; a material blends its two colours with them, channel by channel. Grey
patterns thus take the material's palette, and pictures (posters, screens, book spines) bring their own colours when
the palette is black and white.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distilldepth.scenes.geometry import wave

SIZE = 256
LEVELS = 7  # 256, 128, ... 4
_OFFSETS = np.concatenate([[0], np.cumsum([(SIZE >> i) ** 2 for i in range(LEVELS)])])
_Y, _X = np.meshgrid(np.arange(SIZE) / SIZE, np.arange(SIZE) / SIZE, indexing="ij")


@dataclass(frozen=True)
class Atlas:
    """Texels as packed RGBA (uint32), all mip levels of all textures in a row; `names` maps to their numbers."""

    texels: np.ndarray
    names: dict[str, tuple[int, ...]]

    def sample(self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Bilinear lookup (n, 4) float32 in 0..255 at u, v in tiles; `footprint` is the size of a pixel in texels."""
        # The exponent of a float32 is floor(log2): exact and cheap.
        level = (np.maximum(footprint, np.float32(1)).view(np.int32) >> 23) - 127
        np.minimum(level, LEVELS - 1, out=level)
        side = np.right_shift(SIZE, level).astype(np.int32)
        base = _OFFSETS.astype(np.int32)[level] + texture * np.int32(_OFFSETS[-1])
        x = u * side - np.float32(0.5)
        y = v * side - np.float32(0.5)
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        xi, yi = x0.astype(np.int32), y0.astype(np.int32)
        last = side - 1
        xa, xb = xi & last, (xi + 1) & last
        ya, yb = base + (yi & last) * side, base + ((yi + 1) & last) * side
        top = self._fetch(ya + xa)
        top += fx * (self._fetch(ya + xb) - top)
        bottom = self._fetch(yb + xa)
        bottom += fx * (self._fetch(yb + xb) - bottom)
        bottom -= top
        bottom *= fy
        top += bottom
        return top

    def nearest(self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """First channel (n,) float32 in 0..255 of the nearest texel, of the mip level that fits `footprint`."""
        level = (np.maximum(footprint, np.float32(1)).view(np.int32) >> 23) - 127
        np.minimum(level, LEVELS - 1, out=level)
        side = np.right_shift(SIZE, level).astype(np.int32)
        last = side - 1
        xi = np.floor(u * side).astype(np.int32) & last
        yi = np.floor(v * side).astype(np.int32) & last
        at = _OFFSETS.astype(np.int32)[level] + texture * np.int32(_OFFSETS[-1]) + yi * side + xi
        return (self.texels[at] & np.uint32(255)).astype(np.float32)

    def _fetch(self, at: np.ndarray) -> np.ndarray:
        return self.texels[at].view(np.uint8).reshape(-1, 4).astype(np.float32)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """One octave of periodic value noise."""
    lattice = rng.random((rows, columns))
    y, x = np.arange(SIZE) * rows / SIZE, np.arange(SIZE) * columns / SIZE
    yi, xi = y.astype(int), x.astype(int)
    fy, fx = y - yi, x - xi
    fy, fx = (fy * fy * (3 - 2 * fy))[:, None], (fx * fx * (3 - 2 * fx))[None]
    top = lattice[yi]
    rowsum = top + (lattice[(yi + 1) % rows] - top) * fy
    left = rowsum[:, xi]
    return left + (rowsum[:, (xi + 1) % columns] - left) * fx


def _fbm(rng: np.random.Generator, base: int = 4, octaves: int = 6, gain: float = 0.55, aspect: int = 1) -> np.ndarray:
    """Several octaves of noise, normalised to 0.5 +- 0.2; `aspect` > 1 stretches along x."""
    out = np.zeros((SIZE, SIZE))
    weight = 1.0
    for i in range(octaves):
        n = min(base << i, SIZE)
        out += weight * _noise(rng, n, max(n // aspect, 1))
        weight *= gain
    return 0.5 + 0.2 * (out - out.mean()) / out.std()


def _warp(image: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return image[(y + np.rint(dy).astype(int)) % SIZE, (x + np.rint(dx).astype(int)) % SIZE]


def _cells(rows: int, columns: int, shift: float, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Brick layout: number of each texel's cell, and whether the texel is in a joint of `gap` rows."""
    y = _Y * rows
    row = np.floor(y).astype(int)
    x = _X * columns + (row % 2) * shift
    column = np.floor(x).astype(int) % columns
    fy, fx = y - np.floor(y), x - np.floor(x)
    return row * columns + column, (fy < gap) | (fx < gap * columns / rows)


def _bricks(rng: np.random.Generator, rows: int, columns: int, shift: float, gap: float, vary: float) -> np.ndarray:
    cell, joint = _cells(rows, columns, shift, gap)
    tone = 0.55 + vary * (rng.random(rows * columns) - 0.5)
    return np.where(joint, rng.choice([0.05, 0.95]), tone[cell] + 0.4 * (_fbm(rng, 16, 4) - 0.5))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(2, 8))
    return _bricks(rng, count, count, 0.0, rng.uniform(0.02, 0.06), rng.uniform(0, 0.3))


def _wood(rng: np.random.Generator, planks: int) -> np.ndarray:
    grain = _fbm(rng, 32, 4, 0.7, 16)
    rings = _warp(0.5 + 0.5 * wave(_Y * int(rng.integers(6, 24))), 0 * _X, 60 * (_fbm(rng, 2, 3, 0.5, 2) - 0.5))
    image = 0.65 * grain + 0.25 * rings + 0.1 * _fbm(rng)
    if planks:
        cell, joint = _cells(planks, int(rng.integers(1, 3)), 0.5, 0.05)
        image = np.roll(image, 37, 1) + 0.35 * (rng.random(cell.max() + 1) - 0.5)[cell]
        image = np.where(joint, 0.05, image)
    return image


def _stripes(rng: np.random.Generator) -> np.ndarray:
    edges = np.sort(rng.choice(SIZE, int(rng.integers(6, 40)), replace=False))
    tone = rng.random(len(edges) + 1)
    line = tone[np.searchsorted(edges, np.arange(SIZE))]
    return np.broadcast_to(line[None], (SIZE, SIZE)) + 0.1 * (_fbm(rng, 32, 3) - 0.5)


def _folds(rng: np.random.Generator) -> np.ndarray:
    line = _noise(rng, 1, 24)[0] * 0.6 + _noise(rng, 1, 9)[0] * 0.4
    return np.broadcast_to(line[None], (SIZE, SIZE)) + 0.1 * (_fbm(rng, 16, 4) - 0.5)


def _weave(rng: np.random.Generator, n: int) -> np.ndarray:
    a, b = np.abs(wave(_X * n)), np.abs(wave(_Y * n))
    over = (np.floor(_X * 2 * n) + np.floor(_Y * 2 * n)) % 2
    return np.where(over > 0, a, b) * 0.6 + 0.2 + 0.4 * (_fbm(rng, 8, 5, 0.8) - 0.5)


def _plaid(rng: np.random.Generator) -> np.ndarray:
    return 0.5 * (_stripes(rng) + _stripes(rng).T)


def _spots(rng: np.random.Generator, count: int, low: float, high: float, soft: bool = False) -> np.ndarray:
    image = np.full((SIZE, SIZE), 0.15)
    for _ in range(count):
        r = rng.uniform(low, high) * SIZE
        n = int(r) + 2
        y, x = np.mgrid[-n : n + 1, -n : n + 1]
        dy, dx = rng.random(2)
        inside = (x + dx) ** 2 + (y + dy) ** 2 * rng.uniform(0.5, 2) < r * r
        rows, columns = (rng.integers(SIZE) + y) % SIZE, (rng.integers(SIZE) + x) % SIZE
        tone = rng.uniform(0.3, 1) if soft else 0.9
        image[rows[inside], columns[inside]] = tone
    return image


def _marble(rng: np.random.Generator) -> np.ndarray:
    veins = np.abs(wave(_X * 3 + _Y * 2 + 2.0 * (_fbm(rng, 3, 6) - 0.5)))
    return 0.2 + 0.8 * np.sqrt(veins) + 0.2 * (_fbm(rng, 8, 5) - 0.5)


def _text(rng: np.random.Generator, lines: int, image: np.ndarray | None = None) -> np.ndarray:
    """Rows of words made of glyph-like strokes."""
    image = np.full((SIZE, SIZE), 0.92) if image is None else image
    height = SIZE / lines
    margin = int(rng.integers(6, 30))
    for i in range(lines):
        if rng.random() < 0.12:
            continue
        y0, y1 = int((i + 0.25) * height), max(int((i + 0.8) * height), int((i + 0.25) * height) + 1)
        x = margin
        end = SIZE - margin - (int(rng.integers(0, 120)) if rng.random() < 0.3 else 0)
        while x < end:
            word = int(rng.uniform(1.5, 6) * height * 0.5)
            stop = min(x + word, end)
            strokes = rng.random((y1 - y0, max(stop - x, 1))) < 0.6
            image[y0:y1, x : x + strokes.shape[1]][strokes] = 0.1
            x = stop + max(int(height * 0.35), 1)
    return image


def _colour(rng: np.random.Generator, saturation: float = 0.5) -> np.ndarray:
    grey = rng.uniform(0.05, 0.95)
    return np.clip(grey + saturation * (rng.random(3) - 0.5), 0.02, 0.98)


def _poster(rng: np.random.Generator) -> np.ndarray:
    """A cover or poster: a ground, blocks, discs, a photograph-like patch, some text."""
    image = np.empty((SIZE, SIZE, 3))
    image[:] = _colour(rng)
    image += (rng.random(3) - 0.5) * 0.5 * (_Y[..., None] - 0.5)
    for _ in range(int(rng.integers(2, 9))):
        x0, y0 = rng.integers(0, SIZE - 20, 2)
        w, h = rng.integers(15, 160, 2)
        patch = image[y0 : y0 + h, x0 : x0 + w]
        what = rng.random()
        if what < 0.45:
            patch[:] = _colour(rng, 0.8)
        elif what < 0.65:
            texture = _fbm(rng, int(rng.integers(2, 8)), 5)[: patch.shape[0], : patch.shape[1], None]
            patch[:] = _colour(rng) + (texture - 0.5) * 2 * (_colour(rng) - 0.3)
        elif what < 0.85:
            page = _text(rng, int(rng.integers(6, 40)))[: patch.shape[0], : patch.shape[1], None]
            patch[:] = np.where(page < 0.5, _colour(rng), patch)
        else:
            y, x = np.mgrid[-1 : 1 : patch.shape[0] * 1j, -1 : 1 : patch.shape[1] * 1j]
            patch[x * x + y * y < 1] = _colour(rng, 0.9)
    if rng.random() < 0.4:
        rim = int(rng.integers(4, 24))
        edge = (np.minimum(_X, 1 - _X) * SIZE < rim) | (np.minimum(_Y, 1 - _Y) * SIZE < rim)
        image[edge] = _colour(rng, 0.2)
    return image


def _landscape(rng: np.random.Generator) -> np.ndarray:
    """A view: sky with clouds, ridges, ground with noise."""
    sky = np.array([0.55, 0.7, 0.9]) * rng.uniform(0.7, 1.1) + 0.15 * _Y[..., None]
    image = sky + 0.8 * np.clip(_fbm(rng, 2, 6)[..., None] - 0.45, 0, 1)
    tone = np.array([0.45, 0.5, 0.55])
    for i in range(int(rng.integers(2, 5))):
        ridge = rng.uniform(0.25, 0.4) + 0.13 * i + 0.25 * (_fbm(rng, 3 + i, 5)[7] - 0.5)
        tone = 0.6 * tone + 0.4 * np.array([0.25, 0.35, 0.12]) * rng.uniform(0.4, 1.6)
        ground = tone + 0.25 * (_fbm(rng, 12, 5)[..., None] - 0.5)
        image = np.where((ridge < _Y)[..., None], ground, image)
    return image


def _screen(rng: np.random.Generator) -> np.ndarray:
    """A computer's screen: a desktop with windows, or a full page."""
    image = np.empty((SIZE, SIZE, 3))
    image[:] = _landscape(rng) if rng.random() < 0.4 else _colour(rng, 0.5)
    for _ in range(int(rng.integers(1, 5))):
        x0, y0 = rng.integers(5, 150, 2)
        w, h = rng.integers(60, 220, 2)
        patch = image[y0 : min(y0 + h, SIZE - 12), x0 : min(x0 + w, SIZE - 5)]
        ground = 0.95 if rng.random() < 0.6 else 0.12
        page = _text(rng, int(rng.integers(16, 50)))[: patch.shape[0], : patch.shape[1], None]
        patch[:] = np.where(page < 0.5, 1 - ground, ground)
        patch[:8] = _colour(rng, 0.4)
    image[-10:] = _colour(rng, 0.2)
    return image


def _books(rng: np.random.Generator, shelves: int) -> np.ndarray:
    """Spines in a row (or several rows) with titles."""
    image = np.full((SIZE, SIZE, 3), 0.06)
    height = SIZE // shelves
    for s in range(shelves):
        x = 0
        while x < SIZE:
            w = int(rng.integers(7, 24))
            top = s * height + int(rng.uniform(0.02, 0.25) * height)
            bottom = (s + 1) * height - (4 if shelves > 1 else 0)
            spine = image[top:bottom, x : x + w - 1]
            if rng.random() > 0.05:
                spine[:] = _colour(rng, 0.6)
                if spine.shape[1] > 5:
                    a, b = sorted(rng.integers(0, spine.shape[0], 2))
                    dots = rng.random((b - a, max(spine.shape[1] - 5, 1))) < 0.5
                    spine[a:b, 2 : 2 + dots.shape[1]][dots] = _colour(rng, 0.3)
                    spine[int(rng.integers(spine.shape[0])) :][:6] = _colour(rng, 0.5)
            x += w
        if shelves > 1:
            image[(s + 1) * height - 4 : (s + 1) * height] = 0.6
    return image


def _facade(rng: np.random.Generator) -> np.ndarray:
    """Windows in a wall; the texture's third of the palette: wall bright, glass dark, frames light."""
    rows, columns = int(rng.integers(2, 6)), int(rng.integers(2, 7))
    image = 0.6 + 0.3 * (_fbm(rng, 16, 4) - 0.5)
    if rng.random() < 0.4:
        image = 0.5 + 0.5 * (_bricks(rng, 48, 16, 0.5, 0.12, 0.4) - 0.5)
    y, x = _Y * rows, _X * columns
    fy, fx = y - np.floor(y), x - np.floor(x)
    w, h = rng.uniform(0.18, 0.4), rng.uniform(0.2, 0.42)
    inside = (np.abs(fx - 0.5) < w) & (np.abs(fy - 0.5) < h)
    frame = (np.abs(fx - 0.5) < w + 0.05) & (np.abs(fy - 0.5) < h + 0.05) & ~inside
    cell = (np.floor(y) * columns + np.floor(x)).astype(int)
    glass = rng.uniform(0.02, 0.35, rows * columns)[cell] + 0.2 * (fx - fy)
    image = np.where(inside, glass, image)
    image = np.where(frame, rng.choice([0.9, 0.3]), image)
    bars = inside & ((np.abs(fx - 0.5) < 0.02) | (np.abs(fy - rng.choice([0.5, 0.35])) < 0.02))
    return np.where(bars, 0.85, image)


def _keys(rng: np.random.Generator) -> np.ndarray:
    cell, joint = _cells(5, 14, 0.4, 0.18)
    tone = np.where(rng.random(70) < 0.1, 0.6, 0.25)[cell % 70]
    glyph = rng.random((SIZE // 4, SIZE // 4)).repeat(4, 0).repeat(4, 1) < 0.12
    return np.where(joint, 0.02, np.where(glyph, 0.9, tone))


def _leaves(rng: np.random.Generator) -> np.ndarray:
    return _spots(rng, 420, 0.008, 0.035, True) * 0.8 + 0.4 * (_fbm(rng, 4, 5) - 0.5)


def _panel(rng: np.random.Generator) -> np.ndarray:
    """A door or cabinet front: raised panels with light and dark edges, a handle."""
    image = 0.6 + 0.3 * (_wood(rng, 0) - 0.5)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    y, x = _Y * rows, _X * columns
    fy, fx = y - np.floor(y), x - np.floor(x)
    ay, ax = np.minimum(fy, 1 - fy) / rows, np.minimum(fx, 1 - fx) / columns
    edge = np.minimum(ay, ax)
    image = np.where((edge > 0.03) & (edge < 0.045), 0.15, image)
    image = np.where((edge > 0.045) & (edge < 0.055), 0.85, image)
    return np.where(edge < 0.006, 0.1, np.where((np.abs(fx - 0.85) < 0.02) & (np.abs(fy - 0.5) < 0.07), 0.95, image))


def _blinds(rng: np.random.Generator) -> np.ndarray:
    n = int(rng.integers(14, 40))
    y = _Y * n
    return 0.95 - 0.7 * (y - np.floor(y)) ** 3 + 0.1 * (_fbm(rng, 4, 4) - 0.5)


def _street(rng: np.random.Generator) -> np.ndarray:
    image = 0.4 + 0.35 * (_fbm(rng, 24, 4, 0.9) - 0.5) + 0.35 * (_fbm(rng, 2, 4) - 0.5)
    crack = np.abs(_fbm(rng, 3, 5) - 0.5) < 0.006
    return np.where(crack, 0.1, image)


def _photograph(rng: np.random.Generator) -> np.ndarray:
    """Overlapping discs of sizes by a power law, each with 1/f noise: the statistics of photographs."""
    noise = _fbm(rng, 2, 7, 0.5)
    image = _colour(rng, 0.4) + (noise[..., None] - 0.5)
    for _ in range(int(rng.integers(60, 160))):
        r = 5 * (1 - 0.97 * rng.random()) ** -0.6
        n = min(int(r) + 1, SIZE // 2 - 1)
        y, x = np.mgrid[-n : n + 1, -n : n + 1] / r
        inside = x * x * rng.uniform(0.4, 2.5) + y * y < 1
        rows, columns = (
            (rng.integers(SIZE) + (y * r).astype(int)) % SIZE,
            (rng.integers(SIZE) + (x * r).astype(int)) % SIZE,
        )
        texture = (noise[rows, columns] - 0.5) * rng.uniform(0.2, 1.4) + (x + y) * rng.uniform(-0.1, 0.1)
        image[rows[inside], columns[inside]] = _colour(rng, 0.6) + texture[inside][:, None]
    return image


def _motif(rng: np.random.Generator) -> np.ndarray:
    """A printed cloth: one small drawing repeated, every second row moved by half."""
    n = int(rng.integers(3, 9))
    y = _Y * n
    x = _X * n + 0.5 * (np.floor(y) % 2 if n % 2 == 0 else 0)
    fy, fx = y - np.floor(y) - 0.5, x - np.floor(x) - 0.5
    image = np.empty((SIZE, SIZE, 3))
    image[:] = _colour(rng, 0.4)
    for _ in range(int(rng.integers(2, 6))):
        dy, dx = fy - rng.uniform(-0.25, 0.25), fx - rng.uniform(-0.25, 0.25)
        a, c = rng.uniform(0.3, 3, 2)
        size = rng.uniform(0.02, 0.22)
        shape = np.abs(dx) * a + np.abs(dy) * c if rng.random() < 0.4 else np.sqrt(dx * dx * a + dy * dy * c)
        image[shape < size] = _colour(rng, 0.8)
    return image + 0.15 * (_fbm(rng, 64, 3, 0.9)[..., None] - 0.5)


def _carpet(rng: np.random.Generator) -> np.ndarray:
    """An ornament with two axes of symmetry, in few colours, in borders."""
    u, v = np.abs(_X - 0.5) * 2, np.abs(_Y - 0.5) * 2
    level = np.zeros((SIZE, SIZE))
    for _ in range(4):
        a, c = rng.integers(1, 7, 2)
        level += wave(u * a + rng.random()) * wave(v * c + rng.random())
    band = np.digitize(level, np.sort(rng.uniform(-1.5, 1.5, 3)))
    colours = np.stack([_colour(rng, 0.7) for _ in range(4)])
    image = colours[band]
    rim = np.maximum(u, v)
    image[rim > 0.85] = np.stack([_colour(rng, 0.6) for _ in range(2)])[(rim[rim > 0.85] * 20).astype(int) % 2]
    return image + 0.25 * (_fbm(rng, 64, 3, 1.0)[..., None] - 0.5)


def _water(rng: np.random.Generator) -> np.ndarray:
    ripples = _fbm(rng, int(rng.integers(12, 32)), 4, 0.7, 1)
    long = _fbm(rng, 6, 5, 0.6).T
    return 0.5 + 0.9 * (np.abs(ripples - 0.5) - 0.15) + 0.7 * (long - 0.5)


def _bark(rng: np.random.Generator) -> np.ndarray:
    """Upright furrows."""
    ridges = _fbm(rng, 24, 4, 0.7, 8).T
    return 0.5 + 1.6 * (np.abs(ridges - 0.5) - 0.15) + 0.5 * (_fbm(rng, 8, 5) - 0.5)


def _blades(rng: np.random.Generator) -> np.ndarray:
    """Straight strokes over one another, as of grass, straw or needles."""
    image = 0.2 + 0.2 * (_fbm(rng, 4, 5) - 0.5)
    along = np.arange(36)
    for _ in range(1500):
        slope, tone = rng.uniform(-1.2, 1.2), rng.uniform(0.2, 1.0)
        rows = (rng.integers(SIZE) + along) % SIZE
        columns = (rng.integers(SIZE) + np.rint(along * slope).astype(int)) % SIZE
        shade = tone * (1 - along / 60)
        image[rows, columns] = shade
        image[rows, (columns + 1) % SIZE] = shade * 0.9
    return image


def _pebbles(rng: np.random.Generator) -> np.ndarray:
    """Round stones, lit from above, in the order of their sizes."""
    image = np.full((SIZE, SIZE), 0.1)
    for r in np.sort(rng.uniform(4, 22, 420))[::-1]:
        n = int(r) + 1
        y, x = np.mgrid[-n : n + 1, -n : n + 1] / r
        inside = x * x + y * y * rng.uniform(1, 2) < 1
        rows, columns = (
            (rng.integers(SIZE) + (y * r).astype(int)) % SIZE,
            (rng.integers(SIZE) + (x * r).astype(int)) % SIZE,
        )
        image[rows[inside], columns[inside]] = (rng.uniform(0.3, 0.9) - 0.25 * (y + 0.5 * x))[inside]
    return image + 0.2 * (_fbm(rng, 32, 4, 0.8) - 0.5)


def _newspaper(rng: np.random.Generator) -> np.ndarray:
    """Columns of small print, a headline, a picture."""
    image = np.full((SIZE, SIZE, 3), 0.88)
    columns = int(rng.integers(2, 5))
    width = SIZE // columns
    for i in range(columns):
        page = _text(rng, int(rng.integers(44, 64)))
        image[40:, i * width + 4 : (i + 1) * width - 2] = page[40:, 30 : 30 + width - 6, None]
    image[4:36] = _text(rng, 8)[4:36, :, None]
    y, x = rng.integers(44, 150, 2)
    image[y : y + 70, x : x + 90] = _photograph(rng)[y : y + 70, x : x + 90]
    return image


_RECIPES: tuple[tuple[str, int, Callable[[np.random.Generator], np.ndarray]], ...] = (
    ("plain", 2, lambda r: 0.5 + 0.25 * (_fbm(r, 4, 6, 0.8) - 0.5)),
    ("plaster", 4, lambda r: 0.5 + 0.5 * (_fbm(r, int(r.integers(2, 24)), 6, r.uniform(0.5, 1.0)) - 0.5)),
    ("cloud", 4, lambda r: _fbm(r, int(r.integers(2, 6)), 6, r.uniform(0.45, 0.7))),
    ("speckle", 4, lambda r: 0.5 + r.uniform(0.6, 1.4) * (_fbm(r, 64, 3, 1.0) - 0.5)),
    ("wood", 4, lambda r: _wood(r, 0)),
    ("planks", 4, lambda r: _wood(r, int(r.integers(3, 9)))),
    ("brick", 3, lambda r: _bricks(r, int(r.integers(6, 14)) * 2, int(r.integers(3, 6)), 0.5, 0.12, 0.5)),
    ("tiles", 4, _tiles),
    ("checker", 2, lambda r: (np.floor(_X * 8) + np.floor(_Y * 8)) % 2 * 0.8 + 0.1 + 0.2 * (_fbm(r, 16, 3) - 0.5)),
    ("stripes", 4, _stripes),
    ("folds", 3, _folds),
    ("weave", 3, lambda r: _weave(r, int(r.integers(10, 40)))),
    ("plaid", 3, _plaid),
    ("spots", 2, lambda r: _spots(r, int(r.integers(20, 90)), 0.015, 0.06)),
    ("gravel", 3, lambda r: _spots(r, int(r.integers(500, 900)), 0.008, 0.03, True)),
    ("marble", 3, _marble),
    ("leaves", 4, _leaves),
    ("grass", 3, lambda r: 0.6 * _fbm(r, 64, 3, 0.9) + 0.4 * _fbm(r, 3, 5)),
    ("asphalt", 3, _street),
    ("text", 4, lambda r: _text(r, int(r.integers(14, 60)))),
    ("poster", 20, _poster),
    ("landscape", 6, _landscape),
    ("screen", 5, _screen),
    ("books", 5, lambda r: _books(r, int(r.integers(1, 5)))),
    ("facade", 6, _facade),
    ("keys", 2, _keys),
    ("panel", 5, _panel),
    ("blinds", 2, _blinds),
    ("photograph", 6, _photograph),
    ("motif", 5, _motif),
    ("carpet", 4, _carpet),
    ("water", 3, _water),
    ("sand", 2, lambda r: 0.5 + 0.5 * (_fbm(r, 64, 3, 1.0) - 0.5) + 0.5 * (_fbm(r, 3, 4, 0.6, 3) - 0.5)),
    ("bark", 2, _bark),
    ("blades", 3, _blades),
    ("pebbles", 3, _pebbles),
    ("newspaper", 3, _newspaper),
)


@functools.cache
def atlas() -> Atlas:
    """The atlas, made at the first call (about a second)."""
    names: dict[str, tuple[int, ...]] = {}
    parts: list[np.ndarray] = []
    number = 0
    for i, (name, count, make) in enumerate(_RECIPES):
        names[name] = tuple(range(number, number + count))
        for j in range(count):
            rng = np.random.default_rng([20260, i, j])
            image = np.asarray(make(rng), np.float64)
            if image.ndim == 2:
                image = np.repeat(image[..., None], 3, 2)
            image = np.clip(image, 0, 1)
            for level in range(LEVELS):
                if level:
                    image = (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
                packed = np.zeros((*image.shape[:2], 4), np.uint8)
                packed[..., :3] = np.rint(image * 255)
                parts.append(packed.reshape(-1))
            number += 1
    texels = np.concatenate(parts).view("<u4")
    return Atlas(texels.astype(np.uint32, copy=False), names)
