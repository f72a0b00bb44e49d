"""The processes of a run: accelerator, precision, and the seeds of each step."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from distilldepth.device import resolve_device
from distilldepth.distill.config import DistillConfig
from distilldepth.machine import resolve_precision


def settle_precisions(config: DistillConfig, device: torch.device, recorded: dict[str, str]) -> dict[str, str]:
    """Return the precision of student, teachers and Muon's iteration.

    What is left open is what the run began with if it is `recorded`, so that a resumed run computes the same, and what
    is fast on this machine if not.
    """
    asked = {"student": config.precision, "teachers": config.teacher_precision, "muon": "auto"}
    if config.optimiser.algorithm != "muon":
        del asked["muon"]
    settled = {"muon": "float32"}
    for who, precision in asked.items():
        known = recorded.get(who, "auto") if precision == "auto" else precision
        settled[who] = resolve_precision(known, device, what=f"distill, {who}")
    return settled


def make_accelerator(config: DistillConfig, precision: str) -> Accelerator:
    """Return the accelerator for a configuration; under `accelerate launch` the launcher decides on the device."""
    device = resolve_device(config.device)
    kind = device.type
    if kind == "cuda" and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    # It is one for the whole process and refuses another precision; a process may train several students in turn.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision=names[precision],
        gradient_accumulation_steps=config.grad_accumulation,
        # The Depth Anything head and teachers without features leave parameters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed every generator from (seed, step, process), so that nothing random depends on what ran before."""
    mixed = int(np.random.SeedSequence([seed, 4, step, process]).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed)
