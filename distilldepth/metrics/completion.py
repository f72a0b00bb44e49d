"""Scores that depth completion is judged by besides those of `depth_metrics`: close factors, and order."""

from __future__ import annotations

import torch
from torch import Tensor

from distilldepth.metrics.depth import LEAST_DEPTH
from distilldepth.metrics.ordinal import whdr
from distilldepth.ops.arguments import check_maps

FACTORS = {"delta_1.05": 1.05, "delta_1.10": 1.10}
"""Shares of pixels within a factor, by name; `depth_metrics` has that within 1.25, `delta1`."""
COMPLETION_NAMES = (*FACTORS, "whdr")


def completion_metrics(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None
) -> dict[str, float] | dict[str, Tensor]:
    """Score completed depth where depth_metrics is too coarse, per image.

    With d the prediction and g the truth, over the valid pixels of an image: `delta_1.05` and `delta_1.10` share of
    pixels with max(d / g, g / d) < 1.05, 1.10; `whdr` share of 10 000 drawn pairs of pixels whose order d gets wrong,
    see `whdr`; the pairs are the same for every prediction.

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, metres, a floating dtype; clipped below at 1e-6.
        target: as prediction; true depth, metres, positive where valid.
        valid: bool, as prediction; None = all.

    Returns:
        By name: floats for one map, float64 tensors `(B,)` for a batch; NaN for an image without a valid pixel. A NaN
        in a valid pixel of the prediction is within no factor.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: Cheng et al., Depth Estimation via Affinity Learned with CSPN (2018), for the close factors.

    >>> scores = completion_metrics(torch.tensor([[1.04, 1.08, 0.93, 3.0]]), torch.ones(1, 4))
    >>> scores["delta_1.05"], scores["delta_1.10"]
    (0.25, 0.75)
    """
    check_maps("completion_metrics", prediction, valid, target=target)
    single = prediction.ndim == 2
    if single:
        prediction, target, valid = prediction[None], target[None], None if valid is None else valid[None]
    kept = torch.ones_like(prediction, dtype=torch.bool) if valid is None else valid
    depth = prediction.clamp(min=LEAST_DEPTH)
    # On a device without float64 the ratios are made on the CPU.
    home = "cpu" if prediction.device.type == "mps" else prediction.device
    counted = kept.to(home).flatten(1)
    d, g = (torch.where(counted, maps.to(home).double().flatten(1), 1) for maps in (depth, target))
    ratio = torch.maximum(d / g, g / d)
    scores = {name: ((ratio < factor) & counted).sum(1).double() / counted.sum(1) for name, factor in FACTORS.items()}
    scores["whdr"] = torch.as_tensor(whdr(depth, target, kept)).to(home)
    return {name: float(values[0]) for name, values in scores.items()} if single else scores
