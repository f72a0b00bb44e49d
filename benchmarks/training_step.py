"""What the loss costs in a step of the main job: time and memory per phase, with the reference and with the kernels.

    python benchmarks/training_step.py --json benchmarks/results/training-step.json

The step is that of `distilldepth distill --preset demo`: light student, two teachers, hybrid normalisation on the
region and on windows, gradient matching. The backends take turns step by step on the same batches. `loss` is the
objective with its gradient to the student's map, `student` the student forward and backward. Memory is what a phase
adds at its peak to what was there when it began, in a process of its own per backend.

    python benchmarks/training_step.py --whole EARLIER . --json benchmarks/results/training-whole.json

runs the job itself, as `distilldepth distill` does, from checkouts of several versions in turn: steps per second
and the shares of the time as the run folder tells them, and the CPU time of all its processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distilldepth.bench.memory import peak_since, reset_peak
from distilldepth.bench.timing import quantile, synchronise
from distilldepth.device import resolve_device
from distilldepth.distill.config import load_config
from distilldepth.distill.crops import crop_config
from distilldepth.distill.labels import label_batch
from distilldepth.distill.objective import make_objective
from distilldepth.distill.optimiser import make_optimiser
from distilldepth.distill.processes import make_accelerator, settle_precisions
from distilldepth.distill.progress import PHASES
from distilldepth.distill.step import DistillationStep
from distilldepth.images.batches import CropDataset, StepBatches, loading, split_heldout
from distilldepth.images.crops import Regions
from distilldepth.images.sources import open_source
from distilldepth.machine import command_line, keep_freed_memory, load_average, machine
from distilldepth.models import create_student
from distilldepth.models.base import DepthOutput
from distilldepth.ops.backend import available_backends
from distilldepth.teachers.pool import load_teachers
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel
from distilldepth.words import OPS

WARM_STEPS = 2
MEMORY_STEPS = 3


class Watch:
    """Seconds, or bytes at the peak, of each phase of a step; takes the place of the trainer's stopwatch."""

    def __init__(self, device: torch.device, *, memory: bool = False) -> None:
        self._device, self._memory = device, memory
        self._step_began: int | None = None
        self.found: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str, *, host: bool = False) -> Iterator[None]:
        synchronise(self._device)
        if not self._memory:
            began = time.perf_counter()
            yield
            synchronise(self._device)
            self.found[phase] += time.perf_counter() - began
        else:
            cuda = self._device.type == "cuda"
            if cuda:
                torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device) if cuda else reset_peak()
            if self._step_began is None:
                self._step_began = before
            yield
            risen = torch.cuda.max_memory_allocated(self._device) - before if cuda else peak_since(before)
            self.found[phase] = max(self.found[phase], risen)
            self.found["step"] = max(self.found["step"], risen + before - self._step_began)

    def take(self) -> dict[str, float]:
        """Return what was found and start again."""
        found, self.found, self._step_began = dict(self.found), defaultdict(float), None
        return found


