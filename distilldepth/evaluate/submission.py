"""The 500 maps that the KITTI depth prediction benchmark's server takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from distilldepth.datasets.truth import Item
from distilldepth.device import autocast, resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.files import expand_user
from distilldepth.formats.kitti import check_metres, write_kitti_png
from distilldepth.images.decode import open_image
from distilldepth.inference.batches import FAILURES, estimate_batch, load_batches, reason
from distilldepth.models.base import DepthModel

COUNT = 500
"""Test images of the benchmark."""


@dataclass
class Submission:
    """What was written."""

    folder: str
    model: str
    written: int = 0
    expected: int = COUNT
    failures: list[dict[str, str]] = field(default_factory=list)
    """Images without a map: `name`, `error`. The server takes none or all."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the server will take it."""
        return self.written == self.expected

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**vars(self), "complete": self.complete}


def write_kitti_submission(
    model: DepthModel,
    images: list[Item],
    folder: str | Path,
    *,
    overwrite: bool = False,
    expected: int = COUNT,
    resize_policy: str | None = None,
    size: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: str = "auto",
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> Submission:
    """Predict the test images of KITTI and write them as the server wants them.

    One 16-bit PNG per image, metres x 256, flat in the folder, with the image's file name (`0000000000.png`) and size.

    Args:
        model: a model that predicts metres. Scale and shift cannot be fitted: nobody has the truth of these images.
        images: the test images; their truth is not looked at.
        folder: where the maps go; zip its content for the server.
        overwrite: replace maps that are there.
        expected: how many images the server wants.
        resize_policy, size, batch_size, device, precision: as in `evaluate`.
        start: called with the number of images; the function it returns is told how many more are done.

    Raises:
        ValueError: the model has no metres, two images have one name, or maps are there already.
        DistillDepthError: a file of a map's name is something else, such as the image itself.
    """
    check_metres(model.info.quantity)
    folder = expand_user(folder)
    targets = {item.name: folder / f"{PurePosixPath(item.name).stem}.png" for item in images}
    if len(set(targets.values())) < len(images):
        raise ValueError("write_kitti_submission: images must have different file names; give the test images only")
    there = [path for path in targets.values() if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(f"{there[0]}: this{more} exists already; add --overwrite")
    for path in there:
        _check_replaceable(path)
    place = resolve_device(device)
    autocast(place, precision)
    model.to(place).eval()
    submission = Submission(str(folder), model.info.name, expected=expected)
    advance = start(len(images)) if start is not None else lambda count: None

    def fail(item: Item, error: BaseException) -> None:
        submission.failures.append({"name": item.name, "error": reason(error)})
        advance(1)

    began = time.perf_counter()
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io") as workers:
        batches = load_batches(
            images,
            lambda item: item.read(),
            model,
            workers,
            fail,
            policy=resize_policy,
            size=size,
            batch_size=batch_size,
        )
        for batch in batches:
            maps = estimate_batch(model, batch, place, precision=precision, size=size)
            for loaded, values in zip(batch, maps, strict=True):
                try:
                    if isinstance(values, Exception):
                        raise values
                    write_kitti_png(targets[loaded.item.name], values.cpu().numpy(), model.info.quantity)
                except FAILURES as error:
                    fail(loaded.item, error)
                else:
                    submission.written += 1
                    advance(1)
    submission.seconds = round(time.perf_counter() - began, 3)
    return submission


def _check_replaceable(path: Path) -> None:
    """Raise DistillDepthError unless a file is a depth map of the kind that is written here."""
    try:
        with path.open("rb") as file, open_image(file, str(path)) as image:
            is_map = image.format == "PNG" and image.mode in ("I", "I;16")
    except (OSError, DistillDepthError):
        is_map = False
    if not is_map:
        raise DistillDepthError(f"{path}: is no 16-bit depth map and is not replaced; choose another folder")
