"""What one image takes from a small model: normalisation folded or not, at several sizes, beside another model.

    python benchmarks/inference_speed.py --other FOLDER --json benchmarks/results/inference-speed.json

FOLDER is a model to compare with, for example an earlier distilldepth-mini (that of commit 3263ac2). Every way runs
once per round, in an order that turns from round to round; ratios are medians over rounds of the quotient within a
round, so that other work on the machine meets both. On a busy machine the processor's time says more than the clock:
set OMP_WAIT_POLICY=passive there, or threads that wait for each other are counted as work.

`network` is the network alone, one image at the size that it sees; `estimate` what `distilldepth predict` runs per
image, resizing there and back included, for one image and for batches of eight; `files` is `predict_files` on eight
JPEGs into 16-bit PNGs, folding included, every third round; `model.predict` the Python call, which does not fold and
computes in float32. `as before` leaves normalisations where they are and hands `model.predict` its image in planes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from distilldepth.bench.timing import quantile
from distilldepth.inference.batches import LoadedImage, estimate_batch
from distilldepth.machine import command_line, load_average, machine
from distilldepth.models import DepthModel, load_model
from distilldepth.models.digest import model_digest
from distilldepth.models.folded import fold_norms
from distilldepth.models.preprocess import target_size
from distilldepth.predict import predict_files

EIGHT = 8


@dataclasses.dataclass
class Way:
    """One model at one size, folded or not."""

    name: str
    model: DepthModel
    folded: bool

    def network(self, precision: str) -> DepthModel:
        """What runs inside an `Estimator`."""
        if not self.folded:
            return self.model
        return fold_norms(self.model, torch.bfloat16 if precision == "bfloat16" else None)


def make_ways(arguments: argparse.Namespace) -> list[Way]:
    """The other model first: all ratios are to it as it was before."""
    ways = []
    if arguments.other:
        ways = [Way("other, as before", load_model(arguments.other), False)]
        ways += [Way("other", load_model(arguments.other), True)]
    own = load_model(arguments.model)
    ways += [Way(f"{arguments.model} {own.preprocessing.size}, as before", load_model(arguments.model), False)]
    for size in arguments.sizes:
        model = load_model(arguments.model)
        # Between the multiples of 32 the network takes any size, and policies round to what it declares.
        multiple = model.preprocessing.multiple if size % 32 == 0 else 16
        model.preprocessing = dataclasses.replace(model.preprocessing, size=size, multiple=multiple)
        ways.append(Way(f"{arguments.model} {size}", model, True))
    for way in ways:
        if not way.folded:
            way.model.memory_format = torch.contiguous_format  # type: ignore[misc]  # of this one alone
    return ways


def make_calls(
    way: Way, images: np.ndarray, folder: Path, precision: str
) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed of a way, by kind, and how many images each call is for."""
    network, device = way.network(precision), torch.device("cpu")
    seen = target_size(*images.shape[1:3], way.model.preprocessing)
    pixels = torch.rand(1, 3, *seen).contiguous(memory_format=torch.channels_last)
    loaded = [LoadedImage(place, image, None, None) for place, image in enumerate(images)]

    def alone() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return network(pixels)

    def files() -> object:
        unfolded = mock.patch("distilldepth.inference.estimator.fold_norms", lambda model, autocast: model)
        with unfolded if not way.folded else mock.patch.dict({}):
            return predict_files(
                str(folder / "in"), folder / "out", model=way.model, existing="overwrite", precision=precision
            )

    return {
        "network": (alone, 1),
        "estimate": (lambda: estimate_batch(network, loaded[:1], device, precision=precision), 1),
        "estimate, batches of 8": (lambda: estimate_batch(network, loaded, device, precision=precision), EIGHT),
        "files": (files, EIGHT),
        "model.predict": (lambda: way.model.predict(images[0]), 1),
    }


def measure(
    ways: list[Way], calls: list[dict], seconds: float, rounds: int
) -> dict[tuple[str, str], list[list[float]]]:
    """Milliseconds per image by kind and way: by the clock and of the processor, round by round."""
    times: dict[tuple[str, str], list[list[float]]] = {(kind, way.name): [] for kind in calls[0] for way in ways}
    began = time.perf_counter()
    # The first round warms up and counts for nothing.
    for turn in range(-1, rounds):
        if turn > 2 and time.perf_counter() - began > seconds:
            break
        for kind in calls[0]:
            if kind == "files" and turn % 3:
                continue
            for place in range(len(ways)):
                at = (place + turn) % len(ways) if turn % 2 else (turn - place) % len(ways)
                call, count = calls[at][kind]
                clock, busy = time.perf_counter(), time.process_time()
                call()
                spent = [1e3 * (time.perf_counter() - clock) / count, 1e3 * (time.process_time() - busy) / count]
                if turn >= 0:
                    times[kind, ways[at].name].append(spent)
    return times


def summarise(ways: list[Way], times: dict[tuple[str, str], list[list[float]]], images: np.ndarray) -> list[dict]:
    """One row per kind and way."""
    rows = []
    for (kind, name), spent in times.items():
        way = next(way for way in ways if way.name == name)
        row = {
            "kind": kind,
            "way": name,
            "sees": list(target_size(*images.shape[1:3], way.model.preprocessing)),
            "rounds": len(spent),
        }
        for place, what in enumerate(("clock", "processor")):
            values = [one[place] for one in spent]
            quotients = [a[place] / b[place] for a, b in zip(spent, times[kind, ways[0].name], strict=True)]
            row[f"{what}_ms_per_image"] = round(quantile(values, 0.5), 3)
            row[f"{what}_p20"], row[f"{what}_p80"] = round(quantile(values, 0.2), 3), round(quantile(values, 0.8), 3)
            row[f"{what}_ratio"] = round(quantile(quotients, 0.5), 4)
            row[f"{what}_ratio_p20"] = round(quantile(quotients, 0.2), 4)
            row[f"{what}_ratio_p80"] = round(quantile(quotients, 0.8), 4)
        rows.append(row)
    return rows


def main() -> None:
    """Time all ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilldepth-mini")
    parser.add_argument("--other", help="a model to compare with; all ratios are to it, unfolded")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 112, 128])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=None, help="default what torch takes")
    parser.add_argument("--rounds", type=int, default=200, help="at most")
    parser.add_argument("--seconds", type=float, default=200, help="no round begins after these")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ways = make_ways(arguments)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (EIGHT, 12, 16, 3), dtype=np.uint8)
    size = (arguments.width, arguments.height)
    images = np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in coarse])
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "in").mkdir()
        for place, image in enumerate(images):
            Image.fromarray(image).save(Path(name) / "in" / f"{place}.jpg", quality=92)
        calls = [make_calls(way, images, Path(name), arguments.precision) for way in ways]
        times = measure(ways, calls, arguments.seconds, arguments.rounds)
    rows = summarise(ways, times, images)
    metadata = {
        **machine("cpu"),
        "command": command_line(),
        "load_average": load_average(),
        "image": [arguments.height, arguments.width],
        "precision": arguments.precision,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "models_sha256": {name: model_digest(load_model(name)) for name in (arguments.model, arguments.other) if name},
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"metadata": metadata, "results": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    for row in rows:
        height, width = row["sees"]
        print(
            f"{row['kind']:23s} {row['way']:32s} sees {height}x{width}: {row['processor_ms_per_image']:7.2f} ms of the "
            f"processor, {row['processor_ratio']:.3f} ({row['processor_ratio_p20']:.3f} to "
            f"{row['processor_ratio_p80']:.3f}); clock {row['clock_ms_per_image']:8.2f} ms, {row['clock_ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
