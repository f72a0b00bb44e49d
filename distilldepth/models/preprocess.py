"""How an image is brought to the size that a model wants, and the map back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from distilldepth.errors import UsageError, shown
from distilldepth.words import MAX_SIDE, RESIZE_POLICIES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear", "bilinear-antialias")
MAP_INTERPOLATIONS = (*INTERPOLATIONS, "bilinear-corners")
"""`bilinear-corners` keeps the centres of the corner pixels in place, all others the corners of the frame."""

_LARGEST_MULTIPLE = 4096
_LARGEST_STRETCH = 16
"""A policy that makes the network see more than this many times size x size pixels is not used unasked."""


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
    """How images come to that size: one of `INTERPOLATIONS`."""
    map_interpolation: str = "bilinear-corners"
    """How maps go back to the size of the images, in training as in prediction: one of `MAP_INTERPOLATIONS`. The way of
    Depth Anything V2 stands for folders saved before this was written down: every family predicted so then."""

    def __post_init__(self) -> None:
        for name, most in (("size", MAX_SIDE), ("multiple", _LARGEST_MULTIPLE)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"Preprocessing: {name} must be a whole number from 1 to {most}, got {shown(value)}")
        for name, choices in (
            ("resize_policy", RESIZE_POLICIES),
            ("interpolation", INTERPOLATIONS),
            ("map_interpolation", MAP_INTERPOLATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"Preprocessing: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, (tuple, list)) and all(type(number) in (int, float) for number in value)
            if not numbers or len(value) != 3 or not all(abs(number) <= 1e6 for number in value):
                raise ValueError(
                    f"Preprocessing: {name} must be three finite numbers of at most 1e6, got {shown(value)}"
                )
        if min(self.std) < 1e-6:
            raise ValueError(f"Preprocessing: std must be positive, at least 1e-6, got {self.std!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


def target_size(
    height: int, width: int, preprocessing: Preprocessing, *, policy: str | None = None, size: int | None = None
) -> tuple[int, int]:
    """Return the (height, width) at which the network sees an image.

    Args:
        height, width: of the image, pixels.
        preprocessing: what the network wants.
        policy: one of `RESIZE_POLICIES`; None for the network's own.
        size: target side, pixels; None for the network's own.

    Raises:
        TypeError: size is not a whole number.
        UsageError: unknown policy, or a size below one multiple.

    >>> target_size(480, 640, Preprocessing(518, 14))
    (518, 686)
    >>> target_size(200, 300, Preprocessing(518, 14), policy="hf")
    (350, 518)
    """
    policy = policy or preprocessing.resize_policy
    size = preprocessing.size if size is None else size
    multiple = preprocessing.multiple
    if not isinstance(size, (int, np.integer)):
        raise TypeError(f"target_size: size must be a whole number of pixels, got {size!r}")
    if policy not in RESIZE_POLICIES:
        raise UsageError(f"target_size: policy must be one of {', '.join(RESIZE_POLICIES)}, got {policy!r}")
    if size < multiple:
        raise UsageError(f"target_size: size must be at least {multiple} (the model's multiple), got {size}")
    if policy == "square":
        side = _to_multiple(size, multiple)
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
        return (
            _to_multiple(scale * height, multiple, at_most=size),
            _to_multiple(scale * width, multiple, at_most=size),
        )
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    return _to_multiple(scale * height, multiple), _to_multiple(scale * width, multiple)


def choose_policy(
    height: int, width: int, preprocessing: Preprocessing, policy: str | None = None, size: int | None = None
) -> str | None:
    """Return the policy to use for an image: `policy`, or `upper-bound` where the network's own explodes.

    `lower-bound` would make a strip of 8 x 5000 pixels one of 518 x 323750.

    Args:
        height, width, preprocessing, policy, size: see `target_size`.

    Returns:
        The policy; None for the network's own.

    Raises:
        TypeError: size is not a whole number.
        ValueError: the policy that was asked for explodes, or as `target_size`.

    >>> choose_policy(8, 5000, Preprocessing(518, 14))
    'upper-bound'
    """
    inner = target_size(height, width, preprocessing, policy=policy, size=size)
    side = max(preprocessing.size if size is None else size, preprocessing.multiple)
    if inner[0] * inner[1] <= _LARGEST_STRETCH * side * side:
        return policy
    if policy is not None:
        raise ValueError(
            f"the model would see {height} x {width} pixels as {inner[0]} x {inner[1]} by the policy {policy}; "
            "use --resize-policy upper-bound or square"
        )
    return "upper-bound"


def _to_multiple(value: float, multiple: int, *, at_least: float = 0, at_most: float = math.inf) -> int:
    rounded = round(value / multiple)
    if rounded * multiple > at_most:
        rounded = math.floor(value / multiple)
    if rounded * multiple < at_least:
        rounded = math.ceil(value / multiple)
    return max(rounded, 1) * multiple


def resize(maps: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize `(B, C, H, W)` to `size`; a no-op if it has that size already.

    `interpolation`: one of `MAP_INTERPOLATIONS`, or `nearest`.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if interpolation == "bilinear-corners":
        return F.interpolate(maps, size, mode="bilinear", align_corners=True)
    if interpolation == "nearest":
        return F.interpolate(maps, size, mode="nearest")
    mode, _, antialias = interpolation.partition("-")
    return F.interpolate(maps, size, mode=mode, align_corners=False, antialias=bool(antialias))


def restore(maps: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Bring a network's maps `(B, h, w)` back to the size (height, width) of its images; float32 `(B, H, W)`."""
    return resize(maps.float()[:, None], size, preprocessing.map_interpolation)[:, 0]


def nearest_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the size nearest to (height, width) whose sides are multiples of `multiple`."""
    return max(round(height / multiple), 1) * multiple, max(round(width / multiple), 1) * multiple
