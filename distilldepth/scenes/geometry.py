"""Ray casting of analytic primitives into a depth and an object-index buffer.

Per-pixel work uses only +, -, *, / and sqrt in float32. IEEE 754 rounds these exactly, so that every machine
gets the same picture; sin, exp and friends differ in the last bit between processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BOX, ELLIPSOID, CYLINDER, CONE, TERRAIN, FOLIAGE = range(6)
NEAR = 0.15  # metres; nothing nearer is seen

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_EDGES = np.array([[i, j] for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1])


@dataclass
class Objects:
    """Primitives of one scene; `rotation` columns are the local axes in the world, sizes are in metres.

    `half` is the half extent in the local frame; `taper` is top radius / bottom radius - 1 of a cone. `terrain` is
    the (4, k) table of sines (amplitude, kx, ky, phase) of the single TERRAIN object, if there is one.
    """

    kind: np.ndarray
    centre: np.ndarray
    rotation: np.ndarray
    half: np.ndarray
    taper: np.ndarray
    material: np.ndarray
    terrain: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kind)


@dataclass
class Camera:
    """Pinhole camera: rows of `axes` are right, down, forward in the world; pixel (i, j) has its centre at (i, j)."""

    position: np.ndarray
    axes: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int

    @property
    def xs(self) -> np.ndarray:
        return ((np.arange(self.width) - self.cx) / self.fx).astype(np.float32)

    @property
    def ys(self) -> np.ndarray:
        return ((np.arange(self.height) - self.cy) / self.fy).astype(np.float32)

    def intrinsics(self) -> np.ndarray:
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float32)


def mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product of stacks of 3x3 matrices, or matrix and vector, in a fixed order of summation (no BLAS)."""
    if b.ndim == a.ndim:
        return a[..., :, 0:1] * b[..., 0:1, :] + a[..., :, 1:2] * b[..., 1:2, :] + a[..., :, 2:3] * b[..., 2:3, :]
    return a[..., :, 0] * b[..., None, 0] + a[..., :, 1] * b[..., None, 1] + a[..., :, 2] * b[..., None, 2]


def look(forward: tuple[float, float, float], roll: float = 0.0) -> np.ndarray:
    """Camera axes (rows right, down, forward) that look along `forward` with the world's z up, turned by `roll`."""
    f = np.asarray(forward, np.float64)
    f = f / math.sqrt(f[0] * f[0] + f[1] * f[1] + f[2] * f[2])
    flat = math.sqrt(f[0] * f[0] + f[1] * f[1])
    right = np.array([f[1] / flat, -f[0] / flat, 0.0]) if flat > 1e-6 else np.array([1.0, 0.0, 0.0])
    down = np.array(
        [f[1] * right[2] - f[2] * right[1], f[2] * right[0] - f[0] * right[2], f[0] * right[1] - f[1] * right[0]]
    )
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * right + s * down, c * down - s * right, f])


def screen_boxes(objects: Objects, camera: Camera, near: float) -> np.ndarray:
    """Pixel bounds (N, 4) x0, y0, x1, y1 (exclusive end) of every object's projection; empty if out of sight."""
    local = _CORNERS[None] * objects.half[:, None, :]
    world = mul(objects.rotation[:, None], local) + objects.centre[:, None]
    cam = mul(camera.axes[None, None], world - camera.position)
    a, b = cam[:, _EDGES[:, 0]], cam[:, _EDGES[:, 1]]
    # The point where an edge meets the near plane bounds what is left of a box that reaches behind the camera.
    za, zb = a[..., 2], b[..., 2]
    crosses = (za > near) != (zb > near)
    t = np.where(crosses, (near - za) / np.where(crosses, zb - za, 1.0), 0.0)
    cut = a + t[..., None] * (b - a)
    points = np.concatenate([cam, cut], 1)
    ok = np.concatenate([cam[..., 2] > near, crosses], 1)
    z = np.where(ok, np.maximum(points[..., 2], near), 1.0)
    x = points[..., 0] / z * camera.fx + camera.cx
    y = points[..., 1] / z * camera.fy + camera.cy
    big = 1e9
    x0 = np.where(ok, x, big).min(1)
    x1 = np.where(ok, x, -big).max(1)
    y0 = np.where(ok, y, big).min(1)
    y1 = np.where(ok, y, -big).max(1)
    out = np.stack([np.floor(x0), np.floor(y0), np.ceil(x1) + 1, np.ceil(y1) + 1], 1)
    size = np.array([camera.width, camera.height, camera.width, camera.height], np.float64)
    out = np.clip(out, 0, size)
    out[(out[:, 0] >= out[:, 2]) | (out[:, 1] >= out[:, 3]) | ~ok.any(1)] = 0
    return out.astype(np.int64)


