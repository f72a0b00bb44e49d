"""`benchmarks/completion.py`: tables of models, baselines and patterns, and their paired intervals."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distilldepth import save_model
from distilldepth.evaluate import read_evaluation
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.completion import VARIANTS, build

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> dict:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "completion.py"), run_name="completion")


@pytest.fixture
def network(tmp_path) -> Path:
    torch.manual_seed(0)
    architecture = {**VARIANTS["mini"], "widths": [4 for _ in VARIANTS["mini"]["widths"]]}
    info = ModelInfo("network", "completion", "metric_depth", "Apache-2.0", "test")
    save_model(build(architecture, info), tmp_path / "network")
    return tmp_path / "network"


@pytest.fixture
def sets(tmp_path) -> Path:
    """Manifests of three sets: three frames, one frame, and two of which one has little truth."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name, count in (("alpha", 3), ("beta", 1), ("gamma", 2)):
        lines = []
        for index in range(count):
            rng = np.random.default_rng([count, index])
            depth = np.linspace(1, 4, 28)[:, None] + rng.uniform(0, 2) * np.linspace(0, 1, 40)
            stored = (1000 * depth).astype(np.uint16)
            if (name, index) == ("gamma", 1):
                stored[1:] = 0
            Image.fromarray(rng.integers(0, 255, (28, 40, 3), dtype=np.uint8)).save(folder / f"{name}{index}.png")
            Image.fromarray(stored).save(folder / f"{name}{index}_depth.png")
            entry = {"image": f"{name}{index}.png", "depth": f"{name}{index}_depth.png", "kind": "depth", "scale": 1000}
            lines.append(json.dumps(entry))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_one_command_scores_goes_on_and_writes_both_files(script, network, sets, tmp_path, capsys):
    out, work = tmp_path / "results" / "completion", tmp_path / "work"
    words = [str(network), "--data", str(sets), "--scenes", "1", "--points", "60", "--out", str(out)]
    script["main"]([*words, "--work", str(work)])
    document = json.loads(out.with_suffix(".json").read_text())
    rows = {(row["model"], row["dataset"]): row for row in document["results"]}
    assert {model for model, _ in rows} == {str(network), *script["BASELINES"]}
    assert {name for _, name in rows} == {"scenes", "alpha", "beta", "gamma"}
    assert (rows["baseline:linear", "gamma"]["frames"], rows["baseline:linear", "gamma"]["failed"]) == (1, 1)
    assert "fewer than the points asked for (60)" in rows["baseline:linear", "gamma"]["first_failure"]
    pairs = {(row["baseline"], row["among"], row["metric"]): row for row in document["paired"]}
    for name in ("alpha", "beta", "gamma", "scenes"):
        mine, theirs = (rows[model, name]["metrics"]["rmse"] for model in (str(network), "baseline:align"))
        assert pairs["baseline:align", name, "rmse"]["difference"] == pytest.approx(mine - theirs)
    assert pairs["baseline:align", "beta", "rmse"]["interval"] is None
    mean = pairs["baseline:nearest", "mean of all 3", "abs_rel"]
    three = [pairs["baseline:nearest", name, "abs_rel"]["difference"] for name in ("alpha", "beta", "gamma")]
    assert mean["difference"] == pytest.approx(np.mean(three))
    assert mean["interval"][0] <= mean["difference"] <= mean["interval"][1]
    text = out.with_suffix(".md").read_text()
    assert text.strip() == capsys.readouterr().out.partition("Depth completed")[2].join(["Depth completed", ""]).strip()
    assert f"| | frames | {network} | baseline:nearest |" in text
    assert "gamma: 1 of 2 frames could not be scored" in text
    first = out.with_suffix(".json").read_text()
    script["main"]([*words, "--work", str(work)])
    again = read_evaluation(next(work.glob("baseline_linear*photographs")))
    assert again.metadata.resumed_after == len(again.samples) == 5
    assert json.loads(out.with_suffix(".json").read_text())["results"] == json.loads(first)["results"]


def test_differences_are_means_over_sets_of_means_over_frames(script):
    rng = np.random.default_rng(0)
    values = [rng.normal(1, 1, 40), rng.normal(-2, 1, 25), np.array([3.0])]
    mean, (low, high) = script["mean_difference"](values)
    assert mean == pytest.approx(np.mean([part.mean() for part in values]))
    spread = np.sqrt(sum(part.var() / len(part) for part in values)) / 3
    assert low == pytest.approx(mean - 1.96 * spread, abs=0.3 * spread)
    assert high == pytest.approx(mean + 1.96 * spread, abs=0.3 * spread)
    assert script["mean_difference"](values[2:]) == (3.0, None)


def test_the_markdown_counts_the_sets_on_which_a_model_is_best(script):
    def row(model: str, name: str, rmse: float, frames: int = 2) -> dict:
        metrics = {"rmse": rmse, "abs_rel": rmse / 10}
        return {
            "model": model, "points": "10", "dataset": name, "frames": frames, "failed": 0, "first_failure": "",
            "metrics": metrics,
        }  # fmt: skip

    names = [*script["MEAN_OF"], "more"]
    rows = [row("mine", name, 1.0 if number < 7 else 3.0) for number, name in enumerate(names)]
    rows += [row(baseline, name, 2.0) for baseline in script["BASELINES"] for name in names]
    rows += [row(model, "empty", float("nan"), 0) for model in ("mine", *script["BASELINES"])]
    pairs = [
        {"model": "mine", "baseline": "baseline:linear", "points": "10", "among": "mean of 9", "metric": "rmse",
         "difference": -0.5, "interval": [-0.75, -0.25]},
    ]  # fmt: skip
    text = script["make_markdown"]({"results": rows, "paired": pairs})
    assert "| mean of 9 |  | 1.444 / 0.144 | 2.000 / 0.200" in text
    assert (
        "- mine, mean of 9, RMSE 1.444: better than every baseline on 7 of 9 sets; difference to linear -0.500 " in text
    )
    assert "[-0.750, -0.250]" in text
    assert "mean of all 10, AbsRel 0.160: better than every baseline on 7 of 10" in text
    assert "empty" not in text
