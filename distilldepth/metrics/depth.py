"""Errors of depth and the numbers that each convention makes of them.

Every metric here is a function of a few sums over pixels (`SUMS`), so one pass over the maps gives all of them, per
image or, with the sums of many images added up, over all their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_maps

NAMES = (
    "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "irmse", "imae", "mae", "delta1", "delta2", "delta3",
    "sq_rel_squared", "rmse_log10", "silog_dav2", "silog_log10", "silog_unbiased", "silog_fraction", "irmse_km",
    "imae_km",
)  # fmt: skip
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3")
LEAST_DEPTH = 1e-6
"""Predictions are clipped below at this many metres, so that logarithms and inverses exist."""
DELTAS = (1.25, 1.25**2, 1.25**3)
"""Exact in float32, like every power of 5/4 this small."""
SUMS = (
    "count", "absolute", "square", "relative", "square_relative", "relative_square", "inverse_absolute",
    "inverse_square", "log", "log_absolute", "log_square", "below1", "below2", "below3",
)  # fmt: skip
"""Sums over the valid pixels: their number; |d - g|; (d - g)^2; |d - g| / g; (d - g)^2 / g; (d - g)^2 / g^2;
|1/d - 1/g|; its square; e = ln d - ln g; |e|; e^2; pixels within the factors 1.25, 1.25^2, 1.25^3."""


def depth_metrics(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None
) -> dict[str, float] | dict[str, Tensor]:
    """Score depth against true depth, per image.

    With d the prediction, g the truth, e = ln d - ln g, means over the n valid pixels of an image:
    `abs_rel` mean |d - g| / g; `sq_rel` mean (d - g)^2 / g; `rmse` sqrt mean (d - g)^2; `mae` mean |d - g|;
    `rmse_log` sqrt mean e^2; `log10` mean |log10 d - log10 g|; `silog` 100 sqrt(mean e^2 - (mean e)^2);
    `irmse` sqrt mean (1/d - 1/g)^2 and `imae` mean |1/d - 1/g|, in 1/m;
    `delta1..3` share of pixels with max(d / g, g / d) < 1.25, 1.25^2, 1.25^3.
    These are the numbers of Marigold, NeWCRFs and ZoeDepth. Other codes call other formulas by the same names; here:
    `sq_rel_squared` mean (d - g)^2 / g^2 (KITTI devkit); `rmse_log10` and `silog_log10` as `rmse_log` and `silog`
    with log10 and without 100 (Metric3D); `silog_dav2` sqrt(mean e^2 - (mean e)^2 / 2) (Depth Anything V2);
    `silog_unbiased` 100 x standard deviation of e with n - 1 (UniDepth); `silog_fraction` silog / 100 (KITTI devkit);
    `irmse_km`, `imae_km` in 1/km (KITTI benchmark).

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, metres, a floating dtype; clipped below at 1e-6.
        target: as prediction; true depth, metres, positive where valid.
        valid: bool, as prediction; None = all.

    Returns:
        By name: floats for one map, float64 tensors `(B,)` for a batch. NaN for an image without a valid pixel, and
        for `silog_unbiased` of one pixel. A NaN in a valid pixel of the prediction counts as wrong in the deltas and
        makes the others NaN.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: Eigen et al., Depth Map Prediction from a Single Image (2014), section 4; Ke et al., Marigold (2024).

    >>> scores = depth_metrics(torch.tensor([[1.1, 1.8, 4.4, 11.0]]), torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
    >>> round(scores["abs_rel"], 5), round(scores["silog"], 3), scores["delta1"]
    (0.16875, 14.995, 0.75)
    """
    check_maps("depth_metrics", prediction, valid, target=target)
    single = prediction.ndim == 2
    if single:
        prediction, target, valid = prediction[None], target[None], None if valid is None else valid[None]
    # On a device without float64 the sums are made on the CPU.
    home = "cpu" if prediction.device.type == "mps" else prediction.device
    d, g = prediction.to(home).double().flatten(1), target.to(home).double().flatten(1)
    if valid is None:
        count = torch.full_like(d[:, :1], d.shape[1]).sum(1)
    else:
        # What is not valid is 1 in both maps: every error is 0 there.
        kept = valid.to(home).flatten(1)
        count = kept.sum(1).double()
        d, g = torch.where(kept, d, 1), torch.where(kept, g, 1)
    sums = d.new_empty((len(SUMS) - 1, len(d)))
    sum_errors(d.clamp(min=LEAST_DEPTH), g, Workspace()(d, 3), sums.unbind())
    scores = metrics_from_sums(dict(zip(SUMS, _counted(sums, count, d.shape[1]), strict=True)))
    return {name: float(value[0]) for name, value in scores.items()} if single else scores


class Workspace:
    """Buffers that are used again and again, so that what is computed in pieces stays in the processor's cache."""

    def __init__(self) -> None:
        self._buffers: dict[tuple, list[Tensor]] = {}

    def __call__(self, like: Tensor, count: int, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return `count` buffers of the shape of `like`, the same at every call; they hold whatever was left there."""
        dtype = dtype or like.dtype
        found = self._buffers.setdefault((like.shape, dtype), [])
        while len(found) < count:
            found.append(torch.empty(like.shape, dtype=dtype, device=like.device))
        return found[:count]


def sum_errors(d: Tensor, g: Tensor, buffers: list[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums without the count over all of `(B, n)` positive maps into `out`, float64 `(B,)` each.

    Every operation writes where one before read, into the three `buffers`: what memory moves, not arithmetic, is what
    this costs.
    """
    a, b, c = buffers
    places = dict(zip(SUMS[1:], out, strict=True))

    def add(name: str, values: Tensor) -> None:
        places[name].copy_(values.sum(1))

    def add_product(name: str, x: Tensor, y: Tensor) -> None:
        add(name, torch.mul(x, y, out=c))

    torch.sub(d, g, out=a)
    add("absolute", torch.abs(a, out=a))
    add_product("square", a, a)
    add("relative", torch.div(a, g, out=b))
    add_product("square_relative", a, b)
    add_product("relative_square", b, b)
    # |1/d - 1/g| = |d - g| / g / d: no digits are lost where d and g are close.
    add("inverse_absolute", torch.div(b, d, out=b))
    add_product("inverse_square", b, b)
    torch.div(d, g, out=a)
    torch.div(g, d, out=b)
    # The maximum keeps NaN, which is below nothing. A comparison written as numbers is faster to make and to add.
    torch.maximum(a, b, out=b)
    for number, limit in enumerate(DELTAS, 1):
        add(f"below{number}", torch.lt(b, limit, out=c))
    # Of these two sums a small difference is wanted, so not even their last digit may be rounded to float32.
    torch.sum(torch.log(a, out=a), 1, dtype=torch.float64, out=places["log"])
    add("log_absolute", torch.abs(a, out=b))
    torch.sum(torch.mul(a, a, out=c), 1, dtype=torch.float64, out=places["log_square"])


def _counted(sums: Tensor, count: Tensor, total: int) -> Tensor:
    """Put the count first and take out the pixels that are not valid, which look perfect in `sums`."""
    sums = torch.cat([count[None], sums])
    first = SUMS.index("below1")
    sums[first:] -= total - count
    return sums


def metrics_from_sums(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every metric from the sums of an image, or from those of many images added up.

    Args:
        sums: by the names of `SUMS`, float64 tensors of one shape.

    Returns:
        By the names of `NAMES`; NaN where the count is 0.
    """
    count = sums["count"]
    mean = {name: sums[name] / count for name in SUMS[1:]}
    # The difference of two nearly equal means can come out a rounding error below 0.
    variance = (mean["log_square"] - mean["log"] ** 2).clamp(min=0)
    rmse_log, deviation = mean["log_square"].sqrt(), variance.sqrt()
    irmse, imae = mean["inverse_square"].sqrt(), mean["inverse_absolute"]
    return {
        "abs_rel": mean["relative"],
        "sq_rel": mean["square_relative"],
        "rmse": mean["square"].sqrt(),
        "rmse_log": rmse_log,
        "log10": mean["log_absolute"] / math.log(10),
        "silog": 100 * deviation,
        "irmse": irmse,
        "imae": imae,
        "mae": mean["absolute"],
        "delta1": mean["below1"],
        "delta2": mean["below2"],
        "delta3": mean["below3"],
        "sq_rel_squared": mean["relative_square"],
        "rmse_log10": rmse_log / math.log(10),
        "silog_dav2": (mean["log_square"] - mean["log"] ** 2 / 2).clamp(min=0).sqrt(),
        "silog_log10": deviation / math.log(10),
        "silog_unbiased": 100 * (variance * count / (count - 1)).sqrt(),
        "silog_fraction": deviation,
        "irmse_km": 1000 * irmse,
        "imae_km": 1000 * imae,
    }
