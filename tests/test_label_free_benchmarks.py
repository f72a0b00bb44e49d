"""`benchmarks/pointnet.py` and `benchmarks/label_free_losses.py`: what they train and measure is what they say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distilldepth.models.pointnet import PointNet, _Layer

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The functions of `pointnet.py`, with three kinds of objects and few of each; threads stay as they are."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    names = runpy.run_path(str(FOLDER / "pointnet.py"))
    shared = names["train"].__globals__
    shared["KINDS"] = {name: shared["KINDS"][name] for name in ("car", "mug", "rock")}
    shared["HELD_OUT"], shared["BATCH"] = 2, 6
    return shared


def test_a_cloud_is_what_a_camera_sees_of_one_side(script):
    cloud = script["cloud"]("car", 3)
    assert cloud.shape == (script["POINTS"], 3)
    assert cloud.dtype == np.float32
    assert np.abs(cloud.mean(0)).max() < 1e-5
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, rel=1e-5)
    assert np.array_equal(cloud, script["cloud"]("car", 3))
    assert not np.array_equal(cloud, script["cloud"]("car", 4))
    # A car is wider than high, and a cloud of one side holds no two points on one ray.
    assert np.ptp(cloud[:, 0]) > np.ptp(cloud[:, 1])
    placed = script["placed"](torch.from_numpy(cloud)[None].repeat(50, 1, 1), torch.Generator().manual_seed(1))
    assert (placed[..., 2].mean(1) > 0.59).all()
    assert (placed[..., 2].mean(1) < 2.01).all()
    assert 0.1 < float((placed[:, 1, 0] - placed[:, 0, 0] > 0).float().mean()) < 0.9, "mirrored or not"


def test_training_goes_on_where_it_was_killed(script, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    script["train"](whole, 6, 2, 24)
    cut.mkdir()
    for file in whole.glob("*.npy"):
        (cut / file.name).write_bytes(file.read_bytes())
    save, saved = torch.save, []

    def killed(state, path):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(state, path)

    script["torch"].save = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            script["train"](cut, 6, 2, 24)
    finally:
        script["torch"].save = save
    script["train"](cut, 6, 2, 24)
    assert (cut / "pointnet.safetensors").read_bytes() == (whole / "pointnet.safetensors").read_bytes()
    rows = [json.loads((folder / "training.json").read_text()) for folder in (whole, cut)]
    assert rows[0]["loss"] == rows[1]["loss"]
    assert rows[0]["kinds"] == 3
    with pytest.raises(SystemExit, match="choose another folder"):
        script["train"](cut, 6, 3, 24)
    assert "epoch 2/2" in capsys.readouterr().out


def test_what_comes_out_is_the_network_that_was_trained_at_the_size_of_the_random_one(script, tmp_path):
    torch.manual_seed(3)
    network = PointNet()
    for layer in network.modules():
        if isinstance(layer, _Layer):
            layer.norm.running_mean.normal_(std=0.1)
            layer.norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.norm.bias, std=0.1)
    torch.nn.init.normal_(network.feature_transform.last.weight, std=0.003)
    points = torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(1)) + 0.3
    before, summary = network(points), network.summary(points)
    script["finish"](tmp_path, network, {}, [{"held_out_accuracy": 0.5, "cpu_s": 1.0}])
    read = script["read_network"](tmp_path / "pointnet.safetensors")
    after = read(points)
    ratio = float(after.norm() / before.norm())
    torch.testing.assert_close(after / ratio, before, rtol=0.01, atol=0.01 * float(before.std()))
    torch.testing.assert_close(read.summary(points), summary, rtol=0.01, atol=0.01 * float(summary.std()))
    assert script["spread"](read) == pytest.approx(script["spread"](PointNet()), rel=0.02)


def test_what_features_ask_for_is_held_against_what_is_wanted(script, tmp_path):
    script["finish"](tmp_path, PointNet(2), {}, [{"held_out_accuracy": 0.5, "cpu_s": 1.0}])
    script["gradients"](tmp_path, 2, tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["of"] for row in rows] == ["position", "random", "random-1", "trained"] * len(script["DISTURBED"])
    assert all(row["value"] > 0 and row["norm"] > 0 and -1 <= row["cosine"] <= 1 for row in rows)
    # A step against the gradient of the points brings a map that is little disturbed nearer to the teacher's.
    assert rows[0]["cosine"] > 0.1
    values = [[row["value"] for row in rows if row["of"] == name] for name in ("position", "random")]
    assert all(each == sorted(each) for each in values), "more disturbed is farther"


def test_the_losses_are_measured_beside_a_step(monkeypatch, tmp_path, capsys):
    names = runpy.run_path(str(FOLDER / "label_free_losses.py"))
    out = tmp_path / "out.json"
    small = ["--set", "size=64", "--set", "batch_size=2", "--set", "student=topformer-base", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["label_free_losses.py", *small, "--json", str(out)])
    monkeypatch.setitem(names["main"].__globals__, "memory_in_another_process", lambda name, settings: 1000)
    monkeypatch.setitem(names["main"].__globals__, "keep_freed_memory", lambda: None)
    names["main"]()
    rows = json.loads(out.read_text())["results"]
    assert [row["what"] for row in rows] == ["step", *names["LOSSES"]]
    assert all(row["median_ms"] > 0 and row["calls"] == (1 if row["what"] == "step" else 3) for row in rows)
    assert rows[0]["share_of_step"] == rows[0]["cpu_share_of_step"] == 1
    assert [row["peak_bytes"] for row in rows] == [None, *[1000] * 5]
    assert "| geometric |" in capsys.readouterr().out


def test_the_committed_numbers_keep_the_bounds():
    found = json.loads((FOLDER / "results" / "label-free-losses.json").read_text())
    assert found["metadata"]["size"] == [448, 448]
    assert found["metadata"]["batch_size"] == 8
    for row in found["results"][1:]:
        assert row["cpu_share_of_step"] < 0.1
        assert row["peak_bytes"] < 200e6


def test_a_comparison_by_distillation_runs_to_its_end(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(script["run_one"].__globals__, "SCORED", "scenes:2")
    (tmp_path / "training.json").write_text("{}")
    script["compare"](tmp_path, ["none"], 1, 1, tmp_path / "found.json")
    assert "| none | " in capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert (cell["cell"], len(cell["seeds"])) == ("none", 1)
    assert 0 < cell["mean"]["delta1"] < 1
    assert -1 < cell["mean"]["correlation"] < 1
