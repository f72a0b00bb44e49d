"""`evaluate`: alignment and metrics on data whose answer is known, real data where it is at hand, and bad data."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import dataset_layouts as layouts
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from waiting import patience_s, wait_until

from distilldepth.cli.main import cli
from distilldepth.datasets.open import SCENE_SEED
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.evaluate import EvaluateOptions, choose_protocol, evaluate, open_data, read_evaluation
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
    inverted = evaluate(doubled, pairs, overrides={"align": "least-squares", "space": "disparity"})
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


def in_memory(*samples: tuple[np.ndarray, Truth], name: str = "set", **facts) -> list[Dataset]:
    items = [Item(name, f"{index}.png", lambda sample=sample: sample) for index, sample in enumerate(samples)]
    return [Dataset(name, items, **facts)]


def test_a_prediction_is_brought_to_the_size_of_the_truth():
    inverse = np.linspace(0.2, 1, 40, dtype=np.float32)[None].repeat(30, 0)
    small = np.asarray(Image.fromarray(inverse).resize((20, 15), Image.Resampling.BILINEAR))
    image = np.round(small * 255).astype(np.uint8)[..., None].repeat(3, -1)
    truth = Truth(1 / inverse, np.ones((30, 40), bool), is_metric=True)
    result = evaluate(Brightness("disparity", lambda x: x), in_memory((image, truth)))
    assert result.datasets[0]["metrics"]["abs_rel"] < 0.02


def test_bounds_that_are_overridden_count_and_change_the_label():
    depth = np.array([[1.0, 2.0, 3.0, 80.0]] * 5, dtype=np.float32)
    image = np.array([[10, 20, 30, 10]] * 5, dtype=np.uint8)[..., None].repeat(3, -1)
    data = in_memory((image, Truth(depth, np.ones((5, 4), bool), is_metric=True)))
    model = Brightness("metric_depth", lambda x: 25.5 * x)
    assert evaluate(model, data).datasets[0]["metrics"]["abs_rel"] > 0.2
    bounded = evaluate(model, data, overrides={"min_depth": 0.5, "max_depth": 80.0, "bounds": "strict"})
    assert bounded.datasets[0]["metrics"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert "custom" in bounded.protocol.name
    assert "max_depth=80" in bounded.protocol.name
    assert bounded.datasets[0]["rules"]["max_depth"] == 80


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
        (["--model", "baseline:ramp", "--data", "."], "images/ or rgb/ and depth/"),
        (["--model", "baseline:ramp", "--data", "nyuv3"], "did you mean 'nyuv2'?"),
        (["--model", "baseline:ramp", "--data", "scenes:1", "--split", "list.txt"], "--split"),
        (["--model", "baseline:ramp", "--data", "scenes:1", "--field", "raw"], "one kind of ground truth"),
        (["--model", "baseline:ramp", "--data", "scenes:2", "--protocol", "scale-depth"], "--space disparity"),
        (["--data", "scenes:2", "--size", "1"], "at least 32"),
    ],
)
def test_wrong_arguments_are_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["evaluate", *args])
    typed_wrongly = (
        "did you mean 'ramp'",
        "positive whole",
        "more than once",
        "auto, cpu",
        "nyuv2",
        "--split",
        "at least 32",
    )
    assert result.exit_code == (2 if message.startswith(typed_wrongly) or "nyuv2" in message else 1)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_default_protocol_follows_the_quantity():
    assert choose_protocol("disparity").space == "disparity"
    assert choose_protocol("depth").space == "depth"
    assert choose_protocol("metric_depth").align == "none"
    with pytest.raises(ValueError, match="did you mean 'affine-depth'"):
        choose_protocol("depth", name="affine-dept")


# Intervals, pooling, the whole and its parts


def test_every_mean_has_an_interval_around_it_and_pooled_numbers_weigh_pixels(pairs):
    result = evaluate(Brightness("disparity", lambda x: x**2), pairs)
    dataset = result.datasets[0]
    for name in ("abs_rel", "rmse", "delta1"):
        low, high = dataset["intervals"][name]
        assert low <= dataset["metrics"][name] <= high
    assert dataset["intervals"]["abs_rel"][0] < dataset["intervals"]["abs_rel"][1]
    # Two of the five images are larger: their pixels weigh more.
    counts = [sample["sums"]["count"] for sample in result.samples]
    assert sorted(set(counts)) == [24 * 32 - 4, 24 * 40 - 4]
    abs_rel = [sample["metrics"]["abs_rel"] for sample in result.samples]
    assert dataset["pooled"]["abs_rel"] == pytest.approx(np.average(abs_rel, weights=counts))
    pooled = evaluate(Brightness("disparity", lambda x: x**2), pairs, overrides={"aggregation": "pixel-pooled"})
    assert pooled.mean["abs_rel"] == pytest.approx(dataset["pooled"]["abs_rel"])
    assert "aggregation=pixel-pooled" in pooled.protocol.name


def test_the_result_is_read_back_as_it_was(pairs, tmp_path):
    result = evaluate(Brightness("disparity", lambda x: x**2), pairs, out=tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / "result.json"):
        assert read_evaluation(path).to_dict() == result.to_dict()


# The folder


MANY = 300
SLOW = ("--model", "baseline:ramp", "--data", "many", "--batch-size", "1")


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """A folder with so many pairs that a run over them can be stopped in the middle; the current one for the test."""
    for part in ("images", "depth"):
        (tmp_path / "many" / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(MANY):
        Image.fromarray(random.integers(0, 255, (9, 16), dtype=np.uint8)).save(tmp_path / f"many/images/{index}.png")
        depth = random.integers(500, 9000, (9, 16), dtype=np.uint16)
        Image.fromarray(depth).save(tmp_path / f"many/depth/{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start_in_background(*args: object, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "distilldepth.cli.main", "evaluate", "--device", "cpu", *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts its job with & has it ignore Ctrl-C, and the job's children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def stop_in_the_middle(process: subprocess.Popen, folder: Path, how: signal.Signals, after: int = 3) -> int:
    """Send the signal once so many samples are scored; returns how many there are in the end."""
    progress = folder / "progress.jsonl"
    wait_until(lambda: progress.is_file() and progress.read_bytes().count(b"\n") >= after, process)
    process.send_signal(how)
    process.wait(timeout=patience_s())
    return progress.read_bytes().count(b"\n")


def test_a_killed_evaluation_goes_on_at_the_next_sample(many):
    folder = many / "killed"
    process = start_in_background(*SLOW, "--out", "killed", cwd=many)
    done = stop_in_the_middle(process, folder, signal.SIGKILL)
    assert done < MANY
    assert not (folder / "result.json").exists()
    with (folder / "progress.jsonl").open("a") as file:
        file.write('{"index": 59, "dataset": "man')
    refused = run(*SLOW, "--out", folder)
    assert refused.exit_code == 1
    assert "continue it with --resume auto" in refused.stderr
    resumed = run(*SLOW, "--out", folder, "--resume", "auto")
    assert resumed.exit_code == 0, resumed.stderr
    whole = run(*SLOW, "--out", many / "whole")
    assert whole.exit_code == 0, whole.stderr
    first, second = (json.loads((place / "result.json").read_text()) for place in (folder, many / "whole"))
    assert first["metadata"]["resumed_after"] == done
    assert second["metadata"]["resumed_after"] == 0
    assert first["datasets"][0]["frames"] == MANY
    for part in ("samples", "datasets", "mean", "failures", "protocol"):
        assert first[part] == second[part], part
    cases = [np.load(place / "pictures" / "many.npz") for place in (folder, many / "whole")]
    assert str(cases[0]["facts"]) == str(cases[1]["facts"])
    assert len((folder / "progress.jsonl").read_text().splitlines()) == MANY


def test_ctrl_c_says_how_to_go_on(many):
    process = start_in_background(*SLOW, "--out", "my run", "--overwrite", cwd=many)
    done = stop_in_the_middle(process, many / "my run", signal.SIGINT)
    _, messages = process.communicate(timeout=patience_s())
    assert process.returncode == 130, messages
    assert done < MANY
    assert "Traceback" not in messages
    (command,) = [line.partition("next sample: ")[2] for line in messages.splitlines() if "next sample: " in line]
    assert command.endswith("--out 'my run' --resume auto")
    again = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert again.exit_code == 0, again.stderr
    assert json.loads((many / "my run" / "result.json").read_text())["metadata"]["resumed_after"] == done


def test_the_folder_has_every_format(pairs, tmp_path):
    folder = tmp_path / "out"
    result = run("--model", "baseline:ramp", "--data", pairs, "--out", folder)
    assert result.exit_code == 0, result.stderr
    for name in ("result.json", "samples.csv", "table.md", "table.tex", "report.html", "progress.jsonl", "run.json"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob(".distilldepth-*"))
    assert len((folder / "samples.csv").read_text().splitlines()) == 1 + 5
    assert "http" not in (folder / "report.html").read_text().replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "baseline:constant"], "model was 'baseline:ramp"),
        (["--align", "median"], "protocol"),
        (["--data", "scenes:4"], "data"),
        (["--size", "64"], "size was None"),
    ],
)
def test_another_run_is_not_continued(tmp_path, change, message):
    given = {"--model": "baseline:ramp", "--data": "scenes:2"}
    folder = tmp_path / "out"
    assert run(*[word for pair in given.items() for word in pair], "--out", folder).exit_code == 0
    given[change[0]] = change[1]
    words = [word for pair in given.items() for word in pair]
    before = (folder / "result.json").read_bytes()
    refused = run(*words, "--out", folder, "--resume", "auto")
    assert refused.exit_code == 1
    assert message in refused.stderr
    assert "choose another --out" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (folder / "result.json").read_bytes() == before
    assert run(*words, "--out", folder, "--overwrite").exit_code == 0


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("x")
    for out, option in (("mine", "--overwrite"), ("mine", "--resume=auto"), ("file", "--overwrite")):
        refused = run("--model", "baseline:ramp", "--data", "scenes:1", "--out", tmp_path / out, option)
        assert refused.exit_code == 1
        assert len(refused.stderr.splitlines()) == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_failed_frames_are_tried_again_on_resume(pairs, tmp_path):
    broken = pairs / "depth" / "3.png"
    kept = broken.read_bytes()
    broken.write_bytes(b"\x89PNG no more")
    args = ("--model", "baseline:ramp", "--data", pairs, "--out", tmp_path / "out", "--resume", "auto")
    first = run(*args)
    assert first.exit_code == 1
    assert "1 of 5 failed" in first.stderr
    assert "3.png" in (tmp_path / "out" / "samples.csv").read_text()
    broken.write_bytes(kept)
    second = run(*args)
    assert second.exit_code == 0, second.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["metadata"]["resumed_after"] == 4


# Benchmarks


@pytest.fixture
def nyu(tmp_path) -> tuple:
    """Six samples in Marigold's layout; what chooses them on the command line."""
    root = tmp_path / "nyu"
    layouts.save_list(root / "filename_list_test.txt", layouts.nyu_marigold(root, 6))
    return "--data", "nyuv2", "--root", root, "--limit", 6


