"""The mean of the predictions for an image and its mirror image: loops in float64, and evaluations that carry it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from stereo_pairs import MetricReader, Reader, a_pair
from torch import Tensor

from distilldepth.cli.main import cli
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.compare import compare
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.protocol import PROTOCOLS, Protocol, Rules, choose_protocol
from distilldepth.evaluate.record.result import read_evaluation
from distilldepth.evaluate.run import evaluate
from distilldepth.inference.mirror import metric_disparity, mirror, with_mirror
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing


def scan(images: Tensor) -> Tensor:
    """A prediction that depends on the direction in which rows are read."""
    weights = torch.linspace(0.2, 1.7, images.shape[-1], dtype=images.dtype)
    return (images[:, 0] * weights).cumsum(-1) + images[:, 1]


def reference(images: np.ndarray, kind: str) -> np.ndarray:
    """The mean in loops, float64; borders as `post_process_depth` of NeWCRFs has them."""
    batch, _, height, width = images.shape
    found = np.zeros((batch, height, width))

    def predicted(rows: np.ndarray, place: int) -> float:
        total = 0.0
        for column in range(place + 1):
            total += rows[0, column] * (0.2 + 1.5 * column / (width - 1))
        return total + rows[1, place]

    for b in range(batch):
        for y in range(height):
            forth, back = images[b, :, y], images[b, :, y, ::-1]
            for x in range(width):
                own, other = predicted(forth, x), predicted(back, width - 1 - x)
                left = 1 - min(max(20 * (x / (width - 1) - 0.05), 0), 1)
                right = 1 - min(max(20 * ((width - 1 - x) / (width - 1) - 0.05), 0), 1)
                if kind == "mean":
                    left = right = 0
                found[b, y, x] = right * own + left * other + (1 - left - right) * 0.5 * (own + other)
    return found


@pytest.mark.parametrize("kind", ["mean", "blended"])
@pytest.mark.parametrize("width", [7, 41])
def test_single_images_against_loops(kind, width):
    images = torch.from_numpy(np.random.default_rng(width).random((2, 3, 3, width)))
    found = with_mirror(scan, images.float(), kind)
    torch.testing.assert_close(found.double(), torch.from_numpy(reference(images.numpy(), kind)), rtol=1e-5, atol=1e-5)
    assert (found - scan(images.float())).abs().max() > 0.1


def test_mirrored_pairs_are_exchanged():
    images = torch.rand(2, 6, 3, 5)
    turned = mirror(images)
    assert torch.equal(turned[:, :3], images[:, 3:].flip(-1))
    assert torch.equal(turned[:, 3:], images[:, :3].flip(-1))
    assert torch.equal(mirror(turned), images)
    assert torch.equal(mirror(images[:, :3]), images[:, :3].flip(-1))


def pairs_by_loops(left: np.ndarray, right: np.ndarray, shift, kind: str) -> np.ndarray:
    """The mean of maps of the left and the right view, looked up by `shift`, which gives the disparity of a value."""
    batch, height, width = left.shape
    found = left.copy()
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                own = shift(left[b, y, x], b)
                place = x - own
                if not 0 <= place <= width - 1:
                    continue
                low = math.floor(place)
                high, part = min(low + 1, width - 1), place - low

                def between(row, low=low, high=high, part=part):
                    return row[low] * (1 - part) + row[high] * part

                there = between([shift(value, b) for value in right[b, y]])
                if abs(there - own) > max(1.0, 0.05 * abs(own)):
                    continue
                share = 0.5
                if kind == "blended":
                    weights = [1 - min(max(20 * (z / (width - 1) - 0.05), 0), 1) for z in (x, width - 1 - x)]
                    share += 0.5 * (weights[0] - weights[1])
                found[b, y, x] = (1 - share) * left[b, y, x] + share * between(right[b, y])
    return found


@pytest.mark.parametrize("kind", ["mean", "blended"])
@pytest.mark.parametrize("metric", [False, True])
def test_pairs_against_loops(kind, metric):
    rng = np.random.default_rng(5)
    # Of what a network says: about the same in both views, with places where it differs much.
    left = 3 + rng.random((2, 4, 33)) * 2
    right = np.where(rng.random(left.shape) < 0.8, left + rng.normal(size=left.shape) * 0.3, left + 5)
    factors = np.array([20.0, 27.0])

    def estimate(images: Tensor) -> Tensor:
        return images[:, 0]

    images = torch.zeros(2, 6, 4, 33, dtype=torch.float64)
    images[:, 0], images[:, 3] = torch.from_numpy(left), torch.from_numpy(right)
    of_depth = metric_disparity(torch.from_numpy(factors))
    disparity = (lambda maps: of_depth(maps).float()) if metric else lambda maps: maps
    found = with_mirror(estimate, images.float(), kind, disparity)
    wanted = pairs_by_loops(left, right, (lambda v, b: factors[b] / v) if metric else (lambda v, b: v), kind)
    # Where the two only just agree or not, float32 may see it differently.
    close = np.isclose(found.numpy(), wanted, rtol=1e-4)
    assert close.mean() > 0.98
    changed = ~np.isclose(wanted, left)
    assert 0.2 < changed.mean() < 0.95


def test_a_network_that_is_right_about_both_views_stays_right():
    """The map of the right view is that of the left one moved by the disparity; a mean of the two in place is not."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(64.0), indexing="ij")
    del rows
    step = torch.where(columns >= 30, 9.0, 3.0)
    of_right = torch.where((columns >= 21) & (columns < 61), 9.0, 3.0)
    images = torch.zeros(1, 6, 6, 64)
    images[:, 0], images[:, 3] = step, of_right
    found = with_mirror(lambda x: x[:, 0], images, "mean", lambda maps: maps)
    assert torch.equal(found[0], step)
    assert not torch.equal((step + of_right) / 2, step)


