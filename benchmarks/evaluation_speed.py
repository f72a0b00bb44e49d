"""How long scoring takes: batched, against the per-image numpy loop that the field's evaluation codes are.

    python benchmarks/evaluation_speed.py --json benchmarks/results/evaluation-speed.json

Both align by least squares in disparity and compute every metric of `distilldepth.metrics.NAMES` under the rules of
`affine-disparity`, from the same float32 predictions and ground truth of 480 x 640, a quarter of the pixels missing.
`batched` runs in the native CPU library where that is built, `batched, torch` without it. All take turns batch by
batch; times are medians over batches, by the clock and by what the processor spent. Model and disk are not in it. There
are two loops: `careful` selects pixels once and computes logarithms, ratios and differences once; `formula by formula`
computes each metric from the two maps by its own formula, as the published evaluation codes do. `lstsq` fits in both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth import native
from distilldepth.bench.timing import quantile
from distilldepth.evaluate.protocol import choose_protocol
from distilldepth.evaluate.score import score_batch
from distilldepth.machine import command_line, load_average, machine
from distilldepth.metrics import HIGHER_IS_BETTER, NAMES


def make_batch(count: int, height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted disparity, true depth and valid pixels: smooth surfaces with noise, holes in patches."""
    g = torch.Generator().manual_seed(seed)

    def smooth(low: float, high: float, cells: int) -> torch.Tensor:
        coarse = torch.rand((count, 1, cells, cells), generator=g) * (high - low) + low
        return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]

    depth = smooth(0.7, 9.5, 12)
    prediction = 3 / depth + 0.2 + 0.03 * torch.randn(depth.shape, generator=g)
    valid = smooth(0, 1, 24) > 0.36
    return prediction, depth * valid, valid


def score_by_loop(prediction: np.ndarray, depth: np.ndarray, valid: np.ndarray, dtype: type) -> list[dict[str, float]]:
    """The metrics of each image, one after another, in numpy."""
    rows = []
    for image in range(len(prediction)):
        keep = valid[image] & (depth[image] > 0)
        p, g = prediction[image][keep].astype(dtype), depth[image][keep].astype(dtype)
        inverse = 1 / g
        scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), inverse, rcond=None)[0]
        aligned = np.maximum(scale * p + shift, 0.001 * inverse.max())
        d = 1 / aligned
        difference = d - g
        absolute, square = np.abs(difference), difference**2
        log = np.log(d) - np.log(g)
        log_square, variance = np.mean(log**2), np.var(log)
        inverse_difference = aligned - inverse
        worst = np.maximum(d / g, g / d)
        rmse_log, irmse = math.sqrt(log_square), np.sqrt(np.mean(inverse_difference**2))
        imae = np.mean(np.abs(inverse_difference))
        rows.append(
            {
                "abs_rel": np.mean(absolute / g),
                "sq_rel": np.mean(square / g),
                "rmse": np.sqrt(np.mean(square)),
                "rmse_log": rmse_log,
                "log10": np.mean(np.abs(log)) / math.log(10),
                "silog": 100 * np.sqrt(variance),
                "irmse": irmse,
                "imae": imae,
                "mae": np.mean(absolute),
                "delta1": np.mean(worst < 1.25),
                "delta2": np.mean(worst < 1.25**2),
                "delta3": np.mean(worst < 1.25**3),
                "sq_rel_squared": np.mean(square / g**2),
                "rmse_log10": rmse_log / math.log(10),
                "silog_dav2": np.sqrt(log_square - 0.5 * np.mean(log) ** 2),
                "silog_log10": np.sqrt(variance) / math.log(10),
                "silog_unbiased": 100 * np.sqrt(variance * len(g) / (len(g) - 1)),
                "silog_fraction": np.sqrt(variance),
                "irmse_km": 1000 * irmse,
                "imae_km": 1000 * imae,
            }
        )
    return rows


def score_by_formulas(prediction: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> list[dict[str, float]]:
    """As `score_by_loop`, every metric from the maps by its own formula."""
    rows = []
    for image in range(len(prediction)):
        keep = valid[image] & (depth[image] > 0)
        p, g = prediction[image][keep], depth[image][keep]
        scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), 1 / g, rcond=None)[0]
        d = 1 / np.maximum(scale * p + shift, 0.001 * (1 / g).max())
        worst = np.maximum(d / g, g / d)
        error, error10 = np.log(d) - np.log(g), np.log10(d) - np.log10(g)
        rows.append(
            {
                "abs_rel": np.mean(np.abs(d - g) / g),
                "sq_rel": np.mean((d - g) ** 2 / g),
                "rmse": np.sqrt(np.mean((d - g) ** 2)),
                "rmse_log": np.sqrt(np.mean((np.log(d) - np.log(g)) ** 2)),
                "log10": np.mean(np.abs(np.log10(d) - np.log10(g))),
                "silog": 100 * np.sqrt(np.mean(error**2) - np.mean(error) ** 2),
                "irmse": np.sqrt(np.mean((1 / d - 1 / g) ** 2)),
                "imae": np.mean(np.abs(1 / d - 1 / g)),
                "mae": np.mean(np.abs(d - g)),
                "delta1": np.mean(worst < 1.25),
                "delta2": np.mean(worst < 1.25**2),
                "delta3": np.mean(worst < 1.25**3),
                "sq_rel_squared": np.mean((d - g) ** 2 / g**2),
                "rmse_log10": np.sqrt(np.mean(error10**2)),
                "silog_dav2": np.sqrt(np.mean(error**2) - 0.5 * np.mean(error) ** 2),
                "silog_log10": np.sqrt(np.mean(error10**2) - np.mean(error10) ** 2),
                "silog_unbiased": 100 * np.std(error, ddof=1),
                "silog_fraction": np.sqrt(np.mean(error**2) - np.mean(error) ** 2),
                "irmse_km": np.sqrt(np.mean((1000 / d - 1000 / g) ** 2)),
                "imae_km": np.mean(np.abs(1000 / d - 1000 / g)),
            }
        )
    return rows


Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]
"""Takes predictions, depth and valid pixels; gives metrics by name, or a row of them per image."""


