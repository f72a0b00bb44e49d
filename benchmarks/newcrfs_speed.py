"""What NeWCRFs costs here, and beside it what the official network costs with the same weights.

    python benchmarks/newcrfs_speed.py --official NeWCRFs/newcrfs --json benchmarks/results/newcrfs-speed.json

`FOLDER` of `--official` is the one from which `networks.NewCRFDepth` is imported, with what that asks for (mmcv, timm,
torchvision) installed or lying beside it; nothing of it is contained here. The weights are random ones of the official
network, and both predict for the same random image. `--case` names a variant and what is done with it: `inference` is a
call of `forward` in evaluation mode without gradients, `training` one with the gradients of all parameters.

Times are of the processor and of one thread (`--threads`), the networks taking turns; `ratio` is the median over the
turns of ours over theirs. Memory is what a call adds at its peak to weights and image, in a process of its own per
network. `difference` is the largest between the maps in evaluation mode, relative to the range of the official one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilldepth.bench.memory import peak_since, reset_peak
from distilldepth.bench.timing import quantile
from distilldepth.machine import command_line, keep_freed_memory, load_average, machine
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.newcrfs import VARIANTS, NeWCRFsDepth, build, convert_official, infer_architecture

CASES = ("large:inference", "tiny:inference", "tiny:training")
STEPS = ("inference", "training")
METRES = 80
SMALLEST = (64, 64)
"""Pixels that bring libraries and threads into memory before it is measured."""

Predict = Callable[[Tensor], Tensor]


def our_network(variant: str) -> NeWCRFsDepth:
    """A network of this project with random weights."""
    torch.manual_seed(0)
    return build({"variant": variant}, ModelInfo(f"newcrfs-{variant}", "newcrfs", "metric_depth", "", "random"))


def official_network(variant: str, folder: Path) -> Any:
    """The network that the folder's code builds, with random weights."""
    sys.path.insert(0, str(folder))
    try:
        module: Any = __import__("networks.NewCRFDepth", fromlist=["NewCRFDepth"])
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(0)
    return module.NewCRFDepth(version=f"{variant}07", max_depth=METRES)


def with_weights_of(official: nn.Module) -> NeWCRFsDepth:
    """A network of this project with the weights of the official one."""
    state, unknown = convert_official({name: tensor.clone() for name, tensor in official.state_dict().items()})
    if unknown:
        raise SystemExit(f"newcrfs_speed: the official network has the unknown tensors {', '.join(unknown[:3])}")
    model = build(infer_architecture(state, METRES), ModelInfo("newcrfs", "newcrfs", "metric_depth", "", "random"))
    model.load_state_dict(state)
    return model


def networks(variant: str, folder: Path | None, names: list[str]) -> Iterator[tuple[str, nn.Module, Predict]]:
    """Name, network, and what makes a map of images, of each that is asked for, `ours` and `official`."""
    official = official_network(variant, folder) if folder else None
    if "ours" in names:
        ours = our_network(variant) if official is None else with_weights_of(official)
        yield "ours", ours, lambda images: ours(images).values
    if official is not None and "official" in names:
        scale = our_network("micro")  # For the mean and deviation of its images alone.
        yield "official", official, lambda images: official(scale.normalise(images))[:, 0]


def make_call(step: str, model: nn.Module, predict: Predict, images: Tensor) -> Callable[[], None]:
    """Return what runs one step: `inference`, or `training`, which leaves no gradients behind."""
    model.train(step == "training")

    def infer() -> None:
        with torch.inference_mode():
            predict(images)

    def learn() -> None:
        predict(images).mean().backward()
        for parameter in model.parameters():
            parameter.grad = None

    return infer if step == "inference" else learn


def random_images(batch: int, size: tuple[int, int]) -> Tensor:
    """RGB in [0, 1], the same at every call."""
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def measure_memory(case: str, name: str, folder: Path | None, images: Tensor) -> int:
    """Bytes that a call adds at its peak."""
    variant, _, step = case.partition(":")
    ((_, model, predict),) = networks(variant, folder, [name])
    make_call(step, model, predict, random_images(2, SMALLEST))()
    call = make_call(step, model, predict, images)
    before = reset_peak()
    call()
    return peak_since(before)


