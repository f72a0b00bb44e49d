"""Images with measured depth: manifests, lists and plain `images/` + `depth/` folders, for scoring a model."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypedDict

import numpy as np
from PIL import Image

from distilldepth.datasets.rgbd_lists import (
    ASSOCIATIONS,
    LIST_SUFFIXES,
    TUM_SCALE,
    Pair,
    read_pairs,
    read_timed_pairs,
    warn_of_unread,
)
from distilldepth.documents import parse_json, read_json, read_text
from distilldepth.errors import DistillDepthError, UsageError, refuse_url, shown
from distilldepth.files import expand_user
from distilldepth.formats.npy import read_npy
from distilldepth.images.decode import list_images, natural_key, open_file, open_image, read_image, read_oriented
from distilldepth.images.orientation import QUARTERS, belongs_to_stored_pixels, turn, turn_intrinsics

KINDS = ("depth", "stereo_disparity")
"""What a target holds: `depth` in metres, or `stereo_disparity` in pixels, which stands for inverse depth."""

IMAGE_FOLDERS = ("images", "rgb")
"""Names of the folder of photographs beside `depth/`; the first that exists is read."""

DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".pfm")
"""Suffixes of depth files in a `depth/` folder."""


DEPTH_SCALE = 1000.0
"""Stored units per metre of whole numbers in files that do not say it: millimetres."""

_MANIFEST_BYTES = 1 << 30
_LEAST, _MOST = 1e-6, 1e9
"""Bounds of scales, focal lengths and baselines, far beyond any camera."""
_PROBES = 16
_LISTS = ", ".join(LIST_SUFFIXES)
_FOLDER_CONTENTS = "images/ or rgb/ and depth/, .jsonl files, associations.txt, or rgb.txt and depth.txt"


class RGBDSample(TypedDict, total=False):
    """One image with its ground truth. The last four are there only if the manifest knows them."""

    image: np.ndarray
    """uint8 `(H, W, 3)`, RGB, upright; what belongs to its pixels is turned with it."""
    target: np.ndarray
    """float32 `(h, w)`, the depth file's own size: metres or pixels, see `kind`. 0 where it is not valid."""
    valid: np.ndarray
    """bool `(h, w)`; True = ground truth. Stored 0, negative, non-finite and the manifest's `invalid` never are."""
    kind: str
    """One of `KINDS`."""
    scale: float
    """Stored units per metre, or per pixel, that were applied."""
    name: str
    dataset: str
    intrinsics: np.ndarray
    """float32 `(3, 3)`, pixels of the image."""
    right: np.ndarray
    """uint8 `(H, W, 3)`, the second view of a rectified stereo pair."""
    focal_px: float
    baseline_m: float


@dataclass(frozen=True)
class RGBDEntry:
    """Where one sample's files are and how its depth is stored; nothing is read yet."""

    name: str
    dataset: str
    image: Path
    depth: Path
    kind: str = "depth"
    scale: float | None = 1.0
    """value = stored / scale; None: what the source says."""
    invalid: tuple[float, ...] = ()
    """Stored values that are not ground truth."""
    right: Path | None = None
    intrinsics: tuple[float, float, float, float, float] | None = None
    """fx, fy, cx, cy, skew in pixels."""
    focal_px: float | None = None
    baseline_m: float | None = None

    @property
    def focal(self) -> float | None:
        """Focal length in pixels, from `intrinsics` where it is not said by itself."""
        return self.focal_px or (self.intrinsics[0] if self.intrinsics else None)


@dataclass(frozen=True)
class ManifestViews:
    """The photographs of one line of a manifest, whether or not it has ground truth."""

    image: Path
    right: Path | None = None
    focal_px: float | None = None
    baseline_m: float | None = None


