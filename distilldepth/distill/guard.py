"""What ends a run whose numbers are not finite, or whose disk is full."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from distilldepth.distill.batches import CropDataset, StepBatches
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.record.checkpoint import list_checkpoints
from distilldepth.distill.record.state import MetricsRow
from distilldepth.errors import DistillDepthError
from distilldepth.files import atomic_path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when a disk is full, or as much of it as the user may have."""


def stop_if_not_finite(
    config: DistillConfig,
    row: MetricsRow,
    bad_batch: int,
    dataset: CropDataset,
    accelerator: Accelerator,
    folder: Path,
) -> None:
    """Stop the run, with the last bad batch made again and saved, when too much of it was not finite."""
    broken = not np.isfinite(row["loss"]) or not np.isfinite(row.get("grad_norm", 0.0))
    if row["skipped"] <= config.max_skipped_share * row["samples"] and not broken:
        return
    what = (
        "the loss or its gradient is not finite"
        if broken
        else f"{row['skipped']} of the last {row['samples']} samples are not finite "
        f"(max_skipped_share {config.max_skipped_share})"
    )
    raise stopped(config, row["step"], what, bad_batch, dataset, accelerator, folder)


def stopped(
    config: DistillConfig,
    step: int,
    what: str,
    bad_batch: int,
    dataset: CropDataset,
    accelerator: Accelerator,
    folder: Path,
) -> DistillDepthError:
    """The error that ends a run with numbers that are not finite: where they are, and the command that goes on."""
    where = ""
    if accelerator.is_main_process and bad_batch >= 0:
        path = folder / f"failed-step-{step:08d}.safetensors"
        batches = StepBatches(bad_batch, bad_batch + 1, config.batch_size, processes=accelerator.num_processes)
        images = torch.stack([dataset[ordinal].image for ordinal in next(iter(batches))])
        with atomic_path(path) as temporary:
            save_file({"image": images}, temporary)
        where = f"the batch is in {path}; "
    rate = f"optimiser.lr={config.optimiser.lr / 5:g}"
    going_on = ["--resume", "auto"] if list_checkpoints(folder / "checkpoints") else ["--overwrite"]
    again = ["distilldepth", "distill", "--config", str(folder / "config.toml"), *going_on, "--set", rate]
    return DistillDepthError(
        f"distill: stopped at step {step}: {what}; {where}with a smaller learning rate: {shlex.join(again)}"
    )


def watch_gradients(accelerator: Accelerator, optimiser: torch.optim.Optimizer) -> Tensor | None:
    """Give the fused optimiser a flag on the device that makes it skip a step with a non-finite gradient.

    A branch on the host would wait for the device in every step. Under float16 the gradient scaler does the same.
    """
    if accelerator.scaler is not None or accelerator.device.type not in ("cpu", "cuda"):
        return None
    # Of the fused optimisers, not of every one; accelerate may have wrapped it.
    inner: Any = getattr(optimiser, "optimizer", optimiser)
    flag = torch.zeros((), device=accelerator.device)
    inner.found_inf, inner.grad_scale = flag, None
    return flag
