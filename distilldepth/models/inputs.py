"""What `DepthModel.predict` takes for an image: files, pictures, arrays and tensors, each as floating RGB in [0, 1]."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distilldepth.images.decode import as_rgb, decode_image
from distilldepth.images.stereo import are_swapped, check_camera

ImageInput = str | PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor
"""One image, or a batch in one array or tensor."""

_SLACK = 1e-3
"""How far outside [0, 1] values may be: what resizing leaves there; they are clamped."""


def is_batch(image: object) -> TypeGuard[np.ndarray | Tensor]:
    """Whether one array or tensor holds several images: it has four dimensions."""
    return isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4


def as_images(image: object) -> list[Tensor]:
    """Return the images of one input.

    Args:
        image: a path; the bytes of an image file; a PIL image; a tensor `(3, H, W)` or `(B, 3, H, W)`, or an array
            `(H, W, 3)`, `(H, W)`, `(H, W, 1)`, `(B, H, W, 3)`, of floating RGB in [0, 1] or of uint8 in 0..255; a uint8
            array may be `(H, W, 4)`, see `as_rgb`.

    Returns:
        One `(3, H, W)` for each, uint8 as it was or float32 clamped to [0, 1], on the device of a tensor, else the CPU.

    Raises:
        TypeError: another type, or numbers that are neither floating nor uint8.
        ValueError: another shape, no pixels, or floating values outside [0, 1], NaN included.
        FileNotFoundError, DistillDepthError: as `read_image`.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return [_channels_first(decode_image(bytes(image), "image bytes"))]
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if not isinstance(image, np.ndarray) or (image.dtype.kind != "f" and image.ndim != 4):
        return [_channels_first(as_rgb(image))]  # type: ignore[arg-type]  # It refuses other types itself.
    if image.ndim == 4:
        if image.shape[-1] != 3:
            raise ValueError(f"predict: a batch of arrays must have shape (B, H, W, 3), got {image.shape}")
        return [each for item in image for each in as_images(item)]
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3):
        hint = "; transpose it to (H, W, 3)" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise ValueError(f"predict: a floating array must have shape (H, W, 3) or (H, W), got {image.shape}{hint}")
    # Half precision stays exact; float64 is rounded.
    values = torch.from_numpy(np.ascontiguousarray(image.astype(np.float32, copy=False)))
    return [_in_range(values.reshape(*image.shape[:2], channels).permute(2, 0, 1).expand(3, -1, -1))]


def join_views(left: list[Tensor], right: object) -> list[Tensor]:
    """Return pairs in one tensor each.

    Args:
        left: `(3, H, W)` each, of `as_images`.
        right: what `as_images` takes, or a list of it: as many, of the same sizes.

    Returns:
        `(6, H, W)` for each, floating in [0, 1] where one of the two is.

    Raises:
        TypeError, ValueError, FileNotFoundError, DistillDepthError: as `as_images`; views of another number or size.
    """
    items = list(right) if isinstance(right, (list, tuple)) else [right]
    others = [each for item in items for each in as_images(item)]
    if len(others) != len(left):
        raise ValueError(f"predict: each image needs its right view, got {len(left)} left and {len(others)} right")
    pairs = []
    for place, (one, other) in enumerate(zip(left, others, strict=True)):
        if one.shape != other.shape:
            sizes = [f"{view.shape[1]} x {view.shape[2]}" for view in (one, other)]
            where = f" of pair {place}" if len(left) > 1 else ""
            raise ValueError(
                f"predict: both views must have one size, got {sizes[0]} left and {sizes[1]} right{where}; give the "
                "rectified pair"
            )
        if one.dtype != other.dtype:
            one, other = (view.float() / 255 if view.dtype == torch.uint8 else view for view in (one, other))
        pairs.append(torch.cat([one, other.to(one.device)]))
    return pairs


