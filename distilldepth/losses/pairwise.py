"""How alike the places of an image are to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distilldepth.ops.arguments import check_device, check_floats, check_teacher


def pairwise_loss(student: Tensor, teacher: Tensor, *, nodes: tuple[int, int] = (8, 8)) -> Tensor:
    """Squared difference between the cosines of all pairs of places, of the student's and of the teacher's features.

    Both are averaged over the cells of a grid, the nodes; with f the nodes' features brought to unit length, `A = f^T
    f`, and the loss is the mean over images and ordered pairs of nodes of `(A_s - A_t)^2`. A node of length 0 is alike
    to none, itself included. Only likeness is compared: neither lengths nor the axes of the features matter, and
    student and teacher may differ in width and size, so that no projection is needed.

    Args:
        student: `(B, C, H, W)`, or `(B, H, W)` for one channel, a floating dtype.
        teacher: likewise, of any width and size; must not require grad.
        nodes: rows and columns of the grid. Where one of the two has fewer, the grid has as many as that.

    Returns:
        Scalar float32 or float64; 0 for no values. NaN if one is not finite.

    Raises:
        TypeError: not floating tensors.
        ValueError: batch sizes or devices differ, the teacher requires grad, fewer than one node.

    Gradient: to `student`; none through a node of length 0.

    Source: Liu et al., Structured Knowledge Distillation for Dense Prediction (2019), pair-wise distillation; Gao et
    al., Robust Lightweight Depth Estimation Model via Data-Free Distillation, ablation (PWD).

    >>> student = torch.tensor([[3.0, 0.0], [0.0, 5.0]]).view(1, 2, 1, 2)
    >>> float(pairwise_loss(student, 2 * student)) < 1e-12
    True
    """
    name = "pairwise_loss"
    check_floats(name, "student", student, (3, 4), "(B, C, H, W) or (B, H, W)")
    check_floats(name, "teacher", teacher, (3, 4), "(B, C, H, W) or (B, H, W)")
    check_device(name, "teacher", teacher, "student", student)
    check_teacher(name, "teacher", teacher)
    if len(student) != len(teacher):
        raise ValueError(f"{name}: teacher must have the student's batch of {len(student)}, got {len(teacher)}")
    if len(nodes) != 2 or min(nodes) < 1:
        raise ValueError(f"{name}: nodes must be (rows, columns) of at least 1, got {nodes}")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if student.numel() == 0 or teacher.numel() == 0:
        return student.sum() * 0
    rows, columns = (min(nodes[axis], student.shape[axis - 2], teacher.shape[axis - 2]) for axis in (0, 1))
    return (_likeness(student, (rows, columns)) - _likeness(teacher, (rows, columns))).square().mean()


def _likeness(features: Tensor, nodes: tuple[int, int]) -> Tensor:
    """`(B, N, N)`, the cosine of each pair of nodes."""
    if features.ndim == 3:
        features = features[:, None]
    pooled = F.adaptive_avg_pool2d(features, nodes).flatten(2)
    square = pooled.square().sum(1, keepdim=True)
    # Written so that a NaN is kept; of a length of 0 the root would have an infinite gradient.
    empty = square <= torch.finfo(square.dtype).tiny
    unit = pooled * torch.where(empty, 0, torch.where(empty, 1, square).rsqrt())
    return unit.transpose(1, 2) @ unit
