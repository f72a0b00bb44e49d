"""Tables of text that fit the width they are shown at: words stay whole, what has no room goes below its row."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_GAP = 2
_INDENT = 4
_GLUE = "\N{NO-BREAK SPACE}"
_NARROWEST = 40
"""Width below which nothing is laid out any more."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    right: bool = False
    """Whether its cells end at the same place, as numbers do; such cells are never wrapped."""
    least: int = 24
    """Characters down to which its cells may be wrapped; narrower is no longer pleasant to read."""


def available_width() -> int | None:
    """Characters per line of standard output; None where nothing limits them, as in a pipe or a file.

    COLUMNS counts wherever the output goes.
    """
    told = os.environ.get("COLUMNS", "")[:6]
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def format_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table as lines, the headings first.

    Every word stays whole, so that it can be typed or copied as it stands. Sentences are wrapped at spaces; columns
    that have no room are told below their row, from the last on; a column without any entry is left out. Without a
    width every row has every column, `-` where there is nothing, at least two spaces apart.

    Args:
        columns: in the order of their importance.
        rows: one text per column.
        width: characters per line; None = one line per row, however long.

    Returns:
        Lines without spaces at the end. Only a first column or a single word longer than `width` exceeds it.

    >>> format_table([Column("name"), Column("size", right=True)], [["dav2", "7"], ["light-mini", "12"]], None)
    ['name        size', 'dav2           7', 'light-mini    12']
    """
    return [line for block in format_rows(columns, rows, width) for line in block]


def format_rows(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """Return what `format_table` does as one list of lines for the headings and one for each row."""
    if width is None:
        rows = [[column.heading for column in columns], *([text or "-" for text in row] for row in rows)]
        natural = [max(len(row[place]) for row in rows) for place in range(len(columns))]
        return [_row(columns, natural, row) for row in rows]
    used = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    columns, rows = [columns[place] for place in used], [[row[place] for place in used] for row in rows]
    cells = [[column.heading, *(row[place] for row in rows)] for place, column in enumerate(columns)]
    natural = [max(map(len, texts)) for texts in cells]
    width = max(width, _NARROWEST)
    least = [_least(*column) for column in zip(columns, cells, natural, strict=True)]
    shown = len(columns)
    while shown > 1 and _total(least[:shown]) > width:
        shown -= 1
    widths = _share_out(natural[:shown], least[:shown], width)
    headings = _row(columns[:shown], widths, [column.heading for column in columns[:shown]])
    blocks = [_row(columns[:shown], widths, row[:shown]) + _below(columns[shown:], row[shown:], width) for row in rows]
    return [headings, *blocks]


def format_facts(facts: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Return names and what is said of them, side by side, the latter wrapped at spaces.

    >>> format_facts([("torch", "2.13"), ("processor", "one of the fast ones")], 40)
    ['torch      2.13', 'processor  one of the fast ones']
    """
    left = max((len(name) for name, _ in facts), default=0)
    columns, widths = [Column(""), Column("")], [left, max((len(text) for _, text in facts), default=1)]
    if width is not None:
        widths[1] = max(width, _NARROWEST) - left - _GAP
    return [line for name, text in facts for line in _row(columns, widths, [name, text])]


def _below(columns: Sequence[Column], texts: Sequence[str], width: int) -> list[str]:
    parts = []
    for column, text in zip(columns, texts, strict=True):
        if text:
            word = text.split()[0]
            # A heading stays on the line of its first word, unless that alone fills one.
            fits = _INDENT + len(column.heading) + len(word) + 3 <= width
            parts.append(f"{column.heading}:{_GLUE if fits else ' '}{text}")
    return [line.replace(_GLUE, " ") for line in _wrap("; ".join(parts), width, _INDENT)]


def _least(column: Column, texts: Sequence[str], natural: int) -> int:
    if column.right:
        # Numbers stay whole, with their units; headings of several words may be wrapped.
        return max(*(len(text) for text in texts[1:]), *(len(word) for word in texts[0].split()), 0)
    return max(min(column.least, natural), *(len(word) for text in texts for word in text.split()), 0)


def _total(widths: Iterable[int]) -> int:
    widths = list(widths)
    return sum(widths) + _GAP * (len(widths) - 1)


def _share_out(natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths between least and natural that fill `width`: room is taken from the widest column first."""
    widths = list(natural)
    while _total(widths) > width:
        place = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__, default=None)
        if place is None:
            break
        widths[place] -= 1
    return widths


def _row(columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str]) -> list[str]:
    cells = [_wrap(text, size) or [""] for text, size in zip(texts, widths, strict=True)]
    lines = []
    for index in range(max(map(len, cells))):
        parts = [cell[index] if index < len(cell) else "" for cell in cells]
        padded = [
            part.rjust(size) if column.right else part.ljust(size)
            for column, part, size in zip(columns, parts, widths, strict=True)
        ]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, indent + 1, 1),
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
