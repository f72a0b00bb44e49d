"""The models whose maps a student that completes depth learns to correct."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distilldepth.distill.config import DistillConfig
from distilldepth.errors import UsageError
from distilldepth.models import DepthModel, load_model
from distilldepth.models.base import run_resized
from distilldepth.models.preprocess import target_size
from distilldepth.sparse.align import align_to_points
from distilldepth.teachers.spec import TeacherSpec, parse_teachers

_BLUR = 9
"""Side of the window, in pixels, over which a map is averaged."""
_BENDS = (4, 5)
"""Rows and columns of the random numbers that bend a map."""
_BENT = 0.3
"""Their standard deviation, in those of the map."""


class Guides:
    """Frozen models; one of them, drawn by weight, says what is to be corrected.

    Args:
        models: in the order of their weights.
        weights: positive.
        align: method of `align_to_points`.
        jitter: share of the maps that are blurred or bent.
    """

    def __init__(self, models: list[DepthModel], weights: list[float], *, align: str, jitter: float) -> None:
        self.models = [model.eval().requires_grad_(False) for model in models]
        for model in self.models:
            model.to(memory_format=model.memory_format)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.method, self.jitter = align, jitter

    def align(self, images: Tensor, sparse: Tensor | None, *, plain: bool = False) -> Tensor:
        """Return a map of each image that is brought to its points.

        Which model makes it, and what is blurred or bent, torch's generators decide, so that a step that is repeated is
        the same one.

        Args:
            images: `(B, 3, H, W)`, RGB in [0, 1].
            sparse: `(B, H, W)`, metres, 0 = no point.
            plain: the first model, as it is.

        Returns:
            `(B, H, W)` float32, metres.
        """
        assert sparse is not None, "points are drawn wherever there are guides"
        # On the CPU, whose generator nobody waits for.
        number = 0 if plain else int(torch.multinomial(self.weights, 1))
        model = self.models[number]
        inner = target_size(images.shape[-2], images.shape[-1], model.preprocessing)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            values = run_resized(model, images, inner).values
            if not plain and self.jitter:
                values = self._jittered(values)
            return align_to_points(values, sparse, quantity=model.info.quantity, method=self.method)

    def _jittered(self, maps: Tensor) -> Tensor:
        count = len(maps)
        blurred = F.avg_pool2d(maps[:, None], _BLUR, 1, _BLUR // 2, count_include_pad=False)[:, 0]
        bends = torch.randn(count, 1, *_BENDS, device=maps.device)
        bends = F.interpolate(bends, maps.shape[-2:], mode="bilinear", align_corners=True)[:, 0]
        strength = torch.rand(count, 1, 1, device=maps.device) * _BENT * maps.flatten(1).std(1)[:, None, None]
        chosen = torch.rand(2, count, 1, 1, device=maps.device) < self.jitter
        return torch.where(chosen[0], blurred, maps) + torch.where(chosen[1], strength * bends, 0)


def open_guides(config: DistillConfig, student: DepthModel, device: torch.device) -> Guides | None:
    """Load the guides of a run; None for a student that needs none.

    Raises:
        UsageError: a student or a guide of the wrong kind.
        DistillDepthError: a guide cannot be loaded.
    """
    takes = student.takes_points
    if takes != config.points.draw:
        raise UsageError(
            f"distill: student '{config.student}' completes points, which nobody gives it; use --preset completion"
            if takes
            else f"distill: student '{config.student}' takes no points; with points.draw use completion-mini"
        )
    if not takes:
        return None
    own = [TeacherSpec(str(student.guide), 1.0)]
    specs = parse_teachers(config.points.guides) if config.points.guides.strip() else own
    models = [load_model(spec.model, device=device, offline=config.offline) for spec in specs]
    for spec, model in zip(specs, models, strict=True):
        if model.takes_points:
            raise UsageError(f"distill: guide '{spec.model}' needs points itself; name a model that predicts depth")
    return Guides(models, [spec.weight for spec in specs], align=str(student.align), jitter=config.points.jitter)
