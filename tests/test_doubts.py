"""Scores that mean nothing are said to be doubtful: maps of another shape, of the wrong direction, in other units."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.evaluate.doubts import PROBES, describe_misfit, median_ratio, rank_correlation
from distilldepth.models.preprocess import Preprocessing, target_size

SIZE = (60, 84)
COUNT = 3


def depth_of(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Metres, 1 to 6, with a little relief everywhere."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(index).uniform(0, 0.2, size)
    return (1 + 4 * rows / size[0] + 0.8 * columns / size[1] + noise).astype(np.float32)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Photographs with depth in millimetres."""
    folder = tmp_path / "pairs"
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        stored = np.round(depth_of(index) * 1000).astype(np.uint16)
        Image.fromarray(stored).save(folder / "depth" / f"{index}.png")
    return folder


def save_maps(folder: Path, change) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(COUNT):
        np.save(folder / f"{index}.npy", change(depth_of(index).astype(np.float64)))
    return folder


def evaluate(*args: object):
    return CliRunner().invoke(cli, ["evaluate", "--device", "cpu", *map(str, args)])


def doubts_of(pairs: Path, maps: Path, quantity: str, *args: object) -> list[dict]:
    result = evaluate("--predictions", maps, "--quantity", quantity, "--data", pairs, "--json", "-", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["datasets"][0]["doubts"]


# Shape


@given(
    height=st.integers(200, 1500),
    width=st.integers(200, 1500),
    policy=st.sampled_from(["lower-bound", "upper-bound"]),
    multiple=st.sampled_from([14, 16, 32]),
    size=st.integers(300, 1100),
)
def test_what_networks_make_of_a_frame_is_the_frame(height, width, policy, multiple, size):
    preprocessing = Preprocessing(size=size, multiple=multiple, resize_policy=policy)
    map_size = target_size(height, width, preprocessing)
    if min(map_size) >= 10 * multiple:
        assert describe_misfit(map_size, (height, width)) == ""


@given(height=st.integers(40, 1500), width=st.integers(40, 1500), factor=st.floats(0.2, 4))
def test_a_frame_at_another_resolution_is_the_frame(height, width, factor):
    assert describe_misfit((round(height * factor), round(width * factor)), (height, width)) == ""


@pytest.mark.parametrize(
    ("size", "frame", "words"),
    [
        ((480, 1280), (480, 640), "two pictures side by side"),
        ((240, 690), (240, 320), "two pictures side by side"),  # with a margin between them
        ((960, 640), (480, 640), "one above the other"),
        ((640, 480), (480, 640), "turned by a quarter or transposed"),
        ((518, 518), (480, 640), "square"),
        ((400, 640), (480, 640), "a part of it"),
        ((352, 1216), (375, 1242), "a part of it"),
        ((500, 900), (480, 640), "another shape"),
    ],
)
def test_other_shapes_are_told_apart(size, frame, words):
    text = describe_misfit(size, frame)
    assert text.startswith(f"{size[0]} x {size[1]} for {frame[0]} x {frame[1]}, ")
    assert words in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda depth: np.concatenate([depth, depth], 1), "side by side"),
        (lambda depth: depth.T, "transposed"),
        (lambda depth: depth[:, 10:50], "a part of it"),
    ],
)
def test_maps_of_another_shape_are_named(tmp_path, pairs, change, words):
    (doubt,) = doubts_of(pairs, save_maps(tmp_path / "maps", change), "depth")
    assert (doubt["kind"], doubt["frames"]) == ("shape", COUNT)
    assert doubt["text"].startswith("3 of 3 frames: the prediction has another shape than the image")
    assert words in doubt["text"]
    assert "first: 0.png, " in doubt["text"]


def test_truth_of_another_shape_is_named(tmp_path, pairs):
    for path in (pairs / "depth").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:, :40]).save(path)
    maps = save_maps(tmp_path / "maps", lambda depth: depth)
    (doubt,) = doubts_of(pairs, maps, "depth")
    assert doubt["kind"] == "truth shape"
    assert "60 x 40 for 60 x 84" in doubt["text"]


# Direction


