"""One model over many images: where and how it runs is said once, and every job that runs one goes through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import groupby
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from distilldepth.capacity import check_memory, network_bytes
from distilldepth.device import resolve_device
from distilldepth.errors import UsageError, did_you_mean
from distilldepth.inference.batches import Extra, Item, LoadedImage, estimate_batch, load_batches
from distilldepth.machine import resolve_precision
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.folded import fold_norms
from distilldepth.models.preprocess import target_size

P = ParamSpec("P")
T = TypeVar("T")
Options = TypeVar("Options", bound="InferenceOptions")


@dataclass(frozen=True)
class InferenceOptions:
    """How a model is run; the same words in every command."""

    resize_policy: str | None = None
    """How the network sees an image; None for the model's own. The model's own policy is replaced by `upper-bound`,
    with a warning, for an image so long and thin that it would grow beyond reason."""
    size: int | None = None
    """Target side in pixels; None for the model's own."""
    batch_size: int = 8
    """Images of equal size run at once; halved where memory runs out."""
    device: str | torch.device = "auto"
    """See `resolve_device`; a model that is given stays where it is under `auto`."""
    precision: str = "auto"
    """See `resolve_precision`."""

    def changed(self: Options, changes: Mapping[str, Any], function: str) -> Options:
        """Return the same with those options replaced that a function was given by name.

        Raises:
            TypeError: there is no such option.
        """
        known = [option.name for option in fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"{function}: has no option {name!r}{did_you_mean(name, known)}")
        return replace(self, **changes)

    def settle(self: Options, model: object) -> Options:
        """Return the same with a device and a precision of this machine in place of their words.

        Before a model is loaded, a wrong word is found without the seconds that loading takes.

        Args:
            model: a `DepthModel`, or what is still to be loaded.

        Raises:
            TypeError, UsageError: as `resolve_device` and `resolve_precision`.
        """
        if isinstance(model, DepthModel) and self.device == "auto":
            device = next(model.buffers()).device
        else:
            device = resolve_device(self.device)
        return replace(self, device=device, precision=resolve_precision(self.precision, device))


def _without_flip(item: Any) -> str:
    return ""


class Estimator:
    """A model at work: on its device, in evaluation mode as long as the `with` statement lasts.

    What runs inside the statement is the model as it was at its beginning, with batch normalisation folded into the
    convolutions, see `fold_norms`; `model` itself, which digests and records are made of, is not folded.

    Args:
        model: moved to the device; in the mode that it was in again at the end.
        options: how it is run; None for the model's own ways.

    Raises:
        UsageError: the model completes points, and predicts nothing without them; or it sees two views.

    >>> from distilldepth import load_model
    >>> pictures = {"a.jpg": np.zeros((30, 40, 3), np.uint8), "b.jpg": np.ones((30, 40, 3), np.uint8)}
    >>> with Estimator(load_model("distilldepth-mini"), InferenceOptions(size=64)) as estimator:
    ...     for batch in estimator.run(pictures, lambda name: (pictures[name], None), on_failure=print):
    ...         print([(loaded.item, tuple(values.shape)) for loaded, values in batch])
    [('a.jpg', (30, 40)), ('b.jpg', (30, 40))]
    """

    views: ClassVar[int] = 1
    """Of a scene that items are read with."""

    def __init__(self, model: DepthModel, options: InferenceOptions | None = None) -> None:
        model.refuse_without_points()
        if self.views == 2:
            model.refuse_two_views()
        else:
            model.refuse_one_view()
        self.options = (options or InferenceOptions()).settle(model)
        self.device = resolve_device(self.options.device)
        self.precision = self.options.precision
        """What is really computed in: `float32`, `bfloat16` or `float16`."""
        self.model = model.to(self.device)
        self.flip_of: Callable[[Any], str] = _without_flip
        """Says of an item which mean with its mirror image is wanted, one of `mirror.FLIPS`; empty for none."""
        self.model_seconds = 0.0
        """What the model alone took so far."""
        self._network = self.model
        self._was_training = model.training
        self._workers: ThreadPoolExecutor | None = None

    @property
    def info(self) -> ModelInfo:
        """Who predicts, and what comes out."""
        return self.model.info

    def __enter__(self) -> Estimator:
        self._was_training = self.model.training
        self.model.eval()
        reduced = self.precision != "float32"
        self._network = fold_norms(self.model, getattr(torch, self.precision) if reduced else None)
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool().shutdown(wait=True, cancel_futures=True)
        self._workers = None
        self._network = self.model
        self.model.train(self._was_training)

    def run(
        self,
        items: Iterable[Item],
        read: Callable[[Item], tuple[np.ndarray, Extra]],
        on_failure: Callable[[Item, Exception], None],
    ) -> Iterator[list[tuple[LoadedImage[Item, Extra], Tensor]]]:
        """Yield what was read with its map, in batches of one image size, while the next images are read.

        Args:
            items: what to run on, anything; batches come out in the order in which they fill.
            read: gives the image of an item, uint8 `(H, W, 3)`, and whatever else belongs to it; runs beside the model.
            on_failure: told of every item that cannot be read or that the model cannot take; the others go on.

        Returns:
            Batches that are not empty. Maps are float32 `(H, W)` of the image's size, on the device.
        """
        options = self.options
        batches = load_batches(
            items,
            read,
            self.model,
            self._pool(),
            on_failure,
            policy=options.resize_policy,
            size=options.size,
            batch_size=options.batch_size,
        )
        for batch in batches:
            done = []
            for loaded, values in zip(batch, self.estimate(batch), strict=True):
                if isinstance(values, Exception):
                    on_failure(loaded.item, values)
                else:
                    done.append((loaded, values))
            if done:
                yield done

    def estimate(self, images: Sequence[LoadedImage[Item, Extra]]) -> list[Tensor | Exception]:
        """Return the map of each of some images of one size, or what went wrong with it; see `estimate_batch`."""
        began = time.perf_counter()
        maps: list[Tensor | Exception] = []
        for _, alike in groupby(images, lambda loaded: self.flip_of(loaded.item)):
            group = list(alike)
            for first in range(0, len(group), self.options.batch_size):
                maps += self.estimate_batch(group[first : first + self.options.batch_size])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.model_seconds += time.perf_counter() - began
        return maps

    def estimate_batch(self, batch: Sequence[LoadedImage[Item, Extra]]) -> list[Tensor | Exception]:
        """Return what `estimate` does for one batch, whose items want the same mean with their mirror images.

        Overridden where maps come from somewhere else than a network of one view.
        """
        flip = self.flip_of(batch[0].item)
        return estimate_batch(
            self._network, batch, self.device, precision=self.precision, size=self.options.size, flip=flip
        )

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function beside the model, in the threads that read; what has not begun at the end is dropped."""
        return self._pool().submit(function, *args, **kwargs)

    def check_size(self) -> None:
        """Raise UsageError if one image at the size and by the policy that are asked for is beyond the memory."""
        options, preprocessing = self.options, self.model.preprocessing
        side = options.size or preprocessing.size
        height, width = target_size(side, side, preprocessing, policy=options.resize_policy, size=options.size)
        check_memory(
            network_bytes(height * width),
            f"{height} x {width} pixels in {self.model.info.name}",
            "use a smaller --size",
            device=self.device,
            error=UsageError,
        )

    def _pool(self) -> ThreadPoolExecutor:
        if self._workers is None:
            raise RuntimeError("Estimator: must be used in a with statement: with Estimator(model) as estimator: ...")
        return self._workers
