"""Scenes of a seed by ray casting: the same arguments give the same pixels, on every machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distilldepth.scenes.builder import Builder, Draw
from distilldepth.scenes.geometry import Camera, Objects, cast, inside_any, look
from distilldepth.scenes.layouts import LAYOUTS
from distilldepth.scenes.shading import Response, Surface, fog, shade, sky
from distilldepth.scenes.staging import Plan

RENDERER_VERSION = 3


KINDS: tuple[str, ...] = tuple(LAYOUTS)


@dataclass(frozen=True)
class Rig:
    """Two cameras that never change, on a car: what metres can be learned with.

    As KITTI's: a focal length of 0.58 widths, the optical axis in the middle, 0.54 m between the cameras.
    """

    focal_share: float = 0.58
    """Focal length over the width of the picture."""
    baseline_m: float = 0.54
    kinds: tuple[str, ...] = ("road", "road", "street")
    """Of scenes; each as often as it stands here."""


CAR = Rig()


@dataclass
class Scene:
    """A rendered scene.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), metres along the optical axis, inf where there is sky.
        intrinsics: float32 (3, 3), pixels; the centre of the top left pixel is at (0, 0).
        right: uint8 (H, W, 3), the view of a second camera `baseline_m` to the right, or None.
        baseline_m: metres between the two cameras; disparity in pixels is fx * baseline_m / depth.
        kind: one of KINDS.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    right: np.ndarray | None
    baseline_m: float
    kind: str


def render_scene(
    seed: int, size: tuple[int, int] = (192, 256), *, stereo: bool = False, rig: Rig | None = None
) -> Scene:
    """Render the scene of a seed: the same arguments give the same pixels, on every machine.

    Views that teach little are drawn again: more than 60 % sky, a 95th percentile of depth below 1.25 times the 5th
    (1.1 for things seen from above or close by), more than 35 % of the pixels nearer than 0.25 m, fewer than a handful
    of objects.

    Args:
        seed: not negative.
        size: height and width in pixels, each at least 16.
        stereo: render the right view too; the left view is the same either way.
        rig: cameras that are the same in all scenes, and kinds of scene that suit them; None draws them.

    Returns:
        The scene. Depth is at least 0.15 m, inf where there is sky.

    Raises:
        ValueError: the seed is negative or the size too small.

    >>> scene = render_scene(7, (48, 64))
    >>> scene.image.shape, scene.depth.dtype
    ((48, 64, 3), dtype('float32'))
    """
    return _render(seed, size, stereo=stereo, rig=rig)


def _render(
    seed: int, size: tuple[int, int], *, stereo: bool = False, kind: str | None = None, rig: Rig | None = None
) -> Scene:
    seed = int(seed)
    height, width = (int(n) for n in size)
    if seed < 0:
        raise ValueError(f"render_scene: seed must be >= 0, got {seed}")
    if min(height, width) < 16:
        raise ValueError(f"render_scene: size must be (height, width), each >= 16, got {size}")
    chosen = kind or (_kind_of(seed) if rig is None else rig.kinds[seed % len(rig.kinds)])
    found = None
    for attempt in range(8):
        rng = np.random.default_rng([seed, 2, attempt, KINDS.index(chosen)])
        builder = Builder(rng)
        plan = LAYOUTS[chosen][1](builder)
        objects = builder.objects()
        found = _find_view(plan, objects, Draw(rng), height, width, rig)
        if found is not None:
            break
    if found is None:  # does not happen in practice; a plain desk nearly always gives a view
        plain = None if rig else "desk" if chosen == "room" else "room"
        return _render(seed + 1_000_003, size, stereo=stereo, kind=plain, rig=rig)
    camera, depth, index = found
    draw = Draw(np.random.default_rng([seed, 3]))
    table = np.ascontiguousarray(np.array(builder.materials, np.float64).T.astype(np.float32))
    surface = Surface(objects, camera, depth, index)
    baseline = draw(*plan.baseline)
    if rig is not None:
        baseline = rig.baseline_m
    response, state = Response(draw, plan.shallow), draw.rng.integers(1 << 60)
    if not stereo:
        image = _picture(plan, objects, camera, depth, surface, table, response, int(state), surface.point, 0)
        return Scene(image, depth, camera.intrinsics(), None, baseline, chosen)
    other = Camera(
        camera.position + camera.axes[0] * baseline,
        camera.axes,
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
        height,
        width,
    )
    depth_right, index_right = cast(objects, other)
    surface_right = Surface(objects, other, depth_right, index_right)
    # The left view frames the shadow map, so that it does not change with `stereo`.
    image = _picture(plan, objects, camera, depth, surface, table, response, int(state), surface.point, 0)
    right = _picture(plan, objects, other, depth_right, surface_right, table, response, int(state), surface.point, 1)
    return Scene(image, depth, camera.intrinsics(), right, baseline, chosen)


