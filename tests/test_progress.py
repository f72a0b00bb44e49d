"""The bar of a training run: loss terms beside it at any width, and short lines in a log."""

from __future__ import annotations

import io
import re

import pytest
from tqdm import tqdm

from distilldepth.distill import progress

TERMS = {"anchor": 0.0123, "feature": 0.9, "gradient": 0.5, "local_global": 0.1234, "shared_context": 1.43}
SHARES = {"data": 0.01, "teacher": 0.62, "student": 0.3, "loss": 0.04, "optimiser": 0.03}


def drawn(columns: int, total: int = 20_000) -> str:
    text = progress.bar_format(total, TERMS, SHARES, columns)
    bar = tqdm(total=total, initial=1234, unit="step", file=io.StringIO(), ncols=columns, bar_format=text)
    line = tqdm.format_meter(**{**bar.format_dict, "n": 1300, "elapsed": 30.0, "ncols": columns - 1})
    bar.close()
    return line


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140, 200])
def test_the_bar_fits_and_shows_whole_terms(columns):
    line = drawn(columns)
    assert len(line) < columns
    assert "1300/20000" in line
    assert "left" in line
    numbers = re.findall(r"(?:shared|local|gradient|feature|anchor) (\S+)", line)
    assert all(re.fullmatch(r"\d\.\d{3}", number) for number in numbers)
    assert len(numbers) == {40: 0, 60: 1, 80: 2, 100: 4}.get(columns, 5)


def test_speed_and_times_follow_where_there_is_room():
    assert "step/s" in drawn(140)
    assert "teacher 62%" in drawn(200)
    assert "teacher" not in drawn(100)


def test_numbers_that_are_not_finite_or_large_are_shown():
    assert progress._losses({"anchor": float("nan"), "shared_context": 12345.6}) == ["shared 1.23e+04", "anchor nan"]


def test_a_line_of_a_log_is_short(capsys):
    line = progress.ProgressLine(20_000, 0, enabled=True)
    line.advance()
    line.report(20, TERMS, SHARES)
    line.close()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("step 20/20000  ")
    assert said.endswith("shared 1.430 local 0.123 gradient 0.500 feature 0.900 anchor 0.012")
    assert len(said) <= 120


def test_the_bar_is_drawn_at_every_step_and_takes_the_terms_of_the_last_report(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "_columns", lambda: 100)
    line = progress.ProgressLine(10, 0, enabled=True)
    line._bar.mininterval = 0
    for step in range(10):
        line.advance()
        if step == 4:
            line.report(5, TERMS, SHARES)
        assert f"{step + 1}/10" in terminal.getvalue()
    line.write("a message")
    line.close()
    after = terminal.getvalue().rpartition(" 9/10")[2]
    assert "shared 1.430" in after
    assert "a message" in terminal.getvalue()
