"""The processes of a run: accelerator, precision, and the seeds of each step."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from distilldepth.device import resolve_device
from distilldepth.distill.config import DistillConfig
from distilldepth.errors import UsageError
from distilldepth.machine import resolve_precision
from distilldepth.models import DepthModel


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
    sharding = _sharding_plugin(config)
    accelerator = Accelerator(
        cpu=kind == "cpu",
        mixed_precision=names[precision],
        gradient_accumulation_steps=config.grad_accumulation,
        fsdp_plugin=sharding,
        # The Depth Anything head and teachers without features leave parameters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if sharding is not None:
        if accelerator.num_processes == 1:
            raise UsageError("distill: FSDP shards over several processes, and this is one; set num_processes")
        # Accelerate heeds the setting on accelerators alone; torch shards on CPUs as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding
        # Its policy would round labels and boxes too, which reach the student's step in one call with the images.
        sharding.mixed_precision_policy = None
    return accelerator


def _sharding_plugin(config: DistillConfig) -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch` was told of FSDP, None if nothing; UsageError for what does not work with it."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    refused = {
        "fsdp_version must be 2": plugin.fsdp_version != 2,
        "fsdp_offload_params must be false": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing must be false": bool(plugin.activation_checkpointing),
        "optimiser.algorithm must be adamw, as Muon needs whole matrices": config.optimiser.algorithm == "muon",
        "compile must be false": config.compile,
    }
    for what, wrong in refused.items():
        if wrong:
            raise UsageError(f"distill: with FSDP {what}")
    return plugin


def ready_for_processes(student: DepthModel, accelerator: Accelerator) -> DepthModel:
    """Return the student as several processes can train it; as it is for one."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Over the images of all processes, as one with all of them would; there is no such layer for CPUs.
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    if accelerator.is_fsdp2:
        # It cuts contiguous parameters only.
        student = student.to(memory_format=torch.contiguous_format)
    return student


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed every generator from (seed, step, process), so that nothing random depends on what ran before."""
    mixed = int(np.random.SeedSequence([seed, 4, step, process]).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed)
