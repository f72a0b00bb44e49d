"""What tells one model from another, whatever it is called: a digest of all that decides its numbers."""

from __future__ import annotations

import hashlib
import json

import torch

from distilldepth.models.base import DepthModel


def model_digest(model: DepthModel) -> str:
    """Return the SHA-256 of a model's tensors, architecture, quantity and preprocessing.

    Name, licence and place do not count: weights that were moved or renamed are the same model. Neither does the
    device. A network that is cast to another dtype is another model, since its numbers are others.

    Args:
        model: any; every byte of its parameters and buffers is read (a second for each gigabyte or two).

    Returns:
        64 hexadecimal digits.

    >>> from distilldepth import load_model
    >>> model_digest(load_model("dav2-mini")) == model_digest(load_model("distilldepth-mini"))
    False
    """
    info = {
        "family": model.info.family,
        "quantity": model.info.quantity,
        "preprocessing": model.preprocessing.to_dict(),
        "architecture": model.identity,
    }
    digest = hashlib.sha256(json.dumps(info, sort_keys=True, default=repr).encode())
    # Buffers that are not saved decide numbers too.
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        # As bytes: numpy has no bfloat16, and bits are what counts. A scalar cannot be viewed, a flat one can.
        digest.update(memoryview(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
