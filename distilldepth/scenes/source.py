"""Scenes as a source of images, kept on disk once they are rendered."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TypedDict

import numpy as np

from distilldepth.files import atomic_path
from distilldepth.scenes.render import RENDERER_VERSION, Rig, Scene, render_scene

_ENDLESS = 1_000_000


class OneView(TypedDict):
    """What a source of images gives for a scene."""

    image: np.ndarray
    """uint8 `(H, W, 3)`."""
    name: str
    depth: np.ndarray
    """float32 `(H, W)`, metres; inf = sky."""
    intrinsics: np.ndarray
    """float32 `(3, 3)`, pixels."""


class SceneSample(OneView, total=False):
    """The same with what a rig adds."""

    right: np.ndarray
    """uint8 `(H, W, 3)`, the second view."""
    baseline_m: float
    """Metres between the two cameras."""


class SceneSource:
    """Procedural scenes as an image source: item i is `render_scene(seed + i, size)`.

    Args:
        size: height and width of the images.
        count: how many scenes there are; None means a million, which is as good as endless.
        seed: seed of the first scene.
        cache: folder in which each scene is kept once rendered. Several processes may share it.
        rig: cameras that are the same in all scenes, and give pairs of views; None for one view each, of any camera.
    """

    has_depth = True
    names = None

    def __init__(
        self,
        size: tuple[int, int] = (192, 256),
        count: int | None = None,
        seed: int = 0,
        cache: Path | None = None,
        rig: Rig | None = None,
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f"SceneSource: count must be >= 1, got {count}")
        self.size = (int(size[0]), int(size[1]))
        self.seed = int(seed)
        self.count = count
        self.rig = rig
        self.has_right = self.has_cameras = rig is not None
        self.folder: Path | None = None
        if cache is not None:
            known = f"{RENDERER_VERSION} {self.size}" + ("" if rig is None else f" {rig}")
            key = hashlib.sha256(known.encode()).hexdigest()[:12]
            self.folder = Path(cache) / key

    @property
    def description(self) -> str:
        number = "endless" if self.count is None else str(self.count)
        size = f"{self.size[0]}x{self.size[1]}"
        what = "procedural scenes" if self.rig is None else "stereo pairs of procedural scenes"
        return f"{number} {what} of {size} from seed {self.seed}, renderer version {RENDERER_VERSION}"

    def __len__(self) -> int:
        return _ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> SceneSample:
        """The scene as a sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"SceneSource: index must be in [0, {len(self)}), got {index}")
        seed = self.seed + index % len(self)
        name = f"scene-{seed:06d}"
        if self.folder is None:
            return self._render(seed, name)
        path = self.folder / f"{seed // 1000:04d}" / f"{name}.npz"
        kept = _read(path, self.size, name, self.rig)
        if kept is None:
            kept = self._render(seed, name)
            try:
                _write(path, kept)
            except OSError as error:
                warnings.warn(
                    f"scenes are rendered anew each time, {self.folder} cannot be written "
                    f"({error.strerror or error}); set DISTILLDEPTH_CACHE to another folder",
                    stacklevel=2,
                )
                self.folder = None
        return kept

    def _render(self, seed: int, name: str) -> SceneSample:
        return _sample(render_scene(seed, self.size, stereo=self.rig is not None, rig=self.rig), name)


def _sample(scene: Scene, name: str) -> SceneSample:
    sample: SceneSample = {
        "image": scene.image,
        "name": name,
        "depth": scene.depth,
        "intrinsics": scene.intrinsics,
    }
    if scene.right is not None:
        sample |= {"right": scene.right, "baseline_m": scene.baseline_m}
    return sample


def _read(path: Path, size: tuple[int, int], name: str, rig: Rig | None) -> SceneSample | None:
    """A kept scene, or None if there is none or the file is damaged."""
    picture = (np.uint8, (*size, 3))
    wanted = {"image": picture, "depth": (np.float32, size), "intrinsics": (np.float32, (3, 3))}
    if rig is not None:
        wanted["right"] = picture
    try:
        # Some arrays and their headers; what is more is no scene.
        if not 0 < path.stat().st_size <= 10 * size[0] * size[1] + 10_000:
            return None
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {item.filename.removesuffix(".npy"): item for item in file.infolist()}
        found = {key: _array(content, members[key], *kind) for key, kind in wanted.items()}
    except Exception:
        # Whatever a damaged file makes zip and numpy stumble over: the scene is rendered again.
        return None
    sample: SceneSample = {
        "image": found["image"],
        "name": name,
        "depth": found["depth"],
        "intrinsics": found["intrinsics"],
    }
    if rig is not None:
        sample |= {"right": found["right"], "baseline_m": rig.baseline_m}
    return sample


def _array(content: bytes, member: zipfile.ZipInfo, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file that `_write` wrote, without a copy; ValueError if it is another or damaged.

    numpy's own reader takes four times as long, most of it for a header that is known beforehand.
    """
    _, _, _, method, _, _, _, _, _, name, extra = struct.unpack_from("<4s5H3I2H", content, member.header_offset)
    begin = member.header_offset + 30 + name + extra
    stored = memoryview(content)[begin : begin + member.file_size]
    header = _header(dtype, shape)
    count = math.prod(shape)
    right = method == zipfile.ZIP_STORED and len(stored) == len(header) + count * np.dtype(dtype).itemsize
    if not right or stored[: len(header)] != header or zlib.crc32(stored) != member.CRC:
        raise ValueError("not as it was written")
    return np.frombuffer(stored, dtype, count, len(header)).reshape(shape)


@functools.cache
def _header(dtype: type, shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the numbers."""
    written = io.BytesIO()
    np.lib.format.write_array(written, np.broadcast_to(np.zeros((), dtype), shape).copy())
    return written.getvalue()[: -math.prod(shape) * np.dtype(dtype).itemsize]


def _write(path: Path, sample: SceneSample) -> None:
    """Keep a scene, so that no reader sees half a file."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        arrays = {key: value for key, value in sample.items() if isinstance(value, np.ndarray)}
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of which none is called as an option