class RGBDSource:
    """Samples of one or several datasets, each read when it is asked for.

    `source[i]` raises `DistillDepthError` or `FileNotFoundError` if a file of that sample cannot be read; the others
    can still be.
    """

    def __init__(
        self,
        entries: list[RGBDEntry],
        description: str,
        *,
        skipped: int = 0,
        depth_scale: float | None = None,
        usual: float = DEPTH_SCALE,
    ):
        self.entries = entries
        self.description = description
        self.skipped = skipped
        """How many lines of the manifests have no ground truth."""
        self.depth_scale = depth_scale
        """Stored units per metre where neither the file nor a manifest says it; None: see `usual`."""
        self.usual = usual
        """Then so many for whole numbers, metres for floating point, and 8 bits are refused."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def datasets(self) -> dict[str, list[int]]:
        """The indices of each dataset's samples, in order."""
        indices: dict[str, list[int]] = {}
        for index, entry in enumerate(self.entries):
            indices.setdefault(entry.dataset, []).append(index)
        return indices

    def __getitem__(self, index: int) -> RGBDSample:
        return self.read(index)

    def read(self, index: int, *, right: bool = True) -> RGBDSample:
        """Return a sample; without its right view if that is not wanted, which then may be missing.

        Raises:
            DistillDepthError, FileNotFoundError: a file cannot be read.
        """
        entry = self.entries[index]
        stored, scale = read_depth(entry.depth), entry.scale
        if scale is None and stored.dtype == np.uint8 and self.depth_scale is None:
            raise DistillDepthError(
                f"{entry.depth}: has 8 bits per pixel, so it is a picture of depth and not a measurement; "
                "if it is one, give --depth-scale, stored units per metre, or a manifest with `scale`"
            )
        if scale is None:
            scale = self.depth_scale or (self.usual if stored.dtype.kind in "ui" else 1.0)
        valid = np.isfinite(stored)
        for value in entry.invalid:
            valid &= stored != value
        with np.errstate(over="ignore", invalid="ignore"):
            target = np.where(valid, stored.astype(np.float64) / scale, 0).astype(np.float32)
        # Zero and below are no distance; neither is a value that overflows or vanishes in float32.
        valid &= np.isfinite(target) & (target > 0)
        target[~valid] = 0
        image, orientation = read_oriented(entry.image)
        if not belongs_to_stored_pixels(target.shape, image.shape[:2], orientation):
            orientation = 1
        sample: RGBDSample = {
            "image": image,
            "target": np.ascontiguousarray(turn(target, orientation)),
            "valid": np.ascontiguousarray(turn(valid, orientation)),
            "kind": entry.kind,
            "scale": scale,
            "name": entry.name,
            "dataset": entry.dataset,
        }
        if right and entry.right is not None:
            sample["right"] = read_image(entry.right)
        if entry.intrinsics is not None:
            fx, fy, cx, cy, skew = entry.intrinsics
            stored_size = image.shape[1::-1] if orientation in QUARTERS else image.shape[:2]
            matrix = turn_intrinsics(np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]]), orientation, stored_size)
            sample["intrinsics"] = matrix.astype(np.float32)
        if entry.focal_px is not None:
            sample["focal_px"] = entry.focal_px
        if entry.baseline_m is not None:
            sample["baseline_m"] = entry.baseline_m
        return sample


