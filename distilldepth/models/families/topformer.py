"""TopFormer-tiny, -small and -base with a feature-fusion decoder: a light student for phones and small GPUs.

The encoder is a short mobile network whose four token maps (1/4, 1/8, 1/16, 1/32) are pooled to 1/64, concatenated,
mixed by four attention blocks and handed back to the levels. It keeps two habits of the published encoder on which
trained weights depend: the attention is not scaled by 1/sqrt(key width), and batch normalisation at the end of the
attention starts at zero. The decoder is the fusion decoder of LeReS, narrowed per level.

The output is a sigmoid. The losses of distillation see disparity only up to scale and shift, which leaves its magnitude
open; a bounded output keeps it from drifting. Published encoder checkpoints are not loaded here.

Source: TopFormer (Zhang et al. 2022), sections 3.1 to 3.3; LeReS (Yin et al. 2021), decoder.
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
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo, pyramid
from distilldepth.models.bounds import DEEPEST, WIDEST, listed, number, whole
from distilldepth.models.fusion import FusionDecoder
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.models.recompute import run_block

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {
        "blocks": [
            [[3, 1, 16, 1]],
            [[3, 4, 16, 2], [3, 3, 16, 1]],
            [[5, 3, 32, 2], [5, 3, 32, 1]],
            [[3, 3, 64, 2], [3, 3, 64, 1]],
            [[5, 6, 96, 2], [5, 6, 96, 1]],
        ],
        "heads": 4,
        "injection": [0, 0, 0, 0],
        "decoder": [48, 64, 96],
        "deepest": 96,
        "drop_path": 0.1,
    },
    "small": {
        "blocks": [
            [[3, 1, 16, 1]],
            [[3, 4, 24, 2], [3, 3, 24, 1]],
            [[5, 3, 48, 2], [5, 3, 48, 1]],
            [[3, 3, 96, 2], [3, 3, 96, 1]],
            [[5, 6, 128, 2], [5, 6, 128, 1], [3, 6, 128, 1]],
        ],
        "heads": 6,
        "injection": [0, 0, 0, 0],
        "decoder": [64, 96, 128],
        "deepest": 128,
        "drop_path": 0.1,
    },
    "base": {
        "blocks": [
            [[3, 1, 16, 1]],
            [[3, 4, 32, 2], [3, 3, 32, 1]],
            [[5, 3, 64, 2], [5, 3, 64, 1]],
            [[3, 3, 128, 2], [3, 3, 128, 1]],
            [[5, 6, 160, 2], [5, 6, 160, 1], [3, 6, 160, 1]],
        ],
        "heads": 8,
        "injection": [0, 0, 0, 0],
        "decoder": [128, 192, 256],
        "deepest": 256,
        "drop_path": 0.1,
    },
}
"""Arguments of `TopFormerDepth` by variant; its docstring says what each means."""

SIZES = {"tiny": 256, "small": 320, "base": 448}
"""Shorter side in pixels at which each variant works unless told otherwise."""

_WIDTH = whole(1, WIDEST)
ARCHITECTURE = {
    "blocks": listed(listed(listed(_WIDTH, 4, 4), 1, DEEPEST), 5, 5),
    "heads": whole(1, DEEPEST),
    "injection": listed(whole(0, WIDEST), 4, 4),
    "decoder": listed(_WIDTH, 3, 3),
    "deepest": _WIDTH,
    "drop_path": number(0, 1),
}
"""What the arguments of `TopFormerDepth` may be in a file."""

KEY_WIDTH = 16
VALUE_WIDTH = 32
ATTENTION_BLOCKS = 4


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch normalisation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, scale: float = 1.0
    ) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(outputs)
        super().__init__(convolution, norm)
        nn.init.constant_(norm.weight, scale)


class InvertedResidual(nn.Module):
    """Widen, convolve per channel, narrow; a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [ConvNorm(inputs, width), nn.ReLU()]
        layers += [ConvNorm(width, width, kernel, stride, groups=width), nn.ReLU(), ConvNorm(width, outputs)]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class DropPath(nn.Module):
    """In training, drop the branch of whole samples with this probability and scale up the others."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) < keep).to(x.dtype) / keep


class Attention(nn.Module):
    """Attention over the positions of a map, without the usual 1/sqrt(key width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = ConvNorm(width, heads * KEY_WIDTH)
        self.key = ConvNorm(width, heads * KEY_WIDTH)
        self.value = ConvNorm(width, heads * VALUE_WIDTH)
        self.out = nn.Sequential(nn.ReLU6(), ConvNorm(heads * VALUE_WIDTH, width, scale=0.0))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        query = self.query(x).reshape(batch, self.heads, KEY_WIDTH, height * width)
        key = self.key(x).reshape(batch, self.heads, KEY_WIDTH, height * width)
        value = self.value(x).reshape(batch, self.heads, VALUE_WIDTH, height * width)
        weights = (query.transpose(-2, -1) @ key).softmax(-1).to(value.dtype)
        mixed = value @ weights.transpose(-2, -1)
        return self.out(mixed.reshape(batch, self.heads * VALUE_WIDTH, height, width))


class Block(nn.Module):
    """Attention, then a two-layer network with a depthwise convolution between, each around a skip."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            ConvNorm(width, 2 * width),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
            nn.ReLU6(),
            ConvNorm(2 * width, width),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(x))
        return x + self.drop_path(self.mlp(x))


class Injection(nn.Module):
    """Give a level its slice of the global map: `local * gate + semantics` with weights, `local + slice` without."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        if outputs:
            self.local = ConvNorm(inputs, outputs)
            self.gate = ConvNorm(inputs, outputs)
            self.semantics = ConvNorm(inputs, outputs)

    def forward(self, token: Tensor, part: Tensor) -> Tensor:
        if not self.outputs:
            return token + _resize(part, token.shape[-2:])
        gate = _resize(F.hardsigmoid(self.gate(part)), token.shape[-2:])
        return self.local(token) * gate + _resize(self.semantics(part), token.shape[-2:])


class Encoder(nn.Module):
    """Token pyramid, global attention at 1/64, injection; gives four maps at 1/4, 1/8, 1/16 and 1/32."""

    def __init__(
        self, blocks: Sequence[Sequence[Sequence[int]]], heads: int, injection: Sequence[int], drop_path: float
    ) -> None:
        super().__init__()
        self.again = False
        self.stem = nn.Sequential(ConvNorm(3, 16, 3, 2), nn.ReLU())
        width, levels, self.token_widths = 16, [], []
        for rows in blocks:
            layers = []
            for kernel, expansion, outputs, stride in rows:
                layers.append(InvertedResidual(width, outputs, kernel=kernel, expansion=expansion, stride=stride))
                width = outputs
            levels.append(nn.Sequential(*layers))
            self.token_widths.append(width)
        self.levels = nn.ModuleList(levels)
        del self.token_widths[0]  # the 1/2 level hands out no token
        rates = [drop_path * i / (ATTENTION_BLOCKS - 1) for i in range(ATTENTION_BLOCKS)]
        total = sum(self.token_widths)
        self.context = nn.Sequential(*(Block(total, heads, rate) for rate in rates))
        self.injections = nn.ModuleList(
            Injection(width, outputs) for width, outputs in zip(self.token_widths, injection, strict=True)
        )
        self.widths = [outputs or width for width, outputs in zip(self.token_widths, injection, strict=True)]
        _initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        again = self.again
        x = run_block(self.levels[0], run_block(self.stem, images, again=again), again=again)
        tokens = []
        for level in self.levels[1:]:
            x = run_block(level, x, again=again)
            tokens.append(x)
        size = math.ceil(x.shape[-2] / 2), math.ceil(x.shape[-1] / 2)
        x = torch.cat([F.adaptive_avg_pool2d(token, size) for token in tokens], 1)
        for block in self.context:
            x = run_block(block, x, again=again)
        parts = x.split(self.token_widths, 1)
        return [inject(token, part) for inject, token, part in zip(self.injections, tokens, parts, strict=True)]


class TopFormerDepth(DepthModel):
    """TopFormer encoder and feature-fusion decoder; disparity in [0, 1], larger = nearer.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: how images are brought to it.
        blocks: five levels (1/2 to 1/32) of inverted residuals, each `[kernel, expansion, width, stride]`.
        heads: attention heads, with key width 16 and value width 32.
        injection: width of the injection with weights at 1/4, 1/8, 1/16 and 1/32; 0 adds the level's slice of the
            global map to its token, without weights. The published segmentation encoders are `[0, w, w, w]` with
            w = 128, 192 and 256.
        decoder: widths of the fusion at 1/4, 1/8 and 1/16.
        deepest: width of the first block of the decoder, at 1/32.
        drop_path: rate of the last attention block; the others rise to it linearly from 0.

    Raises:
        ValueError: the number of levels, injections or decoder widths is wrong, or `drop_path` outside [0, 1).
    """

    folds: ClassVar[Mapping[type[nn.Module], tuple[str, str]]] = {}

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        blocks: Sequence[Sequence[Sequence[int]]],
        heads: int,
        injection: Sequence[int],
        decoder: Sequence[int],
        deepest: int,
        drop_path: float,
    ) -> None:
        for name, values, count in (("blocks", blocks, 5), ("injection", injection, 4), ("decoder", decoder, 3)):
            if len(values) != count:
                raise ValueError(f"TopFormerDepth: {name} must have {count} entries, got {len(values)}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"TopFormerDepth: drop_path must be at least 0 and less than 1, got {drop_path}")
        super().__init__(info, preprocessing)
        self._architecture = {
            "blocks": [[list(row) for row in rows] for rows in blocks],
            "heads": heads,
            "injection": list(injection),
            "decoder": list(decoder),
            "deepest": deepest,
            "drop_path": drop_path,
        }
        self.encoder = Encoder(blocks, heads, injection, drop_path)
        self.decoder = FusionDecoder(self.encoder.widths, decoder, deepest, "bilinear")
        _initialise(self.decoder)
        last = self.decoder.head[-1]
        assert isinstance(last, nn.Conv2d)
        # Starts the sigmoid near one half, where its slope is largest.
        nn.init.normal_(last.weight, std=0.01)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build` makes this network again."""
        return copy.deepcopy(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Predict for images `(B, 3, H, W)`, RGB in [0, 1], of any size; training needs more than 64 x 64 or B > 1.

        Returns:
            Disparity `(B, H, W)`, float32 under autocast; `features` are the maps at 1/4 to 1/32,
            as the decoder takes them.
        """
        height, width = images.shape[-2:]
        levels = self.encoder(self.normalise(images))
        logits = self.decoder(levels, (math.ceil(height / 2), math.ceil(width / 2)))
        # In bfloat16 a sigmoid has 128 steps between one half and one, which would show as contour lines.
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        disparity = _resize(logits.sigmoid(), images.shape[-2:])[:, 0]
        return DepthOutput(disparity, pyramid(levels, finest=4) if features else {})

    def enable_gradient_checkpointing(self) -> None:
        self.encoder.again = self.decoder.again = True

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the encoder, injection included, and of the decoder."""
        return {"encoder": list(self.encoder.parameters()), "decoder": list(self.decoder.parameters())}


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> TopFormerDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `TopFormerDepth`; or `{"variant": "base"}`, with further arguments to
            replace those of the variant.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the variant's own size, 256, 320 or 448 pixels on the shorter side, and maps that go
            back as the network itself enlarges: with the corners of the frame in place.

    Raises:
        ValueError: unknown variant or argument, or an argument is missing.

    >>> info = ModelInfo("topformer-tiny", "topformer", "disparity", "Apache-2.0", "random")
    >>> model = build({"variant": "tiny"}, info)
    >>> model.eval()(torch.rand(1, 3, 64, 96)).values.shape
    torch.Size([1, 64, 96])
    """
    arguments = dict(architecture)
    variant = arguments.pop("variant", None)
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"build: unknown TopFormer variant {variant!r}{did_you_mean(variant, VARIANTS)}")
        arguments = {**VARIANTS[variant], **arguments}
    expected = VARIANTS["base"]
    for name in arguments:
        if name not in expected:
            raise ValueError(f"build: unknown TopFormer argument {name!r}{did_you_mean(name, expected)}")
    if missing := [name for name in expected if name not in arguments]:
        raise ValueError(f"build: TopFormer needs {', '.join(missing)}; give them, or a variant")
    if preprocessing is None:
        same = [name for name in VARIANTS if VARIANTS[name]["blocks"] == arguments["blocks"]]
        size = SIZES[same[0]] if same else SIZES["base"]
        preprocessing = Preprocessing(size, 32, interpolation="bilinear-antialias", map_interpolation="bilinear")
    return TopFormerDepth(info, preprocessing, **arguments)


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return resize(x, (size[0], size[1]), "bilinear")


def _initialise(module: nn.Module) -> None:
    """He initialisation by fan-out, as the published encoder has it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
