"""The weights inside a checkpoint: found under whatever a training script wraps around them, and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distilldepth.errors import DistillDepthError, one_line, shown
from distilldepth.models.files import NumpyArray, Record, read_weights

Known = Callable[[dict[str, Tensor]], bool]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
"""What torch's own wrappers put into names, at any place: compile, FSDP, checkpointing, DeepSpeed, DDP."""
_BOOKKEEPING = {"n_averaged", "num_updates", "decay", "initted", "step"}
"""Entries of averaging wrappers that are no weights."""
_AVERAGED = {"ema", "averaged", "averaging", "average", "avg", "shadow", "swa"}
_NOT_WEIGHTS = re.compile(r"optim|sched|exp_avg|grad|moment|scaler|loops|callbacks", re.IGNORECASE)
"""Entries that are not searched: an optimiser keeps tensors too."""
_DEEPEST = 8
ADAPTER = (
    "is a PEFT adapter (LoRA), a change to weights that lie elsewhere; merge it, model.merge_and_unload(), and save "
    "the weights of the result"
)
"""What is said of an adapter."""


@dataclass(frozen=True)
class Found:
    """A state dictionary of a known network, and where it was."""

    state: dict[str, Tensor]
    """Name: tensor, as the network itself names it."""
    place: str
    """Keys and prefix under which it was; empty at the top."""
    note: str
    """What a user must be told of the choice; empty where there was none."""


def read_state(path: Path, network: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a state dictionary from `.safetensors`, or from a pickle with `weights_only=True`; see `find_state`.

    Args:
        path: the file.
        network: whose state it should be; `check_state` says afterwards whether it is.

    Raises:
        DistillDepthError: unreadable, or no state dictionary inside.
    """
    content, _ = read_weights(path)
    if network is not None:
        own = set(network.state_dict())
        # Half of its names or more: what is missing is said better by check_state.
        found = _find(content, path, lambda state: 2 * len(own & state.keys()) >= len(own))
        if found is not None:
            return found.state
    found = _find(content, path, None)
    assert found is not None, "any dictionary of tensors will do, and without one it has raised"
    return found.state


def find_state(content: Any, path: Path, known: Known) -> Found | None:
    """Find the state dictionary in what a checkpoint holds: in any nesting, under any prefix.

    Of several, moving averages go before plain weights, and both before those of a teacher.

    Args:
        content: what the file holds, nested dictionaries for most.
        path: where it was read from, for messages.
        known: says whether a state dictionary is one of the wanted network.

    Returns:
        What was found; None if none of it is known.

    Raises:
        DistillDepthError: no tensor at all; several of equal rank that differ; or one with something else than plain
            tensors of finite numbers.
    """
    return _find(content, path, known)


def unknown_network(content: Any, path: Path, files: str) -> DistillDepthError:
    """Return the error of a file in which no network was found.

    Args:
        content: what the file holds.
        path: where it was read from.
        files: whose files would have been read.

    Raises:
        DistillDepthError: what it holds is no state dictionary of plain tensors, whichever network's.
    """
    tables = list(_tables(content))
    if len(tables) == 1:
        _check_table(path, tables[0][1])
    return DistillDepthError(
        f"load_model: {path} is not a checkpoint of a known model; it holds {listed(content)}. A file must be one "
        f"of {files}, with the official names of its tensors; anything else is a folder with its config.json"
    )


def _find(content: Any, path: Path, known: Known | None) -> Found | None:
    """As `find_state`, but None if there is none; without `known` any will do, less what torch's wrappers add."""
    if not isinstance(content, dict):
        raise DistillDepthError(f"load_model: {path} holds no state dictionary, got {type(content).__name__}")
    tables = list(_tables(content))
    if not tables:
        held = f"; it holds {listed(content)}" if content else ""
        raise DistillDepthError(f"load_model: {path} holds no tensor{held}; save the weights, or download it again")
    if any(".lora_" in str(key) for _, table in tables for key in table):
        raise DistillDepthError(f"load_model: {path} {ADAPTER}")
    matches = [match for keys, table in tables for match in _matches(keys, table, known)]
    if not matches:
        if known is None:
            _check_table(path, tables[0][1])
        return None
    matches.sort(key=lambda match: match[0])
    (rank, place, chosen), others = matches[0], matches[1:]
    _check_table(path, chosen)
    rivals = [name for order, name, state in others if order == rank and not _same(state, chosen)]
    if rivals and known is not None:
        raise DistillDepthError(
            f"load_model: {path} holds several networks, and nothing says which is meant: "
            f"{', '.join(map(_quoted, [place, *rivals][:5]))}; save one of them alone"
        )
    note = ""
    if others and known is not None and len({order for order, *_ in matches}) > 1:
        why = "the moving average, " if rank == 0 else ""
        rest = ", ".join(_quoted(name) for order, name, _ in others[:4] if order != rank)
        note = f"{path}: {why}{_quoted(place)} was taken, and not {rest}; to use another, save it alone"
    elif known is not None and rank and (unread := _unread_average(content)):
        note = (
            f"{path}: {_quoted(place)} was taken; {shown(unread, 80)} looks like a moving average in a form that is "
            "not read; if it is what you want, save it alone under the network's own names"
        )
    # All are tensors, as was checked.
    state = {key: tensor for key, value in chosen.items() if (tensor := _tensor(value)) is not None}
    return Found(state, place, note)


def _unread_average(content: dict) -> str:
    """Keys that lead to what is named an average and holds tensors; empty if nothing does."""
    waiting: list[tuple[tuple[str, ...], Any, bool]] = [((), content, False)]
    seen: set[int] = set()
    while waiting:
        keys, item, averaged = waiting.pop()
        if averaged and _tensor(item) is not None:
            return "/".join(keys)
        if not isinstance(item, (dict, list, tuple)) or id(item) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(item))
        for key, value in item.items() if isinstance(item, dict) else enumerate(item):
            name = str(key)
            words = set(re.split(r"[^a-z0-9]+", name.lower()))
            # Not `exp_avg`, which is Adam's, of gradients; but averages lie in the states of callbacks and optimisers.
            is_one = bool(words & _AVERAGED) and not _NOT_WEIGHTS.search(name)
            waiting.append(((*keys, name), value, averaged or is_one))
    return ""