def test_a_benchmark_is_scored_by_the_rules_for_it_and_is_marked_as_a_part(nyu):
    crops = ("--score-crop", "none")
    result = run("--model", "baseline:ramp", *nyu, "--protocol", "marigold", *crops, "--json", "-")
    assert result.exit_code == 0, result.stderr
    loaded = json.loads(result.stdout)
    (dataset,) = loaded["datasets"]
    assert (dataset["kind"], dataset["frames"], dataset["expected"]) == ("nyuv2", 6, 654)
    assert dataset["rules"]["max_depth"] == 10
    assert loaded["protocol"]["name"] == "custom (score_crop=none on marigold)"
    shown = run("--model", "baseline:ramp", *nyu, "--protocol", "marigold", *crops).stdout
    assert "6 of 654" in shown
    assert "nyuv2: raw ground truth" in shown


def test_the_protocol_decides_which_ground_truth_is_read(nyu):
    counts = {}
    for field in ("raw", "filled"):
        result = run(
            "--model", "baseline:ramp", *nyu, "--protocol", "affine-disparity", "--field", field, "--json", "-"
        )
        assert result.exit_code == 0, result.stderr
        loaded = json.loads(result.stdout)
        assert loaded["datasets"][0]["field"] == field
        counts[field] = [sample["sums"]["count"] for sample in loaded["samples"]]
    height, width = layouts.SIZE
    assert counts["filled"] == [height * width] * 6
    assert counts["raw"] == [height * width - layouts.holes(seed).sum() for seed in range(6)]


