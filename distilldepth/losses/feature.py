"""Alignment of encoder features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distilldepth.ops.arguments import check_device, check_floats, check_teacher


def feature_loss(student: Tensor, teacher: Tensor, *, tolerance: float = 0.15) -> Tensor:
    """Mean of 1 - cos between student and teacher tokens, over the tokens that are not yet close.

    `mean over tokens with 1 - cos >= tolerance of 1 - cos(student, teacher)`. Tokens that are close already are
    dropped: the teacher's features say what a thing is and are alike across it, while depth varies, so a student should
    not copy them to the last digit. The divisor is the number of tokens kept (the papers do not say), so that the pull
    on those does not fade as others are dropped.

    Args:
        student: `(B, C, h, w)`, a floating dtype; resized to the teacher's grid bilinearly if it differs.
        teacher: `(B, C, h', w')`, a floating dtype; must not require grad.
        tolerance: on 1 - cos.

    Returns:
        Scalar float32 or float64; 0 with zero gradient if every token is close.

    Raises:
        TypeError, ValueError: tensors of another kind, widths or batch sizes that differ (project the student first), a
            teacher that requires grad.

    Gradient: to `student`.

    Source: Depth Anything (feature alignment), with the author's correction that the tolerance is on 1 - cos; Distill
    Any Depth, section 3.2 (L_feat).

    >>> float(feature_loss(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 3, 3)))
    0.0
    """
    name = "feature_loss"
    check_floats(name, "student", student, (4,), "(B, C, h, w)")
    check_floats(name, "teacher", teacher, (4,), "(B, C, h, w)")
    check_teacher(name, "teacher", teacher)
    check_device(name, "teacher", teacher, "student", student)
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{name}: student must have the teacher's batch and width {tuple(teacher.shape[:2])}, "
            f"got {tuple(student.shape[:2])}; project the student's features first"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if student.numel() == 0 or teacher.numel() == 0:
        return student.sum() * 0
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    distance = 1 - F.cosine_similarity(student, teacher, dim=1)
    # Written so that a NaN is kept: what is not finite must show, not be dropped as close.
    kept = (~(distance.detach() < tolerance)).to(dtype)
    return (distance * kept).sum() / kept.sum().clamp(min=1)
