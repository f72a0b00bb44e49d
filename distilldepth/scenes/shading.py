"""Deferred shading of the nearest hits, and a camera's response: exposure, blur, noise.

As in geometry.py, per-pixel arithmetic is exactly rounded; powers and exponentials come from tables made in float64.
"""

from __future__ import annotations

import math

import numpy as np

from distilldepth.scenes import builder as m
from distilldepth.scenes.builder import Draw
from distilldepth.scenes.geometry import BOX, CONE, CYLINDER, TERRAIN, Camera, Objects, cast, look, wave
from distilldepth.scenes.staging import Light, Plan
from distilldepth.scenes.textures import atlas

_SHADOW_SIZE = 160  # of the shadow map, for images up to about 192 rows
_CURVE = 4096


def rays(camera: Camera, at: np.ndarray) -> np.ndarray:
    """World direction (3, n) of pixels `at` (flat numbers), scaled to 1 along the optical axis."""
    x, y = camera.xs[at % camera.width], camera.ys[at // camera.width]
    a = camera.axes.astype(np.float32)
    return a[0][:, None] * x + a[1][:, None] * y + a[2][:, None]


def _local_normals(
    kinds: np.ndarray, q: np.ndarray, half: np.ndarray, taper: np.ndarray, objects: Objects
) -> np.ndarray:
    """Outward normals (3, n) in the objects' frames at local points q."""
    s = q / half
    size = np.abs(s)
    top = size.max(0)
    normal = np.sign(s) * (size == top)
    other = np.flatnonzero(kinds != BOX)
    if len(other):
        s, h, k = s[:, other], half[:, other], kinds[other]
        bent = s / h
        tube = (k == CYLINDER) | (k == CONE)
        bent[2, tube] = 0
        flat = np.sqrt(s[0] * s[0] + s[1] * s[1])
        cone = k == CONE
        if cone.any():
            t = taper[other][cone]
            slope = -(t * np.float32(0.5)) / h[2, cone]
            bent[2, cone] = slope * flat[cone]
            flat[cone] = flat[cone] / np.maximum(1 + t * (s[2, cone] + 1) * np.float32(0.5), np.float32(1e-3))
        cap = tube & (np.abs(s[2]) > flat) & (np.abs(s[2]) > np.float32(0.995))
        bent[:2, cap] = 0
        bent[2, cap] = np.sign(s[2, cap])
        bent /= np.sqrt(bent[0] * bent[0] + bent[1] * bent[1] + bent[2] * bent[2]) + np.float32(1e-12)
        normal[:, other] = bent
        hills = np.flatnonzero(kinds == TERRAIN)
        if len(hills) and objects.terrain is not None:
            normal[:, hills] = _hill_normals(objects.terrain, q[0, hills], q[1, hills])
    return normal


def _hill_normals(waves: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    gx, gy = np.zeros_like(x), np.zeros_like(x)
    for amplitude, kx, ky, phase in waves.T.astype(np.float32):
        u = x * kx + y * ky + phase
        slope = amplitude * (wave(u + np.float32(0.02)) - wave(u - np.float32(0.02))) * np.float32(25)
        gx += slope * kx
        gy += slope * ky
    n = 1 / np.sqrt(gx * gx + gy * gy + 1)
    return np.stack([-gx * n, -gy * n, n])


def _shadow_camera(light: Light, points: np.ndarray, n: int) -> Camera:
    """A pinhole at the light that sees the points; a distant light is one far away."""
    low, high = points.min(1).astype(np.float64), points.max(1).astype(np.float64)
    middle, reach = (low + high) / 2, math.sqrt(float(((high - low) ** 2).sum())) / 2
    if light.distant:
        d = np.asarray(light.at, np.float64)
        d = d / math.sqrt(float((d * d).sum()))
        away = max(4 * reach, 15.0)
        position, f = middle + d * away, n / 2 / ((reach * 1.02) / away)
    else:
        position = np.asarray(light.at, np.float64)
        d = position - middle
        away = math.sqrt(float((d * d).sum()))
        d = d / away if away > 0.05 else np.array([0.0, 0.0, 1.0])
        ahead = max(0.5, reach / max(away, 0.1))
        f = n / 2 / min(ahead, 2.4)
    c = (n - 1) / 2
    return Camera(position, look(tuple(-d)), f, f, c, c, n, n)


def shadow(
    objects: Objects,
    casters: np.ndarray,
    light: Light,
    points: np.ndarray,
    owner: np.ndarray,
    view: np.ndarray,
    size: int,
) -> np.ndarray:
    """Share of the light (n,) that reaches points (3, n) of objects `owner`.

    The shadow map of `size` squared pixels covers the points `view`.
    """
    camera = _shadow_camera(light, view, size)
    some = Objects(
        objects.kind[casters],
        objects.centre[casters],
        objects.rotation[casters],
        objects.half[casters],
        objects.taper[casters],
        objects.material[casters],
        objects.terrain,
    )
    depth, index = cast(some, camera, near=0.05)
    index = np.where(index >= 0, casters[index], -1).astype(np.int32).reshape(-1)
    depth = depth.reshape(-1)
    a = camera.axes.astype(np.float32)
    p = points - camera.position.astype(np.float32)[:, None]
    z = a[2, 0] * p[0] + a[2, 1] * p[1] + a[2, 2] * p[2]
    inv = np.float32(camera.fx) / np.maximum(z, np.float32(1e-3))
    u = (a[0, 0] * p[0] + a[0, 1] * p[1] + a[0, 2] * p[2]) * inv + np.float32(camera.cx)
    v = (a[1, 0] * p[0] + a[1, 1] * p[1] + a[1, 2] * p[2]) * inv + np.float32(camera.cy)
    limit = size - 2
    outside = (z < 0.05) | (u < 1) | (v < 1) | (u > limit) | (v > limit)
    ui = np.clip(u, 1, limit)
    vi = np.clip(v, 1, limit)
    x0, y0 = np.floor(ui).astype(np.int32), np.floor(vi).astype(np.int32)
    fx, fy = ui - x0, vi - y0
    z = z * np.float32(0.995) - np.float32(0.01)
    lit = np.zeros(len(z), np.float32)
    at = y0 * np.int32(size) + x0
    for step, weight in (
        (0, (1 - fx) * (1 - fy)),
        (1, fx * (1 - fy)),
        (size, (1 - fx) * fy),
        (size + 1, fx * fy),
    ):
        cell = at + np.int32(step)
        lit += weight * ((depth[cell] >= z) | (index[cell] == owner))
    lit[outside] = 1
    return lit


class Surface:
    """What the camera sees: the hits, their points, normals and owners, gathered for shading."""

    def __init__(self, objects: Objects, camera: Camera, depth: np.ndarray, index: np.ndarray) -> None:
        flat = index.reshape(-1)
        self.at = np.flatnonzero(flat >= 0)
        self.owner = flat[self.at]
        self.z = depth.reshape(-1)[self.at]
        self.ray = rays(camera, self.at)
        self.point = self.ray * self.z + camera.position.astype(np.float32)[:, None]
        table = np.concatenate(
            [objects.centre, objects.rotation.reshape(-1, 9), objects.half, objects.taper[:, None]], 1
        )
        g = np.ascontiguousarray(table.T.astype(np.float32)).take(self.owner, axis=1)
        r, p = g[3:12], self.point - g[0:3]
        self.local = r[0:3] * p[0] + r[3:6] * p[1] + r[6:9] * p[2]
        self.half = g[12:15]
        self.kind = objects.kind.take(self.owner)
        self.local_normal = _local_normals(self.kind, self.local, self.half, g[15], objects)
        n = self.local_normal
        self.normal = np.stack([r[3 * i] * n[0] + r[3 * i + 1] * n[1] + r[3 * i + 2] * n[2] for i in range(3)])
        self.length = np.sqrt(self.ray[0] ** 2 + self.ray[1] ** 2 + self.ray[2] ** 2)
        facing = (
            -(self.normal[0] * self.ray[0] + self.normal[1] * self.ray[1] + self.normal[2] * self.ray[2]) / self.length
        )
        self.normal *= np.sign(facing)
        self.facing = np.abs(facing)


def albedo(
    surface: Surface, table: np.ndarray, materials: np.ndarray, fx: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear albedo (3, n), gloss (n,) and emission (n,) of the hits."""
    g = table.take(materials, axis=1)
    size = np.abs(surface.local_normal)
    axis = np.where(size[2] >= np.maximum(size[0], size[1]), 2, np.where(size[1] >= size[0], 1, 0))
    q, h = surface.local, surface.half
    side = axis == 0
    u, hu = np.where(side, q[1], q[0]), np.where(side, h[1], h[0])
    lying = axis == 2
    v, hv = np.where(lying, q[1], q[2]), np.where(lying, h[1], h[2])
    fit = g[m.FIT] > 0
    scale = np.where(fit, np.float32(0.5) / hu, g[m.SCALE])
    scale_v = np.where(fit, np.float32(0.5) / hv, g[m.SCALE])
    us, vs = u * scale, -v * scale_v
    shift = np.where(fit, np.float32(0.5), axis * np.float32(0.37))
    c, s = g[m.COS], g[m.SIN]
    uu = c * us - s * vs + g[m.U0] + shift
    vv = s * us + c * vs + g[m.V0] + shift
    pixel = surface.z / (np.float32(fx) * (np.float32(0.3) + np.float32(0.7) * surface.facing)) * np.float32(256)
    texture = g[m.TEXTURE].astype(np.int32)
    sample = atlas().sample(texture, uu, vv, pixel * np.maximum(scale, scale_v))
    low, high = g[m.LOW : m.LOW + 3], g[m.HIGH : m.HIGH + 3]
    colour = sample[:, :3].T * np.float32(1 / 255)
    colour *= high - low
    colour += low
    fine = g[m.DETAIL_SCALE]
    grain = atlas().nearest(g[m.DETAIL].astype(np.int32), u * fine + g[m.V0], v * fine + g[m.U0], pixel * fine)
    colour *= 1 + g[m.DETAIL_GAIN] * (grain * np.float32(1 / 127.5) - 1)
    np.clip(colour, 0, 1, out=colour)
    return colour, g[m.GLOSS], g[m.EMIT]


def _corners(point: np.ndarray, normal: np.ndarray, bounds: tuple[float, ...], strength: float) -> np.ndarray:
    """Darkening (n,) near the room's corners, standing in for ambient occlusion."""
    shade = np.ones(point.shape[1], np.float32)
    for i in range(3):
        low, high = np.float32(bounds[2 * i]), np.float32(bounds[2 * i + 1])
        d = np.maximum(np.minimum(point[i] - low, high - point[i]), 0)
        # A wall does not darken itself.
        near = np.float32(strength) / (1 + d * d * np.float32(14)) * (1 - np.abs(normal[i]))
        shade *= 1 - near
    return shade


def shade(
    plan: Plan, objects: Objects, surface: Surface, table: np.ndarray, camera: Camera, draw: Draw, view: np.ndarray
) -> np.ndarray:
    """Linear radiance (3, n) of the hits."""
    materials = objects.material.take(surface.owner)
    colour, gloss, emit = albedo(surface, table, materials, camera.fx)
    n, p = surface.normal, surface.point
    up = draw(0.1, 0.35)
    base = np.float32(1 - up) + np.float32(up) * n[2]
    if plan.bounds is not None:
        base *= _corners(p, n, plan.bounds, draw(0.1, 0.45))
    light = np.asarray(plan.ambient, np.float32)[:, None] * base
    shine = np.zeros_like(colour)
    towards_eye = surface.ray / -surface.length
    for i, lamp in enumerate(plan.lights):
        if lamp.distant:
            at = np.asarray(lamp.at, np.float64)
            d = (at / math.sqrt(float((at * at).sum()))).astype(np.float32)[:, None]
            power = np.float32(1)
        else:
            d = np.asarray(lamp.at, np.float32)[:, None] - p
            far2 = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + np.float32(1e-4)
            d = d / np.sqrt(far2)
            power = np.float32(1.5) / (1 + far2 / np.float32(lamp.reach**2))
        facing = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
        strength = np.maximum(facing, 0) * power
        if i == 0:
            extent = 2 * objects.half.max(1)
            ok = extent > 0.02
            ok[list(plan.shell)] = False
            ok &= objects.kind != TERRAIN  # gentle hills shade only themselves
            casters = np.flatnonzero(ok)
            soft = np.float32(draw(0.55, 1.0) if not plan.outdoor else draw(0.8, 1.0))
            lit = (
                1
                - soft
                + soft
                * shadow(
                    objects,
                    casters,
                    lamp,
                    p,
                    surface.owner,
                    view,
                    max(_SHADOW_SIZE, min(camera.height, camera.width) * 5 // 6),
                )
            )
            strength = strength * lit
            half = d + towards_eye
            half = half / np.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2 + np.float32(1e-6))
            spark = np.maximum(n[0] * half[0] + n[1] * half[1] + n[2] * half[2], 0)
            for _ in range(5):
                spark = spark * spark
            shine = np.asarray(lamp.colour, np.float32)[:, None] * (spark * gloss * lit * power)
        light += np.asarray(lamp.colour, np.float32)[:, None] * strength
    light += emit
    return colour * light + np.float32(0.5) * shine


def fog(radiance: np.ndarray, surface: Surface, draw: Draw, sky: np.ndarray) -> np.ndarray:
    """Blend with the horizon's colour by distance; thin on most days."""
    reach = draw.log(120, 3000) if draw.chance(0.9) else draw.log(15, 120)
    x = surface.z * surface.length / np.float32(reach)
    keep = 1 / (1 + x + x * x * np.float32(0.5))  # close to exp(-x)
    return radiance * keep + sky[:, None] * (1 - keep)


def sky(camera: Camera, at: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Radiance (3, n) of sky pixels and the horizon's colour (3,)."""
    power = draw(0.7, 1.6)
    clear = draw.chance(0.6)
    zenith = np.array((0.16, 0.32, 0.75) if clear else (0.55, 0.58, 0.62), np.float32) * np.float32(power)
    horizon = np.array((0.75, 0.82, 0.92) if clear else (0.8, 0.8, 0.8), np.float32) * np.float32(
        power * draw(0.7, 1.1)
    )
    names = atlas().names["cloud"]
    which, scale, cover, drift = draw.pick(names), draw.log(0.1, 0.6), draw(0.2, 0.7), draw(0, 1)
    if not len(at):
        return np.zeros((3, 0), np.float32), horizon
    d = rays(camera, at)
    d = d / np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    height = np.maximum(d[2], 0)
    mix = np.minimum(height * np.float32(2.2), 1)
    mix = mix * (2 - mix)
    colour = horizon[:, None] * (1 - mix) + zenith[:, None] * mix
    far = np.float32(scale) / (height + np.float32(0.08))
    texture = np.full(len(at), which, np.int32)
    cloud = atlas().sample(texture, d[0] * far + np.float32(drift), d[1] * far, far * far * np.float32(2))[:, 0]
    cloud = np.clip((cloud * np.float32(1 / 255) - np.float32(cover)) * np.float32(3), 0, 1) * np.minimum(height * 5, 1)
    return colour * (1 - cloud) + np.float32(power) * cloud, horizon


def _smooth(image: np.ndarray, axis: int, strength: float, step: int = 1) -> np.ndarray:
    """Three-tap blur (s, 1 - 2 s, s) along an axis of (n, H, W), taps `step` pixels apart."""
    s = np.float32(strength)
    out = image * (1 - 2 * s)
    if axis == 2:
        out[:, :, step:] += s * image[:, :, :-step]
        out[:, :, :-step] += s * image[:, :, step:]
        out[:, :, :step] += s * image[:, :, :1]
        out[:, :, -step:] += s * image[:, :, -1:]
    else:
        out[:, step:] += s * image[:, :-step]
        out[:, :-step] += s * image[:, step:]
        out[:, :step] += s * image[:, :1]
        out[:, -step:] += s * image[:, -1:]
    return out


_COSINES = np.array(
    [[math.sqrt((1 if k else 0.5) / 4) * math.cos((2 * j + 1) * k * math.pi / 16) for j in range(8)] for k in range(8)],
    np.float32,
)


class Response:
    """One camera's optics and electronics, drawn once per scene, so that both views of a pair share them."""

    def __init__(self, draw: Draw, shallow: float = 0.1) -> None:
        self.target = draw(0.28, 0.58)
        warmth = draw(-0.1, 0.2)
        self.white = np.array([1 + warmth + draw(-0.04, 0.04), 1.0, 1 - warmth + draw(-0.06, 0.06)], np.float32)
        self.gamma = draw(0.85, 1.2)
        self.contrast = draw(0.0, 0.9)
        self.colourfulness = draw(0.55, 1.1)
        self.vignette = draw(0.0, 0.3) if draw.chance(0.5) else 0.0
        self.blur = draw(0.02, 0.2)
        # Diameter of the blur of what is infinitely far, as a share of the width, when the focus is at 1.
        self.aperture = draw.log(0.004, 0.06) if draw.chance(shallow) else 0.0
        self.motion = draw.integer(1, 3) if draw.chance(0.1) else 0
        self.fringe = draw(0.05, 0.25) if draw.chance(0.15) else 0.0
        self.read = draw.log(0.003, 0.025)
        self.shot = draw.log(0.003, 0.03)
        self.floor = draw(0, 0.04) if draw.chance(0.4) else 0.0
        self.middle = draw.chance(0.25)  # the exposure is measured in the middle
        if draw.chance(0.08):  # too little light
            self.target = draw(0.1, 0.26)
            self.read, self.shot = self.read * 2, self.shot * 2
        elif draw.chance(0.05):  # too much
            self.target = draw(0.58, 0.75)
        self.quality = draw(0.3, 2.0) if draw.chance(0.2) else 0.0  # of the compression; more is coarser
        self.exposure: float | None = None
        self.focus = 1.0

    def __call__(self, radiance: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Linear radiance (3, H, W) to uint8 (H, W, 3)."""
        _, height, width = radiance.shape
        image = radiance * self.white[:, None, None]
        luma = image[0] * np.float32(0.3) + image[1] * np.float32(0.59) + image[2] * np.float32(0.11)
        image = luma + np.float32(self.colourfulness) * (image - luma)
        part = luma[height // 4 : height - height // 4, width // 4 : width - width // 4] if self.middle else luma
        exposure = self._meter(part[::4, ::4], depth) if self.exposure is None else self.exposure
        if self.vignette:
            x = np.linspace(-1, 1, width, dtype=np.float32)
            y = np.linspace(-1, 1, height, dtype=np.float32)
            image = image * (1 - np.float32(self.vignette) * (x * x + (y * y)[:, None]) * np.float32(0.5))
        if self.aperture:
            image = self._defocused(image, depth)
        for _ in range(self.motion):
            image = _smooth(image, 2, 0.3)
        image = _smooth(_smooth(image, 2, self.blur), 1, self.blur)
        if self.fringe:
            k = np.float32(self.fringe)
            image[0, :, 1:] += k * (image[0, :, :-1] - image[0, :, 1:])
            image[2, :, :-1] += k * (image[2, :, 1:] - image[2, :, :-1])
        image *= np.float32(exposure * _CURVE / 4)
        np.clip(image, 0, _CURVE - 1, out=image)
        image = self._curve()[image.astype(np.int32)]
        noise = rng.standard_normal(image.shape, np.float32)
        # Standard deviation linear in the signal: close enough to shot noise, and no root per pixel.
        noise *= np.float32(self.read) + np.float32(self.shot) * image
        if height * width > 16:
            noise = _smooth(noise, 2, 0.15)
        image += noise
        image *= 255
        if self.quality:
            image = _compressed(image, self.quality)
        image += np.float32(0.5)
        np.clip(image, 0, 255, out=image)
        return np.ascontiguousarray(image.transpose(1, 2, 0)).astype(np.uint8)

    def _meter(self, luma: np.ndarray, depth: np.ndarray) -> float:
        """Set the exposure that brings the mean display value to the target (by bisection); focus on the middle."""
        h, w = depth.shape
        centre = np.sort(depth[h * 2 // 5 : h - h * 2 // 5, w * 2 // 5 : w - w * 2 // 5].reshape(-1))
        self.focus = min(float(centre[len(centre) // 8]), 50.0)
        curve = self._curve()
        low, high = -10.0, 10.0
        for _ in range(11):
            middle = (low + high) / 2
            level = np.clip(luma * np.float32(2.0**middle * _CURVE / 4), 0, _CURVE - 1).astype(np.int32)
            if float(curve[level].mean(dtype=np.float64)) < self.target:
                low = middle
            else:
                high = middle
        self.exposure = 2.0**low
        return self.exposure

    def _curve(self) -> np.ndarray:
        """Display value by linear value in 0..4: gamma, an S-shaped contrast, a shoulder for the highlights."""
        x = np.arange(_CURVE, dtype=np.float64) * (4.0 / _CURVE)
        x = np.where(x < 0.7, x, 0.7 + 0.3 * (1 - np.exp(-(x - 0.7) / 0.6)))
        y = x ** (self.gamma / 2.2)
        y = (1 - self.contrast) * y + self.contrast * y * y * (3 - 2 * y)
        return (self.floor + (1 - self.floor) * y).astype(np.float32)

    def _defocused(self, image: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Blur by the circle of confusion: smoother and smoother copies, each where the circle asks for it.

        Sharp pixels give little to the blur, so that a subject has no halo in its background.
        """
        near = 1 / np.minimum(depth, np.float32(1000))
        circle = np.abs(1 - np.float32(self.focus) * near) * np.float32(self.aperture * depth.shape[1])
        weight = np.minimum(circle * circle, 1) + np.float32(0.02)
        soft = np.concatenate([image * weight, weight[None]])
        out = image
        for step, least, most in ((1, 0.5, 1.5), (1, 1.5, 2.5), (2, 2.5, 5.0), (3, 5.0, 9.0), (5, 9.0, 16.0)):
            for _ in range(2):
                soft = _smooth(_smooth(soft, 2, 0.25, step), 1, 0.25, step)
            share = np.clip((circle - np.float32(least)) * np.float32(1 / (most - least)), 0, 1)
            out = out + share * (soft[:3] / soft[3] - out)
        return out


def _blocks(x: np.ndarray, back: bool) -> np.ndarray:
    """The cosine transform of eight along the first axis (8, ...), or its inverse, in a fixed order of summation."""
    m = _COSINES.T if back else _COSINES
    out = np.zeros_like(x)
    for j in range(8):
        out += m[:, j].reshape(8, *[1] * (x.ndim - 1)) * x[j]
    return out


def _compressed(image: np.ndarray, coarse: float) -> np.ndarray:
    """What JPEG leaves of an image (3, H, W) in 0..255: blocks of 8 x 8 whose frequencies are rounded."""
    _, height, width = image.shape
    image = np.pad(np.clip(image, 0, 255), ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
    red, green, blue = image
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    x = np.stack([luma, red - luma, blue - luma])
    rows, columns = x.shape[1] // 8, x.shape[2] // 8
    x = np.ascontiguousarray(x.reshape(3, rows, 8, columns, 8).transpose(4, 2, 0, 1, 3))
    x = _blocks(_blocks(x, False).swapaxes(0, 1), False)
    i = np.arange(8, dtype=np.float32)
    fineness = (8 + 5 * (i[:, None] + i)) * np.float32(coarse)
    step = fineness[:, :, None] * np.array([1.0, 2.0, 2.0], np.float32)
    step = step[..., None, None]
    x = np.rint(x / step) * step
    x = _blocks(_blocks(x, True).swapaxes(0, 1), True)
    luma, red, blue = x.transpose(2, 3, 1, 4, 0).reshape(3, rows * 8, columns * 8)[:, :height, :width]
    green = luma - (np.float32(0.299) * red + np.float32(0.114) * blue) * np.float32(1 / 0.587)
    return np.stack([luma + red, green, luma + blue])
