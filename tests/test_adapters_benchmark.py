"""`benchmarks/adapters.py`: it measures every form, and the committed numbers keep the bounds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from distilldepth.words import ADAPTERS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_form_is_measured(monkeypatch, tmp_path, capsys):
    names = runpy.run_path(str(FOLDER / "adapters.py"))
    out = tmp_path / "out.json"
    small = ["--batch", "1", "--size", "64x96", "--share", "16", "--rounds", "1"]
    small += ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["adapters.py", *small, "--json", str(out)])
    in_another, asked = names["memory_in_another_process"], []

    def memory(form, options):
        asked.append(form)
        return in_another(form, options) if form == "window" else 1000  # One of them as it is, which takes a while.

    monkeypatch.setitem(names["main"].__globals__, "memory_in_another_process", memory)
    monkeypatch.setitem(names["main"].__globals__, "keep_freed_memory", lambda: None)
    names["main"]()
    assert asked == list(ADAPTERS)
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [row["form"] for row in found["results"]] == list(ADAPTERS)
    assert all(row["cpu_median_s"] >= 0 and row["calls"] == 1 and row["peak_bytes"] > 0 for row in found["results"])
    assert all(f"| {form} |" in shown for form in ADAPTERS)
    assert found["metadata"]["widths"]["decoder-1/4"] == 8
    assert found["metadata"]["size"] == [64, 96]


@pytest.mark.parametrize("form", ["window", "reduced"])
def test_the_committed_numbers_keep_the_bound(form):
    found = json.loads((FOLDER / "results" / "adapters.json").read_text())
    assert (found["metadata"]["size"], found["metadata"]["batch_size"]) == ([352, 1120], 4)
    rows = {row["form"]: row for row in found["results"]}
    assert 0 < rows[form]["extra_bytes"] < 1_000_000_000
