"""`predict --uncertainty`: a second map beside each, through the real command and read with numpy and Pillow."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_predict import error_lines, photograph
from test_uncertainty_module import loud, small

from distilldepth.cli.main import cli
from distilldepth.formats.colormaps import colormap_table
from distilldepth.formats.options import Picture
from distilldepth.formats.table import FORMATS, UNCERTAINTY
from distilldepth.formats.uncertainty import write_uncertainty_png
from distilldepth.models import load_model, save_model
from distilldepth.predict import predict_files, read_depth_png


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("light", "newcrfs"):
        save_model(small(family), folder / family / "plain")
        save_model(loud(small(family)), folder / family / "uncertain")
    return folder


def call(model: Path, *words: object):
    common = ["--model", model, "--size", "64", "--device", "cpu", "--precision", "float32"]
    return CliRunner().invoke(cli, ["predict", *map(str, (*words, *common))])


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    photograph(seed=1).save(folder / "a.png")
    photograph(30, 70, seed=2).save(folder / "sub" / "b.jpg")
    return folder


def test_every_format_has_its_second_map(models, photos, tmp_path):
    model, out = models / "newcrfs" / "uncertain", tmp_path / "out"
    result = call(
        model, photos, "-o", out, "--as", "png16,color,npy,ply", "--uncertainty", "--json", tmp_path / "report.json"
    )
    assert result.exit_code == 0, result.output
    files = {str(path.relative_to(out)) for path in out.rglob("*.*") if not path.name.startswith(".")}
    ends = (".png", "_color.png", ".npy", ".ply", "_uncertainty.png", "_uncertainty_color.png", "_uncertainty.npy")
    assert files == {os.path.join(*stem, name) + end for *stem, name in (["a"], ["sub", "b"]) for end in ends}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["written"][0]["outputs"]["png16-uncertainty"] == str(out / "a_uncertainty.png")

    for source, stem in (("a.png", "a"), ("sub/b.jpg", "sub/b")):
        said = load_model(model).predict(photos / source, size=64)
        exact = np.load(out / f"{stem}_uncertainty.npy", allow_pickle=False)
        assert exact.dtype == np.float32
        assert float(exact.std()) > 0.2
        np.testing.assert_allclose(exact, said.log_variance, atol=1e-3)
        np.testing.assert_allclose(np.load(out / f"{stem}.npy"), said.values, rtol=1e-3)
        with Image.open(out / f"{stem}_uncertainty.png") as image:
            stored, texts = np.asarray(image), dict(image.text)
        assert stored.dtype == np.uint16
        assert stored.min() >= 1
        decoded = stored * float(texts["scale"]) + float(texts["offset"])
        np.testing.assert_allclose(decoded, exact, atol=1e-4)
        assert texts["quantity"] == "log_variance"
        assert texts["of"] == "metric_depth"
        assert texts["unit"] == "log of m^2"
        assert "sigma = exp(value / 2)" in texts["meaning"]
        assert texts["source"] == Path(source).name
        np.testing.assert_allclose(read_depth_png(out / f"{stem}_uncertainty.png")[0], exact, atol=1e-4)
        with Image.open(out / f"{stem}_uncertainty_color.png") as image:
            painted, texts = np.asarray(image), dict(image.text)
        assert texts["quantity"] == "log_variance"
        assert "bright = less certain" in texts["Description"]
        flat = exact.flatten()
        for place, colour in ((flat.argmin(), 0), (flat.argmax(), 255)):
            assert painted.reshape(-1, 3)[place].tolist() == colormap_table("magma")[colour].tolist()


def test_without_the_option_nothing_changes(models, photos, tmp_path):
    for kind in ("plain", "uncertain"):
        assert call(models / "light" / kind, photos, "-o", tmp_path / kind, "--as", "png16,npy").exit_code == 0
    names = [sorted(path.name for path in (tmp_path / kind).rglob("*.*")) for kind in ("plain", "uncertain")]
    assert names[0] == names[1]
    assert not any("uncertainty" in name for name in names[0])
    np.testing.assert_array_equal(np.load(tmp_path / "plain" / "a.npy"), np.load(tmp_path / "uncertain" / "a.npy"))


def test_beside_a_single_file(models, photos, tmp_path):
    result = call(models / "light" / "uncertain", photos / "a.png", "-o", tmp_path / "depth.png", "--uncertainty")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'depth.png'}, {tmp_path / 'depth_uncertainty.png'}" in result.stderr
    assert read_depth_png(tmp_path / "depth_uncertainty.png")[1]["unit"] == "log of the map's own numbers squared"
    # What it made is no photograph.
    again = call(models / "light" / "uncertain", tmp_path, "-o", tmp_path / "out", "--uncertainty")
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == [
        "a.png", "a_uncertainty.png", "b.png", "b_uncertainty.png",
    ]  # fmt: skip


@pytest.mark.parametrize("forms", ["png16", "npy", "color,npy"])
def test_what_is_there_is_both_files(models, photos, tmp_path, forms):
    model, out = models / "light" / "uncertain", tmp_path / "out"

    def again(*words: str):
        result = call(model, photos, "-o", out, "--as", forms, "--uncertainty", *words)
        return result.exit_code, result.stderr

    assert again()[0] == 0
    assert again()[0] == 1
    code, said = again("--skip-existing")
    assert code == 0
    assert "skipped 2" in said
    assert "wrote" not in said
    second = [FORMATS[UNCERTAINTY[name]].ending for name in forms.split(",")]
    for ending in second:
        lost = out / f"a{ending}"
        before = lost.read_bytes()
        lost.unlink()
        code, said = again("--skip-existing")
        assert code == 0
        assert "skipped 1" in said
        assert "wrote" in said
        assert lost.read_bytes() == before
    # Maps alone, then both: what has no second file yet is done again.
    alone = tmp_path / "alone"
    assert call(model, photos, "-o", alone, "--as", forms).exit_code == 0
    done = call(model, photos, "-o", alone, "--as", forms, "--uncertainty", "--skip-existing")
    assert done.exit_code == 0
    assert (alone / f"a{second[0]}").is_file()
    # A file that it did not make stays.
    (out / f"a{second[0]}").write_bytes(b"mine")
    code, said = again("--skip-existing")
    assert code == 1
    assert f"a{second[0]} was" in said
    assert (out / f"a{second[0]}").read_bytes() == b"mine"


@pytest.mark.parametrize("family", ["light", "newcrfs"])
def test_a_model_without_is_one_line(models, photos, tmp_path, family):
    result = call(models / family / "plain", photos, "-o", tmp_path / "out", "--uncertainty")
    assert result.exit_code == 2
    (line,) = error_lines(result)
    assert "says nothing of its own uncertainty" in line
    assert "distilldepth distill --set uncertainty=true" in line
    assert not list((tmp_path / "out").glob("*"))


def test_points_hold_none(models, photos, tmp_path):
    result = call(models / "light" / "uncertain", photos, "-o", tmp_path / "out", "--as", "ply", "--uncertainty")
    assert result.exit_code == 2
    assert "--uncertainty: ply cannot hold it; add --as png16, color, npy" in result.stderr


def test_names_that_clash_are_refused(models, tmp_path):
    for name in ("a.png", "a_uncertainty.png"):
        photograph().save(tmp_path / name)
    result = call(models / "light" / "uncertain", tmp_path, "-o", tmp_path / "out", "--uncertainty")
    assert result.exit_code == 1
    assert "a_uncertainty.png: 2 images would be written to this file" in result.stderr


def test_a_failed_write_leaves_the_old_file(models, photos, tmp_path, monkeypatch):
    model, out = load_model(models / "light" / "uncertain"), tmp_path / "out"
    predict_files(photos, out, model=model, size=64, uncertainty=True)
    old = (out / "a_uncertainty.png").read_bytes()
    save = Image.Image.save

    def fail(image, target, *args, **options):
        if "log_variance" in str(options["pnginfo"].chunks):
            Path(target).write_bytes(b"half")
            raise OSError("no space left")
        save(image, target, *args, **options)

    monkeypatch.setattr(Image.Image, "save", fail)
    report = predict_files(photos, out, model=model, size=64, uncertainty=True, existing="overwrite")
    assert len(report.failures) == 2
    assert "no space left" in report.failures[0][1]
    assert (out / "a_uncertainty.png").read_bytes() == old
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "a_uncertainty.png", "sub"]


def test_the_scale_holds_both_ends_and_says_what_is_unknown(tmp_path):
    values = np.array([[-5, 5, 0], [np.nan, np.inf, -4.9999]], dtype=np.float32)
    assert write_uncertainty_png(tmp_path / "s.png", Picture(values, "disparity"), None) == 0
    stored = np.asarray(Image.open(tmp_path / "s.png"))
    assert stored.tolist() == [[1, 65535, 32768], [0, 0, 2]]
    back = read_depth_png(tmp_path / "s.png")[0]
    np.testing.assert_allclose(back, np.where(np.isfinite(values), values, np.nan), atol=1e-4)
