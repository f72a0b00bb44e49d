"""KITTI, Eigen's test images with the ground truth of the KITTI depth benchmark: 652 of 697."""

from __future__ import annotations

import re

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.right_views import find_right_views, read_camera
from distilldepth.datasets.samples import Benchmark, FileReader, Found, Frame, Request, first_fit, spread
from distilldepth.datasets.splits import Row, Split
from distilldepth.errors import DistillDepthError

KITTI_CODEC = DepthCodec(scale=256)
"""KITTI's and DrivingStereo's depth: 16-bit PNG, 256 to the metre, 0 = no measurement."""

_DRIVE = re.compile(r"(\d{4}_\d\d_\d\d)_drive_(\d{4})_sync")
_IMAGE = re.compile(_DRIVE.pattern + r"/image_(0\d)/(?:data/)?(\d{10})\.\w+$")
_SIDES = {"l": "02", "r": "03"}


def find_samples(request: Request) -> Found:
    """Find the samples of a list in any of the three places that ground truth is kept in.

    Raises:
        DistillDepthError: no list, none that fits, or a line that is no KITTI image.
    """
    return first_fit(request, _from_list)


def _from_list(request: Request, split: Split) -> Found:
    frames = [_frame(row, split.name) for row in split.rows if not _without_truth(row)]
    dropped = len(split.rows) - len(frames)
    if not frames:
        raise DistillDepthError(f"{split.name}: no line has ground truth")
    probes = spread(frames, 16)
    images = request.root.place(path for frame in probes for path in _image_paths(*frame))
    if images is None:
        raise request.not_found("images", _image_paths(*frames[0])[0], split.name)
    depths = request.root.place(path for frame in probes for path in _depth_paths(*frame))
    if depths is None:
        raise request.not_found("files with ground truth", _depth_paths(*frames[0])[0], split.name)
    cameras = {
        date: read_camera(request.root, (f"{date}/calib_cam_to_cam.txt",), "P_rect_02", "P_rect_03")
        for date in sorted({frame[0] for frame in frames})
    }
    rights = find_right_views(
        request.root,
        [_right_paths(*frame) for frame in frames],
        [_right_paths(*frame) for frame in probes],
        lambda index: cameras[frames[index][0]],
    )
    samples = []
    for frame, right in zip(frames, rights, strict=True):
        reader = FileReader(
            tuple(images.file(path) for path in _image_paths(*frame)),
            tuple(depths.file(path) for path in _depth_paths(*frame)),
            KITTI_CODEC,
        )
        samples.append(Frame(_image_paths(*frame)[0], reader, right))
    notes = [f"{dropped} of {len(split.rows)} lines have no ground truth and are left out"] if dropped else []
    return Found(samples, notes=notes)


def _without_truth(row: Row) -> bool:
    return len(row.fields) > 1 and row.fields[1] == "None"


def _frame(row: Row, name: str) -> tuple[str, str, str, str]:
    """Date, drive, camera and frame of a line: `IMAGE [DEPTH [FOCAL]]` or `DRIVE FRAME SIDE`."""
    found = _IMAGE.search(row.fields[0])
    if found:
        return found[1], f"{found[1]}_drive_{found[2]}_sync", found[3], found[4]
    drive = _DRIVE.search(row.fields[0])
    if drive and len(row.fields) == 3 and row.fields[1].isdecimal() and row.fields[2] in _SIDES:
        return drive[1], drive[0], _SIDES[row.fields[2]], row.fields[1].zfill(10)
    raise DistillDepthError(
        f"{name}:{row.line}: must be <date>/<drive>/image_02/data/<frame>.png, or drive, frame and side, "
        f"got {' '.join(row.fields)}"
    )


def _image_paths(date: str, drive: str, camera: str, frame: str) -> tuple[str, ...]:
    # Many keep KITTI as JPEG, a tenth of the size.
    return tuple(f"{date}/{drive}/image_{camera}/data/{frame}.{suffix}" for suffix in ("png", "jpg"))


def _right_paths(date: str, drive: str, camera: str, frame: str) -> tuple[str, ...]:
    """Empty where the image is of the right camera itself."""
    return _image_paths(date, drive, "03", frame) if camera == "02" else ()


def _depth_paths(date: str, drive: str, camera: str, frame: str) -> tuple[str, ...]:
    inner = f"{drive}/proj_depth/groundtruth/image_{camera}/{frame}.png"
    return inner, f"train/{inner}", f"val/{inner}", f"{date}/{inner}"


BENCHMARK = Benchmark(
    name="kitti-eigen",
    title="KITTI, Eigen's test images with improved ground truth",
    domain="outdoor",
    counts={"": 652},
    splits=("eigen_test_files_with_gt.txt", "kitti_eigen_test_files_with_gt.txt", "eigen_benchmark/test_files.txt"),
    layouts=(
        "images <date>/<drive>/image_02/data/*.png (or .jpg); right views image_03, <date>/calib_cam_to_cam.txt",
        "ground truth <drive>/proj_depth/groundtruth/image_02/*.png, folder or tar (Marigold)",
        "ground truth <date>/<drive>/proj_depth/... (NeWCRFs)",
        "ground truth data_depth_annotated/{train,val}/<drive>/proj_depth/... (KITTI)",
    ),
    licence="CC-BY-NC-SA-3.0",
    source="https://www.cvlibs.net/datasets/kitti/eval_depth_all.php",
    find=find_samples,
    training=("eigen_train_files_with_gt.txt", "kitti_eigen_train_files_with_gt.txt", "eigen_train_files.txt"),
    count_hint="lists of 697 lines must say None where there is no ground truth",
)