def _kind_of(seed: int) -> str:
    """The kind of scene that a seed gives."""
    shares = [(weight, name) for name, (weight, _) in LAYOUTS.items()]
    return Draw(np.random.default_rng([seed, 1])).weighted(shares)


def _find_view(
    plan: Plan, objects: Objects, draw: Draw, height: int, width: int, rig: Rig | None = None
) -> tuple[Camera, np.ndarray, np.ndarray] | None:
    """A camera whose view passes the rules, with its depth and object buffers."""
    for _ in range(12):
        position, target = plan.aim(draw)
        dx, dy, dz = (t - p for t, p in zip(target, position, strict=True))
        flat = math.hypot(dx, dy)
        pitch = math.atan2(dz, flat) + draw(-0.05, 0.05)
        limit = draw(*(plan.steep or ((0.2, 0.5) if plan.outdoor else (0.5, 0.75))))
        pitch = max(min(pitch, 0.3), -limit)
        yaw = math.atan2(dy, dx) + draw(-0.12, 0.12)
        roll = (
            draw(-0.035, 0.035)
            + (draw(-0.09, 0.09) if draw.chance(0.3) else 0.0)
            + (draw(-0.25, 0.25) if draw.chance(0.06) else 0.0)
            + plan.roll * draw(-1, 1)
        )
        fov = draw(*plan.field_of_view)
        if draw.chance(0.15):  # another lens
            fov = draw.pick((draw(26, 45), draw(72, 100)))
        focal = max(height, width) / 2 / math.tan(math.radians(fov) / 2)
        off = 0.2 if draw.chance(0.12) else 0.03  # a picture may be a part of a larger one
        cx, cy = (width - 1) / 2 + draw(-off, off) * width, (height - 1) / 2 + draw(-off, off) * height
        if rig is not None:
            focal, cx, cy = rig.focal_share * width, (width - 1) / 2, (height - 1) / 2
        where = np.array(position)
        if inside_any(objects, where, plan.clearance):
            continue
        forward = (math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch))
        camera = Camera(where, look(forward, roll), focal, focal * 1.0, cx, cy, height, width)
        depth, index = cast(objects, camera)
        if _worthwhile(depth, index, plan.relief):
            return camera, depth, index
    return None


def _worthwhile(depth: np.ndarray, index: np.ndarray, relief: float) -> bool:
    """Whether a view teaches something: see render_scene."""
    sample, owners = depth[::2, ::2].reshape(-1), index[::2, ::2].reshape(-1)
    if (~np.isfinite(depth)).mean() > 0.6:
        return False
    solid = np.sort(depth[np.isfinite(depth)])
    n = len(solid)
    if solid[int(n * 0.95)] < relief * solid[int(n * 0.05)] or (depth < 0.25).mean() > 0.35:
        return False
    counts = np.bincount(owners[owners >= 0]) / len(sample)
    return int((counts > 0.004).sum()) >= 5 and float(counts.max()) < 0.8


def _picture(
    plan: Plan,
    objects: Objects,
    camera: Camera,
    depth: np.ndarray,
    surface: Surface,
    table: np.ndarray,
    response: Response,
    state: int,
    view: np.ndarray,
    number: int,
) -> np.ndarray:
    draw = Draw(np.random.default_rng([state, 5]))
    radiance = np.zeros((3, camera.height * camera.width), np.float32)
    empty = np.flatnonzero(np.isinf(depth.reshape(-1)))
    blue, horizon = sky(camera, empty, draw)
    radiance[:, empty] = blue
    lit = shade(plan, objects, surface, table, camera, draw, view)
    if plan.outdoor:
        lit = fog(lit, surface, draw, horizon)
    radiance[:, surface.at] = lit
    return response(radiance.reshape(3, camera.height, camera.width), depth, np.random.default_rng([state, 6, number]))
