"""The maps that an evaluation saves: their paths, their formats and the index beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from distilldepth.datasets.truth import Dataset
from distilldepth.errors import did_you_mean
from distilldepth.files import write_atomically
from distilldepth.formats.options import Picture
from distilldepth.formats.table import FORMATS, STORED, UNCERTAINTY
from distilldepth.images.decode import IMAGE_SUFFIXES
from distilldepth.models.base import ModelInfo

INDEX = "predictions.json"
"""Beside saved maps: which model made them, what their numbers mean and how they are stored."""


def prediction_path(folder: Path, dataset: str, name: str, form: str) -> Path:
    """Return where the map of a sample is saved: `folder/dataset/` and the sample's name with the format's suffix.

    Raises:
        ValueError: unknown format.
    """
    if form not in STORED:
        raise ValueError(f"save_prediction: form must be known, got {form!r}{did_you_mean(form, STORED)}")
    return folder / name_inside(dataset) / (without_suffix(name_inside(name)) + FORMATS[form].suffix)


def uncertainty_path(path: Path, form: str) -> Path | None:
    """Return where the uncertainty of a map lies, for the path and the format of the map; None if it is not kept."""
    second = UNCERTAINTY.get(form)
    return None if second is None else path.with_name(path.stem + FORMATS[second].ending)


def check_distinct(datasets: Sequence[Dataset], form: str, *, uncertainty: bool = False) -> None:
    """See that every sample has a file of its own, and its uncertainty too where that is kept.

    Raises:
        ValueError: two samples would be saved to one file.
    """
    seen: dict[Path, str] = {}
    for dataset in datasets:
        for item in dataset.items:
            path = prediction_path(Path(), dataset.name, item.name, form)
            second = uncertainty_path(path, form) if uncertainty else None
            for each in filter(None, (path, second)):
                if each in seen:
                    raise ValueError(
                        f"save_prediction: samples must have different names without suffix, got {seen[each]} and "
                        f"{item.name} in {dataset.name}, which would both be saved as {each}; rename one of them"
                    )
                seen[each] = item.name


def save_prediction(
    folder: str | Path,
    dataset: str,
    name: str,
    values: np.ndarray,
    quantity: str,
    *,
    form: str = "npy",
    log_variance: np.ndarray | None = None,
) -> Path:
    """Write one predicted map and return its path.

    Args:
        folder: the folder of predictions.
        dataset, name: of the sample; the map goes to `folder/dataset/name` with the format's suffix.
        values: `(H, W)`, any float dtype, in `quantity`.
        quantity: `disparity`, `depth` or `metric_depth`.
        form: `npy` (float32, exact), `png16` (see `write_depth_png`) or `kitti` (uint16 = metres x 256, 0 unknown).
        log_variance: as values, what the model says of its own uncertainty, or None; it is kept beside the map, as
            `name_uncertainty`, in all formats but `kitti`.

    Raises:
        ValueError: not a map, unknown format, or `kitti` for a map without metres.
        OSError: the file cannot be written.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"save_prediction: values must be (H, W) and not empty, got shape {tuple(values.shape)}")
    path = prediction_path(Path(folder), dataset, name, form)
    FORMATS[form].write(path, Picture(values, quantity))
    second = uncertainty_path(path, form)
    if log_variance is not None and second is not None:
        FORMATS[UNCERTAINTY[form]].write(second, Picture(log_variance, quantity))
    return path


def write_index(folder: Path, info: ModelInfo, form: str, *, uncertainty: str | None = None) -> None:
    """Write `predictions.json`, from which `StoredPredictions` learns what the maps of the folder are.

    `uncertainty`: what the maps beside them are, `log_variance`; None for none, or whatever somebody put there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = {"model": info.name, "licence": info.licence, "quantity": info.quantity, "format": form}
    index |= {} if uncertainty is None else {"uncertainty": uncertainty}
    write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")


def name_inside(name: str) -> str:
    """Return the name as a path inside its folder: `../a/b.png`, as in a manifest, becomes `a/b.png`."""
    path = PurePosixPath(name.replace("\\", "/"))
    return "/".join(part for part in path.parts if part not in ("/", ".", "..")) or "unnamed"


def without_suffix(name: str) -> str:
    """Return the name without the suffix of an image; other dots belong to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name
