"""Hybrid normalisation loss in plain torch: what `distilldepth.ops.hybrid_norm_loss` means, in float32 and float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def hybrid_norm_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    segments: Sequence[int] = (1, 2, 4),
    contexts: str = "range",
    spread_eps: float = 1e-6,
    hdn_compat: bool = False,
) -> Tensor:
    """What `distilldepth.ops.hybrid_norm_loss` means; see there for arguments, which this function trusts.

    Args:
        hdn_compat: do what the published code of Hierarchical Depth Normalisation does instead of what it describes:
            the spread divides by the count of pixels + 1, and the largest target of an image (hence all of a constant
            map) belongs to no context of `range` or `quantile`, although the final divisor counts it.

    Returns:
        Scalar, float32 (float64 for float64 input); float16 and bfloat16 are computed in float32.
    """
    pixels = per_pixel_loss(prediction, target, valid, segments, contexts, spread_eps, hdn_compat)
    wide = accumulator_dtype(pixels)
    count = max(pixels.numel(), 1) if valid is None else valid.sum().clamp(min=1)
    return (pixels.sum(dtype=wide) / count).to(pixels)


def per_pixel_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None,
    segments: Sequence[int],
    contexts: str,
    spread_eps: float,
    hdn_compat: bool = False,
) -> Tensor:
    """The loss of every pixel, `(B, H, W)` float32 or float64, before any mean over pixels; 0 where not valid."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    prediction, target = prediction.to(dtype), target.detach().to(dtype)
    if prediction.numel() == 0:
        return prediction * 0
    if valid is not None:
        # Selecting before any arithmetic keeps what is not finite out of the result and, through 0 * inf, out of the
        # gradient.
        prediction, target = torch.where(valid, prediction, 0), torch.where(valid, target, 0)
    shape = prediction.shape
    prediction, target = prediction.flatten(1), target.flatten(1)
    splitter = _Splitter(target, shape, valid, contexts, hdn_compat)
    prediction_order = _sort(prediction.detach())
    total, held_by = torch.zeros_like(target), torch.zeros((), dtype=torch.int64, device=target.device)
    for parts in segments:
        groups = splitter.split(parts)
        segmented = _segment(prediction_order, groups)
        center = prediction.reshape(-1)[_lowest_median_index(prediction_order, segmented)]
        target_center = splitter.target_center(groups, segmented)
        divisor = segmented.counts + 1 if hdn_compat else segmented.counts.clamp(min=1)
        difference = _normalise(prediction, center, groups, divisor, spread_eps) - _normalise(
            target, target_center, groups, divisor, spread_eps
        )
        total = total + difference.abs()
        if hdn_compat:
            held_by = held_by + (groups.ids < groups.number)
    return (total / (held_by.clamp(min=1) if hdn_compat else len(segments))).view(shape)


def _normalise(values: Tensor, center: Tensor, groups: _Groups, divisor: Tensor, spread_eps: float) -> Tensor:
    """(x - center) / spread in each group, 0 for pixels in none; summed in float64, applied in the type of x."""
    deviation = values - groups.spread_out(center.to(accumulator_dtype(values))).to(values.dtype)
    if groups.kept is not None:
        deviation = deviation * groups.kept
    spread = groups.sum(deviation.abs()) / divisor + spread_eps
    return deviation * groups.spread_out(1 / spread).to(values.dtype)


def accumulator_dtype(values: Tensor) -> torch.dtype:
    """float64 for sums over many pixels, except on devices that lack it."""
    return torch.float32 if values.device.type == "mps" else torch.float64


