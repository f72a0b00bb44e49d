"""Draw the dead units of a Depth Anything decoder again, and bring its activations back to the size of one.

    python benchmarks/revive_decoder.py MODEL FOLDER

The decoder has no normalisation. Trained from nothing at a learning rate that the rest needs, its activations grow
thirtyfold within some hundred steps, most ReLUs close for good, and the last weights become so small that every step
changes them by several per cent; then nothing is learned. A unit that is open on less than 3 % of the pixels of
`--scenes` procedural scenes gets new incoming weights, and outgoing weights of zero, so that the map stays as it was up
to what the unit still gave. Then weights and biases are scaled between layers, which changes nothing at all. The
result is a folder to train on from: `distilldepth distill --student FOLDER`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from distilldepth.models import load_model, save_model
from distilldepth.models.families.depth_anything import DepthAnythingDepth
from distilldepth.scenes.source import SceneSource

OPEN_SHARE = 0.03
NECK, FIRST, SECOND = 5.0, 3.0, 3.0
"""What the weights of the neck and of the head's first and second convolution are divided by."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=77, help="of the first scene, and of what is drawn")
    arguments = parser.parse_args()
    model = load_model(arguments.model, offline=True)
    if not isinstance(model, DepthAnythingDepth):
        raise SystemExit(f"{arguments.model} is no Depth Anything network")
    model.eval()
    side, multiple = model.preprocessing.size, model.preprocessing.multiple
    scenes = SceneSource((side, round(side * 4 / 3 / multiple) * multiple), arguments.scenes, seed=arguments.seed)
    images = torch.stack([torch.from_numpy(scenes[i]["image"]) for i in range(len(scenes))])
    images = images.permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(arguments.seed)
    before = predict(model, images)
    for name, dead, units in revive(model, images):
        print(f"{name}: {dead} of {units} dead")
    rescale(model)
    change = (predict(model, images) - before).abs().mean()
    print(f"mean change of the maps: {change:.4f}, their spread: {before.std():.3f}")
    save_model(model, arguments.folder)


@torch.no_grad()
def predict(model: DepthAnythingDepth, images: Tensor) -> Tensor:
    return model(images).values


@torch.no_grad()
def revive(model: DepthAnythingDepth, images: Tensor) -> Iterator[tuple[str, int, int]]:
    """Draw dead units again, first those of the layers that come first; yield what was found in each layer."""
    for name, before, after in layers(model):
        seen: list[Tensor] = []
        hook = before.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        predict(model, images)
        hook.remove()
        dead = (seen[0] > 0).float().mean((0, 2, 3)) < OPEN_SHARE
        alive = before.weight[~dead] if not dead.all() else before.weight
        before.weight[dead] = torch.randn_like(before.weight[dead]) * alive.std()
        before.bias[dead] = 0
        after.weight[:, dead] = 0
        yield name, int(dead.sum()), len(dead)


@torch.no_grad()
def rescale(model: DepthAnythingDepth) -> None:
    """Make activations smaller and the last weights larger, as much; ReLUs and sums let a positive factor through."""
    neck, head = model.network.neck, model.network.head
    for convolution in neck.convs:
        convolution.weight.div_(NECK)
    for layer in neck.fusion_stage.layers:
        units = (layer.residual_layer1, layer.residual_layer2)
        for part in (layer.projection, *(c for unit in units for c in (unit.convolution1, unit.convolution2))):
            part.bias.div_(NECK)
    for convolution, own, total in ((head.conv1, FIRST, NECK * FIRST), (head.conv2, SECOND, NECK * FIRST * SECOND)):
        convolution.weight.div_(own)
        convolution.bias.div_(total)
    head.conv3.weight.mul_(NECK * FIRST * SECOND)


def layers(model: DepthAnythingDepth) -> Iterator[tuple[str, nn.Conv2d, nn.Conv2d]]:
    """Yield each convolution of the decoder before a ReLU, with the one behind it."""
    for index, layer in enumerate(model.network.neck.fusion_stage.layers):
        for unit in ("residual_layer1", "residual_layer2"):
            if index or unit == "residual_layer2":  # the first layer has nothing to add to
                part = getattr(layer, unit)
                yield f"fusion {index}, {unit}", part.convolution1, part.convolution2
    yield "head", model.network.head.conv2, model.network.head.conv3


if __name__ == "__main__":
    main()