def test_a_count_that_is_not_the_benchmarks_is_refused(nyu):
    result = run("--model", "baseline:ramp", *nyu[:-2])
    assert result.exit_code == 1
    assert "654" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_file_of_a_benchmark_makes_the_result_incomplete_not_smaller(nyu):
    next(nyu[3].rglob("rgb_0003.png")).unlink()
    result = run("--model", "baseline:ramp", *nyu, "--json", "-")
    assert result.exit_code == 1
    loaded = json.loads(result.stdout)
    assert loaded["complete"] is False
    assert loaded["datasets"][0]["failed"] == 1
    assert "rgb_0003.png" in loaded["failures"][0]["name"]


# Looking at the data first, and what is listed


def test_check_shows_what_the_depth_is(pairs):
    result = run("--data", pairs, "--check", "--json", "-")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    depths = [np.asarray(Image.open(path)) / 1000 for path in sorted((pairs / "depth").iterdir())]
    values = np.concatenate([depth[depth > 0] for depth in depths])
    assert row["count"] == 5
    assert row["min"] == pytest.approx(values.min(), rel=1e-3)
    assert row["max"] == pytest.approx(values.max(), rel=1e-3)
    table = run("--data", pairs, "--check").stdout
    assert "24 x 32" in table
    assert "24 x 40" in table
    (pairs / "depth" / "2.png").unlink()
    broken = run("--data", pairs, "--check")
    assert broken.exit_code == 1
    assert "2.png" in broken.stderr


