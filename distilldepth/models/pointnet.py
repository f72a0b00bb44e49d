"""PointNet: features of points in space that know of all the others."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TURN = 0.1
"""How far, as a share of its size, a random transform is from the identity."""


class PointNet(nn.Module):
    """A frozen PointNet: points to features of each point, in which a summary of all of them has a part.

    A transform of the points (3 x 3), layers of 64 and 64, and a transform of the features (64 x 64); each transform is
    made by a small network of the same kind, through the maxima over points, and added to the identity. Layers of 64,
    128 and 1024 follow for the features of the whole. Every layer is linear with batch normalisation by running
    statistics, in training as in evaluation, and ReLU. Nothing in it is trained; gradients go to the points.

    Its weights are random: He's initialisation, from a generator of its own, so that they depend on `seed` alone, and
    what else is drawn does not depend on them. Features are then about as large as the points.

    Args:
        seed: of the weights.
        summarised: over how many points, spread evenly over those given, the maxima are taken. They take most of the
            time; the published networks see 1024 points.

    Source: Qi et al., PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation (2017), figure 2.

    >>> PointNet()(torch.rand(2, 50, 3)).shape
    torch.Size([2, 50, 64])
    """

    def __init__(self, seed: int = 0, *, summarised: int = 512) -> None:
        super().__init__()
        if summarised < 1:
            raise ValueError(f"PointNet: summarised must be at least 1, got {summarised}")
        self.summarised = summarised
        self.input_transform = _Transform(3)
        self.local = _layers(3, 64, 64)
        self.feature_transform = _Transform(64)
        self.wide = _layers(64, 64, 128, 1024)
        self.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                _draw(layer, math.sqrt(2 / layer.in_features), generator)
        for transform in (self.input_transform, self.feature_transform):
            _draw(transform.last, _TURN / math.sqrt(transform.last.in_features * transform.width), generator)

    def forward(self, points: Tensor) -> Tensor:
        """Return the features of each point.

        Args:
            points: floating `(B, N, 3)`, about 1 in size, at least one.

        Returns:
            `(B, N, 64)`, after the transform of the features. Of up to `summarised` points the order does not matter.

        Gradient: to the points; that of a maximum to the point that has it.
        """
        features = self.local(points @ self.input_transform(points, self.summarised))
        return features @ self.feature_transform(features, self.summarised)

    def summary(self, points: Tensor) -> Tensor:
        """Return the features of the whole, `(B, 1024)`: the maxima over points; see `forward`."""
        return _largest(self.wide, self(points), self.summarised)


class _Layer(nn.Module):
    """Linear, batch normalisation, ReLU; the first two as one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Without a draw from the generator that all share.
        self.linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of both."""
        norm = self.norm
        assert norm.running_var is not None, "kept by default"
        assert norm.running_mean is not None, "likewise"
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return self.linear.weight * scale[:, None], (self.linear.bias - norm.running_mean) * scale + norm.bias

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, *self.folded()).relu()


class _Transform(nn.Module):
    """A matrix `(B, width, width)` for values `(B, N, width)`, from so many of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.wide, self.deep = _layers(width, 64, 128, 1024), _layers(1024, 512, 256)
        self.last: nn.Linear = nn.utils.skip_init(nn.Linear, 256, width * width)

    def forward(self, values: Tensor, most: int) -> Tensor:
        matrix = self.last(self.deep(_largest(self.wide, values, most))).unflatten(1, (self.width, self.width))
        return matrix + torch.eye(self.width, dtype=matrix.dtype, device=matrix.device)


def _layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(_Layer(*pair) for pair in itertools.pairwise(widths)))


def _draw(layer: nn.Linear, deviation: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * deviation)
        layer.bias.zero_()


def _largest(layers: nn.Sequential, values: Tensor, most: int) -> Tensor:
    """The maxima `(B, K)` of what layers make of values `(B, N, C)`, over so many of the points.

    Of the widest features a backward pass needs those alone that are the largest, a hundredth: they are made without a
    gradient, and once more for the points that have them.
    """
    *narrow, widest = layers
    assert isinstance(widest, _Layer), "as `_layers` makes them"
    count = values.shape[1]
    if count > most:
        values = values[:, torch.arange(most, device=values.device) * count // most]
    weight, bias = widest.folded()
    if not (torch.is_grad_enabled() and values.requires_grad):
        for layer in narrow:
            values = layer(values)
        return F.linear(values, weight, bias).amax(1).relu()
    with torch.no_grad():
        hidden = values
        for layer in narrow:
            hidden = layer(hidden)
        winner = F.linear(hidden, weight).argmax(1)
    hidden = values.gather(1, winner[..., None].expand(-1, -1, values.shape[2]))
    for layer in narrow:
        hidden = layer(hidden)
    return ((hidden * weight).sum(2) + bias).relu()
