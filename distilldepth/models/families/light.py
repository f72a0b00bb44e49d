"""A dense light student: plain convolutions, attention only at 1/32, made for CPUs and small GPUs.

Depthwise convolutions save multiplications but are bound by memory on CPUs, so every convolution here is dense and
few-channelled. The output is a sigmoid: the losses of distillation see disparity only up to scale and shift, and a
bounded output keeps the magnitude that they leave open from drifting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import DEEPEST, WIDEST, listed, whole
from distilldepth.models.preprocess import Preprocessing

VARIANTS: dict[str, dict[str, Any]] = {
    "mini": {
        "widths": [24, 48, 96, 160, 224],
        "blocks": [1, 2, 2, 1],
        "attention": 2,
        "heads": 7,
        "decoder": [32, 48, 64, 96],
    },
}


_WIDTH = whole(1, WIDEST)
ARCHITECTURE = {
    "widths": listed(_WIDTH, 2, 12),
    "blocks": listed(whole(0, DEEPEST), 1, 11),
    "attention": whole(0, DEEPEST),
    "heads": whole(1, DEEPEST),
    "decoder": listed(_WIDTH, 1, 11),
}
"""What the arguments of `LightDepth` may be in a file."""


class ConvNormAct(nn.Sequential):
    """3x3 (or 1x1) convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, act: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if act:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNormAct(width, width)
        self.second = ConvNormAct(width, width, act=False)
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Attention(nn.Module):
    """Pre-norm transformer block over the positions of a map; a depthwise convolution tells it where they are."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        batch, width, height, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm1(tokens)).view(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, -1, width))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(batch, width, height, columns)


class LightDepth(DepthModel):
    """Encoder to 1/32, attention there, top-down fusion back to 1/2, bilinear to the input's size."""

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        widths: list[int],
        blocks: list[int],
        attention: int,
        heads: int,
        decoder: list[int],
    ) -> None:
        if not len(widths) - 1 == len(blocks) == len(decoder):
            raise ValueError(
                f"LightDepth: blocks and decoder must have one entry less than widths, {len(widths) - 1}, "
                f"got {len(blocks)} and {len(decoder)}"
            )
        if widths[-1] % heads:
            raise ValueError(f"LightDepth: heads must divide the last width, {widths[-1]}, got {heads}")
        super().__init__(info, preprocessing)
        self._architecture = {
            "widths": list(widths),
            "blocks": list(blocks),
            "attention": attention,
            "heads": heads,
            "decoder": list(decoder),
        }
        self.stem = ConvNormAct(3, widths[0], stride=2)
        stages = []
        for level, count in enumerate(blocks):
            down = ConvNormAct(widths[level], widths[level + 1], stride=2)
            stages.append(nn.Sequential(down, *(Residual(widths[level + 1]) for _ in range(count))))
        self.stages = nn.ModuleList(stages)
        self.context = nn.Sequential(*(Attention(widths[-1], heads) for _ in range(attention)))
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(widths[:-1], decoder, strict=True))
        incoming = [*decoder[1:], widths[-1]]
        self.reduce = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(incoming, decoder, strict=True))
        self.fuse = nn.ModuleList(Residual(width) for width in decoder)
        self.head = nn.Sequential(ConvNormAct(decoder[0], decoder[0]), nn.Conv2d(decoder[0], 1, 1))

    @property
    def architecture(self) -> dict[str, Any]:
        return dict(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        x = self.stem(self.normalise(images))
        levels = [x]
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        deepest = x = self.context(x)
        for level in reversed(range(len(self.fuse))):
            side = levels[level]
            coarse = F.interpolate(self.reduce[level](x), side.shape[-2:], mode="bilinear", align_corners=False)
            x = self.fuse[level](coarse + self.lateral[level](side))
        logits = F.interpolate(self.head(x).float(), images.shape[-2:], mode="bilinear", align_corners=False)
        return DepthOutput(torch.sigmoid(logits[:, 0]), {"encoder": deepest} if features else {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        encoder = [self.stem, self.stages, self.context]
        decoder = [self.lateral, self.reduce, self.fuse, self.head]
        return {
            "encoder": [p for module in encoder for p in module.parameters()],
            "decoder": [p for module in decoder for p in module.parameters()],
        }


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> LightDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `LightDepth`, or `{"variant": "mini"}`.
        info: what the network is called and what its numbers mean.
        preprocessing: None for 256 pixels on the shorter side, and maps that go back as the network itself enlarges:
            with the corners of the frame in place.
    """
    if "variant" in architecture:
        architecture = VARIANTS[architecture["variant"]]
    preprocessing = preprocessing or Preprocessing(
        256, 32, interpolation="bilinear-antialias", map_interpolation="bilinear"
    )
    return LightDepth(info, preprocessing, **architecture)
