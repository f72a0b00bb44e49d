"""A dense light student: plain convolutions, attention only at 1/32, made for CPUs and small GPUs.

Depthwise convolutions save multiplications but are bound by memory on CPUs, so every convolution here is dense and
few-channelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.models.base import DepthOutput, ModelInfo, pyramid
from distilldepth.models.bounds import DEEPEST, WIDEST, listed, whole
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.recompute import run_block
from distilldepth.models.top_down import ConvNormAct, Residual, TopDownDepth

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


class LightDepth(TopDownDepth):
    """Encoder to 1/32, attention there, top-down fusion back to 1/2, bilinear to the input's size."""

    folds: ClassVar[Mapping[type[nn.Module], tuple[str, str]]] = {}

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
        self._again = False
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
        self.add_decoder(widths, decoder)

    @property
    def architecture(self) -> dict[str, Any]:
        return dict(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        again = self._again
        x = run_block(self.stem, self.normalise(images), again=again)
        levels = [x]
        for stage in self.stages:
            x = run_block(stage, x, again=again)
            levels.append(x)
        for block in self.context:
            x = run_block(block, x, again=again)
        levels[-1] = x
        values = self.decode(levels, images.shape[-2:], again=again)
        return DepthOutput(values, pyramid(levels, finest=2) if features else {})

    def enable_gradient_checkpointing(self) -> None:
        self._again = True


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
