"""`load_model`: from a name, a file, a folder or a hub id to a model; `create_student` for one without weights."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from pathlib import Path

import torch

from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError, UsageError, refuse_url, shown
from distilldepth.files import expand_user
from distilldepth.images.decode import path_exists
from distilldepth.models import hub, registry, unit
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.candidate import Candidate, Request
from distilldepth.models.families import find_family, find_namer, find_reader
from distilldepth.models.files import CHECKPOINT_SUFFIXES
from distilldepth.models.saved import load_saved
from distilldepth.models.state_dict import ADAPTER, MISFITS, briefly, unknown_network


class CheckpointWarning(UserWarning):
    """Something was assumed of a checkpoint that its file does not say."""


class BundledModelWarning(UserWarning):
    """A small bundled model stands in for a public checkpoint that could not be had."""


def load_model(
    spec: str | Path,
    *,
    device: str | torch.device = "cpu",
    offline: bool = False,
    base: str | Path | None = None,
    max_depth: float | None = None,
) -> DepthModel:
    """Load a depth model, in evaluation mode and float32.

    What is on this machine is used without touching the network: a path, a folder named by `$DISTILLDEPTH_CHECKPOINTS`
    or `./checkpoints`, the hub's cache, in this order. `dav2` and `genpercept` without a variant mean the small public
    checkpoint, and the bundled small model, with a `BundledModelWarning`, where that cannot be had.

    Args:
        spec: a name (`dav2-small`), `name:variant` (`dav2:small`), `name@path`, an official `.pth` / `.safetensors`
            file, or one with the same network inside, a folder written by `save_model`, transformers or diffusers, a
            run folder, or a hub id (`org/name`). `dav2-metric:METRES@path` and `dav2-relative@path` say what the
            numbers of a Depth Anything file are, where it does not say so itself. `marigold:STEPSxMEMBERS`, with
            `@path` or not, draws depth in so many steps, and as the median of so many aligned members.
            `python:module:function` or `python:path/to/file.py:function` is a callable of your own, whose file is run;
            see docs/own-teacher.md.
        device: where to put it, as `--device`: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`, or a torch device.
        offline: never touch the network; `HF_HUB_OFFLINE=1` says the same.
        base: repository or folder with the VAE of a latent model whose own folder has none; None for
            `$DISTILLDEPTH_SD_BASE` or the public default.
        max_depth: metres at which a file of NeWCRFs or a metric Depth Anything saturates (its values are sigmoid *
            max_depth), the number that it was trained with; makes a Depth Anything file a metric one. None for what
            the file or its name says.

    Returns:
        The model; `info.notes` says what a user must be told, for example what was assumed of a file that does not
        say whether it is metric; a `CheckpointWarning` says the same.

    Raises:
        TypeError: spec is neither a text nor a path, or max_depth no number.
        ValueError: unknown name, a URL, a device that this machine does not have, or a `max_depth` that is not
            positive or not wanted.
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
    request = Request(
        offline,
        None if base is None else str(base),
        None if max_depth is None else "metric_depth",
        None if max_depth is None else unit.parse_max_depth(max_depth),
    )
    return _resolve(spec, request).to(place).eval()


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
    if find_namer(name):
        raise UsageError(
            f"create_student: '{name}' is a callable and a teacher only, its weights could not be saved; choose from "
            f"{', '.join(registry.student_names())}"
        )
    entry = registry.lookup(name) if isinstance(name, str) else None
    if entry is None:
        if isinstance(name, str) and re.fullmatch(r"[\w:-]+", name) and not path_exists(Path(name)):
            hint = registry.what_else(name, registry.student_names(), "students")
            raise UsageError(f"create_student: unknown student '{name}'{hint}")
        return load_model(name, offline=offline)
    if entry.role == "teacher":
        place = f"path or hub id {entry.hub_id}" if entry.hub_id else "path"
        raise UsageError(
            f"create_student: '{name}' is a teacher only; choose from {', '.join(registry.student_names())}, "
            f"or start from its weights by its {place}"
        )
    info = ModelInfo(entry.name, entry.family, entry.quantity, "Apache-2.0", "random initialisation")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return find_family(entry.family).build({"variant": entry.variant}, info)


def _resolve(spec: str | Path, request: Request) -> DepthModel:
    if isinstance(spec, str) and not spec.strip():
        raise UsageError("load_model: spec must be a name or a path, got an empty string")
    if asked := re.fullmatch(r"([\w:-]+):(\d+)x(\d+)(@.+)?", str(spec)):
        name, steps, members, at_path = asked.groups("")
        return _resolve(
            name + at_path, dataclasses.replace(request, sampling=_sampling(name, int(steps), int(members)))
        )
    if namer := find_namer(spec):
        return namer.load_spec(str(spec), request)
    if hub_id := re.match(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?$", str(spec)):
        raise UsageError(f"load_model: {spec}: URLs are not supported; name the hub id {hub_id[1]}")
    refuse_url(spec)
    if isinstance(spec, str):
        if registry.lookup(spec):
            return _load_named(spec, request)
        name, at, file = spec.partition("@")
        if at and not path_exists(Path(spec)):
            if told := unit.TOLD.fullmatch(name):
                return _load_path(_existing(file), None, None, _told(spec, told, request))
            entry = registry.require(name)
            return _load_path(_existing(file), entry, name, request)
    path = expand_user(spec)
    if path_exists(path):
        return _load_path(path, None, None, request)
    text = str(spec)
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        and path.suffix not in CHECKPOINT_SUFFIXES
        and not path_exists(path.parent)
    ):
        return _load_hub_id(text, request)
    if isinstance(spec, Path) or "/" in text or os.sep in text or path.suffix in CHECKPOINT_SUFFIXES:
        _existing(text)
    registry.require(text)
    raise AssertionError("unreachable: a known name was resolved above")


def _sampling(name: str, steps: int, members: int) -> tuple[int, int]:
    """What `:STEPSxMEMBERS` behind a name asks for."""
    entry = registry.require(name)
    if not registry.FAMILIES[entry.family].samples:
        able = ", ".join(known.name for known in registry.ENTRIES.values() if registry.FAMILIES[known.family].samples)
        raise UsageError(f"load_model: '{name}' has no steps and members to choose; these have: {able}")
    if not (1 <= steps <= registry.MOST_STEPS and 1 <= members <= registry.MOST_MEMBERS):
        raise UsageError(
            f"load_model: '{name}:{steps}x{members}' must have 1 to {registry.MOST_STEPS} steps and 1 to "
            f"{registry.MOST_MEMBERS} members"
        )
    return steps, members


def _told(spec: str, told: re.Match[str], request: Request) -> Request:
    """What `dav2-metric:80@` or `dav2-relative@` adds."""
    quantity = "metric_depth" if told[1] else "disparity"
    metres = None if told[2] is None else unit.parse_max_depth(told[2])
    if request.max_depth is not None and (quantity == "disparity" or metres not in (None, request.max_depth)):
        raise UsageError(f"load_model: {shown(spec)} and max_depth {request.max_depth:g} contradict each other")
    return dataclasses.replace(request, quantity=quantity, max_depth=metres or request.max_depth)


def _existing(path: str) -> Path:
    found = expand_user(path)
    if not path_exists(found):
        raise FileNotFoundError(f"load_model: no such file or folder: {shown(str(path), 1000)[1:-1]}")
    return found


def _load_named(spec: str, request: Request) -> DepthModel:
    entry = registry.require(spec)
    if entry.bundled or not registry.FAMILIES[entry.family].takes_max_depth:
        request.refuse_max_depth(f"'{spec}'")
    if entry.bundled:
        return _load_bundled(entry)
    if entry.role == "student":
        raise UsageError(
            f"load_model: '{spec}' is an architecture without weights; train it, or use 'distilldepth-mini'"
        )
    try:
        path = hub.find_local(entry)
        if path is None and not entry.hub_id:
            raise hub.unpublished(entry)
        if path is None:
            expected = (*entry.files[:1], entry.local_names()[-1])
            path = hub.fetch(
                entry.hub_id,
                file=entry.hub_file,
                folders=entry.hub_folders,
                family=entry.family,
                offline=request.offline,
                expected=tuple(dict.fromkeys(expected)),
            )
        return _load_path(path, entry, entry.name, request)
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


def _load_bundled(entry: registry.Entry) -> DepthModel:
    if not registry.has_weights(entry):
        raise DistillDepthError(
            f"load_model: the bundled weights of '{entry.name}' are not installed at {entry.folder}; "
            "install the package again"
        )
    model = load_saved(entry.folder)
    model.info = dataclasses.replace(model.info, name=entry.name, source="bundled")
    return model


def _load_hub_id(repo_id: str, request: Request) -> DepthModel:
    entries = [entry for entry in registry.ENTRIES.values() if repo_id in (entry.hub_id, entry.official_id)]
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise UsageError(f"load_model: the repository {repo_id} holds several models; name one of {names}")
    if entries and repo_id == entries[0].hub_id:
        return _load_named(entries[0].name, request)
    if entries:
        entry = entries[0]
        path = hub.fetch(
            repo_id, file=entry.files[0], family=entry.family, offline=request.offline, expected=entry.files
        )
        return _load_path(path, entry, entry.name, request)
    try:
        path = hub.fetch(repo_id, offline=request.offline)
    except DistillDepthError as error:
        raise DistillDepthError(
            f"{error} ('{repo_id}' was taken for a hub id: there is no such folder here)"
        ) from error
    return _load_path(path, None, repo_id, request)


def _load_path(path: Path, entry: registry.Entry | None, name: str | None, request: Request) -> DepthModel:
    """Load a file or folder; `entry` is what the user said it is, if anything."""
    try:
        model = _load_from(path, entry, name, request)
    except UsageError:
        raise
    except MISFITS as error:
        raise DistillDepthError(f"load_model: {path} cannot be loaded: {briefly(error)}") from error
    for note in model.info.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=4)
    return model


def _load_from(path: Path, entry: registry.Entry | None, name: str | None, request: Request) -> DepthModel:
    named = name or (path.stem if path.is_file() else path.resolve().name)
    if path.is_dir():
        return _load_folder(Candidate(path, entry, named, request))
    if path.suffix == ".json" or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        named = named if entry else path.resolve().parent.name
        return _load_folder(Candidate(path.parent, entry, named, request))
    if path.name.startswith("adapter_model."):
        raise DistillDepthError(f"load_model: {path} {ADAPTER}")
    return _load_file(Candidate(path, entry, named, request))


def _load_file(candidate: Candidate) -> DepthModel:
    if reader := find_reader(candidate):
        return reader.load(candidate)
    files = " or ".join(row.files for row in registry.FAMILIES.values() if row.files)
    raise unknown_network(candidate.weights[0], candidate.path, files)


def _load_folder(candidate: Candidate) -> DepthModel:
    folder = candidate.path
    if (folder / "student" / "config.json").is_file():
        candidate.refuse_max_depth()
        return load_saved(folder / "student")
    if (folder / "config.toml").is_file() and (folder / "checkpoints").is_dir():
        raise DistillDepthError(
            f"load_model: {folder} is a run without a student, which comes at its end; finish it with "
            f"distilldepth distill --config {folder / 'config.toml'} --resume auto"
        )
    if (folder / "adapter_config.json").is_file():
        raise DistillDepthError(f"load_model: {folder} {ADAPTER}")
    has_config = (folder / "config.json").is_file()
    if has_config:
        candidate.refuse_max_depth()
    if reader := find_reader(candidate):
        return reader.load(candidate)
    if candidate.is_saved:
        return load_saved(folder)
    if has_config:
        raise DistillDepthError(f"load_model: {folder / 'config.json'} names no model_type; is this a model's folder?")
    return _load_file(Candidate(_only_weights(folder), candidate.entry, candidate.name, candidate.request))


def _only_weights(folder: Path) -> Path:
    """The one file of weights in a folder without a config.json, which is then an official one."""
    files = sorted(file for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES and file.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
        raise DistillDepthError(
            f"load_model: {folder} holds {len(files)} files of weights and no config.json that says which is meant "
            f"({names}); name one of them"
        )
    held = ", ".join(sorted(child.name for child in folder.iterdir())[:5]) or "nothing"
    raise DistillDepthError(
        f"load_model: {folder} holds no model: weights and a config.json of a known kind are missing (it holds {held})"
    )
