"""What the numbers of a model's description may be: checked before anything is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from distilldepth.errors import did_you_mean, shown

Check = Callable[[str, Any], None]
"""Told the name and the value of an entry; raises ValueError if it makes no sense."""

WIDEST = 16384
"""Channels of a layer."""
DEEPEST = 512
"""Layers, blocks or heads."""
_LARGEST = 100_000
_COUNTS = re.compile(r"layers|depths?$|heads$|blocks$|stages$|repeats?$")
_VOCABULARY = re.compile(r"vocab_size$|token_id$")


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, got {shown(value)}")

    return check


def number(low: float, high: float) -> Check:
    """A number from `low` to `high`."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}")

    return check


def word(*choices: Any) -> Check:
    """One of a few values, of the same type."""

    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {shown(value)}")

    return check


def text(least: int, most: int) -> Check:
    """A text of `least` to `most` characters."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise ValueError(f"{name} must be a text of {least} to {most} characters, got {shown(value)}")

    return check


flag: Check = word(True, False)
"""True or False."""


def listed(item: Check, least: int, most: int) -> Check:
    """A list of `least` to `most` entries."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            count = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"{name} must be a list of {count} entries, got {shown(value)}")
        for place, entry in enumerate(value):
            item(f"{name}[{place}]", entry)

    return check


def optional(item: Check) -> Check:
    """None, or what `item` says."""
    return lambda name, value: None if value is None else item(name, value)


def config(name: str, value: Any) -> None:
    """A configuration of transformers or diffusers: no number in it is beyond what any depth network has."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, got {shown(value)}")
    for key, entry in value.items():
        _check_entry(f"{name}.{key}", str(key), entry)


def _check_entry(name: str, key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        config(name, value)
    elif isinstance(value, (list, tuple)):
        if len(value) > 4 * DEEPEST:
            raise ValueError(f"{name} must have at most {4 * DEEPEST} entries, got {len(value)}")
        for entry in value:
            _check_entry(name, key, entry)
    elif isinstance(value, float):
        if not math.isfinite(value) or abs(value) > 1e9:
            raise ValueError(f"{name} must be a finite number of at most 1e9, got {value}")
        if _COUNTS.search(key) and abs(value) > DEEPEST:
            raise ValueError(f"{name} must be at most {DEEPEST}, got {value}")
    elif isinstance(value, int) and not isinstance(value, bool):
        low, high = (0, DEEPEST) if _COUNTS.search(key) else (-_LARGEST, _LARGEST)
        if _VOCABULARY.search(key):
            low, high = -1, 10 * _LARGEST
        whole(low, high)(name, value)


def full_architecture(
    kind: str, architecture: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]], known: Collection[str]
) -> dict[str, Any]:
    """Return every argument of a network of which a variant may have been named, in place of some or all.

    Args:
        kind: what the network is called in messages.
        architecture: arguments, which go before those of the `variant` that may be among them.
        variants: arguments by variant.
        known: names of all arguments.

    Raises:
        ValueError: unknown variant or argument, or an argument is missing.
    """
    arguments = dict(architecture)
    variant = arguments.pop("variant", None)
    if variant is not None:
        if variant not in variants:
            raise ValueError(f"build: unknown {kind} variant {variant!r}{did_you_mean(variant, variants)}")
        arguments = {**variants[variant], **arguments}
    for name in arguments:
        if name not in known:
            raise ValueError(f"build: unknown {kind} argument {name!r}{did_you_mean(name, known)}")
    if missing := [name for name in known if name not in arguments]:
        raise ValueError(f"build: {kind} needs {', '.join(missing)}; give them, or a variant")
    return arguments


def check_architecture(
    rules: Mapping[str, Check], architecture: Any, *, may_lack: frozenset[str] = frozenset()
) -> None:
    """Raise ValueError, with the name of the entry, unless every entry of a description is known and makes sense.

    Args:
        rules: check of each entry.
        architecture: what the file says; with a `variant`, all other entries may be missing.
        may_lack: entries that may be missing anyway.
    """
    if not isinstance(architecture, Mapping):
        raise ValueError(f"architecture must be an object, got {shown(architecture)}")
    lacking = [key for key in rules if key not in architecture and key not in may_lack]
    if lacking and "variant" not in architecture:
        raise ValueError(f"architecture lacks {', '.join(lacking)}")
    for key, value in architecture.items():
        if key == "variant":
            if not isinstance(value, str):
                raise ValueError(f"architecture.variant must be text, got {shown(value)}")
        elif key not in rules:
            raise ValueError(f"architecture has an unknown entry {shown(key)}")
        else:
            rules[key](f"architecture.{key}", value)
