"""`evaluate --task completion`: points of the truth are given, the same to everyone, and not scored."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from distilldepth import load_model, save_model
from distilldepth.cli.main import cli
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate import COMPLETION_BASELINES, EvaluateOptions, StoredPredictions, evaluate, read_evaluation
from distilldepth.evaluate.compare import compare
from distilldepth.evaluate.completing import PointCompletion, open_completion
from distilldepth.evaluate.given import GivenPoints
from distilldepth.evaluate.record.cases import Cases
from distilldepth.evaluate.record.table import make_table, to_latex, to_markdown
from distilldepth.metrics import completion_metrics
from distilldepth.models import create_student
from distilldepth.models.base import ModelInfo
from distilldepth.models.digest import model_digest
from distilldepth.models.families.completion import VARIANTS, CompletionModel, build
from distilldepth.models.preprocess import Preprocessing
from distilldepth.sparse.align import align_to_points
from distilldepth.sparse.interpolate import nearest
from distilldepth.sparse.patterns import parse_points

HEIGHT, WIDTH = 24, 36


def some_truth(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH), unknown: float = 0.2) -> Truth:
    rng = np.random.default_rng(seed)
    slope = np.linspace(1, 5, size[0])[:, None] + np.linspace(0, 2, size[1])
    depth = (slope * rng.uniform(0.9, 1.1, size)).astype(np.float32)
    valid = rng.random(size) > unknown
    return Truth(np.where(valid, depth, 0).astype(np.float32), valid, is_metric=True, dense=True)


def a_photograph(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def frames(count: int = 4, name: str = "set", size: tuple[int, int] = (HEIGHT, WIDTH)) -> Dataset:
    def item(index: int) -> Item:
        return Item(name, f"{index}.png", lambda: (a_photograph(index), some_truth(index, size)))

    return Dataset(name, [item(index) for index in range(count)])


def given(points: object = "60", score: str = "unseen", seed: int = 0) -> GivenPoints:
    return GivenPoints.asked_for(points, score, seed)


class Answer(PointCompletion):
    """Gives what a function makes of the points, and remembers them."""

    def __init__(self, function, name: str = "answer") -> None:
        info = ModelInfo(name, "test", "metric_depth", "Apache-2.0", "test")
        super().__init__(info, Preprocessing(1, 1, resize_policy="square"))
        self.function, self.seen = function, []

    def complete(self, images, points, *, policy):
        self.seen += list(points.clone())
        return self.function(images, points)


def score(model, data, **changes):
    """`evaluate` without the measurement that `auto` makes of the machine."""
    usual = {"task": "completion", "points": 60, "device": "cpu", "precision": "float32"}
    return evaluate(model, data, **{**usual, **changes})


# The points


@pytest.mark.parametrize("text", ["60", "lines:5", "keypoints:60"])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (9, 20), (55, 70)], ids=["as the photograph", "smaller", "larger"])
def test_points_are_the_truths_and_nothing_given_is_scored(text, size):
    truth, image = some_truth(3, size), a_photograph(3)
    drawn = given(text).draw("a.png", image, truth)
    assert drawn.points.shape == image.shape[:2]
    assert drawn.truth_points.shape == size
    at = np.argwhere(drawn.truth_points > 0)
    assert len(at) == 60 or text == "lines:5"
    assert truth.valid[drawn.truth_points > 0].all()
    wanted = np.zeros(image.shape[:2], np.float32)
    for row, column in at:
        metres = drawn.truth_points[row, column]
        assert metres == truth.depth[row, column]
        place = math.floor((row + 0.5) * HEIGHT / size[0]), math.floor((column + 0.5) * WIDTH / size[1])
        wanted[place] = min(metres, wanted[place] or np.inf)
    assert np.array_equal(drawn.points, wanted)
    for row in range(size[0]):
        for column in range(size[1]):
            place = math.floor((row + 0.5) * HEIGHT / size[0]), math.floor((column + 0.5) * WIDTH / size[1])
            is_given = drawn.truth_points[row, column] > 0 or wanted[place] > 0
            assert drawn.truth.valid[row, column] == (truth.valid[row, column] and not is_given)
    everything = given(text, "all").draw("a.png", image, truth)
    assert np.array_equal(everything.truth.valid, truth.valid)
    assert np.array_equal(everything.points, drawn.points)
    assert not drawn.truth.dense  # its edges would be those of the points


def test_the_frame_and_the_seed_decide_and_nothing_else():
    image, truth = a_photograph(), some_truth()
    points = {
        (name, seed): given(60, "unseen", seed).draw(name, image, truth).points
        for name in ("a.png", "b.png")
        for seed in (0, 1)
    }
    assert np.array_equal(points["a.png", 0], given(60).draw("a.png", image, truth).points)
    assert len({values.tobytes() for values in points.values()}) == 4
    given(60).draw("räum\udcff.png", image, truth)  # any name of a file


def test_frames_without_enough_are_named():
    image, truth = a_photograph(), some_truth()
    count = int(truth.valid.sum())
    with pytest.raises(DistillDepthError, match=f"has {count} pixels with ground truth, fewer .*asked for .5000."):
        given(5000).draw("a", image, truth)
    with pytest.raises(DistillDepthError, match=rf"has {HEIGHT} rows, fewer .*lines:40"):
        given("lines:40").draw("a", image, truth)
    with pytest.raises(DistillDepthError, match="every pixel with ground truth is one of the points"):
        given(count).draw("a", image, truth)
    assert given(count, "all").draw("a", image, truth).truth.valid.sum() == count
    empty = dataclasses.replace(truth, valid=np.zeros_like(truth.valid))
    with pytest.raises(DistillDepthError, match="fewer than two points of lines:3"):
        given("lines:3").draw("a", image, empty)
    with pytest.raises(DistillDepthError, match="no unit"):
        given().draw("a", image, dataclasses.replace(truth, is_metric=False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "completion needs points, for example --points 500"),
        ({"points": "line:4"}, "did you mean 'lines'"),
        ({"points": 50, "score": "unsen"}, "score must be known, got 'unsen'; did you mean 'unseen'"),
        ({"points": 50, "seed": -1}, "seed must be a whole number from 0"),
        ({"points": 50, "seed": True}, "seed must be"),
        ({"points": 50, "align": "median"}, None),
        ({"points": 50, "overrides": {"align": "median"}}, "scored as it is, and the protocol custom"),
        ({"points": 50, "protocol": "affine-depth"}, "scored as it is, and the protocol affine-depth"),
        ({"points": 50, "overrides": {"image_crop": "kb-in-frame"}}, "take --image-crop kb"),
        ({"points": 50, "task": "complete"}, "task must be known, got 'complete'; did you mean 'completion'"),
        ({"points": 50, "task": "depth"}, "add --task completion"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, said):
    kind = TypeError if said is None else UsageError
    with pytest.raises(kind, match=said) as caught:
        score("baseline:nearest", frames(1), **{"points": None, **arguments})
    assert "\n" not in str(caught.value)


def test_models_that_complete_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match="must be known, got 'baseline:linea'; did you mean 'linear'"):
        score("baseline:linea", frames(1), points=50)
    with pytest.raises(UsageError, match="must be known, got 'baseline:nearest:dav2-mini'"):
        score("baseline:nearest:dav2-mini", frames(1), points=50)
    with pytest.raises(UsageError, match="stored maps were not completed from the points"):
        score(StoredPredictions(tmp_path, "metric_depth"), frames(1), points=50)


# The scores


def test_the_close_factors_and_the_order_of_pairs():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.uniform(1, 9, (2, 13, 17)))
    depth = truth * torch.from_numpy(rng.uniform(0.8, 1.25, truth.shape))
    valid = torch.from_numpy(rng.random(truth.shape) > 0.4)
    scores = completion_metrics(depth, truth, valid)
    for image in range(2):
        pairs = [
            (d, g)
            for d, g, ok in zip(*(maps[image].flatten().tolist() for maps in (depth, truth, valid)), strict=True)
            if ok
        ]
        for name, factor in (("delta_1.05", 1.05), ("delta_1.10", 1.10)):
            share = sum(max(d / g, g / d) < factor for d, g in pairs) / len(pairs)
            assert scores[name][image] == pytest.approx(share, abs=1e-12)
        wrong = total = 0
        for d1, g1 in pairs:
            for d2, g2 in pairs:
                order = [(a > 1.03 * b) - (b > 1.03 * a) for a, b in ((d1, d2), (g1, g2))]
                wrong, total = wrong + (order[0] != order[1]), total + 1
        assert scores["whdr"][image] == pytest.approx(wrong / total, abs=0.03)  # 10 000 of all pairs
    single = completion_metrics(depth[1].float(), truth[1].float(), valid[1])
    assert single == pytest.approx({name: float(values[1]) for name, values in scores.items()}, abs=1e-3)
    for rubbish in (float("nan"), float("inf"), -3.0):
        dirty = completion_metrics(depth.masked_fill(~valid, rubbish), truth.masked_fill(~valid, rubbish), valid)
        assert all(torch.equal(dirty[name], scores[name]) for name in scores)
    broken = depth.masked_fill(valid, torch.nan)
    assert completion_metrics(broken, truth, valid)["delta_1.10"].tolist() == [0, 0]
    nothing = completion_metrics(depth, truth, torch.zeros_like(valid))
    assert all(values.isnan().all() for values in nothing.values())


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (11, 15)], ids=["as the photograph", "smaller"])
def test_what_is_given_counts_only_if_all_is_scored(size):
    rights = {a_photograph(index).tobytes(): torch.from_numpy(some_truth(index, size).depth) for index in range(4)}

    def wrong_at_points(images, points):
        maps = []
        for image, sparse in zip((images * 255).round().to(torch.uint8), points, strict=True):
            truth = rights[image.permute(1, 2, 0).contiguous().numpy().tobytes()]
            truth = torch.nn.functional.interpolate(truth[None, None].clamp(min=0.1), sparse.shape)[0, 0]
            maps.append(torch.where(sparse > 0, 7 * truth, truth))
        return torch.stack(maps)

    arguments = {"points": 20, "overrides": {"resize": "nearest"}}
    unseen = score(Answer(wrong_at_points), frames(size=size), **arguments)
    assert unseen.complete
    metrics = unseen.datasets[0].metrics
    if size == (HEIGHT, WIDTH):
        assert metrics["rmse"] == metrics["imae_km"] == metrics["whdr"] == 0
        assert metrics["delta_1.05"] == metrics["delta1"] == 1
        everything = score(Answer(wrong_at_points), frames(size=size), score="all", **arguments)
        assert everything.datasets[0].metrics["abs_rel"] > 0.1
    assert {"rmse", "mae", "irmse_km", "imae_km", "abs_rel", "delta_1.10", "delta1", "whdr"} <= metrics.keys()
    assert "boundary_f1" not in metrics


def test_every_model_sees_the_same_points_whatever_the_batch_and_the_other_frames():
    first, second, third = (Answer(lambda images, points: 1 + points) for _ in range(3))
    score(first, frames(4), points="lines:4", seed=5)
    score(second, [frames(3, "other"), frames(4)], points="lines:4", seed=5, batch_size=1)
    score(third, frames(4), points="lines:4", seed=6)
    assert len(first.seen) == 4
    assert all(torch.equal(one, other) for one, other in zip(first.seen, second.seen[3:], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first.seen, third.seen, strict=True))


def test_a_frame_that_fails_is_named_and_the_others_are_scored():
    def break_one(images, points):
        if any((one == torch.from_numpy(a_photograph(2)).permute(2, 0, 1) / 255).all() for one in images):
            raise ValueError("this one cannot be completed")
        return torch.full_like(points, 2.0)

    data = frames(4)
    poor = dataclasses.replace(some_truth(), valid=np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) < 30)
    data.items.append(Item("set", "poor.png", lambda: (a_photograph(9), poor)))
    result = score(Answer(break_one), data, points=40)
    assert result.datasets[0].frames == 3
    errors = {failure.name: failure.error for failure in result.failures}
    assert errors.keys() == {"2.png", "poor.png"}
    assert errors["2.png"] == "this one cannot be completed"
    assert re.match(r"has \d+ pixels with ground truth, fewer than the points asked for \(40\)", errors["poor.png"])


# The baselines


def test_baselines_are_what_their_arithmetic_says():
    data = frames(3)
    seen = Answer(lambda images, points: torch.ones_like(points))
    score(seen, data, points=60)
    model = load_model("distilldepth-mini").eval()
    for name, function in {
        "baseline:nearest": lambda image, points: nearest(points),
        "baseline:align": lambda image, points: align_to_points(
            model.estimate(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, size=64),
            torch.from_numpy(points)[None],
            quantity="disparity",
        )[0].numpy(),
    }.items():
        with torch.inference_mode():
            result = score(name, data, points=60, size=64)
            assert result.metadata.model.name == name
            for index, sample in enumerate(result.samples):
                image, truth = data.items[index].read()
                points = seen.seen[index].numpy()
                scored = truth.valid & (points == 0)
                depth = function(image, points)[scored].astype(np.float64)
                right = truth.depth[scored].astype(np.float64)
                rmse, imae = np.sqrt(((depth - right) ** 2).mean()), 1000 * np.abs(1 / depth - 1 / right).mean()
                assert sample.metrics["rmse"] == pytest.approx(rmse, rel=1e-4)
                assert sample.metrics["imae_km"] == pytest.approx(imae, rel=1e-4)


def a_network() -> CompletionModel:
    torch.manual_seed(0)
    narrow = {**VARIANTS["mini"], "widths": [4 for _ in VARIANTS["mini"]["widths"]]}
    network = build(narrow, ModelInfo("a-network", "completion", "metric_depth", "Apache-2.0", "test"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


@torch.inference_mode()
def test_a_completion_network_stands_behind_the_depth_model_that_it_names():
    data, network = frames(2), a_network()
    with pytest.raises(UsageError, match="a-network completes depth that is known at some points; add --task complet"):
        evaluate(network, data)
    seen = Answer(lambda images, points: torch.ones_like(points))
    score(seen, data, points=60)
    network.train()
    result = score(network, data, points=60, size=64)
    assert network.training  # the mode that it was in
    network.eval()
    assert result.metadata.model.name == "a-network"
    assert result.metadata.model.quantity == "metric_depth"
    guide = load_model("distilldepth-mini").eval()
    for index, sample in enumerate(result.samples):
        image, truth = data.items[index].read()
        images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        points = seen.seen[index][None]
        aligned = align_to_points(guide.estimate(images, size=64), points, quantity="disparity", method=network.align)
        scored = truth.valid & (points[0].numpy() == 0)
        error = (network.complete(images, points, aligned)[0].numpy() - truth.depth)[scored]
        assert sample.metrics["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-3)


def test_every_baseline_and_every_stage_has_a_name_and_a_digest(tmp_path):
    save_model(create_student("light-mini", seed=0), tmp_path / "student")
    options = EvaluateOptions(device="cpu", precision="float32", offline=True)
    models = [*(f"baseline:{kind}" for kind in COMPLETION_BASELINES), f"baseline:align:{tmp_path / 'student'}"]
    opened = [open_completion(model, options) for model in (*models, a_network())]
    assert [model.info.name for model in opened] == [*models, "a-network"]
    assert {model.info.quantity for model in opened} == {"metric_depth"}
    assert len({model_digest(model) for model in opened}) == len(opened)


@pytest.mark.parametrize("kind", COMPLETION_BASELINES)
def test_every_baseline_runs_on_every_pattern(kind):
    data = frames(2)
    for points in ("30", "lines:4", "keypoints:20"):
        result = score(f"baseline:{kind}", data, points=points, size=64)
        assert result.complete
        assert result.metadata.points == points
        assert result.protocol.name == "completion"
        assert 0 < result.datasets[0].metrics["abs_rel"] < 1


# Results, resume, comparison, report


@pytest.fixture
def folder(tmp_path) -> Path:
    """`images/` and `depth/` in millimetres."""
    folder = tmp_path / "pairs"
    for part in ("images", "depth"):
        (folder / part).mkdir(parents=True)
    for index in range(4):
        Image.fromarray(a_photograph(index)).save(folder / "images" / f"{index}.png")
        stored = (1000 * some_truth(index).depth).round().astype(np.uint16)
        Image.fromarray(stored).save(folder / "depth" / f"{index}.png")
    return folder


def run(*words: object):
    return CliRunner().invoke(
        cli, ["evaluate", "--device", "cpu", "--precision", "float32", "--task", "completion", *map(str, words)]
    )


def test_the_command_writes_everything_and_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    words = ["--model", "baseline:linear", "--data", folder, "--points", "40", "--out", out]
    done = run(*words, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert "Points of the truth that were given: 40 (seed 3)" in done.output
    result = read_evaluation(out)
    assert (result.metadata.points, result.metadata.score, result.metadata.seed) == ("40", "unseen", 3)
    progress = out / "progress.jsonl"
    lines = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join(lines[:2]))
    assert run(*words, "--seed", 3, "--resume", "auto").exit_code == 0
    again = read_evaluation(out)
    assert again.metadata.resumed_after == 2
    assert again.datasets == result.datasets
    for change, said in (
        (["--seed", 4], "seed was 3 when"),
        (["--seed", 3, "--points", "41"], "points was '40' when"),
        (["--seed", 3, "--score", "all"], "score was 'unseen' when"),
    ):
        refused = run(*words, *change, "--resume", "auto")
        assert refused.exit_code == 1
        assert said in refused.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<figcaption>points given</figcaption>") == page.count("<figcaption>completed depth</figcaption>")
    assert page.count("<figcaption>points given</figcaption>") == 4
    assert "prediction, aligned" not in page
    assert "iRMSE [1/km]" in page
    assert "Points of the truth that were given: 40 (seed 3)" in page


def test_the_tables_have_the_columns_of_completion():
    result = score("baseline:nearest", frames(3), points=40)
    text = to_markdown(result)
    assert "| dataset | frames | RMSE | MAE | iRMSE [1/km] | iMAE [1/km] | AbsRel | delta 1.05" in text
    latex = to_latex(result)
    assert r"$\delta_{1.05}$ & $\delta_{1.10}$ & $\delta_{1.25}$ & WHDR" in latex
    for width in (200, 120, 80, 60):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(make_table(result))
        printed = console.export_text()
        assert "RMSE" in printed
        assert f"{result.datasets[0].metrics['rmse']:.3f}" in printed
    assert "WHDR" in to_markdown(type(result).from_dict(json.loads(json.dumps(result.to_dict()))))


def test_results_of_the_same_points_are_compared_and_others_are_not():
    data = frames(4)
    first = score("baseline:nearest", data, points=40)
    second = score("baseline:linear", data, points=40)
    found = compare(first, second).datasets[0].metrics
    assert found["rmse"].difference == pytest.approx(second.datasets[0].metrics["rmse"] - found["rmse"].a)
    assert found["whdr"].interval is not None
    assert {"delta_1.05", "irmse_km"} <= found.keys()
    for change, said in (({"points": 41}, "points is '40' and '41'"), ({"seed": 1}, "seed is 0 and 1")):
        other = score("baseline:linear", data, **{"points": 40, **change})
        with pytest.raises(ValueError, match=said):
            compare(first, other)


def test_pictures_keep_the_points_and_earlier_ones_have_none(tmp_path):
    cases, truth = Cases(width=WIDTH // 2), some_truth()
    points = given("lines:3").draw("a", a_photograph(), truth).truth_points
    for name in ("a", "b"):
        cases.offer("set", name, 0.5, a_photograph(), truth.depth, truth.depth, truth.valid)
    cases.add_points("set", "a", points)
    cases.add_points("set", "never kept", points)
    cases.save(tmp_path)
    back = {case.name: case for case in Cases.load(tmp_path).worst("set")}
    small = back["a"].points
    assert small.shape == back["a"].truth.shape == (HEIGHT // 2, WIDTH // 2)
    for row in range(HEIGHT // 2):
        for column in range(WIDTH // 2):
            block = points[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert small[row, column] == np.float16(block[block > 0].min() if (block > 0).any() else 0)
    assert back["b"].points is None
    file = tmp_path / "pictures" / "set.npz"
    with np.load(file) as stored:
        arrays = {**stored, "points_0": np.zeros((2, 2), np.float16)}
    np.savez(file, **arrays)
    assert zipfile.is_zipfile(file)
    with pytest.raises(DistillDepthError, match="damaged"):
        Cases.load(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "baseline:linear"], "--task completion needs --points: 500, lines:64 or keypoints"),
        (["--model", "baseline:linear", "--points", "line:3"], "did you mean 'lines'?"),
        (["--points", "500", "--predictions", "."], "--predictions has no part in --task completion"),
        (["--points", "500", "--published"], "--published has no part in --task completion"),
        (["--task", "depth", "--points", "500"], "--points is about completion: add --task completion"),
        (["--task", "depth", "--seed", "1"], "--seed is about completion"),
        (["--model", "baseline:linear", "--points", "5", "--align", "median"], "would align it"),
        (["--points", "5", "--score", "seen"], "unseen"),
        (["--points", "5", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_usage_is_exit_2(folder, words, said):
    done = run("--data", folder, *words)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())


def test_too_few_known_pixels_are_exit_1(folder):
    done = run("--data", folder, "--model", "baseline:nearest", "--points", "830")
    assert done.exit_code == 1
    assert "fewer than the points asked for (830)" in done.output


def test_patterns_are_said_as_they_are_typed():
    for text in ("500", "lines:64", "keypoints"):
        assert given(text).to_dict() == {"points": str(parse_points(text)), "score": "unseen", "seed": 0}
