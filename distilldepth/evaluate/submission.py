"""The 500 maps that the KITTI depth prediction benchmark's server takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from distilldepth.datasets.kitti_official import TEST_COUNT
from distilldepth.datasets.truth import Item
from distilldepth.documents import Record
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.options import SubmissionOptions
from distilldepth.files import expand_user
from distilldepth.formats.kitti import check_metres, write_kitti_png
from distilldepth.images.decode import open_image
from distilldepth.inference.batches import FAILURES, reason
from distilldepth.inference.estimator import Estimator
from distilldepth.models.base import DepthModel


@dataclass
class MissingMap(Record):
    """An image without a map."""

    name: str
    error: str


@dataclass
class Submission(Record):
    """What was written."""

    folder: str
    model: str
    written: int = 0
    expected: int = TEST_COUNT
    failures: list[MissingMap] = field(default_factory=list)
    """The server takes none or all."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the server will take it."""
        return self.written == self.expected

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**super().to_dict(), "complete": self.complete}


def write_kitti_submission(
    model: DepthModel,
    images: list[Item],
    folder: str | Path,
    *,
    options: SubmissionOptions | None = None,
    **changes: Any,
) -> Submission:
    """Predict the test images of KITTI and write them as the server wants them.

    One 16-bit PNG per image, metres x 256, flat in the folder, with the image's file name (`0000000000.png`) and size.

    Args:
        model: a model that predicts metres. Scale and shift cannot be fitted: nobody has the truth of these images.
        images: the test images; their truth is not looked at.
        folder: where the maps go; zip its content for the server.
        options: how; None for the usual way.
        changes: options given by name, for example `overwrite=True`; see `SubmissionOptions`.

    Raises:
        ValueError: the model has no metres, two images have one name, or maps are there already.
        DistillDepthError: a file of a map's name is something else, such as the image itself.
        TypeError: no such option.
    """
    options = (options or SubmissionOptions()).changed(changes, "write_kitti_submission")
    check_metres(model.info.quantity)
    folder = expand_user(folder)
    targets = _find_targets(images, folder, options.overwrite)
    estimator = Estimator(model, options)
    submission = Submission(str(folder), model.info.name, expected=options.expected)
    advance = options.start(len(images)) if options.start is not None else lambda count: None

    def fail(item: Item, error: BaseException) -> None:
        submission.failures.append(MissingMap(item.name, reason(error)))
        advance(1)

    began = time.perf_counter()
    with estimator:
        for batch in estimator.run(images, lambda item: item.read(), fail):
            for loaded, values in batch:
                try:
                    write_kitti_png(targets[loaded.item.name], values.cpu().numpy(), model.info.quantity)
                except FAILURES as error:
                    fail(loaded.item, error)
                else:
                    submission.written += 1
                    advance(1)
    submission.seconds = round(time.perf_counter() - began, 3)
    return submission


def _find_targets(images: list[Item], folder: Path, overwrite: bool) -> dict[str, Path]:
    """The file of each image's map, by the image's name; nothing but a map is replaced."""
    targets = {item.name: folder / f"{PurePosixPath(item.name).stem}.png" for item in images}
    if len(set(targets.values())) < len(images):
        raise ValueError("write_kitti_submission: images must have different file names; give the test images only")
    there = [path for path in targets.values() if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(f"{there[0]}: this{more} exists already; add --overwrite")
    for path in there:
        _check_replaceable(path)
    return targets


def _check_replaceable(path: Path) -> None:
    """Raise DistillDepthError unless a file is a depth map of the kind that is written here."""
    try:
        with path.open("rb") as file, open_image(file, str(path)) as image:
            is_map = image.format == "PNG" and image.mode in ("I", "I;16")
    except (OSError, DistillDepthError):
        is_map = False
    if not is_map:
        raise DistillDepthError(f"{path}: is no 16-bit depth map and is not replaced; choose another folder")
