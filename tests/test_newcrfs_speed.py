"""`benchmarks/newcrfs_speed.py`: alone, beside a folder that stands for the official code, and its committed JSON."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from test_newcrfs import SMALL, official_state

FOLDER = Path(__file__).parents[1] / "benchmarks"
OFFICIAL = """
from pathlib import Path
import torch
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.newcrfs import build, convert_official, infer_architecture


class NewCRFDepth(torch.nn.Module):
    def __init__(self, version, max_depth):
        super().__init__()
        assert (version, max_depth) == ("tiny07", 80)
        self.official = torch.load(Path(__file__).with_name("state.pt"), weights_only=True)
        state, _ = convert_official(self.official)
        self.network = build(infer_architecture(state, max_depth), ModelInfo("n", "newcrfs", "metric_depth", "", ""))
        self.network.load_state_dict(state)

    def state_dict(self):
        return self.official

    def forward(self, pixels):
        mean, deviation = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return FACTOR * self.network(pixels * deviation + mean).values[:, None]
"""


@pytest.fixture
def script(monkeypatch):
    """The functions of the script; threads and the allocator stay as they are, and no other process is started."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    names = runpy.run_path(str(FOLDER / "newcrfs_speed.py"))
    shared = names["main"].__globals__
    shared["keep_freed_memory"] = lambda: None
    shared["memory_in_another_process"] = lambda case, name, options: {"ours": 1000, "official": 4000}[name]
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield shared
    for name in ("networks", "networks.NewCRFDepth"):
        sys.modules.pop(name, None)


def run(script, monkeypatch, tmp_path, *arguments):
    out = tmp_path / "out.json"
    small = ["--size", "64x96", "--pairs", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["newcrfs_speed.py", *arguments, *small])
    script["main"]()
    return json.loads(out.read_text())


def test_alone(script, monkeypatch, tmp_path, capsys):
    found = run(script, monkeypatch, tmp_path, "--case", "micro:inference", "--case", "micro:training")
    assert [(row["case"], row["network"]) for row in found["results"]] == [
        ("micro:inference", "ours"),
        ("micro:training", "ours"),
    ]
    assert all(row["cpu_median_s"] > 0 and row["calls"] == 2 and "ratio" not in row for row in found["results"])
    assert found["metadata"]["size"] == [64, 96]
    assert "| micro:training | ours |" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "difference"), [(1, 0), (2, None)])
def test_beside_another(script, monkeypatch, tmp_path, capsys, factor, difference):
    networks = tmp_path / "theirs" / "networks"
    networks.mkdir(parents=True)
    (networks / "NewCRFDepth.py").write_text(OFFICIAL.replace("FACTOR", str(factor)))
    torch.save(official_state(SMALL), networks / "state.pt")
    found = run(script, monkeypatch, tmp_path, "--case", "tiny:inference", "--official", str(tmp_path / "theirs"))
    ours, theirs = found["results"]
    assert (ours["network"], theirs["network"]) == ("ours", "official")
    assert ours["memory_ratio"] == 0.25
    assert ours["ratio"] > 0
    if difference is None:
        assert ours["difference"] > 0.5, "half as far at least is another map"
    else:
        assert ours["difference"] == pytest.approx(difference, abs=1e-4)
    assert "| tiny:inference | official |" in capsys.readouterr().out
    assert str(tmp_path / "theirs") not in sys.path


def test_memory_and_gradients(script):
    images = script["random_images"](2, (64, 64))
    ((name, model, predict),) = script["networks"]("micro", None, ["ours", "official"])
    assert name == "ours"
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient.isfinite().all()))
    script["make_call"]("inference", model, predict, images)()
    assert not seen
    assert not model.training
    script["make_call"]("training", model, predict, images)()
    assert len(seen) == len(list(model.parameters()))
    assert all(seen)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert script["measure_memory"]("micro:training", "ours", None, images) >= 0


def test_a_folder_without_it_is_one_line(script, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path, "--official", str(tmp_path))
    assert "must hold networks/NewCRFDepth.py" in capsys.readouterr().err


def test_committed_numbers_keep_the_bounds():
    found = json.loads((FOLDER / "results" / "newcrfs-speed.json").read_text())
    assert found["metadata"]["size"] == [352, 1120]
    ours = {row["case"]: row for row in found["results"] if row["network"] == "ours"}
    assert ours.keys() == {"large:inference", "tiny:inference", "tiny:training"}
    for row in ours.values():
        assert row["calls"] >= 5
        assert row["ratio"] < 1
        assert row["memory_ratio"] < 1
        assert row["difference"] < 1e-4
