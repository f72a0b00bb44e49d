"""Packages whose names are imported at first use, so that the command line can read names without importing torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    Args:
        package: its dotted name.
        names: what it offers, with the module that has it; the module itself where the two end alike.

    Returns:
        `__getattr__`, which raises AttributeError for any other name, and `__dir__`.

    >>> get, names = lazy_names("example", {"pi": "math"})
    >>> get("pi"), names()
    (3.141592653589793, ['pi'])
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(names[name]), name)

    return get, lambda: sorted(names)