def test_metres_need_the_camera():
    with pytest.raises(DistillDepthError, match=r"needs focal_px and baseline_m of the pair.*--flip-average none"):
        metric_disparity(None)
    assert metric_disparity(torch.tensor([6.0]))(torch.tensor([[[2.0, 0.0]]])).tolist() == [[[3.0, math.inf]]]
    with pytest.raises(ValueError, match="kind must be mean or blended, got 'both'"):
        with_mirror(scan, torch.zeros(1, 3, 2, 2), "both")


# --- evaluations ---


class Scan(DepthModel):
    """Metres that depend on the direction."""

    def __init__(self) -> None:
        info = ModelInfo("scan", "test", "metric_depth", "none", "test")
        super().__init__(info, Preprocessing(24, 1, interpolation="bilinear", map_interpolation="bilinear"))

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        return self(images).values

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        return DepthOutput(1 + scan(images))


def a_dataset(count: int = 3, size: tuple[int, int] = (12, 24), name: str = "set") -> Dataset:
    def item(seed: int) -> Item:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        depth = rng.uniform(2, 20, size).astype(np.float32)
        return Item(name, f"{seed}.png", lambda: (image, Truth(depth, depth > 3, is_metric=True)))

    return Dataset(name, [item(seed) for seed in range(count)])


@pytest.mark.parametrize("kind", ["mean", "blended"])
def test_evaluate_scores_the_mean(kind):
    data = a_dataset()
    result = evaluate(Scan(), data, overrides={"flip_average": kind}, device="cpu", precision="float32", batch_size=2)
    for row, item in zip(result.samples, data.items, strict=True):
        image, truth = item.read()
        values = 1 + reference(image.transpose(2, 0, 1)[None] / 255.0, kind)[0]
        error = (np.abs(values - truth.depth) / truth.depth)[truth.valid].mean()
        assert row.metrics["abs_rel"] == pytest.approx(error, rel=1e-5)
    assert f"flip_average={kind} on metric" in result.protocol.name
    saved = json.loads(json.dumps(result.to_dict()))
    assert saved["protocol"]["flip_average"] == kind
    assert saved["datasets"][0]["rules"]["flip_average"] == kind
    assert "mean of the predictions for the image and its mirror image" in result.protocol.effective([""])
    plain = evaluate(Scan(), data, device="cpu", precision="float32")
    assert "flip_average" not in plain.to_dict()["protocol"]
    assert plain.mean["abs_rel"] != result.mean["abs_rel"]


def test_rules_of_several_datasets_may_differ():
    protocol = Protocol("mine", "", Rules("none", "depth"), by_dataset={"nyuv2": {"flip_average": "mean"}})
    with_flip = Dataset("a", a_dataset(name="a").items, kind="nyuv2")
    result = evaluate(Scan(), [with_flip, a_dataset(name="b")], protocol=protocol, device="cpu", precision="float32")
    apart = [
        evaluate(Scan(), a_dataset(), overrides=overrides, device="cpu", precision="float32").mean["abs_rel"]
        for overrides in ({"flip_average": "mean"}, None)
    ]
    assert [one.metrics["abs_rel"] for one in result.datasets] == pytest.approx(apart, rel=1e-5)


