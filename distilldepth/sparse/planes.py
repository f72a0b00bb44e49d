"""Maps from values known at few pixels: a plane through those near each pixel, however far the nearest ones are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
"""Of x and y in the moments of the pixels that are known; those of values have the first three."""
_BINOMIAL = (0.25, 0.75, 0.75, 0.25)
"""How a level weighs four cells of the finer one along an axis, and how a cell is made of the coarser one."""
_COARSEST = (1e-4, 1.0)
"""Ridge of the one cell that sees all."""


class LocalPlanes(nn.Module):
    """Planes through known values, fitted from coarse to fine.

    A pyramid holds the moments of what is known: each cell of a level weighs 4 x 4 cells of the finer one (binomial, so
    that a level is a Gaussian of about its cell's width). From the one cell that sees all down to single pixels, each
    cell then corrects the plane that it inherits, by least squares over what it weighs:

        argmin sum_i w_i (c + g . x_i - r_i)^2 + shift c^2 + slope |g|^2

    where r_i is what the inherited plane leaves over, x_i is relative to the cell's centre in widths of the cell, and
    (shift, slope) is the ridge. A cell without any known value keeps what it inherits; beyond the border of a level
    are copies of its outermost planes. So values are reproduced where they are dense,
    and planes between known values: of inverse depth, planes in space are such planes.

    Args:
        targets: maps that are known at the same pixels.

    >>> x = torch.arange(16.0).expand(1, 1, 12, 16)
    >>> known = (torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    >>> planes = LocalPlanes(1)(known, known[:, None] * x, [(1e-4, 1e-4)])[0]
    >>> bool((planes - x).abs().max() < 0.01)
    True
    """

    _pool: Tensor
    _spread: Tensor

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.targets = targets
        self.register_buffer("_pool", _pooling(targets), persistent=False)
        self.register_buffer("_spread", _spreading(), persistent=False)

    def forward(self, known: Tensor, values: Tensor, ridges: Sequence[tuple[float, float]]) -> list[Tensor]:
        """Fit the planes, once for each ridge.

        Args:
            known: `(B, H, W)`, weight of each pixel, 0 where nothing is known.
            values: `(B, targets, H, W)`, 0 where nothing is known.
            ridges: shift and slope of each, positive, in numbers of known pixels: the larger, the smoother.

        Returns:
            For each ridge `(B, targets, H, W)` float32; all 0 in an image without anything known.

        Gradient: to values and known. Computed in float32, under autocast too.
        """
        kind = known.device.type  # On `meta`, where layers are counted, there is no autocast to switch off.
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            levels = self._levels(known.float(), values.float())
            return [self._fit(levels, ridge) for ridge in ridges]

    def _levels(self, known: Tensor, values: Tensor) -> list[Tensor]:
        """Moments `(B, 6 + 3 targets, h, w)` of every level, finest first, each in its own cells' coordinates."""
        nothing = torch.zeros_like(known)
        weighed = known[:, None] * values
        finest = [known] + [nothing] * 5
        for target in range(self.targets):
            finest += [weighed[:, target], nothing, nothing]
        levels = [torch.stack(finest, 1)]
        while max(levels[-1].shape[-2:]) > 1:
            last = levels[-1]
            padded = F.pad(last, (1, 1 + last.shape[-1] % 2, 1, 1 + last.shape[-2] % 2))
            levels.append(F.conv2d(padded, self._pool, stride=2))
        return levels

    def _fit(self, levels: list[Tensor], ridge: tuple[float, float]) -> Tensor:
        shape = (len(levels[0]), self.targets)
        planes: Tensor | None = None
        for level in reversed(levels):
            moments, wanted = level[:, :6], level[:, 6:].unflatten(1, (self.targets, 3))
            if planes is None:
                planes = _solve(moments, wanted, _COARSEST)
                continue
            height, width = level.shape[-2:]
            # Beyond the border are copies of the planes inside: a plane is not continued there as far as it might go.
            padded = _extended(planes.flatten(0, 1))
            finer = F.conv_transpose2d(padded, self._spread, stride=2)
            planes = finer[..., 3 : 3 + height, 3 : 3 + width].unflatten(0, shape)
            planes = planes + _solve(moments, wanted - _applied(moments, planes), ridge)
        assert planes is not None, "there is at least one level"
        return planes[:, :, 0]


def _extended(planes: Tensor) -> Tensor:
    """Planes `(B, 3, h, w)` with a border of one cell: those at the edge, as seen from the middle of the new cells."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    value, right, down = padded.unbind(1)
    value = torch.cat((value[..., :1] - right[..., :1], value[..., 1:-1], value[..., -1:] + right[..., -1:]), 2)
    value = torch.cat((value[:, :1] - down[:, :1], value[:, 1:-1], value[:, -1:] + down[:, -1:]), 1)
    return torch.stack((value, right, down), 1)


def _pooling(targets: int) -> Tensor:
    """Kernel `(C, C, 4, 4)`: the moments of a cell from those of 4 x 4 finer ones, about its centre, in its widths."""
    count = 6 + 3 * targets
    kernel = torch.zeros(count, count, 4, 4)
    place = {power: number for number, power in enumerate(_POWERS)}
    for row, column in itertools.product(range(4), range(4)):
        weight = _BINOMIAL[row] * _BINOMIAL[column]
        right, down = column - 1.5, row - 1.5
        for a, b in _POWERS:
            for i, j in itertools.product(range(a + 1), range(b + 1)):
                share = weight * math.comb(a, i) * math.comb(b, j) * right ** (a - i) * down ** (b - j) / 2 ** (a + b)
                to, from_ = place[a, b], place[i, j]
                kernel[to, from_, row, column] += share
                for first in range(6, count if to < 3 else 6, 3):
                    kernel[first + to, first + from_, row, column] += share
    return kernel


def _spreading() -> Tensor:
    """Kernel `(3, 3, 4, 4)` of a transposed convolution: the planes of finer cells, about their centres."""
    kernel = torch.zeros(3, 3, 4, 4)
    for row, column in itertools.product(range(4), range(4)):
        weight = _BINOMIAL[row] * _BINOMIAL[column]
        kernel[0, 0, row, column] = weight
        kernel[1, 0, row, column] = weight * (column - 1.5) / 2
        kernel[2, 0, row, column] = weight * (row - 1.5) / 2
        kernel[1, 1, row, column] = kernel[2, 2, row, column] = weight / 2
    return kernel


def _applied(moments: Tensor, planes: Tensor) -> Tensor:
    """The moments `(B, T, 3, h, w)` of what planes say at the pixels that are known."""
    n, x, y, xx, xy, yy = moments[:, None].unbind(2)
    value, right, down = planes.unbind(2)
    rows = (n * value + x * right + y * down, x * value + xx * right + xy * down, y * value + xy * right + yy * down)
    return torch.stack(rows, 2)


def _solve(moments: Tensor, wanted: Tensor, ridge: tuple[float, float]) -> Tensor:
    """The planes `(B, T, 3, h, w)` of the regularised normal equations: Cramer's rule for a symmetric 3 x 3 matrix."""
    n, x, y, xx, xy, yy = moments[:, None].unbind(2)
    n, xx, yy = n + ridge[0], xx + ridge[1], yy + ridge[1]
    a, b, c = xx * yy - xy * xy, xy * y - x * yy, x * xy - xx * y
    d, e, f = n * yy - y * y, x * y - n * xy, n * xx - x * x
    first, second, third = wanted.unbind(2)
    solved = (
        a * first + b * second + c * third,
        b * first + d * second + e * third,
        c * first + e * second + f * third,
    )
    return torch.stack(solved, 2) / (n * a + x * b + y * c)[:, :, None]
