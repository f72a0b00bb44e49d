"""ScanNet, the 800 validation frames that Marigold's authors sampled."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, Found, Request, first_fit, pair
from distilldepth.datasets.splits import Row, Split

_CODEC = DepthCodec(scale=1000)


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
    scene, _, name = row.fields[0].rpartition("/color/")
    return f"{scene}/depth/{name.rpartition('.')[0]}.png"


BENCHMARK = Benchmark(
    name="scannet",
    title="ScanNet, sampled validation frames",
    domain="indoor",
    counts={"": 800},
    splits=("scannet_val_sampled_list_800_1.txt",),
    layouts=("<scene>/color/NNNNNN.jpg + <scene>/depth/NNNNNN.png (millimetres), folder or tar",),
    licence="ScanNet Terms of Use",
    source="http://www.scan-net.org",
    find=find_samples,
)
