"""`evaluate`: alignment and metrics on data whose answer is known, real data where it is at hand, and bad data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.evaluate import PROTOCOLS, Protocol, choose_protocol, evaluate, open_data
from distilldepth.evaluate.data import SCENE_SEED, Truth
from distilldepth.evaluate.run import score
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing

SHARED = Path(__file__).parents[2] / "shared" / "data" / "rgbd"

TRIVIAL = {
    "icl_nuim": (0.252, 0.506, 0.244, 0.504),
    "kitti2012": (0.389, 0.348, 0.627, 0.505),
    "kitti_object": (0.391, 0.324, 0.319, 0.539),
    "marigold_dc": (0.290, 0.422, 0.271, 0.544),
    "middlebury": (0.342, 0.246, 0.224, 0.599),
    "mosd": (0.196, 0.621, 0.065, 0.953),
    "nuscenes": (0.521, 0.194, 6.293, 0.467),
    "nyu": (0.406, 0.232, 0.306, 0.416),
    "priorda": (0.224, 0.576, 0.165, 0.715),
    "redwood": (0.220, 0.545, 0.164, 0.689),
    "seven_scenes": (0.318, 0.321, 0.190, 0.646),
    "slambook_rgbd": (0.398, 0.302, 0.320, 0.376),
    "sunrgbd": (0.343, 0.362, 0.293, 0.522),
    "tri_dgp": (0.620, 0.206, 7.125, 0.389),
    "tum": (0.207, 0.626, 0.189, 0.724),
}
"""Published with the data: AbsRel and delta1 of the constant and of the vertical ramp."""


class Brightness(DepthModel):
    """Predicts from the picture itself, so that a picture made from depth has a known answer."""

    def __init__(self, quantity: str, function) -> None:
        super().__init__(
            ModelInfo("brightness", "test", quantity, "Apache-2.0", "test"), Preprocessing(1, 1, resize_policy="square")
        )
        self.function = function
        self.batches: list[int] = []

    def estimate(self, images, *, policy=None, size=None):
        self.batches.append(len(images))
        return self(images).values

    def forward(self, images, *, features=False):
        return DepthOutput(self.function(images.mean(1)))


def levels(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 240, (4, 5), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


@pytest.fixture
def pairs(tmp_path) -> Path:
    """`images/` + `depth/` whose inverse depth is an affine function of the brightness; millimetres."""
    folder = tmp_path / "pairs"
    for part in ("images", "depth"):
        (folder / part).mkdir(parents=True)
    for index in range(5):
        grey = levels(24, 32 if index < 3 else 40, index)
        depth = 1 / (0.1 + 0.9 * grey / 255)
        stored = np.round(depth * 1000).astype(np.uint16)
        stored[0, :4] = 0
        Image.fromarray(grey).save(folder / "images" / f"{index}.png")
        Image.fromarray(stored).save(folder / "depth" / f"{index}.png")
    return folder


def run(*args: object):
    return CliRunner().invoke(cli, ["evaluate", "--device", "cpu", *map(str, args)])


def test_an_affine_disparity_is_perfect_and_a_wrong_one_is_not(pairs):
    right = evaluate(Brightness("disparity", lambda x: 7 * x - 3), pairs)
    assert right.complete
    assert right.protocol.name == "affine-disparity"
    assert right.datasets[0]["frames"] == 5
    assert right.datasets[0]["metrics"]["delta1"] == 1.0
    assert right.datasets[0]["metrics"]["abs_rel"] < 1e-3
    wrong = evaluate(Brightness("disparity", lambda x: (12 * x).sin()), pairs)
    assert wrong.datasets[0]["metrics"]["abs_rel"] > 0.1


def test_every_quantity_is_scored_in_its_own_way(pairs):
    def metres(x):
        return 1 / (0.1 + 0.9 * x)

    metric = evaluate(Brightness("metric_depth", metres), pairs)
    assert metric.protocol.name == "metric"
    assert metric.datasets[0]["metrics"]["abs_rel"] < 1e-3
    doubled = evaluate(Brightness("metric_depth", lambda x: 2 * metres(x)), pairs)
    assert doubled.datasets[0]["metrics"]["abs_rel"] == pytest.approx(1.0, abs=1e-3)
    scaled = evaluate(Brightness("metric_depth", lambda x: 2 * metres(x)), pairs, protocol="scale-depth")
    assert scaled.datasets[0]["metrics"]["abs_rel"] < 1e-3
    affine = evaluate(Brightness("depth", lambda x: 3 * metres(x) + 5), pairs)
    assert affine.protocol.name == "affine-depth"
    assert affine.datasets[0]["metrics"]["abs_rel"] < 1e-3
    doubled = Brightness("metric_depth", lambda x: 2 * metres(x))
    inverted = evaluate(doubled, pairs, align="least-squares", space="disparity")
    assert inverted.datasets[0]["metrics"]["abs_rel"] < 1e-3
    assert "custom" in inverted.protocol.name


def test_images_of_one_size_share_a_batch_and_the_result_does_not_depend_on_it(pairs):
    model = Brightness("disparity", lambda x: x**2)
    together = evaluate(model, pairs, batch_size=8)
    assert sorted(model.batches) == [2, 3]
    alone = evaluate(model, pairs, batch_size=1)
    assert [sample["name"] for sample in together.samples] == [f"{index}.png" for index in range(5)]
    for a, b in zip(together.samples, alone.samples, strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-5)


def test_dataset_means_are_per_image_and_the_last_row_is_the_mean_of_datasets(pairs, tmp_path):
    line = {"image": "pairs/images/4.png", "depth": "pairs/depth/4.png", "scale": 1000}
    (tmp_path / "one.jsonl").write_text(json.dumps(line))
    result = evaluate(Brightness("disparity", lambda x: x**2), [pairs, tmp_path / "one.jsonl"])
    names = ("pairs", "one")
    by_dataset = [[s["metrics"]["abs_rel"] for s in result.samples if s["dataset"] == name] for name in names]
    assert result.datasets[0]["metrics"]["abs_rel"] == pytest.approx(np.mean(by_dataset[0]))
    assert result.mean["abs_rel"] == pytest.approx((np.mean(by_dataset[0]) + by_dataset[1][0]) / 2)


def test_a_prediction_is_brought_to_the_size_of_the_truth():
    protocol = PROTOCOLS["affine-disparity"]
    inverse = torch.linspace(0.2, 1, 40)[None].expand(30, 40)
    truth = Truth((1 / inverse).numpy(), np.ones((30, 40), bool), is_metric=True)
    small = torch.nn.functional.interpolate(inverse[None, None], (15, 20), mode="bilinear")[0, 0]
    assert score(small, "disparity", truth, protocol)["abs_rel"] < 0.02


def test_bounds_of_a_protocol_are_strict():
    depth = np.array([[1.0, 2.0, 3.0, 80.0]], dtype=np.float32)
    prediction = torch.tensor([[1.0, 2.0, 3.0, 1.0]])
    truth = Truth(depth, np.ones((1, 4), bool), is_metric=True)
    bounded = Protocol("b", "", "none", "depth", min_depth=0.5, max_depth=80)
    assert score(prediction, "metric_depth", truth, bounded)["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert score(prediction, "metric_depth", truth, PROTOCOLS["metric"])["abs_rel"] > 0.2


def test_stereo_disparity_stands_for_inverse_depth(tmp_path):
    grey = levels()
    Image.fromarray(grey).save(tmp_path / "left.png")
    Image.fromarray((grey.astype(np.uint16) + 10) * 16).save(tmp_path / "disparity.png")
    line = {"image": "left.png", "depth": "disparity.png", "kind": "stereo_disparity", "scale": 16}
    known = {**line, "focal_px": 100.0, "baseline_m": 0.5}
    (tmp_path / "unknown.jsonl").write_text(json.dumps(line))
    (tmp_path / "known.jsonl").write_text(json.dumps(known))
    model = Brightness("disparity", lambda x: x)
    for name in ("unknown", "known"):
        assert evaluate(model, tmp_path / f"{name}.jsonl").datasets[0]["metrics"]["abs_rel"] < 1e-3
    metric = Brightness("metric_depth", lambda x: 50 / (255 * x + 10))
    assert evaluate(metric, tmp_path / "known.jsonl").datasets[0]["metrics"]["abs_rel"] < 1e-3
    without = evaluate(metric, tmp_path / "unknown.jsonl")
    assert not without.complete
    assert "no unit" in without.failures[0]["error"]


def test_scenes_are_held_out_and_the_same_every_time():
    first, second = (open_data("scenes:3")[0] for _ in range(2))
    assert [item.name for item in first.items] == [f"scene-{SCENE_SEED + index}" for index in range(3)]
    image, truth = first.items[1].read()
    again, _ = second.items[1].read()
    assert (image == again).all()
    assert image.shape == (192, 256, 3)
    assert np.isfinite(truth.depth).all()
    assert truth.valid.any()
    result = run("--model", "baseline:ramp", "--data", "scenes:3", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["datasets"][0]["frames"] == 3


# The command


def test_the_table_and_the_json(pairs, tmp_path):
    target = tmp_path / "sub" / "result.json"
    result = run("--model", "baseline:ramp", "--data", pairs, "--limit", "4", "--json", target)
    assert result.exit_code == 0, result.stderr
    assert "least-squares alignment in disparity" in result.stdout
    for word in ("AbsRel", "RMSE", "delta1", "delta2", "delta3", "pairs"):
        assert word in result.stdout
    loaded = json.loads(target.read_text())
    assert {"metadata", "protocol", "datasets", "samples", "mean", "complete", "failures"} <= loaded.keys()
    assert loaded["complete"] is True
    assert loaded["datasets"][0]["frames"] == len(loaded["samples"]) == 4
    assert loaded["metadata"]["model"]["name"] == "baseline:ramp"
    on_stdout = run("--model", "baseline:constant", "--data", pairs, "--json", "-")
    assert json.loads(on_stdout.stdout)["complete"] is True


def test_bad_frames_make_the_result_incomplete(pairs):
    (pairs / "images" / "0.png").write_bytes(b"")
    (pairs / "depth" / "1.png").unlink()
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(pairs / "depth" / "2.png")
    result = run("--model", "baseline:ramp", "--data", pairs, "--json", "-")
    assert result.exit_code == 1
    loaded = json.loads(result.stdout)
    assert loaded["complete"] is False
    assert loaded["datasets"][0]["frames"] == 2
    assert loaded["datasets"][0]["failed"] == 3
    assert {failure["name"] for failure in loaded["failures"]} == {"0.png", "1.png", "2.png"}
    assert "3 of 5 failed" in result.stderr
    assert "2 of 5" in run("--model", "baseline:ramp", "--data", pairs).stdout


def test_a_prediction_that_is_not_finite_is_a_failure_not_a_number(pairs):
    result = evaluate(Brightness("disparity", lambda x: x * torch.nan), pairs)
    assert not result.complete
    assert result.datasets[0]["metrics"] == {}
    assert "not finite" in result.failures[0]["error"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "baseline:rampe", "--data", "scenes:1"], "did you mean 'ramp'?"),
        (["--model", "baseline:ramp", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "baseline:ramp", "--data", "scenes:0"], "positive whole number"),
        (["--model", "baseline:ramp", "--data", "scenes:1", "--data", "scenes:2"], "more than once"),
        (["--model", "baseline:ramp", "--data", "scenes:1", "--align", "none"], "no unit"),
        (["--model", "baseline:ramp", "--data", "scenes:1", "--device", "tpu"], "auto, cpu"),
        (["--model", "baseline:ramp", "--data", "."], "images/ and depth/"),
    ],
)
def test_wrong_arguments_are_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["evaluate", *args])
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_default_protocol_follows_the_quantity():
    assert choose_protocol("disparity").space == "disparity"
    assert choose_protocol("depth").space == "depth"
    assert choose_protocol("metric_depth").align == "none"
    with pytest.raises(ValueError, match="did you mean 'affine-depth'"):
        choose_protocol("depth", name="affine-dept")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared RGB-D photographs are not on this machine")
def test_the_trivial_predictors_score_as_published_with_the_data():
    for column, kind in ((0, "constant"), (2, "ramp")):
        with pytest.warns(UserWarning, match="no ground truth"):
            result = evaluate(f"baseline:{kind}", SHARED, device="cpu")
        measured = {row["name"]: row for row in result.datasets}
        assert set(TRIVIAL) <= set(measured)
        for name, published in TRIVIAL.items():
            metrics = measured[name]["metrics"]
            assert metrics["abs_rel"] == pytest.approx(published[column], abs=0.002), (kind, name)
            assert metrics["delta1"] == pytest.approx(published[column + 1], abs=0.002), (kind, name)
