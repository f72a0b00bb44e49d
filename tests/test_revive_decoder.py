"""`benchmarks/revive_decoder.py`: dead units come back, and the map stays what it was."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from distilldepth.models import load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.depth_anything import build

SCRIPT = str(Path(__file__).parents[1] / "benchmarks" / "revive_decoder.py")
SMALL = {
    "hidden": 24, "layers": 4, "heads": 2, "mlp_ratio": 2, "swiglu": False, "taps": [0, 1, 2, 3],
    "neck": [8, 8, 16, 24], "fusion": 12, "head_hidden": 10, "patch_size": 14, "image_size": 56, "max_depth": None,
}  # fmt: skip


@pytest.fixture
def network():
    torch.manual_seed(1)
    model = build(SMALL, ModelInfo("small", "depth-anything", "disparity", "Apache-2.0", "here")).eval()
    with torch.no_grad():
        for parameter in model.network.neck.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.1)
        model.network.head.conv2.bias[[1, 4, 5]] = -100
        model.network.neck.fusion_stage.layers[2].residual_layer2.convolution1.bias[[0, 7]] = -100
    return model


def test_dead_units_live_and_the_map_stays(network):
    script = runpy.run_path(SCRIPT)
    images = torch.rand(3, 3, 56, 84)
    before = script["predict"](network, images)
    found = {name: dead for name, dead, _ in script["revive"](network, images)}
    assert found["head"] >= 3
    assert found["fusion 2, residual_layer2"] >= 2
    script["rescale"](network)
    after = script["predict"](network, images)
    assert before.std() > 1e-3
    assert (after - before).abs().max() < 0.02 * before.std()
    again = {name: dead for name, dead, _ in script["revive"](network, images)}
    assert sum(again.values()) < sum(found.values())
    last = network.network.head.conv3.weight
    assert last.abs().max() > 10 * last[0, [1, 4, 5]].abs().max()


def test_from_a_model_to_a_folder(network, tmp_path, monkeypatch):
    save_model(network, tmp_path / "old")
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(tmp_path / "old"), str(tmp_path / "new"), "--scenes", "2"])
    runpy.run_path(SCRIPT, run_name="__main__")
    images = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        old, new = (load_model(tmp_path / name).eval()(images).values for name in ("old", "new"))
    assert torch.allclose(old, new, atol=0.05)
    monkeypatch.setattr(sys, "argv", [SCRIPT, "distilldepth-mini", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="no Depth Anything"):
        runpy.run_path(SCRIPT, run_name="__main__")
