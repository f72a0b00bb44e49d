"""Errors that a user can act on, and the nearest-name hint that they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillDepthError(Exception):
    """A failure the user can act on; its message is one line: what, where, what to do."""


class UsageError(ValueError):
    """What was asked for makes no sense, whatever the files hold: the command line ends with 2 instead of 1."""


def shown(value: object, limit: int = 60) -> str:
    """Return a value as a message shows it: what was typed, but not hundreds of digits of it.

    >>> shown("12x"), shown("1" * 500, 10)
    ("'12x'", "'11111...'")
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the choice nearest to `name`, or the list of choices if none is near.

    >>> did_you_mean("dav3", ["dav2", "genpercept"])
    "; did you mean 'dav2'?"
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(choices)}"
