"""Colour for the eye only: a map to 8-bit RGB through a perceptual table.

numpy is imported at first use, so that the command line can read the names without it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from distilldepth.errors import did_you_mean

if TYPE_CHECKING:
    import numpy as np

_CONTROL_POINTS = {
    "spectral": "5e4fa2 3288bd 66c2a5 abdda4 e6f598 ffffbf fee08b fdae61 f46d43 d53e4f 9e0142",
    "turbo": "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 b11901 7a0403",
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "magma": "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "gray": "000000 ffffff",
}
"""Equidistant sRGB colours from far to near; the tables are interpolated linearly between them."""

COLORMAPS = tuple(_CONTROL_POINTS)


@functools.cache
def colormap_table(name: str) -> np.ndarray:
    """Return the uint8 `(256, 3)` table of a colour map, far first.

    Raises:
        ValueError: unknown name.
    """
    if name not in _CONTROL_POINTS:
        raise ValueError(
            f"colormap_table: name must be a known colour map, got {name!r}{did_you_mean(name, COLORMAPS)}"
        )
    import numpy as np

    points = np.array([list(bytes.fromhex(colour)) for colour in _CONTROL_POINTS[name].split()], dtype=np.float64)
    where = np.linspace(0, len(points) - 1, 256)
    channels = [np.interp(where, np.arange(len(points)), points[:, channel]) for channel in range(3)]
    table = np.stack(channels, axis=1).round().astype(np.uint8)
    table.flags.writeable = False
    return table


def nearness(values: np.ndarray, quantity: str) -> np.ndarray:
    """Turn a map so that larger = nearer: metric depth is inverted, affine-invariant depth negated.

    Args:
        values: `(H, W)`, in `quantity`.
        quantity: `disparity`, `depth` or `metric_depth`.

    Returns:
        float64 `(H, W)`; NaN for metric depth that is not positive.
    """
    import numpy as np

    values = values.astype(np.float64)
    if quantity == "disparity":
        return values
    if quantity == "depth":
        return -values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, 1 / values, np.nan)


def colorize(
    values: np.ndarray, quantity: str, *, colormap: str = "spectral", percentiles: tuple[float, float] = (1.0, 99.0)
) -> np.ndarray:
    """Return an uint8 `(H, W, 3)` picture in which near things have the last colour of the map.

    Args:
        values: `(H, W)`, in `quantity`. Pixels that are not finite come out black.
        quantity: `disparity`, `depth` or `metric_depth` (coloured by its inverse).
        colormap: one of `COLORMAPS`.
        percentiles: of the nearness, shown as the first and the last colour; what lies beyond is clipped.

    Raises:
        ValueError: unknown colour map, or percentiles that do not ascend within 0 to 100.
    """
    import numpy as np

    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"colorize: percentiles must ascend within 0 to 100, got {low:g},{high:g}")
    table = colormap_table(colormap)
    near = nearness(values, quantity)
    valid = np.isfinite(near)
    picture = np.zeros((*near.shape, 3), dtype=np.uint8)
    if valid.any():
        first, last = np.percentile(near[valid], [low, high])
        span = last - first
        share = (near[valid] - first) / span if span > 0 else np.full(int(valid.sum()), 0.5)
        picture[valid] = table[(np.clip(share, 0, 1) * 255).round().astype(np.uint8)]
    return picture