@pytest.mark.parametrize(
    ("quantity", "change", "args"),
    [
        ("disparity", lambda depth: 2 * depth + 3, ()),
        ("depth", lambda depth: 1 / depth, ()),
        ("depth", lambda depth: 1 / depth, ("--align", "median")),
        ("depth", lambda depth: 1 / depth, ("--align", "ransac")),
        ("metric-depth", lambda depth: 9 / depth, ()),
    ],
)
def test_near_and_far_exchanged_is_named(tmp_path, pairs, quantity, change, args):
    maps = save_maps(tmp_path / "maps", change)
    (doubt,) = doubts_of(pairs, maps, quantity, *args)
    assert (doubt["kind"], doubt["frames"]) == ("direction", COUNT)
    assert "runs against the truth" in doubt["text"]
    assert doubt["text"].count("depth?") == (quantity == "disparity")


def test_one_frame_among_others_is_named_alone(tmp_path, pairs):
    maps = save_maps(tmp_path / "maps", lambda depth: 3 / depth - 1)
    np.save(maps / "1.npy", depth_of(1))
    (doubt,) = doubts_of(pairs, maps, "disparity")
    assert doubt["frames"] == 1
    assert doubt["text"].startswith("1 of 3 frames")
    assert "first: 1.png, scale -" in doubt["text"]


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_probed_direction_is_that_of_the_ranks(share):
    generator = torch.Generator().manual_seed(3)
    depth = torch.rand((4, 150, 220), generator=generator) * 5 + 0.5
    prediction = (
        torch.randn((4, 150, 220), generator=generator) + torch.tensor([1.0, 0.2, -0.3, 0])[:, None, None] * depth
    )
    prediction[3] = 7
    valid = torch.rand(depth.shape, generator=generator) < share
    depth[~valid] = 0
    wanted = 1 / depth
    correlation, ratio = (function(prediction, wanted, valid) for function in (rank_correlation, median_ratio))
    step = int(np.ceil(np.sqrt(150 * 220 / PROBES)))
    assert step > 1
    for image in range(3):
        kept = valid[image, ::step, ::step].flatten()
        p, t = (maps[image, ::step, ::step].flatten()[kept] for maps in (prediction, wanted))
        ranks = [np.argsort(np.argsort(values.numpy())) for values in (p, t)]
        assert float(correlation[image]) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-5)
        lower = [values.sort().values[(len(values) - 1) // 2] for values in (p, t)]
        assert float(ratio[image]) == pytest.approx(float(lower[0] / lower[1]), rel=1e-5)
    assert correlation[3].isnan()


# Unit


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1000, "1e+03 times those of the truth; is one of the two in another unit (1000 against 1 per metre)"),
        (0.001, "(1 against 1000 per metre)"),
        (1000 / 256, "(1000 against 256 per metre)"),
        (256 / 5000, "(256 against 5000 per metre)"),
        (5, "(5000 against 1000 per metre)"),
        (100, "(100 against 1 per metre)"),
        (7, "another unit, or a model of other distances"),
    ],
)
def test_metres_of_another_size_are_named(tmp_path, pairs, factor, words):
    maps = save_maps(tmp_path / "maps", lambda depth: depth * factor)
    (doubt,) = doubts_of(pairs, maps, "metric-depth")
    assert doubt["kind"] == "scale"
    assert words in doubt["text"]


@pytest.mark.parametrize(
    ("scale", "words"), [(1, "likely right is 1000 (3.46 m)"), (100_000, "likely right is 1000 (3.46 m)")]
)
def test_truth_in_other_units_is_named(pairs, scale, words):
    result = evaluate("--model", "baseline:ramp", "--data", pairs, "--truth-scale", scale, "--json", "-")
    (doubt,) = json.loads(result.stdout)["datasets"][0]["doubts"]
    assert doubt["kind"] == "truth scale"
    assert words in doubt["text"]
    assert words in result.stderr  # and before the run


def test_truth_that_is_as_large_as_16_bits_can_be_is_named(pairs):
    for path in (pairs / "depth").iterdir():
        stored = np.array(Image.open(path))
        stored[10:20, 5:40] = 65535
        Image.fromarray(stored).save(path)
    result = evaluate("--model", "baseline:ramp", "--data", pairs, "--json", "-")
    (doubt,) = json.loads(result.stdout)["datasets"][0]["doubts"]
    assert doubt["text"].startswith("7% of the valid ground truth is stored as 65535")
    assert "7% of the valid" in evaluate("--data", pairs, "--check").stderr


