"""ScanNet, the 800 validation frames that Marigold's authors sampled."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, by_list
from distilldepth.datasets.splits import Row

_CODEC = DepthCodec(scale=1000)


def _truth_path(row: Row) -> str:
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
    find=by_list(_CODEC, _truth_path),
)
