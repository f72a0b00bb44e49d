"""`predict` for models of two views: files, folders and manifests through the real command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from stereo_pairs import Reader, a_pair, change_line, write_pairs

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import create_student, load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.psmnet import build
from distilldepth.predict import plan_jobs, predict_files, read_depth_png
from distilldepth.scenes import render_scene

CAMERA = ["--focal-px", "90", "--baseline-m", "0.25"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A network of two views and one of one, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    tiny = {"width": 2, "depths": [1, 1, 1, 1], "cells": [2], "max_disparity": 16, "align_corners": True}
    stereo = build(tiny, ModelInfo("tiny", "psmnet", "disparity", "MIT", "random"))
    return {
        "stereo": str(save_model(stereo, folder / "stereo")),
        "single": str(save_model(create_student("light-mini", seed=3), folder / "single")),
    }


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """Run `distilldepth predict` in an empty folder with pairs in it, on the CPU."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, 3)

    def call(*args: object, model: str = "stereo"):
        common = ["--model", models[model], "--device", "cpu", "--precision", "float32"]
        return CliRunner().invoke(cli, ["predict", *map(str, args), *common])

    return call


def last_line(done) -> str:
    assert "Traceback" not in done.output
    return done.stderr.strip().splitlines()[-1]


def test_one_pair_becomes_what_python_says(run, models):
    done = run("left/1.png", "--right", "right/1.png", "-o", "depth.npy", *CAMERA)
    assert done.exit_code == 0, done.output
    assert "metric_depth" in done.stderr
    wanted = load_model(models["stereo"]).predict("left/1.png", right="right/1.png", focal_px=90, baseline_m=0.25)
    np.testing.assert_allclose(np.load("depth.npy"), wanted.values, rtol=1e-4)
    done = run("left/1.png", "--right", "right/1.png", "-o", "d.png")
    assert done.exit_code == 0, done.output
    stored = read_depth_png("d.png")[0]
    disparity = load_model(models["stereo"]).predict("left/1.png", right="right/1.png").values
    np.testing.assert_allclose(stored, disparity, atol=1e-3)
    assert "disparity" in done.stderr


def test_folders_are_paired_by_name_and_nothing_else_is_lost(run):
    Path("right/0.png").unlink()
    Image.fromarray(a_pair(9)[1]).save("right/stray.png")
    Image.fromarray(a_pair(1, (40, 60))[1]).save("right/1.png")
    (left, _, _), (right, _, _) = a_pair(7), a_pair(8)
    Path("left/inner").mkdir()
    Path("right/inner").mkdir()
    Image.fromarray(left).save("left/inner/1.png")
    Image.fromarray(right).save("right/inner/1.jpg")
    done = run("left", "--right", "right", "-o", "out", "--as", "npy", *CAMERA, "--json", "r.json")
    assert done.exit_code == 1, done.output
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*.npy")} == {"2.npy", "inner/1.npy"}
    report = json.loads(Path("r.json").read_text())
    assert [Path(entry["right"]).as_posix() for entry in report["written"]] == ["right/2.png", "right/inner/1.jpg"]
    said = {Path(entry["source"]).as_posix(): entry["error"] for entry in report["failures"]}
    assert said == {
        "left/0.png": "has no right view: right holds no image called 0",
        "left/1.png": "the left view is 40 x 64 and the right one 40 x 60; a rectified pair has one size",
        "right/stray.png": "has no photograph of that name",
    }
    assert last_line(done) == "distilldepth: error: 3 of 5 failed (listed above)"


def test_skip_existing_looks_at_both_views_and_the_camera(run):
    command = ["left", "--right", "right", "-o", "out", "--as", "png16,npy"]
    assert run(*command, *CAMERA).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*") if path.suffix in (".png", ".npy")}
    assert len(before) == 6
    done = run(*command, *CAMERA, "--skip-existing")
    assert "skipped 3" in done.stderr
    Image.fromarray(a_pair(9)[1]).save("right/1.png")
    done = run(*command, *CAMERA, "--skip-existing")
    assert done.exit_code == 0, done.output
    assert "skipped 2" in done.stderr
    assert {path.stem for path in before if path.stat().st_mtime_ns != before[path]} == {"1"}
    done = run(*command, "--focal-px", "91", "--baseline-m", "0.25", "--skip-existing")
    assert "made again 3" in done.stderr
    done = run(*command, "--focal-px", "91", "--baseline-m", "0.25", "--skip-existing", "--size", "32")
    assert "made again 3" in done.stderr


