"""Depth completion: a dense metric map from a photograph, a few points of known depth, and a map aligned to them.

Classical maps come first, all of log depth and relative to the median of the points, so that metres mean nothing to the
network: planes through the points in inverse depth, the aligned map with planes through what it leaves over at the
points, and a smooth form of the latter. A small U-Net looks at them and at the photograph, and says for each pixel how
to mix them, what to add, and how far a point there is to be believed. Then believed points spread: on levels from an
eighth of the resolution to the whole, in a few rounds each, points are held and every pixel is mixed with its four
neighbours, the less the more their colours differ and by what the U-Net adds to that. So a point reaches as far as its
surface, and edges stay where the photograph has them. All of this works with `preprocessing.size` pixels on the shorter
side; the map is enlarged by colour, and points are honoured once more at full resolution.

No layer normalises over a map, so that a frame of another size is no other matter.

Source: label-free distillation's two-stage completion (an aligned relative map, corrected); Cheng et al., Depth
Estimation via Affinity Learned with Convolutional Spatial Propagation Network (2018), for the rounds; Levin et al.,
Colorization using Optimization (2004), for their colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        "rounds": [6, 8, 8, 8],
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
    "rounds": listed(whole(0, 64), 1, 8),
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
_LIKE = 0.06
"""Difference of two colours in [0, 1], over three channels, at which a cell's weight has fallen to exp(-1/2)."""
_NEAR_COLOUR = 0.03
"""The same between neighbours in an untrained network."""
_MOST_UNLIKE = 7.0
_OWN = -1.6
"""Logits: of a neighbour of another colour at least minus the one, of the pixel itself the other."""
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


