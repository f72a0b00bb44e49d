"""Local-global loss: the student's map of a region against the teacher's maps of crops of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilldepth import reference
from distilldepth.ops.arguments import (
    check_device,
    check_floats,
    check_normaliser,
    check_teacher,
    check_valid,
    values_are_checked,
)
from distilldepth.ops.backend import active_backend, kernel, prepare
from distilldepth.reference.crop_ssi import sample_crops as _sample_crops
from distilldepth.words import CONTEXTS

EDGE_TOLERANCE = 1e-6
"""How far an edge of a box may lie beyond the map, as a share of the map's side: what rounding in float32 leaves. Such
an edge is taken for the map's own."""


def crop_ssi_loss(
    prediction: Tensor,
    targets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None = None,
    *,
    segments: Sequence[int] = (1,),
    contexts: str = "range",
    spread_eps: float = 1e-6,
) -> Tensor:
    """Mean over crops of the hybrid normalisation loss between a crop of the prediction and the teacher's view of it.

    `1/N sum_n L(crop_n(prediction), targets_n)`, L as `hybrid_norm_loss` with the mean over the valid pixels of the
    crop. The box of the prediction is resampled to (h, w) bilinearly: the sample point of crop pixel (i, j) is
    `x = x0 + (j + 0.5) * (x1 - x0) / w - 0.5`, likewise y, clamped to the map (`align_corners=False`).

    Args:
        prediction: `(B, H, W)`, the student's map of whole regions, a floating dtype.
        targets: `(N, h, w)`, the teacher's maps of the crops, a floating dtype; must not require grad.
        boxes: `(N, 4)` floating x0, y0, x1, y1 in pixels of the prediction; edges, so the full map is 0, 0, W, H. An
            edge beyond the map by at most `EDGE_TOLERANCE` of its side, as rounding leaves it, is the map's own.
        image_index: `(N,)` int64, the image that each crop is from.
        valid: bool `(N, h, w)`, True = use the pixel of the crop; None = all.
        segments: how many contexts each level has.
        contexts: `range`, `quantile` or `spatial`, of each crop.
        spread_eps: positive, added to every spread, in the unit of the maps.

    Returns:
        Scalar float32; float64 if a map is float64. Crops without a valid pixel do not count; 0 with zero gradient if
        none has one. NaN if a valid pixel is not finite.

    Raises:
        TypeError: a map is not a floating tensor, image_index is not int64, valid is not bool.
        ValueError: shapes or devices do not fit, the targets require grad, a box is empty or outside the map, an index
            names no image. Boxes and indices on a GPU are looked at only with DISTILLDEPTH_CHECK_VALUES=1, because
            that waits for the device; without it, what lies outside the map is cut off, and a crop of no image makes
            the loss NaN (the reference, which indexes with torch, fails with torch's own error).
        DistillDepthError: DISTILLDEPTH_BACKEND forces a backend that is not there.

    Gradient: to `prediction`, in its dtype; exact, through sampling and normalisation.

    Source: Distill Any Depth, section 3.2 (L_lg).

    >>> import torch
    >>> region = torch.rand(1, 8, 8)
    >>> boxes, index = torch.tensor([[2.0, 2.0, 6.0, 6.0]]), torch.tensor([0])
    >>> float(crop_ssi_loss(region, 3 * region[:, 2:6, 2:6] + 1, boxes, index)) < 1e-3
    True
    """
    name = "crop_ssi_loss"
    check_floats(name, "prediction", prediction, (3,), "(B, H, W)")
    check_floats(name, "targets", targets, (3,), "(N, h, w)")
    check_device(name, "targets", targets, "prediction", prediction)
    check_teacher(name, "targets", targets)
    check_valid(name, valid, targets.shape, "targets", targets)
    segments = check_normaliser(name, segments, contexts, spread_eps)
    boxes = _checked_boxes(name, prediction, boxes, image_index)
    if len(boxes) != len(targets):
        raise ValueError(f"{name}: boxes must be one per crop, ({len(targets)}, 4), got {tuple(boxes.shape)}")
    backend = active_backend("crop_ssi", prediction)
    if backend == "reference":
        return reference.crop_ssi_loss(
            prediction,
            targets,
            boxes,
            image_index,
            valid,
            segments=segments,
            contexts=contexts,
            spread_eps=spread_eps,
        )
    prediction, targets, valid = prepare(prediction, targets, valid)
    places = boxes.contiguous(), image_index.contiguous()
    need_gradient = torch.is_grad_enabled() and prediction.requires_grad
    run = kernel("crop_ssi", backend)
    return run(prediction, targets, *places, valid, segments, CONTEXTS.index(contexts), spread_eps, need_gradient)[0]


