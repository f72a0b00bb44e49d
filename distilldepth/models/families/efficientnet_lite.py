"""EfficientNet-Lite-0, -1 and -2 with a dense top-down decoder: students whose encoder has published ImageNet weights.

The encoder is EfficientNet without squeeze-and-excitation and with ReLU6 for its activation; width and depth grow with
the variant, the width of the stem and the depth of the first and the last stage do not. It keeps two habits of
TensorFlow on which the published weights depend: convolutions pad so that a map of n pixels becomes one of
ceil(n / stride), and batch normalisation adds 1e-3 to the variance. The 1x1 convolution and the classifier behind the
last stage are left out.

Source: EfficientNet (Tan and Le 2019), table 1; EfficientNet-Lite (Liu 2020), its published models.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.errors import did_you_mean
from distilldepth.models.base import DepthOutput, ModelInfo, pyramid
from distilldepth.models.bounds import DEEPEST, WIDEST, listed, whole
from distilldepth.models.families import Layout
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.recompute import run_block
from distilldepth.models.top_down import TopDownDepth

_STEM = 32
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 2, 3),
    (5, 6, 112, 1, 3),
    (5, 6, 192, 2, 4),
    (3, 6, 320, 1, 1),
)
"""Of EfficientNet-B0: kernel, expansion, width, stride of the first block, blocks."""
_DECODER = [16, 32, 64, 128]


def _variant(width: float, depth: float) -> dict[str, Any]:
    """The arguments for stages so many times as wide and deep."""
    stages = []
    for place, (kernel, expansion, outputs, stride, count) in enumerate(_STAGES):
        at_end = place in (0, len(_STAGES) - 1)
        stages.append(
            [kernel, expansion, _widened(outputs, width), stride, count if at_end else math.ceil(count * depth)]
        )
    return {"stem": _STEM, "stages": stages, "decoder": list(_DECODER)}


def _widened(channels: int, times: float) -> int:
    """So many times the channels, to the nearest multiple of 8 that takes away no more than a tenth."""
    wanted = channels * times
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


VARIANTS: dict[str, dict[str, Any]] = {
    "lite0": _variant(1.0, 1.0),
    "lite1": _variant(1.0, 1.1),
    "lite2": _variant(1.1, 1.2),
}
"""Arguments of `EfficientNetLiteDepth` by variant; its docstring says what each means."""

MEAN = (127 / 255, 127 / 255, 127 / 255)
STD = (128 / 255, 128 / 255, 128 / 255)
"""The published weights see (x - 127) / 128 for x in 0..255."""

_WIDTH = whole(1, WIDEST)
ARCHITECTURE = {
    "stem": _WIDTH,
    "stages": listed(listed(_WIDTH, 5, 5), 1, DEEPEST),
    "decoder": listed(_WIDTH, 1, 11),
}
"""What the arguments of `EfficientNetLiteDepth` may be in a file."""


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: n pixels become ceil(n / stride) at every size.

    With a stride of 2 an even side has one row of zeros more below it than above it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Convolve; with the weights times `scale`, `(C,)`, if there is one, and `shift`, `(C,)`, added."""
        weight = self.weight if scale is None else self.weight * scale.view(-1, 1, 1, 1)
        shift = self.bias if shift is None else shift
        half, stride = self.kernel_size[0] // 2, self.stride[0]
        down, right = (int(half > 0 and stride > 1 and side % 2 == 0) for side in x.shape[-2:])
        if not down + right:
            return F.conv2d(x, weight, shift, stride, half, groups=self.groups)
        if x.shape[1] * stride**2 <= len(weight):  # The image itself is padded: it is smaller than the result.
            x = F.pad(x, (half - right, half, half - down, half))
            return F.conv2d(x, weight, shift, stride, groups=self.groups)
        # One row more on both sides, and the first row of the result left out, is the same without a copy of the map:
        # every window begins one stride earlier.
        y = F.conv2d(x, weight, shift, stride, (half + down, half + right), groups=self.groups)
        return y[..., down:, right:]


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU6.

    Where the statistics are fixed, the normalisation is part of the convolution: one pass over the map, not two.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.convolution = SameConv2d(inputs, outputs, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if (
            not isinstance(norm, nn.BatchNorm2d)
            or norm.training
            or norm.running_mean is None
            or norm.running_var is None
        ):
            return self.act(norm(self.convolution(x)))
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.act(self.convolution(x, scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)))