class _Groups(NamedTuple):
    """Which context of which image each pixel is in."""

    ids: Tensor  # (B, P) int32; `number` = in none
    number: int
    kept: Tensor | None  # (B, P) 0 or 1 in the maps' dtype, 0 = in none; None = all are in one
    whole_images: bool  # every image is one context: statistics broadcast, no need to look them up

    def spread_out(self, statistic: Tensor) -> Tensor:
        """Give every pixel the statistic `(G,)` of its group, broadcastable to `(B, P)`."""
        if self.whole_images:
            return statistic[:, None]
        # Pixels in no group are given a finite number; what they make of it is multiplied by 0.
        return torch.cat([statistic, statistic.new_zeros(1)]).index_select(0, self.ids.view(-1)).view(self.ids.shape)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `(B, P)` in each group, `(G,)` float64; values of pixels in no group must be 0."""
        wide = accumulator_dtype(values)
        if self.whole_images:
            return values.sum(1, dtype=wide)
        sums = torch.zeros(self.number + 1, dtype=wide, device=values.device)
        return sums.index_add(0, self.ids.view(-1), values.reshape(-1).to(wide))[:-1]


class _Order(NamedTuple):
    """A flattened batch sorted by value, equal values by index."""

    keys: Tensor  # (P,) ascending, in an order-preserving encoding of the values
    source: Tensor  # (P,) int64, where each came from


class _Segmented(NamedTuple):
    """An order regrouped: all of group 0 by value, then all of group 1, and so on."""

    ids: Tensor  # (P,) ascending
    rank: Tensor  # (P,) int64, place of each in the order that was regrouped; ascending inside a group
    starts: Tensor  # (G,) int64
    counts: Tensor  # (G,) int64

    def median_position(self) -> Tensor:
        """Place of each group's lower median in the regrouped order; any place for an empty group."""
        return (self.starts + (self.counts - 1).clamp(min=0) // 2).clamp(max=len(self.rank) - 1)


def _sort(values: Tensor) -> _Order:
    """Sort a flattened batch, once for all contexts."""
    values = values.reshape(-1) + 0.0  # -0.0 and 0.0 are equal and must compare so in every encoding.
    if values.dtype == torch.float32:
        # Integers take torch's radix sort, four times as fast on a CPU. The bits of a negative float grow downwards.
        bits = values.view(torch.int32)
        values = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return _Order(*torch.sort(values, stable=True))


def _segment(order: _Order, groups: _Groups) -> _Segmented:
    """Regroup an order by context: a stable sort by group leaves every group sorted by value."""
    dtype = torch.uint8 if groups.number < 255 else torch.int16 if groups.number < 32767 else torch.int32
    ids, rank = torch.sort(groups.ids.view(-1).to(dtype).index_select(0, order.source), stable=True)
    bounds = torch.searchsorted(ids, torch.arange(groups.number + 1, device=ids.device, dtype=dtype))
    return _Segmented(ids, rank, bounds[:-1], bounds.diff())


def _lowest_median_index(order: _Order, segmented: _Segmented) -> Tensor:
    """Index of the first pixel of each group whose value is the group's lower median; any pixel for an empty group."""
    size, groups = len(order.keys), len(segmented.starts)
    median_rank = segmented.rank[segmented.median_position()]
    run_start = torch.searchsorted(order.keys, order.keys[median_rank])
    # (group, rank) in one number is ascending, so a search finds the group's first member of the run of equal values.
    place = segmented.ids.long() * size + segmented.rank
    first = torch.searchsorted(place, torch.arange(groups, device=place.device) * size + run_start)
    return order.source[segmented.rank[first.clamp(max=size - 1)]]


class _Splitter:
    """Splits the valid pixels of each image into contexts by the target `(B, P)`."""

    def __init__(
        self, target: Tensor, shape: Sequence[int], valid: Tensor | None, contexts: str, hdn_compat: bool
    ) -> None:
        self._target, self._shape, self._contexts = target, shape, contexts
        self._valid = None if valid is None else valid.flatten(1)
        self._kept = None if self._valid is None else self._valid.to(target)
        self._open_top = hdn_compat and contexts != "spatial"
        self._image = torch.arange(len(target), device=target.device, dtype=torch.int32)[:, None]
        self._whole = self._groups(self._image.expand(target.shape), len(target), whole_images=True)
        self._order = _sort(target)
        self._images = _segment(self._order, self._whole)

    def split(self, parts: int) -> _Groups:
        """Split every image into `parts` contexts (`parts` squared for spatial)."""
        if parts == 1 and not self._open_top:
            return self._whole
        batch, height, width = self._shape
        device = self._target.device
        if self._contexts == "spatial":
            row, column = _grid_index(height, parts, device), _grid_index(width, parts, device)
            context = (row[:, None] * parts + column).view(1, -1)
            parts = parts * parts
        else:
            # One comparison per edge; for the few edges there are, a search costs more.
            context = torch.zeros_like(self._target, dtype=torch.int32)
            for edge in self._edges(parts).split(1, 1):
                context += self._target >= edge
        outside = context == parts if self._open_top else None
        return self._groups(context + self._image * parts, batch * parts, outside=outside)

    def target_center(self, groups: _Groups, segmented: _Segmented) -> Tensor:
        """The target's lower median in each group; `segmented` is any order of the same batch by these groups."""
        # Contexts by value are stretches of the image's sorted target, so its medians need no regrouping.
        by_value = self._contexts != "spatial" and not self._open_top
        rank = (self._images if by_value else _segment(self._order, groups)).rank
        return self._target.reshape(-1)[self._order.source[rank[segmented.median_position()]]]

    def _groups(self, ids: Tensor, count: int, *, whole_images: bool = False, outside: Tensor | None = None) -> _Groups:
        kept = self._kept
        if self._valid is not None:
            ids = torch.where(self._valid, ids, count)
        if outside is not None:
            ids = torch.where(outside, count, ids)
            kept = (ids < count).to(self._target)
        return _Groups(ids.contiguous(), count, kept, whole_images)

    def _edges(self, parts: int) -> Tensor:
        """Lower edges of the contexts but the first, `(B, parts - 1)`; hdn_compat adds the upper edge of the last."""
        wide = accumulator_dtype(self._target)
        starts, counts = self._images.starts[:, None], self._images.counts[:, None]

        def at(position: Tensor) -> Tensor:
            place = (starts + position.clamp(min=0)).clamp(max=self._target.numel() - 1)
            return self._target.reshape(-1)[self._order.source[self._images.rank[place]]].to(wide)

        share = torch.arange(1, parts, device=starts.device, dtype=wide)[None]
        low, high = at(torch.zeros_like(counts)), at(counts - 1)
        if self._contexts == "range":
            edges = low + (high - low) * share / parts
        else:
            position = (counts - 1).to(wide) * share / parts
            below = at(position.floor().long())
            edges = below + (at(position.ceil().long()) - below) * (position - position.floor())
        # target >= edge for a float32 target is target >= the edge rounded up to float32: the contexts come out the
        # same in every precision.
        rounded = edges.to(self._target.dtype)
        up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
        edges = torch.where(rounded.to(wide) < edges, up, rounded)
        return torch.cat([edges, high.to(edges.dtype)], 1) if self._open_top else edges


def _grid_index(size: int, parts: int, device: torch.device) -> Tensor:
    """Which of `parts` stretches with edges floor(size * k / parts) each coordinate is in, int32 `(size,)`."""
    edges = torch.arange(1, parts, device=device) * size // parts
    return torch.searchsorted(edges, torch.arange(size, device=device), right=True, out_int32=True)