def sample_crops(prediction: Tensor, boxes: Tensor, image_index: Tensor, size: Sequence[int]) -> Tensor:
    """Resample boxes of a map bilinearly, as `crop_ssi_loss` does.

    Args:
        prediction: `(B, H, W)`, a floating dtype.
        boxes: `(N, 4)` floating x0, y0, x1, y1 in pixels of the map, edges.
        image_index: `(N,)` int64, the image that each crop is from.
        size: (h, w) of the crops.

    Returns:
        `(N, h, w)` float32; float64 for float64 input.

    Raises:
        TypeError, ValueError: as `crop_ssi_loss`.

    Gradient: to `prediction`.

    >>> import torch
    >>> sample_crops(torch.arange(4.0).view(1, 1, 4), torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([0]), (1, 2))
    tensor([[[0., 1.]]])
    """
    check_floats("sample_crops", "prediction", prediction, (3,), "(B, H, W)")
    boxes = _checked_boxes("sample_crops", prediction, boxes, image_index)
    return _sample_crops(prediction.to(torch.promote_types(prediction.dtype, torch.float32)), boxes, image_index, size)


def _checked_boxes(function: str, prediction: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    """The boxes in float64, cut to the maps; raises if one does not lie in them, which on a GPU is seen on request."""
    check_floats(function, "boxes", boxes, (2,), "(N, 4)")
    if boxes.shape[1] != 4:
        raise ValueError(f"{function}: boxes must be (N, 4) x0, y0, x1, y1, got {tuple(boxes.shape)}")
    check_teacher(function, "boxes", boxes)
    check_device(function, "boxes", boxes, "prediction", prediction)
    if not isinstance(image_index, Tensor) or image_index.dtype != torch.int64:
        got = image_index.dtype if isinstance(image_index, Tensor) else type(image_index).__name__
        raise TypeError(f"{function}: image_index must be an int64 tensor, got {got}")
    if image_index.shape != boxes.shape[:1]:
        raise ValueError(
            f"{function}: image_index must be one per box, ({len(boxes)},), got {tuple(image_index.shape)}"
        )
    check_device(function, "image_index", image_index, "prediction", prediction)
    # float64 before anything else: in the half types even a small map's coordinates would be rounded.
    given, (batch, height, width) = boxes.double(), prediction.shape
    x, y = given[:, 0::2].clamp(0, width), given[:, 1::2].clamp(0, height)
    cut = torch.stack((x, y), dim=2).flatten(1)
    if values_are_checked(prediction) and len(boxes):
        _check_contents(function, given, cut, image_index, (batch, height, width))
    return cut


def _check_contents(
    function: str, given: Tensor, cut: Tensor, image_index: Tensor, shape: tuple[int, int, int]
) -> None:
    """Raise unless the boxes are not empty and as good as inside the maps, and the indices name images."""
    batch, height, width = shape
    tolerance = EDGE_TOLERANCE * given.new_tensor([width, height, width, height])
    x0, y0, x1, y1 = cut.unbind(1)
    fits = ((given - cut).abs() <= tolerance).all(1) & (x0 < x1) & (y0 < y1)
    if not bool(fits.all()):
        number = int(fits.logical_not().nonzero()[0])
        box = ", ".join(f"{value:g}" for value in given[number].tolist())
        raise ValueError(
            f"{function}: boxes must be non-empty x0, y0, x1, y1 inside the map (0, 0, {width}, {height}), "
            f"got box {number} = ({box})"
        )
    known = (image_index >= 0) & (image_index < batch)
    if not bool(known.all()):
        number = int(known.logical_not().nonzero()[0])
        raise ValueError(
            f"{function}: image_index must be from 0 to {batch - 1}, got {int(image_index[number])} for box {number}"
        )
