"""Configuration as dataclasses: dotted keys, what TOML files and `key=value` texts set, and the file that is kept."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import field
from typing import Any

from distilldepth.errors import UsageError, did_you_mean, shown


def option(default: Any, doc: str) -> Any:
    """A field with its default and the sentence that `--help` and the documentation print for it."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def keys(cls: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Return every key, dotted, with its type and documentation, in the order of definition."""
    hints = typing.get_type_hints(cls)
    found: dict[str, tuple[Any, str]] = {}
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            found.update(keys(hint, f"{prefix}{item.name}."))
        else:
            found[prefix + item.name] = (hint, item.metadata["doc"])
    return found


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
