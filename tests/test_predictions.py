"""Maps of other programs: every naming and format, holes, scales, and what is said when one is missing or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import dataset_layouts as layouts
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.datasets import submission_items
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate import StoredPredictions, evaluate
from distilldepth.evaluate.record.cases import Cases
from distilldepth.evaluate.record.saved_maps import check_distinct, save_prediction
from distilldepth.evaluate.submission import write_kitti_submission
from distilldepth.formats.kitti import write_kitti_png
from distilldepth.formats.png import write_depth_png
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.preprocess import Preprocessing

SIZE = (12, 17)


def depth_of(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 9, size).astype(np.float32)


def dataset_of(*names: str, name: str = "set", kind: str = "", size: tuple[int, int] = SIZE) -> Dataset:
    """Samples whose truth is `depth_of` their place."""

    def reader(index: int):
        truth = Truth(depth_of(index, size), np.ones(size, bool), is_metric=True)
        return lambda: (np.full((*size, 3), 99, np.uint8), truth)

    return Dataset(name, [Item(name, one, reader(index)) for index, one in enumerate(names)], kind=kind)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def run(*args: object):
    return CliRunner().invoke(cli, ["evaluate", "--device", "cpu", *map(str, args)])


# Where a map is looked for


@pytest.mark.parametrize(
    ("sample", "file"),
    [
        ("test/kitchen/rgb_0001.png", "test/kitchen/rgb_0001.npy"),
        ("test/kitchen/rgb_0001.png", "set/test/kitchen/rgb_0001.npy"),
        ("test/kitchen/rgb_0001.png", "test/kitchen/pred_0001.npy"),
        ("ai_001/frame_7_rgb.png", "ai_001/frame_7_pred.npy"),
        ("scene/color/000300.jpg", "scene/color/pred_000300.npy"),
        ("scene/color/000300.jpg", "scene/color/000300_depth.npy"),
        ("scene/color/000300.jpg", "scene_color_000300.npy"),
        ("a/b/0000000005.png", "0000000005.npy"),
        ("a/b/0000000005.png", "set/pred_0000000005.npy"),
        ("photo.with.dots.jpg", "photo.with.dots.npy"),
        ("scene-10000003", "scene-10000003.npy"),
        ("../images/7.JPG", "images/7.npy"),
    ],
)
def test_names_that_are_tried(tmp_path, sample, file):
    save(tmp_path / file, depth_of(0))
    found, missing = StoredPredictions(tmp_path, "metric_depth").find([dataset_of(sample)])
    assert found == {("set", 0): tmp_path / file}
    assert missing == {}


def test_the_own_name_is_preferred_and_npy_to_png(tmp_path):
    for file in ("a/pred_x.npy", "a/x.npy", "x.npy"):
        save(tmp_path / file, depth_of(0))
    save(tmp_path / "a" / "x.png", np.ones(SIZE, np.uint16))
    found, _ = StoredPredictions(tmp_path, "depth").find([dataset_of("a/x.png")])
    assert found["set", 0] == tmp_path / "a" / "x.npy"


def test_a_bare_file_name_is_taken_only_if_it_is_the_only_one(tmp_path):
    save(tmp_path / "000300.npy", depth_of(0))
    stored = StoredPredictions(tmp_path, "depth")
    with pytest.raises(DistillDepthError, match="no prediction for any sample"):
        stored.find([dataset_of("scene_a/000300.jpg", "scene_b/000300.jpg")])
    with pytest.raises(DistillDepthError, match=r"would be the prediction of one/000300.jpg and of two/000300.jpg"):
        stored.find([dataset_of("000300.jpg", name="one"), dataset_of("000300.jpg", name="two")])


def test_no_sample_leads_out_of_the_folder(tmp_path):
    path = save_prediction(tmp_path / "maps", "../set", "../../x/1.png", depth_of(0), "depth")
    assert path.resolve().is_relative_to((tmp_path / "maps").resolve())


def test_two_samples_never_share_a_file():
    with pytest.raises(ValueError, match=r"different names without suffix, got a.png and a.jpg"):
        check_distinct([dataset_of("a.png", "a.jpg")], "npy")
    check_distinct([dataset_of("a.png"), dataset_of("a.png", name="other")], "npy")


# Formats


@pytest.mark.parametrize(("form", "tolerance"), [("npy", 0), ("png16", 0.5e-3), ("kitti", 0.5 / 256)])
def test_what_is_saved_is_read_back(tmp_path, form, tolerance):
    values = depth_of(3)
    values[2, 3] = np.nan
    path = save_prediction(tmp_path, "set", "a/1.png", values, "metric_depth", form=form)
    assert path == tmp_path / "set" / "a" / ("1.npy" if form == "npy" else "1.png")
    stored = StoredPredictions(tmp_path, "metric_depth", depth_scale=256 if form == "kitti" else None)
    read = stored.read(path)
    np.testing.assert_allclose(read, values, atol=tolerance * 1.001)
    assert read.dtype == np.float32


def test_kitti_pngs_are_metres_by_256_and_0_is_a_hole(tmp_path):
    write_kitti_png(tmp_path / "x.png", np.array([[1.5, 0.0, -2.0], [np.inf, 1e-6, 900.0]]), "metric_depth")
    stored = np.asarray(Image.open(tmp_path / "x.png"))
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, [[384, 0, 0], [0, 1, 65535]])
    read = StoredPredictions(tmp_path, "metric_depth").read(tmp_path / "x.png", "kitti-eigen")
    np.testing.assert_array_equal(np.isnan(read), stored == 0)
    with pytest.raises(ValueError, match="disparity, which is known up to scale and shift"):
        write_kitti_png(tmp_path / "y.png", np.ones((2, 2)), "disparity")


@pytest.mark.parametrize("shape", [(1, 12, 17), (12, 17, 1), (1, 1, 12, 17)])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint16])
def test_arrays_of_other_shapes_and_types(tmp_path, shape, dtype):
    values = depth_of(1).astype(dtype)
    np.save(tmp_path / "x.npy", values.reshape(shape))
    np.testing.assert_array_equal(
        StoredPredictions(tmp_path, "depth").read(tmp_path / "x.npy"), values.astype(np.float32)
    )


def test_zero_is_a_value_of_a_relative_png_and_a_hole_of_a_metric_one(tmp_path):
    save(tmp_path / "x.png", np.array([[0, 1000], [2000, 65535]], np.uint16))
    relative = StoredPredictions(tmp_path, "disparity").read(tmp_path / "x.png")
    np.testing.assert_array_equal(relative, [[0, 1000], [2000, 65535]])
    metric = StoredPredictions(tmp_path, "metric_depth", depth_scale=1000).read(tmp_path / "x.png")
    np.testing.assert_allclose(metric, [[np.nan, 1], [2, 65.535]])


def test_files_that_are_no_map_say_so(tmp_path):
    stored = StoredPredictions(tmp_path, "metric_depth")
    save(tmp_path / "mm.png", np.ones(SIZE, np.uint16))
    save(tmp_path / "colour.png", np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint32).reshape(*SIZE, 3).astype(np.uint8))
    np.save(tmp_path / "two.npy", np.ones((2, 5, 5)))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty.npy").write_bytes(b"")
    save_prediction(tmp_path, "set", "other.png", depth_of(0), "disparity", form="png16")
    for name, message in {
        "mm.png": "--depth-scale",
        "colour.png": "coloured picture and not depth",
        "two.npy": "one map",
        "words.npy": "real numbers",
        "torn.npy": "is not a readable .npy file",
        "empty.npy": "is empty",
        "set/other.png": "says that its numbers are disparity",
    }.items():
        with pytest.raises(DistillDepthError, match=message) as caught:
            stored.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        stored.read(tmp_path / "none.npy")


# The submission


class Metres(DepthModel):
    """Predicts the red channel as metres."""

    def __init__(self, quantity: str = "metric_depth") -> None:
        info = ModelInfo("metres", "test", quantity, "Apache-2.0", "test")
        super().__init__(info, Preprocessing(1, 1, resize_policy="square"))

    def estimate(self, images, *, policy=None, size=None):
        return images[:, 0] * 255


def test_the_submission_has_the_names_sizes_and_numbers_that_the_server_wants(tmp_path):
    lines = layouts.kitti_test(tmp_path / "kitti", 5)
    images = submission_items(tmp_path / "kitti", strict_count=False)
    out = tmp_path / "out"
    written = write_kitti_submission(Metres(), images, out, expected=5, device="cpu")
    assert written.complete
    assert sorted(path.name for path in out.iterdir()) == [Path(line).name for line in lines]
    for seed, line in enumerate(lines):
        stored = np.asarray(Image.open(out / Path(line).name))
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored, layouts.photograph(seed)[..., 0].astype(np.uint16) * 256)
    with pytest.raises(ValueError, match="--overwrite"):
        write_kitti_submission(Metres(), images, out, device="cpu")
    (tmp_path / "kitti" / lines[2]).write_bytes(b"not a photograph")
    again = write_kitti_submission(Metres(), images, out, expected=5, overwrite=True, device="cpu")
    assert not again.complete
    assert [failure["name"] for failure in again.failures] == [lines[2]]


def test_a_submission_never_replaces_the_photographs(tmp_path):
    lines = layouts.kitti_test(tmp_path / "kitti", 3)
    images = submission_items(tmp_path / "kitti", strict_count=False)
    folder = (tmp_path / "kitti" / lines[0]).parent
    before = [(tmp_path / "kitti" / line).read_bytes() for line in lines]
    with pytest.raises(DistillDepthError, match="is no 16-bit depth map"):
        write_kitti_submission(Metres(), images, folder, expected=3, overwrite=True, device="cpu")
    assert [(tmp_path / "kitti" / line).read_bytes() for line in lines] == before


def test_a_relative_model_cannot_be_submitted(tmp_path):
    layouts.kitti_test(tmp_path / "kitti", 500)
    result = run("--kitti-submission", tmp_path / "out", "--root", tmp_path / "kitti", "--model", "baseline:ramp")
    assert result.exit_code == 1
    assert "known up to scale and shift only" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    without = run("--kitti-submission", tmp_path / "out", "--model", "baseline:ramp")
    assert without.exit_code == 2
    assert "--root" in without.stderr


# Scoring them


@pytest.mark.parametrize(
    ("quantity", "function"),
    [
        ("disparity", lambda depth: 3 / depth - 7),
        ("depth", lambda depth: 0.1 * depth + 4),
        ("metric-depth", lambda depth: depth),
    ],
)
def test_perfect_maps_of_another_program_score_perfectly(tmp_path, quantity, function):
    data = dataset_of("a/1.png", "a/2.png", "b/1.png")
    for index, item in enumerate(data.items):
        save(tmp_path / Path(item.name).with_suffix(".npy"), function(depth_of(index).astype(np.float64)))
    result = evaluate(StoredPredictions(tmp_path, quantity.replace("-", "_")), [data], device="cpu")
    assert result.complete
    assert result.datasets[0]["metrics"]["delta1"] == 1.0
    assert result.datasets[0]["metrics"]["abs_rel"] < 1e-5


def test_uncertainty_beside_a_map_is_scored_too(tmp_path):
    size = (40, 50)
    data = dataset_of("0.png", "1.png", size=size)
    for index in range(2):
        truth = depth_of(index, size)
        error = np.random.default_rng(index + 10).uniform(0, 1, size)
        save(tmp_path / f"{index}.npy", truth + error)
        save(tmp_path / f"{index}_uncertainty.npy", error)
        save(tmp_path / f"{index}_std.npy", np.full(size, 0.5))
    result = evaluate(StoredPredictions(tmp_path, "metric_depth"), [data], device="cpu")
    metrics = result.datasets[0]["metrics"]
    # The uncertainty is the error itself: nothing is lost against the best order there is.
    assert metrics["ause_rmse"] == pytest.approx(0, abs=1e-3)
    assert metrics["aurg_rmse"] > 0
    assert metrics["calibration_error"] is not None
    plain = evaluate(StoredPredictions(tmp_path, "metric_depth"), [dataset_of("0.png", size=size)], device="cpu")
    assert plain.datasets[0]["metrics"]["abs_rel"] == pytest.approx(result.samples[0]["metrics"]["abs_rel"])


def test_missing_and_broken_maps_are_failures(tmp_path):
    data = dataset_of("0.png", "1.png", "2.png", "3.png")
    save(tmp_path / "0.npy", depth_of(0))
    save(tmp_path / "1.npy", np.full(SIZE, np.nan))
    (tmp_path / "2.npy").write_bytes(b"nonsense")
    result = evaluate(StoredPredictions(tmp_path, "metric_depth"), [data], device="cpu")
    assert not result.complete
    assert [sample["name"] for sample in result.samples] == ["0.png"]
    errors = {failure["name"]: failure["error"] for failure in result.failures}
    assert errors.keys() == {"1.png", "2.png", "3.png"}
    assert "not finite" in errors["1.png"]
    assert "is not a readable .npy file" in errors["2.png"]
    assert "no prediction; looked for 3.npy" in errors["3.png"]


@pytest.mark.parametrize(("crop", "height", "seen"), [("kb", 352, 1), ("kb-in-frame", 375, 352 / 375)])
def test_a_map_on_the_full_or_on_the_cropped_frame_is_put_where_it_belongs(tmp_path, crop, height, seen):
    size = (375, 1242)
    data = dataset_of("0.png", kind="kitti-eigen", size=size)
    truth = depth_of(0, size)
    top, left = 375 - 352, (1242 - 1216) // 2
    cropped = truth[top:, left : left + 1216]
    scores = []
    for name, values in (("full", truth), ("cropped", cropped), ("shifted", truth[:-top, left : left + 1216])):
        save(tmp_path / name / "0.npy", values)
        result = evaluate(
            StoredPredictions(tmp_path / name, "metric_depth"),
            [data],
            protocol="newcrfs",
            overrides={"image_crop": crop},
            out=tmp_path / f"run-{name}",
            device="cpu",
        )
        scores.append(result.datasets[0]["metrics"]["abs_rel"])
    assert scores[0] < 1e-6
    assert scores[1] < 1e-6
    assert scores[2] > 0.1
    # The picture of the case shows the image where its truth is, black around it where the truth is whole.
    cases = Cases.load(tmp_path / "run-full")
    case = [*cases.worst("set"), *cases.best("set")][0]
    rows, columns = case.truth.shape
    assert rows / columns == pytest.approx(height / (1216 if crop == "kb" else 1242), rel=0.02)
    assert (case.image.max(2) > 0).any(1).mean() == pytest.approx(seen, abs=0.02)


def test_saved_maps_score_as_the_model_did(tmp_path):
    made = run(
        "--model", "baseline:ramp", "--data", "scenes:3", "--out", tmp_path / "run", "--save-predictions", "--json", "-"
    )
    assert made.exit_code == 0, made.stderr
    index = json.loads((tmp_path / "run" / "predictions" / "predictions.json").read_text())
    assert index["quantity"] == "disparity"
    again = run("--predictions", tmp_path / "run" / "predictions", "--data", "scenes:3", "--json", "-")
    assert again.exit_code == 0, again.stderr
    first, second = json.loads(made.stdout), json.loads(again.stdout)
    for a, b in zip(first["samples"], second["samples"], strict=True):
        assert a["metrics"] == b["metrics"]
    assert second["metadata"]["model"]["name"] == "predictions:baseline:ramp"


def test_the_folder_of_a_run_stands_for_its_predictions(tmp_path):
    data = dataset_of("a.png", "b.png")
    maps = tmp_path / "run" / "predictions"
    for index in range(2):
        save_prediction(maps, "set", f"{'ab'[index]}.png", 3 * depth_of(index) + 1, "depth")
    (maps / "predictions.json").write_text('{"model": "m", "quantity": "depth", "format": "npy"}')
    stored = StoredPredictions(tmp_path / "run")
    assert (stored.info.name, stored.info.quantity) == ("predictions:m", "depth")
    assert evaluate(stored, [data], device="cpu").datasets[0]["metrics"]["delta1"] == 1
    (maps / "predictions.json").write_text('["m"]')
    with pytest.raises(DistillDepthError, match=r"predictions\.json: must hold a JSON object"):
        StoredPredictions(maps)


def test_what_predict_wrote_says_itself_what_it_is(tmp_path):
    data = dataset_of("sub/a.png", "sub/b.png")
    for index, name in enumerate("ab"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"0{name}_colour.png")
        (tmp_path / "sub").mkdir(exist_ok=True)
        texts = {"model": "big", "licence": "MIT"}
        write_depth_png(tmp_path / "sub" / f"{name}.png", 2 / depth_of(index) + 1, "disparity", texts=texts)
    stored = StoredPredictions(tmp_path)
    assert (stored.info.name, stored.info.quantity, stored.info.licence) == ("predictions:big", "disparity", "MIT")
    assert evaluate(stored, [data], device="cpu").datasets[0]["metrics"]["delta1"] == 1
    with pytest.raises(ValueError, match=r"a\.png says that the numbers are disparity, and --quantity says depth"):
        StoredPredictions(tmp_path, "depth")


def test_names_looked_for_are_listed_once(tmp_path):
    (tmp_path / "other.npy").touch()
    with pytest.raises(DistillDepthError, match="no prediction for any sample") as caught:
        StoredPredictions(tmp_path, "depth").find([dataset_of("a.png")])
    assert str(caught.value).count(" set/a.npy") == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--predictions", "maps"], 1, "does not say what its numbers mean"),
        (["--predictions", "nowhere", "--quantity", "depth"], 1, "no such folder of predictions"),
        (["--predictions", "maps", "--quantity", "dept"], 2, "did you mean 'depth'?"),
        (["--predictions", "maps", "--model", "baseline:ramp"], 2, "contradict"),
        (["--predictions", "maps", "--quantity", "depth"], 1, "no prediction for any sample"),
        (["--quantity", "depth"], 2, "--predictions"),
        (["--depth-scale", "256"], 2, "--predictions"),
        (["--predictions", "maps", "--quantity", "depth", "--size", "64"], 2, "--size needs a --model"),
        (["--save-predictions", "npy"], 2, "--out"),
        (["--model", "baseline:ramp", "--save-predictions", "kitti", "-o", "out"], 1, "metres"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    result = run(*args, "--data", "scenes:1")
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
