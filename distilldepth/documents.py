"""JSON and TOML that somebody else may have written: bounded before they are parsed, one error for all that is wrong.

Every file of this package's own formats is read through here, so that a damaged or hostile one ends in one line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from distilldepth.errors import DistillDepthError, refuse_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 64 << 20
"""Size of a document; those that this package writes are far smaller."""
MAX_DEPTH = 64
"""Levels of nesting."""
_LARGEST = 1 << 63
"""Whole numbers beyond 64 bits fit into no tensor and no array."""


class Record(Mapping[str, Any]):
    """Base of dataclasses that are written to JSON. One also reads like the dictionary it becomes: `row["name"]`."""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON: the fields in their order."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def read_json(path: Path, *, remedy: str = "", limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        remedy: what the user should do if it is damaged, for the end of the message.
        limit: largest size in bytes.

    Raises:
        DistillDepthError: missing, unreadable, too large, no JSON, or no object.
    """
    return _object(parse_json(_read(path, remedy, limit), str(path), remedy=remedy), str(path), remedy)


def read_json_lines(path: Path, *, remedy: str = "", limit: int = 1 << 30) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; a last line without a line break, cut off by a kill, is left out.

    Raises:
        DistillDepthError: as `read_json`, with the number of the line.
    """
    lines = _read(path, remedy, limit).split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        name = f"{path}:{number}"
        rows.append(_object(parse_json(line, name, remedy=remedy), name, remedy))
    return rows


def parse_json(text: bytes | str, name: str, *, remedy: str = "") -> Any:
    """Return what a JSON text holds.

    Args:
        text: UTF-8 if bytes.
        name: where it is from, for the message.
        remedy: what the user should do, for the end of the message.

    Raises:
        DistillDepthError: no JSON, nested deeper than `MAX_DEPTH`, or a whole number beyond 64 bits.
    """
    return _parse(json.loads, text, name, "JSON", remedy)


def read_toml(path: Path, *, remedy: str = "", limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DistillDepthError: missing, unreadable, too large, or no TOML within the bounds of `parse_json`.
    """
    return parse_toml(_read(path, remedy, limit), str(path), remedy=remedy)


def read_text(path: Path, *, remedy: str = "", limit: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        DistillDepthError: missing, no regular file, unreadable, too large, or no UTF-8.
    """
    try:
        return _read(path, remedy, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        _fail(str(path), "is not a text file in UTF-8", remedy)


def parse_toml(text: bytes | str, name: str, *, remedy: str = "") -> dict[str, Any]:
    """Return what a TOML text holds; arguments and errors as `parse_json`."""
    return _parse(tomllib.loads, text, name, "TOML", remedy)


def _read(path: Path, remedy: str, limit: int) -> bytes:
    refuse_url(path)
    try:
        if path.exists() and not path.is_file():
            _fail(str(path), "is not a file", remedy)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        _fail(str(path), "no such file", remedy)
    except OSError as error:
        _fail(str(path), f"cannot be read ({error.strerror or error})", remedy)
    if len(data) > limit:
        _fail(str(path), f"has more than {limit} bytes", remedy)
    return data


def _parse(load: Callable[[str], Any], text: bytes | str, name: str, language: str, remedy: str) -> Any:
    try:
        value = load(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError:
        _fail(name, f"is not a {language} file: not text in UTF-8", remedy)
    except RecursionError:
        _fail(name, f"is nested deeper than {MAX_DEPTH} levels", remedy)
    except ValueError as error:
        # The parser's own words say where; Python's on numbers of thousands of digits speak to programmers.
        why = "a number has too many digits" if "int_max_str_digits" in str(error) else error
        _fail(name, f"is not a {language} file: {why}", remedy)
    _check_bounds(value, name, remedy)
    return value


def _check_bounds(value: Any, name: str, remedy: str) -> None:
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            _fail(name, f"is nested deeper than {MAX_DEPTH} levels", remedy)
        if isinstance(item, dict):
            waiting += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            waiting += [(child, depth + 1) for child in item]
        elif isinstance(item, int) and not -_LARGEST <= item < _LARGEST:
            _fail(name, "a whole number is beyond 64 bits", remedy)


def _object(value: Any, name: str, remedy: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(name, f"must hold a JSON object, got {type(value).__name__}", remedy)
    return value


def _fail(name: str, what: str, remedy: str) -> NoReturn:
    raise DistillDepthError(f"{name}: {what}" + (f"; {remedy}" if remedy else "")) from None
