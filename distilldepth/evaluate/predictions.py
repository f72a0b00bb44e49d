"""Predicted maps on disk: written by an evaluation, or made by any other program and scored here."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from distilldepth.datasets.rgbd import one_channel, read_grey
from distilldepth.datasets.truth import Dataset, Item
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.record.saved_maps import INDEX, name_inside, without_suffix
from distilldepth.files import expand_user, file_digest
from distilldepth.formats.kitti import KITTI_SCALE
from distilldepth.formats.npy import read_npy
from distilldepth.formats.png import read_depth_png
from distilldepth.formats.table import FORMATS, STORED, UNCERTAINTY
from distilldepth.images.decode import open_file, open_image
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.pretrained import read_json
from distilldepth.words import LOG_VARIANCE, QUANTITIES

SUFFIXES = (".npy", ".png")
EXTRAS = ("uncertainty", "std")
"""Further maps beside a prediction: larger = less certain, without a unit; and a standard deviation in metres."""
_PROBED = 16
"""PNGs that are asked what they hold, where there is no index; coloured pictures may lie among them."""


class StoredPredictions(DepthModel):
    """Maps from a folder in place of a network: has a quantity as every model, and reads where others compute.

    The map of the sample `scene/rgb_0001.png` of the dataset `nyu` is the first of these that exists, in the folder
    `nyu/` of the predictions or in the predictions themselves, as `.npy` and then as `.png`:

    | file | written by |
    |---|---|
    | `scene/rgb_0001` | `--save-predictions`, and most programs |
    | `scene/pred_rgb_0001`, `scene/rgb_0001_pred`, `scene/rgb_0001_depth` | programs that add a word |
    | `scene/pred_0001` | Marigold, GenPercept and Lotus: `pred_` in place of `rgb_`, or `_pred` in place of `_rgb` |
    | `scene_rgb_0001` | programs that flatten the tree |
    | `rgb_0001` (and the other forms) | only if no other sample of the dataset has this file name |

    `.npy`: `(h, w)`, or with sides of length 1 around it, any real dtype. `.png`: 16-bit (or 8-bit) grey. Both may
    repeat the map in three or four equal channels. A PNG written here says itself what its numbers mean. Another one is
    stored / `depth_scale`; in a PNG 0 is unknown if the quantity is metric depth, and a value like any other if not.
    Without `depth_scale` an `.npy` is taken to be in metres, PNGs of KITTI's datasets are read as metres x 256, and
    those of relative quantities as they are, since their scale is fitted anyway.

    Beside a map, `..._uncertainty.npy` (larger = less certain) and `..._std.npy` (metres) are read as well, and scored
    as uncertainty; so is `..._uncertainty.png` of `predict --uncertainty`, which says itself that it is a log-variance.
    An index says that of all in its folder.
    """

    def __init__(
        self,
        folder: str | Path,
        quantity: str | None = None,
        *,
        depth_scale: float | None = None,
    ) -> None:
        """Open a folder of predictions.

        Args:
            folder: where the maps are, or the folder of a run that kept them.
            quantity: `disparity`, `depth` or `metric_depth`; None for what `predictions.json` in the folder says, or
                the texts of the PNGs.
            depth_scale: stored units per metre (or per unit) of maps that do not say it themselves.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no quantity, or another one than the folder says; a scale that is not positive.
        """
        folder = expand_user(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of predictions")
        if depth_scale is not None and not (0 < depth_scale < float("inf")):
            raise ValueError(f"StoredPredictions: depth_scale must be positive, got {depth_scale}")
        if not (folder / INDEX).is_file() and (folder / "predictions" / INDEX).is_file():
            # The folder of a run that kept its maps.
            folder = folder / "predictions"
        index, says = _describe(folder)
        known = index.get("quantity")
        if quantity is not None and known is not None and quantity != known:
            raise ValueError(f"{says} says that the numbers are {known}, and --quantity says {quantity}")
        quantity = quantity or known
        if quantity is None:
            raise ValueError(
                f"{folder}: does not say what its numbers mean; add --quantity disparity, depth or metric-depth"
            )
        info = ModelInfo(
            name=f"predictions:{index.get('model', folder.resolve().name)}",
            family="predictions",
            quantity=quantity,
            licence=index.get("licence", "unknown"),
            source=str(folder),
        )
        super().__init__(info, Preprocessing(size=1, multiple=1, resize_policy="square"))
        self.folder = folder
        self.depth_scale = depth_scale
        if depth_scale is not None and index.get("format") in STORED:
            raise ValueError(f"{says} says how its maps are stored; leave --depth-scale out")
        self._is_kitti = index.get("format") == "kitti"
        self._says_variance = index.get("uncertainty") == LOG_VARIANCE

    def forward(self, images: Any, *, features: bool = False) -> DepthOutput:
        """Refuse: there is no network."""
        raise TypeError("StoredPredictions: has no network; use find and read")

    def find(self, datasets: Sequence[Dataset]) -> tuple[dict[tuple[str, int], Path], dict[tuple[str, int], str]]:
        """Return the file of every sample, and for samples without one what was looked for.

        Samples are named by dataset and place in it.

        Nothing is read: a look into the folders, before the work begins.

        Raises:
            DistillDepthError: there is not a single one, or one file would serve two samples.
        """
        listing = _Listing()
        found: dict[tuple[str, int], Path] = {}
        missing: dict[tuple[str, int], str] = {}
        owners: dict[Path, Item] = {}
        for dataset in datasets:
            files = Counter(PurePosixPath(name_inside(item.name)).name for item in dataset.items)
            for index, item in enumerate(dataset.items):
                alone = files[PurePosixPath(name_inside(item.name)).name] == 1
                candidates = _candidates(self.folder, dataset.name, item.name, alone)
                path = next((candidate for candidate in candidates if listing.has(candidate)), None)
                if path is None:
                    wanted = f"{without_suffix(name_inside(item.name))}.npy"
                    missing[dataset.name, index] = (
                        f"no prediction; looked for {wanted} and other names in {self.folder}"
                    )
                    continue
                owner = owners.setdefault(path, item)
                if (owner.dataset, owner.name) != (item.dataset, item.name):
                    raise DistillDepthError(
                        f"{path}: would be the prediction of {owner.dataset}/{owner.name} and of "
                        f"{item.dataset}/{item.name}; put the maps of each dataset into a folder of its name"
                    )
                found[dataset.name, index] = path
        if missing and not found:
            item = next(item for dataset in datasets for item in dataset.items)
            tried = [str(path.relative_to(self.folder)) for path in _candidates(self.folder, item.dataset, item.name)]
            some = ", ".join(dict.fromkeys(name for name in tried if name.endswith(".npy")))
            raise DistillDepthError(
                f"{self.folder}: no prediction for any sample; for {item.name} looked for {some} and the same as .png"
            )
        return found, missing

    def read(self, path: Path, kind: str = "") -> np.ndarray:
        """Return the map of a file, float32 `(h, w)` in the quantity, NaN where unknown.

        Args:
            path: an `.npy` or `.png` file.
            kind: the kind of dataset it belongs to, which may say how a PNG is stored.

        Raises:
            FileNotFoundError: no such file.
            DistillDepthError: it cannot be read, is not one map, or does not say its scale.
        """
        values = self._read_npy(path) if path.suffix.lower() == ".npy" else self._read_png(path, kind)
        if values.ndim != 2 or not values.size:
            raise DistillDepthError(f"{path}: must be one map (h, w), got shape {values.shape}")
        return np.ascontiguousarray(values, dtype=np.float32)

    def read_extras(self, path: Path) -> dict[str, np.ndarray]:
        """Return the maps of uncertainty that lie beside a prediction, by their names in `EXTRAS`, or `log_variance`.

        Raises:
            DistillDepthError: one cannot be read, or is not one map.
        """
        files = _extra_files(path)
        found = {
            name: read_depth_png(file)[0] if name == LOG_VARIANCE else self.read(file) for name, file in files.items()
        }
        if self._says_variance and "uncertainty" in found:
            found[LOG_VARIANCE] = found.pop("uncertainty")
        return found

    def digest(self, path: Path) -> str:
        """Return a digest of the files that `read` and `read_extras` read for a prediction; empty if it is gone."""
        try:
            return "-".join(file_digest(file)[:16] for file in (path, *_extra_files(path).values()))
        except OSError:
            return ""

    def _read_npy(self, path: Path) -> np.ndarray:
        with open_file(path) as (file, name):
            values = read_npy(file, name)
        shape = tuple(side for side in values.shape if side != 1)
        # (1, h, w) and (h, w, 1) are maps too; a map of one row is already two-dimensional.
        values = values if values.ndim == 2 else one_channel(values.reshape(shape), str(path))
        return values if self.depth_scale is None else values / self.depth_scale

    def _read_png(self, path: Path, kind: str) -> np.ndarray:
        with open_file(path) as (file, name), open_image(file, name) as image:
            stored = read_grey(image, name).astype(np.float64)
            texts = dict(getattr(image, "text", {}))
        if {"quantity", "scale", "offset"} <= texts.keys():
            if texts["quantity"] != self.info.quantity:
                raise DistillDepthError(
                    f"{path}: says that its numbers are {texts['quantity']}, not {self.info.quantity}"
                )
            return np.where(stored > 0, stored * float(texts["scale"]) + float(texts["offset"]), np.nan)
        metric = self.info.quantity == "metric_depth"
        scale = self.depth_scale
        if scale is None and (self._is_kitti or kind.startswith("kitti")):
            scale = KITTI_SCALE
        if scale is None and metric:
            raise DistillDepthError(
                f"{path}: does not say its scale; add --depth-scale, for example 1000 for millimetres or 256 for KITTI"
            )
        values = stored / (scale or 1)
        return np.where(stored > 0, values, np.nan) if metric else values


def _extra_files(path: Path) -> dict[str, Path]:
    """The maps of uncertainty that lie beside a prediction."""
    files = {name: path.with_name(f"{path.stem}_{name}.npy") for name in EXTRAS}
    found = {name: file for name, file in files.items() if file.exists()}
    picture = path.with_name(path.stem + FORMATS[UNCERTAINTY["png16"]].ending)
    if "uncertainty" not in found and picture.is_file() and _texts(picture).get("quantity") == LOG_VARIANCE:
        found[LOG_VARIANCE] = picture
    return found


def _texts(path: Path) -> dict[str, Any]:
    """The texts of a PNG; none if it cannot be read."""
    try:
        with open_file(path) as (file, name), open_image(file, name) as image:
            return dict(getattr(image, "text", {}))
    except (DistillDepthError, OSError):
        return {}


class _Listing:
    """The files of the folders that were asked about, each folder listed once: a look-up per candidate is slow."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                self._names[path.parent] = frozenset(entry.name for entry in os.scandir(path.parent))
            except (FileNotFoundError, NotADirectoryError):
                self._names[path.parent] = frozenset()
        return path.name in self._names[path.parent]


