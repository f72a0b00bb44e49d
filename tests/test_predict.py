"""`predict`: real files of every kind through the real command."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError
from distilldepth.formats.colormaps import colormap_table
from distilldepth.formats.point_cloud import to_depth
from distilldepth.models import create_student, load_model, save_model
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing
from distilldepth.predict import (
    COLORMAPS,
    PointCloudOptions,
    PredictOptions,
    colorize,
    plan_jobs,
    predict_files,
    read_depth_png,
    write_depth_png,
    write_point_cloud,
)


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """A small student with random weights, saved the way a run saves its own."""
    return save_model(create_student("light-mini", seed=3), tmp_path_factory.mktemp("model") / "student")


@pytest.fixture
def run(student):
    """Run `distilldepth predict` with the small student on the CPU."""

    def call(*args: object):
        common = ["--model", str(student), "--size", "64", "--device", "cpu"]
        return CliRunner().invoke(cli, ["predict", *map(str, args), *common])

    return call


def photograph(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def error_lines(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("distilldepth: error:")]


class Shade(DepthModel):
    """A model whose answer is known: the mean of the channels, in any quantity."""

    def __init__(self, quantity: str = "disparity", broken_at: float | None = None) -> None:
        info = ModelInfo("shade", "test", quantity, "Apache-2.0", "test", ("a note",))
        super().__init__(info, Preprocessing(size=1, multiple=1, resize_policy="lower-bound"))
        self.broken_at = broken_at
        self.batches: list[int] = []

    def estimate(self, images, *, policy=None, size=None):
        self.batches.append(len(images))
        if self.broken_at is not None and bool((images.mean(dim=(1, 2, 3)) > self.broken_at).any()):
            raise torch.OutOfMemoryError("out of memory")
        return self(images).values

    def forward(self, images, *, features=False):
        return DepthOutput(images.mean(1))


# The command as documented


def test_one_image_to_one_png(run, tmp_path):
    source, out = tmp_path / "img.jpg", tmp_path / "depth.png"
    photograph().save(source)
    result = run(source, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    values, texts = read_depth_png(out)
    assert values.shape == (40, 56)
    assert np.isfinite(values).all()
    assert texts["quantity"] == "disparity"
    assert texts["near_is_bright"] is True
    assert texts["resize_policy"] == "lower-bound"
    assert texts["licence"]
    assert texts["model"]
    with Image.open(out) as image:
        assert image.mode.startswith("I")
        stored = np.asarray(image)
    assert stored.min() == 1
    assert stored.max() == 65535


def test_the_png_holds_what_the_model_said(run, student, tmp_path):
    source = tmp_path / "img.png"
    photograph().save(source)
    assert run(source, "-o", tmp_path / "out.npy", "--precision", "float32").exit_code == 0
    assert run(source, "-o", tmp_path / "out.png", "--precision", "float32").exit_code == 0
    exact = np.load(tmp_path / "out.npy")
    assert exact.dtype == np.float32
    expected = load_model(student).predict(source, size=64)
    np.testing.assert_allclose(exact, expected.values, rtol=1e-4, atol=1e-5)
    values, texts = read_depth_png(tmp_path / "out.png")
    assert np.abs(values - exact).max() <= texts["scale"]


def test_it_runs_as_a_program(student, tmp_path):
    photograph().save(tmp_path / "img.jpg")
    command = [sys.executable, "-m", "distilldepth.cli.main", "predict", "img.jpg", "-o", "depth.png"]
    command += ["--model", str(student), "--size", "64", "--device", "cpu", "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "wrote depth.png" in done.stderr
    assert read_depth_png(tmp_path / "depth.png")[0].shape == (40, 56)


# Inputs


def test_a_folder_keeps_its_tree_and_every_format(run, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    names = ["a.jpg", "sub dir/b.png", "sub dir/Ünïcödé 深度.jpg"]
    for index, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(30 + index, 44, index).save(photos / name)
    (photos / "notes.txt").write_text("not an image")
    result = run(photos, "-o", out, "--as", "png,color", "--as", "npy", "--as", "ply", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.stderr
    for name in names:
        stem = out / Path(name).with_suffix("")
        for ending in (".png", "_color.png", ".npy", ".ply"):
            assert stem.with_name(stem.name + ending).is_file()
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [entry["source"] for entry in report["written"]] == [str(photos / name) for name in names]
    assert report["failures"] == []
    assert not list(out.rglob(".distilldepth*"))


def test_a_glob_keeps_the_tree_below_its_fixed_part(run, tmp_path):
    for name in ("x/1.png", "y/2.png", "y/3.bmp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph().save(tmp_path / "in" / name)
    result = run(tmp_path / "in" / "**" / "*.png", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["x/1.png", "y/2.png"]


def test_equal_names_do_not_overwrite_each_other(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "a/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph().save(tmp_path / name)
    out = tmp_path / "out"
    jobs, is_file = plan_jobs([tmp_path / "a", tmp_path / "b"], out)
    assert not is_file
    assert sorted(str(job.outputs["png16"].relative_to(out)) for job in jobs) == [
        "a/1.jpg.png",
        "a/1.png.png",
        "b/1.png",
    ]
    jobs, _ = plan_jobs([tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"], out)
    assert sorted(str(job.outputs["png16"].relative_to(out)) for job in jobs) == ["a/1.png", "b/1.png"]


def test_results_below_the_input_folder_are_not_taken_for_photographs(run, tmp_path):
    photograph().save(tmp_path / "a.png")
    for _ in range(2):
        assert run(tmp_path, "-o", tmp_path / "depth", "--overwrite").exit_code == 0
    assert [path.name for path in (tmp_path / "depth").rglob("*.png")] == ["a.png"]


def test_an_input_is_never_overwritten(run, tmp_path):
    photograph().save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for args in ([tmp_path / "a.png", "-o", tmp_path / "a.png"], [tmp_path / "a.png", "-o", tmp_path]):
        result = run(*args, "--overwrite")
        assert result.exit_code == 2
        assert "would replace an input image" in result.stderr
    assert (tmp_path / "a.png").read_bytes() == before
    assert "is the input folder" in run(tmp_path, "-o", tmp_path).stderr


@pytest.mark.parametrize(
    ("out", "formats", "message"),
    [
        ("depth.jpg", [], ".jpg cannot hold"),
        ("depth.csv", [], ".csv cannot hold"),
        ("depth.png", ["--as", "npy"], "contradicts --as npy"),
        ("depth.ply", ["--as", "color"], "contradicts --as color"),
    ],
)
def test_names_that_contradict_are_refused(run, tmp_path, out, formats, message):
    photograph().save(tmp_path / "img.png")
    result = run(tmp_path / "img.png", "-o", tmp_path / out, *formats)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_name_that_is_no_place_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph().save("img.png")
    for out in ("", "-"):
        result = run("img.png", "-o", out)
        assert result.exit_code == 2
        assert f"-o must name a file or a folder, got '{out}'" in result.stderr
    result = run("", "-o", "out")
    assert result.exit_code == 2
    assert "an input must name" in result.stderr
    assert os.listdir(tmp_path) == ["img.png"]


def test_one_image_by_several_names_is_one_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph().save("img.png")
    names = ["img.png", tmp_path / "img.png", Path("..") / tmp_path.name / "img.png", tmp_path / "*.png"]
    jobs, _ = plan_jobs(names, "out")
    assert [job.outputs["png16"] for job in jobs] == [Path("out/img.png")]
    photograph().save("other.png")
    jobs, _ = plan_jobs([".", tmp_path], "out")
    assert [job.outputs["png16"] for job in jobs] == [Path("out/img.png"), Path("out/other.png")]


def test_an_input_is_not_overwritten_through_a_link_either(run, tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    photograph().save(tmp_path / "photos" / "sub" / "a.png")
    before = (tmp_path / "photos" / "sub" / "a.png").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "sublink").symlink_to(tmp_path / "photos" / "sub")
    result = run(tmp_path / "photos", "-o", tmp_path / "link", "--overwrite")
    assert result.exit_code == 2
    assert "is the input folder" in result.stderr
    result = run(tmp_path / "photos" / "sub" / "a.png", "-o", tmp_path / "sublink", "--overwrite")
    assert result.exit_code == 2
    assert "would replace an input image" in result.stderr
    assert (tmp_path / "photos" / "sub" / "a.png").read_bytes() == before


def test_many_images_do_not_go_into_one_file(run, tmp_path):
    for index in range(2):
        photograph(seed=index).save(tmp_path / f"{index}.png")
    result = run(tmp_path / "0.png", tmp_path / "1.png", "-o", tmp_path / "depth.png")
    assert result.exit_code == 2
    assert "names one file, but there are 2 images" in result.stderr


def test_further_formats_stand_beside_the_file(run, tmp_path):
    photograph().save(tmp_path / "img.jpg")
    assert run(tmp_path / "img.jpg", "-o", tmp_path / "d.png", "--as", "color,png16,npy").exit_code == 0
    assert read_depth_png(tmp_path / "d.png")[0].shape == (40, 56)
    assert (tmp_path / "d_color.png").is_file()
    assert (tmp_path / "d.npy").is_file()


# Existing outputs


def test_existing_outputs(run, tmp_path):
    for index in range(3):
        photograph(seed=index).save(tmp_path / f"{index}.png")
    out = tmp_path / "out"
    assert run(tmp_path / "0.png", "-o", out).exit_code == 0
    # Long ago, for file systems that count whole seconds.
    os.utime(out / "0.png", (10**9, 10**9))
    first = (out / "0.png").stat().st_mtime_ns
    refused = run(tmp_path / "[01].png", "-o", out)
    assert refused.exit_code == 1
    assert "--skip-existing or --overwrite" in refused.stderr
    assert not (out / "1.png").exists()
    skipped = run(tmp_path / "[01].png", "-o", out, "--skip-existing")
    assert skipped.exit_code == 0
    assert (out / "0.png").stat().st_mtime_ns == first
    assert (out / "1.png").exists()
    assert run(tmp_path / "[01].png", "-o", out, "--overwrite").exit_code == 0
    assert (out / "0.png").stat().st_mtime_ns > first
    for _ in range(2):
        assert run(tmp_path / "0.png", "-o", tmp_path / "one.png").exit_code == 0
    nothing = run(tmp_path / "[01].png", "-o", out, "--skip-existing", "--json", "-")
    assert nothing.exit_code == 0
    assert len(json.loads(nothing.stdout)["skipped"]) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    photograph().save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    predict_files(tmp_path / "a.png", out, model=Shade())
    before = out.read_bytes()

    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    report = predict_files(tmp_path / "a.png", out, model=Shade())
    assert report.failures == [(str(tmp_path / "a.png"), f"{out}: No space left on device")]
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out.png"]


@pytest.mark.skipif(os.name == "nt", reason="file sizes are limited by setrlimit")
def test_a_full_disk_is_named_in_every_format(student, tmp_path):
    photograph(300, 400).save(tmp_path / "a.png")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from distilldepth.cli.main import main; main()"
    )
    args = ["predict", "a.png", "-o", "out", "--as", "npy", "--model", str(student), "--size", "64", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *args], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "distilldepth: error: a.png: out/a.npy: File too large"
    assert os.listdir(tmp_path / "out") == []


def test_a_model_without_a_finite_value_is_a_failure(tmp_path):
    photograph(seed=1).save(tmp_path / "a.png")
    model = Shade()
    model.forward = lambda images, *, features=False: DepthOutput(images.mean(1) * torch.nan)
    report = predict_files(tmp_path / "a.png", tmp_path / "out.png", model=model)
    assert report.written == []
    assert "no finite value" in report.failures[0][1]
    assert not (tmp_path / "out.png").exists()


def test_options_without_effect_are_said(run, tmp_path):
    photograph().save(tmp_path / "a.png")
    result = run(tmp_path / "a.png", "-o", tmp_path / "o.png", "--colormap", "inferno", "--fov", "50")
    assert result.exit_code == 0
    assert "warning: --colormap has no effect without --as color" in result.stderr
    assert "warning: --fov has no effect without --as ply" in result.stderr
    result = run(tmp_path / "a.png", "-o", tmp_path / "o.ply", "--fov", "50")
    assert "warning" not in result.stderr


# Bad input


def truncated(path: Path) -> None:
    photograph(200, 200).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "truncated.jpg": truncated,
    "text.jpg": lambda path: path.write_text("this is no image"),
    "bomb.png": bomb,
    "phone.HEIC": lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_alone_is_one_line(run, tmp_path, name):
    BAD[name](tmp_path / name)
    result = run(tmp_path / name, "-o", tmp_path / "out.png")
    assert result.exit_code == 1
    assert len(error_lines(result)) == 1
    assert name in error_lines(result)[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_folder_with_bad_images_is_done_as_far_as_it_goes(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, make in BAD.items():
        make(photos / name)
    for index in range(3):
        photograph(seed=index).save(photos / f"good {index}.png")
    result = run(photos, "-o", tmp_path / "out", "--batch-size", "2", "--json", "-")
    assert result.exit_code == 1
    assert len(list((tmp_path / "out").glob("good *.png"))) == 3
    assert len(list((tmp_path / "out").iterdir())) == 3
    report = json.loads(result.stdout)
    assert [Path(failure["source"]).name for failure in report["failures"]] == sorted(BAD)
    for name in BAD:
        assert result.stderr.count(f"{name}:") == 1
    assert error_lines(result) == [f"distilldepth: error: {len(BAD)} of {len(BAD) + 3} failed (listed above)"]


def test_missing_inputs(run, tmp_path):
    result = run(tmp_path / "no such.jpg", "-o", tmp_path / "out.png")
    assert result.exit_code == 1
    assert result.stderr == f"distilldepth: error: {tmp_path}/no such.jpg: No such file or directory\n"
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no image in this folder" in result.stderr
    result = run(tmp_path / "*.tiff", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no image matches" in result.stderr
    photograph().save(tmp_path / "a.png")
    result = run(tmp_path / "a.png", tmp_path / "gone.png", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "a.png").is_file()
    assert "gone.png: no such file" in result.stderr


def test_unwritable_output_is_found_before_the_model_is_loaded(tmp_path):
    photograph().save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    for out in ("file/depth.png", "file/depth", "file"):
        result = CliRunner().invoke(
            cli, ["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / out), "--model", str(tmp_path / "no-model")]
        )
        assert result.exit_code == (2 if out == "file" else 1)
        assert len(result.stderr.splitlines()) == 1
        assert str(tmp_path / "file") in result.stderr
        assert "no-model" not in result.stderr


def test_wrong_model_device_size_and_policy(run, tmp_path):
    photograph().save(tmp_path / "a.png")
    args = ["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "o.png")]
    for extra, message, code in [
        (["--model", "distildepth-mini"], "did you mean 'distilldepth-mini'?", 2),
        (["--model", str(tmp_path / "none.pth")], "none.pth", 1),
        (["--device", "gpu"], "auto, cpu, cuda", 2),
        (["--percentiles", "99,1"], "LOW < HIGH", 2),
        (["--depth-range", "5,1", "--as", "ply", "-o", str(tmp_path / "o.ply")], "NEAR < FAR", 2),
    ]:
        result = CliRunner().invoke(cli, [*args, *extra])
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(cli, [*args, "--precision", "float16", "--device", "cpu"])
    assert result.exit_code == 2
    assert "on the CPU" in result.stderr


# Every kind of image gives the right picture


def test_every_mode_is_seen_as_the_picture_that_it_is(tmp_path):
    shade = Shade()
    base = photograph(24, 36)
    grey = base.convert("L")
    ramp = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = base.rotate(90, expand=True)
    cases = {
        "rgb.png": (base, base),
        "grey.png": (grey, grey.convert("RGB")),
        "bits.png": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "palette.png": (base.convert("P", palette=Image.Palette.ADAPTIVE), None),
        "rgba.png": (base.convert("RGBA"), base),
        "cmyk.tif": (base.convert("CMYK"), base),
        "sixteen.png": (Image.fromarray(ramp), Image.fromarray((ramp / 257).round().astype(np.uint8)).convert("RGB")),
        "mislabelled.jpg": (base, base),
    }
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, (image, _) in cases.items():
        image.save(photos / name, format="PNG" if name == "mislabelled.jpg" else None)
    turned.save(photos / "turned.png", exif=exif)
    cases["turned.png"] = (turned, base)
    report = predict_files(photos, tmp_path / "out", model=shade, formats=["npy"])
    assert report.failures == []
    for name, (image, expected) in cases.items():
        expected = expected if expected is not None else image.convert("RGB")
        values = np.load(tmp_path / "out" / Path(name).with_suffix(".npy"))
        np.testing.assert_allclose(values, np.asarray(expected).mean(2) / 255, atol=2 / 255, err_msg=name)


@pytest.mark.parametrize("size", [(1, 1), (8, 5000), (5000, 8), (3, 2)])
def test_extreme_shapes(run, tmp_path, size):
    photograph(*size).save(tmp_path / "a.png")
    result = run(tmp_path / "a.png", "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    values, texts = read_depth_png(tmp_path / "out.png")
    assert values.shape == size
    assert texts["resize_policy"] == ("upper-bound" if max(size) == 5000 else "lower-bound")


# Batches


def test_images_of_one_size_share_a_batch(tmp_path):
    for index in range(7):
        photograph(20, 30 if index % 2 else 40, index).save(tmp_path / f"{index}.png")
    shade = Shade()
    report = predict_files(tmp_path, tmp_path / "out", model=shade, batch_size=3)
    assert sorted(shade.batches) == [1, 3, 3]
    assert [Path(entry["source"]).stem for entry in report.written] == list("0123456")
    assert report.notes == ("a note",)


def test_where_memory_runs_out_only_the_image_at_fault_is_lost(tmp_path):
    for index, shade in enumerate([10, 250, 30, 40]):
        Image.new("RGB", (12, 9), (shade, shade, shade)).save(tmp_path / f"{index}.png")
    report = predict_files(tmp_path, tmp_path / "out", model=Shade(broken_at=0.9), options=PredictOptions(batch_size=4))
    assert len(report.written) == 3
    assert [Path(source).stem for source, _ in report.failures] == ["1"]
    assert "not enough memory for 9 x 12" in report.failures[0][1]


def test_memory_that_the_cpu_refuses_is_told_plainly(tmp_path):
    photograph(9, 12).save(tmp_path / "a.png")
    model = Shade()
    model.forward = lambda images, *, features=False: torch.empty(1 << 60)
    report = predict_files(tmp_path / "a.png", tmp_path / "o.npy", model=model)
    assert report.failures[0][1] == "not enough memory for 9 x 12 pixels; try a smaller --size"


def test_a_model_that_is_given_keeps_its_mode(tmp_path):
    photograph().save(tmp_path / "a.png")
    shade = Shade().train()
    predict_files(tmp_path / "a.png", tmp_path / "o.npy", model=shade)
    assert shade.training


# The 16-bit PNG


@pytest.mark.parametrize("quantity", ["disparity", "depth", "metric_depth"])
def test_png_round_trip(tmp_path, quantity):
    values = np.random.default_rng(1).uniform(0.5, 60, (9, 13)).astype(np.float32)
    values[2, 3], values[4, 5] = np.nan, np.inf
    write_depth_png(tmp_path / "d.png", values, quantity, texts={"model": "m", "licence": "Ω-licence"})
    read, texts = read_depth_png(tmp_path / "d.png")
    known = np.isfinite(values)
    assert np.isnan(read[~known]).all()
    assert np.abs(read[known] - values[known]).max() <= 0.51 * texts["scale"]
    assert texts["near_is_bright"] is (quantity == "disparity")
    assert texts["licence"] == "Ω-licence"
    with Image.open(tmp_path / "d.png") as image:
        stored = np.asarray(image).astype(float)
    ranks = np.corrcoef(stored[known], values[known])[0, 1]
    assert ranks > 0.999


@pytest.mark.parametrize(("largest", "scale"), [(60.0, 1 / 1000), (250.0, 1 / 256), (1000.0, 1000 / 65535)])
def test_metric_depth_is_stored_as_public_data_is(tmp_path, largest, scale):
    values = np.array([[0.5, largest], [-1.0, 0.0]], dtype=np.float32)
    write_depth_png(tmp_path / "d.png", values, "metric_depth")
    read, texts = read_depth_png(tmp_path / "d.png")
    assert texts["scale"] == pytest.approx(scale)
    assert texts["offset"] == 0
    assert texts["unit"] == "m"
    assert np.isnan(read[1]).all()
    np.testing.assert_allclose(read[0], values[0], atol=scale)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-20, 1e20])
def test_a_flat_map_survives(tmp_path, value):
    values = np.full((4, 5), value, dtype=np.float32)
    write_depth_png(tmp_path / "d.png", values, "disparity")
    np.testing.assert_array_equal(read_depth_png(tmp_path / "d.png")[0], values)
    assert colorize(values, "disparity").shape == (4, 5, 3)


def test_a_map_without_any_number_survives(tmp_path):
    values = np.full((4, 5), np.nan, dtype=np.float32)
    write_depth_png(tmp_path / "d.png", values, "depth")
    assert np.isnan(read_depth_png(tmp_path / "d.png")[0]).all()
    assert (colorize(values, "depth") == 0).all()


def test_reading_something_else_is_one_clear_line(tmp_path):
    photograph().save(tmp_path / "photo.png")
    with pytest.raises(DistillDepthError, match="not a depth PNG"):
        read_depth_png(tmp_path / "photo.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(DistillDepthError, match="cannot be read"):
        read_depth_png(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError):
        read_depth_png(tmp_path / "none.png")
    with pytest.raises(ValueError, match="must be"):
        write_depth_png(tmp_path / "x.png", np.zeros((1, 2, 3)), "depth")


# Colours


@pytest.mark.parametrize("name", COLORMAPS)
def test_colour_tables_are_whole(name):
    table = colormap_table(name)
    assert table.shape == (256, 3)
    steps = np.abs(np.diff(table.astype(int), axis=0)).max()
    assert steps <= 12


def test_near_has_the_last_colour_whatever_the_quantity():
    table = colormap_table("inferno")
    depth = np.linspace(1, 10, 50, dtype=np.float32).reshape(5, 10)
    for values, quantity in ((1 / depth, "disparity"), (depth, "depth"), (depth, "metric_depth")):
        picture = colorize(values, quantity, colormap="inferno", percentiles=(0, 100))
        assert (picture[0, 0] == table[255]).all()
        assert (picture[-1, -1] == table[0]).all()
    with pytest.raises(ValueError, match="did you mean 'inferno'"):
        colorize(depth, "depth", colormap="infern")


# Point clouds


def read_ply(path: Path) -> tuple[list[str], np.ndarray]:
    data = path.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    kinds = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    return data[:end].decode("ascii").splitlines(), np.frombuffer(data[end:], dtype=kinds)


def test_points_lie_on_their_rays_and_carry_their_colours(tmp_path):
    image = np.asarray(photograph(6, 8))
    depth = np.random.default_rng(0).uniform(1, 5, (6, 8)).astype(np.float32)
    depth[1, 2] = np.nan
    options = PointCloudOptions(intrinsics=(10.0, 12.0, 3.0, 2.0))
    count = write_point_cloud(tmp_path / "c.ply", depth, image, "metric_depth", options=options)
    header, points = read_ply(tmp_path / "c.ply")
    assert count == len(points) == 47
    assert f"element vertex {count}" in header
    assert "comment unit: metres" in header
    known = np.isfinite(depth)
    rows, columns = np.nonzero(known)
    np.testing.assert_allclose(points["z"], depth[known], rtol=1e-6)
    np.testing.assert_allclose(points["x"], (columns - 3.0) / 10.0 * depth[known], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(points["y"], (rows - 2.0) / 12.0 * depth[known], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.stack([points[c] for c in ("red", "green", "blue")], 1), image[known])


def test_a_map_without_unit_says_so_and_keeps_its_order():
    values = np.linspace(-2, 7, 60, dtype=np.float32).reshape(6, 10)
    near, far = 2.0, 8.0
    for quantity, sign in (("disparity", -1), ("depth", 1)):
        depth = to_depth(values, quantity, (near, far))
        assert depth.min() == pytest.approx(near)
        assert depth.max() == pytest.approx(far)
        assert (sign * np.diff(depth.ravel()) >= 0).all()
    assert (to_depth(np.ones((2, 2)), "disparity", (near, far)) == near).all()


def test_ply_through_the_command(run, tmp_path):
    photograph().save(tmp_path / "a.png")
    result = run(tmp_path / "a.png", "-o", tmp_path / "a.ply", "--fov", "70", "--depth-range", "2,6")
    assert result.exit_code == 0, result.stderr
    header, points = read_ply(tmp_path / "a.ply")
    assert any("affine-invariant" in line for line in header)
    assert any("70 degrees" in line for line in header)
    assert len(points) == 40 * 56
    assert points["z"].min() >= 2 - 1e-4
    assert points["z"].max() <= 6 + 1e-4


def test_a_picture_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="map's size"):
        write_point_cloud(tmp_path / "c.ply", np.ones((4, 4)), np.zeros((5, 4, 3), np.uint8), "depth")


def test_an_option_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(TypeError, match="predict_files: has no option 'batchsize'; did you mean 'batch_size'"):
        predict_files(tmp_path, tmp_path / "out", batchsize=3)
