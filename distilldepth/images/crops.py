"""Training crops: a region of the photograph for the student, and windows of that region for the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from distilldepth.images.sources import Sample
from distilldepth.images.views import assumed_camera, prepare_views

_WHOLE = 1 << 30
"""A crop bound no photograph reaches: the largest region there is."""


@dataclass(frozen=True)
class CropConfig:
    """How regions and patches are cut.

    Raises:
        ValueError: a size, count or share out of range.
    """

    size: tuple[int, int] = (560, 560)
    """(height, width) to which the region is resized; its aspect is the region's."""
    patch_size: tuple[int, int] | None = None
    """(height, width) to which each patch is resized; None for `size`. Its aspect is the patch window's."""
    patches: int = 0
    """Windows per region, for local-global distillation."""
    min_crop: int = 644
    """The region's shorter side is at least this many pixels of the photograph, or all there is."""
    max_crop: int | None = None
    """The region's shorter side is at most this many pixels; None for no bound. It wins over the lower bounds."""
    min_crop_share: float | None = None
    """The region's shorter side is also at least this share of the photograph's, 0..1: for photographs of any size."""
    patch_window: int = 560
    """Shorter side of a patch window in pixels of the photograph."""
    patch_share: float | None = None
    """Side of a patch window as a share of the region's, 0..1, instead of `patch_window`."""
    flip: bool = True
    """Mirror half of the samples left to right; of a stereo pair the mirrored right view is the left one then."""
    rotate_deg: float = 0.0
    """Each sample is turned about its middle by at most so many degrees to either side."""
    kb_crop: bool = False
    """Cut 352 x 1216 pixels at the bottom, in the middle, out of larger photographs first: the crop of KITTI's
    benchmark."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; those that earlier versions did not have are left out where they are off."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value or key not in ("rotate_deg", "kb_crop")}

    def whole(self) -> CropConfig:
        """Return a crop of the largest region, without chance and windows: what held-out images are judged on."""
        return CropConfig(
            size=self.size, patch_size=self.size, patches=0, min_crop=_WHOLE, flip=False, kb_crop=self.kb_crop
        )

    def __post_init__(self) -> None:
        for name in ("size", "patch_size"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise ValueError(f"CropConfig: {name} must be (height, width) of at least 1, got {value}")
        for name, least in (("patches", 0), ("min_crop", 1), ("patch_window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"CropConfig: {name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.rotate_deg <= 45:
            raise ValueError(f"CropConfig: rotate_deg must be from 0 to 45, got {self.rotate_deg}")
        if self.max_crop is not None and self.max_crop < 1:
            raise ValueError(f"CropConfig: max_crop must be at least 1, got {self.max_crop}")
        for name in ("min_crop_share", "patch_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"CropConfig: {name} must be above 0 and at most 1, got {value}")


@dataclass(frozen=True)
class Cut:
    """Where a region was, in pixels of the photograph."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    """Whether left and right were exchanged then."""


@dataclass
class Regions:
    """What was cut: a batch of regions with their windows. The tensors of a single region have no leading B."""

    image: Tensor
    """uint8 `(B, 3, H, W)`; floating in [0, 1] once it is ready for the student."""
    patches: Tensor
    """uint8 `(B, N, 3, h, w)`, windows of the regions, which the teacher sees alone."""
    boxes: Tensor
    """float32 `(B, N, 4)`, the edges x0, y0, x1, y1 of each window in pixels of `image`; the whole is 0, 0, W, H."""
    name: list[str]
    """Of each photograph."""
    depth: Tensor | None = None
    """float32 `(B, H, W)`, metres; inf = sky, NaN = unknown. None where the truth is not known."""
    patch_depth: Tensor | None = None
    """float32 `(B, N, h, w)`, likewise."""
    intrinsics: Tensor | None = None
    """float32 `(B, 3, 3)`, pixels of `image`: of the photograph's camera, or of one that sees `FOV_DEG` of the
    photograph from top to bottom, cut and resized with the region. None for regions whose photograph is not at hand."""
    right: Tensor | None = None
    """uint8 `(B, 3, H, W)`, the second view of each region; floating like `image` then."""
    baseline_m: Tensor | None = None
    """float32 `(B,)`, metres between the two views; NaN where it is not known."""
    sparse: Tensor | None = None
    """float32 `(B, H, W)`, metres, 0 = no point: what a student that completes depth is given of `depth`."""
    aligned: Tensor | None = None
    """float32 `(B, H, W)`, metres: a map that was brought to these points."""
    unreadable: list[int] = field(default_factory=list)
    """How many images could not be read, for each that took their place."""
    errors: list[str] = field(default_factory=list)
    """What was wrong with them; empty texts where nothing was."""
    cut: list[Cut] = field(default_factory=list)
    """Of each region, where it was in its photograph."""

    def views(self, count: int) -> Tensor:
        """Return the images `(B, 3 * count, H, W)` as networks of so many views take them."""
        if count == 1:
            return self.image
        assert self.right is not None, "second views are there wherever somebody looks at them"
        return torch.cat([self.image, self.right], 1)

    @property
    def image_index(self) -> Tensor:
        """`(B * N,)` int64, the region that each window is of."""
        count, windows = self.boxes.shape[:2]
        return torch.arange(count, device=self.boxes.device).repeat_interleave(windows)

    def to(self, device: torch.device) -> Regions:
        """Return them with all tensors on a device, without waiting for it."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Regions:
        """Return them in memory from which a GPU copies by itself; `DataLoader` asks for it."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Regions:
        changed: dict[str, Any] = {
            item.name: change(value) for item in fields(self) if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **changed)

    @classmethod
    def collate(cls, parts: Sequence[Regions]) -> Regions:
        """Make a batch of single regions, all with depth or all without."""

        def merge(values: list[Any]) -> Any:
            if isinstance(values[0], list):
                return [each for value in values for each in value]
            # Where worker processes decode, this stacks into the memory that they share with the main one.
            return None if values[0] is None else default_collate(values)

        return cls(**{item.name: merge([getattr(part, item.name) for part in parts]) for item in fields(cls)})


def make_crop(sample: Sample, config: CropConfig, rng: np.random.Generator) -> Regions:
    """Cut one training region and its patches out of a photograph.

    The region has the aspect of `config.size`. Its shorter side is uniform between the lower bound
    `max(min_crop, min_crop_share * shorter side of the photograph)` and the largest region that fits, and its place is
    uniform. Patches are windows of the region, uniform in place, that may overlap; a window's shorter side is
    `patch_window` pixels of the photograph, or `patch_share` of the region, at most the region itself.

    Images are resized with an antialiased bicubic filter, or not at all if they have the wanted size already. Depth is
    taken from the nearest pixel: any average would mix foreground and background into surfaces that do not exist, and
    spread inf and NaN.

    Args:
        sample: `image` uint8 `(H, W, 3)`, `name`, and if they are known `depth` float32 `(H, W)`, `intrinsics` float32
            `(3, 3)`, and of a pair `right` uint8 `(H, W, 3)` and `baseline_m`; any size from 1x1.
        config: what to cut.
        rng: the only source of chance, so that equal state gives equal crops.

    Returns:
        A single region, without a leading B; with depth, and the same cut of the right view, if the sample has them.
        A pair is mirrored only if its depth can be carried over to the right view, see `depth_of_right_view`.

    Raises:
        TypeError: the image is not uint8.
        ValueError: the image is not `(H, W, 3)` with pixels, or depth or right view have another size.

    Source: Distill Any Depth, sections 3.3 and 4.1 (side in [644, shorter side], 560 x 560).
    """
    pixels, depth = sample["image"], sample.get("depth")
    if pixels.dtype != np.uint8:
        raise TypeError(f"make_crop: image must be uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"make_crop: image must have shape (H, W, 3), got {pixels.shape}")
    if depth is not None and depth.shape != pixels.shape[:2]:
        raise ValueError(f"make_crop: depth must have the image's size {pixels.shape[:2]}, got {depth.shape}")
    right = sample.get("right")
    if right is not None and (right.shape != pixels.shape or right.dtype != np.uint8):
        raise ValueError(f"make_crop: right must be uint8 {pixels.shape} as the image, got {right.dtype} {right.shape}")
    if config.kb_crop or config.rotate_deg or right is not None:
        sample = prepare_views(sample, rng, kb_crop=config.kb_crop, rotate_deg=config.rotate_deg, flip=config.flip)
        pixels, depth, right = sample["image"], sample.get("depth"), sample.get("right")
    patch_size = config.patch_size or config.size

    region = _draw_region(pixels.shape[:2], config, rng)
    top, left, height, width = region
    window_height, window_width = _window_size(height, width, patch_size, config)
    windows = [
        (
            top + int(rng.integers(height - window_height + 1)),
            left + int(rng.integers(width - window_width + 1)),
            window_height,
            window_width,
        )
        for _ in range(config.patches)
    ]
    # A pair was mirrored when it was prepared, since its depth is then that of the other view.
    mirror = config.flip and right is None and bool(rng.random() < 0.5)

    # The pixels that matter are converted once; the region and every patch are then resized out of them.
    picture = Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
    boxes = np.array([(y - top, x - left, h, w) for y, x, h, w in windows], dtype=np.float64).reshape(-1, 4)
    patches = [_to_tensor(_resize(picture, (y - top, x - left, h, w), patch_size), mirror) for y, x, h, w in windows]
    crop = Regions(
        image=_to_tensor(_resize(picture, (0, 0, height, width), config.size), mirror),
        patches=_stack(patches, (3, *patch_size), torch.uint8),
        boxes=torch.from_numpy(_edges(boxes, (height, width), config.size, mirror)),
        name=[sample["name"]],
        cut=[Cut(top, left, height, width, mirror or bool(sample.get("mirrored")))],
        intrinsics=_intrinsics(sample, region, config.size, mirror),
    )
    if right is not None:
        other = Image.fromarray(np.ascontiguousarray(right[top : top + height, left : left + width]))
        crop.right = _to_tensor(_resize(other, (0, 0, height, width), config.size), mirror)
        crop.baseline_m = torch.tensor(sample.get("baseline_m", float("nan")), dtype=torch.float32)
    if depth is not None:
        crop.depth = _nearest(depth, region, config.size, mirror)
        crop.patch_depth = _stack(
            [_nearest(depth, window, patch_size, mirror) for window in windows], patch_size, torch.float32
        )
    return crop


def _draw_region(
    image_size: tuple[int, int], config: CropConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a region with the aspect of `config.size`."""
    image_height, image_width = image_size
    height, width = config.size
    largest = min(height, width) * min(image_height / height, image_width / width)
    most = largest if config.max_crop is None else min(largest, config.max_crop)
    least = max(config.min_crop, (config.min_crop_share or 0.0) * min(image_size))
    shorter = rng.uniform(min(least, most), most)
    scale = shorter / min(height, width)
    region_height = min(max(round(height * scale), 1), image_height)
    region_width = min(max(round(width * scale), 1), image_width)
    top = int(rng.integers(image_height - region_height + 1))
    left = int(rng.integers(image_width - region_width + 1))
    return top, left, region_height, region_width