def test_protocols_carry_it_as_published():
    assert {name: PROTOCOLS[name].default.flip_average for name in PROTOCOLS} == {
        **dict.fromkeys(PROTOCOLS, ""),
        "newcrfs": "blended",
        "zoedepth": "mean",
    }
    assert PROTOCOLS["newcrfs"].rules("kitti-eigen").flip_average == "blended"
    without = choose_protocol("metric_depth", name="newcrfs", overrides={"flip_average": "none"})
    assert without.name == "custom (flip_average=none on newcrfs)"
    assert without.rules("nyuv2").flip_average == ""
    assert Protocol.from_dict(without.to_dict()) == without
    assert Protocol.from_dict(PROTOCOLS["newcrfs"].to_dict()) == PROTOCOLS["newcrfs"]


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        common = ["evaluate", "--data", "scenes:2", "--device", "cpu", "--precision", "float32"]
        return CliRunner().invoke(cli, [*common, *arguments])

    model = ["--model", "distilldepth-mini", "--size", "64"]
    done = run(*model, "--flip-average", "--out", "flipped")
    assert done.exit_code == 0, done.output
    assert "mirror image" in done.stdout
    assert json.loads(Path("flipped/result.json").read_text())["protocol"]["flip_average"] == "mean"
    assert run(*model, "--out", "plain").exit_code == 0
    done = run(*model, "--out", "plain", "--resume", "auto", "--flip-average", "blended")
    assert done.exit_code == 1
    assert "protocol label name was" in done.stderr.splitlines()[-1]
    assert run(*model, "--out", "flipped", "--resume", "auto", "--flip-average", "mean").exit_code == 0
    done = CliRunner().invoke(cli, ["evaluate", "--compare", "plain", "flipped"])
    assert done.exit_code == 2
    assert "evaluations must have one protocol" in done.stderr
    with pytest.raises(ValueError, match="must have one protocol, got affine-disparity and custom"):
        compare(read_evaluation("plain"), read_evaluation("flipped"))
    for arguments, message in (
        ([*model, "--flip-average", "both"], "--flip-average"),
        (["--predictions", "maps", "--flip-average"], "--flip-average needs a --model, not --predictions"),
        (["--task", "completion", "--points", "50", "--flip-average"], "leave --flip-average out"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert message in done.stderr.splitlines()[-1]


def test_an_evaluation_from_before_goes_on(tmp_path):
    out = tmp_path / "eval"
    evaluate(Scan(), a_dataset(), out=out, device="cpu", precision="float32")
    assert "flip_average" not in (out / "run.json").read_text()
    again = evaluate(Scan(), a_dataset(), out=out, resume="auto", device="cpu", precision="float32")
    assert again.metadata.resumed_after == 3


def test_maps_on_disk_are_taken_as_they_are(tmp_path):
    data = a_dataset()
    for item in data.items:
        np.save(tmp_path / item.name.replace(".png", ".npy"), item.read()[1].depth)
    result = evaluate(StoredPredictions(tmp_path, "metric_depth"), data, protocol="newcrfs")
    assert result.mean["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert any("stored maps are scored as they are" in note for note in result.notes)


def pairs_dataset(metric: bool) -> Dataset:
    from distilldepth.datasets.truth import RightReader
    from distilldepth.images.stereo import RightView

    def item(seed: int) -> Item:
        left, right, disparity = a_pair(seed)
        camera = (50.0 + seed, 0.4) if metric else (None, None)
        depth = (64 / disparity).astype(np.float32)
        truth = Truth(depth, depth > 0, is_metric=True)
        view = RightView(right, *camera)
        return Item("pairs", f"{seed}.png", lambda: (left, truth), RightReader(lambda: view, has_camera=metric))

    return Dataset("pairs", [item(seed) for seed in range(2)])


def test_pairs_are_looked_up_by_the_camera():
    options = {"overrides": {"flip_average": "mean"}, "device": "cpu", "precision": "float32"}
    result = evaluate(MetricReader(), pairs_dataset(metric=True), **options)
    assert len(result.samples) == 2
    result = evaluate(MetricReader(), pairs_dataset(metric=False), **options)
    assert [failure.error.partition(",")[0] for failure in result.failures] == [
        "the mean with the mirror image needs focal_px and baseline_m of the pair"
    ] * 2
    # In pixels no camera is needed.
    assert len(evaluate(Reader(), pairs_dataset(metric=False), **options).samples) == 2
