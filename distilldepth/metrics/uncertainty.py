"""Does a model know where it is wrong? Sparsification and calibration of predicted uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from distilldepth.metrics.depth import LEAST_DEPTH
from distilldepth.ops.arguments import check_maps

ERRORS = ("rmse", "abs_rel", "delta1")
UNCERTAINTY_NAMES = tuple(f"{area}_{error}" for area in ("ause", "aurg") for error in ERRORS)
STEPS = 50
LEVELS = tuple(level / 20 for level in range(1, 20))
"""Shares of a Gaussian at which coverage is compared: 0.05 to 0.95."""
SHARES = tuple(percent / 100 for percent in range(10, 100, 10))
"""Shares of a Laplace distribution at which coverage is compared: 0.1 to 0.9."""
LAPLACE_NAMES = ("laplace_error", *(f"coverage_{round(100 * share)}" for share in SHARES))


def uncertainty_metrics(
    prediction: Tensor, target: Tensor, uncertainty: Tensor, valid: Tensor | None = None
) -> dict[str, float] | dict[str, Tensor]:
    """Score how well uncertainty ranks the errors, by sparsification.

    Taking away the most uncertain pixels, 2 % more at each of 50 steps, gives a curve of the error of those that stay;
    it ends at 0. With the curve of the best order (by the error itself) and a flat one (random order), areas by
    trapezoids over the share taken away:
    `ause_*` = area(by uncertainty) - area(best), lower is better, 0 is perfect;
    `aurg_*` = area(flat) - area(by uncertainty), higher is better.
    `*`: `rmse`, `abs_rel`, and `delta1` for the error 1 - delta1.

    Args:
        prediction: `(B, H, W)` or `(H, W)` depth, metres, a floating dtype; clipped below at 1e-6.
        target: as prediction; true depth, positive where valid.
        uncertainty: as prediction; larger = less certain, any unit. Pixels with equal uncertainty go in raster order.
        valid: bool, as prediction; None = all.

    Returns:
        By name: floats for one map, float64 `(B,)` for a batch. NaN without a valid pixel or where one is NaN.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: Ilg et al., Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow (2018); Poggi et al., On
    the Uncertainty of Self-Supervised Monocular Depth Estimation (2020), section 4.
    """
    check_maps("uncertainty_metrics", prediction, valid, target=target, uncertainty=uncertainty)
    curves = sparsification_curves(prediction, target, uncertainty, valid)
    scores = sparsification_areas(curves)
    return {name: float(value[0]) for name, value in scores.items()} if prediction.ndim == 2 else scores


def sparsification_curves(
    prediction: Tensor, target: Tensor, uncertainty: Tensor, valid: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the curves behind `uncertainty_metrics`.

    Args:
        prediction, target, uncertainty, valid: see there.

    Returns:
        By the names of `ERRORS` float64 `(B, 2, 51)`, B = 1 for one map: the error of the pixels that stay where 0, 2,
        ... 100 % are taken away, by the uncertainty and by the error itself. The first is the error of all pixels,
        which a random order keeps; the last is 0. NaN without a valid pixel or where one is NaN.

    Raises:
        TypeError, ValueError: see there.
    """
    check_maps("sparsification_curves", prediction, valid, target=target, uncertainty=uncertainty)
    kept, d, g, rank = _flatten(valid, prediction, target, uncertainty)
    d, g = torch.where(kept, d, 1).clamp(min=LEAST_DEPTH), torch.where(kept, g, 1)
    rank = torch.where(kept, rank.clamp(max=torch.finfo(torch.float64).max), torch.inf)
    broken = (torch.where(kept, rank + d + g, 0)).isnan().any(1) | ~kept.any(1)
    # What is not valid is the most uncertain and is never counted: curves look at the first `count` pixels only.
    order = rank.argsort(dim=1, stable=True)
    count = kept.sum(1)
    wrong = (torch.maximum(d / g, g / d) >= 1.25).double()
    found: dict[str, Tensor] = {}
    for name, error in (("rmse", (d - g).square()), ("abs_rel", (d - g).abs() / g), ("delta1", wrong)):
        error = torch.where(kept, error, torch.inf)
        curves = torch.stack([_curve(values, count) for values in (error.gather(1, order), error.sort(1).values)], 1)
        curves = curves.sqrt() if name == "rmse" else curves
        found[name] = torch.where(broken[:, None, None], torch.nan, curves)
    return found


