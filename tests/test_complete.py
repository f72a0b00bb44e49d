"""`complete`: photographs and points of known depth through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import distilldepth
from distilldepth.cli.main import cli
from distilldepth.completion import CompleteOptions, complete, complete_files
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.formats.png import read_depth_png, write_depth_png
from distilldepth.inference.batches import LoadedImage
from distilldepth.inference.completer import Completer
from distilldepth.inference.estimator import InferenceOptions
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing
from distilldepth.sparse.align import align_to_points

SIZE = (36, 52)


class Shade(DepthModel):
    """Says that bright is near: exactly the disparity of `scene`, up to scale and shift."""

    def __init__(self, quantity: str = "disparity") -> None:
        info = ModelInfo("shade", "test", quantity, "Apache-2.0", "test", ("a note",))
        super().__init__(info, Preprocessing(size=1, multiple=1, resize_policy="lower-bound"))

    def estimate(self, images, *, policy=None, size=None):
        return self(images).values

    def forward(self, images, *, features=False):
        return DepthOutput(images.mean(1))


class Doubler(Shade):
    """A stand-in for a completion network: twice the aligned depth, and the points themselves where they are."""

    takes_points = True
    guide = "distilldepth-mini"
    align = "trimmed"

    def __init__(self, worst: int = 100) -> None:
        super().__init__("metric_depth")
        self.worst = worst
        self.seen: list[tuple[int, bool]] = []

    def complete(self, images, sparse, aligned):
        if len(images) > self.worst:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append((len(images), self.training))
        return torch.where(sparse > 0, sparse, 2 * aligned)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photograph `(H, W, 3)`, and the depth that its brightness stands for: 1 / (0.1 + brightness)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 236, (4, 6), dtype=np.uint8))
    grey = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    return np.repeat(grey[..., None], 3, 2), (1 / (0.1 + grey / 255)).astype(np.float32)


def some(depth: np.ndarray, count: int = 40, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sparse = np.zeros_like(depth)
    places = rng.choice(depth.size, count, replace=False)
    sparse.flat[places] = depth.flat[places]
    return sparse


def lines(path: Path, sparse: np.ndarray) -> Path:
    rows = [f"{column} {row} {sparse[row, column]}" for row, column in np.argwhere(sparse > 0)]
    path.write_text("\n".join(["u v depth", *rows]), encoding="utf-8")
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three photographs, one in a folder below, and their points in three formats."""
    photos, points = tmp_path / "photos", tmp_path / "points"
    for index, name in enumerate(("a", "b", "sub/c")):
        image, depth = scene(index)
        for folder in (photos, points):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photos / f"{name}.png")
        if name == "a":
            np.save(points / "a.npy", some(depth))
        elif name == "b":
            lines(points / "b.txt", some(depth))
        else:
            write_depth_png(points / "sub/c.png", some(depth), "metric_depth", units_per_metre=1000)
    return photos, points


@pytest.fixture
def shade(monkeypatch):
    """The command's model is `Shade`."""
    monkeypatch.setattr("distilldepth.inference.completer.load_model", lambda *args, **kwargs: Shade())


def run(*arguments: object):
    return CliRunner().invoke(cli, ["complete", *map(str, arguments), "--device", "cpu", "--precision", "float32"])


def refused(result, code: int) -> str:
    assert result.exit_code == code, (result.stderr, result.exception)
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.stderr.count("\n") == 1
    return line


# The stages


def test_the_stages_are_what_they_are_alone():
    (image, depth), sparse = scene(), some(scene()[1])
    sparse[3, 4] = 3 * depth[3, 4]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    points = torch.from_numpy(sparse)[None]
    for align in ("least-squares", "trimmed", "ransac", "local"):
        completed = Completer(Shade(), align=align, align_only=True).complete_batch(pixels, points)
        expected = align_to_points(pixels.mean(1), points, quantity="disparity", method=align)
        torch.testing.assert_close(completed.aligned, expected)
        torch.testing.assert_close(completed.relative, pixels.mean(1))
        assert completed.depth is completed.aligned
    network = Completer(Doubler(), InferenceOptions(size=32, precision="float32"))
    completed = network.complete_batch(pixels, points)
    assert network.align == "trimmed"
    assert network.model.info.name == "distilldepth-mini"
    aligned = align_to_points(completed.relative, points, quantity="disparity", method="trimmed")
    torch.testing.assert_close(completed.aligned, aligned)
    torch.testing.assert_close(completed.depth, torch.where(points > 0, points, 2 * aligned))
    assert Completer(Doubler(), align="local").align == "local"


