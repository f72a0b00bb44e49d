"""Whether metres can be metres: what a wrong depth scale looks like, and which one is likely right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

USUAL_SCALES = (1000, 256, 5000, 100, 1)
"""Stored units per metre in use, the most frequent first: millimetres; KITTI; TUM RGB-D; centimetres; metres."""
FARTHEST, NEAREST = 200.0, 0.05
"""Medians of depth, in metres, beyond which a set of scenes is doubted."""
_SATURATED, _MANY = 65535, 0.01
"""The largest number of 16 bits, and the share of pixels above which it is no measurement."""
_LIKELY, _USUAL = (0.3, 80.0), (0.5, 10.0)
"""Medians, in metres, that sets of scenes have, and that most have."""


def likely_scales(median: float, scale: float) -> list[tuple[int, float]]:
    """Return the usual scales that would give a likely median, and that median, the likeliest first.

    Args:
        median: of the depth as it was read, metres.
        scale: stored units per metre that it was read with.

    >>> likely_scales(1500.0, 1.0)[:2]
    [(1000, 1.5), (256, 5.859375)]
    """
    found = [(usual, median * scale / usual) for usual in USUAL_SCALES if usual != scale]
    found = [(usual, value) for usual, value in found if _LIKELY[0] <= value <= _LIKELY[1]]
    return sorted(found, key=lambda entry: not _USUAL[0] <= entry[1] <= _USUAL[1])


def saturation_note(depth: np.ndarray, valid: np.ndarray, scale: float) -> str:
    """Return a line if many pixels hold the largest number of 16 bits, which cameras write for `unknown`; else nothing.

    Args:
        depth: `(H, W)`, metres.
        valid: bool `(H, W)`.
        scale: stored units per metre.
    """
    share = float(np.mean(np.abs(depth[valid].astype(np.float64) * scale - _SATURATED) < 0.5)) if valid.any() else 0.0
    if share < _MANY:
        return ""
    return (
        f"{share:.0%} of the valid ground truth is stored as {_SATURATED}, which mostly stands for unknown; if so, "
        f"give `invalid`: {_SATURATED} in a manifest"
    )


def scale_notes(values: np.ndarray | Sequence[float], scale: float | None = None) -> list[str]:
    """Return a line for a set whose median is no depth of a scene; nothing for any other.

    Args:
        values: valid depths of some samples, metres.
        scale: stored units per metre that they were read with; None if it is not one for all.

    >>> scale_notes([1400.0, 1500, 1600], 1)[0].partition("; ")[0]
    'the ground truth has a median of 1.5e+03 m, read as 1 stored unit per metre'
    >>> scale_notes([0.5, 1.5, 900])
    []
    """
    depths = np.asarray(values, np.float64)
    depths = depths[np.isfinite(depths)]
    median = float(np.median(depths)) if depths.size else 1.0
    if NEAREST <= median <= FARTHEST:
        return []
    line = f"the ground truth has a median of {median:.3g} m"
    if scale is None:
        return [f"{line}; scenes have {NEAREST:g} to {FARTHEST:g}: is the depth scale right?"]
    line += f", read as {scale:g} stored unit{'s' * (scale != 1)} per metre"
    likely = [f"{usual} ({value:.3g} m)" for usual, value in likely_scales(median, scale)[:2]]
    if not likely:
        return [f"{line}; scenes have {NEAREST:g} to {FARTHEST:g}, and no usual scale gives that: is it depth?"]
    return [f"{line}; likely right is {' or '.join(likely)}: give --truth-scale, or `scale` in a manifest"]