class WholeObjective(nn.Module):
    """Gives the gradient to the student's map together with the loss, so that both count as `loss`."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.needs, self.levels = objective.needs, objective.levels

    def forward(self, student: DepthOutput, label: PseudoLabel, regions: Regions) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = student.values.detach().requires_grad_()
        loss, terms = self.objective(dataclasses.replace(student, values=prediction), label, regions)
        loss.backward()
        # Linear in the prediction with that gradient: the student gets what it would have got, and no more is computed.
        return (student.values * prediction.grad).sum(), terms


class Step:
    """The trainer's step, taken apart enough to be measured."""

    def __init__(self, settings: list[str], steps: int, *, memory: bool = False) -> None:
        config = load_config(preset="demo", settings=settings)
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        precisions = settle_precisions(config, resolve_device(config.device), {})
        self.accelerator = make_accelerator(config, precisions["student"])
        self.device = self.accelerator.device
        self.watch = Watch(self.device, memory=memory)
        source = open_source(
            config.images, size=config.scene_height_width, seed=config.seed, max_side=config.crop.max_side or None
        )
        training, _ = split_heldout(source, config.heldout)
        self.teachers = load_teachers(
            parse_teachers(config.teachers),
            device=self.device,
            offline=True,
            has_depth=source.has_depth,
            seed=config.seed,
            precision=precisions["teachers"],
        )
        student = create_student(config.student, seed=config.seed, offline=True)
        student = student.to(memory_format=torch.channels_last).train()
        objective = make_objective(config, student, self.teachers.teachers, training)
        self.levels = objective.levels
        module = DistillationStep(student, WholeObjective(objective), self.watch, compiled=config.compile)
        optimiser = make_optimiser(config, module, self.device, getattr(torch, precisions["muon"]))
        self.module, self.optimiser = self.accelerator.prepare(module, optimiser)
        batches = StepBatches(0, steps, config.batch_size)
        dataset = CropDataset(training, crop_config(config), config.seed)
        self._loading = loading(dataset, batches, config.workers, pin=self.device.type == "cuda")
        self._loader = self._loading.__enter__()

    def next_batch(self) -> Regions:
        """Wait for data."""
        with self.watch("data", host=True):
            return next(self._loader)

    def run(self, batch: Regions, index: int) -> None:
        """One step on a batch."""
        with self.watch("teacher"):
            teacher = self.teachers.draw(index)
            regions, label = label_batch(batch, teacher, self.config.augment, self.device, features=self.levels)
        outputs = self.module(regions, label)
        with self.watch("student"):
            self.accelerator.backward(outputs.loss)
        with self.watch("optimiser"):
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.optimiser.clip_norm or float("inf"))
            self.optimiser.step()
            self.optimiser.zero_grad()


def measure_time(settings: list[str], steps: int) -> tuple[Step, dict[str, list[dict[str, float]]]]:
    """Return the step and, by backend, the seconds of each phase of each counted step."""
    total = WARM_STEPS + steps
    keep_freed_memory()  # As `distill` does; where memory is measured it would hide what is freed.
    step = Step(settings, total)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in backends(step.device)}
    for index in range(total):
        batch = step.next_batch()
        waited = step.watch.take()
        names = list(found)
        for place in range(len(names)):
            name = names[(index + place) % len(names)]
            use(name)
            step.run(batch, index)
            phases = {**waited, **step.watch.take()}
            if index >= WARM_STEPS:
                found[name].append(phases)
        print(f"step {index + 1}/{total}", file=sys.stderr, flush=True)
    return step, found


def measure_memory(settings: list[str], backend: str) -> dict[str, int]:
    """Bytes that each phase adds at its peak."""
    use(backend)
    step = Step(settings, MEMORY_STEPS, memory=True)
    for index in range(MEMORY_STEPS):
        step.run(step.next_batch(), index)
        if index == 0:
            step.watch.take()  # the first step loads libraries and makes the optimiser's state
    return {phase: int(found) for phase, found in step.watch.take().items()}


def backends(device: torch.device) -> list[str]:
    """The reference and, if there is another, what runs when nothing is forced."""
    chosen = {available_backends(op, device.type)[0] for op in OPS}
    return ["reference"] if chosen == {"reference"} else ["reference", "default"]


def use(backend: str) -> None:
    """Let the operations run on a backend from now on."""
    if backend == "default":
        os.environ.pop("DISTILLDEPTH_BACKEND", None)
    else:
        os.environ["DISTILLDEPTH_BACKEND"] = backend