def test_published_numbers_alone_and_beside_a_result(tmp_path):
    alone = run("--published")
    assert alone.exit_code == 0, alone.stderr
    assert "Marigold" in alone.stdout
    rows = json.loads(run("--published", "--json", "-").stdout)
    assert {"model", "metrics", "source"} <= rows[0].keys()
    beside = run("--model", "baseline:ramp", "--data", "scenes:1", "--published")
    assert beside.exit_code == 0, beside.stderr


def test_the_analysis_has_a_table_and_json():
    args = ("--analysis", "local-global", "--model", "baseline:ramp", "--data", "scenes:2")
    shown = run(*args)
    assert shown.exit_code == 0, shown.stderr
    assert "local - global" in shown.stdout
    assert {row["dataset"] for row in json.loads(run(*args, "--json", "-").stdout)["rows"]} == {"scenes"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--data"),
        (["--check"], "--data"),
        (["--data", "scenes:1", "--check", "--analysis", "local-global"], "contradict"),
        (["--data", "scenes:1", "--protocol", "marygold"], "did you mean 'marigold'?"),
        (["--data", "scenes:1", "--score-crop", "grag"], "did you mean 'garg'?"),
        (["--data", "scenes:1", "--resume", "auto"], "--out"),
        (["--data", "scenes:1", "-o", "x", "--resume", "auto", "--overwrite"], "contradict"),
        (["--compare", "only-one"], "2"),
        (["--data", "nyuv2"], "--root"),
        (["--data", "scenes:1", "--overwrite"], "--out"),
        (["--data", "scenes:1", "--min-depth", "3", "--max-depth", "3"], "--min-depth must be below --max-depth"),
        (["--data", "scenes:1", "--analysis", "local-global", "--out", "x"], "--out has no part in --analysis"),
        (["--data", "scenes:1", "--analysis", "local-global", "--align", "l1"], "--align has no part in --analysis"),
        (["--compare", "a", "b", "-o", "x"], "--out has no part in --compare"),
        (["--kitti-submission", "x", "--root", ".", "--protocol", "metric"], "--protocol has no part in"),
        (["--published", "--out", "x"], "--out has no part in --published without --data"),
    ],
)
def test_wrong_usage_is_exit_2(args, message):
    result = CliRunner().invoke(cli, ["evaluate", *args])
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_run_goes_on_in_the_precision_it_was_started_in(pairs, tmp_path, monkeypatch):
    for gain, resume in ((9.0, ""), (1.0, "auto")):
        monkeypatch.setattr("distilldepth.machine.bfloat16_gain", lambda kind, gain=gain: gain)
        result = evaluate("distilldepth-mini", pairs, device="cpu", out=tmp_path / "out", resume=resume)
        assert result.metadata.precision == "bfloat16"
    assert result.metadata.resumed_after == 5


def test_options_are_given_as_one_or_by_name(pairs):
    options = EvaluateOptions(batch_size=2, limit=3)
    together = evaluate("baseline:ramp", pairs, options=options, protocol="affine-depth")
    alone = evaluate("baseline:ramp", pairs, batch_size=2, limit=3, protocol="affine-depth")
    assert len(together.samples) == 3
    assert together.samples == alone.samples
    with pytest.raises(TypeError, match="no option 'bath_size'; did you mean 'batch_size'"):
        evaluate("baseline:ramp", pairs, bath_size=2)


def test_rows_read_like_the_dictionaries_that_they_become():
    (sample,) = evaluate("baseline:ramp", "scenes:1").samples
    assert dict(sample) == sample.to_dict()
    assert sample["metrics"]["abs_rel"] == sample.metrics["abs_rel"]
    assert "digest" not in sample
    with pytest.raises(KeyError, match="digest"):
        sample["digest"]


def test_the_words_of_the_command_are_those_of_the_library():
    from distilldepth.cli import evaluate as command
    from distilldepth.models.base import QUANTITIES

    assert {word.replace("-", "_") for word in command.QUANTITIES} == set(QUANTITIES)
    assert all(command.rule_words(key) or key.endswith("_depth") for key in command.OVERRIDES)
    for key in command.OVERRIDES:
        for word, value in (command.rule_words(key) or {3.0: 3.0}).items():
            protocol = choose_protocol("metric_depth", overrides={key: value})
            expected = "" if word == "none" and key != "align" else value
            assert getattr(protocol.rules(""), key) == expected, (key, word)


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
