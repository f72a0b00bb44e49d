"""How an image is brought to the size that a model wants, and the map back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_POLICIES = ("lower-bound", "upper-bound", "hf", "square")
"""`lower-bound`: both sides at least `size`, aspect kept (official Depth Anything). `upper-bound`: both sides at most
`size`, aspect kept (GenPercept). `hf`: the rule of transformers' DPT processor, the scale closest to one.
`square`: exactly `size` x `size`."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see."""

    size: int
    """Target side in pixels."""
    multiple: int
    """Both sides are a multiple of this."""
    resize_policy: str = "lower-bound"
    """One of `RESIZE_POLICIES`."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divided by afterwards."""
    interpolation: str = "bicubic"
    """`bicubic`, `bilinear` or `bilinear-antialias`."""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def target_size(
    height: int, width: int, preprocessing: Preprocessing, *, policy: str | None = None, size: int | None = None
) -> tuple[int, int]:
    """Return the (height, width) at which the network sees an image of `height` x `width`.

    Raises:
        ValueError: unknown policy, or a size below one multiple.

    >>> target_size(480, 640, Preprocessing(518, 14))
    (518, 686)
    >>> target_size(200, 300, Preprocessing(518, 14), policy="hf")
    (350, 518)
    """
    policy = policy or preprocessing.resize_policy
    size = size or preprocessing.size
    multiple = preprocessing.multiple
    if policy not in RESIZE_POLICIES:
        raise ValueError(f"target_size: policy must be one of {', '.join(RESIZE_POLICIES)}, got {policy!r}")
    if size < multiple:
        raise ValueError(f"target_size: size must be at least {multiple} (the model's multiple), got {size}")
    if policy == "square":
        side = _to_multiple(size, multiple, at_least=0)
        return side, side
    by_height, by_width = size / height, size / width
    if policy == "lower-bound":
        scale = max(by_height, by_width)
        return (
            _to_multiple(scale * height, multiple, at_least=size),
            _to_multiple(scale * width, multiple, at_least=size),
        )
    if policy == "upper-bound":
        scale = min(by_height, by_width)
    else:
        scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    return _to_multiple(scale * height, multiple, at_least=0), _to_multiple(scale * width, multiple, at_least=0)


def _to_multiple(value: float, multiple: int, *, at_least: int) -> int:
    rounded = round(value / multiple) * multiple
    if rounded < at_least:
        rounded = -(-int(-(-value // 1)) // multiple) * multiple
    return max(rounded, multiple)


def resize(maps: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize `(B, C, H, W)` to `size`; a no-op if it has that size already.

    `interpolation`: `bicubic`, `bilinear`, `bilinear-antialias`, or `bilinear-corners` (corner pixels kept in place, as
    the official Depth Anything code does on the way back).
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if interpolation == "bilinear-corners":
        return F.interpolate(maps, size, mode="bilinear", align_corners=True)
    mode, _, antialias = interpolation.partition("-")
    return F.interpolate(maps, size, mode=mode, align_corners=False, antialias=bool(antialias))
