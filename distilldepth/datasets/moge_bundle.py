"""The evaluation sets that MoGe's authors bundle: one folder per image, depth in logarithmic 16-bit PNG."""

from __future__ import annotations

from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.samples import Benchmark, FileReader, Found, Frame, Request, locate
from distilldepth.datasets.splits import Row, read_split

INDEX = ".index.txt"

_CODEC = DepthCodec(format="log-png")
# What the bundle's authors score in metres, and what they score boundaries on.
_METRIC = {"NYUv2", "KITTI", "ETH3D", "iBims-1", "DDAD", "DIODE", "HAMMER"}
_DENSE = {"iBims-1", "Sintel", "Spring", "HAMMER"}
_DOMAINS = {"NYUv2": "indoor", "iBims-1": "indoor", "HAMMER": "indoor", "KITTI": "outdoor", "DDAD": "outdoor"}


def find_samples(request: Request) -> Found:
    """Find the samples that a set's `.index.txt` names.

    Raises:
        DistillDepthError: no list, or none of its folders is there.
    """
    inside = request.root.path.name == request.subset
    splits = request.splits
    if not splits:
        names = [f"{request.subset}/{INDEX}", *([INDEX] if inside else [])]
        splits = [read_split(file) for file in request.root.files(names)[:1]]
    if not splits:
        raise request.no_list(f"; looked for {request.subset}/{INDEX}")
    split = splits[0]

    def image_path(row: Row) -> str:
        return f"{request.subset}/{row.fields[0]}/image.jpg"

    found = locate(request.root, split.rows, image_path)
    if found is None:
        raise request.not_found("images", image_path(split.rows[0]), split.name)
    place, dropped = found
    is_metric, dense = request.subset in _METRIC, request.subset in _DENSE
    samples = []
    for row in split.rows:
        folder = "/".join(image_path(row).split("/")[dropped:-1])
        image, depth = (place.file(f"{folder}/{name}") for name in ("image.jpg", "depth.png"))
        reader = FileReader((image,), (depth,), _CODEC, is_metric=is_metric, dense=dense)
        samples.append(Frame(f"{row.fields[0]}/image.jpg", reader))
    return Found(samples, notes=[f"list: {split.name}"])


BENCHMARK = Benchmark(
    name="moge-bundle",
    title="the evaluation sets of MoGe",
    domain="",
    counts=dict.fromkeys(
        ("NYUv2", "KITTI", "ETH3D", "iBims-1", "GSO", "Sintel", "DDAD", "DIODE", "Spring", "HAMMER"),
    ),
    splits=(),
    layouts=("<set>/<instance>/{image.jpg,depth.png} + <set>/.index.txt, folder or tar",),
    licence="that of each set",
    source="https://huggingface.co/datasets/Ruicheng/monocular-geometry-evaluation",
    find=find_samples,
    domains=_DOMAINS,
)
