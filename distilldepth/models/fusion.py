"""The fusion decoder of LeReS: from the coarsest map of an encoder up to the finest, two 3x3 branches at each size.

Source: Yin et al., Learning to Recover 3D Scene Shape from a Single Image (LeReS, 2012.09365); Xian et al.,
Structure-Guided Ranking Loss (CVPR 2020), whose decoder it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.models.preprocess import resize
from distilldepth.models.recompute import run_block


class FeatureTransform(nn.Module):
    """Convolution to the new width, then a residual branch of two convolutions (FTB)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Both the skip and the branch see the rectified map: the original rectifies it in place.
        x = F.relu(self.project(x))
        return F.relu(x + self.branch(x))


class Fusion(nn.Module):
    """Add the map from below to a level's own map and hand the sum up (FFM)."""

    def __init__(self, lateral: int, width: int, outputs: int, interpolation: str) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.lateral = FeatureTransform(lateral, width)
        self.out = FeatureTransform(width, outputs)

    def forward(self, lateral: Tensor, coarse: Tensor) -> Tensor:
        coarse = resize(coarse, (lateral.shape[-2], lateral.shape[-1]), self.interpolation)
        return self.out(self.lateral(lateral) + coarse)


class FusionDecoder(nn.Module):
    """Fuse four maps from 1/32 up to 1/4 and predict one map of logits at 1/2.

    A coarse map is resized to the size of the map it meets rather than doubled, so any input size works.

    Args:
        widths: channels of the encoder's maps, finest first.
        decoder: widths of the fusion at all sizes but the coarsest, finest first.
        deepest: width of the first block, at the coarsest size.
        interpolation: how maps are enlarged: `bilinear`, where pixel areas stay in place and the offset between two
            levels is the same everywhere, at any size; or `bilinear-corners`.
    """

    def __init__(self, widths: Sequence[int], decoder: Sequence[int], deepest: int, interpolation: str) -> None:
        super().__init__()
        self.again = False
        self.interpolation = interpolation
        self.deepest = nn.Sequential(
            FeatureTransform(widths[-1], deepest), nn.Conv2d(deepest, decoder[-1], 3, padding=1)
        )
        outputs = [decoder[0], *decoder[:-1]]
        self.fusions = nn.ModuleList(
            Fusion(lateral, width, out, interpolation)
            for lateral, width, out in zip(widths[:-1], decoder, outputs, strict=True)
        )
        first, last = nn.Conv2d(decoder[0], decoder[0] // 2, 3, padding=1), nn.Conv2d(decoder[0] // 2, 1, 3, padding=1)
        self.head = nn.Sequential(first, nn.BatchNorm2d(decoder[0] // 2), nn.ReLU(), last)

    def forward(self, levels: Sequence[Tensor], half: tuple[int, int]) -> Tensor:
        """Return logits `(B, 1, h, w)` of the size `half`, from `levels`, finest first."""
        x = run_block(self.deepest, levels[-1], again=self.again)
        for fusion, lateral in zip(reversed(self.fusions), reversed(levels[:-1]), strict=True):
            x = run_block(fusion, lateral, x, again=self.again)
        return self.head(resize(x, half, self.interpolation))