def _candidates(folder: Path, dataset: str, name: str, alone: bool = False) -> Iterator[Path]:
    """Where the map of a sample may be, best first; `alone`: no other sample has its file name."""
    place = PurePosixPath(without_suffix(name_inside(name)))
    stems = [place.name, f"pred_{place.name}"]
    if place.name.startswith("rgb_"):
        stems += [f"pred_{place.name[4:]}", f"depth_{place.name[4:]}"]
    if place.name.endswith("_rgb"):
        stems += [f"{place.name[:-4]}_pred", f"{place.name[:-4]}_depth"]
    stems += [f"{place.name}_pred", f"{place.name}_depth"]
    relative = [place.with_name(stem) for stem in stems]
    relative.append(PurePosixPath("_".join(place.parts)))
    if alone:
        relative += [PurePosixPath(stem) for stem in stems]
    for base, path, suffix in itertools.product((folder / name_inside(dataset), folder), relative, SUFFIXES):
        yield base / path.with_name(path.name + suffix)


def _describe(folder: Path) -> tuple[dict[str, Any], Path]:
    """What the folder says of its maps, and the file that says so: the index, or the texts of a PNG by `predict`."""
    path = folder / INDEX
    if path.is_file():
        return read_json(path), path
    for path in itertools.islice(folder.rglob("*.png"), _PROBED):
        texts = _texts(path)
        if texts.get("quantity") in QUANTITIES:
            return texts, path
    return {}, folder