def _window_size(height: int, width: int, patch_size: tuple[int, int], config: CropConfig) -> tuple[int, int]:
    """Height and width of a patch window inside a region, with the aspect of `patch_size`."""
    share = config.patch_share or min(1.0, config.patch_window / min(height, width))
    scale = share * min(height / patch_size[0], width / patch_size[1])
    window_height = min(max(round(patch_size[0] * scale), 1), height)
    window_width = min(max(round(patch_size[1] * scale), 1), width)
    return window_height, window_width


def _resize(picture: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """The box (top, left, height, width) of a picture at `size`."""
    top, left, height, width = box
    edges = (left, top, left + width, top + height)
    if (height, width) == tuple(size):
        return np.asarray(picture.crop(edges))
    # Reducing by whole numbers first, down to three times the size, cannot be told from the full filter and is faster.
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=edges, reducing_gap=3.0)
    return np.asarray(resized)


def _edges(boxes: np.ndarray, region: tuple[int, int], size: tuple[int, int], mirror: bool) -> np.ndarray:
    """Boxes (top, left, height, width) in region pixels as x0, y0, x1, y1 in pixels of the resized region."""
    top, left, height, width = boxes.T
    if mirror:
        left = region[1] - left - width
    # Whole numbers up to the one division, which rounds once and in order: an edge of the region is an edge of the
    # result exactly, and no other edge lies beyond it.
    x0, x1 = left * size[1] / region[1], (left + width) * size[1] / region[1]
    y0, y1 = top * size[0] / region[0], (top + height) * size[0] / region[0]
    return np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)


