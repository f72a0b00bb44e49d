"""Procedural scenes by ray casting: RGB, metric depth, intrinsics and the second view of a rectified stereo pair.

Everything follows from a seed: rooms, desks, corridors and stairs, streets, gardens, piles of objects, with natural
and odd textures, lights with shadows, and a camera's faults. Depth is
measured along the optical axis in metres; the sky is inf.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilldepth.data.scenes.builder import Builder, Draw
from distilldepth.data.scenes.geometry import Camera, Objects, cast, inside_any, look
from distilldepth.data.scenes.layouts import LAYOUTS
from distilldepth.data.scenes.shading import Response, Surface, fog, shade, sky
from distilldepth.data.scenes.staging import Plan
from distilldepth.files import atomic_path

__all__ = ["KINDS", "RENDERER_VERSION", "Scene", "SceneSource", "render_scene"]

RENDERER_VERSION = 2
KINDS: tuple[str, ...] = tuple(LAYOUTS)
_ENDLESS = 1_000_000


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


def render_scene(seed: int, size: tuple[int, int] = (192, 256), *, stereo: bool = False) -> Scene:
    """Render the scene of a seed: the same arguments give the same pixels, on every machine.

    Views that teach little are drawn again: more than 60 % sky, a 95th percentile of depth below 1.25 times the 5th,
    more than 35 % of the pixels nearer than 0.25 m, fewer than a handful of objects.

    Args:
        seed: not negative.
        size: height and width in pixels, each at least 16.
        stereo: render the right view too; the left view is the same either way.

    Returns:
        The scene. Depth is at least 0.15 m, inf where there is sky.

    Raises:
        ValueError: the seed is negative or the size too small.

    >>> scene = render_scene(7, (48, 64))
    >>> scene.image.shape, scene.depth.dtype
    ((48, 64, 3), dtype('float32'))
    """
    return _render(seed, size, stereo=stereo)


def _render(seed: int, size: tuple[int, int], *, stereo: bool = False, kind: str | None = None) -> Scene:
    seed = int(seed)
    height, width = (int(n) for n in size)
    if seed < 0:
        raise ValueError(f"render_scene: seed must be >= 0, got {seed}")
    if min(height, width) < 16:
        raise ValueError(f"render_scene: size must be (height, width), each >= 16, got {size}")
    chosen = kind or Draw(np.random.default_rng([seed, 1])).weighted(
        [(weight, name) for name, (weight, _) in LAYOUTS.items()]
    )
    found = None
    for attempt in range(8):
        rng = np.random.default_rng([seed, 2, attempt, KINDS.index(chosen)])
        builder = Builder(rng)
        plan = LAYOUTS[chosen][1](builder)
        objects = builder.objects()
        found = _find_view(plan, objects, Draw(rng), height, width)
        if found is not None:
            break
    if found is None:  # does not happen in practice; a plain desk nearly always gives a view
        return _render(seed + 1_000_003, size, stereo=stereo, kind="desk" if chosen == "room" else "room")
    camera, depth, index = found
    draw = Draw(np.random.default_rng([seed, 3]))
    table = np.ascontiguousarray(np.array(builder.materials, np.float64).T.astype(np.float32))
    surface = Surface(objects, camera, depth, index)
    baseline = draw(*plan.baseline)
    response, state = Response(draw), draw.rng.integers(1 << 60)
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


def _find_view(
    plan: Plan, objects: Objects, draw: Draw, height: int, width: int
) -> tuple[Camera, np.ndarray, np.ndarray] | None:
    """A camera whose view passes the rules, with its depth and object buffers."""
    for _ in range(12):
        position, target = plan.aim(draw)
        dx, dy, dz = (t - p for t, p in zip(target, position, strict=True))
        flat = math.hypot(dx, dy)
        pitch = math.atan2(dz, flat) + draw(-0.05, 0.05)
        limit = draw(0.5, 0.75) if not plan.outdoor else draw(0.2, 0.5)
        pitch = max(min(pitch, 0.3), -limit)
        yaw = math.atan2(dy, dx) + draw(-0.12, 0.12)
        roll = (
            draw(-0.035, 0.035)
            + (draw(-0.09, 0.09) if draw.chance(0.3) else 0.0)
            + (draw(-0.25, 0.25) if draw.chance(0.06) else 0.0)
        )
        fov = math.radians(draw(*plan.field_of_view))
        focal = max(height, width) / 2 / math.tan(fov / 2)
        cx, cy = (width - 1) / 2 + draw(-0.03, 0.03) * width, (height - 1) / 2 + draw(-0.03, 0.03) * height
        where = np.array(position)
        if inside_any(objects, where, 0.28):
            continue
        forward = (math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch))
        camera = Camera(where, look(forward, roll), focal, focal * 1.0, cx, cy, height, width)
        depth, index = cast(objects, camera)
        if _worthwhile(depth, index):
            return camera, depth, index
    return None


def _worthwhile(depth: np.ndarray, index: np.ndarray) -> bool:
    """Whether a view teaches something: see render_scene."""
    sample, owners = depth[::2, ::2].reshape(-1), index[::2, ::2].reshape(-1)
    if (~np.isfinite(depth)).mean() > 0.6:
        return False
    solid = np.sort(depth[np.isfinite(depth)])
    n = len(solid)
    if solid[int(n * 0.95)] < 1.27 * solid[int(n * 0.05)] or (depth < 0.25).mean() > 0.35:
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


class SceneSource:
    """Procedural scenes as an image source: item i is `render_scene(seed + i, size)`.

    Args:
        size: height and width of the images.
        count: how many scenes there are; None means a million, which is as good as endless.
        seed: seed of the first scene.
        cache: folder in which each scene is kept once rendered. Several processes may share it.
    """

    has_depth = True
    names = None

    def __init__(
        self, size: tuple[int, int] = (192, 256), count: int | None = None, seed: int = 0, cache: Path | None = None
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f"SceneSource: count must be >= 1, got {count}")
        self.size = (int(size[0]), int(size[1]))
        self.seed = int(seed)
        self.count = count
        self.folder: Path | None = None
        if cache is not None:
            key = hashlib.sha256(f"{RENDERER_VERSION} {self.size}".encode()).hexdigest()[:12]
            self.folder = Path(cache) / key

    @property
    def description(self) -> str:
        number = "endless" if self.count is None else str(self.count)
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{number} procedural scenes of {size} from seed {self.seed}, renderer version {RENDERER_VERSION}"

    def __len__(self) -> int:
        return _ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The scene's Sample: image, name, depth, intrinsics."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"SceneSource: index must be in [0, {len(self)}), got {index}")
        seed = self.seed + index % len(self)
        name = f"scene-{seed:06d}"
        if self.folder is None:
            return _sample(render_scene(seed, self.size), name)
        path = self.folder / f"{seed // 1000:04d}" / f"{name}.npz"
        kept = _read(path, self.size)
        if kept is None:
            kept = _sample(render_scene(seed, self.size), name)
            try:
                _write(path, kept)
            except OSError as error:
                warnings.warn(
                    f"scenes are rendered anew each time, {self.folder} cannot be written "
                    f"({error.strerror or error}); set DISTILLDEPTH_CACHE to another folder",
                    stacklevel=2,
                )
                self.folder = None
        return {**kept, "name": name}


def _sample(scene: Scene, name: str) -> dict[str, Any]:
    return {"image": scene.image, "name": name, "depth": scene.depth, "intrinsics": scene.intrinsics}


def _read(path: Path, size: tuple[int, int]) -> dict[str, Any] | None:
    """A kept scene, or None if there is none or the file is damaged."""
    pixels = size[0] * size[1]
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            # Three arrays and their headers; what claims to be more is not unpacked.
            if sum(item.file_size for item in file.infolist()) > 7 * pixels + 10_000:
                return None
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in ("image", "depth", "intrinsics")}
    except Exception:
        # Whatever a damaged file makes zip and numpy stumble over: the scene is rendered again.
        return None
    shapes = {"image": (np.uint8, (*size, 3)), "depth": (np.float32, size), "intrinsics": (np.float32, (3, 3))}
    fits = all(found[key].dtype == dtype and found[key].shape == shape for key, (dtype, shape) in shapes.items())
    return found if fits else None


def _write(path: Path, sample: dict[str, Any]) -> None:
    """Keep a scene, so that no reader sees half a file."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, image=sample["image"], depth=sample["depth"], intrinsics=sample["intrinsics"])
