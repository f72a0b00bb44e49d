"""NYU Depth v2, the 654 labelled test images, in the five forms that are in use."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from distilldepth.datasets.archive import Readable
from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import (
    Benchmark,
    FileReader,
    Found,
    Frame,
    ListMismatch,
    Request,
    first_fit,
    locate,
    pair,
)
from distilldepth.datasets.splits import Row, Split, parse_split
from distilldepth.datasets.truth import Truth
from distilldepth.errors import DistillDepthError, one_line
from distilldepth.images.decode import is_image_name

FIELDS = ("raw", "filled")
"""`raw`: what the sensor measured. `filled`: holes painted in; scores against it are worse by about 0.01 AbsRel."""

_MILLIMETRES = DepthCodec(scale=1000)
# Training depth of the DenseDepth set is 8-bit with 255 = 10 m; test depth is in millimetres.
_DENSEDEPTH = DepthCodec(scale=1000, scale_8bit=25.5)
_MAT = "nyu_depth_v2_labeled.mat"
_HDF5 = "nyuv2.hdf5"
_HDF5_SPLIT = "nyu_test.txt"


def find_samples(request: Request) -> Found:
    """Find the samples: in the container that the root is, by a list, or in a container that lies in the root.

    Raises:
        DistillDepthError: nothing is found.
    """
    root = request.root.path
    if root.is_file() and root.suffix.lower() == ".mat":
        return _from_mat(request, root)
    if root.is_file() and root.suffix.lower() in (".hdf5", ".h5"):
        return _from_hdf5(request, root)
    mismatch = request.no_list(f"; {_MAT} with splits.mat does as well")
    if request.splits:
        try:
            return first_fit(request, _from_list)
        except ListMismatch as error:
            mismatch = error
    for name, build in ((_MAT, _from_mat), (_HDF5, _from_hdf5)):
        for file in request.root.files([name]):
            if file.exists and not file.span().offset:
                return build(request, Path(file.span().path))
    raise mismatch


def _from_list(request: Request, split: Split) -> Found:
    if split.name.lower().endswith(".csv"):
        if any(len(row.fields) < 2 for row in split.rows):
            raise DistillDepthError(f"{split.name}: each line must be IMAGE,DEPTH")
        request.choose_field(())
        samples = pair(request, split, _DENSEDEPTH, lambda row: row.fields[1])
        return Found(samples)
    there = [field for field in FIELDS if _has_depths(request, split, field)]
    if not there:
        raise request.not_found("files with ground truth", _depths(split.rows[0])["raw"], split.name)
    field = request.choose_field(tuple(there))
    samples = pair(request, split, _MILLIMETRES, lambda row: _depths(row)[field])
    return Found(samples, tuple(there), field)


def _has_depths(request: Request, split: Split, field: str) -> bool:
    return locate(request.root, split.rows, lambda row: _depths(row)[field]) is not None


def _depths(row: Row) -> dict[str, str]:
    """Path of each kind of ground truth: what the row says, else the name that belongs to the image's."""
    folder, slash, name = row.fields[0].rpartition("/")
    number = re.sub(r"^rgb_|\.\w+$", "", name)
    if name.lower().endswith(".png"):
        paths = {"raw": f"{folder}{slash}depth_{number}.png", "filled": f"{folder}{slash}filled_{number}.png"}
    else:
        paths = {
            "raw": f"{folder}{slash}sync_depth_{number}.png",
            "filled": f"{folder}{slash}dense/sync_depth_dense_{number}.png",
        }
    for path in row.fields[1:]:
        if is_image_name(path.rpartition("/")[2]):
            paths["filled" if re.search("dense|filled", path.rpartition("/")[2]) else "raw"] = path
    return paths