def _intrinsics(sample: Sample, region: tuple[int, int, int, int], size: tuple[int, int], mirror: bool) -> Tensor:
    """Of a region (top, left, height, width) at `size`; pixel centres are at whole numbers before and after."""
    camera = sample.get("intrinsics")
    if camera is None:
        rows, columns = sample["image"].shape[:2]
        camera = assumed_camera(rows, columns)
    top, left, height, width = region
    scale = np.array([size[1] / width, size[0] / height])
    focal = camera[(0, 1), (0, 1)] * scale
    center = (camera[:2, 2] + 0.5 - (left, top)) * scale - 0.5
    if mirror:
        center[0] = size[1] - 1 - center[0]
    made = np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])
    return torch.from_numpy(made.astype(np.float32))


def _nearest(depth: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int], mirror: bool) -> Tensor:
    """The box (top, left, height, width) of a depth map at `size`: the pixel under each new pixel's centre."""
    top, left, height, width = box
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    if mirror:
        columns = columns[::-1]
    return torch.from_numpy(depth[rows[:, None], columns[None, :]].astype(np.float32, copy=False))


def _to_tensor(pixels: np.ndarray, mirror: bool) -> Tensor:
    if mirror:
        pixels = pixels[:, ::-1]
    # A copy in any case: Pillow's arrays are read-only.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _stack(items: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(items) if items else torch.empty((0, *shape), dtype=dtype)
