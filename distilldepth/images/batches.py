"""Batches as a pure function of (seed, step): a resumed run sees what it would have seen."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from distilldepth.errors import DistillDepthError, first_line
from distilldepth.images.crops import CropConfig, Regions, make_crop
from distilldepth.images.sources import ImageSource, Sample, Samples, load_or_replace
from distilldepth.sparse.corrupt import draw_training_points


class SourceView:
    """Some images of a source, in a given order."""

    def __init__(self, source: Samples, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[int(self.indices[index])]


def split_heldout(source: ImageSource, heldout: int, *, by_name: bool = True) -> tuple[SourceView, SourceView]:
    """Return training images and held-out images, a fifth of the source at most.

    Of files those are held out whose names have the smallest digests, so that the choice hardly changes when others
    come or go; of scenes, or without `by_name`, the last ones.
    """
    count = len(source)
    kept = count - min(heldout, count // 5)
    if source.names is None or not by_name:
        return SourceView(source, range(kept)), SourceView(source, range(kept, count))
    digests = [hashlib.sha256(os.fsencode(name)).digest() for name in source.names]
    order = sorted(range(count), key=digests.__getitem__)
    return (
        SourceView(source, np.array(sorted(order[count - kept :]), dtype=np.int64)),
        SourceView(source, np.array(sorted(order[: count - kept]), dtype=np.int64)),
    )


def fingerprint(source: ImageSource) -> str:
    """Return what tells one collection of images from another: how many there are, and a digest of their names."""
    digest = hashlib.sha256("\0".join(source.names or ()).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(source)} images, {digest[:16]}"


class CropDataset(Dataset):
    """Crop number `ordinal` of the endless, reshuffled sequence of a source's images.

    Without `depth` true depth is left out where it is known, since cutting it costs as much as reading the image, and
    without `right` the second view of a pair. With `points` sparse points are drawn from true depth, which needs it.
    """

    def __init__(
        self,
        source: SourceView,
        config: CropConfig,
        seed: int,
        *,
        shuffle: bool = True,
        depth: bool = True,
        right: bool = True,
        points: bool = False,
    ) -> None:
        self.source, self.config, self.seed, self.shuffle = source, config, seed, shuffle
        self.points = points
        self._left_out = [key for key, wanted in (("depth", depth), ("right", right)) if not wanted]
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ordinal: int) -> Regions:
        epoch, position = divmod(ordinal, len(self.source))
        if self.shuffle:
            order = self._order  # Once: threads of other epochs may change it.
            if order is None or order[0] != epoch:
                order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.source)))
                self._order = order
            position = int(order[1][position])
        sample, errors = load_or_replace(self.source, position)
        if any(key in sample for key in self._left_out):
            sample = sample.copy()
            for key in self._left_out:
                sample.pop(key, None)  # type: ignore[misc]
        region = make_crop(sample, self.config, np.random.default_rng([self.seed, 2, ordinal]))
        if self.points and region.depth is not None:
            rng = np.random.default_rng([self.seed, 5, ordinal])
            drawn = draw_training_points(region.depth.numpy(), region.image.permute(1, 2, 0).numpy(), rng)
            region.sparse = torch.from_numpy(drawn)
        region.unreadable, region.errors = [len(errors)], ["; ".join(str(error) for error in errors[:3])]
        return region


class StepBatches(Sampler):
    """The ordinals of each batch from step `start` on, for one of `processes` processes."""

    def __init__(self, start: int, stop: int, batch_size: int, process: int = 0, processes: int = 1) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.processes + self.process) * self.batch_size
            yield list(range(first, first + self.batch_size))


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a closed terminal reach every process; the main one finishes its step, and then ends the others.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextlib.contextmanager
def loading(
    dataset: CropDataset, batches: Sampler[list[int]], workers: int, *, pin: bool
) -> Iterator[Iterator[Regions]]:
    """Give the batches, decoded in worker processes; whatever ends the block or Python, they end with it."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=Regions.collate,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )
    batches_of: Any = iter(loader)  # Which has no public way to end its workers.

    def end() -> None:
        if workers:
            batches_of._shutdown_workers()
            for process in batches_of._workers:
                if process.is_alive():
                    process.kill()

    # The workers leave SIGTERM to the main process, and Python, which ends its processes with it, would wait for ever.
    atexit.register(end)
    try:
        yield batches_of
    finally:
        atexit.unregister(end)
        end()


def next_batch(loader: Iterator[Regions], command: str, again: str = "") -> Regions:
    """Return the next batch; what a decoding process fails with is one line here too, that of `command`.

    Args:
        loader: see `loading`.
        command: for the message.
        again: how to go on where a process ended, the end of its message.

    Raises:
        DistillDepthError: too many images cannot be read, or a process ended.
    """
    try:
        return next(loader)
    except DistillDepthError as error:
        # A worker's error arrives with its whole trace as the message.
        raise DistillDepthError(str(error).rpartition(f"{DistillDepthError.__name__}: ")[2].strip()) from error
    except (EOFError, ConnectionError) as error:
        # A queue whose other end is gone, before torch finds out that a process is missing.
        raise process_ended(error, command, again) from error


def is_ended_process(error: RuntimeError) -> bool:
    """Whether an error is torch's word that a process which decodes ended; it comes wherever the program is then."""
    return str(error).startswith("DataLoader worker")


def process_ended(error: Exception, command: str, again: str = "") -> DistillDepthError:
    """Return the one line about a process that decodes and was killed; `again` says how to go on."""
    return DistillDepthError(
        f"{command}: a process that decodes images ended ({first_line(error)}); if memory was short, use "
        f"fewer --workers or a smaller --batch-size{again and f'; {again}'}"
    )
