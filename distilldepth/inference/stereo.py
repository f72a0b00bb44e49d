"""A model of two views over many rectified pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distilldepth.device import autocast
from distilldepth.errors import DistillDepthError
from distilldepth.images.stereo import RightView
from distilldepth.inference.batches import LoadedImage, by_halves
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.inference.mirror import metric_disparity, with_mirror
from distilldepth.models.base import DepthModel, ModelInfo, pixels_to_metres


class HasRight(Protocol):
    """What was read with a left view."""

    right: RightView | None
    """None: there is none, which is that pair's failure."""


class StereoEstimator(Estimator):
    """A model that sees two views, at work; items are read with `right`, see `HasRight`.

    Args:
        model: of two views.
        options: how it is run; None for the model's own ways.
        metric: whether disparity in pixels becomes metres by the focal length and baseline of each pair; models that
            predict metres do so anyway.

    Raises:
        UsageError: the model sees one view.
    """

    views = 2

    def __init__(self, model: DepthModel, options: InferenceOptions | None = None, *, metric: bool = False) -> None:
        super().__init__(model, options)
        self.metric = metric and model.in_pixels
        """Whether metres are made of pixels."""

    @property
    def info(self) -> ModelInfo:
        """Who predicts, and what comes out."""
        return replace(self.model.info, quantity="metric_depth") if self.metric else self.model.info

    @torch.inference_mode()
    def estimate_batch(self, batch: Sequence[LoadedImage[Any, Any]]) -> list[Tensor | Exception]:
        """Return the map of each left view, or what went wrong with it; where memory runs out, by halves."""
        problems = [self._problem(loaded) for loaded in batch]
        good = [loaded for loaded, problem in zip(batch, problems, strict=True) if problem is None]
        found = iter(by_halves(good, self._estimate) if good else [])
        results: list[Tensor | Exception] = [next(found) if problem is None else problem for problem in problems]
        return [self._finish(loaded, result) for loaded, result in zip(batch, results, strict=True)]

    def _problem(self, loaded: LoadedImage[Any, Any]) -> Exception | None:
        right: RightView | None = loaded.extra.right
        if right is None:
            return DistillDepthError(f"has no right view, and {self.model.info.name} sees two views")
        try:
            right.check_size(loaded.image)
        except DistillDepthError as error:
            return error
        if self.metric and right.factor is None:
            names = (("focal_px", right.focal_px), ("baseline_m", right.baseline_m))
            missing = " and ".join(name for name, value in names if value is None)
            return DistillDepthError(f"{missing} of the pair must be known: disparity becomes metres by both")
        return None

    def _estimate(self, part: Sequence[LoadedImage[Any, Any]]) -> list[Tensor]:
        options = self.options
        pairs = np.stack([np.concatenate([loaded.image, loaded.extra.right.image], 2) for loaded in part])
        images = torch.from_numpy(pairs).to(self.device).permute(0, 3, 1, 2).float().div_(255)

        def estimate(images: Tensor) -> Tensor:
            with autocast(self.device, self.precision):
                return self._network.estimate(images, policy=part[0].policy, size=options.size).float()

        kind = self.flip_of(part[0].item)
        if not kind:
            return list(estimate(images))
        if self.model.in_pixels:
            return list(with_mirror(estimate, images, kind, lambda maps: maps))
        known = [loaded.extra.right.factor for loaded in part]
        factors = None if None in known else torch.tensor(known, device=self.device)
        return list(with_mirror(estimate, images, kind, metric_disparity(factors)))

    def _finish(self, loaded: LoadedImage[Any, Any], values: Tensor | Exception) -> Tensor | Exception:
        """Metres, where they are wanted."""
        if isinstance(values, Exception) or not self.model.in_pixels:
            return values
        middle = float(values.median())
        if middle < 0:
            return DistillDepthError(
                f"its disparity is negative in the median ({middle:.1f} px): left and right look exchanged; give the "
                "views the other way round"
            )
        if not self.metric:
            return values
        return pixels_to_metres(values[None], values.new_tensor([loaded.extra.right.factor]))[0]
