"""Scores of a depth map against the truth, each under the name and in the unit that one convention gives it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distilldepth.ops.arguments import check_floats, check_same, check_valid

NAMES = (
    "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "irmse", "imae", "mae", "delta1", "delta2", "delta3",
)  # fmt: skip
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3")
LEAST_DEPTH = 1e-6
"""Predictions are clipped below at this many metres, so that logarithms and inverses exist."""


def depth_metrics(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None
) -> dict[str, float] | dict[str, Tensor]:
    """Score depth against true depth, per image.

    With d the prediction, g the truth, means over the valid pixels of an image:
    `abs_rel` mean |d - g| / g; `sq_rel` mean (d - g)^2 / g; `rmse` sqrt mean (d - g)^2; `mae` mean |d - g|;
    `rmse_log` sqrt mean (ln d - ln g)^2; `log10` mean |log10 d - log10 g|;
    `silog` 100 sqrt(mean e^2 - (mean e)^2), e = ln d - ln g; `irmse` sqrt mean (1/d - 1/g)^2 and `imae`
    mean |1/d - 1/g|, in 1/m; `delta1..3` share of pixels with max(d / g, g / d) < 1.25, 1.25^2, 1.25^3.
    These are the numbers of Marigold, NeWCRFs and ZoeDepth; other codes call other formulas by the same names.

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, metres, a floating dtype; clipped below at 1e-6.
        target: as prediction; true depth, metres, positive where valid.
        valid: bool, as prediction; None = all.

    Returns:
        By name: floats for one map, float64 tensors `(B,)` for a batch. NaN for an image without a valid pixel. A NaN
        in a valid pixel of the prediction counts as wrong in the deltas and makes the others NaN.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: Eigen et al., Depth Map Prediction from a Single Image (2014), section 4; Ke et al., Marigold (2024).

    >>> scores = depth_metrics(torch.tensor([[1.1, 1.8, 4.4, 11.0]]), torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
    >>> round(scores["abs_rel"], 5), round(scores["silog"], 3), scores["delta1"]
    (0.16875, 14.995, 0.75)
    """
    check_floats("depth_metrics", "prediction", prediction, (2, 3), "(B, H, W) or (H, W)")
    check_floats("depth_metrics", "target", target, (2, 3), "(B, H, W) or (H, W)")
    check_same("depth_metrics", "target", target, "prediction", prediction)
    check_valid("depth_metrics", valid, prediction.shape, "prediction", prediction)
    if prediction.ndim == 2:
        single = depth_metrics(prediction[None], target[None], None if valid is None else valid[None])
        return {name: float(value[0]) for name, value in single.items()}
    home = "cpu" if prediction.device.type == "mps" else prediction.device
    d, g = prediction.to(home).double().flatten(1), target.to(home).double().flatten(1)
    kept = torch.ones_like(d, dtype=torch.bool) if valid is None else valid.to(home).flatten(1)
    count = kept.sum(1)
    d, g = torch.where(kept, d, 1).clamp(min=LEAST_DEPTH), torch.where(kept, g, 1)

    def mean(values: Tensor) -> Tensor:
        # What is not valid is 1 in both maps: every error is 0 there, and the deltas leave it out by themselves.
        return values.sum(1) / count

    error, log_error, inverse_error = d - g, d.log() - g.log(), 1 / d - 1 / g
    ratio = torch.maximum(d / g, g / d)
    log_square = mean(log_error.square())
    return {
        "abs_rel": mean(error.abs() / g),
        "sq_rel": mean(error.square() / g),
        "rmse": mean(error.square()).sqrt(),
        "rmse_log": log_square.sqrt(),
        "log10": mean(log_error.abs()) / math.log(10),
        # The difference of two nearly equal means can come out a rounding error below 0.
        "silog": 100 * (log_square - mean(log_error).square()).clamp(min=0).sqrt(),
        "irmse": mean(inverse_error.square()).sqrt(),
        "imae": mean(inverse_error.abs()),
        "mae": mean(error.abs()),
        **{f"delta{k}": mean(((ratio < 1.25**k) & kept).double()) for k in (1, 2, 3)},
    }
