"""The DPT head of GenPercept: the levels of a U-Net, fused from coarse to fine, into one map.

Source: Ranftl et al., DPT (2103.13413); Xu et al., GenPercept (2403.06090), its variant with a customised head. Names
of tensors are those of its checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.models.preprocess import resize

_LAST_WIDTH = 32


class _Residual(nn.Module):
    """ReLU, convolution, twice, and what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution2(F.relu(self.convolution1(F.relu(x))))


class _Fusion(nn.Module):
    """Adds a finer level, and doubles the size."""

    def __init__(self, width: int, *, first: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, 1)
        if not first:
            self.residual_layer1 = _Residual(width)
        self.residual_layer2 = _Residual(width)

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        if level is not None:
            x = x + self.residual_layer1(resize(level, (x.shape[-2], x.shape[-1]), "bilinear"))
        x = F.interpolate(self.residual_layer2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.projection(x)


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _FusionStage(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Fusion(width, first=index == 0) for index in range(count))


class _Neck(nn.Module):
    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(count, width, 3, padding=1, bias=False) for count in channels)
        self.fusion_stage = _FusionStage(len(channels), width)

    def forward(self, levels: list[Tensor]) -> Tensor:
        maps = [conv(level) for conv, level in zip(self.convs, levels, strict=True)][::-1]
        fused = self.fusion_stage.layers[0](maps[0], None)
        for layer, level in zip(list(self.fusion_stage.layers)[1:], maps[1:], strict=True):
            fused = layer(fused, level)
        return fused


class _Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, _LAST_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_LAST_WIDTH, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.projection(x)))


class DPTHead(nn.Module):
    """Four levels to one map, without an activation at the end.

    Args:
        channels: of the levels, the finest first.
        width: of the fusion.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.feature_upsample_0 = _Upsample(channels[0])
        self.neck = _Neck(channels, width)
        self.head = _Head(width)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Fuse.

        Args:
            levels: `(B, C, h, w)` each, the finest first; the second is as large as the first, each further one half.

        Returns:
            `(B, 1, 8 h, 8 w)` with h, w of the finest, where these are multiples of what the others were halved by.
        """
        return self.head(self.neck([self.feature_upsample_0(levels[0]), *levels[1:]]))
