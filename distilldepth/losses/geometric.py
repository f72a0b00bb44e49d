"""Student and teacher as points in space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distilldepth.errors import did_you_mean
from distilldepth.losses.least_squares import least_squares_fit
from distilldepth.ops import backproject
from distilldepth.ops.arguments import (
    check_distilled,
    check_floats,
    check_pair,
)
from distilldepth.words import QUANTITIES

FLOOR = 0.2
"""Least depth, or inverse depth, of what is compared, as a share of the teacher's mean."""


def geometric_loss(
    student_depth: Tensor,
    teacher_depth: Tensor,
    intrinsics: Tensor,
    network: Callable[[Tensor], Tensor],
    valid: Tensor | None = None,
    *,
    points: int = 4096,
) -> Tensor:
    """Squared difference between two depth maps as points in space, and between what a network says of the points.

    `l_input + l_feature`. l_input is the mean of `(p_s - p_t)^2` over the valid pixels of an image and the three
    coordinates, `p = ((u - cx) z / fx, (v - cy) z / fy, z)`. l_feature is the mean of `(F(p_s) - F(p_t))^2` over some
    of the points and the features of each. These are the same pixels in both maps, spread evenly over the valid ones in
    reading order; none is drawn, so that the same maps give the same loss. Mean over images.

    Both maps must be in one unit, of about 1, with one shift: see `depths_to_compare`. An unknown shift would shear the
    points.

    Args:
        student_depth: `(B, H, W)`, or `(B, 1, H, W)`, z along the optical axis, positive, a floating dtype.
        teacher_depth: as `student_depth`; must not require grad.
        intrinsics: `(B, 3, 3)` or `(3, 3)`, pixels of the maps, zero skew.
        network: from points `(B, N, 3)` to features `(B, N, C)` of each, frozen, for example
            `distilldepth.models.pointnet.PointNet`. Called with each map's points by itself.
        valid: bool `(B, H, W)`; None = all.
        points: how many of each image the network sees, at least 1; all, if there are fewer pixels. Where fewer are
            valid some count more than once.

    Returns:
        Scalar float32 or float64. Images without a valid pixel do not count; 0 with zero gradient if there is none. NaN
        if a valid pixel is not finite.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a teacher that requires grad, fewer than one point; as
            `backproject` for the intrinsics.

    Gradient: to `student_depth`, through points and network.

    Source: Gao et al., Robust Lightweight Depth Estimation Model via Data-Free Distillation, geometric distillation.
    What is taken for input and feature, and how many points, is not said there.

    >>> depth, camera = torch.ones(1, 2, 2), torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    >>> float(geometric_loss(depth + 1, depth, camera, torch.zeros_like))  # (2 / 16 + 1) / 3
    0.375
    """
    name = "geometric_loss"
    student_depth, teacher_depth = _as_maps(student_depth), _as_maps(teacher_depth)
    check_distilled(name, student_depth, teacher_depth, valid)
    check_floats(name, "student_depth", student_depth, (3,), "(B, H, W) or (B, 1, H, W)")
    if points < 1:
        raise ValueError(f"{name}: points must be at least 1, got {points}")
    dtype = torch.promote_types(torch.promote_types(student_depth.dtype, teacher_depth.dtype), torch.float32)
    student, teacher = student_depth.flatten(1).to(dtype), teacher_depth.flatten(1).to(dtype)
    # Points are proportional to depth, along the ray of their pixel: differences of points are those of depth, on rays.
    rays = backproject(torch.ones_like(student_depth, dtype=dtype), intrinsics).flatten(1, 2)
    if student.numel() == 0:
        return student.sum()
    difference, kept = student - teacher, None if valid is None else valid.flatten(1)
    if kept is not None:
        difference = torch.where(kept, difference, 0)
    number = student.shape[1] if kept is None else kept.sum(1).clamp(min=1)
    position = (difference.square() * (rays[..., 0].square() + rays[..., 1].square() + 1)).sum(1) / (3 * number)
    index = _spread_evenly(kept, student, min(points, student.shape[1]))
    some = rays.gather(1, index[..., None].expand(-1, -1, 3))
    used = torch.ones_like(position, dtype=torch.bool) if kept is None else kept.any(1)
    # The teacher first, so that the student's graph is not there yet.
    told, said = (
        network(torch.where(used[:, None], z.gather(1, index), 1)[..., None] * some) for z in (teacher, student)
    )
    images = position + (said - told.detach()).square().mean((1, 2))
    return torch.where(used, images, 0).sum() / used.sum().clamp(min=1)


