"""DrivingStereo: its test and training images, and the four weather sets."""

from __future__ import annotations

from dataclasses import replace

from distilldepth.datasets.archive import Place
from distilldepth.datasets.kitti_eigen import KITTI_CODEC
from distilldepth.datasets.right_views import Camera, find_right_views, read_camera
from distilldepth.datasets.samples import Benchmark, FileReader, Found, Frame, Request, first_fit, pair, spread
from distilldepth.datasets.splits import Row, Split
from distilldepth.datasets.truth import RightReader
from distilldepth.errors import DistillDepthError
from distilldepth.images.decode import is_image_name

WEATHER = ("sunny", "cloudy", "foggy", "rainy")


def find_samples(request: Request) -> Found:
    """Find the samples: those of a list that the user names, or all images of the set: there is no official list.

    Raises:
        DistillDepthError: nothing is found.
    """
    if request.splits:
        return first_fit(request, _from_list)
    for images in _image_folders(request):
        # Without the set's name above it, the folder is this set's only if the root is.
        found = request.root.glob(f"{images}/*", nested=not images.startswith("left-image"))
        if found is None:
            continue
        images_place, listed = found
        names = [name for name in listed if is_image_name(name.rpartition("/")[2])]
        if not names:
            continue
        place, depth = _depth_folder(request, names)
        rights = _right_views(request, names)
        samples = [
            Frame(
                name,
                FileReader((images_place.file(name),), (place.file(f"{depth}/{_tail(name)}"),), KITTI_CODEC),
                right,
            )
            for name, right in zip(names, rights, strict=True)
        ]
        return Found(samples, notes=[f"no list: all images of {images}"])
    there = [
        weather
        for weather in WEATHER
        if any(request.root.glob(f"{weather}/{half}/*") for half in _folders_of_size("half"))
    ]
    hint = f"; it has {', '.join(f'driving-stereo:{weather}' for weather in there)}" if there else ""
    raise DistillDepthError(
        f"{request.root}: has no {_image_folders(request)[0]}, the images of driving-stereo:{request.subset}{hint}"
    )


def _from_list(request: Request, split: Split) -> Found:
    frames = pair(request, split, KITTI_CODEC, _row_truth)
    rights = _right_views(request, [frame.name for frame in frames])
    samples = [replace(frame, right=right) for frame, right in zip(frames, rights, strict=True)]
    return Found(samples, has_own_count=True)


def _row_truth(row: Row) -> str:
    if len(row.fields) > 1 and is_image_name(row.fields[1].rpartition("/")[2]):
        return row.fields[1]
    return row.fields[0].replace("left-image", "depth-map").rpartition(".")[0] + ".png"


def _image_folders(request: Request) -> list[str]:
    """Where the photographs of a subset may be; archives unpacked into a folder of their own name double it."""
    if request.subset == "train":
        return ["train-left-image/*"]
    halves = [*_folders_of_size("half"), *_folders_of_size("full")]
    inside = set(WEATHER) & set(request.root.path.parts) or {"test"}
    above = "test-left-image" if request.subset == "test" else request.subset
    return [f"{above}/{half}" for half in halves] + (halves if request.subset in inside else [])


def _folders_of_size(size: str) -> list[str]:
    return [f"left-image-{size}-size", f"left-image-{size}-size/left-image-{size}-size"]


def _depth_folder(request: Request, names: list[str]) -> tuple[Place, str]:
    """The place and folder with the ground truth of these photographs."""
    size = "full" if "left-image-full-size" in names[0] else "half"
    folder = f"depth-map-{size}-size"
    above = {"test": "test-depth-map/", "train": "train-depth-map"}.get(request.subset, f"{request.subset}/")
    folders = [above] if request.subset == "train" else [above + folder, f"{above}{folder}/{folder}"]
    if request.subset != "train":
        folders += [above.rstrip("/"), folder, f"{folder}/{folder}"]
    for candidate in folders:
        place = request.root.place(f"{candidate}/{_tail(name)}" for name in spread(names, 16))
        if place is not None:
            return place, candidate
    raise request.not_found("files with ground truth", f"{folders[0]}/{_tail(names[0])}", f"the folder of {names[0]}")


def _right_views(request: Request, names: list[str]) -> list[RightReader | None]:
    """The right views of these photographs, and their cameras where the calibration is there."""
    paths = [(name.replace("left-image", "right-image"),) for name in names]
    size = "full" if "left-image-full-size" in names[0] else "half"
    cameras: dict[str, Camera | None] = {}

    def camera_of(index: int) -> Camera | None:
        # `2018-07-11-14-48-52_2018-07-11-14-50-10-570.jpg`, or in a folder of the sequence's name.
        sequence = names[index].rpartition("/")[2].partition("_")[0]
        if sequence not in cameras:
            files = tuple(f"{above}{size}-image-calib/{sequence}.txt" for above in ("", f"{size}-image-calib/"))
            cameras[sequence] = read_camera(request.root, files, "P_rect_101", "P_rect_103")
        return cameras[sequence]

    return find_right_views(request.root, paths, spread(paths, 16), camera_of)


def _tail(image: str) -> str:
    """Path of a photograph below the folder of its kind, with the suffix of ground truth."""
    parts = image.split("/")
    kind = max((index for index, part in enumerate(parts) if "left-image" in part), default=-1)
    return "/".join(parts[kind + 1 :]).rpartition(".")[0] + ".png"


BENCHMARK = Benchmark(
    name="driving-stereo",
    title="DrivingStereo",
    domain="outdoor",
    counts={"test": 7751, "train": 174_437, **dict.fromkeys(WEATHER)},
    splits=(),
    layouts=(
        "test-left-image/left-image-half-size/*.jpg + test-depth-map/depth-map-half-size/*.png, folder or tar",
        "train-left-image/<seq>/*.jpg + train-depth-map/<seq>/*.png",
        "<weather>[/<weather>]/left-image-half-size + depth-map-half-size",
        "right views: right-image in place of left-image; half-image-calib/<seq>.txt",
    ),
    licence="see source",
    source="https://drivingstereo-dataset.github.io",
    find=find_samples,
)
