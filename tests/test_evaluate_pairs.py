"""`evaluate` for models of two views: manifests, benchmarks and scenes with right views, and what may be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import dataset_layouts as layouts
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from stereo_pairs import MetricReader, Reader, a_pair, change_line, write_pairs

from distilldepth.cli.main import cli
from distilldepth.datasets.catalogue import open_benchmark
from distilldepth.datasets.open import open_data
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate.local_global import local_global
from distilldepth.evaluate.run import evaluate
from distilldepth.models import load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.psmnet import build
from distilldepth.scenes import render_scene

ON_CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A saved network of two views with random weights."""
    torch.manual_seed(5)
    arguments = {"width": 2, "depths": [1, 1, 1, 1], "cells": [2], "max_disparity": 16, "align_corners": True}
    model = build(arguments, ModelInfo("tiny", "psmnet", "disparity", "MIT", "random"))
    return str(save_model(model, tmp_path_factory.mktemp("model") / "tiny"))


def test_a_manifest_gives_right_views_and_cameras(tmp_path):
    manifest = write_pairs(tmp_path, 5)
    result = evaluate(Reader(), manifest, **ON_CPU)
    assert (result.metadata.model.quantity, result.protocol.name, result.failures) == ("metric_depth", "metric", [])
    # The red is rounded; another pair or camera would be off by far more.
    assert result.mean["abs_rel"] < 0.01
    right = tmp_path / "right"
    (right / "0.png").rename(right / "x.png")
    (right / "2.png").rename(right / "0.png")
    (right / "x.png").rename(right / "2.png")
    change_line(manifest, 1, focal_px=45.5)
    other = evaluate(Reader(), manifest, **ON_CPU)
    ratios = [sample.ratio for sample in other.samples]
    assert ratios[1] == pytest.approx(0.5, rel=0.02)
    assert ratios[3] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("protocol", "what"), [("metric", "prediction"), ("affine-disparity", "prediction, aligned")])
def test_the_page_says_aligned_of_what_was_aligned(tmp_path, protocol, what):
    evaluate(Reader(), write_pairs(tmp_path, 2), protocol=protocol, out=tmp_path / "run", **ON_CPU)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"<figcaption>{what}</figcaption>" in page


def test_every_size_scores_alike(tmp_path):
    manifest = write_pairs(tmp_path, 3)
    for size in (32, 48, 96):
        assert evaluate(Reader(), manifest, size=size, **ON_CPU).mean["abs_rel"] < 0.01


def test_truth_in_pixels_and_intrinsics(tmp_path):
    manifest = write_pairs(tmp_path, 2)
    for seed, size in enumerate([(36, 52), (40, 64)]):
        np.save(tmp_path / f"depth/{seed}.npy", a_pair(seed, size)[2].astype(np.float32))
        change_line(manifest, seed, kind="stereo_disparity")
    result = evaluate(Reader(), manifest, **ON_CPU)
    assert result.mean["abs_rel"] < 0.01
    manifest = write_pairs(tmp_path / "other", 2)
    for seed in range(2):
        matrix = [[90.0 + seed, 0, 30], [0, 80, 20], [0, 0, 1]]
        change_line(manifest, seed, focal_px=None, intrinsics=matrix)
    assert evaluate(Reader(), manifest, **ON_CPU).mean["abs_rel"] < 0.01


def test_without_cameras_disparity_is_aligned(tmp_path):
    manifest = write_pairs(tmp_path, 3, baseline_m=None)
    result = evaluate(Reader(), manifest, **ON_CPU)
    assert (result.metadata.model.quantity, result.protocol.name) == ("disparity", "affine-disparity")
    assert result.mean["abs_rel"] < 0.01
    with pytest.raises(UsageError, match="numbers have no unit") as told:
        evaluate(Reader(), manifest, protocol="metric", **ON_CPU)
    assert "with focal_px and baseline_m of the pairs in the manifest it predicts metres" in str(told.value)
    # Under a protocol that fits the scale, a single camera that is known changes nothing.
    change_line(manifest, 1, baseline_m=0.25)
    assert len(evaluate(Reader(), manifest, **ON_CPU).failures) == 2
    fitted = evaluate(Reader(), manifest, protocol="marigold", **ON_CPU)
    assert (fitted.metadata.model.quantity, fitted.failures) == ("disparity", [])
    # A network of metres needs none.
    assert evaluate(MetricReader(), manifest, overrides={"align": "median"}, **ON_CPU).mean["abs_rel"] < 0.02


