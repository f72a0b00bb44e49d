"""How a ground-truth file holds depth: format, scale, what is no measurement, distance or z."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np

from distilldepth.datasets.archive import Readable
from distilldepth.datasets.rgbd import decode_depth
from distilldepth.errors import DistillDepthError
from distilldepth.images.decode import open_image

FORMATS = ("map", "raw-float32", "log-png")
"""`map`: a grey image or `.npy`. `raw-float32`: little-endian values without a header, row by row, whatever the suffix.
`log-png`: 16 bits, logarithmic between the `near` and `far` of the PNG's text."""


@dataclass(frozen=True)
class DepthCodec:
    """How depth is stored.

        metres = stored / scale                                      (map, raw-float32)
        metres = near^(1 - t) far^t,   t = (stored - 1) / 65533      (log-png)

    A value is valid if it is finite and above 0, before and after the division, and not in `invalid`. With `focal_px`,
    stored values are distances from the camera, and z = distance * f / sqrt(f^2 + u^2 + v^2) with u, v counted from
    the middle of the image.

    >>> depth, valid = DepthCodec(scale=256, invalid=(65535,)).metres(np.array([[0, 512, 65535]], dtype=np.uint16))
    >>> depth.tolist(), valid.tolist()
    ([[0.0, 2.0, 0.0]], [[False, True, False]])
    """

    scale: float = 1.0
    """Stored units per metre."""
    invalid: tuple[float, ...] = ()
    """Stored values that are no measurement, besides 0."""
    format: str = "map"
    """One of `FORMATS`."""
    scale_8bit: float | None = None
    """Stored units per metre of 8-bit images; None: 8 bits cannot be right, and are refused."""
    focal_px: float | None = None
    """Focal length of stored distances; None: stored values are z."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"DepthCodec: format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"DepthCodec: scale must be positive (units per metre), got {self.scale}")

    def read(self, file: Readable, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Read a file.

        Args:
            file: the ground truth.
            size: (height, width) of the photograph; raw values do not say theirs.

        Returns:
            float32 `(h, w)` in metres, 0 where not valid; bool `(h, w)`.

        Raises:
            FileNotFoundError: there is no such file.
            DistillDepthError: it is damaged, or not what the codec says.
        """
        if self.format == "raw-float32":
            values = file.read_array("<f4")
            return self.metres(values.reshape(raw_size(values.size, size, str(file))))
        data = file.read()
        if self.format == "log-png":
            return self.metres(*_read_log_png(data, str(file)))
        stored = decode_depth(io.BytesIO(data), str(file))
        if stored.dtype == np.uint8 and self.scale_8bit is None:
            raise DistillDepthError(
                f"{file}: has 8 bits per pixel, so it is a picture of depth and not the ground truth"
            )
        return self.metres(stored)

    def metres(
        self, stored: np.ndarray, near: float | None = None, far: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode stored values.

        Args:
            stored: `(h, w)`; a float32 array may be changed and returned.
            near, far: ends of the logarithmic scale, for `log-png`.

        Returns:
            As `read`.
        """
        valid = np.isfinite(stored)
        valid &= stored > 0
        for value in self.invalid:
            valid &= stored != value
        scale = self.scale_8bit if self.scale_8bit and stored.dtype == np.uint8 else self.scale
        if near is not None and far is not None:
            valid &= stored < 65535
            depth = _decode_log(near, far)[stored]
        elif scale == 1 and stored.dtype == np.float32:
            depth = stored
        else:
            # float64, so that the quotient is rounded once. Overflow becomes inf, which is not valid.
            with np.errstate(over="ignore", invalid="ignore"):
                depth = np.divide(stored, scale, dtype=np.float64).astype(np.float32)
            valid &= np.isfinite(depth) & (depth > 0)
        if self.focal_px is not None:
            depth *= _ray_to_z(depth.shape, self.focal_px)
        np.copyto(depth, 0, where=~valid)
        return depth, valid


def raw_size(count: int, size: tuple[int, int], name: str) -> tuple[int, int]:
    """Return the height and width of `count` raw values that show what a photograph of (height, width) `size` shows.

    The photograph may have been resized: its shape decides, not its size.

    Raises:
        DistillDepthError: no map of that many values has the photograph's shape.

    >>> raw_size(24 * 36, (12, 18), "depth.bin")
    (24, 36)
    """
    height = round(math.sqrt(count * size[0] / size[1]))
    for rows in (size[0], height, height - 1, height + 1):
        columns = count // rows if rows > 0 else 0
        # Resizing rounds both sides by half a pixel of the smaller picture: this much area of both together.
        tolerance = max(sum(size), rows + columns) / 2
        if rows * columns == count and abs(columns * size[0] - rows * size[1]) <= tolerance:
            return rows, columns
    raise DistillDepthError(
        f"{name}: holds {count} values, which is no map of the shape of its {size[1]}x{size[0]} image"
    )


def _read_log_png(data: bytes, name: str) -> tuple[np.ndarray, float, float]:
    with open_image(io.BytesIO(data), name) as image:
        text = image.info
        try:
            near, far = float(text["near"]), float(text["far"])
            unit = float(text.get("unit", 1))
        except (KeyError, TypeError, ValueError):
            raise DistillDepthError(
                f"{name}: has no `near` and `far` in its text, so it is no log-scaled depth"
            ) from None
        stored = np.array(image)
    if stored.ndim != 2 or stored.dtype.kind not in "ui" or not (0 < near < far < math.inf and unit > 0):
        raise DistillDepthError(f"{name}: must be one 16-bit channel with 0 < near < far, got near {near}, far {far}")
    return stored, near * unit, far * unit


def _decode_log(near: float, far: float) -> np.ndarray:
    """Depth of each of the 65536 codes: a look-up is cheaper than a power per pixel."""
    t = (np.arange(65536) - 1) / 65533
    return np.exp(math.log(near) + t * math.log(far / near)).astype(np.float32)


def _ray_to_z(shape: tuple[int, int], focal_px: float) -> np.ndarray:
    v, u = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape)
    return focal_px / np.sqrt(focal_px**2 + u[None, :] ** 2 + v[:, None] ** 2)
