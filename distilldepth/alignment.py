"""Prediction to ground truth: the scale and shift that the field fits before it scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distilldepth.errors import did_you_mean
from distilldepth.ops.arguments import check_floats, check_same, check_valid

SPACES = ("disparity", "depth")
METHODS = ("least-squares", "median", "none")
FLOOR = 1e-3
"""Aligned maps are clipped below at this share of the largest valid target, both in the space of the fit."""


@dataclass
class Alignment:
    """The fit of each image and the prediction as depth."""

    scale: Tensor
    """float64 `(B,)`, or a scalar for one map: `aligned = scale * prediction + shift` in the space of the fit."""
    shift: Tensor
    """float64 `(B,)`, or a scalar for one map."""
    depth: Tensor
    """`(B, H, W)` or `(H, W)`, the aligned prediction as depth, in the target's unit; float32, or float64 if an input
    was."""


def align(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    space: str = "disparity",
    method: str = "least-squares",
) -> Alignment:
    """Bring a prediction to the scale and shift of the ground truth and return it as depth.

    With t = 1 / target (`space="disparity"`) or t = target (`"depth"`), over the valid pixels of each image:
    - `least-squares`: scale, shift = argmin sum (scale * prediction + shift - t)^2; the scale may come out negative;
    - `median`: scale = median(t) / median(prediction), shift 0 (lower medians);
    - `none`: scale 1, shift 0, the prediction is t in its unit already.
    The aligned map is clipped below at 0.001 times the largest valid t, and in disparity inverted.

    Args:
        prediction: `(B, H, W)` or `(H, W)`, the model's map, a floating dtype: disparity or inverse depth for
            `space="disparity"`, depth for `"depth"`.
        target: as prediction; true depth, metres, positive where valid.
        valid: bool, as prediction; None = all.
        space: `disparity` or `depth`, where the fit is made.
        method: `least-squares`, `median` or `none`.

    Returns:
        `Alignment`. A prediction that is constant over the valid pixels (or a single one) is fitted by scale 0 and the
        mean of t. Without a valid pixel scale, shift and depth are NaN, likewise if a valid pixel is not finite.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ; unknown space or method.

    Source: Ranftl et al., Towards Robust Monocular Depth Estimation (2020). The published codes clip at
    other values (0.001 per metre, the smallest valid inverse depth).

    >>> depth = torch.tensor([[1.0, 2.0, 4.0]])
    >>> align(3 / depth + 5, depth).depth
    tensor([[1., 2., 4.]])
    """
    for name, choice, choices in (("space", space, SPACES), ("method", method, METHODS)):
        if choice not in choices:
            raise ValueError(
                f"align: {name} must be one of {', '.join(choices)}, got {choice!r}{did_you_mean(str(choice), choices)}"
            )
    check_floats("align", "prediction", prediction, (2, 3), "(B, H, W) or (H, W)")
    check_floats("align", "target", target, (2, 3), "(B, H, W) or (H, W)")
    check_same("align", "target", target, "prediction", prediction)
    check_valid("align", valid, prediction.shape, "prediction", prediction)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    if prediction.ndim == 2:
        single = align(
            prediction[None], target[None], None if valid is None else valid[None], space=space, method=method
        )
        return Alignment(single.scale[0], single.shift[0], single.depth[0])
    if valid is None:
        valid = torch.ones_like(prediction, dtype=torch.bool)
    kept = valid.flatten(1)
    # On a device without float64 the sums are made on the CPU: a fit is rare and must be right.
    home = "cpu" if prediction.device.type == "mps" else prediction.device
    values, kept = prediction.to(home).double().flatten(1), kept.to(home)
    wanted = target.to(home).double().flatten(1)
    wanted = torch.where(kept, wanted, 1)
    if space == "disparity":
        wanted = 1 / wanted
    if values.shape[1] == 0:
        undefined = values.new_full((len(values),), torch.nan)
        return Alignment(undefined, undefined.clone(), prediction.to(dtype))
    fitted = torch.where(kept, values, 0)
    scale, shift = _fit(fitted, wanted, kept, method)
    floor = FLOOR * torch.where(kept, wanted, 0).amax(1)
    # torch.maximum keeps a NaN, which clamp with a tensor bound does as well, but says so less plainly.
    aligned = torch.maximum(scale[:, None] * values + shift[:, None], floor[:, None])
    depth = (1 / aligned if space == "disparity" else aligned).view(prediction.shape)
    return Alignment(scale, shift, depth.to(dtype).to(prediction.device))


def _fit(values: Tensor, wanted: Tensor, kept: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Scale and shift `(B,)`; `values` is 0 where not kept."""
    count = kept.sum(1)
    broken = (count == 0) | ~torch.isfinite(torch.where(kept, values + wanted, 0)).all(1)
    if method == "none":
        scale, shift = torch.ones_like(values[:, 0]), torch.zeros_like(values[:, 0])
    elif method == "median":
        scale, shift = _median(wanted, kept) / _median(values, kept), torch.zeros_like(values[:, 0])
    else:
        number = count.clamp(min=1)
        value_mean = values.sum(1) / number
        wanted_mean = torch.where(kept, wanted, 0).sum(1) / number
        value_rest = torch.where(kept, values - value_mean[:, None], 0)
        wanted_rest = torch.where(kept, wanted - wanted_mean[:, None], 0)
        # Centred sums: the textbook n * sum(x^2) - sum(x)^2 loses all digits for maps far from 0.
        variance = value_rest.square().sum(1)
        low = torch.where(kept, values, torch.inf).amin(1)
        constant = torch.where(kept, values, -torch.inf).amax(1) <= low
        scale = torch.where(constant, 0, (value_rest * wanted_rest).sum(1) / torch.where(constant, 1, variance))
        shift = wanted_mean - scale * value_mean
    return torch.where(broken, torch.nan, scale), torch.where(broken, torch.nan, shift)


def _median(values: Tensor, kept: Tensor) -> Tensor:
    """Lower median of the kept pixels, `(B,)`; NaN if there is none."""
    return torch.where(kept, values, torch.nan).nanmedian(1).values
