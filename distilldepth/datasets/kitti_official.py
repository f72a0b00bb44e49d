"""KITTI's depth benchmark: the 1000 selected validation images, and the 500 test images whose truth is not public."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from distilldepth.datasets import kitti_eigen
from distilldepth.datasets.archive import Place, Root, Stored
from distilldepth.datasets.kitti_eigen import KITTI_CODEC
from distilldepth.datasets.samples import (
    Benchmark,
    FileReader,
    Found,
    Frame,
    Request,
    first_fit,
    locate,
    pair,
    read_photograph,
)
from distilldepth.datasets.splits import Row, Split, find_splits
from distilldepth.datasets.truth import Item, Truth
from distilldepth.errors import DistillDepthError

TEST_COUNT = 500
TEST_SPLIT = "kitti_official_test.txt"

_VALIDATION = "depth_selection/val_selection_cropped/image"
_TEST = "depth_selection/test_depth_prediction_anonymous/image"


def find_samples(request: Request) -> Found:
    """Find the validation images: those of a list, or all in their folder, which is the whole set.

    Raises:
        DistillDepthError: nothing is found.
    """
    if request.splits:
        return first_fit(request, _from_list)
    found = _glob(request.root, _VALIDATION)
    if found is None:
        raise request.no_list("; without a list, all of depth_selection/val_selection_cropped/image is taken")
    place, names = found
    samples = [
        Frame(
            f"{_VALIDATION}/{name.rpartition('/')[2]}",
            FileReader((place.file(name),), (place.file(_truth_path(name)),), KITTI_CODEC),
        )
        for name in names
    ]
    return Found(samples, notes=["no list: all files of val_selection_cropped/image"])


def submission_items(
    root: str | os.PathLike, *, split: str | os.PathLike | None = None, strict_count: bool = True
) -> list[Item]:
    """Find the test images, for which predictions can be submitted; only the benchmark's server has their truth.

    Args:
        root: folder or tar with `test_depth_prediction_anonymous/image`.
        split: list of the images, or a folder with `kitti_official_test.txt`; None to look into the root, and to take
            all files without one.
        strict_count: refuse another number of images than the benchmark's 500.

    Returns:
        The images, in order, with truth that is valid nowhere. Missing files raise when they are read.

    Raises:
        FileNotFoundError: no such folder or list.
        DistillDepthError: nothing is found, or another number.
    """
    opened = Root(root)
    files: dict[str, Stored] = {}
    splits = find_splits(opened, split, (TEST_SPLIT,))
    for listed in splits[:1]:
        found = locate(opened, listed.rows, lambda row: row.fields[0])
        if found is None:
            raise DistillDepthError(f"{opened}: none of the images that {listed.name} names is there")
        place, dropped = found
        for row in listed.rows:
            files[row.fields[0]] = place.file("/".join(row.fields[0].split("/")[dropped:]))
    if not splits and (globbed := _glob(opened, _TEST)) is not None:
        place, names = globbed
        files = {f"{_TEST}/{name.rpartition('/')[2]}": place.file(name) for name in names}
    if not files:
        raise DistillDepthError(f"{opened}: has no test images, looked for {_TEST}/0000000000.png and so on")
    if strict_count and len(files) != TEST_COUNT:
        raise DistillDepthError(f"{opened}: found {len(files)} test images, the benchmark has {TEST_COUNT}")
    return [Item("kitti-official-test", name, _ImageReader(file)) for name, file in files.items()]


@dataclass(frozen=True)
class _ImageReader:
    file: Stored

    def __call__(self) -> tuple[np.ndarray, Truth]:
        image = read_photograph(self.file)
        shape = image.shape[:2]
        return image, Truth(np.zeros(shape, np.float32), np.zeros(shape, bool), is_metric=True)


def _from_list(request: Request, split: Split) -> Found:
    return Found(pair(request, split, KITTI_CODEC, _row_truth))


def _row_truth(row: Row) -> str:
    return row.fields[1] if len(row.fields) > 1 and "/" in row.fields[1] else _truth_path(row.fields[0])


def _truth_path(image: str) -> str:
    folder, _, name = image.rpartition("/")
    parent = folder.rpartition("/")[0]
    return f"{parent}/groundtruth_depth/".lstrip("/") + name.replace("_sync_image_", "_sync_groundtruth_depth_")


def _glob(root: Root, folder: str) -> tuple[Place, list[str]] | None:
    """The images of a folder, wherever the root is inside the layout; None if there are none."""
    parts = folder.split("/")
    for dropped in range(len(parts)):
        inner = parts[dropped:]
        # `image` alone could be anything: only where the root is the folder above.
        if len(inner) > 1 or root.path.name == parts[-2]:
            found = root.glob("/".join([*inner, "*.png"]), nested=len(inner) > 1)
            if found is not None:
                return found
    return None


BENCHMARK = Benchmark(
    name="kitti-official",
    title="KITTI depth prediction benchmark, selected validation images",
    domain="outdoor",
    counts={"": 1000},
    splits=("kitti_official_valid.txt",),
    layouts=("depth_selection/val_selection_cropped/{image,groundtruth_depth}, folder or tar, list optional",),
    licence="CC-BY-NC-SA-3.0",
    source="https://www.cvlibs.net/datasets/kitti/eval_depth_all.php",
    find=find_samples,
    training=("kitti_official_train.txt",),
    find_training=kitti_eigen.find_samples,
)
