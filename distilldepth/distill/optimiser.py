"""A student's optimiser: its groups, its learning rate as a function of the step, and steps that must not be taken."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.muon import Muon, matrix_parameters
from distilldepth.distill.record.state import GroupFacts
from distilldepth.distill.step import DistillationStep

_RISE = 25
_CYCLED_BETA1 = (0.95, 0.85)
"""How many times the learning rate rises in one cycle, and beta1 far from the peak and on it: the defaults of
`torch.optim.lr_scheduler.OneCycleLR`; Smith and Topin, Super-Convergence (2018)."""


def make_optimiser(
    config: DistillConfig, module: DistillationStep, device: torch.device, precision: torch.dtype
) -> torch.optim.Optimizer:
    """Return AdamW, or Muon with AdamW, with groups for encoder and the rest; biases and norms are not decayed.

    Muon's iteration runs in `precision`.
    """
    settings = config.optimiser
    matrices = matrix_parameters(module) if settings.algorithm == "muon" else set()
    encoder = {id(p) for p in module.student.parameter_groups()["encoder"]}
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in encoder, parameter.ndim > 1, id(parameter) in matrices].append(parameter)
    betas, fused = (settings.beta1, settings.beta2), device.type in ("cpu", "cuda")
    described = [
        {
            "params": parameters,
            "part": "encoder" if in_encoder else "decoder",
            "lr_share": settings.encoder_lr_share if in_encoder else 1.0,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "muon": is_matrix,
        }
        for (in_encoder, decayed, is_matrix), parameters in sorted(groups.items(), reverse=True)
    ]
    if settings.algorithm == "muon":
        return Muon(described, precision=precision, lr=settings.lr, betas=betas, fused=fused)
    return torch.optim.AdamW(described, lr=settings.lr, betas=betas, fused=fused)


def rates(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate of each part of the student: `encoder`, `decoder`."""
    return {group["part"]: group["lr"] for group in optimiser.param_groups}


def describe_groups(optimiser: torch.optim.Optimizer, config: DistillConfig) -> list[GroupFacts]:
    """Return what is said of each group of parameters."""
    return [
        GroupFacts(
            part=group["part"],
            rule="muon" if group["muon"] else "adamw",
            tensors=len(group["params"]),
            parameters=sum(parameter.numel() for parameter in group["params"]),
            lr=config.optimiser.lr * group["lr_share"],
            weight_decay=group["weight_decay"],
        )
        for group in optimiser.param_groups
    ]


def set_learning_rate(optimiser: torch.optim.Optimizer, config: DistillConfig, step: int) -> None:
    """Set every group's learning rate for a step, and its beta1 where the schedule has one.

    Both are pure functions of the step, so a resumed run needs no state.
    """
    factor = schedule_factor(config, step)
    for group in optimiser.param_groups:
        group["lr"] = config.optimiser.lr * group["lr_share"] * factor
        if config.optimiser.schedule == "one-cycle":
            group["betas"] = (_between(*_CYCLED_BETA1, _cycle(config, step)[0]), config.optimiser.beta2)


def schedule_factor(config: DistillConfig, step: int) -> float:
    """Return the learning rate of a step as a share of the largest."""
    settings = config.optimiser
    if settings.schedule == "one-cycle":
        height, falling = _cycle(config, step)
        return _between(settings.final_lr_share if falling else 1 / _RISE, 1.0, height)
    warmup = settings.warmup * config.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(config.steps - warmup, 1)
    least = settings.final_lr_share
    if settings.schedule == "cosine":
        return least + (1 - least) * 0.5 * (1 + float(np.cos(np.pi * progress)))
    if settings.schedule == "poly":
        return least + (1 - least) * (1 - progress) ** 0.9
    return 1.0


def _cycle(config: DistillConfig, step: int) -> tuple[float, bool]:
    """How near to the peak of the one cycle a step is, from 0 to 1, and whether it lies behind it."""
    peak, last = config.optimiser.warmup * config.steps - 1, config.steps - 1
    if step > peak:
        return 0.5 * (1 + math.cos(math.pi * (step - peak) / (last - peak))), True
    return 0.5 * (1 - math.cos(math.pi * step / peak)) if peak > 0 else 1.0, False


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