def make_calls(usual: str) -> dict[str, Call]:
    """The ways to score, by name; `usual` is the backend of the first."""
    rules = choose_protocol("disparity", name="affine-disparity").rules()

    def score(p: torch.Tensor, g: torch.Tensor, v: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
        os.environ["DISTILLDEPTH_BACKEND"] = backend
        return score_batch(p, "disparity", g, v, True, rules).metrics

    return {
        "batched": lambda p, g, v: score(p, g, v, usual),
        "batched, torch": lambda p, g, v: score(p, g, v, "reference"),
        "numpy, formula by formula": lambda p, g, v: score_by_formulas(p.numpy(), g.numpy(), v.numpy()),
        "numpy, careful, float32": lambda p, g, v: score_by_loop(p.numpy(), g.numpy(), v.numpy(), np.float32),
        "numpy, careful, float64": lambda p, g, v: score_by_loop(p.numpy(), g.numpy(), v.numpy(), np.float64),
    }


@dataclass
class Times:
    """Seconds per image of each way, batch by batch."""

    clock: dict[str, list[float]]
    processor: dict[str, list[float]]
    images: int = 0
    worst: float = 0.0
    """Largest relative difference between the batched metrics and those in float64."""


def measure(calls: dict[str, Call], arguments: argparse.Namespace) -> Times:
    """Score the same batches in every way, in turn."""
    times = Times({name: [] for name in calls}, {name: [] for name in calls})
    names = list(calls)
    # The first batch warms up and counts for nothing.
    for turn in range(-1, math.ceil(arguments.images / arguments.batch_size)):
        count = min(arguments.batch_size, arguments.images - max(0, turn) * arguments.batch_size)
        batch = make_batch(count, arguments.height, arguments.width, turn + 1)
        found = {}
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            began, busy = time.perf_counter(), time.process_time()
            found[name] = calls[name](*batch)
            if turn >= 0:
                times.clock[name].append((time.perf_counter() - began) / count)
                times.processor[name].append((time.process_time() - busy) / count)
        times.images += count if turn >= 0 else 0
        for image, row in enumerate(found["numpy, careful, float64"]):
            for name in NAMES:
                if name not in HIGHER_IS_BETTER:  # Shares may differ by a pixel whose ratio rounds to the limit.
                    difference = abs(float(found["batched"][name][image]) - row[name]) / abs(row[name])
                    times.worst = max(times.worst, difference)
    return times


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=654)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--threads", type=int, default=None, help="of both; default what torch takes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    library = native.load("cpu")
    usual = "native" if library.loaded else "reference"
    times = measure(make_calls(usual), arguments)
    base, base_processor = (quantile(kind["batched"], 0.5) for kind in (times.clock, times.processor))
    rows = [
        {
            "way": name,
            "images": times.images,
            "height": arguments.height,
            "width": arguments.width,
            "batch_size": arguments.batch_size,
            "median_ms_per_image": 1e3 * quantile(clock, 0.5),
            "p20_ms_per_image": 1e3 * quantile(clock, 0.2),
            "p80_ms_per_image": 1e3 * quantile(clock, 0.8),
            "median_processor_ms_per_image": 1e3 * quantile(times.processor[name], 0.5),
            "ratio": quantile(clock, 0.5) / base,
            "processor_ratio": quantile(times.processor[name], 0.5) / base_processor,
        }
        for name, clock in times.clock.items()
    ]
    metadata = {
        **machine("cpu"),
        "numpy": np.__version__,
        "command": command_line(),
        "load_average": load_average(),
        "largest_relative_difference": times.worst,
        "backend": usual,
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"metadata": metadata, "results": rows}, indent=1) + "\n", encoding="utf-8"
        )
    for row in rows:
        print(
            f"{row['way']:26s} {row['median_ms_per_image']:7.2f} ms per image "
            f"({row['p20_ms_per_image']:.2f} to {row['p80_ms_per_image']:.2f}), {row['ratio']:.1f}x; processor "
            f"{row['median_processor_ms_per_image']:.2f} ms, {row['processor_ratio']:.1f}x"
        )
    print(f"batched: {usual}" if library.loaded else f"batched: {usual} ({library.reason})")
    print(f"largest relative difference to numpy in float64: {times.worst:.1e}")


if __name__ == "__main__":
    main()
