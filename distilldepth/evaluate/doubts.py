"""What makes a score doubtful: a map of another shape, one that runs against the truth, metres in another unit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from distilldepth.evaluate.protocol import Rules
from distilldepth.evaluate.record.rows import Doubt, ScoredSample

SHAPE, TRUTH_SHAPE, DIRECTION, SCALE, TRUTH_SCALE = "shape", "truth shape", "direction", "scale", "truth scale"
VIEWS = "views"
"""The kinds of doubt: the prediction or the truth is no map of the whole image; near and far are exchanged; metres are
of another size than the truth's; the truth's metres are none; left and right view look exchanged. A single frame can be
doubtful for the first three and the last, a dataset for all."""

PROBES = 2048
"""Pixels of a frame, on a regular grid, by which direction and size are judged."""
AGAINST = -0.1
"""A rank correlation below this runs against the truth, where no scale is fitted whose sign would say so."""
LARGEST_RATIO = 3.0
"""Metres that are off by more than this factor, in the median over the frames, are named."""

_MULTIPLES = (64, 32, 28, 16, 14, 8)
"""What networks round the sides of their input to."""
_ROUNDING = 0.1
"""The largest share of the shorter side that rounding may change."""
_SLACK, _GAP = 1.03, 0.3
"""Twice as long may be a little less, or more by what is left free between two pictures."""
_USUAL_SCALES = (100, 256, 1000, 5000)
"""Stored units per metre: centimetres, KITTI, millimetres, TUM RGB-D."""
_SAME = 1.15
"""Ratios within this factor of each other may be one."""


def describe_misfit(size: tuple[int, int], frame: tuple[int, int]) -> str:
    """Return how a map differs from a frame in shape; empty if it is the frame at some resolution.

    Sides that are multiples of what networks round to may differ by that rounding, at most by 10 %, others by a pixel.
    A map of 352 x 1216 is KITTI's crop, not the frame.

    Args:
        size, frame: height and width, pixels.

    >>> describe_misfit((192, 512), (192, 256))
    '192 x 512 for 192 x 256, twice as wide: two pictures side by side?'
    >>> describe_misfit((518, 686), (480, 640))
    ''
    """
    if _is_whole(size, frame):
        return ""
    wider = size[1] * frame[0] / (size[0] * frame[1])
    beside, above = 2 / _SLACK < wider < 2 + _GAP, 2 / _SLACK < 1 / wider < 2 + _GAP
    guesses = (
        (size == frame[::-1], "turned by a quarter or transposed?"),
        (beside and size[1] > frame[1], "twice as wide: two pictures side by side?"),
        (above and size[0] > frame[0], "twice as high: two pictures one above the other?"),
        (size[0] == size[1], "square: the frame squeezed?"),
        (size[0] <= frame[0] and size[1] <= frame[1], "a part of it?"),
        (_is_whole(size[::-1], frame), "turned by a quarter or transposed?"),
        (True, "of another shape"),
    )
    guess = next(text for fits, text in guesses if fits)
    return f"{size[0]} x {size[1]} for {frame[0]} x {frame[1]}, {guess}"


def _is_whole(size: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Whether one enlargement takes the frame to the size, but for the rounding of the sides."""
    if size == frame:
        return True
    if size == (352, 1216) and frame[0] >= 352 and frame[1] >= 1216:
        return False
    step = next((m for m in _MULTIPLES if not size[0] % m and not size[1] % m), 1)
    room = max(1.0, min(step, _ROUNDING * min(size)))
    most = min((side + room) / of for side, of in zip(size, frame, strict=True))
    return all((side - room) / of <= most for side, of in zip(size, frame, strict=True))