class InvertedResidual(nn.Module):
    """Widen, convolve per channel, narrow; a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = ConvNorm(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(width, width, kernel, stride, groups=width)
        self.project = ConvNorm(width, outputs, act=False)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class Encoder(nn.Module):
    """Stem and stages; gives the last map of each size, finest first."""

    def __init__(self, stem: int, stages: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.again = False
        self.stem = ConvNorm(3, stem, 3, 2)
        inputs, made = stem, list[nn.Sequential]()
        for kernel, expansion, outputs, stride, count in stages:
            blocks = nn.Sequential()
            for place in range(count):
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel=kernel, expansion=expansion, stride=step))
                inputs = outputs
            made.append(blocks)
        self.stages = nn.ModuleList(made)
        strides = [row[3] for row in stages[1:]]
        self.ends = [place for place, stride in enumerate(strides) if stride > 1] + [len(stages) - 1]
        self.widths = [stages[place][2] for place in self.ends]
        _initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = run_block(self.stem, images, again=self.again)
        levels = []
        for place, stage in enumerate(self.stages):
            for block in stage.children():
                x = run_block(block, x, again=self.again)
            if place in self.ends:
                levels.append(x)
        return levels


class EfficientNetLiteDepth(TopDownDepth):
    """EfficientNet-Lite encoder and dense decoder; disparity in [0, 1], larger = nearer.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: how images are brought to it.
        stem: channels of the first convolution.
        stages: inverted residuals, `[kernel, expansion, width, stride, blocks]` each, the stride being that of the
            first block: 1, or 2 where the map halves.
        decoder: channels of the decoder at each size but the coarsest, finest first. One entry less than the encoder
            has sizes ends the decoder at 1/2; two entries less at 1/4.

    Raises:
        ValueError: a kernel that is even, a stride beyond 2, a first stage with stride 2, or a decoder with another
            number of entries.
    """

    folds: ClassVar[Mapping[type[nn.Module], tuple[str, str]]] = {ConvNorm: ("convolution", "norm")}

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        stem: int,
        stages: Sequence[Sequence[int]],
        decoder: Sequence[int],
    ) -> None:
        for kernel, _, _, stride, _ in stages:
            if kernel % 2 == 0 or stride > 2:
                raise ValueError(
                    f"EfficientNetLiteDepth: kernels must be odd and strides 1 or 2, got {kernel} and {stride}"
                )
        sizes = sum(row[3] > 1 for row in stages) + 1
        if stages[0][3] > 1 or not 1 <= len(decoder) < sizes:
            raise ValueError(
                f"EfficientNetLiteDepth: the first stage must have stride 1, and decoder 1 to {sizes - 1} entries, "
                f"got stride {stages[0][3]} and {len(decoder)} entries"
            )
        super().__init__(info, preprocessing)
        self._architecture = {"stem": stem, "stages": [list(row) for row in stages], "decoder": list(decoder)}
        self.encoder = Encoder(stem, stages)
        self.add_decoder(self.encoder.widths[-len(decoder) - 1 :], decoder)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build` makes this network again."""
        return copy.deepcopy(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Predict for images `(B, 3, H, W)`, RGB in [0, 1], of any size.

        Returns:
            Disparity `(B, H, W)`, float32 under autocast; `features` are the maps at 1/4 to 1/32.
        """
        levels = self.encoder(self.normalise(images))
        used = levels[-len(self.fuse) - 1 :]
        values = self.decode(used, images.shape[-2:], again=self.encoder.again)
        return DepthOutput(values, pyramid(levels, finest=2) if features else {})

    def enable_gradient_checkpointing(self) -> None:
        self.encoder.again = True


def build(
    architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
) -> EfficientNetLiteDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `EfficientNetLiteDepth`; or `{"variant": "lite0"}`, with further arguments to
            replace those of the variant.
        info: what the network is called and what its numbers mean.
        preprocessing: None for 256 pixels on the shorter side, the numbers that the published encoders see, and maps
            that go back as the network itself enlarges: with the corners of the frame in place.

    Raises:
        ValueError: unknown variant or argument, or an argument is missing.

    >>> info = ModelInfo("efficientnet-lite0", "efficientnet-lite", "disparity", "Apache-2.0", "random")
    >>> build({"variant": "lite0"}, info).eval()(torch.rand(1, 3, 45, 96)).values.shape
    torch.Size([1, 45, 96])
    """
    arguments = dict(architecture)
    variant = arguments.pop("variant", None)
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"build: unknown EfficientNet-Lite variant {variant!r}{did_you_mean(variant, VARIANTS)}")
        arguments = {**VARIANTS[variant], **arguments}
    for name in arguments:
        if name not in ARCHITECTURE:
            raise ValueError(f"build: unknown EfficientNet-Lite argument {name!r}{did_you_mean(name, ARCHITECTURE)}")
    if missing := [name for name in ARCHITECTURE if name not in arguments]:
        raise ValueError(f"build: EfficientNet-Lite needs {', '.join(missing)}; give them, or a variant")
    preprocessing = preprocessing or Preprocessing(
        256, 32, mean=MEAN, std=STD, interpolation="bilinear-antialias", map_interpolation="bilinear"
    )
    return EfficientNetLiteDepth(info, preprocessing, **arguments)


def encoder_layouts(model: EfficientNetLiteDepth) -> list[Layout]:
    """Return how timm (`tf_efficientnet_lite0`) and the packages after efficientnet-pytorch name the encoder's tensors.

    Both have the classifier, and the 1x1 convolution before it, in the same file.
    """
    timm, plain = {"stem": ("conv_stem", "bn1")}, {"stem": ("_conv_stem", "_bn0")}
    flat = 0
    for stage, blocks in enumerate(model.encoder.stages):
        for place, block in enumerate(blocks.children()):
            ours, theirs = f"stages.{stage}.{place}", f"blocks.{stage}.{place}"
            widened = isinstance(block.expand, ConvNorm)
            steps = ["expand"] * widened + ["depthwise", "project"]
            convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if widened else ["conv_dw", "conv_pw"]
            for count, (step, convolution) in enumerate(zip(steps, convolutions, strict=True)):
                norm = count + (0 if widened else 1)
                timm[f"{ours}.{step}"] = f"{theirs}.{convolution}", f"{theirs}.bn{count + 1}"
                plain[f"{ours}.{step}"] = f"_blocks.{flat}._{step}_conv", f"_blocks.{flat}._bn{norm}"
            flat += 1
    return [
        Layout(_names(model, timm), ("conv_head.", "bn2.", "classifier.")),
        Layout(_names(model, plain), ("_conv_head.", "_bn1.", "_fc.")),
    ]


def _names(model: EfficientNetLiteDepth, layers: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Our name of each tensor of the encoder and theirs, from their names of convolution and normalisation."""
    names = {}
    for name in model.encoder.state_dict():
        layer, part, tensor = name.rsplit(".", 2)
        names[f"encoder.{name}"] = f"{layers[layer][part == 'norm']}.{tensor}"
    return names


def _initialise(encoder: Encoder) -> None:
    """He initialisation by fan-out, as the published encoder has it."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
