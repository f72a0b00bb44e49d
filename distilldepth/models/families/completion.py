"""Depth completion: a dense metric map from a photograph, a few points of known depth, and a map aligned to them.

Classical maps come first, all of log depth and relative to the median of the points, so that metres mean nothing to the
network: planes through the points in inverse depth, the aligned map with planes through what it leaves over at the
points, and a smooth form of the latter. A small U-Net looks at them and at the photograph, and says for each pixel how
to mix them, what to add, how far a point there is to be believed, and how to mix a pixel with its four neighbours in
the few rounds that follow, in which believed points are held. It works with `preprocessing.size` pixels on the shorter
side; its map is enlarged, and points are honoured once more at full resolution.

No layer normalises over a map, so that a frame of another size is no other matter.

Source: label-free distillation's two-stage completion (an aligned relative map, corrected); Cheng et al., Depth
Estimation via Affinity Learned with Convolutional Spatial Propagation Network (2018), for the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.errors import UsageError
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import DEEPEST, WIDEST, listed, text, whole, word
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.models.recompute import run_block
from distilldepth.sparse.align import METHODS
from distilldepth.sparse.planes import LocalPlanes

VARIANTS: dict[str, dict[str, Any]] = {
    "mini": {
        "widths": [24, 48, 72, 96],
        "blocks": [0, 2, 2, 2],
        "decoder": [1, 1, 1],
        "rounds": 3,
        "guide": "distilldepth-mini",
        "align": "least-squares",
    },
}
"""Arguments of `CompletionModel` by variant; its docstring says what each means."""

_BLOCKS = whole(0, DEEPEST)
ARCHITECTURE = {
    "widths": listed(whole(1, WIDEST), 2, 8),
    "blocks": listed(_BLOCKS, 2, 8),
    "decoder": listed(_BLOCKS, 1, 7),
    "rounds": whole(0, 64),
    "guide": text(1, 1000),
    "align": word(*METHODS),
}
"""What the arguments of `CompletionModel` may be in a file."""

_RIDGES = ((0.1, 0.3), (3.0, 3.0))
"""Of the planes that follow the points, and of smooth ones, from which an outlier stands out."""
_BEYOND = 0.4
"""Classical maps lie between the nearest and the furthest point, this much in log depth beyond them at most."""
_LARGEST_CHANGE = 1.5
"""What the network adds, in log depth, at most."""
_UNBELIEVED = 0.05
"""A point that is believed less than this hardly moves the map at full resolution."""
_LEAST = 1e-6
"""Metres; nearer points and maps are taken for this."""
_INPUTS = 10
_MIXED = 4
"""Maps between which the network chooses."""
_OUTPUTS = _MIXED + 2 + 5
"""Per pixel: logits of these maps, the change, how far a point is believed, logits of itself and its neighbours."""


@dataclass
class _Points:
    """What is known, at the size at which the network works: all `(B, h, w)`, in log depth from the median."""

    known: Tensor
    """1 where there is a point, else 0."""
    depth: Tensor
    """0 where there is none."""
    aligned: Tensor


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip, without normalisation; begins as the skip alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class CompletionModel(DepthModel):
    """A network that corrects an aligned map by points of known depth and a photograph.

    Args:
        info: who it is.
        preprocessing: `size` is the number of pixels on the shorter side at which it works; smaller frames keep theirs.
        widths: channels of each level of the U-Net, that of half the working resolution first.
        blocks: residual blocks of each level on the way down.
        decoder: the same on the way up; one fewer, since the coarsest level has none.
        rounds: how often each pixel is mixed with its neighbours.
        guide: name of the model whose map it was trained to correct.
        align: the method of `align_to_points` with which that map was aligned.
    """

    takes_points = True

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        decoder: Sequence[int],
        rounds: int,
        guide: str,
        align: str,
    ) -> None:
        if not len(widths) == len(blocks) == len(decoder) + 1:
            raise ValueError(
                f"CompletionModel: blocks must have as many entries as widths, {len(widths)}, and decoder one less, "
                f"got {len(blocks)} and {len(decoder)}"
            )
        super().__init__(info, preprocessing)
        self.widths, self.blocks, self.depths = list(widths), list(blocks), list(decoder)
        self.rounds, self.guide, self.align = rounds, guide, align
        self._again = False
        self.planes = LocalPlanes(2)
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count))) for width, count in zip(widths, blocks, strict=True)
        )
        self.fuse = nn.ModuleList(nn.Conv2d(fine + coarse, fine, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(widths, decoder, strict=False)
        )
        self.head = nn.Conv2d(widths[0], 4 * _OUTPUTS, 1)
        self._begin_classically()

    def _begin_classically(self) -> None:
        """An untrained network is the corrected map, with points believed."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            bias = self.head.bias.view(_OUTPUTS, 4)
            bias[0], bias[_MIXED + 1], bias[_MIXED + 2] = 2.0, 2.0, 3.0

    @property
    def architecture(self) -> dict[str, Any]:
        return {
            "widths": list(self.widths),
            "blocks": list(self.blocks),
            "decoder": list(self.depths),
            "rounds": self.rounds,
            "guide": self.guide,
            "align": self.align,
        }

    def enable_gradient_checkpointing(self) -> None:
        self._again = True

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        raise self._no_points()

    def _no_points(self) -> UsageError:
        return UsageError(
            f"{self.info.name} completes depth that is known at some points, and there are none here; "
            "use distilldepth complete IMAGE --sparse POINTS"
        )

    def forward(
        self,
        images: Tensor,
        *,
        sparse: Tensor | None = None,
        aligned: Tensor | None = None,
        features: bool = False,
    ) -> DepthOutput:
        """Complete depth for images of any size; `DepthModel.forward` says what comes out.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1].
            sparse: see `complete`.
            aligned: see `complete`.
            features: changes nothing; there are none.

        Raises:
            UsageError: no points, or no map.
        """
        if sparse is None or aligned is None:
            raise self._no_points()
        return DepthOutput(self.complete(images, sparse, aligned))

    def complete(self, images: Tensor, sparse: Tensor, aligned: Tensor) -> Tensor:
        """Return the dense map of images with points.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1], any size.
            sparse: `(B, H, W)`, depth, metres; what is 0, negative or not finite is no point.
            aligned: `(B, H, W)`, depth, metres, positive and finite: a map that is aligned to the points, as
                `align_to_points` makes it.

        Returns:
            `(B, H, W)` float32, metres, positive. Multiplied by k if the points and the aligned map are. In an image
            without points the aligned map decides alone.

        Raises:
            ValueError: sizes or shapes that do not fit each other.

        Gradient: to every parameter; none to the inputs.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(f"complete: images must be (B, 3, H, W) with pixels, got {tuple(images.shape)}")
        wanted = (len(images), *images.shape[-2:])
        for name, given in (("sparse", sparse), ("aligned", aligned)):
            if given.shape != wanted:
                raise ValueError(f"complete: {name} must be {wanted} as the images, got {tuple(given.shape)}")
        height, width = images.shape[-2:]
        size = self._working_size(height, width)
        with torch.no_grad():
            known = torch.isfinite(sparse) & (sparse > 0)
            depth = torch.where(known, sparse.float().clamp(min=_LEAST), 1).log()
            points, median = _reduced(known, depth, aligned.float().clamp(min=_LEAST).log(), size)
            picture = _even(resize(images, size, self.preprocessing.interpolation), size)
            maps = self._classical(points)
            seen = _seen(self.normalise(picture), points, maps)
        spoken = F.pixel_shuffle(self._network(seen), 2).float()
        values, belief = self._mixed(spoken, maps, points)
        values, belief = values[:, : size[0], : size[1]], belief[:, : size[0], : size[1]]
        if size != (height, width):
            both = torch.stack((values, belief), 1)
            values, belief = F.interpolate(both, (height, width), mode="bilinear", align_corners=False).unbind(1)
        held = torch.where(known, depth - median, 0)
        return (_honoured(values, belief * known, held) + median).exp()

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self.preprocessing.size / min(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def _classical(self, points: _Points) -> Tensor:
        """The maps `(B, 4, h, w)` between which the network chooses."""
        known, depth, aligned = points.known, points.depth, points.aligned
        wanted = torch.stack((torch.exp(-depth) * known, (depth - aligned) * known), 1)
        fine, smooth = self.planes(known, wanted, _RIDGES)
        inverse = -fine[:, 0].clamp(min=1e-2).log()
        any_point = known.flatten(1).any(1)[:, None, None]
        low = torch.where(known > 0, depth, torch.inf).amin((1, 2), keepdim=True) - _BEYOND
        high = torch.where(known > 0, depth, -torch.inf).amax((1, 2), keepdim=True) + _BEYOND
        maps = torch.stack((aligned + fine[:, 1], inverse, aligned + smooth[:, 1], aligned), 1)
        bounded = torch.minimum(torch.maximum(maps, low[:, None]), high[:, None])
        return torch.where(any_point[:, None], bounded, aligned[:, None])

    def _network(self, seen: Tensor) -> Tensor:
        again = self._again
        x = self.stem(F.pixel_unshuffle(seen, 2))
        levels: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            x = run_block(stage, x, again=again)
            levels.append(x)
            if number < len(self.down):
                x = self.down[number](F.relu(x))
        for number in reversed(range(len(self.fuse))):
            finer = levels[number]
            x = F.interpolate(x, finer.shape[-2:], mode="bilinear", align_corners=False)
            x = self.fuse[number](F.relu(torch.cat((finer, x), 1)))
            x = run_block(self.decoder[number], x, again=again)
        return self.head(F.relu(x))

    def _mixed(self, spoken: Tensor, maps: Tensor, points: _Points) -> tuple[Tensor, Tensor]:
        """Log depth from the median, and how far a point at each pixel would be believed."""
        weights, change, belief, around = spoken.split((_MIXED, 1, 1, 5), 1)
        values = (weights.softmax(1) * maps).sum(1)
        values = values + _LARGEST_CHANGE * torch.tanh(change[:, 0] / (2 * _LARGEST_CHANGE))
        belief = belief[:, 0].sigmoid()
        held, around = belief * points.known, around.softmax(1)
        for _ in range(self.rounds):
            values = values + held * (points.depth - values)
            padded = F.pad(values[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
            above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
            left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
            values = (around * torch.stack((values, above, below, left, right), 1)).sum(1)
        return values, belief


def _reduced(known: Tensor, depth: Tensor, aligned: Tensor, size: tuple[int, int]) -> tuple[_Points, Tensor]:
    """Points and map at the working size, and the median `(B, 1, 1)` of log depth that was subtracted from them.

    Several points of a cell become their mean.
    """
    maps = torch.stack((known.float(), torch.where(known, depth, 0), aligned), 1)
    if maps.shape[-2:] != size:
        maps = F.adaptive_avg_pool2d(maps, size)
    share, total, aligned = maps.unbind(1)
    here = share > 0
    depth = total / torch.where(here, share, 1)
    median = torch.where(here, depth, torch.nan).flatten(1).nanmedian(1).values
    # Without a point the map itself says where its middle is.
    median = torch.where(median.isnan(), aligned.flatten(1).median(1).values, median)[:, None, None]
    depth = torch.where(here, depth - median, 0)
    rest = (0, size[1] % 2, 0, size[0] % 2)
    return _Points(F.pad(here.float(), rest), F.pad(depth, rest), _even((aligned - median)[:, None], size)[:, 0]), median


def _even(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(B, C, h, w)` with the last row and column once more where their number is odd."""
    return F.pad(maps, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")


def _seen(picture: Tensor, points: _Points, maps: Tensor) -> Tensor:
    """What the network looks at, `(B, 10, h, w)`."""
    fine, inverse, smooth, aligned = maps.unbind(1)

    def near(difference: Tensor) -> Tensor:
        return difference.clamp(-1, 1)

    rows = (
        fine,
        3 * near(inverse - fine),
        3 * near(smooth - fine),
        near(aligned - fine),
        points.known,
        3 * points.known * near(points.depth - smooth),
        3 * points.known * near(points.depth - inverse),
    )
    return torch.cat((picture, torch.stack(rows, 1)), 1)


def _honoured(values: Tensor, belief: Tensor, points: Tensor) -> Tensor:
    """Bring a map to the points, and their direct neighbours along, as far as each is believed; 0 where there is none."""
    row = values.new_tensor((0.5, 1.0, 0.5))
    kernel = (row[:, None] * row).expand(2, 1, 3, 3)
    with torch.autocast(values.device.type, enabled=False):
        both = torch.stack((belief * (points - values), belief), 1).float()
        change, total = F.conv2d(both, kernel, padding=1, groups=2).unbind(1)
    return values + change / (total + _UNBELIEVED)


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> CompletionModel:
    """Make an untrained network, which is the corrected map: its last layer begins at zero.

    Args:
        architecture: keyword arguments of `CompletionModel`, or `{"variant": "mini"}`.
        info: what the network is called and what its numbers mean.
        preprocessing: None for 240 pixels on the shorter side.
    """
    if "variant" in architecture:
        architecture = VARIANTS[architecture["variant"]]
    preprocessing = preprocessing or Preprocessing(
        240, 2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear-antialias"
    )
    return CompletionModel(info, preprocessing, **architecture)