def open_rgbd(
    path: str | os.PathLike, *, root: str | os.PathLike | None = None, depth_scale: float | None = None
) -> RGBDSource:
    """Open images with ground truth.

    | path | datasets |
    |---|---|
    | `set.jsonl` | one, named after the file: a JSON object per line, see below |
    | `set.json` | one, named after the file: `{"files": [...]}` as Metric3D's annotations, see below |
    | a folder with `.jsonl` files | one for each file |
    | a folder of TUM RGB-D: `associations.txt`, or `rgb.txt` and `depth.txt` | one, named after the folder |
    | a folder with `images/` or `rgb/`, and `depth/` | one, named after the folder; paired by path without suffix |
    | a list `.txt`, `.csv`, `.tsv`, `.lst`: image and depth on each line | one, named after the file |

    Lists and TUM RGB-D's files are read as `rgbd_lists` says; their names are relative to `root`, or to the list's own
    folder, and may repeat that folder's name (DenseDepth's `data/nyu2_train.csv`).

    A photograph whose EXIF data turn it is read upright. Its depth and intrinsics are taken to be like the stored
    pixels and turned with it, unless the depth has the shape of the upright photograph and not of the stored one; see
    `orientation.belongs_to_stored_pixels`.

    Keys of a line: `image` and `depth` (paths; a line whose `depth` is null is skipped and counted), and optionally
    `id`, `kind` (one of `KINDS`), `scale` (value = stored / scale, 1 by default), `invalid` (a stored value or a list),
    `right`, `intrinsics` (`fx`, `fy`, `cx`, `cy`, `skew`, or a 3x3 matrix; signs of the focal lengths are
    dropped), `focal_px` and `baseline_m`. Other keys are ignored.

    Keys of a `files` entry: `rgb` and `depth` (paths; null depth as above), and optionally `depth_scale` (metres =
    stored / depth_scale, 1 by default) and `cam_in` (fx, fy, cx, cy in pixels).

    Args:
        path: one of the above.
        root: folder that the paths in manifests are relative to; None for the manifest's own.
        depth_scale: stored units per metre where nothing else says it: in lists and folders, and lines of manifests
            without `scale`. None: for whole numbers 1000 (millimetres), 5000 for TUM RGB-D, 1 in manifests; floating
            point is metres.
            Floating point files hold metres.

    Raises:
        FileNotFoundError: the path or root does not exist.
        DistillDepthError: a line is not what it should be (its number is named), or there is no ground truth at all.
        ValueError: `depth_scale` is not positive.
    """
    if depth_scale is not None and not (depth_scale > 0 and math.isfinite(depth_scale)):
        raise UsageError(f"open_rgbd: depth_scale must be positive (units per metre), got {depth_scale}")
    path = expand_user(path)
    root = None if root is None else expand_user(root)
    for needed in (path, root):
        if needed is not None and not needed.exists():
            raise FileNotFoundError(f"{needed}: no such file or folder")
    if path.is_dir():
        manifests = sorted(path.glob("*.jsonl"), key=natural_key)
        if not manifests:
            return _open_folder(path, root, depth_scale)
    elif path.suffix.lower() in (".jsonl", ".json"):
        manifests = [path]
    elif path.suffix.lower() in LIST_SUFFIXES:
        return _from_pairs(*read_pairs(path), path, path.stem, root, depth_scale)
    else:
        raise DistillDepthError(
            f"{path}: is not an RGB-D set; give a .jsonl manifest, a .json with `files`, a list ({_LISTS}) with an "
            f"image and its depth on each line, or a folder with {_FOLDER_CONTENTS}"
        )
    entries, skipped = [], 0
    for manifest in manifests:
        read_lines = _read_annotations if manifest.suffix.lower() == ".json" else _read_manifest
        read, without = read_lines(manifest, root or manifest.parent, 1.0 if depth_scale is None else None)
        entries += read
        skipped += without
    if not entries:
        why = f"all {skipped} lines have depth null" if skipped else "it is empty"
        raise DistillDepthError(f"{path}: no sample with ground truth; {why}")
    description = f"{path} ({len(entries)} samples with ground truth"
    return RGBDSource(
        entries, description + (f", {skipped} without)" if skipped else ")"), skipped=skipped, depth_scale=depth_scale
    )


def read_views(path: str | os.PathLike) -> list[ManifestViews]:
    """Return the photographs that a manifest names, with the right view and the camera where a line says them.

    Args:
        path: `set.jsonl`, see `open_rgbd`; lines need an `image`, and their depth is not looked at.

    Raises:
        DistillDepthError: a line is not what it should be (its number is named), or there is none.
    """
    path = Path(path)
    found = []
    for number, fields in _lines(path):
        try:
            # What is said of depth is not read, and may be missing.
            entry = _parse_line({**fields, "depth": fields.get("image")}, path.stem, path.parent, None)
        except (ValueError, TypeError) as error:
            raise DistillDepthError(f"{path}:{number}: {error}") from error
        found.append(ManifestViews(entry.image, entry.right, entry.focal, entry.baseline_m))
    if not found:
        raise DistillDepthError(f"{path}: names no image; a manifest has one JSON object per line")
    return found


