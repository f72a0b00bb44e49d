"""The mean of a model's maps of an image and of its mirror image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distilldepth.errors import DistillDepthError
from distilldepth.words import FLIPS

_AGREES_PX, _AGREES_SHARE = 1.0, 0.05
"""Disparities of both views are of one point if they differ by no more than the larger of these: pixels, share."""


def mirror(images: Tensor) -> Tensor:
    """Return images `(B, 3 * views, H, W)` mirrored left to right; of a pair the views are exchanged, so that the
    disparity of what is the left view then is positive again."""
    return torch.cat(images.flip(-1).split(3, 1)[::-1], 1)


def with_mirror(
    estimate: Callable[[Tensor], Tensor], images: Tensor, kind: str, disparity: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Predict for images and for their mirror images, and take the mean of both.

    Of a pair the mirrored prediction belongs to the right view. It is looked up where each pixel of the left view lies
    there, by the left view's disparity, linearly between columns; where that is outside the frame, or both views'
    disparities differ by more than a pixel and 5 %, as where one does not see the point, the left view's own prediction
    stands. (A mean in place, of two views that see things in different columns, would be wrong by the disparity.)

    Args:
        estimate: gives maps `(B, H, W)` of images, in any quantity.
        images: `(B, 3 * views, H, W)`.
        kind: one of `FLIPS`, which says what each is.
        disparity: for pairs gives the disparity of a map, pixels, same shape; None for single images.

    Returns:
        float32 `(B, H, W)`, in the quantity of `estimate`.

    Source: `post_process_depth` of NeWCRFs for `blended`; the mean of ZoeDepth's and others' evaluation.

    >>> images = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    >>> with_mirror(lambda x: x[:, 0].cumsum(-1), images, "mean")[0, 0, :3]
    tensor([7.5000, 8.0000, 8.5000])
    """
    values = estimate(images).float()
    other = estimate(mirror(images)).float().flip(-1)
    share = _share(kind, values)
    if disparity is None:
        return (1 - share) * values + share * other
    shift, of_right = disparity(values), disparity(other)
    looked_up, inside = _look_up(other, shift)
    there, _ = _look_up(of_right, shift)
    agree = (there - shift).abs() <= (_AGREES_SHARE * shift.abs()).clamp(min=_AGREES_PX)
    return torch.where(inside & agree, (1 - share) * values + share * looked_up, values)


def metric_disparity(factors: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return how depth of pairs becomes disparity in pixels: `factor / depth`.

    Args:
        factors: `(B,)`, focal length times baseline of each; None where they are not known.

    Raises:
        DistillDepthError: they are not known.
    """
    if factors is None:
        raise DistillDepthError(
            "the mean with the mirror image needs focal_px and baseline_m of the pair, as the mirrored map is that of "
            "the right view; or use --flip-average none"
        )
    known = factors[:, None, None]
    return lambda depth: torch.where(depth > 0, known / depth, torch.inf)


def _share(kind: str, like: Tensor) -> Tensor:
    """How much the mirror image counts in each column, `(W,)`."""
    columns = like.shape[-1]
    if kind == "mean":
        return like.new_full((columns,), 0.5)
    if kind != "blended":
        raise ValueError(f"with_mirror: kind must be {' or '.join(FLIPS)}, got {kind!r}")
    left = 1 - (20 * (torch.linspace(0, 1, columns, device=like.device, dtype=like.dtype) - 0.05)).clamp(0, 1)
    return 0.5 + 0.5 * (left - left.flip(0))


def _look_up(maps: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Values of maps `(B, H, W)` at `shift` columns further left, and where that is inside the frame."""
    last = maps.shape[-1] - 1
    place = torch.arange(last + 1, device=maps.device, dtype=maps.dtype) - shift
    inside = (place >= 0) & (place <= last)
    place = torch.where(inside, place, 0)
    low = place.floor().long()
    part = place - low
    high = (low + 1).clamp(max=last)
    return torch.lerp(maps.gather(-1, low), maps.gather(-1, high), part), inside
