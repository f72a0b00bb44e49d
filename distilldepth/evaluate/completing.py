"""What completes depth from points when that is scored: a completion network behind a depth model, or a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.errors import UsageError, did_you_mean
from distilldepth.evaluate.options import EvaluateOptions
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.inference.batches import LoadedImage, by_halves
from distilldepth.inference.completer import GUIDE, Completer
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing
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


class PointCompletion(DepthModel):
    """Gives metric depth for images with points; `complete` stands in place of `estimate`."""

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None) -> Tensor:
        """Return depth `(B, H, W)`, metres, for images `(B, 3, H, W)` in [0, 1] and points `(B, H, W)`, 0 = none.

        The precision and the size at which a network sees the images are those of the options it was opened with.
        """
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

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None) -> Tensor:
        """Return the interpolated points; there is no network that a resize policy could be about."""
        maps = [INTERPOLATIONS[self.kind](one) for one in points.cpu().numpy()]
        return torch.from_numpy(np.stack(maps)).to(images.device)


class Staged(PointCompletion):
    """A depth model, its map brought to the points, and a completion network if there is one: `Completer`.

    Args:
        completer: the stages at work.
        name: what it is called; empty for what the stages are called.
    """

    def __init__(self, completer: Completer, name: str = "") -> None:
        info = replace(completer.info, name=name) if name else completer.info
        super().__init__(info, completer.model.preprocessing)
        self.completer, self.guide, self.network = completer, completer.model, completer.network

    @property
    def identity(self) -> str:
        """All that decides the numbers of the stages."""
        return self.completer.digest

    def complete(self, images: Tensor, points: Tensor, *, policy: str | None) -> Tensor:
        """Return what the last stage gives."""
        return self.completer.complete_batch(images, points, policy=policy).depth


class Completing(Estimator):
    """Gives depth that was completed from the points read with the images, in place of a network's map."""

    def __init__(self, model: PointCompletion, options: InferenceOptions) -> None:
        super().__init__(model, options)
        self.completion = model
        self._modes: list[tuple[torch.nn.Module, bool]] = []

    def __enter__(self) -> Completing:
        # Each stage has a mode of its own, and what stands before them all is made here.
        self._modes = [(module, module.training) for module in self.completion.modules()]
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for module, training in self._modes:
            module.training = training

    @torch.inference_mode()
    def estimate_batch(self, batch: Sequence[LoadedImage[Any, Any]]) -> list[Tensor | Exception]:
        """Return the completed depth of images of one size, whose extras have `points`, on the device."""

        def complete(part: Sequence[LoadedImage[Any, Any]]) -> list[Tensor]:
            images = torch.from_numpy(np.stack([loaded.image for loaded in part])).to(self.device)
            points = torch.from_numpy(np.stack([loaded.extra.points for loaded in part])).to(self.device)
            images = images.permute(0, 3, 1, 2).float() / 255
            return list(self.completion.complete(images, points, policy=part[0].policy).float())

        return by_halves(batch, complete)


def open_completion(model: str | Path | DepthModel, options: EvaluateOptions) -> PointCompletion:
    """Return what completes depth: `baseline:nearest` and so on, a completion network, or a depth model before one.

    Args:
        model: as `evaluate` takes it: `baseline:` and one of `COMPLETION_BASELINES`, for `align` with a depth model
            after another colon; or what `Completer` takes.
        options: how its networks are run.

    Raises:
        UsageError: no such baseline, or stored predictions, which were not made from these points.
        FileNotFoundError, DistillDepthError: no such model.
    """
    if isinstance(model, PointCompletion):
        return model
    if isinstance(model, StoredPredictions):
        raise UsageError("evaluate: stored maps were not completed from the points that are drawn; give a model")
    word, colon, name = ("", "", "") if isinstance(model, DepthModel) else str(model).partition(":")
    if not colon or word != "baseline":
        return Staged(Completer(model, options, offline=options.offline))
    kind, colon, guide = name.partition(":")
    if kind in INTERPOLATIONS and not colon:
        return Interpolated(kind)
    if kind != ALIGN:
        hint = did_you_mean(kind, COMPLETION_BASELINES)
        raise UsageError(f"evaluate: a baseline of completion must be known, got {str(model)!r}{hint}")
    completer = Completer(guide or GUIDE, options, align="least-squares", align_only=True, offline=options.offline)
    return Staged(completer, str(model))