def test_results_beside_the_right_views_are_no_views(run):
    assert run("left", "--right", "right", "-o", "right/out", *CAMERA).exit_code == 0
    done = run("left", "--right", "right", "-o", "right/out", *CAMERA, "--overwrite")
    assert done.exit_code == 0, done.output
    Path("both").mkdir()
    shutil.move("left", "both")
    shutil.move("right", "both")
    done = run("both", "--right", "both/right", "-o", "again", "--as", "npy")
    assert done.exit_code == 0, done.output
    assert len(list(Path("again").rglob("*.npy"))) == 3


def test_a_manifest_says_views_and_cameras(tmp_path):
    manifest = write_pairs(tmp_path / "set", 3, depth=None)
    report = predict_files(manifest, tmp_path / "out", model=Reader(), formats=["npy"])
    assert (report.quantity, report.failures) == ("metric_depth", [])
    for seed, size in enumerate([(36, 52), (40, 64), (36, 52)]):
        wanted = (90 + seed) * 0.25 / a_pair(seed, size)[2]
        np.testing.assert_allclose(np.load(tmp_path / f"out/{seed}.npy"), wanted, rtol=2e-2)


def test_the_focal_length_may_be_that_of_the_intrinsics(tmp_path):
    manifest = write_pairs(tmp_path, 2)
    change_line(manifest, 0, focal_px=None, intrinsics={"fx": 45, "fy": 44, "cx": 20, "cy": 20})
    change_line(manifest, 1, baseline_m=None)
    report = predict_files(manifest, tmp_path / "out", model=Reader(), formats=["npy"])
    np.testing.assert_allclose(np.load(tmp_path / "out/0.npy"), 45 * 0.25 / a_pair(0, (36, 52))[2], rtol=2e-2)
    ((source, told),) = report.failures
    assert Path(source).name == "1.png"
    assert told == "baseline_m of the pair must be known: disparity becomes metres by both"


def test_lines_without_a_right_view_are_failures_of_their_own(tmp_path):
    manifest = write_pairs(tmp_path, 3)
    change_line(manifest, 1, right=None)
    (tmp_path / "right/2.png").unlink()
    report = predict_files(manifest, tmp_path / "out", model=Reader(), formats=["npy"])
    assert [Path(entry["source"]).name for entry in report.written] == ["0.png"]
    (first, told), (second, _) = report.failures
    assert (Path(first).name, told) == ("1.png", "has no right view: the manifest names none for it")
    assert Path(second).name == "2.png"
    for number in (0, 2):
        change_line(manifest, number, right=None)
    with pytest.raises(UsageError, match="reader sees two views of a scene, and there is one here"):
        predict_files(manifest, tmp_path / "other", model=Reader())


def test_a_manifest_is_a_list_of_photographs_for_a_model_of_one_view(run):
    done = run("pairs.jsonl", "-o", "out", "--size", "64", model="single")
    assert done.exit_code == 0, done.output
    assert {path.name for path in Path("out").glob("*.png")} == {"0.png", "1.png", "2.png"}
    Path("bad.jsonl").write_text('{"right": "a.png"}\n')
    assert last_line(run("bad.jsonl", "-o", "x")).endswith("bad.jsonl:1: `image` must be a path, got None")
    Path("bad.jsonl").write_text("\n[1]\n")
    assert last_line(run("bad.jsonl", "-o", "x")).endswith("bad.jsonl:2: must be a JSON object")
    Path("bad.jsonl").write_text("\n")
    assert "names no image" in last_line(run("bad.jsonl", "-o", "x"))


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (
            ["left/1.png"],
            "stereo",
            "tiny sees two views of a scene, and there is one here; give the right view of each",
        ),
        (["left/1.png", *CAMERA], "stereo", "and there is one here"),
        (["left/1.png", "--right", "right/1.png"], "single", "light-mini sees one view of a scene; leave the right"),
        (["left/1.png", *CAMERA], "single", "sees one view of a scene; leave the right view and its camera out"),
        (["left/1.png", "--right", "right/1.png", "--focal-px", "9"], "stereo", "--focal-px needs --baseline-m too"),
        (["left/1.png", "--right", "right/1.png", "--baseline-m", "9"], "stereo", "--baseline-m needs --focal-px too"),
        (["left/1.png", "--right", "right/1.png", "--focal-px", "0", "--baseline-m", "1"], "stereo", "--focal-px"),
        (["left", "--right", "right/1.png"], "stereo", "--right right/1.png names one file, but there are 3 images"),
        (["left", "--right", "left"], "stereo", "--right left: these are the left views themselves; name the right"),
        (["left/1.png", "--right", "left/1.png"], "stereo", "these are the left views themselves"),
        (["left", "--right", "nowhere"], "stereo", "nowhere: No such file or directory"),
        (["left", "--right", "depth"], "stereo", "no photograph has a right view; the first: left/0.png: has no right"),
        (["pairs.jsonl", "--right", "right"], "stereo", "--right and a manifest with `right` contradict each other"),
        (
            ["left/1.png", "--right", "right/0.png"],
            "stereo",
            "the left view is 40 x 64 and the right one 36 x 52",
        ),
    ],
)
def test_bad_input_is_one_line(run, arguments, model, message):
    done = run(*arguments, "-o", "out", model=model)
    assert done.exit_code in (1, 2), done.output
    assert message in last_line(done)
    assert not list(Path().glob("out/*"))