def memory_in_another_process(case: str, name: str, options: argparse.Namespace) -> int:
    """Run `measure_memory` where nothing else uses memory."""
    # Without this glibc keeps large blocks for reuse, and what was freed would still count as used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory-of", name, "--case", case, "--batch", str(options.batch)]
    command += ["--size", options.size, "--threads", str(options.threads)]
    if options.official:
        command += ["--official", str(options.official)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.splitlines()[-1])


def largest_difference(predictions: list[Predict], images: Tensor) -> float | None:
    """Between two networks' maps, relative to the range of the second; None for a single network."""
    if len(predictions) < 2:
        return None
    with torch.inference_mode():
        ours, theirs = (predict(images).double() for predict in predictions)
    return float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))


def time_in_turns(calls: dict[str, Callable[[], None]], pairs: int) -> dict[str, list[float]]:
    """Seconds of the processor of each call; a first one does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(pairs + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if number:
                taken[name].append(time.process_time() - began)
        print(f"turn {number}/{pairs}", file=sys.stderr, flush=True)
    return taken


def measure(case: str, options: argparse.Namespace, images: Tensor) -> list[dict[str, Any]]:
    """Return the rows of a case."""
    variant, _, step = case.partition(":")
    made = list(networks(variant, options.official, ["ours", "official"]))
    for _, model, _ in made:
        model.eval()
    difference = largest_difference([predict for *_, predict in made], images)
    memory = {name: memory_in_another_process(case, name, options) for name, *_ in made}
    calls = {name: make_call(step, model, predict, images) for name, model, predict in made}
    taken = time_in_turns(calls, options.pairs)
    rows = [
        {
            "case": case,
            "network": name,
            "cpu_median_s": quantile(seconds, 0.5),
            "peak_bytes": memory[name],
            "calls": len(seconds),
        }
        for name, seconds in taken.items()
    ]
    if len(rows) > 1:
        turns = zip(taken["ours"], taken["official"], strict=True)
        rows[0]["ratio"] = quantile([ours / theirs for ours, theirs in turns], 0.5)
        rows[0]["memory_ratio"] = memory["ours"] / memory["official"]
        rows[0]["difference"] = difference
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [f"{variant}:{step}" for variant in VARIANTS for step in STEPS]
    parser.add_argument("--case", action="append", choices=choices, metavar="VARIANT:STEP")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="that holds networks/NewCRFDepth.py")
    parser.add_argument("--pairs", type=int, default=5, help="counted calls of each network")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", default="352x1120", metavar="HxW")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", choices=("ours", "official"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.official and not (options.official / "networks" / "NewCRFDepth.py").is_file():
        parser.error(f"--official {options.official} must hold networks/NewCRFDepth.py")
    return options


def main() -> None:
    """Measure, print a table, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    height, width = map(int, options.size.split("x"))
    images = random_images(options.batch, (height, width))
    cases = options.case or list(CASES)
    if options.memory_of:
        print(measure_memory(cases[0], options.memory_of, options.official, images))
        return
    keep_freed_memory()
    results = [row for case in cases for row in measure(case, options, images)]
    print("| case | network | processor s | ratio | MB at peak | ratio |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for row in results:
        ratios = [f"{row[key]:.3f}" if key in row else "" for key in ("ratio", "memory_ratio")]
        numbers = f"{row['cpu_median_s']:.2f} | {ratios[0]} | {row['peak_bytes'] / 1e6:.0f} | {ratios[1]}"
        print(f"| {row['case']} | {row['network']} | {numbers} |")
    if options.json:
        metadata = {
            **machine("cpu"),
            "command": command_line(),
            "load_average": load_average(),
            "batch_size": options.batch,
            "size": [height, width],
            "precision": "float32",
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"metadata": metadata, "results": results}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
