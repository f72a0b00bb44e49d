"""What the formats of maps can be told, and what each is given to write. Imports neither numpy nor torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PointCloudOptions:
    """The camera, and where to put maps that have no unit."""

    fov_deg: float = 60.0
    """Horizontal field of view, degrees; used if `intrinsics` is None."""
    intrinsics: tuple[float, float, float, float] | None = None
    """`fx, fy, cx, cy` in pixels of the photograph."""
    depth_range: tuple[float, float] = (1.0, 10.0)
    """Depth given to the nearest and to the farthest point of a map without a unit."""

    def __post_init__(self) -> None:
        near, far = self.depth_range
        if not 0 < near < far < float("inf"):
            raise ValueError(f"PointCloudOptions: depth_range must be 0 < near < far, got {near:g},{far:g}")
        if not 0 < self.fov_deg < 180:
            raise ValueError(f"PointCloudOptions: fov_deg must be between 0 and 180, got {self.fov_deg:g}")
        if self.intrinsics is not None and not (self.intrinsics[0] > 0 and self.intrinsics[1] > 0):
            raise ValueError(f"PointCloudOptions: fx and fy must be positive, got {self.intrinsics[:2]}")


@dataclass(frozen=True)
class WriteOptions:
    """What decides the files of a map besides the map; a format looks at its own only."""

    png_scale: float | None = None
    """Fixed stored units per metre of `png16`, for models that predict metres; see `write_depth_png`."""
    colormap: str = "spectral"
    """Of `color`, see `colorize`."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Of `color`, see `colorize`."""
    point_cloud: PointCloudOptions = field(default_factory=PointCloudOptions)
    """Camera and depth range of `ply`."""

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return some of the options as a plain dictionary for JSON."""
        found: dict[str, Any] = {}
        for name in names:
            value = getattr(self, name)
            found |= asdict(value) if is_dataclass(value) and not isinstance(value, type) else {name: value}
        return found


@dataclass(frozen=True)
class Picture:
    """One map that is to be written."""

    values: np.ndarray
    """`(H, W)`, any float dtype, in `quantity`."""
    quantity: str
    """`disparity`, `depth` or `metric_depth`."""
    image: np.ndarray | None = None
    """The photograph, uint8 `(H, W, 3)`."""
    texts: dict[str, str] = field(default_factory=dict)
    """What should be said of it, where the format has room for words."""
    origin: dict[str, str] = field(default_factory=dict)
    """Texts for programs, that tell what it was made from."""