def hit_box(o: np.ndarray, d: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distance of rays o + t d (o (3, 1, 1), d (3, h, w), local) in a box; a miss has entry > exit."""
    inv = 1.0 / d
    mid = inv * -o
    inv *= half
    np.abs(inv, out=inv)
    return (mid - inv).max(0), (mid + inv).min(0)


def hit_ellipsoid(o: np.ndarray, d: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distance of rays in an ellipsoid with semi-axes `half`; NaN for a miss."""
    o, d = o / half, d / half
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = d[0] * o[0] + d[1] * o[1] + d[2] * o[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (root - b) / a


def hit_foliage(o: np.ndarray, d: np.ndarray, half: np.ndarray, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """As hit_ellipsoid, but ragged: a lattice of small cells decides where the outer leaves are, above a core."""
    fine = np.clip(half.max() * np.float32(1.6), 1, 3)  # leaves do not grow with their crown
    o, d = o / half, d / half
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = d[0] * o[0] + d[1] * o[1] + d[2] * o[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2]
    square = b * b
    root = np.sqrt(square - a * (c - 1))
    near = (-b - root) / a
    core = (-b - np.sqrt(square - a * (c - np.float32(0.8)))) / a
    cells = (o + near * d) * (np.float32(6 + salt % 5) * fine)
    np.copyto(cells, 0, where=np.isnan(near))
    x, y, z = np.floor(cells).astype(np.int32)
    mixed = (x * np.int32(7919) ^ y * np.int32(10007) ^ z * np.int32(3571) ^ np.int32(salt * 613)) * np.int32(40503)
    return np.where((mixed >> 9 & 15) < 9, near, core), (root - b) / a


def hit_cylinder(o: np.ndarray, d: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distance of rays in an upright (elliptic) cylinder with caps; NaN or entry > exit for a miss."""
    o, d = o / half, d / half
    a = d[0] * d[0] + d[1] * d[1]
    b = d[0] * o[0] + d[1] * o[1]
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[1] * o[1] - 1))
    inv = 1.0 / d[2]
    mid = inv * -o[2]
    np.abs(inv, out=inv)
    return np.maximum((-b - root) / a, mid - inv), np.minimum((root - b) / a, mid + inv)


def hit_cone(o: np.ndarray, d: np.ndarray, half: np.ndarray, taper: float) -> tuple[np.ndarray, np.ndarray]:
    """Entry distance of rays in a truncated cone (radius 1 at the bottom, 1 + taper at the top, in units of half)."""
    o, d = o / half, d / half
    k = taper / 2
    r = 1 + k + k * o[2]  # radius of the cone at the ray's origin; grows by k d_z along the ray
    a = d[0] * d[0] + d[1] * d[1] - (k * d[2]) ** 2
    b = d[0] * o[0] + d[1] * o[1] - k * r * d[2]
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[1] * o[1] - r * r))
    best = np.full(d.shape[1:], np.inf, np.float32)
    for t in ((-b - root) / a, (root - b) / a):
        z = o[2] + t * d[2]
        ok = (np.abs(z) <= 1) & (1 + k + k * z >= 0) & (t > 0)
        np.minimum(best, t, out=best, where=ok)
    for level, radius in ((-1.0, 1.0), (1.0, 1.0 + taper)):
        t = (level - o[2]) / d[2]
        x, y = o[0] + t * d[0], o[1] + t * d[1]
        np.minimum(best, t, out=best, where=(x * x + y * y <= radius * radius) & (t > 0))
    return best, np.where(np.isfinite(best), np.float32(np.inf), np.float32(-1))


def wave(x: np.ndarray) -> np.ndarray:
    """A smooth wave of period 1 between -1 and 1, made of exactly rounded operations (a stand-in for the sine)."""
    x = x - np.floor(x)
    y = x - np.float32(0.5)
    y = y * (1 - np.abs(y + y)) * np.float32(8)
    return -y


def terrain_height(waves: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height in metres of the terrain at x, y: the sum of the waves (amplitude, kx, ky, phase)."""
    out = np.zeros_like(x)
    for amplitude, kx, ky, phase in waves.T.astype(np.float32):
        out += amplitude * wave(x * kx + y * ky + phase)
    return out


def hit_terrain(o: np.ndarray, d: np.ndarray, waves: np.ndarray, far: float = 160.0, steps: int = 30) -> np.ndarray:
    """Distance of rays (o (3,), d (3, n)) to the terrain: marching in growing steps, then bisection; inf for a miss."""
    o = o.astype(np.float32)
    n = d.shape[1]
    out = np.full(n, np.inf, np.float32)
    top = np.float32(np.abs(waves[0]).sum())
    alive = np.flatnonzero((d[2] < 0) | (o[2] < top))
    lo = np.full(len(alive), NEAR, np.float32)
    growth = (far / 0.3) ** (1.0 / steps)
    low, high, who = [], [], []
    t = 0.3
    for _ in range(steps + 1):
        if not len(alive):
            break
        ray = d[:, alive]
        z = o[2] + t * ray[2]
        below = z < terrain_height(waves, o[0] + t * ray[0], o[1] + t * ray[1])
        low.append(lo[below])
        high.append(np.full(int(below.sum()), t, np.float32))
        who.append(alive[below])
        keep = ~below & ((ray[2] < 0) | (z < top))
        alive = alive[keep]
        lo = np.full(len(alive), t, np.float32)
        t *= growth
    if not who:
        return out
    hits, lo, hi = np.concatenate(who), np.concatenate(low), np.concatenate(high)
    ray = d[:, hits]
    for _ in range(7):
        t = (lo + hi) * np.float32(0.5)
        below = o[2] + t * ray[2] < terrain_height(waves, o[0] + t * ray[0], o[1] + t * ray[1])
        hi = np.where(below, t, hi)
        lo = np.where(below, lo, t)
    out[hits] = (lo + hi) * np.float32(0.5)
    return out


def cast(objects: Objects, camera: Camera, *, near: float = NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Nearest hit per pixel: depth along the optical axis float32 (H, W), inf = none; object index, -1 = none."""
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    index = np.full((camera.height, camera.width), -1, np.int32)
    xs, ys = camera.xs, camera.ys
    boxes = screen_boxes(objects, camera, near)
    to_local = mul(np.swapaxes(objects.rotation, 1, 2), np.broadcast_to(camera.axes.T, objects.rotation.shape))
    across = to_local[:, :, 0:1].astype(np.float32)
    down = to_local[:, :, 1:2].astype(np.float32)
    # The nudge keeps the rays of a camera that looks along an axis from being exactly parallel to a face.
    ahead = (to_local[:, :, 2:3] + 1e-8).astype(np.float32)
    origin = mul(np.swapaxes(objects.rotation, 1, 2), camera.position - objects.centre)
    origin = origin.astype(np.float32)[:, :, None, None]
    half = objects.half.astype(np.float32)[:, :, None, None]
    kinds = objects.kind.tolist()
    near32 = np.float32(near)
    with np.errstate(all="ignore"):
        for i in np.flatnonzero(boxes[:, 2] > boxes[:, 0]).tolist():
            kind = kinds[i]
            if kind == TERRAIN and objects.terrain is not None:
                d = (across[i] * xs + ahead[i])[:, None, :] + (down[i] * ys)[:, :, None]
                t = hit_terrain(origin[i, :, 0, 0], d.reshape(3, -1), objects.terrain).reshape(depth.shape)
                found = (t < depth) & (t > near32)
                np.copyto(depth, t, where=found)
                np.copyto(index, i, where=found)
                continue
            x0, y0, x1, y1 = boxes[i].tolist()
            d = (across[i] * xs[x0:x1] + ahead[i])[:, None, :] + (down[i] * ys[y0:y1])[:, :, None]
            if kind == BOX:
                t, out = hit_box(origin[i], d, half[i])
            elif kind == ELLIPSOID:
                t, out = hit_ellipsoid(origin[i], d, half[i])
            elif kind == FOLIAGE:
                t, out = hit_foliage(origin[i], d, half[i], i)
            elif kind == CYLINDER:
                t, out = hit_cylinder(origin[i], d, half[i])
            else:
                t, out = hit_cone(origin[i], d, half[i], float(objects.taper[i]))
            window = depth[y0:y1, x0:x1]
            found = t < out
            found &= t < window
            found &= t > near32
            np.copyto(window, t, where=found)
            np.copyto(index[y0:y1, x0:x1], i, where=found)
    return depth, index


def inside_any(objects: Objects, point: np.ndarray, margin: float) -> bool:
    """Whether a point is in, or nearer than about `margin` metres to, any primitive's oriented bounding box."""
    local = mul(np.swapaxes(objects.rotation, 1, 2), point - objects.centre)
    solid = objects.kind != TERRAIN
    return bool(((np.abs(local) < objects.half + margin).all(1) & solid).any())
