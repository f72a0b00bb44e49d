"""Configuration as dataclasses: dotted keys, what TOML files and `key=value` texts set, and the file that is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distilldepth.errors import UsageError, did_you_mean, shown


@dataclass(frozen=True)
class _Limits:
    """The least and largest value of a number, and one that is allowed besides."""

    least: float | None
    most: float | None
    below: float | None
    besides: float | None

    def wanted_of(self, value: float) -> str:
        """Return what the value should be, empty if it is."""
        small = self.least is not None and value < self.least
        large = (self.most is not None and value > self.most) or (self.below is not None and value >= self.below)
        if value == self.besides or not (small or large):
            return ""
        if (self.least, self.most) == (0, 1):
            return "between 0 and 1" + (f", or {self.besides}" if self.besides is not None else "")
        if self.below is not None:
            return f"in [{self.least}, {self.below})"
        return f"at least {self.least}" if small else f"at most {self.most:g}"


def option(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    besides: float | None = None,
    choices: Iterable[str] = (),
    **more: Any,
) -> Any:
    """A field with its default and all that is known of it.

    Args:
        default: its value, and what its type is by.
        doc: the sentence that `--help` and the documentation print for it.
        least, most, below: bounds of a number.
        besides: a number outside the bounds that has a meaning of its own.
        choices: the texts that it may be; none for any.
        more: whatever else its section wants to know of it, as metadata of the field.
    """
    limits = _Limits(least, most, below, besides)
    metadata = {"doc": doc, "limits": limits, "choices": tuple(choices), **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _options(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every key, dotted, with its type and what `option` was told of it, in the order of definition."""
    hints: dict[str, Any] = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _options(hint, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, hint, item.metadata


def keys(cls: type) -> dict[str, tuple[Any, str]]:
    """Return every key, dotted, with its type and documentation, in the order of definition."""
    return {key: (hint, told["doc"]) for key, hint, told in _options(cls)}


def check(config: Any, command: str) -> None:
    """Raise UsageError naming the first key whose value makes no sense by itself."""
    known = [(key, hint, told, get_key(config, key)) for key, hint, told in _options(type(config))]
    for key, hint, _, value in known:
        if hint is float and not math.isfinite(value):
            raise UsageError(f"{command}: {key} must be a finite number, got {value}")
        for text in value if isinstance(value, list) else [value] if hint is str else []:
            # The configuration is kept as a file in UTF-8; a path may hold bytes that are no text at all.
            if text.encode("utf-8", "ignore").decode() != text or "\0" in text:
                raise UsageError(
                    f"{command}: {key} must be text in UTF-8, got {shown(text)}; rename the file or folder"
                )
    for key, hint, told, value in known:
        if hint in (int, float) and (wanted := told["limits"].wanted_of(value)):
            raise UsageError(f"{command}: {key} must be {wanted}, got {shown(value)}")
        if told["choices"] and value not in told["choices"]:
            raise UsageError(f"{command}: {key} must be one of {', '.join(told['choices'])}, got {value!r}")


def get_key(config: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def set_key(config: Any, key: str, value: Any, origin: str, command: str) -> None:
    """Set a dotted key (kebab-case is accepted), checking name and type.

    Args:
        config: a dataclass of options and of sections of options.
        key: for example `loss.gradient`.
        value: of the key's type, or its text.
        origin: where the value comes from, named in the error.
        command: the command that is configured, named in the error.

    Raises:
        UsageError: no such key, or a value of another type.
    """
    known = keys(type(config))
    key = key.replace("-", "_")
    if key not in known:
        by_tail = [name for name in known if name.rpartition(".")[2] == key]
        hint = did_you_mean(by_tail[0] if by_tail else key, known, otherwise="; see --print-config for the keys")
        raise UsageError(f"{command}: unknown key {shown(key)} in {origin}{hint}")
    section, _, name = key.rpartition(".")
    target = getattr(config, section) if section else config
    setattr(target, name, _convert(value, known[key][0], f"{command}: {key} in {origin}"))


def _convert(value: Any, hint: Any, what: str) -> Any:
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, "a list of texts")
    if isinstance(hint, types.GenericAlias):
        if isinstance(value, str):
            return [value]
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return list(value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
    elif hint is str:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
    elif not isinstance(value, bool):
        try:
            number = hint(value)
            if hint is float or isinstance(value, str) or value == number:
                return number + 0  # No negative zero.
        except (TypeError, ValueError, OverflowError):
            pass
    raise UsageError(f"{what} must be {wanted}, got {shown(value)}")


def apply(config: Any, values: dict[str, Any], origin: str, command: str) -> None:
    """Set all keys of nested dictionaries, as a TOML file gives them; see `set_key`."""
    for key, value in _flatten(values, type(config)).items():
        set_key(config, key, value, origin, command)


def _flatten(values: dict[str, Any], cls: type, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    sections = {name.rpartition(".")[0] for name in keys(cls)} - {""}
    for key, value in values.items():
        # An empty table that is no section is a mistake too, and set_key says so.
        if isinstance(value, dict) and (value or prefix + key in sections):
            flat.update(_flatten(value, cls, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def to_toml(config: Any, *, comments: bool = False) -> str:
    """Return the configuration as a TOML file that `apply` reads back; with comments, each key explained."""
    lines: list[str] = []
    section = ""
    for key, (_, doc) in keys(type(config)).items():
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        text = f"{name} = {_toml_value(get_key(config, key))}"
        lines.append(f"{text}  # {doc}" if comments else text)
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    # A JSON string or list of strings without \u escapes outside the basic plane is valid TOML, but for this control.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
