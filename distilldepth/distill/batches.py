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

from distilldepth.distill.config import DistillConfig
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.images.crops import CropConfig, Regions, make_crop
from distilldepth.images.sources import ImageSource, Sample, Samples, load_or_replace

_WHOLE = 1 << 30
"""A crop bound no photograph reaches: the largest region there is."""


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


def crop_config(config: DistillConfig) -> CropConfig:
    """Return how training regions are cut."""
    crop = config.crop
    wants_patches = config.loss.local_global > 0
    return CropConfig(
        size=config.height_width,
        patch_size=config.patch_height_width,
        patches=crop.patches if wants_patches else 0,
        min_crop=crop.min_crop,
        min_crop_share=crop.min_crop_share or None,
        patch_window=crop.patch_window,
        patch_share=crop.patch_share or None,
        flip=crop.flip,
    )


def whole_config(config: DistillConfig) -> CropConfig:
    """Return a crop of the largest region, without chance: what held-out images are judged on."""
    return CropConfig(size=config.height_width, patch_size=config.height_width, patches=0, min_crop=_WHOLE, flip=False)


class CropDataset(Dataset):
    """Crop number `ordinal` of the endless, reshuffled sequence of a source's images."""

    def __init__(self, source: SourceView, config: CropConfig, seed: int, *, shuffle: bool = True) -> None:
        self.source, self.config, self.seed, self.shuffle = source, config, seed, shuffle
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, ordinal: int) -> Regions:
        epoch, position = divmod(ordinal, len(self.source))
        if self.shuffle:
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.source)))
            position = int(self._order[1][position])
        sample, errors = load_or_replace(self.source, position)
        region = make_crop(sample, self.config, np.random.default_rng([self.seed, 2, ordinal]))
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
def loading(dataset: CropDataset, batches: StepBatches, workers: int, *, pin: bool) -> Iterator[Iterator[Regions]]:
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


def next_batch(loader: Iterator[Regions]) -> Regions:
    """Return the next batch; what a decoding process fails with is one line here too.

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
        raise process_ended(error) from error


def is_ended_process(error: RuntimeError) -> bool:
    """Whether an error is torch's word that a process which decodes ended; it comes wherever the program is then."""
    return str(error).startswith("DataLoader worker")


def process_ended(error: Exception) -> DistillDepthError:
    """Return the one line about a process that decodes and was killed."""
    return DistillDepthError(
        f"distill: a process that decodes images ended ({first_line(error)}); if memory was short, use "
        "fewer --workers or a smaller --batch-size, and continue with --resume auto"
    )


def whole_batches(source: SourceView, config: DistillConfig) -> Iterator[Regions]:
    """Yield held-out images, each once, whole, in order."""
    dataset = CropDataset(source, whole_config(config), config.seed, shuffle=False)
    for first in range(0, len(source), config.batch_size):
        yield Regions.collate([dataset[i] for i in range(first, min(first + config.batch_size, len(source)))])
