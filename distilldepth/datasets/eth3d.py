"""ETH3D, the 454 high-resolution photographs of the multi-view training set with laser-scanned depth."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, by_list
from distilldepth.datasets.splits import Row

# The file is called .JPG after its photograph and is none; inf is no measurement.
_CODEC = DepthCodec(format="raw-float32")


def _truth_path(row: Row) -> str:
    parts = row.fields[0].removeprefix("rgb/").split("/")
    scene, name = parts[0], parts[-1]
    return f"depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/{name}"


BENCHMARK = Benchmark(
    name="eth3d",
    title="ETH3D, high-resolution multi-view training images",
    domain="",
    counts={"": 454},
    splits=("eth3d_filename_list.txt",),
    layouts=(
        "rgb/<scene>/images/dslr_images/*.JPG + depth/<scene>_dslr_depth/<scene>/ground_truth_depth/dslr_images/*.JPG "
        "(raw float32), folder or tar",
        "<scene>/images/dslr_images + <scene>/ground_truth_depth/dslr_images, as the official archives unpack",
    ),
    licence="CC-BY-NC-SA-4.0",
    source="https://www.eth3d.net",
    find=by_list(_CODEC, _truth_path),
)