def _as_maps(depth: Tensor) -> Tensor:
    return depth[:, 0] if isinstance(depth, Tensor) and depth.ndim == 4 and depth.shape[1] == 1 else depth


def _spread_evenly(kept: Tensor | None, like: Tensor, count: int) -> Tensor:
    """Places `(B, count)` in rows `(B, P)`: the first of every so many that are kept; any place if none is."""
    step = torch.arange(count, device=like.device)
    if kept is None:
        return (step * like.shape[1] // count).expand(len(like), count)
    running = kept.cumsum(1)
    return torch.searchsorted(running, step * running[:, -1:] // count + 1).clamp(max=like.shape[1] - 1)


def depths_to_compare(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, *, quantity: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring a student's and a teacher's map to positive depth in one unit, with one shift.

    Of the teacher's map t becomes, with e = 0.2, each image by itself:
    - `metric_depth`: inverse depth over its mean. What is below e, sky above all, is too far to be a point: not valid;
    - `disparity`, whose shift is not known: `(x - least) / (mean - least) + e`, so that the farthest has the inverse
      depth e;
    - `depth`, likewise unknown: the same in depth, so that the nearest has the depth e.
    To t the student's map is fitted by least squares, in which case f goes below e where it must: as a depth f
    continues as `e exp(f / e - 1)`; an inverse depth is inverted first, and `1 / f` continues as `(2 - exp(f / e - 1))
    / e`, at most twice the depth of the floor. Both are smooth and positive, and keep a gradient.

    Args:
        prediction: `(B, H, W)`, the student's map, larger = nearer, a floating dtype.
        target: `(B, H, W)`, the teacher's map as `distilldepth.depth.to_disparity` gives it, larger = nearer; must not
            require grad.
        valid: bool `(B, H, W)`; None = all.
        quantity: what the teacher itself predicts: `disparity`, `depth` or `metric_depth`.

    Returns:
        The student's depth, the teacher's, both `(B, H, W)` float32 or float64 and 1 where not valid, and bool `(B, H,
        W)`, what is valid. A teacher's map that is constant, or knows of nothing that is near enough, is valid nowhere.

    Raises:
        TypeError, ValueError: tensors of another kind or shape, a target that requires grad, unknown quantity.

    Gradient: to `prediction`, through the fit, so that neither its scale nor its shift gets any. Where the fitted scale
    comes out negative the student's map is the mean of the target, without gradient: another term has to say which way
    is near.

    >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
    >>> student, teacher, valid = depths_to_compare(3 * target + 1, target, quantity="metric_depth")
    >>> bool(((student - teacher).abs() < 1e-5).all()), teacher
    (True, tensor([[[2.3333, 1.1667, 0.5833]]]))
    """
    check_pair("depths_to_compare", prediction, target, valid)
    if quantity not in QUANTITIES:
        raise ValueError(
            f"depths_to_compare: quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}"
            f"{did_you_mean(str(quantity), QUANTITIES)}"
        )
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    values, wanted = prediction.flatten(1).to(dtype), target.flatten(1).to(dtype)
    if values.numel() == 0:
        return values.view_as(prediction), wanted.view_as(target), torch.ones_like(prediction, dtype=torch.bool)
    kept = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.flatten(1)
    if quantity == "depth":
        values, wanted = -values, -wanted
    wanted, kept = _in_own_unit(wanted, kept, affine=quantity != "metric_depth")
    fit = least_squares_fit(values, wanted, kept)
    below = (fit / FLOOR - 1).clamp(max=0).exp()
    if quantity == "depth":
        student, teacher = torch.where(fit < FLOOR, FLOOR * below, fit), wanted
    else:
        student, teacher = torch.where(fit < FLOOR, (2 - below) / FLOOR, 1 / fit.clamp(min=FLOOR)), 1 / wanted
    student, teacher = torch.where(kept, student, 1), torch.where(kept, teacher, 1)
    return student.view_as(prediction), teacher.view_as(target), kept.view_as(prediction)


def _in_own_unit(values: Tensor, kept: Tensor, *, affine: bool) -> tuple[Tensor, Tensor]:
    """Rows over their own mean, from their least on and above the floor if `affine`, and which of them are known."""
    if affine:
        least = torch.where(kept, values, torch.inf).amin(1, keepdim=True)
        values = values - torch.where(kept.any(1, keepdim=True), least, 0)
    values = torch.where(kept, values, 0)
    mean = values.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    # Written so that a NaN is kept, and shows.
    known = kept & ~(mean <= 0)
    values = values / torch.where(mean <= 0, 1, mean)
    values, known = (values + FLOOR, known) if affine else (values, known & ~(values < FLOOR))
    return torch.where(known, values, 1), known
