"""A trained encoder under a decoder of random weights."""

from __future__ import annotations

import dataclasses
import os
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from distilldepth.errors import DistillDepthError, UsageError, one_line
from distilldepth.models.base import DepthModel
from distilldepth.models.families import Layout, find_family
from distilldepth.models.files import read_weights
from distilldepth.models.load import CheckpointWarning
from distilldepth.models.state_dict import Found, find_state, listed, report_state
from distilldepth.models.uncertainty import UncertainDepth, build_again

ENCODER_ALONE = ", of it the encoder alone"
"""What `info.source` of such a model ends with."""


def keep_encoder(model: DepthModel, *, seed: int) -> DepthModel:
    """Return a model like another one with the weights of its encoder, and random ones for the rest.

    Args:
        model: whose encoder it is; it stays as it is, and shares no tensor with what is returned.
        seed: seed of the random weights.

    Returns:
        In training mode and float32, on the CPU. Running statistics of a normalisation come along with its weights.

    Raises:
        DistillDepthError: the family draws no line between encoder and decoder, or cannot be built again.

    Source: Distill Any Depth, second version, whose comparison starts all students from the encoder's weights.
    """
    encoder = _encoder_state(model)
    if not encoder:
        raise DistillDepthError(
            f"{model.info.name} has no encoder of its own to start from; use --initial-weights pretrained"
        )
    try:
        architecture = model.architecture
    except TypeError as error:
        raise DistillDepthError(f"{error}, so its decoder cannot be made anew") from error
    info = dataclasses.replace(model.info, source=f"{model.info.source}{ENCODER_ALONE}")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = build_again(architecture, info, model.preprocessing)
    made.load_state_dict({**made.state_dict(), **encoder})
    return made.train()


def load_encoder(model: DepthModel, path: str | Path) -> DepthModel:
    """Give a model the weights of its encoder from a file; the rest of it stays as it is.

    Args:
        model: whose encoder it is; it is changed.
        path: a `.safetensors` file, or one of `torch.save` with tensors alone. Its names are those of the model's own
            state dictionary, or of another program whose layout the family knows; a classifier, or a decoder of the
            model's own, is left out. Half precision becomes the model's.

    Returns:
        The model. `info.source` says that its encoder alone is trained; `info.licence` is what the file's metadata say,
        `unknown` if nothing.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: a folder.
        DistillDepthError: unreadable, foreign objects, no encoder of this kind, or tensors that are missing, left over,
            or of another shape; the message names them.
    """
    if isinstance(model, UncertainDepth):
        # Files name the tensors of the network alone.
        model.info = load_encoder(model.network, path).info
        return model
    path, own = Path(path), _encoder_state(model)
    if not own:
        raise DistillDepthError(f"{model.info.name} has no encoder of its own, so none can be read from {path}")
    if os.path.isdir(path):  # Where a name is too long for the system, `Path.is_dir` raises.
        raise UsageError(
            f"{path} is a folder; name a file of weights in it, or make it the student with --initial-weights encoder"
        )
    content, metadata = read_weights(path)
    rest = tuple(model.state_dict().keys() - own.keys())
    layouts = [Layout({name: name for name in own}, rest)]
    layouts += getattr(find_family(model.info.family), "encoder_layouts", lambda _: [])(model)
    for layout in layouts:
        if found := find_state(content, path, partial(_has_half, frozenset(layout.names.values()))):
            model.load_state_dict({**model.state_dict(), **_renamed(path, own, layout, found)})
            if found.note:
                warnings.warn(found.note, CheckpointWarning, stacklevel=2)
            break
    else:
        wanted = " or ".join(next(iter(layout.names.values())) for layout in layouts)
        raise DistillDepthError(
            f"{path} holds no encoder of {model.info.name}, whose first tensor would be {wanted}; it holds "
            f"{listed(content)}"
        )
    said = {key: one_line(metadata[key], 160) for key in ("source", "licence") if metadata.get(key, "").strip()}
    source = f"{path} ({said['source']})" if "source" in said else str(path)
    model.info = dataclasses.replace(
        model.info, source=f"{source}{ENCODER_ALONE}", licence=said.get("licence", "unknown")
    )
    return model


def _has_half(names: frozenset[str], state: dict[str, Tensor]) -> bool:
    """Whether so many are there that the layout is this one; what is missing is said afterwards."""
    return 2 * len(names & state.keys()) >= len(names)


def _renamed(path: Path, own: dict[str, Tensor], layout: Layout, found: Found) -> dict[str, Tensor]:
    """The encoder's tensors under its own names; DistillDepthError, with the file's names, unless they fit."""
    state = found.state
    known = set(layout.names.values())
    # Counters of batches, which files written before torch had them lack, change nothing.
    missing = [name for name in known - state.keys() if not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in known and not name.startswith(layout.left_out)]
    present = {mine: state[name] for mine, name in layout.names.items() if name in state}
    report_state(
        path,
        sorted(missing),
        unexpected,
        [
            f"{layout.names[mine]} {tuple(tensor.shape)} instead of {tuple(own[mine].shape)}"
            for mine, tensor in present.items()
            if tensor.shape != own[mine].shape
        ],
        [
            f"{layout.names[mine]} ({tensor.dtype})"
            for mine, tensor in present.items()
            if own[mine].is_floating_point() and not tensor.is_floating_point()
        ],
    )
    return present


def _encoder_state(model: DepthModel) -> dict[str, Tensor]:
    """The encoder's part of the state: its parameters, and the buffers of modules whose parameters they are."""
    encoder = {id(parameter) for parameter in model.parameter_groups()["encoder"]}
    owned = {
        prefix
        for prefix, module in model.named_modules()
        if any(id(parameter) in encoder for parameter in module.parameters(recurse=False))
    }
    return {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] in owned}
