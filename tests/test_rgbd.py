"""Images with ground truth: what manifests and folders say, and what never counts as truth."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilldepth.datasets.rgbd import KINDS, open_rgbd, read_depth
from distilldepth.errors import DistillDepthError

REAL = Path(os.environ.get("DISTILLDEPTH_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data") / "rgbd"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no real RGB-D data at {REAL}; set DISTILLDEPTH_TEST_DATA"
)

STORED = np.array([[0, 1000, 2500], [65535, 1, 4000]], dtype=np.uint16)


def save_image(path, value=7, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def save_depth(path, stored=STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, stored)
    else:
        Image.fromarray(stored).save(path)


def manifest(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path):
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png", value=9)
    save_depth(tmp_path / "d.png")
    return tmp_path


def one_line(caught):
    assert "\n" not in str(caught.value)


# --- manifests ---


def test_manifest(files):
    path = manifest(
        files / "my set.jsonl",
        {"id": "one", "image": "a.png", "depth": "d.png", "kind": "depth", "scale": 1000, "invalid": 65535},
        "",
        {
            "image": "a.png", "depth": "d.png", "right": "b.png", "kind": "stereo_disparity", "scale": 256,
            "intrinsics": {"fx": 481.2, "fy": -480.0, "cx": 319.5, "cy": 239.5}, "focal_px": 700, "baseline_m": 0.5,
        },
    )  # fmt: skip
    source = open_rgbd(path)
    assert len(source) == 2
    first, second = source[0], source[1]
    assert set(first) == {"image", "target", "valid", "kind", "scale", "name", "dataset"}
    assert (first["scale"], second["scale"]) == (1000, 256)
    assert (first["name"], first["dataset"], first["kind"]) == ("one", "my set", "depth")
    assert first["image"].shape == (4, 6, 3)
    assert first["target"].dtype == np.float32
    assert first["valid"].dtype == bool
    np.testing.assert_array_equal(first["valid"], [[False, True, True], [False, True, True]])
    np.testing.assert_allclose(first["target"], [[0, 1, 2.5], [0, 0.001, 4]], rtol=1e-6)
    assert (second["name"], second["kind"]) == ("a.png", "stereo_disparity")
    assert second["right"][0, 0, 0] == 9
    assert second["target"][1, 0] == np.float32(65535 / 256)
    assert (second["focal_px"], second["baseline_m"]) == (700, 0.5)
    np.testing.assert_allclose(second["intrinsics"], [[481.2, 0, 319.5], [0, 480, 239.5], [0, 0, 1]])
    assert second["intrinsics"].dtype == np.float32


def test_matrix_and_skew(files):
    line = {"image": "a.png", "depth": "d.png"}
    path = manifest(
        files / "m.jsonl",
        {**line, "intrinsics": [[5, 0.5, 2], [0, 6, 3], [0, 0, 1]]},
        {**line, "intrinsics": {"fx": 5, "fy": 6, "cx": 2, "cy": 3, "skew": 0.5}},
    )
    source = open_rgbd(path)
    np.testing.assert_array_equal(source[0]["intrinsics"], source[1]["intrinsics"])
    assert source[0]["intrinsics"][0].tolist() == [5, 0.5, 2]


def test_root(files):
    path = manifest(files / "lists/m.jsonl", {"image": "a.png", "depth": "d.png"})
    with pytest.raises(FileNotFoundError, match=r"lists/d\.png"):
        open_rgbd(path)[0]
    assert open_rgbd(path, root=files)[0]["image"].shape == (4, 6, 3)
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        open_rgbd(path, root=files / "gone")


def test_folder_of_manifests(files):
    for name in ("set10", "set2"):
        manifest(files / f"{name}.jsonl", *[{"image": "a.png", "depth": "d.png"}] * 2)
    manifest(files / "stereo.jsonl", {"image": "a.png", "depth": None, "kind": None, "scale": None})
    source = open_rgbd(files)
    assert source.datasets == {"set2": [0, 1], "set10": [2, 3]}
    assert source.skipped == 1
    assert "4 samples with ground truth, 1 without" in source.description
    with pytest.raises(DistillDepthError, match="no sample with ground truth; all 1 lines have depth null"):
        open_rgbd(files / "stereo.jsonl")


def test_missing_and_damaged_files_cost_one_sample(files):
    (files / "empty.png").touch()
    Image.new("RGB", (3, 3), (1, 2, 1)).save(files / "colour.png")
    np.save(files / "cube.npy", np.zeros((2, 3, 5)))
    np.save(files / "words.npy", np.array(["a"]))
    np.save(files / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (files / "cut.npy").write_bytes((files / "cube.npy").read_bytes()[:-9])
    save_depth(files / "noise.png", np.random.default_rng(0).integers(0, 65536, (30, 40), dtype=np.uint16))
    (files / "cut.png").write_bytes((files / "noise.png").read_bytes()[:1500])
    bad = {
        "gone.png": "no such file", "empty.png": "is empty", "colour.png": "a coloured picture", ".": "is a folder",
        "cube.npy": r"\(H, W\)", "words.npy": "one array of real numbers", "objects.npy": "Python objects",
        "cut.npy": "is cut off", "cut.png": "damaged or truncated",
    }  # fmt: skip
    lines = [{"image": "a.png", "depth": name} for name in [*bad, "d.png"]]
    source = open_rgbd(manifest(files / "m.jsonl", *lines, {"image": "gone.jpg", "depth": "d.png"}))
    for index, (name, words) in enumerate(bad.items()):
        with pytest.raises((DistillDepthError, FileNotFoundError), match=words) as caught:
            source[index]
        one_line(caught)
        assert str(files / name) in str(caught.value)
    assert source[len(bad)]["valid"].any()
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        source[len(bad) + 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "is not a JSON file"),
        ("[1, 2]", "must be a JSON object"),
        ({"depth": "d.png"}, "`image` must be a path, got None"),
        ({"image": "a.png"}, "`depth` must be a path"),
        ({"image": "a.png", "depth": 3}, "`depth` must be a path, got 3"),
        ({"image": "a.png", "depth": "d.png", "right": 3}, "`right` must be"),
        ({"image": "a.png", "depth": "d.png", "kind": "disparity"}, "`kind` must be depth or stereo_disparity"),
        ({"image": "a.png", "depth": "d.png", "kind": ["depth"]}, "`kind` must be"),
        ({"image": "a.png", "depth": "d.png", "scale": 0}, "`scale` must be positive"),
        ({"image": "a.png", "depth": "d.png", "scale": "1000"}, "`scale` must be a number"),
        ('{"image": "a.png", "depth": "d.png", "scale": NaN}', "`scale` must be positive"),
        ({"image": "a.png", "depth": "d.png", "baseline_m": -1}, "`baseline_m` must be positive"),
        ({"image": "a.png", "depth": "d.png", "invalid": "0"}, "`invalid` must be a number"),
        ({"image": "a.png", "depth": "d.png", "intrinsics": {"fx": 1}}, "`intrinsics` lacks fy, cx, cy"),
        ({"image": "a.png", "depth": "d.png", "intrinsics": [1, 2]}, "`intrinsics` must"),
        ({"image": "a.png", "depth": "d.png", "intrinsics": [[1], [2, 3]]}, "m.jsonl:3: "),
        ({"image": "a.png", "depth": "d.png", "intrinsics": {"fx": 0, "fy": 1, "cx": 1, "cy": 1}}, "other than 0"),
    ],
)
def test_bad_line_is_named(files, line, words):
    path = manifest(files / "m.jsonl", {"image": "a.png", "depth": "d.png"}, "", line)
    with pytest.raises(DistillDepthError, match=words) as caught:
        open_rgbd(path)
    one_line(caught)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_nothing_to_open(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        open_rgbd(tmp_path / "gone")
    with pytest.raises(DistillDepthError, match=r"has no images/ or rgb/ and no depth/; .*\.jsonl.*associations"):
        open_rgbd(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DistillDepthError, match=r"has no depth/; an RGB-D folder needs"):
        open_rgbd(tmp_path)
    with pytest.raises(DistillDepthError, match="no sample with ground truth; it is empty"):
        open_rgbd(manifest(tmp_path / "m.jsonl", "", "  "))
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DistillDepthError, match="UTF-8"):
        open_rgbd(tmp_path / "m.jsonl")
    save_image(tmp_path / "x.png")
    with pytest.raises(DistillDepthError, match="is not an RGB-D set"):
        open_rgbd(tmp_path / "x.png")


# --- what counts as truth ---


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_invalid_values_never_are_truth(files, suffix):
    stored = np.array([[0, -1, np.nan, np.inf], [-np.inf, 99, 2, 1e-3]], dtype=np.float32)
    save_depth(files / f"d{suffix}", stored)
    source = open_rgbd(manifest(files / "m.jsonl", {"image": "a.png", "depth": f"d{suffix}", "invalid": [99, -5]}))
    np.testing.assert_array_equal(source[0]["valid"], [[False] * 4, [False, False, True, True]])
    np.testing.assert_allclose(source[0]["target"], [[0] * 4, [0, 0, 2, 1e-3]])


def test_values_beyond_float32_are_no_truth(files):
    save_depth(files / "d.npy", np.array([[1e300, 1e-300, 1.0]]))
    sample = open_rgbd(manifest(files / "m.jsonl", {"image": "a.png", "depth": "d.npy"}))[0]
    assert sample["valid"].tolist() == [[False, False, True]]
    assert sample["target"].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".tif", "int32"),
        (".tif", "float32"), (".npy", "float16"), (".npy", "float32"), (".npy", "float64"), (".npy", "uint16"),
        (".npy", "int64"), (".npy", ">u2"), (".pfm", "float32"),
    ],
)  # fmt: skip
def test_depth_is_read_as_stored(tmp_path, suffix, dtype):
    stored = np.array([[0, 1, 2], [200, 100, 50]]).astype(dtype)
    save_depth(tmp_path / f"d{suffix}", stored)
    np.testing.assert_array_equal(read_depth(tmp_path / f"d{suffix}"), stored)


def test_one_channel_is_dropped(tmp_path):
    for shape in ((1, 2, 3), (2, 3, 1)):
        np.save(tmp_path / "d.npy", np.ones(shape))
        assert read_depth(tmp_path / "d.npy").shape == (2, 3)


# --- folders ---


def test_images_and_depth_folders(tmp_path):
    root = tmp_path / "my rooms"
    for number, (name, depth) in enumerate(
        [("a.jpg", "a.png"), ("b [1].v2.png", "b [1].v2.npy"), ("sub/é.png", "sub/é.TIF"), ("c.png", None)]
    ):
        save_image(root / "images" / name, value=number * 20)
        if depth is not None:
            stored = STORED if depth == "a.png" else (STORED / 1000).astype(np.float32)
            save_depth(root / "depth" / depth, stored)
    source = open_rgbd(root)
    names = [entry.name for entry in source.entries]
    assert names == ["a.jpg", "b [1].v2.png", "c.png", "sub/é.png"]
    assert source.datasets == {"my rooms": [0, 1, 2, 3]}
    assert "1 without depth" in source.description
    for index in (0, 1, 3):
        sample = source[index]
        np.testing.assert_allclose(sample["target"], STORED / 1000, rtol=1e-6)
        assert sample["kind"] == "depth"
        assert sample["valid"].sum() == 5
    with pytest.raises(FileNotFoundError, match=r"depth/c\.png: no such file"):
        source[2]


def test_depth_scale(tmp_path):
    for name, stored in (("a.png", STORED), ("b.npy", STORED.astype(np.float32))):
        save_image(tmp_path / "images" / f"{name[0]}.jpg")
        save_depth(tmp_path / "depth" / name, stored)
    source = open_rgbd(tmp_path, depth_scale=5000)
    assert source[0]["target"][0, 1] == np.float32(0.2)
    assert source[1]["target"][0, 1] == np.float32(0.2)  # floating point is metres only where nobody says otherwise
    assert open_rgbd(tmp_path)[1]["target"][0, 1] == 1000
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="depth_scale must be positive"):
            open_rgbd(tmp_path, depth_scale=wrong)


def test_eight_bits_are_a_picture_of_depth_unless_a_manifest_gives_their_scale(tmp_path):
    save_image(tmp_path / "images/a.png")
    save_depth(tmp_path / "depth/a.png", (STORED / 10).astype(np.uint8))
    with pytest.raises(DistillDepthError, match=r"depth/a\.png: has 8 bits per pixel.*`scale`"):
        open_rgbd(tmp_path)[0]
    line = {"image": "images/a.png", "depth": "depth/a.png", "scale": 10}
    (tmp_path / "set.jsonl").write_text(json.dumps(line))
    assert open_rgbd(tmp_path / "set.jsonl")[0]["valid"].any()


def test_folders_that_do_not_match(tmp_path):
    save_image(tmp_path / "images/a.png")
    save_depth(tmp_path / "depth/a_depth.png")
    with pytest.raises(DistillDepthError, match=r"no file has the name of an image.*looked for a\.png") as caught:
        open_rgbd(tmp_path)
    one_line(caught)


# --- real data ---


@needs_real_data
def test_real_manifests():
    source = open_rgbd(REAL)
    assert {"nyu", "tum", "kitti2012", "middlebury", "marigold_dc"} <= set(source.datasets)
    assert len(source) == sum(len(indices) for indices in source.datasets.values())
    assert source.skipped >= 1
    for indices in source.datasets.values():
        sample = source[indices[0]]
        target, valid = sample["target"], sample["valid"]
        assert sample["kind"] in KINDS
        assert sample["image"].ndim == 3
        assert target.shape == valid.shape == sample["image"].shape[:2]
        assert valid.any()
        assert (target[~valid] == 0).all()
        values = target[valid]
        assert np.isfinite(values).all()
        # Metres of a room or a street; pixels of a stereo pair.
        assert values.min() > 0
        assert values.max() < 300
        if sample["kind"] == "stereo_disparity":
            assert sample["right"].shape == sample["image"].shape
        if "intrinsics" in sample:
            assert sample["intrinsics"][1, 1] > 0


@needs_real_data
def test_constant_and_ramp_of_real_nyu():
    """The published numbers of two trivial predictors come out again, so values, scale and validity are right."""
    source, delta1 = open_rgbd(REAL / "nyu.jsonl"), {"constant": [], "ramp": []}
    for index in range(len(source)):
        sample = source[index]
        rows = np.linspace(0, 1, sample["target"].shape[0])[:, None] * np.ones_like(sample["target"])
        valid, y = sample["valid"], rows[sample["valid"]]
        inverse = 1 / sample["target"][valid].astype(np.float64)
        for name, columns in (("constant", [np.ones_like(y)]), ("ramp", [y, np.ones_like(y)])):
            design = np.stack(columns, axis=1)
            fitted = design @ np.linalg.lstsq(design, inverse, rcond=None)[0]
            ratio = inverse / np.maximum(fitted, 1e-3 * inverse.max())
            delta1[name].append((np.maximum(ratio, 1 / ratio) < 1.25).mean())
    assert np.mean(delta1["constant"]) == pytest.approx(0.232, abs=0.002)
    assert np.mean(delta1["ramp"]) == pytest.approx(0.416, abs=0.002)