def _tables(content: Any) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every dictionary that holds tensors itself, with the keys that lead to it; outer ones first."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while waiting:
        keys, item = waiting.pop(0)
        if id(item) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            if any(_tensor(value) is not None for value in item.values()):
                yield keys, item
            children: Iterable[tuple[Any, Any]] = item.items()
        elif isinstance(item, (list, tuple)):
            children = enumerate(item)
        elif isinstance(item, Record):
            children = vars(item).items()
        else:
            continue
        waiting += [
            ((*keys, str(key)), value)
            for key, value in children
            if isinstance(value, (dict, list, tuple, Record)) and not _NOT_WEIGHTS.search(str(key))
        ]


def _matches(keys: tuple[str, ...], table: dict, known: Known | None) -> Iterator[tuple[int, str, dict]]:
    """Rank, place and entries of each wanted network in one dictionary."""
    named = {key: value for key, value in table.items() if isinstance(key, str)}
    if known is None:
        if len(named) < len(table):
            return
        yield _rank(keys, "", table), "/".join(keys), _unwrapped(named)
        return
    # What is no tensor and has a plain name is a counter or a setting beside the weights.
    entries = {key: value for key, value in named.items() if "." in key or _tensor(value) is not None}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in _without_wrappers({k: v for k, v in entries.items() if k not in _BOOKKEEPING}).items():
        parts = key.split(".", _DEEPEST)
        for depth in range(len(parts)):
            groups.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = value
    for prefix, state in groups.items():
        if known(state):
            yield _rank(keys, prefix, table), "/".join([*keys, f"{prefix}."] if prefix else keys), state


def _rank(keys: tuple[str, ...], prefix: str, table: dict) -> int:
    words = set(re.split(r"[^a-z0-9]+", ".".join([*keys, prefix]).lower()))
    if words & _AVERAGED or "n_averaged" in table:
        return 0
    return 2 if "teacher" in words else 1


def _without_wrappers(state: dict[str, Any]) -> dict[str, Any]:
    """Names without what torch's wrappers put into them, unless two would become one."""
    renamed = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS) or key: value for key, value in state.items()
    }
    return renamed if len(renamed) == len(state) else state


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The same for a network that is not known: only a prefix that every name has."""
    for prefix in _WRAPPERS * 2:
        if all(key.startswith(f"{prefix}.") for key in state):
            state = {key[len(prefix) + 1 :]: value for key, value in state.items()}
    return state


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        isinstance(a[key], Tensor) and isinstance(b[key], Tensor) and torch.equal(a[key], b[key]) for key in a
    )


def _quoted(place: str) -> str:
    return shown(place, 80) if place else "what lies at the top"


def listed(content: dict, most: int = 6) -> str:
    """Return what a dictionary holds, for a message: some keys, one level down into dictionaries."""

    def names(table: dict, count: int) -> str:
        more = f" and {len(table) - count} more" if len(table) > count else ""
        return ", ".join(shown(key) for key in list(table)[:count]) + more

    parts = []
    for key, value in list(content.items())[:most]:
        if isinstance(value, dict):
            parts.append(f"{shown(key)} ({names(value, 3) or 'empty'})")
        else:
            parts.append(shown(key))
    more = f" and {len(content) - most} more" if len(content) > most else ""
    return ", ".join(parts) + more


def _tensor(value: Any) -> Tensor | None:
    """The tensor that an entry is, or None."""
    if isinstance(value, NumpyArray):
        array = value.array
        if array is None or array.dtype.kind not in "biuf":
            return None
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return value.detach() if isinstance(value, Tensor) else None


def _check_table(path: Path, table: dict) -> None:
    for key, value in table.items():
        if not isinstance(key, str):
            raise DistillDepthError(
                f"load_model: {path} holds no state dictionary: its keys must be names, got {shown(key)}"
            )
        tensor = _tensor(value)
        check_tensor(path, key, value if tensor is None else tensor)


def check_tensor(path: Path, name: str, tensor: Any) -> None:
    """Raise a DistillDepthError unless this is a plain tensor of finite numbers that are all in the file."""
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


M = TypeVar("M", bound=nn.Module)


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
        raise DistillDepthError(f"load_model: {wrong}: {briefly(error)}") from error


MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
"""What building a network raises for a description that makes no sense."""


def briefly(error: Exception) -> str:
    """What was wrong, in one short line."""
    text = one_line(error, 160)
    return f"lacks {text}" if isinstance(error, KeyError) else text


def count_blocks(state: Mapping[str, Tensor], stages: str) -> list[int]:
    """Return how many blocks each of four stages has, by the numbers in the names of tensors.

    Args:
        state: by name.
        stages: pattern of what comes before a block's number, with `{}` for that of the stage.

    Raises:
        ValueError: more blocks than there are tensors.
    """
    depths = []
    for stage in range(4):
        pattern = re.compile(stages.format(stage) + r"(\d{1,6})\.")
        depths.append(1 + max((int(found[1]) for key in state if (found := pattern.match(key))), default=0))
    if sum(depths) > len(state):
        raise ValueError(f"blocks: the last ones have the numbers {depths}, with {len(state)} tensors in all")
    return depths