def test_any_depth_model_stands_before_the_network(monkeypatch):
    monkeypatch.setattr("distilldepth.inference.completer.load_model", lambda *args, **kwargs: Doubler())
    completer = Completer(Shade("depth"))
    assert (completer.model.info.name, completer.info.name) == ("shade", "shade on shade")
    assert completer.info.quantity == "metric_depth"
    assert completer.info.notes == ("a note",)
    assert isinstance(completer.network, Doubler)
    assert Completer(Shade("depth"), align_only=True).network is None


def test_models_are_in_evaluation_while_they_run_and_as_they_were_after():
    network = Doubler().train()
    with Completer(network, InferenceOptions(size=32)) as completer:
        assert not completer.model.training
        completer.complete_batch(torch.rand(1, 3, *SIZE), torch.from_numpy(some(scene()[1]))[None])
    assert network.training
    assert network.seen == [(1, False)]


def test_a_batch_too_large_for_the_memory_is_run_by_halves():
    network = Doubler(worst=1)

    class Read:
        points = some(scene()[1])

    loaded = [LoadedImage(index, scene()[0], Read, None) for index in range(3)]
    with Completer(network, InferenceOptions(size=32)) as completer:
        maps = completer.estimate_batch(loaded)
        network.worst = 0
        broken = completer.estimate_batch(loaded[:2])
    assert [tuple(values.shape) for values in maps] == [SIZE] * 3
    assert [type(error) for error in broken] == [MemoryError] * 2
    assert "try a smaller --size" in str(broken[0])


def test_what_decides_the_maps_decides_the_digest():
    plain = Completer(Shade(), align_only=True)
    assert plain.digest == Completer(Shade(), align_only=True).digest
    others = [Completer(Shade(), align="trimmed", align_only=True), Completer(Shade("depth"), align_only=True)]
    others.append(Completer(Doubler()))
    assert len({plain.digest, *(other.digest for other in others)}) == 4


def test_a_missing_network_and_a_wrong_word_are_told():
    with pytest.raises(UsageError, match=r"align must be known, got 'locl'; did you mean 'local'"):
        Completer(Shade(), align="locl")


# In Python


def test_a_photograph_in_memory():
    image, depth = scene()
    sparse = some(depth)
    prediction = distilldepth.complete(image, sparse, model=Shade(), align_only=True)
    assert (prediction.quantity, prediction.values.dtype) == ("metric_depth", np.float32)
    np.testing.assert_allclose(prediction.values, depth, rtol=1e-3)
    again = complete(Image.fromarray(image), torch.from_numpy(sparse), model=Shade(), align_only=True, align="ransac")
    np.testing.assert_allclose(again.values, depth, rtol=1e-3)
    gaps = np.where(sparse > 0, sparse.astype(np.float64), np.nan)
    np.testing.assert_array_equal(complete(image, gaps, model=Shade(), align_only=True).values, prediction.values)
    thousandths = np.rint(1000 * sparse).astype(np.uint16)
    scaled = complete(image, thousandths, model=Shade(), align_only=True, sparse_scale=1000).values
    np.testing.assert_allclose(scaled, depth, rtol=5e-3)


def test_files_in_python(folders):
    photos, points = folders
    prediction = complete(photos / "sub/c.png", points / "sub/c.png", model=Shade(), align_only=True)
    np.testing.assert_allclose(prediction.values, scene(2)[1], rtol=5e-3)


def test_wrong_arguments_in_python():
    image, depth = scene()
    sparse = some(depth)
    with pytest.raises(ValueError, match=r"of the image's size \(36, 52\), got \(52, 36\)"):
        complete(image, sparse.T, model=Shade(), align_only=True)
    with pytest.raises(TypeError, match="an array or a tensor of real numbers, or a path, got list"):
        complete(image, sparse.tolist(), model=Shade(), align_only=True)
    with pytest.raises(ValueError, match="takes one image"):
        complete([image], sparse, model=Shade())
    with pytest.raises(DistillDepthError, match="complete: sparse: has one point of known depth"):
        complete(image, np.where(sparse == sparse.max(), sparse, 0), model=Shade(), align_only=True)
    with pytest.raises(DistillDepthError, match=r"with 1000 \(millimetres\)"):
        complete(image, 1000 * sparse, model=Shade(), align_only=True)
    with pytest.raises(TypeError, match="has no option 'sice'; did you mean 'size'"):
        complete(image, sparse, model=Shade(), align_only=True, sice=3)


# The command