def sparsification_areas(curves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `ause_*` and `aurg_*`, float64 `(B,)` each, of what `sparsification_curves` gave."""
    found: dict[str, Tensor] = {}
    for name, both in curves.items():
        by_rank, best = torch.trapezoid(both, dx=1 / STEPS).unbind(1)
        found[f"ause_{name}"] = by_rank - best
        found[f"aurg_{name}"] = both[:, 0, 0] - by_rank
    return {name: found[name] for name in UNCERTAINTY_NAMES}


def laplace_calibration(
    prediction: Tensor, target: Tensor, log_variance: Tensor, valid: Tensor | None = None
) -> dict[str, float] | dict[str, Tensor]:
    """Score whether errors are as large as a Laplace distribution of the stated variance says.

    With s = log sigma^2 the distribution has the scale b = sigma / sqrt(2), and its central interval that holds a share
    p has the half width -b log(1 - p). `coverage_10` to `coverage_90` are the shares of pixels with
    |target - prediction| within that of p = 0.1, 0.2, ... 0.9: below p the model is too sure of itself, above it not
    sure enough. `laplace_error` is the mean over p of |coverage - p|: 0 is perfect, at most 0.5.

    Args:
        prediction: `(B, H, W)` or `(H, W)`, a floating dtype; depth in metres.
        target: as prediction, in the same unit.
        log_variance: as prediction; s, of that unit.
        valid: bool, as prediction; None = all.

    Returns:
        By the names of `LAPLACE_NAMES`: floats for one map, float64 `(B,)` for a batch. NaN without a valid pixel or
        where one is NaN.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: the likelihood behind the response loss of ADU-Depth (CoRL 2023), equation 7; coverage as Kuleshov et al.,
    Accurate Uncertainties for Deep Learning Using Calibrated Regression (2018), section 3.
    """
    check_maps("laplace_calibration", prediction, valid, target=target, log_variance=log_variance)
    kept, estimate, wanted, spread = _flatten(valid, prediction, target, log_variance)
    # In units of b.
    error = (estimate - wanted).abs() * math.sqrt(2) * (-spread / 2).exp()
    count = kept.sum(1)
    broken = torch.where(kept, error + spread, 0).isnan().any(1) | ~kept.any(1)
    covered = torch.stack([((error <= -math.log1p(-share)) & kept).sum(1).double() / count for share in SHARES], 1)
    covered = torch.where(broken[:, None], torch.nan, covered)
    gaps = (covered - covered.new_tensor(SHARES)).abs().mean(1)
    scores = dict(zip(LAPLACE_NAMES, (gaps, *covered.unbind(1)), strict=True))
    return {name: float(value[0]) for name, value in scores.items()} if prediction.ndim == 2 else scores


def calibration_error(prediction: Tensor, target: Tensor, std: Tensor, valid: Tensor | None = None) -> float | Tensor:
    """Mean difference between how often the truth should lie within Gaussian intervals and how often it does.

    For shares p = 0.05, 0.10, ..., 0.95, with z_p the half width of the central interval of a standard Gaussian that
    holds p: mean over p of |share of pixels with |target - prediction| <= z_p * std - p|.

    Args:
        prediction: `(B, H, W)` or `(H, W)`, a floating dtype; depth in metres or its logarithm.
        target: as prediction, in the same unit.
        std: as prediction; standard deviation in that unit, not negative; for a log-variance v it is exp(v / 2).
        valid: bool, as prediction; None = all.

    Returns:
        A float for one map, float64 `(B,)` for a batch; 0 is perfect, at most 0.5. NaN without a valid pixel or where
        one is NaN.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool.
        ValueError: shapes differ.

    Source: Kuleshov et al., Accurate Uncertainties for Deep Learning Using Calibrated Regression (2018), section 3.
    """
    check_maps("calibration_error", prediction, valid, target=target, std=std)
    kept, estimate, wanted, deviation = _flatten(valid, prediction, target, std)
    error = (estimate - wanted).abs()
    shares = torch.tensor(LEVELS, dtype=torch.float64, device=error.device)
    widths = torch.special.ndtri((1 + shares) / 2)
    count = kept.sum(1)
    gaps = []
    for share, width in zip(shares, widths, strict=True):
        gaps.append(((((error <= width * deviation) & kept).sum(1) / count) - share).abs())
    broken = torch.where(kept, error + deviation, 0).isnan().any(1)
    score = torch.where(broken, torch.nan, torch.stack(gaps).mean(0))
    return float(score[0]) if prediction.ndim == 2 else score


def _flatten(valid: Tensor | None, *maps: Tensor) -> Iterator[Tensor]:
    """Which pixels count, and maps in float64, `(B, n)` each; a single map is a batch of one."""
    kept = torch.ones_like(maps[0], dtype=torch.bool) if valid is None else valid
    # On a device without float64 the sums are made on the CPU.
    home = "cpu" if kept.device.type == "mps" else kept.device
    for values in (kept, *maps):
        flat = (values[None] if values.ndim == 2 else values).to(home).flatten(1)
        yield flat if values is kept else flat.double()


def _curve(errors: Tensor, count: Tensor) -> Tensor:
    """Mean of the first pixels of `(B, n)` at each step, `(B, STEPS + 1)`; 0 at the end, where none is left."""
    if errors.shape[1] == 0:
        return errors.new_full((len(errors), STEPS + 1), torch.nan)
    steps = torch.arange(STEPS, device=errors.device)
    left = (count[:, None] * (STEPS - steps) + STEPS - 1) // STEPS
    total = errors.cumsum(1).gather(1, (left - 1).clamp(min=0))
    return torch.nn.functional.pad(total / left, (0, 1))