def _silence(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip, without normalisation; begins as the skip alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        _silence(self.second)

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
        rounds: how often each pixel is mixed with its neighbours, at the working resolution, at half of it, and so on;
            no more entries than there are widths.
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
        rounds: Sequence[int],
        guide: str,
        align: str,
    ) -> None:
        if not len(widths) == len(blocks) == len(decoder) + 1:
            raise ValueError(
                f"CompletionModel: blocks must have as many entries as widths, {len(widths)}, and decoder one less, "
                f"got {len(blocks)} and {len(decoder)}"
            )
        if len(rounds) > len(widths):
            raise ValueError(
                f"CompletionModel: rounds must have no more entries than widths, {len(widths)}, got {len(rounds)}"
            )
        super().__init__(info, preprocessing)
        self.widths, self.blocks, self.depths = list(widths), list(blocks), list(decoder)
        self.rounds, self.guide, self.align = list(rounds), guide, align
        self._again = False
        self.planes = LocalPlanes(2)
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.fuse = nn.ModuleList(nn.Conv2d(fine + coarse, fine, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(widths, decoder, strict=False)
        )
        self.head = nn.Conv2d(widths[0], 4 * _OUTPUTS, 1)
        self.around = nn.ModuleList(nn.Conv2d(width, 5, 1) for width in widths[: len(rounds) - 1])
        self.colour = nn.Parameter(torch.zeros(len(rounds)))
        self._begin_classically()

    def _begin_classically(self) -> None:
        """An untrained network is the corrected map, from which points that are believed spread by colour alone."""
        for layer in (self.head, *self.around):
            _silence(layer)
        assert self.head.bias is not None, "a convolution has one unless told otherwise"
        with torch.no_grad():
            bias = self.head.bias.view(_OUTPUTS, 4)
            bias[0], bias[_MIXED + 1] = 2.0, 2.0

    @property
    def architecture(self) -> dict[str, Any]:
        return {
            "widths": list(self.widths),
            "blocks": list(self.blocks),
            "decoder": list(self.depths),
            "rounds": list(self.rounds),
            "guide": self.guide,
            "align": self.align,
        }

    def enable_gradient_checkpointing(self) -> None:
        self._again = True

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        self.refuse_without_points()
        raise AssertionError("unreachable: it takes points")

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
            self.refuse_without_points()
            raise AssertionError("unreachable: it takes points")
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
        values, belief = self._spread(self._network(seen), maps, points, picture)
        values, belief = values[:, : size[0], : size[1]], belief[:, : size[0], : size[1]]
        if size != (height, width):
            picture = picture[..., : size[0], : size[1]]
            values, belief = _enlarged(torch.stack((values, belief), 1), picture, images).unbind(1)
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

    def _network(self, seen: Tensor) -> list[Tensor]:
        """What is said of each pixel, `(B, 11, h, w)`, and of its neighbours on each coarser level, `(B, 5, ...)`."""
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
            x = levels[number] = run_block(self.decoder[number], x, again=again)
        said = [F.pixel_shuffle(self.head(F.relu(x)), 2)]
        said += [layer(F.relu(level)) for layer, level in zip(self.around, levels, strict=False)]
        return [each.float() for each in said]

    def _spread(self, said: list[Tensor], maps: Tensor, points: _Points, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Log depth from the median, and how far a point at each pixel would be believed."""
        weights, change, belief, around = said[0].split((_MIXED, 1, 1, 5), 1)
        values = (weights.softmax(1) * maps).sum(1, keepdim=True)
        values = values + _LARGEST_CHANGE * torch.tanh(change / (2 * _LARGEST_CHANGE))
        belief = belief.sigmoid()
        held = belief * points.known[:, None]
        levels = [[values, points.known[:, None], held, held * points.depth[:, None], picture]]
        for _ in said[1:]:
            levels.append([F.avg_pool2d(each, 2, ceil_mode=True) for each in levels[-1]])
        moved: Tensor | None = None
        for number in reversed(range(len(levels))):
            begun, share, weight, total, colours = levels[number]
            now = begun
            if moved is not None:
                now = now + F.interpolate(moved, now.shape[-2:], mode="bilinear", align_corners=False)
            likeness = self._likeness(around if number == 0 else said[number], colours, number)
            # A cell with a point is held as far as the point is believed, however many pixels without one are in it.
            anchor = weight / share.clamp(min=1e-6)
            now = _rounds(now, anchor, total / weight.clamp(min=1e-6), likeness, self.rounds[number])
            moved = now - begun
        return now[:, 0], belief[:, 0]

    def _likeness(self, around: Tensor, colours: Tensor, level: int) -> Tensor:
        """What each pixel and its four neighbours count in a mixture, `(B, 5, h, w)`, in all 1."""
        padded = F.pad(colours, (1, 1, 1, 1), mode="replicate")
        off = torch.stack([(each - colours).square().sum(1) for each in _neighbours(padded)], 1)
        unlike = (off * (self.colour[level].exp() / (2 * _NEAR_COLOUR**2))).clamp(max=_MOST_UNLIKE)
        own = torch.full_like(off[:, :1], _OWN)
        return (around + torch.cat((own, -unlike), 1)).softmax(1)


def _neighbours(padded: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Above, below, left and right of each pixel of a map that is padded by one."""
    return padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]


def _rounds(values: Tensor, held: Tensor, points: Tensor, likeness: Tensor, count: int) -> Tensor:
    """Hold the points, mix each pixel with its neighbours, and again: all `(B, 1, h, w)`, likeness `(B, 5, h, w)`."""
    free, pull = 1 - held, held * points
    for _ in range(count):
        values = free * values + pull
        padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
        values = (likeness * torch.cat((values, *_neighbours(padded)), 1)).sum(1, keepdim=True)
    return values


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
    return _Points(
        F.pad(here.float(), rest), F.pad(depth, rest), _even((aligned - median)[:, None], size)[:, 0]
    ), median


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


def _enlarged(maps: Tensor, picture: Tensor, images: Tensor) -> Tensor:
    """Maps `(B, C, h, w)` at the size of the images: of the four cells around a pixel those of its colour count.

    Enlarged by distance alone, a map would have a slope where there is an edge.

    Source: Kopf et al., Joint Bilateral Upsampling (2007).
    """
    rows, columns = (
        _cells(full, reduced, maps) for full, reduced in zip(images.shape[-2:], maps.shape[-2:], strict=True)
    )
    both = torch.cat((maps, picture.to(maps)), 1)
    channels = maps.shape[1]
    total = maps.new_zeros((len(maps), channels, *images.shape[-2:]))
    weights = maps.new_zeros((len(maps), 1, *images.shape[-2:]))
    for column, wide in columns:
        # Columns first, since picking single numbers is slow and there are fewer rows yet.
        across = both.index_select(3, column)
        for row, high in rows:
            cell = across.index_select(2, row)
            off = (cell[:, channels:] - images).square().sum(1, keepdim=True)
            weight = (torch.exp(off / (-2 * _LIKE**2)) + 1e-4) * (high[:, None] * wide)
            total = total + weight * cell[:, :channels]
            weights = weights + weight
    return total / weights


def _cells(full: int, reduced: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Along one axis, the two cells around each pixel's centre, and what each weighs by its distance."""
    place = (torch.arange(full, device=like.device, dtype=like.dtype) + 0.5) * (reduced / full) - 0.5
    first = place.floor()
    share = place - first
    cells = ((first, 1 - share), (first + 1, share))
    return [(cell.long().clamp(0, reduced - 1), weight) for cell, weight in cells]


def _honoured(values: Tensor, belief: Tensor, points: Tensor) -> Tensor:
    """Bring a map to the points, and their neighbours along, as far as each is believed; 0 where there is none."""
    both = F.pad(torch.stack((belief * (points - values), belief), 1), (1, 1, 1, 1))
    both = both[..., 1:-1] + (both[..., :-2] + both[..., 2:]) / 2
    change, total = (both[..., 1:-1, :] + (both[..., :-2, :] + both[..., 2:, :]) / 2).unbind(1)
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