def memory_in_another_process(settings: list[str], backend: str) -> dict[str, int] | None:
    """Run `measure_memory` where nothing else uses memory; None where the system cannot tell."""
    # Without this glibc keeps large blocks for reuse, and what was freed would still count as used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory-of", backend]
    command += [word for pair in settings for word in ("--set", pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"memory of {backend} not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


RUN = """
import json, sys
from distilldepth.distill.config import load_config
from distilldepth.distill.trainer import distill
distill(load_config(preset="demo", settings=json.loads(sys.argv[1])))
"""


def run_whole(checkout: Path, settings: list[str]) -> dict[str, Any]:
    """Run the job once, from a checkout; the first line of its log, in which everything is loaded, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        told = [*settings, f"out={folder}/run", "heldout=8", "agreement_every=0", "checkpoint_every=1000000"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(told)]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run(command, env=environment, cwd=folder, check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    seconds = [row["samples"] / row["images_per_second"] for row in rows[1:]]
    shares = {
        phase: sum(row["time"][phase] * each for row, each in zip(rows[1:], seconds, strict=True)) / sum(seconds)
        for phase in PHASES
    }
    return {
        "steps_per_second": (rows[-1]["step"] - rows[0]["step"]) / sum(seconds),
        "shares": shares,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "load_average": load_average(),
    }


def measure_whole(checkouts: list[Path], settings: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Run the job from each checkout in turn, in rotating order, and print what was found."""
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        for place in range(len(checkouts)):
            checkout = checkouts[(number + place) % len(checkouts)].resolve()
            version = subprocess.run(
                ["git", "-C", str(checkout), "describe", "--always", "--dirty"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            row = {"commit": version} | run_whole(checkout, [*settings, f"steps={steps}"])
            shares = " ".join(f"{phase} {share:.1%}" for phase, share in row["shares"].items())
            print(
                f"{version}: {row['steps_per_second']:.3f} steps/s, {row['cpu_seconds']:.0f} s of CPU; {shares}",
                flush=True,
            )
            found.append(row)
    return {"metadata": {**machine("cpu"), "command": command_line(), "steps": steps}, "results": found}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="counted steps per backend (default 20), or of the job (120)")
    parser.add_argument(
        "--whole", nargs="+", type=Path, metavar="CHECKOUT", help="time the whole job of these versions"
    )
    parser.add_argument("--rounds", type=int, default=2, help="runs of the job per version (default 2)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="as `distill`")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--memory-of", metavar="BACKEND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.settings, arguments.memory_of)))
        return
    if arguments.whole:
        write(
            arguments.json, measure_whole(arguments.whole, arguments.settings, arguments.steps or 120, arguments.rounds)
        )
        return
    step, found = measure_time(arguments.settings, arguments.steps or 20)
    results = []
    for name, steps in found.items():
        runs = {op: name if name == "reference" else available_backends(op, step.device.type)[0] for op in OPS}
        peaks = memory_in_another_process(arguments.settings, name) or {}
        whole = [sum(phases.values()) for phases in steps]
        for phase in (*PHASES, "step"):
            seconds = whole if phase == "step" else [phases[phase] for phases in steps]
            results.append(
                {
                    "backend": name,
                    "runs": runs,
                    "phase": phase,
                    "median_ms": quantile(seconds, 0.5) * 1e3,
                    "p20_ms": quantile(seconds, 0.2) * 1e3,
                    "p80_ms": quantile(seconds, 0.8) * 1e3,
                    "steps": len(seconds),
                    "share": sum(seconds) / sum(whole),
                    "peak_bytes": peaks.get(phase),
                }
            )
    config = step.config
    metadata = {
        **machine(step.device),
        "command": command_line(),
        "load_average": load_average(),
        "batch_size": config.batch_size,
        "size": list(config.height_width),
        "windows": config.crop.patches,
        "student": config.student,
        "teachers": config.teachers,
        "precision": step.accelerator.mixed_precision,
    }
    print("| backend | phase | median ms | p20 to p80 | share of the step | extra MB at peak |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in results:
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        spread = f"{row['p20_ms']:.1f} to {row['p80_ms']:.1f}"
        cells = [row["backend"], row["phase"], f"{row['median_ms']:.1f}", spread, f"{100 * row['share']:.1f} %", memory]
        print("| " + " | ".join(cells) + " |")
    write(arguments.json, {"metadata": metadata, "results": results})


def write(file: Path | None, found: dict[str, Any]) -> None:
    """Write JSON, if there is where to."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