def test_millimetres_in_arrays_are_read_with_a_scale(tmp_path, pairs):
    maps = save_maps(tmp_path / "maps", lambda depth: np.round(depth * 1000).astype(np.uint16))
    assert doubts_of(pairs, maps, "metric-depth")[0]["kind"] == "scale"
    result = evaluate(
        "--predictions", maps, "--quantity", "metric-depth", "--data", pairs, "--depth-scale", 1000, "--json", "-"
    )
    values = json.loads(result.stdout)
    assert values["datasets"][0]["doubts"] == []
    assert values["datasets"][0]["metrics"]["abs_rel"] < 1e-6
    assert values["samples"][0]["ratio"] == pytest.approx(1, abs=1e-3)


# Where they are said


def test_good_maps_and_baselines_are_not_doubted(tmp_path, pairs):
    for quantity, change in (
        ("disparity", lambda depth: 3 / depth + 1),
        ("depth", lambda depth: depth + 2),
        ("metric-depth", lambda depth: depth * 2.5),
        ("disparity", lambda depth: (3 / depth)[::2, ::2]),
    ):
        assert doubts_of(pairs, save_maps(tmp_path / "maps", change), quantity) == []
    # The ramp is upside down here: it looks at no pixel, and everybody knows.
    result = evaluate("--model", "baseline:ramp", "--data", pairs, "--json", "-")
    assert json.loads(result.stdout)["datasets"][0]["doubts"] == []


def test_doubts_stand_in_every_form_of_the_result(tmp_path, pairs):
    maps = save_maps(tmp_path / "maps", lambda depth: np.concatenate([depth, depth], 1))
    out = tmp_path / "out"
    result = evaluate("--predictions", maps, "--quantity", "metric-depth", "--data", pairs, "--out", out)
    assert result.exit_code == 0
    words = "side by side"
    assert "DOUBTFUL: pairs: 3 of 3 frames" in " ".join(result.stdout.split())
    for name in ("result.json", "table.md", "table.tex", "report.html", "samples.csv"):
        assert words in (out / name).read_text(), name
    rows = list(csv.DictReader(io.StringIO((out / "samples.csv").read_text())))
    assert rows[0]["doubts"] == "shape: 60 x 168 for 60 x 84, twice as wide: two pictures side by side?"
    assert float(rows[0]["ratio"]) > 0
    assert len({len(row) for row in csv.reader(io.StringIO((out / "samples.csv").read_text()))}) == 1


# Another map than the one that was scored


def test_resuming_with_other_maps_is_refused(tmp_path, pairs):
    maps = save_maps(tmp_path / "maps", lambda depth: depth)
    np.save(maps / "2_uncertainty.npy", np.ones(SIZE))
    (maps / "0.npy").rename(tmp_path / "missing.npy")
    args = ("--predictions", maps, "--quantity", "depth", "--data", pairs, "--out", tmp_path / "out")
    assert evaluate(*args).exit_code == 1
    # A map that was missing is scored, the others are not read again.
    (tmp_path / "missing.npy").rename(maps / "0.npy")
    resumed = evaluate(*args, "--resume", "auto", "--json", tmp_path / "first.json")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads((tmp_path / "first.json").read_text())["metadata"]["resumed_after"] == 2
    for changed, values in (("1.npy", depth_of(7)), ("2_uncertainty.npy", np.zeros(SIZE))):
        before = np.load(maps / changed)
        np.save(maps / changed, values)
        refused = evaluate(*args, "--resume", "auto")
        assert refused.exit_code == 1
        name = f"{changed[0]}.npy"
        assert f"1 of 3 maps are others now than when they were scored (first: {maps / name})" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        np.save(maps / changed, before)
    assert evaluate(*args, "--resume", "auto").exit_code == 0
    other = evaluate(*args, "--resume", "auto", "--depth-scale", "2")
    assert other.exit_code == 1
    assert "depth_scale was None" in other.stderr
