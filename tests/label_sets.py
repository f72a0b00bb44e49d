"""Sets of labels for tests, made by the format alone: what `distilldepth label` writes, and what it never would."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.crops import crop_config
from distilldepth.images.batches import CropDataset, fingerprint, split_heldout
from distilldepth.images.crops import Cut, Regions
from distilldepth.images.sources import open_source
from distilldepth.teachers.labelling import label_regions
from distilldepth.teachers.pool import load_teachers
from distilldepth.teachers.shards import (
    HELDOUT,
    INDEX,
    LABELS,
    LabelledRegion,
    LabelSet,
    Shard,
    StoredTeacher,
    encode_sample,
    index_text,
    labels_text,
    sample_key,
    shard_name,
)  # fmt: skip
from distilldepth.teachers.spec import parse_teachers

Members = dict[str, bytes]


def photographs(folder: Path, count: int) -> Path:
    """Pictures with relief, each of a size of its own, so that no two regions are the same."""
    generator = np.random.default_rng(8)
    folder.mkdir(parents=True)
    for index in range(count):
        small = generator.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + index, 70)).save(folder / f"photo {index}.png")
    return folder


def write_shard(folder: Path, url: str, samples: list[tuple[str, Members]]) -> Shard:
    """Write one shard and return its line of the index."""
    path = folder / url
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples:
            for name, content in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return Shard(url, len(samples), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def made_up(
    folder: Path, counts: dict[str, int], *, per_shard: int = 4, heldout: int = 0, seed: int = 0, **changes: object
) -> LabelSet:
    """Write a set that nobody labelled: regions of 32 x 40 pixels, no two alike; `counts` are samples by teacher."""
    teachers = [
        StoredTeacher(name, name, 1.0, name, count, f"{place:064x}", "disparity", "MIT", "a test", "float32")
        for place, (name, count) in enumerate(counts.items(), start=1)
    ]
    crops = {
        "size": [32, 40], "patch_size": [32, 40], "patches": 1, "min_crop": 32, "max_crop": None,
        "min_crop_share": None, "patch_window": 560, "patch_share": 0.5, "flip": True,
    }  # fmt: skip
    settings = {"size": "32x40", "crop.min_crop": 32, "crop.patch_share": 0.5, "crop.patches": 1}
    labels = LabelSet(
        ["photos"], "9 images, 0123", sum(counts.values()), heldout, 1, 2, seed, crops, settings, teachers,
        "png", "png16", per_shard,
    )  # fmt: skip
    labels = dataclasses.replace(labels, **changes)
    write_set(folder, labels, lambda place, number: _made_up(teachers[place].name, place, number, labels))
    return labels


def _made_up(teacher: str, place: int, number: int, labels: LabelSet) -> LabelledRegion:
    generator = np.random.default_rng([place, number % 65_536])
    count, height, width = labels.windows
    image = generator.integers(0, 255, (*labels.size, 3), dtype=np.uint8)
    image[0, 0] = place, number % 256, number // 256 % 256
    boxes = np.tile(np.array([[4, 8, 24, 24]], np.float32), (count, 1))
    disparity = generator.random(labels.size).astype(np.float32)
    return LabelledRegion(
        abs(number), f"photo {number}", Cut(0, 0, 32, 40, False), image, boxes, disparity,
        generator.random((count, height, width)).astype(np.float32), False, teacher,
    )  # fmt: skip


def write_set(folder: Path, labels: LabelSet, sample: Callable[[int, int], LabelledRegion]) -> None:
    """Write all that a set has, from what each teacher (by place) says of each of its samples."""
    folder.mkdir(parents=True)
    shards = []
    for place, teacher in enumerate(labels.teachers):
        for shard in range(labels.shards(teacher)):
            first = shard * labels.samples_per_shard
            numbers = range(first, min(first + labels.samples_per_shard, teacher.samples))
            content = [(sample_key(n), encode_sample(sample(place, n), labels)) for n in numbers]
            shards.append(write_shard(folder, shard_name(teacher, shard), content))
        if labels.heldout:
            whole = labels.for_heldout()
            content = [
                (sample_key(n), encode_sample(_without_windows(sample(place, -1 - n)), whole))
                for n in range(labels.heldout)
            ]
            shards.append(write_shard(folder, shard_name(teacher, HELDOUT), content))
    (folder / INDEX).write_text(index_text(shards))
    (folder / LABELS).write_text(labels_text(labels))


def _without_windows(sample: LabelledRegion) -> LabelledRegion:
    return dataclasses.replace(sample, boxes=sample.boxes[:0], windows=sample.windows[:0])


def label_as_run(folder: Path, config: DistillConfig, *formats: str, views: int = 1, per_shard: int = 8) -> None:
    """Label what a run with this configuration sees in so many epochs, as it would: a set for each format of images."""
    specs = parse_teachers(config.teachers)
    source = open_source(config.images, size=config.scene_height_width, seed=config.seed)
    training, heldout = split_heldout(source, config.heldout)
    crops = crop_config(config)
    dataset = CropDataset(training, crops, config.seed)
    whole = CropDataset(heldout, crops.whole(), config.seed, shuffle=False)
    pool = load_teachers(specs, device=torch.device("cpu"), offline=True, has_depth=source.has_depth, seed=config.seed)
    group = config.batch_size * config.grad_accumulation
    ordinals: list[list[int]] = [[] for _ in specs]
    for ordinal in range(views * len(training)):
        ordinals[pool.teachers.index(pool.draw(ordinal // group))].append(ordinal)
    teachers = [
        StoredTeacher(
            t.name, spec.model, spec.weight, t.name, len(own), hashlib.sha256(t.name.encode()).hexdigest(),
            t.info.quantity, t.info.licence, t.info.source, "float32",
        )
        for spec, t, own in zip(specs, pool.teachers, ordinals, strict=True)
    ]  # fmt: skip
    settings = {"size": config.size} | {f"crop.{k}": v for k, v in dataclasses.asdict(config.crop).items()}
    labels = LabelSet(
        config.images, fingerprint(source), len(training), len(heldout), views, group, config.seed,
        {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(crops).items()}, settings, teachers,
        "png", "png16", per_shard,
    )  # fmt: skip

    @functools.cache
    def sample(place: int, number: int) -> LabelledRegion:
        ordinal = ordinals[place][number] if number >= 0 else -1 - number
        region = (dataset if number >= 0 else whole)[ordinal]
        batch = Regions.collate([region])
        label = label_regions(batch, pool.teachers[place])
        windows = np.empty((0, 1, 1), np.float32)
        if label.patch_disparity is not None:
            windows = torch.where(label.patch_valid, label.patch_disparity, torch.nan).numpy()
        return LabelledRegion(
            ordinal, region.name[0], region.cut[0], region.image.permute(1, 2, 0).numpy(), region.boxes.numpy(),
            torch.where(label.valid, label.disparity, torch.nan)[0].numpy(), windows, label.inverse_depth,
            pool.teachers[place].name,
        )  # fmt: skip

    for how in formats:
        write_set(folder / how, dataclasses.replace(labels, image_format=how), sample)
