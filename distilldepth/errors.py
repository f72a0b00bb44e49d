"""Errors that a user can act on, and the nearest-name hint that they share."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Set

_AS_NEAR = 0.05
"""Difference in likeness below which two choices are equally good guesses."""


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


def one_line(message: object, limit: int | None = None) -> str:
    """Return what an error or another message says on one line of so many characters; the name of its type if nothing.

    >>> one_line(ValueError("first\\n  second")), one_line(KeyError())
    ('first second', 'KeyError')
    """
    return " ".join(str(message).split())[:limit] or type(message).__name__


def first_line(message: object, limit: int | None = None) -> str:
    """Return the first line of what a library says; the others, where in its code that was, are not for users."""
    return str(message).strip().partition("\n")[0][:limit]


def refuse_url(path: str | os.PathLike) -> None:
    """Raise UsageError if what should be a path is a URL, of whatever kind.

    >>> refuse_url("photos/a.jpg")
    >>> refuse_url("https://a.org/b.jpg")
    Traceback (most recent call last):
    distilldepth.errors.UsageError: https://a.org/b.jpg: URLs are not supported; download it first, and name the file
    """
    text = os.fsdecode(path)
    # A path object has made one slash of two.
    if re.match(r"[a-z][a-z0-9+.-]+://|(https?|ftp|s3|gs|hf|file):/|data:\w+/", text, re.IGNORECASE):
        text = re.sub(r"^(\w+):/(?!/)", r"\1://", text)
        raise UsageError(f"{shown(text, 200)[1:-1]}: URLs are not supported; download it first, and name the file")


def did_you_mean(name: str, choices: Iterable[str], *, otherwise: str | None = None, cutoff: float = 0.5) -> str:
    """Return `"; did you mean 'x'?"` for the choice nearest to `name`, or for several that are as near.

    Args:
        name: what was typed; upper and lower case are not told apart.
        choices: what could have been meant.
        otherwise: what to say if nothing is near; None lists the choices.
        cutoff: how near is near, from 0 (anything) to 1 (the same letters).

    >>> did_you_mean("dav3", ["dav2", "genpercept"])
    "; did you mean 'dav2'?"
    >>> did_you_mean("x", ["dav2", "genpercept"])
    '; choose from dav2, genpercept'
    """
    choices = sorted(choices) if isinstance(choices, Set) else list(choices)
    folded = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=cutoff)
    likeness = [difflib.SequenceMatcher(None, choice, name.lower()).ratio() for choice in near]
    near = [folded[choice] for choice, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - _AS_NEAR]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; choose from {', '.join(choices)}" if otherwise is None else otherwise
