"""Scoring: many maps of one size aligned and measured in one go, on the device where they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distilldepth.datasets.truth import Truth
from distilldepth.depth import to_disparity
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.doubts import median_ratio, rank_correlation
from distilldepth.evaluate.measure import Maps, Measured, measure, scored_pixels, to_depth
from distilldepth.evaluate.protocol import PARAMETERS, Rules, crop_box
from distilldepth.metrics import (
    boundary_f1,
    boundary_f1_masked,
    calibration_error,
    completion_metrics,
    laplace_calibration,
    sparsification_areas,
    sparsification_curves,
)
from distilldepth.metrics.depth import DELTAS, LEAST_DEPTH, SUMS, metrics_from_sums
from distilldepth.models.preprocess import resize
from distilldepth.words import LOG_VARIANCE

DEPTH_EDGES = tuple(0.1 * 10 ** (step / 6) for step in range(21))
"""Edges of the bins of `Scores.by_depth`, metres; what lies outside counts in the first or last bin."""
MEANINGLESS = "a ratio of medians in depth means nothing for disparity; use --space disparity"


@dataclass
class Scores:
    """What came out for a batch of B images."""

    metrics: dict[str, Tensor]
    """By name, float64 `(B,)`; NaN for an image that has a problem."""
    sums: dict[str, Tensor]
    """What `pool` wants, by the names of `metrics.depth.SUMS`, float64 `(B,)`."""
    scale: Tensor
    """float64 `(B,)`: `aligned = scale * prediction + shift` in the space of the fit."""
    shift: Tensor
    """float64 `(B,)`."""
    problems: dict[int, str]
    """Why an image could not be scored, by its index."""
    _maps: Maps = field(repr=False)
    sparsification: dict[str, Tensor] = field(default_factory=dict)
    """Where there is an uncertainty: what `sparsification_curves` gives."""
    uncertainty: Tensor | None = None
    """That uncertainty, `(B, h, w)`."""

    @cached_property
    def depth(self) -> Tensor:
        """float32 `(B, h, w)`: the aligned prediction as depth on the whole frame; made when it is first asked for."""
        return self.depth_above(self._maps.floor)

    def depth_above(self, floor: Tensor) -> Tensor:
        """Return `depth` with another lower clip `(B,)` of the aligned map."""
        maps = self._maps
        aligned = maps.prediction.double() * self.scale[:, None, None] + self.shift[:, None, None]
        return to_depth(aligned, floor.to(aligned)[:, None, None], maps.space, maps.rules)

    @cached_property
    def scored(self) -> Tensor:
        """bool `(B, h, w)`: the pixels that were scored."""
        return scored_pixels(self._maps.truth, self._maps.valid, self._maps.rules)

    @cached_property
    def correlation(self) -> Tensor:
        """float32 `(B,)`: how the predictions run before the fit; see `rank_correlation`."""
        return rank_correlation(self._maps.prediction, self._wanted, self._maps.valid)

    @cached_property
    def ratio(self) -> Tensor:
        """float32 `(B,)`: median predicted by median true depth before the fit; for predictions in metres."""
        ratio = median_ratio(self._maps.prediction, self._wanted, self._maps.valid)
        return 1 / ratio if self._maps.space == "disparity" else ratio

    @property
    def _wanted(self) -> Tensor:
        """The truth in the space of the fit; not finite where there is none."""
        truth = self._maps.truth
        return 1 / truth if self._maps.space == "disparity" else truth

    @cached_property
    def by_depth(self) -> Tensor:
        """float64 `(B, bins, 5)`: error against depth.

        Per bin: its nearest and farthest depth, the number of pixels, their sum of |d - g| / g, and how many are within
        a factor 1.25.
        """
        bins = len(DEPTH_EDGES) - 1
        table = torch.zeros((len(self.scored), bins, 5), dtype=torch.float64, device=self.scored.device)
        edges = torch.tensor(DEPTH_EDGES, dtype=torch.float64, device=self.scored.device)
        table[..., 0], table[..., 1] = edges[:-1], edges[1:]
        kept = self.scored.flatten().nonzero()[:, 0]
        truth, depth = (maps.flatten().index_select(0, kept) for maps in (self._maps.truth, self.depth))
        place = truth.log10().add_(1).mul_(6).floor_().clamp_(0, bins - 1).long()
        index = place.add_(torch.div(kept, self.scored[:1].numel() or 1, rounding_mode="floor"), alpha=bins)
        close = torch.maximum(depth / truth, truth / depth) < DELTAS[0]
        for column, weights in ((2, None), (3, (depth - truth).abs_().div_(truth)), (4, close.float())):
            found = torch.bincount(index, weights, minlength=len(table) * bins)
            table[..., column] = found.view(len(table), bins)
        return table


def apply_image_crop(image: np.ndarray, truth: Truth, rules: Rules) -> tuple[np.ndarray, Truth]:
    """Crop image and truth as the rules want it before the model sees the image.

    Args:
        image: uint8 `(H, W, 3)`.
        truth: of the same size if there is something to crop.
        rules: `image_crop` is what counts; `kb-in-frame` leaves the truth whole.

    Raises:
        DistillDepthError: the frame does not fit the crop, or the truth has another size.
    """
    window = _crop_window(image, rules)
    if window is None:
        return image, truth
    if truth.depth.shape != image.shape[:2]:
        raise DistillDepthError(
            f"the {rules.image_crop} crop needs truth of the image's size, got {_size(truth.depth.shape)} for an image "
            f"of {_size(image.shape)}"
        )
    if rules.image_crop == "kb-in-frame":
        return image[window], truth
    return image[window], dataclasses.replace(truth, depth=truth.depth[window], valid=truth.valid[window])


def crop_right_view(image: np.ndarray, rules: Rules) -> np.ndarray:
    """Crop a right view as `apply_image_crop` does its left one.

    Args:
        image: uint8 `(H, W, 3)`.
        rules: `image_crop` is what counts.

    Raises:
        DistillDepthError: the frame does not fit the crop.
    """
    window = _crop_window(image, rules)
    return image if window is None else image[window]


def _crop_window(image: np.ndarray, rules: Rules) -> tuple[slice, slice] | None:
    if not rules.image_crop:
        return None
    try:
        top, bottom, left, right = crop_box("kb", *image.shape[:2])
    except ValueError as error:
        raise DistillDepthError(str(error)) from error
    return slice(top, bottom), slice(left, right)


def to_frame(maps: Tensor, size: tuple[int, int], resize_as: str, rules: Rules) -> Tensor:
    """Bring maps `(B, H, W)` of the images that a model saw to the size (height, width) of the truth.

    Under `kb-in-frame` a map that has not that size already is one of the crop: it goes to its place, with 0 around it.

    Raises:
        ValueError: the frame does not fit the crop.
    """
    if rules.image_crop != "kb-in-frame" or tuple(maps.shape[1:]) == size:
        return resize(maps[:, None], size, resize_as)[:, 0]
    top, bottom, left, right = crop_box("kb", *size)
    frame = maps.new_zeros((len(maps), *size))
    frame[:, top:bottom, left:right] = resize(maps[:, None], (bottom - top, right - left), resize_as)[:, 0]
    return frame


def fill_background(depth: Tensor) -> Tensor:
    """Fill holes (0, negative or not finite) of predicted depth as the KITTI devkit does before it scores.

    Within a row a hole between two predictions gets the smaller depth of the two, a hole at an end the prediction next
    to it. Then rows without any prediction at the top and bottom are copied from the nearest row that has some; between
    such rows they stay holes.

    Args:
        depth: `(B, H, W)`, a floating dtype.

    Source: `interpolateBackground` of the KITTI depth devkit. It was written for disparity, where the smaller value
    is the background; for depth it takes the foreground.

    >>> fill_background(torch.tensor([[[0.0, 4.0, 0.0, 3.0, 0.0]]]))
    tensor([[[4., 4., 3., 3., 3.]]])
    """
    known = (depth > 0) & (depth < torch.inf)
    width = depth.shape[2]
    column = torch.arange(width, device=depth.device).expand(depth.shape)
    before = torch.where(known, column, -1).cummax(2).values
    after = torch.where(known, column, width).flip(2).cummin(2).values.flip(2)
    left = torch.where(before >= 0, depth.gather(2, before.clamp(min=0)), torch.inf)
    right = torch.where(after < width, depth.gather(2, after.clamp(max=width - 1)), torch.inf)
    filled = torch.where(known, depth, torch.minimum(left, right))
    filled = torch.where(filled < torch.inf, filled, 0)
    full = known.any(2)
    rows = torch.arange(depth.shape[1], device=depth.device)
    first = torch.where(full, rows, depth.shape[1]).amin(1, keepdim=True).clamp(max=depth.shape[1] - 1)
    last = torch.where(full, rows, -1).amax(1, keepdim=True).clamp(min=0)
    row = rows.expand(full.shape).clamp(min=first, max=torch.maximum(first, last))
    return filled.gather(1, row[:, :, None].expand(depth.shape))


def score_batch(
    values: Tensor,
    quantity: str,
    depth: Tensor,
    valid: Tensor,
    is_metric: bool,
    rules: Rules,
    *,
    extras: dict[str, Tensor] | None = None,
    dense: bool = False,
) -> Scores:
    """Align and score predictions against truth of one size.

    The fit is float64; aligned depth and its errors are float32, added up by pairs in blocks, and the blocks in
    float64. Metrics agree with float64 throughout to 1e-6, relative; of the deltas a pixel whose ratio rounds to the
    limit may come out on the other side. On a CPU with the native library float32 maps are scored by one operation,
    `distilldepth.ops.depth_sums`, to the same accuracy; it compares ratios exactly.

    Args:
        values: `(B, H, W)`, a floating dtype, in `quantity`; brought to the size of the truth.
        quantity: `disparity`, `depth` or `metric_depth`.
        depth: `(B, h, w)` true depth, metres; finite where valid.
        valid: bool, as depth; what the ground truth itself says.
        is_metric: whether `depth` has a unit.
        rules: of the protocol for this kind of dataset.
        extras: `uncertainty` `(B, H, W)` (larger = less certain) adds `ause_*` and `aurg_*`; `std` `(B, H, W)` (metres)
            adds `calibration_error`; `log_variance` `(B, H, W)`, of the numbers of the map, adds what an uncertainty
            does, and for metres that are scored as predicted, without a fit, `laplace_error` and `coverage_*`.
        dense: truth at every visible surface: adds `boundary_f1` (NaN where the truth has holes) and
            `boundary_f1_masked` of the pixels that count.

    Returns:
        `Scores`. An image that cannot be scored has NaN metrics and an entry in `problems`.

    Raises:
        ValueError: unknown quantity.
    """
    space = rules.space_for(quantity)
    batch = len(values)
    unknown = torch.full((batch,), torch.nan, dtype=torch.float64, device=values.device)
    prediction = values.float()
    if rules.fill_holes and quantity != "disparity":
        prediction = fill_background(prediction)
    size = depth.shape[1], depth.shape[2]
    prediction = to_frame(prediction, size, rules.resize, rules)
    if space == "disparity":
        prediction = to_disparity(prediction, quantity)
    elif quantity == "disparity":
        # Only the sign: larger = farther. The fit finds scale and shift.
        prediction = -prediction
    maps = Maps(prediction, depth, valid, rules, space, unknown)
    if reason := _no_way(quantity, space, size, is_metric, rules):
        empty = dict.fromkeys(SUMS, unknown)
        problems = dict.fromkeys(range(batch), reason)
        whole = dataclasses.replace(maps, rules=dataclasses.replace(rules, score_crop=""))
        return Scores(metrics_from_sums(empty), empty, unknown, unknown, problems, whole)
    measured = measure(maps)
    problems = _find_problems(measured, rules)
    scores = Scores(
        metrics_from_sums(measured.sums),
        measured.sums,
        measured.scale,
        measured.shift,
        problems,
        dataclasses.replace(maps, floor=measured.floor),
    )
    _add_extras(scores, extras or {}, dense, quantity)
    if problems:
        for column in (*scores.metrics.values(), *scores.sums.values()):
            column[list(problems)] = torch.nan
    return scores


def add_completion(scores: Scores) -> None:
    """Add the metrics that completion has besides those of depth; NaN for an image that has a problem."""
    found = completion_metrics(scores.depth, scores._maps.truth.float(), scores.scored)
    for name, values in found.items():
        column = torch.as_tensor(values)
        column[list(scores.problems)] = torch.nan
        scores.metrics[name] = column


def _find_problems(measured: Measured, rules: Rules) -> dict[int, str]:
    """Why images cannot be scored, by their index."""
    problems = {}
    fewest = max(rules.min_pixels, PARAMETERS[rules.align])
    is_fitted = (measured.scale + measured.shift).isfinite()
    table = torch.stack([measured.count, measured.is_finite.double(), is_fitted.double()]).tolist()
    for index, (number, finite, fitted) in enumerate(zip(*table, strict=True)):
        if number == 0:
            problems[index] = "no valid pixel in the ground truth"
        elif number < fewest:
            pixels = "1 valid pixel" if number == 1 else f"{number:.0f} valid pixels"
            problems[index] = f"only {pixels} in the ground truth, the protocol asks for {fewest}"
        elif not finite:
            problems[index] = "the prediction is not finite on every valid pixel"
        elif not fitted:
            problems[index] = "scale and shift cannot be fitted: no valid pixel where the prediction is positive"
    return problems


def pool(sums: dict[str, float]) -> dict[str, float]:
    """Return the metrics over all pixels of many images, from the sums of each added up; NaN without a pixel.

    >>> one = dict.fromkeys(SUMS, 1.0)
    >>> pool(one)["delta1"]
    1.0
    """
    tensors = {name: torch.tensor(sums[name], dtype=torch.float64) for name in SUMS}
    return {name: float(value) for name, value in metrics_from_sums(tensors).items()}


def is_meaningless(rules: Rules, quantity: str) -> bool:
    """Return whether the rules ask for a fit that this quantity does not allow, whatever the truth: `MEANINGLESS`.

    >>> is_meaningless(Rules(align="median", space="depth"), "disparity")
    True
    """
    return rules.align == "median" and quantity == "disparity" and rules.space_for(quantity) == "depth"


def _no_way(quantity: str, space: str, size: tuple[int, int], is_metric: bool, rules: Rules) -> str:
    """Why none of the images can be scored, or nothing."""
    if rules.align == "none" and not is_metric:
        return "the ground truth has no unit (no focal_px and baseline_m), so it needs alignment"
    if rules.align == "none" and quantity != "metric_depth":
        return f"a model that predicts {quantity} needs alignment, its numbers have no unit"
    if is_meaningless(rules, quantity):
        return MEANINGLESS
    try:
        top, bottom, left, right = crop_box(rules.score_crop, *size)
    except ValueError as error:
        return str(error)
    return (
        "" if top < bottom and left < right else f"nothing is left of {_size(size)} after the {rules.score_crop} crop"
    )


def _add_extras(scores: Scores, extras: dict[str, Tensor], dense: bool, quantity: str) -> None:
    maps, truth = scores._maps, scores._maps.truth.float()
    if dense:
        depth = scores.depth
        if maps.rules.disparity_floor == "farthest" and maps.space == "disparity":
            # In MoGe's code errors know this floor, boundaries do not: it would flatten what lies beyond the truth.
            depth = scores.depth_above(torch.full_like(maps.floor, LEAST_DEPTH))
        exact = boundary_f1(depth, truth)
        masked = boundary_f1_masked(depth, truth, scores.scored)
        scores.metrics["boundary_f1"] = torch.where(maps.valid.flatten(1).all(1), exact, torch.nan)
        scores.metrics["boundary_f1_masked"] = torch.as_tensor(masked)
    found = {name: to_frame(values.float(), maps.size, "bilinear", maps.rules) for name, values in extras.items()}
    uncertainty = found.get(LOG_VARIANCE, found.get("uncertainty"))
    if uncertainty is not None:
        scores.uncertainty = uncertainty
        scores.sparsification = sparsification_curves(scores.depth, truth, uncertainty, scores.scored)
        scores.metrics.update(sparsification_areas(scores.sparsification))
    if LOG_VARIANCE in found and quantity == "metric_depth" and maps.rules.align == "none":
        calibration = laplace_calibration(scores.depth, truth, found[LOG_VARIANCE], scores.scored)
        scores.metrics.update({name: torch.as_tensor(values) for name, values in calibration.items()})
    if "std" in found:
        gap = calibration_error(scores.depth, truth, found["std"], scores.scored)
        scores.metrics["calibration_error"] = torch.as_tensor(gap)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