def _from_mat(request: Request, path: Path) -> Found:
    """The official file, with the official split beside it: numbers from 1."""
    field = request.choose_field(FIELDS)
    split = request.split_path or path.with_name("splits.mat")
    if split.suffix.lower() != ".mat":
        raise DistillDepthError(
            f"{split}: the split of {path.name} is the official splits.mat; leave --split out, or name it"
        )
    if not split.is_file():
        raise FileNotFoundError(
            f"{split}: no such file; the split of {path.name} is the official splits.mat, put it there"
        )
    scipy_io = _needed("scipy.io", "scipy", split)
    try:
        numbers = [int(number) for number in np.ravel(scipy_io.loadmat(str(split))["testNdxs"])]
    except Exception as error:
        # scipy stumbles over a damaged file in many ways, from struct to zlib.
        raise DistillDepthError(
            f"{split}: has no testNdxs, so it is not the official split ({one_line(error)})"
        ) from error
    h5py = _needed("h5py", "h5py", path)
    try:
        with h5py.File(str(path), "r") as file:
            scenes = file["scenes"]
            names = ["".join(map(chr, np.ravel(file[scenes[0, number - 1]][()]))) for number in numbers]
    except (KeyError, OSError, IndexError, ValueError, TypeError, RuntimeError) as error:
        raise DistillDepthError(f"{path}: is not the labelled NYU Depth v2 ({one_line(error)})") from error
    samples = [
        Frame(f"test/{scene}/rgb_{number:04d}.png", _MatReader(str(path), number - 1, field))
        for number, scene in zip(numbers, names, strict=True)
    ]
    return Found(samples, FIELDS, field, [f"list: {split}"])


@dataclass(frozen=True)
class _MatReader:
    path: str
    index: int
    field: str

    def __call__(self) -> tuple[np.ndarray, Truth]:
        h5py = _needed("h5py", "h5py", Path(self.path))
        try:
            with h5py.File(self.path, "r") as file:
                # MATLAB stores columns first: (3, W, H) and (W, H).
                image = np.ascontiguousarray(file["images"][self.index].transpose(2, 1, 0))
                depth = file["rawDepths" if self.field == "raw" else "depths"][self.index].T
        except (KeyError, OSError, IndexError, ValueError) as error:
            raise DistillDepthError(
                f"{self.path}: image {self.index + 1} cannot be read ({one_line(error)})"
            ) from error
        depth, valid = DepthCodec().metres(np.array(depth, dtype=np.float32, order="C"))
        if not valid.any():
            raise DistillDepthError(f"{self.path}: image {self.index + 1} has no valid pixel in the ground truth")
        return image, Truth(depth, valid, is_metric=True)


def _from_hdf5(request: Request, path: Path) -> Found:
    """UniDepth's container: encoded files under their paths, and the list as one more."""
    request.choose_field(())
    if request.splits:
        split = request.splits[0]
    else:
        listed = _Inside(str(path), _HDF5_SPLIT)
        split = parse_split(listed.read().decode("utf-8", "replace").rstrip("\0"), str(listed))
    if any(len(row.fields) < 2 for row in split.rows):
        raise DistillDepthError(f"{split.name}: each line must be IMAGE DEPTH FOCAL")
    samples = []
    for row in split.rows:
        image, depth = (_Inside(str(path), name) for name in row.fields[:2])
        samples.append(Frame(row.fields[0], FileReader((image,), (depth,), _MILLIMETRES)))
    return Found(samples, notes=[f"list: {split.name}"])


@dataclass(frozen=True)
class _Inside(Readable):
    """An encoded file inside an HDF5 container."""

    path: str
    name: str

    @property
    def exists(self) -> bool:
        """Yes, until it is read."""
        return True

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"

    def read(self) -> bytes:
        h5py = _needed("h5py", "h5py", Path(self.path))
        try:
            with h5py.File(self.path, "r") as file:
                if self.name not in file:
                    raise FileNotFoundError(f"{self}: no such file in the container")
                return np.asarray(file[self.name][()], dtype=np.uint8).tobytes()
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise DistillDepthError(f"{self}: cannot be read ({one_line(error)})") from error


def _needed(module: str, package: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DistillDepthError(
            f"{path}: reading it needs {package}; install it with `pip install {package}`"
        ) from None


BENCHMARK = Benchmark(
    name="nyuv2",
    title="NYU Depth v2, labelled test images",
    domain="indoor",
    counts={"": 654},
    splits=("filename_list_test.txt", "nyudepthv2_test_files_with_gt.txt", "nyu2_test.csv"),
    layouts=(
        "test/<scene>/{rgb,depth,filled}_NNNN.png, folder or tar, with filename_list_test.txt (Marigold)",
        "official_splits/test/<scene>/{rgb_*.jpg,sync_depth_*.png}, with nyudepthv2_test_files_with_gt.txt (BTS)",
        "nyu_depth_v2_labeled.mat + splits.mat (official; needs h5py and scipy)",
        "nyuv2.hdf5 with its list inside (UniDepth; needs h5py)",
        "nyu2_test.csv with the images it names (DenseDepth)",
    ),
    licence="not stated",
    source="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    find=find_samples,
)
