"""Rectified pairs whose disparity is known, and networks of two views that read it off the left one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing

STEPS = 64
"""Disparity is the red of the left view in steps of so many to the width."""


class Reader(DepthModel):
    """Says the red of the left view as a share of the width that it sees, in pixels; the right one's red is taken off.

    Mirrored and exchanged it reads the other view, as a network does.
    """

    views = 2
    in_pixels = True

    def __init__(self, *, multiple: int = 4, sign: float = 1.0) -> None:
        info = ModelInfo("reader", "test", "disparity", "none", "test")
        super().__init__(info, Preprocessing(48, multiple, interpolation="bilinear", map_interpolation="bilinear"))
        self.sign = sign

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        self.check_views(images)
        self.check_sides(*images.shape[-2:], self.preprocessing.multiple)
        shares = images[:, 0] - images[:, 5]
        return DepthOutput(self.sign * shares * 255 / STEPS / STEPS * images.shape[-1])


class MetricReader(Reader):
    """The same, as metres of one camera: the reciprocal of the share."""

    in_pixels = False

    def __init__(self) -> None:
        super().__init__()
        self.info = ModelInfo("metric-reader", "test", "metric_depth", "none", "test")

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        found = super().forward(images).values / images.shape[-1]
        return DepthOutput(1 / found.clamp(min=1e-3))


def a_pair(seed: int, size: tuple[int, int] = (40, 64)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right view, uint8 `(H, W, 3)`, and the disparity that `Reader` says of them, `(H, W)` in pixels.

    Smooth in the red, so that other sizes say nearly the same.
    """
    rng = np.random.default_rng([seed, 77])
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    slope = rng.uniform(0.2, 0.6, 2)
    red = np.rint(60 + 70 * slope[0] * rows / height + 70 * slope[1] * columns / width)
    left = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    right = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    left[..., 0], right[..., 2] = red, 7
    return left, right, (red - 7) / STEPS / STEPS * width


def write_pairs(
    folder: Path, count: int, *, focal_px: float | None = 90.0, baseline_m: float | None = 0.25, **line: object
) -> Path:
    """`left/`, `right/`, `depth/` and a manifest of pairs, each with another camera."""
    lines = []
    for seed in range(count):
        size = (40, 64) if seed % 2 else (36, 52)
        left, right, disparity = a_pair(seed, size)
        camera = {"focal_px": focal_px and focal_px + seed, "baseline_m": baseline_m}
        for kind, values in (("left", left), ("right", right)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / kind / f"{seed}.png")
        (folder / "depth").mkdir(exist_ok=True)
        truth = (focal_px or 90.0) + seed, baseline_m or 0.25
        np.save(folder / "depth" / f"{seed}.npy", (truth[0] * truth[1] / disparity).astype(np.float32))
        files = {"image": f"left/{seed}.png", "right": f"right/{seed}.png", "depth": f"depth/{seed}.npy"}
        known = {key: value for key, value in camera.items() if value is not None}
        lines.append(json.dumps({"id": f"p{seed}", **files, **known, **line}))
    manifest = folder / "pairs.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def change_line(manifest: Path, number: int, **changes: object) -> None:
    """Replace keys of a line; None leaves one out."""
    lines = manifest.read_text().splitlines()
    fields = {**json.loads(lines[number]), **changes}
    lines[number] = json.dumps({key: value for key, value in fields.items() if value is not None})
    manifest.write_text("\n".join(lines) + "\n")


def truth_in_metres(seed: int, size: tuple[int, int], focal_px: float, baseline_m: float) -> Tensor:
    return torch.from_numpy(focal_px * baseline_m / a_pair(seed, size)[2])
