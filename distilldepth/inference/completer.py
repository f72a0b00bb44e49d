"""Depth completion in its three stages: what a model says, brought to the points, corrected by a network."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distilldepth.device import autocast
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.inference.batches import LoadedImage, by_halves
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models import load_model
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.digest import model_digest
from distilldepth.sparse.align import METHODS, align_to_points
from distilldepth.words import COMPLETION_MODEL

NETWORK = COMPLETION_MODEL
GUIDE = "distilldepth-mini"
"""The model that it was trained to correct."""
ALIGN = "local"
"""How maps are aligned where no network says how it wants them: over held-out procedural scenes with 2 % noise and 2 %
outliers the best of all at 10, 100 and 500 points, in RMSE and AbsRel (benchmarks/alignment.py)."""


class HasPoints(Protocol):
    """What was read with an image."""

    points: np.ndarray
    """float32 `(H, W)`, metres, 0 = none."""


@dataclass
class Completed:
    """What the stages give, each `(B, H, W)` float32."""

    depth: Tensor
    """Metres; the aligned map where there is no network."""
    aligned: Tensor
    """What the model says, as metres."""
    relative: Tensor
    """What the model says, in its own quantity."""


class Completer(Estimator):
    """A model that looks at the photograph, a way to bring its map to points, and a network that corrects it.

    As an `Estimator` it runs on items that are read with `points`, see `HasPoints`; its maps are metric depth.

    Args:
        model: a completion network, which names its own stage 1, or any depth model, which then is stage 1 of
            `completion-mini`; a model, or what `load_model` takes.
        options: how they are run; None for the models' own ways. Size and policy are those of stage 1.
        align: a method of `align_to_points`; None for the one that the network was trained with, `local` without one.
        align_only: whether the network is left out.
        offline: never touch the network for a model.

    Raises:
        UsageError: no such method.
        FileNotFoundError, DistillDepthError: as `load_model`, or the completion network is not installed.

    >>> picture, points = torch.rand(1, 3, 48, 64), torch.zeros(1, 48, 64)
    >>> points[0, 8, 9], points[0, 30, 40] = 2.0, 3.5
    >>> completer = Completer("distilldepth-mini", InferenceOptions(size=64), align_only=True)
    >>> completer.complete_batch(picture, points).depth.shape
    torch.Size([1, 48, 64])
    """

    def __init__(
        self,
        model: str | PathLike | DepthModel,
        options: InferenceOptions | None = None,
        *,
        align: str | None = None,
        align_only: bool = False,
        offline: bool = False,
    ) -> None:
        if align is not None and align not in METHODS:
            raise UsageError(f"Completer: align must be known, got {align!r}{did_you_mean(align, METHODS)}")
        settled = (options or InferenceOptions()).settle(model)
        guide, network = _open(model, align_only, offline)
        super().__init__(guide, settled)
        self.network: DepthModel | None = None if network is None else network.to(self.device)
        """Stage 3; None for none. Stage 1 is `model`."""
        self.align: str = align or str(getattr(network, "align", ALIGN))
        """Stage 2."""
        self._network_was_training = False

    def __enter__(self) -> Completer:
        super().__enter__()
        if self.network is not None:
            self._network_was_training = self.network.training
            self.network.eval()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.network is not None:
            self.network.train(self._network_was_training)

    @property
    def info(self) -> ModelInfo:
        """Who completes: the network with the model that it corrects, or that model with the alignment."""
        guide = self.model.info
        if self.network is None:
            name = f"{guide.name} aligned ({self.align})"
            return ModelInfo(name, guide.family, "metric_depth", guide.licence, guide.source, guide.notes)
        own = self.network.info
        name = own.name if guide.name == getattr(self.network, "guide", "") else f"{own.name} on {guide.name}"
        licence = " and ".join(dict.fromkeys((own.licence, guide.licence)))
        notes = tuple(dict.fromkeys((*own.notes, *guide.notes)))
        return ModelInfo(name, own.family, "metric_depth", licence, own.source, notes)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the maps besides the options: both models and the alignment."""
        parts = [model_digest(model) for model in (self.model, self.network) if model is not None]
        return hashlib.sha256(" ".join((*parts, self.align)).encode()).hexdigest()

    @torch.inference_mode()
    def complete_batch(
        self, images: Tensor, sparse: Tensor, *, policy: str | None = None, size: int | None = None
    ) -> Completed:
        """Complete images of one size.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1], on the device.
            sparse: `(B, H, W)`, metres, 0 = none, on the device.
            policy: resize policy of stage 1; None for the options', or its own.
            size: side in pixels of stage 1; None for the options', or its own.

        Returns:
            The maps of all stages, on the device.
        """
        with autocast(self.device, self.precision):
            relative = self.model.estimate(
                images, policy=policy or self.options.resize_policy, size=size or self.options.size
            ).float()
        sparse = sparse.float()
        aligned = align_to_points(relative, sparse, quantity=self.model.info.quantity, method=self.align)
        if self.network is None:
            return Completed(aligned, aligned, relative)
        with autocast(self.device, self.precision):
            depth: Tensor = self.network.complete(images, sparse, aligned)  # type: ignore[operator]
        return Completed(depth.float(), aligned, relative)

    def estimate_batch(self, batch: Sequence[LoadedImage[Any, Any]]) -> list[Tensor | Exception]:
        """Return the completed depth of each image, or what went wrong with it; where memory runs out, by halves."""

        def complete(part: Sequence[LoadedImage[Any, Any]]) -> list[Tensor]:
            images = torch.from_numpy(np.stack([loaded.image for loaded in part])).to(self.device)
            points = torch.from_numpy(np.stack([loaded.extra.points for loaded in part])).to(self.device)
            completed = self.complete_batch(images.permute(0, 3, 1, 2).float() / 255, points, policy=part[0].policy)
            return list(completed.depth)

        return by_halves(batch, complete)


def _open(model: str | PathLike | DepthModel, align_only: bool, offline: bool) -> tuple[DepthModel, DepthModel | None]:
    """Stage 1, and stage 3 if there is one."""
    if align_only and model == NETWORK:
        # The points alone correct the map then, and a network that is not installed is not missed.
        model = GUIDE
    if model == NETWORK:
        loaded = _network(offline)
    else:
        loaded = model if isinstance(model, DepthModel) else load_model(model, offline=offline)
    if loaded.takes_points:
        guide = load_model(getattr(loaded, "guide", GUIDE), offline=offline)
        if guide.takes_points:
            raise DistillDepthError(
                f"complete: {loaded.info.name} names {guide.info.name} as its guide, which completes"
            )
        return guide, None if align_only else loaded
    return loaded, None if align_only else _network(offline)


def _network(offline: bool) -> DepthModel:
    with contextlib.suppress(UsageError):  # A name without weights.
        return load_model(NETWORK, offline=offline)
    raise DistillDepthError(
        f"complete: the completion network '{NETWORK}' is not installed; name a run of --preset completion with "
        "--model, or add --align-only"
    )