def read_depth(path: str | os.PathLike) -> np.ndarray:
    """Read the values of a depth file as they are stored: no scaling, nothing made invalid.

    Returns:
        `(h, w)`, in the file's own type: 8-, 16- or 32-bit grey of an image, or any real type of an `.npy` file.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it cannot be read, or is not one map.
    """
    with open_file(path) as (file, name):
        return decode_depth(file, name)


def decode_depth(file: BinaryIO, name: str) -> np.ndarray:
    """Decode a depth file that is open or in memory; `name` says whether it is `.npy` or an image. Else `read_depth`.

    Raises:
        DistillDepthError: it cannot be read, or is not one map.
    """
    if name.lower().endswith(".npy"):
        values = read_npy(file, name)
    else:
        with open_image(file, name) as image:
            values = read_grey(image, name)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise DistillDepthError(f"{name}: must hold one array of numbers")
    values = one_channel(values, name)
    if values.ndim != 2 or not values.size:
        raise DistillDepthError(f"{name}: must hold one map of shape (H, W), got {values.shape}")
    return values


def read_grey(image: Image.Image, name: str) -> np.ndarray:
    """Return the stored values of an image, opened and not loaded, that is one map, maybe in several equal channels.

    Returns:
        `(h, w)`, in the image's own type.

    Raises:
        DistillDepthError: a coloured picture, or more than 8 bits in each of several channels, which cannot be read.
    """
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.array(image)
    if any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise DistillDepthError(
            f"{name}: has several channels of 16 bits, of which only 8 can be read; store one grey channel"
        )
    if image.mode not in ("RGB", "RGBA", "LA", "P", "PA"):
        raise DistillDepthError(f"{name}: depth must be one grey channel, got image mode {image.mode}")
    return one_channel(np.array(image.convert("RGBA" if image.mode != "RGB" else "RGB")), name)


def one_channel(values: np.ndarray, name: str) -> np.ndarray:
    """Return a map that is stored as 1, 3 or 4 equal channels, first or last, as `(h, w)`; anything else as it is.

    A fourth channel may also be the same everywhere: opaque.

    Raises:
        DistillDepthError: channels that differ.
    """
    if values.ndim != 3:
        return values
    axis = next((axis for count in ((1,), (3, 4)) for axis in (2, 0) if values.shape[axis] in count), None)
    if axis is None:
        return values
    first, *others = np.moveaxis(values, axis, 0)
    is_opaque = len(others) == 3 and bool((others[2] == others[2].flat[0]).all()) if values.size else False
    for channel in others[:2] if is_opaque else others:
        if not np.array_equal(first, channel, equal_nan=values.dtype.kind == "f"):
            raise DistillDepthError(
                f"{name}: has {values.shape[axis]} channels that differ, so it is a coloured picture and not depth; "
                "give the file with the numbers"
            )
    return first


