"""DIODE, the validation images: 325 indoor and 446 outdoor. Its mask alone says what is valid."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, FileReader, Found, Frame, ListMismatch, Request, first_fit, pair
from distilldepth.datasets.splits import Row, Split
from distilldepth.images.decode import natural_key

_CODEC = DepthCodec()
_FOLDERS = {"indoor": "indoors", "outdoor": "outdoor"}


def find_samples(request: Request) -> Found:
    """Find the samples: those of a list, or all images, as the field does where it has no list.

    Raises:
        DistillDepthError: nothing is found.
    """
    if request.splits:
        return first_fit(request, _from_list)
    samples: list[Frame] = []
    for domain, folder in _FOLDERS.items():
        if request.subset in ("all", domain):
            samples += _glob(request, folder)
    if not samples:
        raise request.no_list("; without a list, {indoors,outdoor}/scene_*/scan_*/*.png are taken")
    return Found(samples, notes=["no list: all images of scene_*/scan_*"])


def _from_list(request: Request, split: Split) -> Found:
    rows = tuple(row for row in split.rows if request.subset in ("all", _domain(row.fields[0])))
    if not rows:
        raise ListMismatch(f"{split.name}: names no {request.subset} image")
    samples = pair(
        request,
        Split(split.name, rows),
        _CODEC,
        lambda row: _column(row, 1, "_depth.npy"),
        mask_path=lambda row: _column(row, 2, "_depth_mask.npy"),
    )
    return Found(samples)


def _domain(path: str) -> str:
    return "indoor" if "indoor" in path else "outdoor" if "outdoor" in path else ""


def _column(row: Row, index: int, suffix: str) -> str:
    return row.fields[index] if len(row.fields) > index else row.fields[0].removesuffix(".png") + suffix


def _glob(request: Request, folder: str) -> list[Frame]:
    found = request.root.glob(f"{folder}/scene_*/scan_*/*.png")
    if found is None and request.root.path.name == folder:
        found = request.root.glob("scene_*/scan_*/*.png", nested=False)
    if found is None:
        return []
    place, names = found
    samples = []
    for name in sorted(names, key=natural_key):
        stem = name.removesuffix(".png")
        reader = FileReader(
            (place.file(name),), (place.file(f"{stem}_depth.npy"),), _CODEC, (place.file(f"{stem}_depth_mask.npy"),)
        )
        samples.append(Frame(name if name.startswith(folder) else f"{folder}/{name}", reader))
    return samples


BENCHMARK = Benchmark(
    name="diode",
    title="DIODE, validation images",
    domain="",
    counts={"all": 771, "indoor": 325, "outdoor": 446},
    splits=(
        "diode_val_all_filename_list.txt",
        "diode_val_indoor_filename_list.txt",
        "diode_val_outdoor_filename_list.txt",
    ),
    layouts=("{indoors,outdoor}/scene_*/scan_*/<id>.png, _depth.npy, _depth_mask.npy, folder or tar, list optional",),
    licence="MIT",
    source="https://diode-dataset.org",
    find=find_samples,
    domains={"indoor": "indoor", "outdoor": "outdoor"},
)
