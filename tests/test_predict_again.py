"""`predict` into folders that hold outputs already, and PNGs of one scale."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.models import create_student, save_model
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing
from distilldepth.outputs.origin import INDEX
from distilldepth.predict import PredictOptions, predict_files, read_depth_png, write_depth_png


def photograph(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 25, 3), dtype=np.uint8)
    # Not compressed, so that all have one length; content decides what is read, not the suffix.
    Image.fromarray(pixels).save(path, format="PPM")
    return path


class Shade(DepthModel):
    """A model whose answer is known: a factor times the mean of the channels."""

    def __init__(self, factor: float = 1.0, quantity: str = "metric_depth") -> None:
        info = ModelInfo("shade", "test", quantity, "Apache-2.0", "test")
        super().__init__(info, Preprocessing(size=1, multiple=1))
        self.register_buffer("factor", self._mean.new_tensor(factor))

    def estimate(self, images, *, policy=None, size=None):
        return self(images).values

    def forward(self, images, *, features=False):
        return DepthOutput(images.mean(1) * self.factor)


def shades(inputs, out, factor=1.0, formats=None, existing="refuse", **options):
    options = PredictOptions(device="cpu", precision="float32", **options)
    return predict_files(inputs, out, model=Shade(factor), formats=formats, existing=existing, options=options)


@pytest.fixture
def photos(tmp_path) -> Path:
    for index in range(3):
        photograph(tmp_path / "photos" / "sub" / f"{index}.png", index)
    return tmp_path / "photos"


FORMATS = [["png16"], ["npy"], ["color", "ply"], ["png16", "npy"]]


@pytest.mark.parametrize("formats", FORMATS, ids="+".join)
def test_only_what_would_come_out_the_same_is_left(photos, tmp_path, formats):
    out = tmp_path / "out"

    def again(factor=1.0, **options):
        report = shades(photos, out, factor, formats=formats, existing="skip", **options)
        assert not report.failures
        return len(report.skipped), len(report.written), report.remade

    assert again() == (0, 3, {})
    assert again() == (3, 0, {})
    # The whole folder may move, and name or place of the photographs do not count.
    os.rename(out, tmp_path / "moved")
    os.rename(tmp_path / "moved", out)
    assert again() == (3, 0, {})
    # Other weights of the same name.
    assert again(2.0) == (0, 3, {"made by another model": 3})
    assert again(2.0) == (3, 0, {})
    # Another photograph with the size and time of the first.
    changed = photos / "sub" / "1.png"
    status = changed.stat()
    photograph(changed, 77)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert again(2.0) == (2, 1, {"made from another photograph": 1})
    assert again(2.0, size=2) == (0, 3, {"made with other options": 3})
    assert again(2.0, size=2, batch_size=1) == (3, 0, {})
    # One that was removed is made alone.
    for path in out.rglob("2*"):
        path.unlink()
    assert again(2.0, size=2) == (2, 1, {})


@pytest.mark.parametrize(
    ("formats", "options"),
    [
        (["png16"], {"png_scale": 300.0}),
        (["color"], {"colormap": "magma"}),
        (["color"], {"percentiles": (2.0, 98.0)}),
        (["png16"], {"resize_policy": "square"}),
    ],
)
def test_options_that_change_a_format_count_for_it(photos, tmp_path, formats, options):
    shades(photos, tmp_path / "out", formats=formats)
    # An option of another format changes nothing.
    idle = {"colormap": "magma"} if formats == ["png16"] else {"png_scale": 300.0}
    report = shades(photos, tmp_path / "out", formats=formats, existing="skip", **idle)
    assert len(report.skipped) == 3
    report = shades(photos, tmp_path / "out", formats=formats, existing="skip", **options)
    assert report.remade == {"made with other options": 3}


@pytest.mark.parametrize("form", ["png16", "npy"])
def test_what_predict_did_not_make_is_never_replaced(photos, tmp_path, form):
    out = tmp_path / "out"
    suffix = ".png" if form == "png16" else ".npy"
    (out / "sub").mkdir(parents=True)
    foreign = out / "sub" / f"1{suffix}"
    if form == "png16":
        Image.fromarray(np.full((3, 4), 9, np.uint16)).save(foreign)
    else:
        np.save(foreign, np.zeros((2, 3)))
    before = foreign.read_bytes()
    (out / "sub" / f"2{suffix}").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        report = shades(photos, out, formats=[form], existing="skip")
        assert len(report.written) + len(report.skipped) == 1
        assert [reason for _, reason in report.failures] == [
            f"{out}/sub/{index}{suffix} was not made by predict and stays; move it, or use --overwrite"
            for index in (1, 2)
        ]
        assert foreign.read_bytes() == before
        assert (out / "sub" / f"2{suffix}").is_symlink()
    with pytest.raises(ValueError, match="--skip-existing or --overwrite"):
        shades(photos, out, formats=[form])


def test_an_array_that_was_edited_is_not_replaced(photos, tmp_path):
    out = tmp_path / "out"
    shades(photos, out, formats=["npy"])
    np.save(out / "sub" / "0.npy", np.zeros((2, 3)))
    report = shades(photos, out, 3.0, formats=["npy"], existing="skip")
    assert [reason.partition(" was ")[2][:31] for _, reason in report.failures] == ["changed since predict made it a"]
    assert report.remade == {"made by another model": 2}
    assert np.load(out / "sub" / "0.npy").shape == (2, 3)


def test_maps_of_earlier_versions_are_made_again(photos, tmp_path):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    write_depth_png(tmp_path / "out" / "sub" / "0.png", np.ones((3, 4)), "disparity")
    report = shades(photos, tmp_path / "out", existing="skip")
    assert (len(report.written), report.failures) == (3, [])
    assert report.remade == {"made by this package, from what is not known": 1}


def test_a_damaged_index_costs_what_it_knew_and_nothing_else(photos, tmp_path):
    out = tmp_path / "out"
    shades(photos, out, formats=["npy"])
    lines = (out / INDEX).read_text().splitlines()
    assert len(lines) == 3
    kept = [line for line in lines if "0.npy" not in line]
    hostile = ["", "[]", "{", "[" * 100_000, '{"path": 5}', '{"path": "sub/1.npy/../../x"}', "9" * 5000, "\x00"]
    cut = next(line for line in lines if "0.npy" in line)[:-20]
    (out / INDEX).write_text("\n".join([*hostile, *kept, cut]))
    report = shades(photos, out, formats=["npy"], existing="skip")
    assert (len(report.skipped), len(report.failures)) == (2, 1)
    # The cut line does not swallow the next one.
    (out / "sub" / "0.npy").unlink()
    assert len(shades(photos, out, formats=["npy"], existing="skip").written) == 1
    assert len(shades(photos, out, formats=["npy"], existing="skip").skipped) == 3


def test_nothing_is_written_through_a_link_that_lies_for_the_index(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("text\n")
    (tmp_path / "out" / INDEX).symlink_to(tmp_path / "precious")
    with pytest.raises(DistillDepthError, match="is a link"):
        shades(photos, tmp_path / "out", formats=["npy"])
    assert (tmp_path / "precious").read_text() == "text\n"


def test_the_command_says_what_it_did(photos, tmp_path):
    students = [save_model(create_student("light-mini", seed=seed), tmp_path / f"m{seed}" / "same") for seed in (1, 2)]

    def run(model, *args):
        command = ["predict", str(photos), "-o", str(tmp_path / "out"), "--size", "64", "--device", "cpu"]
        done = CliRunner().invoke(cli, [*command, "--model", str(model), "--skip-existing", *args])
        assert done.exit_code == 0, done.stderr
        return done

    assert "skipped" not in run(students[0]).stderr
    assert "skipped 3 whose outputs are there, made the same way" in run(students[0]).stderr
    done = run(students[1], "--json", "-")
    assert "made again 3 whose outputs were made by another model" in done.stderr
    assert json.loads(done.stdout)["remade"] == {"made by another model": 3}


@pytest.mark.parametrize("name", ["one.png", "one.npy", "one.ply"])
def test_a_single_output(photos, tmp_path, name):
    source, out = photos / "sub" / "0.png", tmp_path / name
    for factor, expected in ((1.0, 1), (1.0, 0), (2.0, 1)):
        assert len(shades(source, out, factor, existing="skip").written) == expected


# PNGs of one scale


def read_png(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Samples and text of a 16-bit grey PNG, by the words of its specification and by no library of images."""
    data, place, pixels, texts = path.read_bytes()[8:], 0, b"", {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
            assert (depth, colour) == (16, 0)
        elif kind == b"IDAT":
            pixels += content
        elif kind == b"tEXt":
            key, _, text = content.partition(b"\0")
            texts[key.decode()] = text.decode("latin-1")
    rows = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, 1 + 2 * width)
    before, out = np.zeros(2 * width, np.int64), []
    for row in rows:
        line = row[1:].astype(np.int64)
        for i in range(2 * width):
            a, b, c = (line[i - 2] if i > 1 else 0), before[i], (before[i - 2] if i > 1 else 0)
            nearest = min((a, b, c), key=lambda value: abs(a + b - c - value))
            line[i] = (line[i] + (0, a, b, (a + b) // 2, nearest)[row[0]]) % 256
        out.append(line[0::2] * 256 + line[1::2])
        before = line
    return np.array(out), texts


@pytest.mark.parametrize("scale", [1000, 256, 5000, 333.3, 0.5])
def test_one_scale_for_every_map(tmp_path, scale):
    rng = np.random.default_rng(4)
    largest = 60_000 / scale
    for number, span in enumerate((1.0, 0.01)):
        values = rng.uniform(0.6 / scale, largest * span, (11, 17)).astype(np.float32)
        values[0, :3] = [np.nan, 0, -1]
        path = tmp_path / f"{number}.png"
        assert write_depth_png(path, values, "metric_depth", units_per_metre=scale) == 0
        with Image.open(path) as image:
            stored = np.asarray(image).astype(np.int64)
        own, texts = read_png(path)
        np.testing.assert_array_equal(own, stored)
        assert float(texts["scale"]) == 1 / scale
        assert not stored[0, :3].any()
        known = np.isfinite(values) & (values > 0)
        assert (stored[known] > 0).all()
        assert np.abs(stored[known] / scale - values[known]).max() <= 0.5001 / scale
        read, _ = read_depth_png(path)
        np.testing.assert_array_equal(np.isnan(read), ~known)
        np.testing.assert_allclose(read[known], stored[known] / scale, rtol=1e-6)
    index = StoredPredictions(tmp_path, "metric_depth")
    np.testing.assert_allclose(index.read(tmp_path / "1.png")[known], stored[known] / scale, rtol=1e-6)


def test_what_a_scale_cannot_hold_is_counted(tmp_path):
    values = np.array([[1, 65.5354, 65.536, 400], [0.0004, 0.0006, np.nan, 0]], np.float64)
    assert write_depth_png(tmp_path / "d.png", values, "metric_depth", units_per_metre=1000) == 3
    np.testing.assert_array_equal(read_png(tmp_path / "d.png")[0], [[1000, 65535, 65535, 65535], [1, 1, 0, 0]])
    assert write_depth_png(tmp_path / "none.png", values * np.nan, "metric_depth", units_per_metre=256) == 0
    assert read_png(tmp_path / "none.png")[1]["scale"] == repr(1 / 256)


def test_the_warning_names_what_was_clipped(photos, tmp_path, monkeypatch):
    report = shades(photos, tmp_path / "out", 100.0, png_scale=1000)
    stored = [np.asarray(Image.open(entry["outputs"]["png16"])) for entry in report.written]
    assert report.clipped == {
        entry["source"]: int((np.asarray(Image.open(entry["source"])).mean(2) / 2.55 > 65.5355).sum())
        for entry in report.written
    }
    assert all((map_ == 65535).any() for map_ in stored)
    monkeypatch.setattr("distilldepth.predict.run.load_model", lambda *args, **kwargs: Shade(100.0))
    command = ["predict", str(photos), "-o", str(tmp_path / "cli"), "--model", "any", "--precision", "float32"]
    done = CliRunner().invoke(cli, [*command, "--device", "cpu", "--png-scale", "1000"])
    assert done.exit_code == 0, done.stderr
    count = sum(report.clipped.values())
    (line,) = [line for line in done.stderr.splitlines() if "beyond" in line]
    assert line.startswith("distilldepth: warning: --png-scale 1000 holds 0.001 to 65.535 m: ")
    assert f"m: {count} pixels of 3 maps beyond that are stored" in line
    assert "0.png" in line
    done = CliRunner().invoke(cli, [*command, "--device", "cpu", "--overwrite", "--png-scale", "256"])
    assert "beyond" not in done.stderr


@pytest.mark.parametrize("quantity", ["disparity", "depth"])
def test_a_scale_needs_metres(photos, tmp_path, monkeypatch, quantity):
    monkeypatch.setattr("distilldepth.predict.run.load_model", lambda *args, **kwargs: Shade(1.0, quantity))
    command = ["predict", str(photos), "-o", str(tmp_path / "out"), "--model", "any", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*command, "--png-scale", "1000"])
    assert done.exit_code == 2
    assert f"predicts {quantity}, which is known up to scale and shift only" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "1e300", "x"])
def test_a_scale_that_is_none(photos, tmp_path, scale):
    done = CliRunner().invoke(cli, ["predict", str(photos), "-o", str(tmp_path / "out"), "--png-scale", scale])
    assert done.exit_code == 2, done.stderr
    with pytest.raises(UsageError):
        write_depth_png(tmp_path / "d.png", np.ones((2, 3)), "metric_depth", units_per_metre=float("nan"))


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.ply"])
def test_a_single_output_never_takes_the_place_of_what_predict_did_not_make(photos, tmp_path, name):
    source, out = photos / "sub" / "0.png", tmp_path / "elsewhere" / name
    out.parent.mkdir()
    if name == "a.png":
        photograph(out, 9)
    else:
        out.write_bytes(b"somebody's")
    before = out.read_bytes()
    with pytest.raises(ValueError, match="exists and was not made by predict; take another name, or add --overwrite"):
        shades(source, out)
    assert out.read_bytes() == before
    shades(source, out, existing="overwrite")
    made = out.read_bytes()
    assert made != before
    shades(source, out, factor=0.5)
    assert out.read_bytes() != made
