"""`load_model`: from a name, a file, a folder or a hub id to a model; and `save_model`, the way back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distilldepth import documents
from distilldepth.data.images import check_regular, path_exists
from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, shown
from distilldepth.files import expand_user, write_atomically
from distilldepth.models import hub, registry
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.bounds import check_architecture
from distilldepth.models.bounds import config as check_config_values
from distilldepth.models.preprocess import Preprocessing

M = TypeVar("M", bound=nn.Module)

FAMILIES = {
    "depth-anything": "distilldepth.models.depth_anything",
    "latent": "distilldepth.models.latent",
    "light": "distilldepth.models.light",
    "topformer": "distilldepth.models.topformer",
    "transformers": "distilldepth.models.transformers_depth",
}
"""Module of each family, imported when it is needed."""

FORMAT = "distilldepth"
FORMAT_VERSION = 2
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class BundledModelWarning(UserWarning):
    """A small bundled model stands in for a public checkpoint that could not be had."""


def load_model(
    spec: str | Path, *, device: str | torch.device = "cpu", offline: bool = False, base: str | Path | None = None
) -> DepthModel:
    """Load a depth model, in evaluation mode and float32.

    What is on this machine is used without touching the network: a path, a folder named by `$DISTILLDEPTH_CHECKPOINTS`
    or `./checkpoints`, the hub's cache, in this order. `dav2` and `genpercept` without a variant mean the small public
    checkpoint, and the bundled small model, with a `BundledModelWarning`, where that cannot be had.

    Args:
        spec: a name (`dav2-small`), `name:variant` (`dav2:small`), `name@path`, an official `.pth` / `.safetensors`
            file, a folder written by `save_model`, transformers or diffusers, a run folder, or a hub id (`org/name`).
        device: where to put it, as `--device`: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`, or a torch device.
        offline: never touch the network; `HF_HUB_OFFLINE=1` says the same.
        base: repository or folder with the VAE of a latent model whose own folder has none; None for
            `$DISTILLDEPTH_SD_BASE` or the public default.

    Returns:
        The model; `info.notes` says what a user must be told.

    Raises:
        TypeError: spec is neither a text nor a path.
        ValueError: unknown name, or a device that this machine does not have.
        FileNotFoundError: a path that does not exist.
        DistillDepthError: a corrupt or foreign checkpoint, or one that is not here and not to be had.

    >>> import numpy as np
    >>> model = load_model("distilldepth-mini")
    >>> prediction = model.predict(np.zeros((30, 40, 3), np.uint8), size=64)
    >>> prediction.values.shape, prediction.values.dtype, prediction.quantity
    ((30, 40), dtype('float32'), 'disparity')
    """
    if not isinstance(spec, (str, Path)):
        raise TypeError(f"load_model: spec must be a name or a path, got {type(spec).__name__}")
    # A wrong device is found before the seconds that loading takes.
    place = resolve_device(device)
    return _resolve(spec, offline, None if base is None else str(base)).to(place).eval()


def create_student(name: str | Path, *, seed: int | None = None, offline: bool = False) -> DepthModel:
    """Make a student: random weights for a student's name, given weights for anything else `load_model` takes.

    Args:
        name: `dav2-mini`, `dav2:small`, `topformer-base`, ... or a path or hub id whose weights it starts from.
        seed: seed of the random weights; None draws from torch's global generator.
        offline: never touch the network.

    Returns:
        The model, in training mode and float32, on the CPU; one that was loaded is in evaluation mode.

    Raises:
        UsageError: an unknown name, or the name of a model that is a teacher only.
    """
    entry = registry.lookup(name) if isinstance(name, str) else None
    if entry is None:
        if isinstance(name, str) and re.fullmatch(r"[\w:-]+", name) and not path_exists(Path(name)):
            hint = registry.what_else(name, registry.student_names(), "students")
            raise UsageError(f"create_student: unknown student '{name}'{hint}")
        return load_model(name, offline=offline)
    if entry.role == "teacher":
        raise UsageError(
            f"create_student: '{name}' is a teacher only; choose from {', '.join(registry.student_names())}, "
            f"or start from its weights by its path or hub id {entry.hub_id}"
        )
    info = ModelInfo(entry.name, entry.family, entry.quantity, "Apache-2.0", "random initialisation")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _family(entry.family).build({"variant": entry.variant}, info)


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
        dtype: floating dtype of the file, for example `torch.float16` to ship it; None for the model's own.

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
    for key, tensor in model.state_dict().items():
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


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Return the number of parameters, each counted once.

    Args:
        model: any module.
        trainable_only: leave out those that need no gradient.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def _family(key: str) -> ModuleType:
    if key not in FAMILIES:
        raise DistillDepthError(f"load_model: unknown family '{key}'{did_you_mean(key, FAMILIES)}")
    return importlib.import_module(FAMILIES[key])


def _resolve(spec: str | Path, offline: bool, base: str | None) -> DepthModel:
    if isinstance(spec, str) and not spec.strip():
        raise UsageError("load_model: spec must be a name or a path, got an empty string")
    if isinstance(spec, str):
        if registry.lookup(spec):
            return _load_named(spec, offline, base)
        name, at, path = spec.partition("@")
        if at and not path_exists(Path(spec)):
            entry = registry.require(name)
            return _load_path(_existing(path), entry, name, offline, base)
    path = expand_user(spec)
    if path_exists(path):
        return _load_path(path, None, None, offline, base)
    text = str(spec)
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        and path.suffix not in CHECKPOINT_SUFFIXES
        and not path_exists(path.parent)
    ):
        return _load_hub_id(text, offline, base)
    if isinstance(spec, Path) or "/" in text or os.sep in text or path.suffix in CHECKPOINT_SUFFIXES:
        _existing(text)
    registry.require(text)
    raise AssertionError("unreachable: a known name was resolved above")


def _existing(path: str) -> Path:
    found = expand_user(path)
    if not path_exists(found):
        raise FileNotFoundError(f"load_model: no such file or folder: {shown(str(path), 1000)[1:-1]}")
    return found


def _load_named(spec: str, offline: bool, base: str | None) -> DepthModel:
    entry = registry.require(spec)
    if entry.bundled:
        return _load_bundled(entry)
    if entry.role == "student":
        raise UsageError(
            f"load_model: '{spec}' is an architecture without weights; train it, or use 'distilldepth-mini'"
        )
    try:
        path = hub.find_local(entry)
        if path is None:
            expected = (*entry.files[:1], entry.local_names()[-1])
            latent = entry.family == "latent"
            path = hub.fetch(
                entry.hub_id,
                file=entry.hub_file,
                folders=_LATENT_FOLDERS[entry.variant] if latent else (),
                family=entry.family,
                offline=offline,
                expected=tuple(dict.fromkeys(expected)),
            )
        return _load_path(path, entry, entry.name, offline, base)
    except DistillDepthError:
        stand_in = registry.ENTRIES.get(registry.STAND_INS.get(spec, ""))
        # a file that is here but broken must be heard of, not papered over
        if stand_in is None or hub.find_local(entry) is not None or not registry.has_weights(stand_in):
            raise
        note = (
            f"'{spec}' is the small bundled model '{stand_in.name}', NOT the public checkpoint '{entry.name}', which "
            f"is neither on this machine nor reachable; its depth is much coarser. Put the public one at "
            f"{hub.checkpoint_folders()[0] / entry.local_names()[0]}, or name '{stand_in.name}' to silence this."
        )
        warnings.warn(note, BundledModelWarning, stacklevel=4)
        model = _load_bundled(stand_in)
        model.info = dataclasses.replace(model.info, notes=(*model.info.notes, note))
        return model


_LATENT_FOLDERS = {"genpercept": ("unet",), "lotus": ("unet", "vae", "text_encoder", "tokenizer")}


def _load_bundled(entry: registry.Entry) -> DepthModel:
    if not registry.has_weights(entry):
        raise DistillDepthError(
            f"load_model: the bundled weights of '{entry.name}' are not installed at {entry.folder}; "
            "install the package again"
        )
    model = load_saved(entry.folder)
    model.info = dataclasses.replace(model.info, name=entry.name, source="bundled")
    return model


def _load_hub_id(repo_id: str, offline: bool, base: str | None) -> DepthModel:
    entries = [entry for entry in registry.ENTRIES.values() if repo_id in (entry.hub_id, entry.official_id)]
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise UsageError(f"load_model: the repository {repo_id} holds several models; name one of {names}")
    if entries and repo_id == entries[0].hub_id:
        return _load_named(entries[0].name, offline, base)
    if entries:
        entry = entries[0]
        path = hub.fetch(repo_id, file=entry.files[0], family=entry.family, offline=offline, expected=entry.files)
        return _load_path(path, entry, entry.name, offline, base)
    try:
        path = hub.fetch(repo_id, family="transformers", offline=offline)
    except DistillDepthError as error:
        raise DistillDepthError(
            f"{error} ('{repo_id}' was taken for a hub id: there is no such folder here)"
        ) from error
    return _load_path(path, None, repo_id, offline, base)


def _load_path(
    path: Path, entry: registry.Entry | None, name: str | None, offline: bool, base: str | None
) -> DepthModel:
    """Load a file or folder; `entry` is what the user said it is, if anything."""
    try:
        return _load_from(path, entry, name, offline, base)
    except UsageError:
        raise
    except _MISFITS as error:
        raise DistillDepthError(f"load_model: {path} cannot be loaded: {_why(error)}") from error


def _load_from(
    path: Path, entry: registry.Entry | None, name: str | None, offline: bool, base: str | None
) -> DepthModel:
    name = name or (path.stem if path.is_file() else path.resolve().name)
    if path.is_dir():
        return _load_folder(path, entry, name, offline, base)
    if path.suffix == ".json" or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        return _load_folder(path.parent, entry, name if entry else path.resolve().parent.name, offline, base)
    check_regular(path)
    if entry is not None and entry.family == "latent":
        return _load_latent(path, entry, name, offline, base)
    state = read_state(path)
    from distilldepth.models import depth_anything

    if not depth_anything.is_official(state):
        raise DistillDepthError(
            f"load_model: {path} is not a checkpoint of a known model (its first tensor is '{next(iter(state))}'); a "
            "file must be an official one of Depth Anything V2 or Distill-Any-Depth; anything else is a folder with "
            "its config.json"
        )
    if entry is not None and entry.family != "depth-anything":
        raise DistillDepthError(f"load_model: {path} holds a Depth Anything network, but '{name}' is not one")
    # a bare alias (dav2@file) says the family, not the size
    pinned = entry is not None and name not in registry.ALIASES
    max_depth = entry.options.get("max_depth") if pinned else _max_depth_by_name(path)
    quantity = "disparity" if max_depth is None else "metric_depth"
    licence = entry.licence if pinned else "see the source"
    info = ModelInfo(name, "depth-anything", quantity, licence, str(path))
    variant = entry.variant if pinned else None
    return depth_anything.load_official(path, state, info, variant=variant, max_depth=max_depth)


def _max_depth_by_name(path: Path) -> int | None:
    """Metric and relative files have the same tensors: only the official file names tell them apart."""
    name = path.name.lower()
    if "metric" not in name:
        return None
    return 80 if "vkitti" in name or "outdoor" in name else 20


def _load_folder(folder: Path, entry: registry.Entry | None, name: str, offline: bool, base: str | None) -> DepthModel:
    if (folder / "student" / "config.json").is_file():
        return load_saved(folder / "student")
    if (folder / "config.toml").is_file() and (folder / "checkpoints").is_dir():
        raise DistillDepthError(
            f"load_model: {folder} is a run without a student, which comes at its end; finish it with "
            f"distilldepth distill --config {folder / 'config.toml'} --resume auto"
        )
    if not (folder / "config.json").is_file() or (entry is not None and entry.family == "latent"):
        return _load_latent(folder, entry, name, offline, base)
    config = read_json(folder / "config.json")
    if config.get("format") == FORMAT:
        return load_saved(folder)
    kind = config.get("model_type")
    if kind is None and "_class_name" in config:
        return _load_latent(folder, entry, name, offline, base)
    if not isinstance(kind, str):
        raise DistillDepthError(f"load_model: {folder / 'config.json'} names no model_type; is this a model's folder?")
    licence = entry.licence if entry else "see the source"
    if kind == "depth_anything":
        quantity = "metric_depth" if config.get("depth_estimation_type") == "metric" else "disparity"
        info = ModelInfo(name, "depth-anything", quantity, licence, str(folder))
        return _family("depth-anything").load_transformers(folder, info)
    return _family("transformers").load_transformers(folder, kind, name=name, licence=licence)


def _load_latent(path: Path, entry: registry.Entry | None, name: str, offline: bool, base: str | None) -> DepthModel:
    if (
        entry is None
        and path.is_dir()
        and not any(path.glob("*/*.safetensors"))
        and not any(path.glob("*.safetensors"))
    ):
        held = ", ".join(sorted(child.name for child in path.iterdir())[:5]) or "nothing"
        raise DistillDepthError(
            f"load_model: {path} holds no model: weights and a config.json of a known kind are missing "
            f"(it holds {held})"
        )
    if entry is not None and entry.family != "latent":
        raise DistillDepthError(f"load_model: {path} has no config.json, which a folder of '{name}' must have")
    return _family("latent").load_diffusers(path, entry, name=name, offline=offline, base=base)


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
    except _MISFITS as error:
        raise DistillDepthError(f"load_model: {path} is not a complete model description: {_why(error)}") from error
    family = _family(info.family)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DistillDepthError(f"load_model: {folder} has a config.json but no model.safetensors")
    wrong = f"{path} describes no '{info.family}' network"
    try:
        check_architecture(family.ARCHITECTURE, architecture, may_lack=frozenset(getattr(family, "_DEFAULTS", ())))
    except ValueError as error:
        raise DistillDepthError(f"load_model: {wrong}: {error}") from error
    state = {k: t.float() if t.is_floating_point() else t for k, t in read_state(weights).items()}
    model = build_to_fit(
        lambda: family.build(architecture, info, preprocessing),
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
    return Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def build_to_fit(build: Callable[[], M], check: Callable[[M], None], wrong: str) -> M:
    """Build a network, but only after its skeleton, which has no memory, fitted the weights that are there.

    Args:
        build: makes it.
        check: raises unless the skeleton fits.
        wrong: start of the message if there is no such network.

    Raises:
        DistillDepthError: from `check`, or there is no such network.
    """
    try:
        with torch.device("meta"):
            skeleton = build()
        check(skeleton)
        return build()
    except DistillDepthError:
        raise
    except Exception as error:
        # The model libraries check their configurations with errors of their own.
        raise DistillDepthError(f"load_model: {wrong}: {_why(error)}") from error


_MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
"""What building a network raises for a description that makes no sense."""


def _why(error: Exception) -> str:
    """What was wrong, in one short line."""
    text = " ".join(str(error).split())[:160]
    return f"lacks {text}" if isinstance(error, KeyError) else text or type(error).__name__


def check_config(path: Path) -> None:
    """Raise a DistillDepthError unless a JSON file of a model's folder is readable and its numbers are possible."""
    try:
        check_config_values(path.stem, read_json(path))
    except ValueError as error:
        raise DistillDepthError(f"load_model: {path} describes no network: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DistillDepthError: unreadable, or something else than an object.
    """
    return documents.read_json(path, remedy="copy or download it again")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary from `.safetensors`, or from a pickle with `weights_only=True`.

    A dictionary wrapped in `model`, `state_dict` or similar is unwrapped, a `module.` prefix removed.

    Raises:
        DistillDepthError: unreadable, or no state dictionary inside.
    """
    check_regular(path)
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            _check_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except DistillDepthError:
        raise
    except pickle.UnpicklingError as error:
        # What torch says here is how to switch the protection off.
        raise DistillDepthError(
            f"load_model: {path} ({size} bytes) is not a readable checkpoint (no tensors, or other "
            "objects beside them, which could run a program and are not opened); download it again, or save it as "
            ".safetensors"
        ) from error
    except Exception as error:
        # What torch and safetensors say of a damaged file speaks to programmers.
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else "damaged, truncated or something else"
        )
        raise DistillDepthError(
            f"load_model: {path} ({size} bytes) is not a readable checkpoint ({why}); download it again"
        ) from error
    for key in ("state_dict", "model_state_dict", "model", "params"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict) and not state:
        raise DistillDepthError(f"load_model: {path} holds no tensor; download it again")
    if not isinstance(state, dict):
        raise DistillDepthError(f"load_model: {path} holds no state dictionary, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise DistillDepthError(
                f"load_model: {path} holds no state dictionary: its keys must be names, got {shown(key)}"
            )
        _check_tensor(path, key, value)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _check_tensor(path: Path, name: str, tensor: Any) -> None:
    """Raise unless this is a tensor of finite numbers that are all in the file."""
    where = f"load_model: {path}: {shown(name, 200)}"
    if not isinstance(tensor, Tensor):
        raise DistillDepthError(f"{where} must be a tensor, got {type(tensor).__name__}")
    kinds = {
        "sparse": tensor.layout != torch.strided,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "without data": tensor.device.type != "cpu",
    }
    if found := [kind for kind, is_so in kinds.items() if is_so]:
        raise DistillDepthError(f"{where} must be a plain tensor, this one is {found[0]}; save the weights as they are")
    if not tensor.numel():
        raise DistillDepthError(f"{where} is empty, shape {tuple(tensor.shape)}; the file is damaged")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DistillDepthError(
            f"{where} claims {tuple(tensor.shape)} numbers, the file has fewer; save the weights as they are"
        )
    if tensor.is_floating_point():
        low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
        if not (low.isfinite() and high.isfinite()):
            raise DistillDepthError(
                f"{where} has numbers that are not finite (NaN or infinite): these weights are broken; use an earlier "
                "checkpoint"
            )


def _check_archive(path: Path) -> None:
    """Raise unless the parts of a zip file, which is what torch saves, are no larger than the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > path.stat().st_size:
        raise DistillDepthError(
            f"load_model: {path} unpacks to {unpacked} bytes, more than it has; torch saves nothing compressed, so it "
            "is no checkpoint"
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors by content: GenPercept publishes such files under the name `.bin`."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def check_state(path: Path, network: nn.Module, state: dict[str, Tensor], unknown: list[str] | None = None) -> None:
    """Raise a DistillDepthError that lists what of a network is missing, left over or of another shape in `state`."""
    own = network.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = (unknown or []) + [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    integers = [
        f"{key} ({state[key].dtype})"
        for key in own
        if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
    ]
    report_state(path, missing, unexpected, shapes, integers)


def report_state(
    path: Path, missing: list[str], unexpected: list[str], shapes: list[str], integers: list[str] | None = None
) -> None:
    """Raise the one-line error for a checkpoint that does not fit; nothing if it does."""
    parts = []
    for word, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("of whole numbers, which have lost the weights", integers or []),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            parts.append(f"{len(names)} {word}: {', '.join(names[:4])}{more}")
    if parts:
        raise DistillDepthError(f"load_model: {path} does not fit the network; tensors {'; '.join(parts)}")


def load_pretrained(cls: Any, folder: Path, *, never_used: str | None = None, **options: Any) -> Any:
    """`cls.from_pretrained` of a local folder: strict, quiet, float32, without remote code or network.

    Args:
        cls: a class of transformers or diffusers.
        folder: where it is.
        never_used: regular expression of tensors that may be missing or left over, because the forward pass has no use
            for them.
        options: further arguments for `from_pretrained`.

    Raises:
        DistillDepthError: unreadable, or weights missing, left over or of another shape.
    """
    # diffusers and transformers call the same option differently
    is_diffusers = cls.__module__.startswith("diffusers")
    dtype = "torch_dtype" if is_diffusers else "dtype"
    options = {"local_files_only": True, "output_loading_info": True, dtype: torch.float32} | options
    if not is_diffusers:
        options["trust_remote_code"] = False
    for file in sorted({*folder.glob("*config.json"), *folder.glob("*.index.json")}):
        check_config(file)
    with hub.quiet_transformers():
        try:
            _check_size(cls, folder)
            network, loading = cls.from_pretrained(folder, **options)
        except DistillDepthError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise DistillDepthError(f"load_model: {folder} cannot be loaded ({reason}); download it again") from error
    mismatched = [str(item[0] if isinstance(item, tuple) else item) for item in loading.get("mismatched_keys", ())]
    missing, unexpected = (
        sorted(key for key in loading[kind] if not (never_used and re.search(never_used, key)))
        for kind in ("missing_keys", "unexpected_keys")
    )
    report_state(folder, missing, unexpected, mismatched, _integer_weights(folder))
    for key, tensor in network.state_dict().items():
        _check_tensor(folder, key, tensor)
    return network


def _check_size(cls: Any, folder: Path) -> None:
    """Raise if a configuration describes more weights than the files beside it can hold."""
    with torch.device("meta"):
        if cls.__module__.startswith("diffusers"):
            skeleton = cls.from_config(cls.load_config(folder, local_files_only=True))
        elif hasattr(cls, "from_config"):
            from transformers import AutoConfig

            skeleton = cls.from_config(
                AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            )
        else:
            skeleton = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    described = count_parameters(skeleton)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
    # No published format has less than a byte for a weight.
    if described > held:
        raise DistillDepthError(
            f"load_model: {folder / 'config.json'} describes a network of {described} weights, and the files beside it "
            f"have {held} bytes; they do not belong together, or are incomplete"
        )


def _integer_weights(folder: Path) -> list[str]:
    """Names of weights in safetensors files that are whole numbers."""
    from safetensors import safe_open

    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, it is no dictionary
                dtype = tensors.get_slice(key).get_dtype()
                if key.endswith(("weight", "bias")) and dtype.startswith(("I", "U", "BOOL")):
                    found.append(f"{key} ({dtype})")
    return found
