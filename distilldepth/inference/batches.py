"""Many images through one model: decoding runs beside it, batches are of one size, one bad file stops nothing."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from distilldepth.capacity import is_out_of_memory
from distilldepth.device import autocast
from distilldepth.errors import DistillDepthError, one_line
from distilldepth.inference.mirror import with_mirror
from distilldepth.models.base import DepthModel, DepthOutput
from distilldepth.models.preprocess import choose_policy

Item = TypeVar("Item")
Extra = TypeVar("Extra")

FAILURES = (DistillDepthError, OSError, ValueError, TypeError, MemoryError, RuntimeError)
"""What may be wrong with one item of many without ending the run."""

NO_RELIEF = 1e-3
"""Range of a map, as a share of its largest magnitude, up to which it is called constant."""

_BATCH_PIXELS = 16_000_000
"""Images of one batch have at most this many pixels together, so that eight photographs of 48 MP do not fill memory."""


@dataclass
class LoadedImage(Generic[Item, Extra]):
    """An item that was read."""

    item: Item
    """What was asked for."""
    image: np.ndarray
    """uint8 `(H, W, 3)`."""
    extra: Extra
    """What else was read with it."""
    policy: str | None
    """Resize policy to use; None for the model's own."""
    maps: dict[str, Tensor] = field(default_factory=dict)
    """What the model said of it besides its map, `(H, W)` each on the device: its `extra_maps`, once it ran."""


def load_batches(
    items: Iterable[Item],
    read: Callable[[Item], tuple[np.ndarray, Extra]],
    model: DepthModel,
    workers: ThreadPoolExecutor,
    on_failure: Callable[[Item, Exception], None],
    *,
    policy: str | None = None,
    size: int | None = None,
    batch_size: int = 8,
) -> Iterator[list[LoadedImage[Item, Extra]]]:
    """Yield what was read in groups of one image size, at most `batch_size` each, reading one batch ahead.

    Args:
        items: what to read, in order; groups come out in the order in which they fill.
        read: gives the image of an item, uint8 `(H, W, 3)`, and whatever else belongs to it; runs in `workers`.
        model: for its preprocessing.
        workers: where `read` runs.
        on_failure: told of every item that cannot be read.
        policy, size: resize policy and side; None for the model's own, see `choose_policy`.
        batch_size: how many images of one size to give at once.
    """
    waiting = iter(items)
    reading: deque[tuple[Item, Future[tuple[np.ndarray, Extra]]]] = deque()
    groups: dict[tuple[int, int], list[LoadedImage[Item, Extra]]] = {}

    def read_ahead() -> None:
        while len(reading) < max(2, batch_size):
            try:
                item = next(waiting)
            except StopIteration:
                return
            reading.append((item, workers.submit(read, item)))

    read_ahead()
    while reading:
        item, future = reading.popleft()
        read_ahead()
        try:
            image, extra = future.result()
            height, width = image.shape[:2]
            chosen = choose_policy(height, width, model.preprocessing, policy, size)
        except FAILURES as error:
            on_failure(item, error)
            continue
        if chosen != policy:
            warnings.warn(
                f"an image of {height} x {width} is too long for the model's resize policy; {chosen} is used for it",
                UserWarning,
                stacklevel=2,
            )
        group = groups.setdefault((height, width), [])
        group.append(LoadedImage(item, image, extra, chosen))
        if len(group) >= batch_size or (len(group) + 1) * height * width > _BATCH_PIXELS:
            yield groups.pop((height, width))
        elif sum(map(len, groups.values())) > 4 * batch_size or _pixels(groups) > 4 * _BATCH_PIXELS:
            # Many sizes: the group that has waited longest goes out unfilled rather than memory filling up.
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


def _pixels(groups: dict[tuple[int, int], list[LoadedImage[Item, Extra]]]) -> int:
    return sum(height * width * len(group) for (height, width), group in groups.items())


@torch.inference_mode()
def estimate_batch(
    model: DepthModel,
    batch: Sequence[LoadedImage[Item, Extra]],
    device: torch.device,
    *,
    precision: str = "auto",
    size: int | None = None,
    flip: str = "",
) -> list[Tensor | Exception]:
    """Return each image's map, float32 `(H, W)` on `device`, or what went wrong with it; see `by_halves`.

    What else the model says of an image is put into its `maps`; with the mean of a mirror image, what it says of the
    image as it is.

    Args:
        model: in evaluation mode.
        batch: images of one size.
        device: where the model is.
        precision: see `resolve_precision`.
        size: side in pixels; None for the model's own.
        flip: which mean with the mirror image, one of `mirror.FLIPS`; empty for none.
    """

    def estimate(part: Sequence[LoadedImage[Item, Extra]]) -> list[Tensor]:
        said: list[DepthOutput] = []

        def predict(images: Tensor) -> Tensor:
            with autocast(device, precision):
                said.append(model.estimate_output(images, policy=part[0].policy, size=size))
            return said[-1].values.float()

        images = torch.from_numpy(np.stack([loaded.image for loaded in part])).to(device)
        images = images.permute(0, 3, 1, 2).float().div_(255)
        values = with_mirror(predict, images, flip) if flip else predict(images)
        for index, loaded in enumerate(part):
            loaded.maps = {name: said[0].extras[name][index].float() for name in model.extra_maps}
        return list(values)

    return by_halves(batch, estimate)


def by_halves(
    batch: Sequence[LoadedImage[Item, Extra]], run: Callable[[Sequence[LoadedImage[Item, Extra]]], list[Tensor]]
) -> list[Tensor | Exception]:
    """Return what `run` makes of each image of a batch, or what went wrong with it.

    Where memory runs out, or anything else fails, the batch is tried again by halves, so that only the image at fault
    is lost.
    """
    try:
        return [*run(batch)]
    except FAILURES as error:
        if len(batch) == 1:
            if is_out_of_memory(error):
                height, width = batch[0].image.shape[:2]
                error = MemoryError(f"not enough memory for {height} x {width} pixels; try a smaller --size")
            return [error]
    half = len(batch) // 2
    return [result for part in (batch[:half], batch[half:]) for result in by_halves(part, run)]


def without_relief(maps: Tensor) -> Tensor:
    """Return which maps are constant: bool `(B,)` for maps `(B, H, W)`, whose range is then below `NO_RELIEF` of their
    largest magnitude. Pixels that are not finite are not looked at."""
    flat = maps.flatten(1).float()
    known = torch.isfinite(flat)
    low = torch.where(known, flat, torch.inf).amin(1)
    high = torch.where(known, flat, -torch.inf).amax(1)
    return ~(high - low > NO_RELIEF * torch.maximum(high.abs(), low.abs()))


def reason(error: BaseException, source: object = None) -> str:
    """Return what was wrong, in one line, without the name of the source that a listing prints before it."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None or str(error.filename) == str(source) else f"{error.filename}: "
        return f"{where}{error.strerror}"
    return one_line(error).removeprefix(f"{source}: ")
