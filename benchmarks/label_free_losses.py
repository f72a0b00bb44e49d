"""What the pairwise and the geometric loss cost beside a training step of the preset `label-free`: time and memory.

    python benchmarks/label_free_losses.py --json benchmarks/results/label-free-losses.json

The step is that of the preset: a LeReS-ResNet50 labels, a TopFormer learns, 8 images of 448 x 448. Weights and images
are random, which changes no time. A loss is its term with its gradient: `geometric` to the student's map, as the step
itself has it once more; `pairwise` to the student's features at one level. Step and losses take turns. Memory is what a
loss adds at its peak to what was there when it began, in a process of its own per loss. On a machine that has other
work the processor's time tells more than the clock's, and that of one thread (`--set threads=1`) more than that of
several, which wait for each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilldepth.bench.memory import peak_since, reset_peak
from distilldepth.bench.timing import quantile
from distilldepth.distill.config import DistillConfig, load_config
from distilldepth.distill.labels import label_batch
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.optimiser import make_optimiser
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.terms.table import OPTIONS, TERMS
from distilldepth.images.crops import Regions
from distilldepth.machine import command_line, keep_freed_memory, load_average, machine, resolve_precision
from distilldepth.models import create_student
from distilldepth.models.base import DepthOutput, ModelInfo
from distilldepth.models.families import leres
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel, Teacher

WIDTHS = {"1/4": (32, 256), "1/8": (64, 512), "1/16": (128, 1024), "1/32": (160, 2048)}
"""Of the features of topformer-base and of LeReS-ResNet50."""
LOSSES = ("geometric", *(f"pairwise at {level}" for level in WIDTHS))
CPU = torch.device("cpu")


class Step:
    """A training step of the preset, with what its losses see in it."""

    def __init__(self, settings: list[str]) -> None:
        self.config = load_config(preset="label-free", settings=settings)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        torch.manual_seed(self.config.seed)
        self.precisions = {
            "student": resolve_precision(self.config.precision, CPU),
            "teacher": resolve_precision(self.config.teacher_precision, CPU),
        }
        network = leres.build({"variant": "r50"}, ModelInfo("leres", "leres", "depth", "Apache-2.0", "random"))
        self.teacher = Teacher(parse_teachers("leres")[0], network, getattr(torch, self.precisions["teacher"]))
        student = create_student(self.config.student, seed=0, offline=True).to(memory_format=torch.channels_last)
        self.module = DistillationStep(student.train(), objective(self.config), Stopwatch(CPU))
        self.optimiser = make_optimiser(self.config, self.module, CPU, torch.float32)
        self.regions = random_regions(self.config)

    def __call__(self) -> None:
        batch = dataclasses.replace(self.regions)
        regions, label = label_batch(batch, self.teacher, self.config.augment, CPU, features=())
        reduced = self.precisions["student"] != "float32"
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            outputs = self.module(regions, label)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()


def objective(config: DistillConfig, **weights: float) -> torch.nn.Module:
    """That of the preset, or of some weights alone."""
    of_preset = {name: getattr(config.loss, name) for name in TERMS}
    widths = {"student_channels": {level: pair[0] for level, pair in WIDTHS.items()}}
    return distill_any_depth_objective(
        weights={**dict.fromkeys(TERMS, 0.0), **weights} if weights else of_preset,
        **{key: getattr(config.loss, key) for key in OPTIONS if key != "feature_levels"},
        feature_levels="all",
        teacher_channels={"leres": {level: pair[1] for level, pair in WIDTHS.items()}},
        **widths,  # type: ignore[arg-type]
    )


def random_regions(config: DistillConfig) -> Regions:
    """A batch of noise, as the loader gives it."""
    height, width = config.height_width
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (config.batch_size, 3, height, width), generator=generator, dtype=torch.uint8)
    return Regions(
        image=images,
        patches=torch.empty(config.batch_size, 0, 3, height, width, dtype=torch.uint8),
        boxes=torch.empty(config.batch_size, 0, 4),
        name=[str(number) for number in range(config.batch_size)],
    )


def loss_call(name: str, config: DistillConfig) -> Callable[[], None]:
    """Return what computes a loss and its gradient, from inputs that are there already."""
    height, width = config.height_width
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.rand(config.batch_size, *shape, generator=generator)

    kind, _, level = name.partition(" at ")
    label = PseudoLabel(
        -noise(height, width), torch.ones(config.batch_size, height, width, dtype=torch.bool), teacher="leres"
    )
    label.quantity = "depth"
    student, regions = DepthOutput(label.disparity + 0.1 * noise(height, width)), random_regions(config)
    term = objective(config, **{"geometric" if kind == "geometric" else "feature_pairwise": 1.0}).terms[0]
    wanted = student.values
    if kind == "pairwise":
        for said, channels in zip((student, label), WIDTHS[level], strict=True):
            sides = height // int(level[2:]), width // int(level[2:])
            said.features[level] = noise(channels, *sides).contiguous(memory_format=torch.channels_last)
        wanted = student.features[level]
    wanted.requires_grad_()

    def call() -> None:
        term(student, label, regions).backward()
        wanted.grad = None

    return call


def measure_memory(name: str, settings: list[str]) -> int:
    """Bytes that a loss adds at its peak."""
    small = load_config(preset="label-free", settings=[*settings, "size=64", "batch_size=1"])
    if small.threads:
        torch.set_num_threads(small.threads)
    loss_call(name, small)()  # Libraries and threads come with the first call, and stay.
    call = loss_call(name, load_config(preset="label-free", settings=settings))
    before = reset_peak()
    call()
    return peak_since(before)


def memory_in_another_process(name: str, settings: list[str]) -> int | None:
    """Run `measure_memory` where nothing else uses memory; None where the system cannot tell."""
    # Without this glibc keeps large blocks for reuse, and what was freed would still count as used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory-of", name]
    command += [word for pair in settings for word in ("--set", pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"memory of {name} not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return int(done.stdout.splitlines()[-1])


def measure_time(settings: list[str], rounds: int) -> tuple[Step, dict[str, list[tuple[float, float]]]]:
    """Return the step and, by what was measured, seconds of the clock and of the processor for each counted call."""
    keep_freed_memory()  # As `distill` does.
    step = Step(settings)
    calls: dict[str, Callable[[], None]] = {"step": step} | {name: loss_call(name, step.config) for name in LOSSES}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            for _ in range(1 if name == "step" else 3):  # Several, since they take so much less.
                began, worked = time.perf_counter(), time.process_time()
                call()
                if number:
                    found[name].append((time.perf_counter() - began, time.process_time() - worked))
        print(f"round {number}/{rounds}", file=sys.stderr, flush=True)
    return step, found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted steps; three times as many calls of each loss")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as `distill`")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", metavar="LOSS", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, arguments.settings))
        return
    step, found = measure_time(arguments.settings, arguments.rounds)
    medians = {name: [quantile([pair[k] for pair in pairs], 0.5) for k in (0, 1)] for name, pairs in found.items()}
    results = []
    for name, pairs in found.items():
        peak = None if name == "step" else memory_in_another_process(name, arguments.settings)
        row = {
            "what": name,
            "median_ms": medians[name][0] * 1e3,
            "cpu_median_ms": medians[name][1] * 1e3,
            "calls": len(pairs),
            "share_of_step": medians[name][0] / medians["step"][0],
            "cpu_share_of_step": medians[name][1] / medians["step"][1],
            "peak_bytes": peak,
        }
        results.append(row)
    config = step.config
    metadata: dict[str, Any] = {
        **machine("cpu"),
        "command": command_line(),
        "load_average": load_average(),
        "batch_size": config.batch_size,
        "size": list(config.height_width),
        "student": config.student,
        "teachers": config.teachers,
        "precision": step.precisions,
        "geometric_points": config.loss.geometric_points,
    }
    print("| | median ms | share of the step | the same of processor time | extra MB at peak |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in results:
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        shares = f"{100 * row['share_of_step']:.2f} % | {100 * row['cpu_share_of_step']:.2f} %"
        print(f"| {row['what']} | {row['median_ms']:.1f} | {shares} | {memory} |")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"metadata": metadata, "results": results}, indent=2) + "\n"
        arguments.json.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