def _read_manifest(path: Path, root: Path, scale: float | None) -> tuple[list[RGBDEntry], int]:
    """The lines with ground truth, and how many have none."""
    entries: list[RGBDEntry] = []
    skipped, keys = 0, set[str]()
    for number, fields in _lines(path):
        try:
            keys.update(fields)
            if fields.get("depth") is None and "depth" in fields:
                skipped += 1
            else:
                entries.append(_parse_line(fields, path.stem, root, scale))
        except (ValueError, TypeError) as error:
            raise DistillDepthError(f"{path}:{number}: {error}") from error
    warn_of_unread(path, keys, "keys", read=("scale", "invalid"))
    return entries, skipped


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not empty."""
    text = read_text(path, remedy="a manifest has one JSON object per line", limit=_MANIFEST_BYTES)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = parse_json(line, f"{path}:{number}")
        if not isinstance(fields, dict):
            raise DistillDepthError(f"{path}:{number}: must be a JSON object")
        yield number, fields


def _read_annotations(path: Path, root: Path, scale: float | None) -> tuple[list[RGBDEntry], int]:
    """The entries of a `files` list with ground truth, and how many have none."""
    files = read_json(path, limit=_MANIFEST_BYTES).get("files")
    if not isinstance(files, list):
        raise DistillDepthError(f'{path}: must be {{"files": [{{"rgb": ..., "depth": ...}}, ...]}}')
    entries, skipped = [], 0
    for number, fields in enumerate(files):
        try:
            if not isinstance(fields, dict):
                raise ValueError("must be a JSON object")
            if fields.get("depth") is None and "depth" in fields:
                skipped += 1
                continue
            line = {"image": fields.get("rgb"), "depth": fields.get("depth"), "scale": fields.get("depth_scale")}
            camera = fields.get("cam_in")
            if camera is not None:
                if not isinstance(camera, list) or len(camera) != 4:
                    raise ValueError(f"`cam_in` must be [fx, fy, cx, cy], got {camera!r}")
                line["intrinsics"] = dict(zip(("fx", "fy", "cx", "cy"), camera, strict=True))
            entries.append(_parse_line(line, path.stem, root, scale))
        except (ValueError, TypeError) as error:
            named = str(error).replace("`image`", "`rgb`").replace("`scale`", "`depth_scale`")
            raise DistillDepthError(f"{path}: files[{number}]: {named}") from error
    return entries, skipped


def _parse_line(fields: dict[str, Any], dataset: str, root: Path, default: float | None) -> RGBDEntry:
    for key in ("image", "depth"):
        if not isinstance(fields.get(key), str) or not fields[key]:
            raise ValueError(f"`{key}` must be a path, got {shown(fields.get(key))}")
    right = fields.get("right")
    if right is not None and not (isinstance(right, str) and right.strip()):
        raise ValueError(f"`right` must be a path or null, got {shown(right)}")
    for path in filter(None, (fields["image"], fields["depth"], right)):
        refuse_url(path)
    kind = fields.get("kind", "depth")
    if kind not in KINDS:
        raise ValueError(f"`kind` must be {' or '.join(KINDS)}, got {shown(kind)}")
    invalid = fields.get("invalid")
    values = [] if invalid is None else invalid if isinstance(invalid, list) else [invalid]
    return RGBDEntry(
        name=str(fields.get("id") or fields["image"]),
        dataset=dataset,
        image=root / fields["image"],
        depth=root / fields["depth"],
        kind=kind,
        scale=_positive(fields, "scale", default=1.0 if kind == "stereo_disparity" else default),
        invalid=tuple(_number(value, "invalid") for value in values),
        right=None if right is None else root / right,
        intrinsics=_parse_intrinsics(fields.get("intrinsics")),
        focal_px=_positive(fields, "focal_px"),
        baseline_m=_positive(fields, "baseline_m"),
    )


def _parse_intrinsics(value: Any) -> tuple[float, float, float, float, float] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        missing = [key for key in ("fx", "fy", "cx", "cy") if key not in value]
        if missing:
            raise ValueError(f"`intrinsics` lacks {', '.join(missing)}")
        numbers = [_number(value.get(key, 0), f"intrinsics.{key}") for key in ("fx", "fy", "cx", "cy", "skew")]
    else:
        rows = value if isinstance(value, list) and len(value) == 3 else []
        if not rows or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise ValueError(f"`intrinsics` must have fx, fy, cx, cy or be a 3x3 matrix, got {shown(value)}")
        places = ((0, 0), (1, 1), (0, 2), (1, 2), (0, 1))
        numbers = [_number(rows[row][column], "intrinsics") for row, column in places]
    fx, fy, cx, cy, skew = numbers
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"`intrinsics` must be finite, got {shown(value)}")
    if not fx or not fy:
        raise ValueError("`intrinsics` must have focal lengths other than 0")
    # Renderers with y upwards store a negative fy; image rows run downwards here.
    return abs(fx), abs(fy), cx, cy, skew


def _positive(fields: dict[str, Any], key: str, default: float | None = None) -> float | None:
    if fields.get(key) is None:
        return default
    value = _number(fields[key], key)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{key}` must be positive, got {value}")
    if not _LEAST <= value <= _MOST:
        raise ValueError(f"`{key}` must be from {_LEAST:g} to {_MOST:g}, got {value:g}")
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"`{key}` must be a number, got {shown(value)}")
    return float(value)


def _open_folder(folder: Path, root: Path | None, depth_scale: float | None) -> RGBDSource:
    dataset = folder.resolve().name
    for name in ASSOCIATIONS:
        if (folder / name).is_file():
            pairs, scale = read_pairs(folder / name)
            return _from_pairs(pairs, scale, folder / name, dataset, root, depth_scale)
    times = folder / "rgb.txt", folder / "depth.txt"
    if all(path.is_file() for path in times):
        return _from_pairs(read_timed_pairs(*times), TUM_SCALE, times[0], dataset, root, depth_scale)
    return RGBDSource(*_pair_folders(folder), depth_scale=depth_scale)


def _from_pairs(
    pairs: list[Pair], implied: float | None, path: Path, dataset: str, root: Path | None, depth_scale: float | None
) -> RGBDSource:
    """The source of a list; looks for some of its files, so that a list of another place is one error."""
    known = [(pair, pair.depth) for pair in pairs if pair.depth is not None]
    if not known:
        raise DistillDepthError(f"{path}: no sample with ground truth; all {len(pairs)} lines have no depth")
    base = root or path.parent
    probes = known[:: -(-len(known) // _PROBES)]
    bases = [base]
    if base.resolve().name == PurePosixPath(probes[0][0].image).parts[0]:
        # Lists for NYU Depth repeat the folder in which they lie.
        bases.append(base / "..")
    found = [place for place in bases if any((place / pair.image).is_file() for pair, _ in probes)]
    if not found:
        raise DistillDepthError(
            f"{path}: none of its images is there, looked for {base / probes[0][0].image} and so on; give --root, the "
            "folder that its names are relative to"
        )
    if not any((found[0] / depth).is_file() for _, depth in probes):
        raise DistillDepthError(
            f"{path}: none of its depth files is there, looked for {found[0] / probes[0][1]} and so on"
        )
    entries = [
        RGBDEntry(pair.image, dataset, found[0] / pair.image, found[0] / depth, scale=None, focal_px=pair.focal_px)
        for pair, depth in known
    ]
    skipped = len(pairs) - len(known)
    description = f"{path} ({len(entries)} samples with ground truth" + (f", {skipped} without)" if skipped else ")")
    return RGBDSource(entries, description, skipped=skipped, depth_scale=depth_scale, usual=implied or DEPTH_SCALE)


def _pair_folders(folder: Path) -> tuple[list[RGBDEntry], str]:
    """Entries of `images/` + `depth/`; an image whose depth is missing stays in, and says so when it is read."""
    images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
    depths = folder / "depth"
    if images is None or not depths.is_dir():
        missing = ["images/ or rgb/"] * (images is None) + ["depth/"] * (not depths.is_dir())
        raise DistillDepthError(
            f"{folder}: has no {' and no '.join(missing)}; an RGB-D folder needs {_FOLDER_CONTENTS}"
        )
    dataset = folder.resolve().name
    entries, paired = [], 0
    for image in list_images(images):
        relative = image.relative_to(images)
        stem = depths / relative.parent / relative.stem
        candidates = [stem.with_name(stem.name + suffix) for suffix in _either_case(DEPTH_SUFFIXES)]
        depth = next((candidate for candidate in candidates if candidate.is_file()), None)
        paired += depth is not None
        entries.append(
            RGBDEntry(name=relative.as_posix(), dataset=dataset, image=image, depth=depth or candidates[0], scale=None)
        )
    if not paired:
        raise DistillDepthError(
            f"{depths}: no file has the name of an image in {images} with {', '.join(DEPTH_SUFFIXES)}; "
            f"looked for {entries[0].depth.name} and so on"
        )
    without = len(entries) - paired
    return entries, f"{folder} ({len(entries)} samples" + (f", {without} without depth)" if without else ")")


def _either_case(suffixes: tuple[str, ...]) -> Iterator[str]:
    return itertools.chain(suffixes, (suffix.upper() for suffix in suffixes))
