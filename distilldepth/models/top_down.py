"""A decoder of dense convolutions: from the coarsest level of an encoder up to the finest, each level fused on the way.

Depthwise convolutions save multiplications but are bound by memory on CPUs, so every 3x3 convolution here is dense and
few-channelled. The output is a sigmoid: the losses of distillation see disparity only up to scale and shift, and a
bounded output keeps the magnitude that they leave open from drifting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.models.base import DepthModel
from distilldepth.models.recompute import run_block


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


class TopDownDepth(DepthModel):
    """A network with this decoder; subclasses make their encoder, then call `add_decoder`."""

    lateral: nn.ModuleList
    reduce: nn.ModuleList
    fuse: nn.ModuleList
    head: nn.Sequential

    def add_decoder(self, widths: Sequence[int], decoder: Sequence[int]) -> None:
        """Make the decoder's layers.

        Args:
            widths: channels of the encoder's levels, finest first; one more than `decoder`.
            decoder: channels of the decoder at each level but the coarsest.
        """
        # The decoder's layers lie beside the encoder's, not under a name of their own: so checkpoints have them.
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(widths[:-1], decoder, strict=True))
        incoming = [*decoder[1:], widths[-1]]
        self.reduce = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(incoming, decoder, strict=True))
        self.fuse = nn.ModuleList(Residual(width) for width in decoder)
        self.head = nn.Sequential(ConvNormAct(decoder[0], decoder[0]), nn.Conv2d(decoder[0], 1, 1))

    def decode(self, levels: Sequence[Tensor], size: torch.Size, *, again: bool) -> Tensor:
        """Fuse the levels into a map.

        Args:
            levels: `(B, C, h, w)` each, finest first.
            size: (height, width) of the images.
            again: whether the blocks' insides are computed again in the backward pass.

        Returns:
            Disparity in [0, 1], float32 `(B, H, W)`.
        """
        x = levels[-1]
        for level in reversed(range(len(self.fuse))):
            side = levels[level]
            coarse = F.interpolate(self.reduce[level](x), side.shape[-2:], mode="bilinear", align_corners=False)
            x = run_block(self.fuse[level], coarse + self.lateral[level](side), again=again)
        logits = F.interpolate(self.head(x).float(), size, mode="bilinear", align_corners=False)
        return torch.sigmoid(logits[:, 0])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the encoder and of the decoder."""
        decoder = [p for part in (self.lateral, self.reduce, self.fuse, self.head) for p in part.parameters()]
        own = {id(p) for p in decoder}
        return {"encoder": [p for p in self.parameters() if id(p) not in own], "decoder": decoder}
