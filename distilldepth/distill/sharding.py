"""Tensors of which every process holds a part, as FSDP leaves them: whole for files, in parts for training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of them is held in parts."""
    return any(isinstance(value, DTensor) for value in tensors.values())


def here(value: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, which may be empty; all of one that is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """Return a whole tensor; all processes must ask for a sharded one together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_on_cpu(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return whole tensors, the sharded ones on the CPU one after another, so that no device holds all.

    All processes must ask together; those that do not `keep` them get nothing.
    """
    kept = {}
    for name, value in tensors.items():
        full = whole(value)
        if keep:
            kept[name] = full.cpu() if isinstance(value, DTensor) else full
    return kept


def part_like(value: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor sharded as another one is, which every process cuts by itself; as it is if none is."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def parts_like(values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors sharded as those of the same names are."""
    with torch.no_grad():
        return {name: part_like(value, own[name]) for name, value in values.items()}
