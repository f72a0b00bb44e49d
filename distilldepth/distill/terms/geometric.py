"""The maps of student and teacher as points in space."""

from __future__ import annotations

from torch import Tensor

from distilldepth.depth import intrinsics_from_fov
from distilldepth.distill.terms.base import Term
from distilldepth.images.crops import Regions
from distilldepth.images.views import FOV_DEG
from distilldepth.losses.geometric import depths_to_compare, geometric_loss
from distilldepth.models.base import DepthOutput
from distilldepth.models.pointnet import PointNet
from distilldepth.teachers.teacher import PseudoLabel


class GeometricTerm(Term):
    """Geometric distillation: points, and a PointNet's features of them; see `depths_to_compare` for their unit.

    The camera is that of the region. Where it is not known the region itself is taken to be a whole photograph of the
    usual field of view, which makes what was cut from a photograph wider than it is; for student and teacher alike.
    """

    def __init__(self, weight: float, points: int = 4096) -> None:
        super().__init__("geometric", weight)
        self.points = points
        # Its weights come from a seed of their own, so that it is no part of what is trained, shared and saved.
        self._network = (PointNet(),)

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> Tensor:
        values = student.values
        depths = depths_to_compare(values, label.disparity, label.valid, quantity=label.quantity)
        intrinsics = regions.intrinsics
        if intrinsics is None:
            height, width = values.shape[1:]
            intrinsics = intrinsics_from_fov(height, width, FOV_DEG, vertical=True)
        intrinsics = intrinsics.to(values.device, non_blocking=True)
        network = self._network[0].to(values.device)
        return geometric_loss(depths[0], depths[1], intrinsics, network, depths[2], points=self.points)