def test_one_photograph_to_one_file_of_each_kind(tmp_path, shade):
    image, depth = scene()
    Image.fromarray(image).save(tmp_path / "img.png")
    points = lines(tmp_path / "points.txt", some(depth))
    result = run(tmp_path / "img.png", "--sparse", points, "-o", tmp_path / "dense.png", "--align-only")
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    values, texts = read_depth_png(tmp_path / "dense.png")
    np.testing.assert_allclose(values, depth, rtol=5e-3)
    assert texts["quantity"] == "metric_depth"
    assert texts["scale"] == 0.001
    assert texts["points_from"] == str(points)
    arguments = (tmp_path / "img.png", "--sparse", points, "--align-only", "--align", "trimmed")
    assert run(*arguments, "-o", tmp_path / "dense.npy").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "dense.npy"), depth, rtol=1e-3)
    assert run(*arguments, "-o", tmp_path / "cloud.ply", "--fov", "50").exit_code == 0
    assert b"unit: metres" in (tmp_path / "cloud.ply").read_bytes()[:400]
    # A map that this command made is points for the next.
    (tmp_path / "dense.png").rename(tmp_path / "given.png")
    assert run(*arguments[:2], tmp_path / "given.png", "--align-only", "-o", tmp_path / "again.npy").exit_code == 0


def test_folders_pair_by_name(folders, tmp_path, shade):
    photos, points = folders
    result = run(
        photos, "--sparse", points, "--out", tmp_path / "out", "--as", "npy,color", "--align-only", "--json", "-"
    )
    assert result.exit_code == 0, result.stderr
    for index, name in enumerate(("a", "b", "sub/c")):
        np.testing.assert_allclose(np.load(tmp_path / f"out/{name}.npy"), scene(index)[1], rtol=5e-3)
        assert (tmp_path / f"out/{name}_color.png").is_file()
    report = json.loads(result.stdout)
    assert (report["guide"], report["align"], report["quantity"]) == ("shade", "local", "metric_depth")
    assert [entry["points"] for entry in report["written"]] == [40, 40, 40]
    assert report["written"][2]["points_from"] == str(points / "sub/c.png")


def test_missing_partners_are_named_and_the_rest_is_done(folders, tmp_path, shade):
    photos, points = folders
    (points / "b.txt").rename(points / "other.txt")
    result = run(photos, "--sparse", points, "-o", tmp_path / "out", "--align-only")
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert f"  {photos}/b.png: has no points: {points} holds no b.npy (nor .npz, .png, .txt, .csv)" in told
    assert f"  {points}/other.txt: has no photograph of that name" in told
    assert told[-1] == "distilldepth: error: 2 of 4 failed (listed above)"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["a.png", "c.png"]
    # Photographs that are named one by one leave the other points unused.
    assert run(photos / "a.png", "--sparse", points, "-o", tmp_path / "one", "--align-only").exit_code == 0


def test_a_bad_file_is_listed_and_the_rest_is_done(folders, tmp_path, shade):
    photos, points = folders
    np.save(points / "a.npy", np.zeros(SIZE))
    result = run(photos, "--sparse", points, "-o", tmp_path / "out", "--align-only")
    assert result.exit_code == 1
    assert f"  {photos}/a.png: {points}/a.npy: has no point of known depth; at least two are needed" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["b.png", "c.png"]


def test_what_cannot_be_paired_is_one_line(folders, tmp_path, shade):
    photos, points = folders
    out = ("-o", tmp_path / "out", "--align-only")
    assert "names one file, but there are 3 images" in refused(run(photos, "--sparse", points / "a.npy", *out), 2)
    assert "No such file" in refused(run(photos, "--sparse", tmp_path / "nothing", *out), 1)
    (tmp_path / "empty").mkdir()
    assert "no photograph has points; the first: " in refused(run(photos, "--sparse", tmp_path / "empty", *out), 1)
    np.save(points / "b.npy", np.ones(SIZE))
    result = run(photos / "b.png", "--sparse", points, *out)
    assert "has several files of points" in refused(result, 1)
    assert "b.npy and b.txt" in result.stderr
    (photos / "other").mkdir()
    (photos / "other/a.png").write_bytes((photos / "a.png").read_bytes())
    told = run(photos, "--sparse", points, *out).stderr
    assert f"  {photos}/other/a.png: shares {points}/a.npy with 1 more image of its name" in told
    assert not (tmp_path / "out/other").exists()


def test_points_beside_and_below_the_photographs(tmp_path, shade):
    image, depth = scene()
    photos = tmp_path / "photos"
    (photos / "points").mkdir(parents=True)
    Image.fromarray(image).save(photos / "a.jpg", quality=100)
    write_depth_png(photos / "points/a.png", some(depth), "metric_depth")
    result = run(photos, "--sparse", photos / "points", "-o", tmp_path / "out", "--align-only")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]
    lines(photos / "a.txt", some(depth))
    result = run(photos / "a.jpg", "--sparse", photos, "-o", tmp_path / "beside.png", "--align-only")
    # The photograph's folder also holds the other points, which are another file of that name only further down.
    assert result.exit_code == 0, result.stderr


