"""What ends a run whose numbers are not finite, or whose disk is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.feed import Feed
from distilldepth.distill.launch import continuing
from distilldepth.distill.record.checkpoint import list_checkpoints
from distilldepth.distill.record.state import MetricsRow
from distilldepth.errors import DistillDepthError
from distilldepth.files import atomic_path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when a disk is full, or as much of it as the user may have."""


_FEW = 100
"""Stored samples that may be unreadable whatever share of the samples they are."""


def stop_if_not_finite(
    config: DistillConfig,
    row: MetricsRow,
    bad_batch: int,
    feed: Feed,
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
    raise stopped(config, row["step"], what, bad_batch, feed, accelerator, folder)


def stop_if_unreadable(config: DistillConfig, unreadable: int, samples: int, row: MetricsRow) -> None:
    """Stop a run from stored labels of which nothing at all, or far too much, could be read.

    Args:
        config: of the run.
        unreadable: samples that were left out so far.
        samples: all samples so far.
        row: the last line of the log.
    """
    share = config.max_skipped_share
    nothing_at_all = unreadable == samples and row["step"] == config.steps
    if unreadable <= max(share * samples, _FEW) and not nothing_at_all:
        return
    first = next(iter(row.get("errors", [])), "metrics.jsonl names them")
    raise DistillDepthError(
        f"distill: stopped at step {row['step']}: {unreadable} of {samples} stored samples could not be read "
        f"(max_skipped_share {share}); {first}; `distilldepth label --check` says what is wrong with a set"
    )


def stopped(
    config: DistillConfig,
    step: int,
    what: str,
    bad_batch: int,
    feed: Feed,
    accelerator: Accelerator,
    folder: Path,
) -> DistillDepthError:
    """The error that ends a run with numbers that are not finite: where they are, and the command that goes on."""
    where = ""
    if accelerator.is_main_process and bad_batch >= 0:
        path = folder / f"failed-step-{step:08d}.safetensors"
        with atomic_path(path) as temporary:
            save_file({"image": feed.batch(bad_batch).image}, temporary)
        where = f"the batch is in {path}; "
    rate = f"optimiser.lr={config.optimiser.lr / 5:g}"
    again = continuing(config, "--set", rate, afresh=not list_checkpoints(folder / "checkpoints"))
    return DistillDepthError(f"distill: stopped at step {step}: {what}; {where}with a smaller learning rate: {again}")


def watch_gradients(accelerator: Accelerator, optimiser: torch.optim.Optimizer, device: torch.device) -> Tensor | None:
    """Give the fused optimiser a flag on the device that makes it skip a step with a non-finite gradient.

    A branch on the host would wait for the device in every step. Under float16 the gradient scaler does the same.
    """
    if accelerator.scaler is not None or device.type not in ("cpu", "cuda"):
        return None
    # Of the fused optimisers, not of every one; accelerate may have wrapped it.
    inner: Any = getattr(optimiser, "optimizer", optimiser)
    flag = torch.zeros((), device=device)
    inner.found_inf, inner.grad_scale = flag, None
    return flag