def test_what_is_wrong_with_one_frame_is_said_of_it(tmp_path):
    manifest = write_pairs(tmp_path, 7)
    change_line(manifest, 0, right=None)
    (tmp_path / "right/1.png").unlink()
    Image.fromarray(a_pair(2, (36, 50))[1]).save(tmp_path / "right/2.png")
    change_line(manifest, 3, baseline_m=None)
    change_line(manifest, 4, focal_px=None)
    (tmp_path / "right/5.png").write_bytes(b"no image")
    result = evaluate(Reader(), manifest, **ON_CPU)
    said = {failure.name: failure.error for failure in result.failures}
    assert [sample.name for sample in result.samples] == ["p6"]
    assert said["p0"] == "has no right view, and reader sees two views"
    assert "1.png" in said["p1"]
    assert said["p2"] == "the left view is 36 x 52 and the right one 36 x 50; a rectified pair has one size"
    assert said["p3"] == "baseline_m of the pair must be known: disparity becomes metres by both"
    assert said["p4"] == "focal_px of the pair must be known: disparity becomes metres by both"
    assert "5.png" in said["p5"]
    # A model of one view does not look at them.
    assert not evaluate("distilldepth-mini", manifest, size=32, **ON_CPU).failures


def test_data_without_right_views_is_one_line_before_anything_runs(tmp_path, tiny):
    manifest = write_pairs(tmp_path, 2, right=None)
    arguments = ["evaluate", "--model", tiny, "--data", str(manifest), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1, done.output
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(
            "distilldepth: error: pairs: has no right views, and tiny sees two views; give a manifest with `right`"
        )
    )
    assert not (tmp_path / "out/run.json").exists()
    with_cameras, without = write_pairs(tmp_path / "a", 1), write_pairs(tmp_path / "b", 1, focal_px=None)
    without = without.rename(tmp_path / "b/without.jsonl")
    with pytest.raises(DistillDepthError, match=r"^without: has neither focal_px and baseline_m .* score it by itself"):
        evaluate(Reader(), [with_cameras, without], **ON_CPU)
    with pytest.raises(UsageError, match="reader sees two views of a scene, and there is one here"):
        local_global(Reader(), open_data(with_cameras))