def rank_correlation(prediction: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Return the correlation of the ranks of about `PROBES` pixels of each image, on a grid.

    Args:
        prediction, wanted: `(B, h, w)`, float32, in one space.
        valid: bool `(B, h, w)`; pixels that are not finite do not count either.

    Returns:
        float32 `(B,)`: negative = near and far are exchanged; NaN where one of the two is constant.
    """
    p, t = _probes(prediction, wanted, valid)
    kept = ~p.isnan()
    # NaN comes last in torch's order, so the ranks of what counts are 0, 1, 2, ...
    middle = (kept.sum(1, keepdim=True) - 1) / 2
    a, b = (torch.where(kept, values.argsort(1).argsort(1) - middle, 0) for values in (p, t))
    correlation = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where((_spread(p) <= 0) | (_spread(t) <= 0), torch.nan, correlation)


def median_ratio(prediction: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Return the median of the prediction by that of the truth, float32 `(B,)`; arguments as `rank_correlation`."""
    p, t = _probes(prediction, wanted, valid)
    return p.nanmedian(1).values / t.nanmedian(1).values


def _probes(prediction: Tensor, wanted: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of a grid `(B, n)`, NaN where one of the two is unknown."""
    step = max(1, math.ceil(math.sqrt(valid.shape[1] * valid.shape[2] / PROBES)))
    p, t, kept = (maps[:, ::step, ::step].flatten(1) for maps in (prediction, wanted, valid))
    kept = kept & t.isfinite() & p.isfinite()
    return torch.where(kept, p, torch.nan), torch.where(kept, t.float(), torch.nan)


def _spread(values: Tensor) -> Tensor:
    """Largest minus smallest, NaN not looked at."""
    known = ~values.isnan()
    return torch.where(known, values, -torch.inf).amax(1) - torch.where(known, values, torch.inf).amin(1)


def fits_slope(rules: Rules) -> bool:
    """Whether the sign of the scale shows the direction: a ratio of medians is positive whatever the map is."""
    return rules.align not in ("none", "median")


def find_wrong_direction(correlation: Sequence[float], scale: Sequence[float], rules: Rules) -> list[str]:
    """Return, per frame, how it shows that the prediction runs against the truth; empty where it does not.

    Args:
        correlation, scale: of the ranks before the fit, and what was fitted.
        rules: of the fit; `fits_slope` says which of the two decides.
    """
    if not fits_slope(rules):
        return [f"rank correlation {value:.2f}" if value < AGAINST else "" for value in correlation]
    return [f"scale {value:.3g}" if value < 0 else "" for value in scale]


def summarise_doubts(samples: Sequence[ScoredSample], quantity: str, rules: Rules) -> list[Doubt]:
    """Return the doubts about a dataset.

    Args:
        samples: its scored frames.
        quantity: of the model.
        rules: of the dataset.
    """
    other = {"disparity": "depth", "depth": "disparity", "metric_depth": "disparity"}[quantity]
    words = {
        SHAPE: "the prediction has another shape than the image and was stretched over it",
        TRUTH_SHAPE: "the ground truth has another shape than the image and was taken to cover it",
        VIEWS: "left and right view look exchanged; name the left one as `image` and the other as `right`",
        DIRECTION: f"the prediction runs against the truth, near and far exchanged; are its numbers {other}?",
    }
    found = []
    for kind, text in words.items():
        doubtful = [sample for sample in samples if kind in sample.doubts]
        if doubtful:
            first = f"first: {doubtful[0].name}, {doubtful[0].doubts[kind]}"
            count = len(doubtful)
            found.append(Doubt(kind, count, f"{count} of {len(samples)} frames: {text} ({first})"))
    ratios = [sample.ratio for sample in samples if sample.ratio]
    if ratios and rules.align == "none":
        ratio = statistics.median(ratios)
        if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
            text = f"predicted metres are {ratio:.3g} times those of the truth; {_explain_ratio(ratio)}"
            found.append(Doubt(SCALE, len(ratios), text))
    return found


def _explain_ratio(ratio: float) -> str:
    """Which mistake gives this ratio."""
    scales = (1, *_USUAL_SCALES)
    for stored in scales:
        for read in scales:
            if stored != read and abs(math.log(abs(ratio) * read / stored)) < math.log(_SAME) and ratio > 0:
                return (
                    f"is one of the two in another unit ({stored} against {read} per metre)? --depth-scale gives the "
                    "stored units per metre of predictions, --truth-scale of the ground truth"
                )
    return "another unit, or a model of other distances?"
