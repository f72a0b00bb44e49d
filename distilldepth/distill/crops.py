"""How a run's configuration cuts its regions: training crops, and held-out images whole."""

from __future__ import annotations

from collections.abc import Iterator

from distilldepth.distill.config import DistillConfig
from distilldepth.images.batches import CropDataset, SourceView
from distilldepth.images.crops import CropConfig, Regions


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
        rotate_deg=crop.rotate_deg,
        kb_crop=crop.kb_crop,
    )


def whole_batches(source: SourceView, config: DistillConfig) -> Iterator[Regions]:
    """Yield held-out images, each once, whole, in order."""
    dataset = CropDataset(source, crop_config(config).whole(), config.seed, shuffle=False, points=config.points.draw)
    for first in range(0, len(source), config.batch_size):
        yield Regions.collate([dataset[i] for i in range(first, min(first + config.batch_size, len(source)))])
