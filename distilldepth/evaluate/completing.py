"""What completes depth from points when that is scored: a completion network behind a depth model, or a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.device import autocast
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.inference.batches import LoadedImage, by_halves
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.families.completion import CompletionModel
from distilldepth.models.preprocess import Preprocessing
from distilldepth.sparse.align import align_to_points
from distilldepth.sparse.interpolate import linear, morphology, nearest

INTERPOLATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nearest": nearest,
    "linear": linear,
    "morphology": morphology,
}
ALIGN = "align"
COMPLETION_BASELINES = (*INTERPOLATIONS, ALIGN)
"""`nearest`, `linear` and `morphology` look at the points alone; `align` brings a depth model's map to them by least
squares."""
GUIDE = "distilldepth-mini"
"""The depth model of `align`, where none is named."""
NETWORK = "completion-mini"
"""The completion network behind a depth model that is named alone."""


class PointCompletion(DepthModel):
    """Gives metric depth for images with points; `complete` stands in place of `estimate`."""

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None, size: int | None) -> Tensor:
        """Return depth `(B, H, W)`, metres, for images `(B, 3, H, W)` in [0, 1] and points `(B, H, W)`, 0 = none."""
        raise NotImplementedError

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Refuse: without points there is nothing to complete."""
        raise TypeError(f"{self.info.name}: completes depth from points; use complete")


class Interpolated(PointCompletion):
    """A baseline that looks at the points alone."""

    def __init__(self, kind: str) -> None:
        info = ModelInfo(f"baseline:{kind}", "baseline", "metric_depth", "Apache-2.0", "computed")
        super().__init__(info, Preprocessing(size=1, multiple=1, resize_policy="square"))
        self.kind = kind

    @property
    def identity(self) -> str:
        """Which one it is: it has no weights that would tell."""
        return self.kind

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None, size: int | None) -> Tensor:
        """Return the interpolated points; there is no network that policy and size could be about."""
        maps = [INTERPOLATIONS[self.kind](one) for one in points.cpu().numpy()]
        return torch.from_numpy(np.stack(maps)).to(images.device)


class Aligned(PointCompletion):
    """A baseline that brings the map of a depth model to the points, and does no more."""

    def __init__(self, guide: DepthModel) -> None:
        name = guide.info.name
        info = ModelInfo(
            f"baseline:{ALIGN}" + ("" if name == GUIDE else f":{name}"),
            "baseline",
            "metric_depth",
            guide.info.licence,
            f"{name}, from {guide.info.source}",
            guide.info.notes,
        )
        super().__init__(info, guide.preprocessing)
        self.guide = guide

    @property
    def identity(self) -> list[object]:
        """The depth model's, whose numbers may mean one thing or another."""
        return [ALIGN, self.guide.info.quantity, self.guide.identity]

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None, size: int | None) -> Tensor:
        """Return the depth model's map, aligned by least squares."""
        relative = self.guide.estimate(images, policy=policy, size=size)
        return align_to_points(relative, points, quantity=self.guide.info.quantity)


class Guided(PointCompletion):
    """A completion network, and the depth model before it."""

    def __init__(self, network: CompletionModel, guide: DepthModel) -> None:
        info = network.info
        if guide.info.name != network.guide:
            info = replace(info, name=f"{info.name} behind {guide.info.name}")
        info = replace(info, notes=(*info.notes, *(note for note in guide.info.notes if note not in info.notes)))
        super().__init__(info, guide.preprocessing)
        self.network, self.guide = network, guide

    @property
    def identity(self) -> list[object]:
        """Those of both, and what the depth model's numbers mean."""
        network, guide = self.network, self.guide
        return [network.identity, network.preprocessing.to_dict(), guide.info.quantity, guide.identity]

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None, size: int | None) -> Tensor:
        """Return what the network makes of the depth model's map, aligned as it was in its training."""
        relative = self.guide.estimate(images, policy=policy, size=size)
        aligned = align_to_points(relative, points, quantity=self.guide.info.quantity, method=self.network.align)
        return self.network.complete(images, points, aligned)


class Completing(Estimator):
    """Gives depth that was completed from the points read with the images, in place of a network's map."""

    def __init__(self, model: PointCompletion, options: InferenceOptions) -> None:
        super().__init__(model, options)
        self.completion = model

    @torch.inference_mode()
    def estimate_batch(self, batch: Sequence[LoadedImage[Any, Any]]) -> list[Tensor | Exception]:
        """Return the completed depth of images of one size, whose extras have `points`, on the device."""

        def complete(part: Sequence[LoadedImage[Any, Any]]) -> list[Tensor]:
            images = torch.from_numpy(np.stack([loaded.image for loaded in part])).to(self.device)
            points = torch.from_numpy(np.stack([loaded.extra.points for loaded in part])).to(self.device)
            with autocast(self.device, self.precision):
                values = self.completion.complete(
                    images.permute(0, 3, 1, 2).float() / 255, points, policy=part[0].policy, size=self.options.size
                )
            return list(values.float())

        return by_halves(batch, complete)


def open_completion(model: str | Path | DepthModel, offline: bool = False) -> PointCompletion:
    """Return what completes depth: `baseline:nearest` and so on, a completion network, or a depth model before one.

    Args:
        model: as `evaluate` takes it: `baseline:` and one of `COMPLETION_BASELINES`, for `align` with a depth model
            after another colon; or what `load_model` takes.
        offline: never touch the network for a model.

    Raises:
        UsageError: no such baseline, or stored predictions, which were not made from these points.
        FileNotFoundError, DistillDepthError: no such model.
    """
    if isinstance(model, PointCompletion):
        return model
    if isinstance(model, StoredPredictions):
        raise UsageError("evaluate: stored maps were not completed from the points that are drawn; give a model")
    from distilldepth.models import load_model

    kind, colon, name = ("", "", "") if isinstance(model, DepthModel) else str(model).partition(":")
    if not colon or kind != "baseline":
        opened = model if isinstance(model, DepthModel) else load_model(model, offline=offline)
        if isinstance(opened, CompletionModel):
            return Guided(opened, _guide(opened.guide, offline)).eval()
        network = load_model(NETWORK, offline=offline)
        if not isinstance(network, CompletionModel):
            raise DistillDepthError(f"{NETWORK}: is no completion network, but {network.info.family}")
        return Guided(network, opened).eval()
    kind, _, guide = name.partition(":")
    if kind in INTERPOLATIONS and not guide:
        return Interpolated(kind).eval()
    if kind != ALIGN:
        hint = did_you_mean(kind, COMPLETION_BASELINES)
        raise UsageError(f"evaluate: a baseline of completion must be known, got {str(model)!r}{hint}")
    return Aligned(_guide(guide or GUIDE, offline)).eval()


def _guide(name: str, offline: bool) -> DepthModel:
    """The depth model of this name, which must do without points."""
    from distilldepth.models import load_model

    model = load_model(name, offline=offline)
    if model.takes_points:
        raise UsageError(f"evaluate: {name} completes depth itself, and cannot be the depth model before that")
    return model