def warn_of_swapped(pairs: list[Tensor]) -> None:
    """Warn in one line of pairs `(6, H, W)` whose views look exchanged; see `are_swapped`."""
    found = []
    for place, pair in enumerate(pairs):
        whole = pair if pair.dtype == torch.uint8 else (pair.float() * 255).to(torch.uint8)
        left, right = (view.permute(1, 2, 0).cpu().contiguous().numpy() for view in whole.split(3))
        if are_swapped(left, right):
            found.append(place)
    if found:
        which = f"of {len(found)} of {len(pairs)} pairs (first: {found[0]})" if len(pairs) > 1 else "of the pair"
        warnings.warn(
            f"predict: the views {which} look exchanged: what is near lies farther right in the right view; give the "
            "left view as the image and the right one as right",
            UserWarning,
            stacklevel=4,
        )


def camera_factors(focal_px: object, baseline_m: object, count: int) -> list[float] | None:
    """Return focal length times baseline of each pair, pixels times metres; None if neither is given.

    Args:
        focal_px: a positive number, or one for each pair.
        baseline_m: a positive number, or one for each pair.
        count: how many pairs there are.

    Raises:
        TypeError: no numbers.
        ValueError: one without the other, another number of them, or one that is not positive.
    """
    if focal_px is None and baseline_m is None:
        return None
    columns = []
    for name, given in (("focal_px", focal_px), ("baseline_m", baseline_m)):
        several = isinstance(given, (list, tuple, np.ndarray, Tensor)) and np.ndim(given) > 0
        values: list[Any] = list(given) if several else [given] * count  # type: ignore[call-overload]
        if len(values) != count:
            raise ValueError(f"predict: {name} must be one number or one for each of {count} pairs, got {len(values)}")
        for value in values:
            is_number = isinstance(value, (int, float, np.number, Tensor)) and not isinstance(value, bool)
            if not is_number and (several or value is not None):
                raise TypeError(f"predict: {name} must be a number, got {value!r}")
        columns.append(values)
    for focal, baseline in zip(*columns, strict=True):
        check_camera(focal, baseline, "predict")
    return [float(focal) * float(baseline) for focal, baseline in zip(*columns, strict=True)]


def _from_tensor(images: Tensor) -> list[Tensor]:
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(f"predict: a tensor must be floating in [0, 1] or uint8 in 0..255, got {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        hint = "; permute it to channels first" if images.ndim in (3, 4) and images.shape[-1] == 3 else ""
        raise ValueError(
            f"predict: a tensor must have shape (3, H, W) or (B, 3, H, W), got {tuple(images.shape)}{hint}"
        )
    images = images.detach()
    checked = images if images.dtype == torch.uint8 else _in_range(images.float())
    if not checked.shape[-1] or not checked.shape[-2]:
        raise ValueError(f"predict: an image must have at least one pixel, got shape {tuple(images.shape)}")
    return list(checked) if checked.ndim == 4 else [checked]


def _in_range(values: Tensor) -> Tensor:
    """Floating values clamped to [0, 1], or a ValueError that says what they are instead."""
    if not values.numel():
        if values.ndim == 4 and not len(values):
            return values
        raise ValueError(f"predict: an image must have at least one pixel, got shape {tuple(values.shape)}")
    low, high = (value.item() for value in torch.aminmax(values))
    if low != low or high != high:
        raise ValueError("predict: floating values must be in [0, 1], got NaN")
    if low < -_SLACK or high > 1 + _SLACK:
        if low < -_SLACK:
            hint = "undo its normalisation"
        else:
            hint = "divide by 255, or give uint8" if high <= 255 else "scale it first"
        raise ValueError(f"predict: floating values must be in [0, 1], got {low:.4g} to {high:.4g}; {hint}")
    return values.clamp(0, 1)


def _channels_first(array: np.ndarray) -> Tensor:
    # What Pillow lends is not writable, of which torch warns.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).permute(2, 0, 1)
