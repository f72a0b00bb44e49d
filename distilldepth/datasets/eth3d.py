"""ETH3D, the 454 high-resolution photographs of the multi-view training set with laser-scanned depth."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, Found, Request, first_fit, pair
from distilldepth.datasets.splits import Row, Split

# The file is called .JPG after its photograph and is none; inf is no measurement.
_CODEC = DepthCodec(format="raw-float32")


def find_samples(request: Request) -> Found:
    """Find the samples of a list.

    Raises:
        DistillDepthError: no list, or none that fits.
    """
    return first_fit(request, _from_list)


def _from_list(request: Request, split: Split) -> Found:
    return Found(pair(request, split, _CODEC, _truth_path))


def _truth_path(row: Row) -> str:
    if len(row.fields) > 1:
        return row.fields[1]
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
    find=find_samples,
)
