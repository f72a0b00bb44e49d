"""What `DepthModel.predict` takes for an image: files, pictures, arrays and tensors, each as floating RGB in [0, 1]."""

from __future__ import annotations

from os import PathLike
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distilldepth.images.decode import as_rgb, decode_image

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
