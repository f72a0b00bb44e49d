"""What attention before the comparison of features costs in ADU-Depth's distillation: memory and time of its forms.

    python benchmarks/adapters.py --json benchmarks/results/adapters.json

The terms of features and of metres of the preset `adu-depth` with their gradients, at the widths of newcrfs-large: four
levels of its encoder and four of its decoder, 4 images of 352 x 1120, float32, random numbers. `none` compares the
features as they are. Memory is what a call adds at its peak to the features that were there when it began, in a process
of its own per form; `extra` is that less what `none` takes. Times are of the processor and of one thread (`--threads`),
the forms taking turns.

`full` has every position look at every other one: 24640 of them at 1/4, in a fused kernel where there is one, which
lays no table of pairs out. What it refuses where there is none is shown by the test of the adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distilldepth.bench.memory import peak_since, reset_peak
from distilldepth.bench.timing import quantile
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.terms.table import TERMS
from distilldepth.images.crops import Regions
from distilldepth.machine import command_line, keep_freed_memory, load_average, machine
from distilldepth.models.base import DepthOutput
from distilldepth.teachers.teacher import PseudoLabel
from distilldepth.words import ADAPTERS, DECODER_LEVELS, FEATURE_LEVELS, LOG_VARIANCE

WIDTHS = dict(zip((*FEATURE_LEVELS, *DECODER_LEVELS), (192, 384, 768, 1536, 128, 256, 512, 1024), strict=True))
"""Of newcrfs-large."""
WEIGHTS = {"feature_uncertainty": 0.6, "response_uncertainty": 0.9, "focal_depth": 0.8}
"""Of the preset, without the term of the truth."""


def make_call(form: str, batch: int, size: tuple[int, int], share: int) -> Callable[[], None]:
    """Return what computes the terms and their gradients, from features that are there already.

    Args:
        form: one of `ADAPTERS`.
        batch: images.
        size: height and width, pixels, multiples of 32.
        share: widths are divided by it.
    """
    torch.manual_seed(0)
    widths = {level: width // share for level, width in WIDTHS.items()}
    terms = distill_any_depth_objective(
        weights={**dict.fromkeys(TERMS, 0.0), **WEIGHTS},
        student_channels=widths,
        teacher_channels={"teacher": widths},
        feature_levels="all",
        adapter=form,
    )

    def features(*, learned: bool) -> dict[str, torch.Tensor]:
        found = {}
        for level, width in widths.items():
            side = int(level.rpartition("/")[2])
            maps = torch.rand(batch, width, size[0] // side, size[1] // side)
            found[level] = maps.contiguous(memory_format=torch.channels_last).requires_grad_(learned)
        return found

    metres = 1 + 79 * torch.rand(batch, *size)
    student = DepthOutput(
        (metres + torch.rand_like(metres)).requires_grad_(),
        features(learned=True),
        {LOG_VARIANCE: torch.zeros(batch, *size, requires_grad=True)},
    )
    valid = torch.ones_like(metres, dtype=torch.bool)
    label = PseudoLabel(1 / metres, valid, features(learned=False), teacher="teacher", inverse_depth=True)
    label.quantity = "metric_depth"
    empty = torch.empty(batch, 0, 4)
    regions = Regions(torch.empty(batch, 3, 1, 1), torch.empty(batch, 0, 3, 1, 1), empty, [""] * batch)
    learned = [student.values, *student.features.values(), *student.extras.values(), *terms.parameters()]

    def call() -> None:
        terms(student, label, regions)[0].backward()
        for tensor in learned:
            tensor.grad = None

    return call


def measure_memory(form: str, batch: int, size: tuple[int, int], share: int) -> int:
    """Bytes that a call adds at its peak."""
    make_call(form, 1, (64, 64), share)()  # Libraries and threads come with the first call, and stay.
    call = make_call(form, batch, size, share)
    before = reset_peak()
    call()
    return peak_since(before)


def memory_in_another_process(form: str, options: argparse.Namespace) -> int:
    """Run `measure_memory` where nothing else uses memory."""
    # Without this glibc keeps large blocks for reuse, and what was freed would still count as used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory-of", form, "--batch", str(options.batch), "--size", options.size]
    command += ["--threads", str(options.threads), "--share", str(options.share)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="counted calls of each form")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="352x1120", metavar="HxW")
    parser.add_argument("--share", type=int, default=1, help="divide the widths by it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", choices=ADAPTERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    height, width = map(int, options.size.split("x"))
    given = options.batch, (height, width), options.share
    if options.memory_of:
        print(measure_memory(options.memory_of, *given))
        return
    memory = {form: memory_in_another_process(form, options) for form in ADAPTERS}
    keep_freed_memory()
    calls = {form: make_call(form, *given) for form in ADAPTERS}
    taken: dict[str, list[float]] = {form: [] for form in ADAPTERS}
    for number in range(options.rounds + 1):
        for form, call in calls.items():
            began = time.process_time()
            if number or form != "full":  # Which takes minutes, and gains nothing from a first call.
                call()
            if number:
                taken[form].append(time.process_time() - began)
        print(f"round {number}/{options.rounds}", file=sys.stderr, flush=True)
    results = [
        {
            "form": form,
            "peak_bytes": memory[form],
            "extra_bytes": memory[form] - memory["none"],
            "cpu_median_s": quantile(taken[form], 0.5),
            "calls": len(taken[form]),
        }
        for form in ADAPTERS
    ]
    print("| form | MB at peak | extra MB | processor s |\n| --- | ---: | ---: | ---: |")
    for row in results:
        sizes = f"{row['peak_bytes'] / 1e6:.0f} | {row['extra_bytes'] / 1e6:.0f}"
        print(f"| {row['form']} | {sizes} | {row['cpu_median_s']:.2f} |")
    if options.json:
        metadata = {
            **machine("cpu"),
            "command": command_line(),
            "load_average": load_average(),
            "batch_size": options.batch,
            "size": [height, width],
            "widths": {level: width // options.share for level, width in WIDTHS.items()},
            "threads": options.threads,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"metadata": metadata, "results": results}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