def test_a_png_without_a_unit_asks_for_it_before_a_model_is_loaded(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("no model is needed to find this")

    monkeypatch.setattr("distilldepth.inference.completer.load_model", never)
    image, depth = scene()
    Image.fromarray(image).save(tmp_path / "img.png")
    Image.fromarray((256 * some(depth)).astype(np.uint16)).save(tmp_path / "sparse.png")
    arguments = (tmp_path / "img.png", "--sparse", tmp_path / "sparse.png", "-o", tmp_path / "dense.png")
    message = refused(run(*arguments), 2)
    assert all(word in message for word in ("--sparse-scale", "1000 (millimetres)", "256 (KITTI)", "5000"))
    assert not (tmp_path / "dense.png").exists()
    monkeypatch.setattr("distilldepth.inference.completer.load_model", lambda *args, **kwargs: Shade())
    assert run(*arguments, "--sparse-scale", "256", "--align-only").exit_code == 0
    np.testing.assert_allclose(read_depth_png(tmp_path / "dense.png")[0], depth, rtol=2e-2)
    wrong = refused(run(*arguments, "--sparse-scale", "1", "--align-only"), 1)
    assert "cannot be" in wrong
    assert "256 (KITTI)" in wrong


def test_points_and_photographs_survive(folders, tmp_path, shade):
    photos, points = folders
    content = (points / "sub/c.png").read_bytes()
    for target in (points / "sub/c.png", photos / "sub/c.png"):
        result = run(
            photos / "sub/c.png", "--sparse", points / "sub/c.png", "-o", target, "--align-only", "--overwrite"
        )
        assert "would replace" in refused(result, 2)
    assert (points / "sub/c.png").read_bytes() == content


def test_skip_existing_sees_other_points_and_another_alignment(folders, tmp_path, shade):
    photos, points = folders
    arguments = (photos, "--sparse", points, "-o", tmp_path / "out", "--as", "npy,png16", "--align-only")
    assert run(*arguments).exit_code == 0
    assert "exist already" in refused(run(*arguments), 1)
    assert "skipped 3" in run(*arguments, "--skip-existing").stderr
    np.save(points / "a.npy", some(scene(0)[1], seed=7))
    again = run(*arguments, "--skip-existing").stderr
    assert "skipped 2" in again
    assert "made again 1 whose outputs were made from another photograph" in again
    assert (
        "made again 3 whose outputs were made by another model"
        in run(*arguments, "--skip-existing", "--align", "trimmed").stderr
    )
    (tmp_path / "out/b.npy").write_bytes((points / "a.npy").read_bytes())
    changed = run(*arguments, "--skip-existing", "--align", "trimmed")
    assert changed.exit_code == 1
    assert "was changed since complete made it and stays" in changed.stderr
    assert (tmp_path / "out/.complete.jsonl").is_file()


def test_the_network_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    def absent(spec, **kwargs):
        if spec == "completion-mini":
            raise UsageError("load_model: 'completion-mini' is an architecture without weights")
        return Shade()

    monkeypatch.setattr("distilldepth.inference.completer.load_model", absent)
    image, depth = scene()
    Image.fromarray(image).save(tmp_path / "img.png")
    np.save(tmp_path / "p.npy", some(depth))
    arguments = (tmp_path / "img.png", "--sparse", tmp_path / "p.npy", "-o", tmp_path / "dense.npy")
    for model in ("completion-mini", "distilldepth-mini"):
        line = refused(run(*arguments, "--model", model), 1)
        assert "the completion network 'completion-mini' is not installed" in line
        assert "--align-only" in line
        assert run(*arguments, "--model", model, "--align-only").exit_code == 0


def test_options_by_name_in_python(folders, tmp_path):
    photos, points = folders
    report = complete_files(
        photos, points, tmp_path / "out", model=Shade(), formats=["npy"], align_only=True, align="least-squares"
    )
    assert report.align == "least-squares"
    assert len(report.written) == 3
    with pytest.raises(TypeError, match="has no option 'alignn'; did you mean 'align'"):
        complete_files(photos, points, tmp_path / "out", model=Shade(), alignn="local")
    with pytest.raises(ValueError, match="existing must be"):
        complete_files(photos, points, tmp_path / "out", model=Shade(), existing="no", options=CompleteOptions())
