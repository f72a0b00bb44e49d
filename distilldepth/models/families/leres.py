"""LeReS: a ResNet of transformers under the fusion decoder; affine-invariant depth, larger = farther.

The published `res50.pth` has a ResNet-50 (52.1 M parameters, 96 G multiplications at 448 x 448), which is the one of
transformers under other names. `res101.pth` has a ResNeXt-101 32x8d, whose grouped convolutions transformers does not
have; it is refused.

Source: Yin et al., Learning to Recover 3D Scene Shape from a Single Image (LeReS, 2012.09365), and its released code.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut

from distilldepth.errors import DistillDepthError
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo, pyramid
from distilldepth.models.bounds import DEEPEST, WIDEST, full_architecture, listed, whole
from distilldepth.models.candidate import Candidate
from distilldepth.models.fusion import FusionDecoder
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.models.recompute import run_block
from distilldepth.models.state_dict import build_to_fit, check_state, count_blocks

FAMILY = "leres"

VARIANTS: dict[str, dict[str, Any]] = {
    "r50": {
        "stem": 64,
        "widths": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "decoder": [256, 256, 256],
        "deepest": 512,
    },
}
"""Arguments of `LeReSDepth` by variant; its docstring says what each means."""

NEAREST = 0.01
"""What the nearest pixel of every image is given, as official inference gives it."""

_WIDTH = whole(4, WIDEST)
ARCHITECTURE = {
    "stem": _WIDTH,
    "widths": listed(_WIDTH, 4, 4),
    "depths": listed(whole(1, DEEPEST), 4, 4),
    "decoder": listed(_WIDTH, 3, 3),
    "deepest": _WIDTH,
}
"""What the arguments of `LeReSDepth` may be in a file."""


class LeReSDepth(DepthModel):
    """ResNet and fusion decoder; depth up to a scale and a shift of each image, larger = farther, at least 0.01.

    The network's own numbers are depth up to an unknown scale and shift, of either sign. As official inference does,
    the least of them is subtracted and 0.01 added, here for every image by itself: official code takes the minimum over
    the whole batch, so that with it an image's numbers depend on its neighbours. This makes them positive and no more
    metric than before; the 0.01 is a convention, not the distance of the nearest thing. Their inverse therefore is no
    disparity: where a loss wants disparity, `to_disparity` changes the sign, and does not invert.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: how images are brought to it.
        stem: channels of the first convolution.
        widths: channels of the encoder at 1/4, 1/8, 1/16 and 1/32; its bottlenecks have a quarter of them.
        depths: blocks at these sizes.
        decoder: widths of the fusion at 1/4, 1/8 and 1/16.
        deepest: width of the first block of the decoder, at 1/32.

    Raises:
        ValueError: the number of widths, depths or decoder widths is wrong.
    """

    folds: ClassVar[Mapping[type[nn.Module], tuple[str, str]]] = {
        ResNetConvLayer: ("convolution", "normalization"),
        ResNetShortCut: ("convolution", "normalization"),
    }

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        decoder: Sequence[int],
        deepest: int,
    ) -> None:
        for name, values, count in (("widths", widths, 4), ("depths", depths, 4), ("decoder", decoder, 3)):
            if len(values) != count:
                raise ValueError(f"LeReSDepth: {name} must have {count} entries, got {len(values)}")
        super().__init__(info, preprocessing)
        self._architecture = {
            "stem": stem,
            "widths": list(widths),
            "depths": list(depths),
            "decoder": list(decoder),
            "deepest": deepest,
        }
        self._again = False
        self.encoder = ResNetBackbone(
            ResNetConfig(
                embedding_size=stem,
                hidden_sizes=list(widths),
                depths=list(depths),
                layer_type="bottleneck",
                downsample_in_bottleneck=False,
            )
        )
        self.decoder = FusionDecoder(widths, decoder, deepest, "bilinear-corners")
        _initialise(self.decoder)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build` makes this network again."""
        return copy.deepcopy(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Predict for images `(B, 3, H, W)`, RGB in [0, 1], of any size; official code has multiples of 32 only.

        Returns:
            Depth `(B, H, W)`, the least value of every image 0.01, float32 under autocast; `features` are
            the maps at 1/4 to 1/32.
        """
        height, width = images.shape[-2:]
        levels = self._encode(self.normalise(images))
        depth = self.decoder(levels, (math.ceil(height / 2), math.ceil(width / 2)))
        # Half precision has too few steps for a smooth map.
        if depth.dtype in (torch.bfloat16, torch.float16):
            depth = depth.float()
        depth = resize(depth, (height, width), self.decoder.interpolation)[:, 0]
        positive = depth - depth.amin((1, 2), keepdim=True) + NEAREST
        return DepthOutput(positive, pyramid(levels, finest=4) if features else {})

    def _encode(self, pixels: Tensor) -> list[Tensor]:
        """The encoder's maps, finest first; block by block, where transformers has no way to compute them again."""
        x = run_block(self.encoder.embedder, pixels, again=self._again)
        levels = []
        for stage in self.encoder.encoder.stages:
            for block in stage.get_submodule("layers").children():
                x = run_block(block, x, again=self._again)
            levels.append(x)
        return levels

    def enable_gradient_checkpointing(self) -> None:
        self._again = self.decoder.again = True

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the ResNet and of the decoder."""
        return {"encoder": list(self.encoder.parameters()), "decoder": list(self.decoder.parameters())}


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> LeReSDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `LeReSDepth`; or `{"variant": "r50"}`, with further arguments to replace
            those of the variant.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the official one: 448 x 448 whatever the shape of the image, ImageNet's mean and
            deviation, bilinear without smoothing on the way there and back.

    Raises:
        ValueError: unknown variant or argument, or an argument is missing.

    >>> info = ModelInfo("leres", "leres", "depth", "Apache-2.0", "random")
    >>> small = {"stem": 4, "widths": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder": [4, 4, 4], "deepest": 4}
    >>> build(small, info).eval()(torch.rand(1, 3, 64, 96)).values.shape
    torch.Size([1, 64, 96])
    """
    arguments = full_architecture("LeReS", architecture, VARIANTS, ARCHITECTURE)
    preprocessing = preprocessing or Preprocessing(
        448, 32, "square", interpolation="bilinear", map_interpolation="bilinear"
    )
    return LeReSDepth(info, preprocessing, **arguments)


def _initialise(decoder: FusionDecoder) -> None:
    """As the official decoder begins: normal with deviation 0.01, biases 0."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


_ENCODER = "encoder_modules.encoder."
_DECODER = "decoder_modules."
_AUXILIARY = "auxi_modules."
"""How the names of a branch begin that official training has, and official inference has not."""


def _layers() -> dict[str, str]:
    """Official name of every layer, a block's number left as `{}`: our name."""
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage in range(4):
        theirs, ours = f"layer{stage + 1}.{{}}", f"encoder.stages.{stage}.layers.{{}}"
        for place in range(3):
            names[f"{theirs}.conv{place + 1}"] = f"{ours}.layer.{place}.convolution"
            names[f"{theirs}.bn{place + 1}"] = f"{ours}.layer.{place}.normalization"
        names[f"{theirs}.downsample.0"] = f"{ours}.shortcut.convolution"
        names[f"{theirs}.downsample.1"] = f"{ours}.shortcut.normalization"
    layers = {f"{_ENCODER}{theirs}": f"encoder.{ours}" for theirs, ours in names.items()}
    names = {"conv1": "deepest.1"} | {f"outconv.adapt_conv.{place}": f"head.{place}" for place in (0, 1, 3)}
    blocks = {"conv": "deepest.0"}
    for level in range(3):
        blocks |= {f"ffm{level}.ftb1": f"fusions.{level}.lateral", f"ffm{level}.ftb2": f"fusions.{level}.out"}
    for theirs, ours in blocks.items():
        names[f"{theirs}.conv1"] = f"{ours}.project"
        # Theirs begins with the ReLU that the skip sees too.
        names |= {f"{theirs}.conv_branch.{place + 1}": f"{ours}.branch.{place}" for place in (0, 1, 3)}
    return layers | {f"{_DECODER}{theirs}": f"decoder.{ours}" for theirs, ours in names.items()}


_LAYERS = _layers()


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary has the official layout of LeReS' depth model."""
    return all(any(key.startswith(part) for key in state) for part in (_ENCODER, _DECODER))


def convert_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an official state dictionary; the auxiliary branch of training is left out.

    Returns:
        The renamed dictionary, and the names that are none of this network's.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if key.startswith(_AUXILIARY):
            continue
        layer, _, name = key.rpartition(".")
        block = re.search(r"(?<=\.layer\d\.)\d{1,6}(?=\.)", layer)
        number = block[0] if block and layer.startswith(_ENCODER) else ""
        theirs = layer.replace(f".{number}.", ".{}.", 1) if number else layer
        if theirs in _LAYERS:
            converted[f"{_LAYERS[theirs].format(number)}.{name}"] = tensor
        else:
            unknown.append(key)
    return converted, unknown


def infer_architecture(state: dict[str, Tensor]) -> dict[str, Any]:
    """Read the architecture off the shapes of a converted state dictionary.

    Raises:
        KeyError: a tensor that is needed for this is missing.
        ValueError: a number of blocks that cannot be.
    """
    blocks = "encoder.encoder.stages"
    depths = count_blocks(state, r"encoder\.encoder\.stages\.{}\.layers\.")
    return {
        "stem": len(state["encoder.embedder.embedder.convolution.weight"]),
        "widths": [len(state[f"{blocks}.{stage}.layers.0.layer.2.convolution.weight"]) for stage in range(4)],
        "depths": depths,
        "decoder": [len(state[f"decoder.fusions.{level}.lateral.project.weight"]) for level in range(3)],
        "deepest": len(state["decoder.deepest.0.project.weight"]),
    }


def claims(candidate: Candidate) -> bool:
    """Official files, whatever a training script wrapped around them."""
    return candidate.path.is_file() and candidate.find(is_official) is not None


def load(candidate: Candidate) -> LeReSDepth:
    """Load what was claimed, strictly.

    The depth model alone: `shift_model` and `focal_model`, which official files hold beside it, are for point clouds.

    Raises:
        DistillDepthError: another name than one of LeReS, another size than the name says, grouped convolutions, or
            tensors missing, left over or of another shape.
    """
    path, name, entry, pinned = candidate.path, candidate.name, candidate.entry, candidate.pinned
    candidate.refuse_max_depth()
    if entry is not None and entry.family != FAMILY:
        raise DistillDepthError(f"load_model: {path} holds a LeReS network, but '{name}' is not one")
    found = candidate.find(is_official)
    assert found is not None, "only what was claimed is loaded"
    converted, unknown = convert_official(found.state)
    _refuse_groups(path, converted)
    try:
        architecture = infer_architecture(converted)
    except (LookupError, ValueError, TypeError) as error:
        raise DistillDepthError(f"load_model: {path} lacks {error} of LeReS; download it again") from None
    if pinned is not None and architecture != VARIANTS[pinned.variant]:
        wanted = VARIANTS[pinned.variant]
        other = next(key for key in wanted if wanted[key] != architecture[key])
        raise DistillDepthError(
            f"load_model: {path} is a LeReS network with {other} {architecture[other]}, '{name}' has {wanted[other]}; "
            f"name it leres@{path}"
        )
    licence = "see the source" if entry is None else entry.licence
    info = ModelInfo(name, FAMILY, "depth", licence, str(path), (found.note,) if found.note else ())
    model = build_to_fit(
        lambda: build(architecture, info),
        lambda skeleton: check_state(path, skeleton, converted, unknown),
        f"{path} describes no network",
    )
    model.load_state_dict(converted)
    return model


def _refuse_groups(path: Path, state: dict[str, Tensor]) -> None:
    weight = state.get("encoder.encoder.stages.0.layers.0.layer.1.convolution.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[0] != weight.shape[1]:
        raise DistillDepthError(
            f"load_model: {path} is LeReS with a ResNeXt (grouped convolutions of {weight.shape[1]} channels), which "
            "is not supported; of the official files res50.pth is"
        )