def test_a_right_view_is_never_replaced(run):
    before = Path("right/1.png").read_bytes()
    done = run("left/1.png", "--right", "right/1.png", "-o", "right/1.png", "--overwrite")
    assert done.exit_code == 2
    assert "would replace an input image" in last_line(done)
    assert Path("right/1.png").read_bytes() == before


def test_exchanged_views_are_named(run, tmp_path):
    scene = render_scene(3, (72, 96), stereo=True)
    Path("scene").mkdir()
    Image.fromarray(scene.image).save("scene/a.png")
    Image.fromarray(scene.right).save("scene/b.png")
    done = run("scene/b.png", "--right", "scene/a.png", "-o", "out.npy", "--json", "r.json")
    assert done.exit_code == 0, done.output
    assert "warning: the views of 1 of 1 pair look exchanged (scene/b.png)" in done.stderr
    assert json.loads(Path("r.json").read_text())["swapped"] == ["scene/b.png"]
    done = run("scene/a.png", "--right", "scene/b.png", "-o", "out.npy", "--json", "r.json")
    assert "exchanged" not in done.stderr
    assert "swapped" not in json.loads(Path("r.json").read_text())


def test_a_network_whose_disparity_is_negative_says_so(tmp_path):
    manifest = write_pairs(tmp_path, 2)
    report = predict_files(manifest, tmp_path / "out", model=Reader(sign=-1.0))
    assert not report.written
    assert all("negative in the median (-" in told and "other way round" in told for _, told in report.failures)


def test_jobs_of_a_manifest_keep_their_tree(tmp_path, monkeypatch):
    manifest = write_pairs(tmp_path, 1)
    Path(tmp_path / "left/deep").mkdir()
    Image.fromarray(a_pair(0)[0]).save(tmp_path / "left/deep/0.png")
    lines = [json.loads(manifest.read_text()), {"image": str(tmp_path / "left/deep/0.png")}]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    jobs, is_file = plan_jobs(["pairs.jsonl"], tmp_path / "out")
    assert not is_file
    assert [job.outputs["png16"].relative_to(tmp_path).as_posix() for job in jobs] == ["out/0.png", "out/deep/0.png"]
    assert [job.right and job.right.name for job in jobs] == ["0.png", None]
    assert (jobs[0].focal_px, jobs[0].baseline_m) == (90.0, 0.25)


def test_options_in_python(tmp_path):
    write_pairs(tmp_path, 2)
    with pytest.raises(ValueError, match="focal_px is given without baseline_m"):
        predict_files(tmp_path / "left", tmp_path / "out", model=Reader(), right=tmp_path / "right", focal_px=90)
    report = predict_files(
        tmp_path / "left", tmp_path / "out", model=Reader(), right=tmp_path / "right", focal_px=90, baseline_m=0.25
    )
    assert (len(report.written), report.quantity) == (2, "metric_depth")
    with pytest.raises(DistillDepthError, match="no photograph has a right view"):
        predict_files(tmp_path / "left", tmp_path / "x", model=Reader(), right=tmp_path / "depth")
