"""Tables for the terminal: words stay whole at every width, pipes get one line per row."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from distilldepth.cli.list import KINDS
from distilldepth.cli.main import cli
from distilldepth.cli.table import Column, format_table

COLUMNS = [Column("name"), Column("size", right=True), Column("what it is for"), Column("where")]
ROWS = [
    ["alpha", "7", "one sentence that is long enough to be wrapped somewhere", "https://example.org/a/long/address"],
    ["beta-with-a-name", "1200", "short", ""],
]


@pytest.mark.parametrize("width", [None, 20, 40, 60, 80, 100, 120, 200])
def test_no_word_is_broken_and_no_line_too_long(width):
    lines = format_table(COLUMNS, ROWS, width)
    words = {word.rstrip(";") for line in lines for word in line.split()}
    for row in ROWS:
        for text in row:
            assert set(text.split()) <= words
    if width is not None:
        assert all(len(line) <= max(width, 40) or len(line.split()) == 1 for line in lines)


def test_what_has_no_room_is_told_below_and_numbers_end_at_the_same_place():
    wide, narrow = format_table(COLUMNS, ROWS, 200), format_table(COLUMNS, ROWS, 40)
    assert len(wide) == 3
    assert wide[1].index("7") == wide[2].index("1200") + 3
    assert narrow[0].split() == ["name", "size"]
    assert "    what it is for: one sentence" in "\n".join(narrow)


def test_without_a_width_every_row_has_every_column():
    lines = format_table(COLUMNS, ROWS, None)
    assert len(lines) == 3
    assert lines[2].split() == ["beta-with-a-name", "1200", "short", "-"]
    assert format_table(COLUMNS, [["a", "1", "b", ""]], 80)[0].split() == ["name", "size", "what", "it", "is", "for"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_fits_the_width_that_columns_says(monkeypatch, kind):
    rows = json.loads(CliRunner().invoke(cli, ["list", kind, "--json", "-"]).stdout)
    first = next(iter(rows[0]))
    for width in (60, 80, 100, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        result = CliRunner().invoke(cli, ["list", kind])
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
        assert [line.split()[0] for line in lines if line[:1].strip()][1:] == [str(row[first]) for row in rows]
    monkeypatch.delenv("COLUMNS")
    lines = CliRunner().invoke(cli, ["list", kind]).stdout.splitlines()
    assert len(lines) == 1 + len(rows)


def test_a_width_that_is_no_number_is_as_none(monkeypatch):
    monkeypatch.setenv("COLUMNS", "wide")
    assert CliRunner().invoke(cli, ["list", "protocols"]).exit_code == 0