def test_the_command_line_goes_on_and_says_what_comes_out(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = write_pairs(tmp_path, 3)
    common = ["--model", tiny, "--data", "pairs.jsonl", "--out", "out", "--device", "cpu", "--precision", "float32"]

    def run(*arguments: str):
        return CliRunner().invoke(cli, ["evaluate", *common, *arguments])

    done = run("--save-predictions")
    assert done.exit_code == 0, done.output
    assert "tiny (metric_depth, MIT)" in done.stdout
    result = json.loads(Path("out/result.json").read_text())
    assert (result["metadata"]["size"], result["metadata"]["model"]["quantity"]) == (None, "metric_depth")
    wanted = load_model(tiny).predict("left/1.png", right="right/1.png", focal_px=91, baseline_m=0.25).values
    (saved,) = Path("out/predictions").rglob("p1.npy")
    np.testing.assert_allclose(np.load(saved), wanted, rtol=1e-3)
    scored = CliRunner().invoke(cli, ["evaluate", "--predictions", "out/predictions", "--data", "pairs.jsonl"])
    assert scored.exit_code == 0, scored.output
    assert run("--resume", "auto", "--save-predictions").exit_code == 0
    for seed in range(3):
        change_line(manifest, seed, baseline_m=None)
    done = run("--resume", "auto", "--save-predictions")
    assert done.exit_code == 1
    assert "model was 'tiny (metric_depth, weights" in done.stderr.splitlines()[-1]


def test_exchanged_views_are_doubtful(tmp_path):
    for name, exchanged in (("good", False), ("bad", True)):
        (tmp_path / name).mkdir()
        lines = []
        for seed in (3,):
            scene = render_scene(seed, (72, 96), stereo=True)
            views = (scene.right, scene.image) if exchanged else (scene.image, scene.right)
            for kind, view in zip(("image", "right"), views, strict=True):
                Image.fromarray(view).save(tmp_path / name / f"{seed}{kind}.png")
            np.save(tmp_path / name / f"{seed}.npy", scene.depth)
            files = {"image": f"{seed}image.png", "right": f"{seed}right.png", "depth": f"{seed}.npy"}
            lines.append(json.dumps({**files, "focal_px": 100, "baseline_m": 0.1}))
        (tmp_path / name / f"{name}.jsonl").write_text("\n".join(lines))
    result = evaluate(MetricReader(), [tmp_path / "good/good.jsonl", tmp_path / "bad/bad.jsonl"], **ON_CPU)
    told = [doubt for doubt in result.doubts if "exchanged" in doubt and "view" in doubt]
    assert len(told) == 1
    assert told[0].startswith("bad: 1 of 1 frames: left and right view look exchanged; name the left one as `image`")


def test_scenes_have_right_views(tiny):
    result = evaluate(tiny, "scenes:1", **ON_CPU)
    assert (len(result.samples), result.metadata.model.quantity) == (1, "metric_depth")
    (dataset,) = open_data("scenes:1")
    left, truth = dataset.items[0].read()
    view = dataset.items[0].right.read()
    assert view.image.shape == left.shape
    assert not np.array_equal(view.image, left)
    assert view.factor == pytest.approx(view.focal_px * view.baseline_m)
    # Where the scene says a point lies in the right view, it looks alike.
    shift = np.where(truth.valid, view.factor / np.where(truth.valid, truth.depth, 1), 0)
    rows, columns = np.mgrid[0 : left.shape[0], 0 : left.shape[1]]
    there = np.rint(columns - shift).astype(int)
    inside = (there >= 0) & truth.valid
    moved = np.abs(left[inside].astype(int) - view.image[rows[inside], there[inside]]).mean()
    still = np.abs(left[inside].astype(int) - view.image[rows[inside], columns[inside]]).mean()
    assert moved < 0.7 * still


def test_both_views_are_cropped_alike(tmp_path):
    size = (375, 1242)
    left, right, disparity = a_pair(2, size)
    for name, view in (("l", left), ("r", right)):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "d.npy", (700 * 0.5 / disparity).astype(np.float32))
    line = {"image": "l.png", "right": "r.png", "depth": "d.npy", "focal_px": 700, "baseline_m": 0.5}
    (tmp_path / "set.jsonl").write_text(json.dumps(line))

    class Seen(Reader):
        def estimate(self, images, *, policy=None, size=None):
            self.shape = images.shape
            assert torch.equal(images[0, 3:], torch.from_numpy(right[23:, 13:1229] / np.float32(255)).permute(2, 0, 1))
            return super().estimate(images, policy="square", size=1216)

    model = Seen()
    # The width of the crop is less than that of the frame, which this network's disparity is a share of.
    result = evaluate(model, tmp_path / "set.jsonl", overrides={"image_crop": "kb"}, **ON_CPU)
    assert (model.shape, result.failures) == ((1, 6, 352, 1216), [])
    assert result.samples[0].ratio == pytest.approx(1242 / 1216, rel=0.01)


# --- benchmarks ---

CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
P_rect_02: 7.2e+02 0 6.1e+02 4.5e+01 0 7.2e+02 1.7e+02 2.2e-01 0 0 1 2.7e-03
P_rect_03: 7.2e+02 0 6.1e+02 -3.4e+02 0 7.2e+02 1.7e+02 2.2e+00 0 0 1 2.7e-03
"""


def test_kitti(tmp_path):
    frames = layouts.kitti_eigen(tmp_path, 4, "marigold")
    layouts.save_list(tmp_path / "eigen_test_files_with_gt.txt", list(map(layouts.kitti_line, frames)))
    dataset = open_benchmark("kitti-eigen", tmp_path, strict_count=False)
    assert [item.right for item in dataset.items] == [None] * 4
    with pytest.raises(DistillDepthError, match=r"^kitti-eigen: has no right views, and reader sees two views"):
        evaluate(Reader(), dataset, **ON_CPU)
    for seed, frame in enumerate(frames):
        suffix = "jpg" if seed == 3 else "png"
        layouts.save_image(tmp_path / frame["name"].replace("image_02", "image_03").replace("png", suffix), 50 + seed)
    (tmp_path / "2011_09_26/calib_cam_to_cam.txt").write_text(CALIBRATION)
    dataset = open_benchmark("kitti-eigen", tmp_path, strict_count=False)
    views = [item.right.read() for item in dataset.items]
    for seed, view in enumerate(views):
        np.testing.assert_allclose(view.image, layouts.photograph(50 + seed), atol=12)
    assert [item.right.has_camera for item in dataset.items] == [True, False, True, False]
    assert (views[0].focal_px, views[0].baseline_m) == (720, pytest.approx(385 / 720))
    assert (views[1].focal_px, views[1].baseline_m) == (None, None)
    (tmp_path / "2011_10_03/calib_cam_to_cam.txt").write_text(CALIBRATION.replace("P_rect_03", "P_rect_04"))
    with pytest.raises(DistillDepthError, match=r"calib_cam_to_cam\.txt: must have P_rect_02 and P_rect_03"):
        open_benchmark("kitti-eigen", tmp_path, strict_count=False)


def test_images_of_the_right_camera_have_no_right_view(tmp_path):
    frames = layouts.kitti_eigen(tmp_path, 2, "marigold")
    for frame in frames:
        path = tmp_path / frame["name"].replace("image_02", "image_03")
        layouts.save_image(path, 9)
    lines = [layouts.kitti_line(frames[0]), layouts.kitti_line(frames[1]).replace("image_02", "image_03")]
    layouts.save_list(tmp_path / "eigen_test_files_with_gt.txt", lines)
    items = open_benchmark("kitti-eigen", tmp_path, strict_count=False).items
    assert [item.right is None for item in items] == [False, True]


@pytest.mark.parametrize("packed", [False, True])
def test_driving_stereo(tmp_path, packed):
    root = tmp_path / "data"
    layouts.driving_stereo(root / "sunny", 3)
    lefts = sorted((root / "sunny/left-image-half-size").iterdir())
    for seed, left in enumerate(lefts):
        layouts.save_image(Path(str(left).replace("left-image", "right-image")), 70 + seed)
    sequence = lefts[0].name.partition("_")[0]
    calibration = CALIBRATION.replace("P_rect_02", "P_rect_101").replace("P_rect_03", "P_rect_103")
    (root / "half-image-calib").mkdir()
    (root / f"half-image-calib/{sequence}.txt").write_text(calibration)
    dataset = open_benchmark(
        "driving-stereo", layouts.pack(root, tmp_path / "a.tar") if packed else root, subset="sunny"
    )
    for seed, item in enumerate(dataset.items):
        np.testing.assert_allclose(item.right.read().image, layouts.photograph(70 + seed), atol=12)
    assert [item.right.has_camera for item in dataset.items] == [True, False, False]
    assert dataset.items[0].right.read().factor == pytest.approx(385)
    lines = [f"sunny/left-image-half-size/{left.name} sunny/depth-map-half-size/{left.stem}.png" for left in lefts[1:]]
    split = layouts.save_list(tmp_path / "list.txt", lines)
    listed = open_benchmark("driving-stereo", tmp_path / "a.tar" if packed else root, subset="sunny", split=split)
    np.testing.assert_allclose(listed.items[1].right.read().image, layouts.photograph(72), atol=12)
