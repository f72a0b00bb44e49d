"""The folder of a model: `save_model` writes it, `load_saved` reads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from distilldepth.errors import DistillDepthError, shown
from distilldepth.files import write_atomically
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.candidate import FORMAT
from distilldepth.models.families import find_family
from distilldepth.models.narrow import state_that_fits
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.pretrained import read_json
from distilldepth.models.state_dict import MISFITS, briefly, build_to_fit, check_state, read_state
from distilldepth.models.uncertainty import build_again, check_description

FORMAT_VERSION = 2


def save_model(
    model: DepthModel,
    folder: str | Path,
    *,
    card: str | None = None,
    extra: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model as a folder that `load_model` reads: `model.safetensors`, `config.json`, with `card` `README.md`.

    Each file is written whole or not at all.

    Args:
        model: any model whose family can be built again.
        folder: made if it does not exist.
        card: model card, Markdown.
        extra: further JSON-able keys of `config.json`.
        dtype: floating dtype of the file, for example `torch.float16` to ship it; None for the model's own. Where a
            batch normalisation's variances are too large for it, the convolution before it is made smaller with them,
            which changes no output.

    Returns:
        The folder.

    Raises:
        TypeError: the family cannot be built again.
        ValueError: `extra` has a key of the format, or weights that are not finite (in that dtype).
    """
    from safetensors.torch import save

    config = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "family": model.info.family,
        "name": model.info.name,
        "quantity": model.info.quantity,
        "licence": model.info.licence,
        "source": model.info.source,
        "architecture": model.architecture,
        "preprocessing": model.preprocessing.to_dict(),
    }
    if clash := sorted(set(config) & set(extra or {})):
        raise ValueError(f"save_model: extra must not have the keys {', '.join(clash)}, they belong to the format")
    state = {}
    for key, tensor in state_that_fits(model, dtype).items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype or tensor.dtype)
            if not tensor.isfinite().all():
                raise ValueError(f"save_model: weights must be finite in {tensor.dtype}, got otherwise in '{key}'")
        # a copy: tensors that share memory, or lie in channels-last order, cannot be written
        state[key] = tensor.clone(memory_format=torch.contiguous_format)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    text = json.dumps(config | (extra or {}), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "config.json", text)
    if card is not None:
        write_atomically(folder / "README.md", card)
    return folder


def load_saved(folder: Path) -> DepthModel:
    """Load a folder that `save_model` wrote.

    Raises:
        DistillDepthError: unreadable, incomplete or of a newer format.
    """
    path = folder / "config.json"
    config = read_json(path)
    version = config.get("version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or version > FORMAT_VERSION:
        raise DistillDepthError(f"load_model: {path} has format version {version!r}; update distilldepth to read it")
    try:
        info = ModelInfo(
            config["name"], config["family"], config["quantity"], config["licence"], config.get("source") or str(folder)
        )
        preprocessing = _read_preprocessing(config["preprocessing"])
        architecture = config["architecture"]
    except MISFITS as error:
        raise DistillDepthError(f"load_model: {path} is not a complete model description: {briefly(error)}") from error
    family = find_family(info.family)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DistillDepthError(f"load_model: {folder} has a config.json but no model.safetensors")
    wrong = f"{path} describes no '{info.family}' network"
    try:
        check_description(architecture, family)
    except ValueError as error:
        raise DistillDepthError(f"load_model: {wrong}: {error}") from error
    state = {k: t.float() if t.is_floating_point() else t for k, t in read_state(weights).items()}
    model = build_to_fit(
        lambda: build_again(architecture, info, preprocessing),
        lambda skeleton: check_state(weights, skeleton, state),
        wrong,
    )
    model.load_state_dict(state)
    return model.eval()


def _read_preprocessing(values: Any) -> Preprocessing:
    if not isinstance(values, dict):
        raise ValueError(f"preprocessing must be an object, got {shown(values)}")
    known = {item.name for item in dataclasses.fields(Preprocessing)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"preprocessing has an unknown entry {shown(unknown[0])}")
    needed = [item.name for item in dataclasses.fields(Preprocessing) if item.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"preprocessing lacks {', '.join(missing)}")
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocessing(**arguments)
