"""The benchmarks' readers: every layout written out small and read back, the real lists, and what goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path

import dataset_layouts as layouts
import numpy as np
import pytest
from dataset_layouts import SIZE, holes, metres, pack, photograph, save_list
from PIL import Image

from distilldepth.datasets import submission_items
from distilldepth.datasets.archive import Folder, Root, Stored, Tar
from distilldepth.datasets.catalogue import BENCHMARKS, open_benchmark
from distilldepth.datasets.check import check
from distilldepth.datasets.codec import DepthCodec, raw_size
from distilldepth.datasets.rgbd import open_rgbd
from distilldepth.datasets.splits import parse_split, read_split
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError

LISTS = Path(os.environ.get("DISTILLDEPTH_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data") / "splits"
needs_real_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason=f"no split lists at {LISTS}; set DISTILLDEPTH_TEST_DATA"
)


def assert_sample(item, seed, *, depth=None, valid=None, jpeg=False):
    """The item reads the sample that `layouts` wrote for a seed."""
    image, truth = item.read()
    assert image.dtype == np.uint8
    assert image.shape == (*SIZE, 3)
    assert np.abs(image.astype(int) - photograph(seed)).max() <= (12 if jpeg else 0)
    valid = ~holes(seed) if valid is None else valid
    depth = metres(seed) if depth is None else depth
    assert truth.depth.dtype == np.float32
    assert truth.valid.dtype == bool
    np.testing.assert_array_equal(truth.valid, valid)
    np.testing.assert_array_equal(truth.depth, np.where(valid, depth, 0).astype(np.float32))
    assert truth.is_metric


def assert_dataset(dataset, count, **options):
    assert len(dataset.items) == count
    assert len({item.name for item in dataset.items}) == count
    for seed in {0, 1, count - 1}:
        assert_sample(dataset.items[seed], seed, **options)


def one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def folder_or_tar(tmp_path, how, write):
    """Writes a layout; gives what the user names: a folder, a tar, a folder with a tar, or one with more around it."""
    if how == "nested":
        return tmp_path, write(tmp_path / "download" / "set")
    lines = write(tmp_path / "set")
    if how == "folder":
        return tmp_path / "set", lines
    tar = tmp_path / "tars" / "set.tar"
    tar.parent.mkdir()
    pack(tmp_path / "set", tar, prefix="./" if how == "tar" else "set_extracted/")
    return (tar if how == "tar" else tar.parent), lines


FORMS = ("folder", "tar", "tar-in-folder", "nested")


# --- every layout, read back ---


@pytest.mark.parametrize("how", FORMS)
def test_nyu_marigold(tmp_path, how):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.nyu_marigold(folder, 5))
    split = save_list(tmp_path / "my list.txt", lines)
    raw = open_benchmark("nyuv2", root, split=split, strict_count=False)
    assert (raw.kind, raw.domain, raw.expected, raw.fields, raw.field) == (
        "nyuv2", "indoor", 654, ("raw", "filled"), "raw",
    )  # fmt: skip
    assert [item.name for item in raw.items] == [line.split()[0] for line in lines]
    assert_dataset(raw, 5)
    filled = open_benchmark("nyuv2", root, split=split, strict_count=False, field="filled")
    assert filled.field == "filled"
    assert_sample(filled.items[3], 3, valid=np.ones(SIZE, bool))


@pytest.mark.parametrize("how", FORMS)
def test_nyu_bts(tmp_path, how):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.nyu_bts(folder, 4))
    dataset = open_benchmark("nyuv2", root, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    assert dataset.fields == ("raw",)
    assert dataset.items[1].name == "kitchen/rgb_00001.jpg"
    assert_dataset(dataset, 4, jpeg=True)


def test_nyu_bts_dense_depth_is_the_filled_field(tmp_path):
    lines = layouts.nyu_bts(tmp_path / "nyu", 3, dense=True)
    split = save_list(tmp_path / "l.txt", lines)
    dataset = open_benchmark("nyuv2", tmp_path, split=split, strict_count=False, field="filled")
    assert dataset.fields == ("raw", "filled")
    assert_sample(dataset.items[2], 2, valid=np.ones(SIZE, bool), jpeg=True)
    # A list that names the dense files has them as `filled` too.
    dense = [
        f"{line.split()[0]} {Path(line.split()[1]).parent}/dense/sync_depth_dense_{i:05d}.png"
        for i, line in enumerate(lines)
    ]
    dataset = open_benchmark("nyuv2", tmp_path, split=save_list(tmp_path / "d.txt", dense), strict_count=False)
    assert dataset.field == "raw"


def test_nyu_densedepth_csv_and_eight_bits(tmp_path):
    lines = layouts.nyu_densedepth(tmp_path, 3)
    save_list(tmp_path / "data/nyu2_test.csv", lines)
    dataset = open_benchmark("nyuv2", tmp_path, strict_count=False)
    assert (dataset.fields, dataset.field) == ((), "")
    assert_dataset(dataset, 3)
    stored = np.arange(216, dtype=np.uint8).reshape(SIZE)
    Image.fromarray(stored).save(tmp_path / "data/nyu2_test/00001_depth.png")
    _, truth = dataset.items[1].read()
    np.testing.assert_array_equal(truth.depth, (stored / 25.5).astype(np.float32))
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("nyuv2", tmp_path, strict_count=False, field="filled")
    one_line(caught, "filled")


class FakeHDF5:
    """Stands for h5py where it is not installed: what the readers use of it."""

    def __init__(self, content):
        self.content = content

    def File(self, path, mode):
        assert Path(path).exists()
        assert mode == "r"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __contains__(self, name):
        return name in self.content

    def __getitem__(self, name):
        return self.content[name]


class Cell:
    """A dataset of one value, read with `[()]`."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, at):
        return self.value[at]


def mat_content(count):
    scenes = np.array([[f"ref{seed}" for seed in range(count)]], dtype=object)
    names = {
        f"ref{seed}": Cell(np.array([[ord(c)] for c in f"kitchen_{seed:04d}"], np.uint16)) for seed in range(count)
    }
    return {
        "images": np.stack([photograph(seed).transpose(2, 1, 0) for seed in range(count)]),
        "rawDepths": np.stack([np.where(holes(seed), 0, metres(seed)).T for seed in range(count)]),
        "depths": np.stack([metres(seed).T for seed in range(count)]),
        "scenes": scenes,
        **names,
    }


@pytest.mark.parametrize("inside", [True, False])
def test_nyu_mat(tmp_path, monkeypatch, inside):
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    mat.write_bytes(b"x")
    (tmp_path / "splits.mat").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", FakeHDF5(mat_content(6)))
    loadmat = types.SimpleNamespace(loadmat=lambda path: {"testNdxs": np.array([[1], [2], [6]])})
    monkeypatch.setitem(sys.modules, "scipy.io", loadmat)
    monkeypatch.setitem(sys.modules, "scipy", types.SimpleNamespace(io=loadmat))
    root = tmp_path if inside else mat
    dataset = open_benchmark("nyuv2", root, strict_count=False)
    # Numbers count from 1, and the names are those of the extracted set.
    assert [item.name for item in dataset.items] == [
        "test/kitchen_0000/rgb_0001.png", "test/kitchen_0001/rgb_0002.png", "test/kitchen_0005/rgb_0006.png",
    ]  # fmt: skip
    assert_sample(dataset.items[2], 5)
    assert dataset.items[2].read()[0].flags.c_contiguous
    filled = open_benchmark("nyuv2", root, strict_count=False, field="filled")
    assert_sample(filled.items[1], 1, valid=np.ones(SIZE, bool))
    moved = (tmp_path / "splits.mat").rename(tmp_path / "official.mat")
    assert len(open_benchmark("nyuv2", root, split=moved, strict_count=False).items) == 3
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("nyuv2", mat, split=save_list(tmp_path / "l.txt", ["a b"]))
    one_line(caught, "l.txt", "splits.mat")


def test_nyu_mat_without_its_split(tmp_path):
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"x")
    with pytest.raises(FileNotFoundError) as caught:
        open_benchmark("nyuv2", tmp_path)
    one_line(caught, "splits.mat")


def test_nyu_unidepth_hdf5(tmp_path, monkeypatch):
    path = tmp_path / "nyuv2.hdf5"
    path.write_bytes(b"x")
    text = "".join(f"a/rgb_{seed}.png a/depth_{seed}.png 518.8\n" for seed in range(3)).encode()
    content = {"nyu_test.txt": Cell(np.frombuffer(text, np.uint8))}
    for seed in range(2):
        stored = np.where(holes(seed), 0, metres(seed) * 1000).astype(np.uint16)
        content[f"a/rgb_{seed}.png"] = Cell(layouts.encoded(photograph(seed), "PNG"))
        content[f"a/depth_{seed}.png"] = Cell(layouts.encoded(stored, "PNG"))
    monkeypatch.setitem(sys.modules, "h5py", FakeHDF5(content))
    for root in (path, tmp_path):
        dataset = open_benchmark("nyuv2", root, strict_count=False)
        assert len(dataset.items) == 3
        assert_sample(dataset.items[1], 1)
        with pytest.raises(FileNotFoundError, match="rgb_2"):
            dataset.items[2].read()


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "nyuv2.hdf5").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("nyuv2", tmp_path)
    one_line(caught, "pip install h5py")


@pytest.mark.parametrize("style", ["bts", "monodepth2", "absolute"])
@pytest.mark.parametrize("place", layouts.KITTI_DEPTH)
def test_kitti_eigen(tmp_path, place, style):
    images, suffix = ("raw", "jpg") if style == "monodepth2" else ("", "png")
    frames = layouts.kitti_eigen(tmp_path / "kitti", 6, place, images=images, suffix=suffix)
    split = save_list(tmp_path / "l.txt", [layouts.kitti_line(frame, style) for frame in frames])
    dataset = open_benchmark("kitti-eigen", tmp_path, split=split, strict_count=False)
    assert [item.name for item in dataset.items] == [frame["name"] for frame in frames]
    assert (dataset.expected, dataset.domain) == (652, "outdoor")
    assert_dataset(dataset, 6, jpeg=suffix == "jpg")


def test_kitti_eigen_in_a_tar_with_images_outside(tmp_path):
    frames = layouts.kitti_eigen(tmp_path / "a", 4, "official")
    (tmp_path / "kitti").mkdir()
    for drive in (tmp_path / "a").glob("2011*"):
        drive.rename(tmp_path / "kitti" / drive.name)
    pack(tmp_path / "a", tmp_path / "kitti" / "gt.tar")
    split = save_list(tmp_path / "l.txt", [layouts.kitti_line(frame) for frame in frames])
    assert_dataset(open_benchmark("kitti-eigen", tmp_path / "kitti", split=split, strict_count=False), 4)


def test_kitti_lines_without_truth_are_left_out_and_counted(tmp_path):
    frames = layouts.kitti_eigen(tmp_path, 5, "marigold")
    lines = [layouts.kitti_line(frame) for frame in frames]
    lines.insert(2, "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000075.png None 721.5377")
    save_list(tmp_path / "eigen_test_files_with_gt.txt", lines)
    dataset = open_benchmark("kitti-eigen", tmp_path, strict_count=False)
    assert_dataset(dataset, 5)
    assert any("1 of 6 lines" in note for note in dataset.notes)


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("listed", [True, False])
def test_kitti_official(tmp_path, how, listed):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.kitti_official(folder, 4))
    split = save_list(tmp_path / "l.txt", lines) if listed else None
    dataset = open_benchmark("kitti-official", root, split=split, strict_count=False)
    assert [item.name for item in dataset.items] == lines
    assert_dataset(dataset, 4)


def test_kitti_official_from_inside(tmp_path):
    lines = layouts.kitti_official(tmp_path, 3)
    inside = tmp_path / "depth_selection/val_selection_cropped"
    for split in (None, save_list(tmp_path / "l.txt", lines)):
        dataset = open_benchmark("kitti-official", inside, split=split, strict_count=False)
        assert [item.name for item in dataset.items] == lines
        assert_dataset(dataset, 3)


def test_kitti_submission_items(tmp_path):
    lines = layouts.kitti_test(tmp_path, 4)
    (tmp_path / lines[2]).unlink()
    split = save_list(tmp_path / "l.txt", lines)
    items = submission_items(tmp_path, split=split, strict_count=False)
    assert [item.name for item in items] == lines
    image, truth = items[1].read()
    np.testing.assert_array_equal(image, photograph(1))
    assert truth.valid.shape == SIZE
    assert not truth.valid.any()
    with pytest.raises(FileNotFoundError):
        items[2].read()
    assert len(submission_items(tmp_path, strict_count=False)) == 3
    with pytest.raises(DistillDepthError) as caught:
        submission_items(tmp_path)
    one_line(caught, 3, 500)


@pytest.mark.parametrize("how", FORMS)
def test_eth3d(tmp_path, how):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.eth3d(folder, 4))
    dataset = open_benchmark("eth3d", root, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    assert [item.name for item in dataset.items] == [line.split()[0] for line in lines]
    assert_dataset(dataset, 4, jpeg=True)


def test_eth3d_as_the_official_archives_unpack(tmp_path):
    lines = layouts.eth3d(tmp_path / "a", 4)
    for line in lines:
        image, depth = line.split()
        for path, kept in ((image, 1), (depth, 2)):
            target = tmp_path / "eth3d" / Path(*Path(path).parts[kept:])
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / path).rename(target)
    dataset = open_benchmark(
        "eth3d", tmp_path / "eth3d", split=save_list(tmp_path / "l.txt", lines), strict_count=False
    )
    assert_dataset(dataset, 4, jpeg=True)
    images_only = save_list(tmp_path / "i.txt", [line.split()[0] for line in lines])
    assert_dataset(open_benchmark("eth3d", tmp_path / "eth3d", split=images_only, strict_count=False), 4, jpeg=True)


def test_eth3d_depth_keeps_its_own_size_beside_a_smaller_photograph(tmp_path):
    path = tmp_path / "DSC_1.JPG"
    layouts.save_raw(path, 0, (24, 36))
    depth, valid = DepthCodec(format="raw-float32").read(Stored(Folder(tmp_path), "DSC_1.JPG"), SIZE)
    assert depth.shape == (24, 36)
    np.testing.assert_array_equal(valid, ~holes(0, (24, 36)))
    np.testing.assert_array_equal(depth[valid], metres(0, (24, 36))[valid])
    assert depth.flags.writeable


@pytest.mark.parametrize("size", [(4032, 6048), (12, 18), (7, 5)])
def test_raw_size(size):
    assert raw_size(size[0] * size[1], size, "x") == size
    # A photograph made smaller, with its sides rounded.
    smaller = (round(size[0] * 0.4), round(size[1] * 0.4))
    if min(smaller) > 100:
        assert raw_size(size[0] * size[1], smaller, "x") == size


@pytest.mark.parametrize("count", [215, 217, 12 * 18 * 3, 12 * 18 * 4 + 18])
def test_raw_of_another_shape_is_refused(count):
    with pytest.raises(DistillDepthError, match=str(count)):
        raw_size(count, (12, 18), "x.JPG")


@pytest.mark.parametrize("how", FORMS)
def test_scannet(tmp_path, how):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.scannet(folder, 5))
    save_list((root if root.is_dir() else root.parent) / "scannet_val_sampled_list_800_1.txt", lines)
    assert_dataset(open_benchmark("scannet", root, strict_count=False), 5, jpeg=True)
    split = save_list(tmp_path / "i.txt", [line.split()[0] for line in lines])
    assert_dataset(open_benchmark("scannet", root, split=split, strict_count=False), 5, jpeg=True)


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("listed", [True, False])
def test_diode(tmp_path, how, listed):
    root, lines = folder_or_tar(tmp_path, how, lambda folder: layouts.diode(folder, 3, 4))
    split = save_list(tmp_path / "l.txt", lines) if listed else None
    for subset, domain, expected, seeds in (
        (None, "", 771, range(7)),
        ("indoor", "indoor", 325, range(3)),
        ("outdoor", "outdoor", 446, range(3, 7)),
    ):
        dataset = open_benchmark("diode", root, split=split, subset=subset, strict_count=False)
        assert (dataset.domain, dataset.expected) == (domain, expected)
        assert dataset.name == ("diode" if subset is None else f"diode-{subset}")
        by_name = {item.name: item for item in dataset.items}
        assert by_name.keys() == {lines[seed].split()[0] for seed in seeds}
        for seed in seeds:
            # The mask alone decides: neither 0.2 m nor 900 m is out of range.
            assert_sample(by_name[lines[seed].split()[0]], seed, depth=layouts.diode_metres(seed))
    assert layouts.diode_metres(3)[~holes(3)].max() > 400


@pytest.mark.parametrize("how", ["folder", "tar"])
def test_diode_beside_its_training_set(tmp_path, how):
    def write(folder):
        layouts.diode(folder / "train", 2, 2)
        return layouts.diode(folder / "val", 3, 2)

    root, lines = folder_or_tar(tmp_path, how, write)
    dataset = open_benchmark("diode", root, strict_count=False)
    assert {item.name for item in dataset.items} == {line.split()[0] for line in lines}


def test_what_an_operating_system_leaves_behind_is_no_sample(tmp_path):
    lines = layouts.diode(tmp_path / "set", 2, 0)
    path = tmp_path / "set" / lines[0].split()[0]
    path.with_name("._" + path.name).write_bytes(b"x")
    for root in (tmp_path / "set", pack(tmp_path / "set", tmp_path / "set.tar")):
        assert len(open_benchmark("diode", root, subset="indoor", strict_count=False).items) == 2


def test_diode_from_inside_a_domain(tmp_path):
    layouts.diode(tmp_path, 3, 2)
    dataset = open_benchmark("diode", tmp_path / "indoors", subset="indoor", strict_count=False)
    assert len(dataset.items) == 3
    assert all(item.name.startswith("indoors/scene_") for item in dataset.items)


def test_diode_mask_of_another_shape(tmp_path):
    lines = layouts.diode(tmp_path, 1, 0)
    np.save(tmp_path / lines[0].split()[2], np.ones((12, 17)))
    with pytest.raises(DistillDepthError, match=r"\(12, 18\)"):
        open_benchmark("diode", tmp_path, subset="indoor", strict_count=False).items[0].read()


@pytest.mark.parametrize(
    ("how", "twice", "double"),
    [
        ("folder", "rainy", False),
        ("folder", "rainy/rainy", True),
        ("tar", "rainy", True),
        ("tar", "rainy/rainy", False),
        ("tar-in-folder", "rainy/rainy", False),
        ("nested", "rainy", False),
        ("nested", "rainy/rainy", True),
    ],
)
def test_driving_stereo_weather(tmp_path, how, twice, double):
    def write(folder):
        layouts.driving_stereo(folder / twice, 4, double=double)
        layouts.driving_stereo(folder / "sunny", 2)

    root, _ = folder_or_tar(tmp_path, how, write)
    dataset = open_benchmark("driving-stereo", root, subset="rainy")
    assert (dataset.name, dataset.expected, dataset.domain) == ("driving-stereo-rainy", None, "outdoor")
    assert_dataset(dataset, 4, jpeg=True)
    assert len(open_benchmark("driving-stereo", root, subset="sunny").items) == 2
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("driving-stereo", root, limit=3)
    one_line(caught, "driving-stereo:rainy", "test-left-image")


@pytest.mark.parametrize("double", [False, True])
def test_driving_stereo_from_inside_a_weather_set(tmp_path, double):
    layouts.driving_stereo(tmp_path / "data" / "foggy", 3, double=double)
    dataset = open_benchmark("driving-stereo", tmp_path / "data" / "foggy", subset="foggy")
    assert_dataset(dataset, 3, jpeg=True)
    for subset in ("test", "rainy"):
        with pytest.raises(DistillDepthError, match=subset):
            open_benchmark("driving-stereo", tmp_path / "data" / "foggy", subset=subset, strict_count=False)


@pytest.mark.parametrize("how", FORMS)
def test_driving_stereo_test_set(tmp_path, how):
    def write(folder):
        layouts.driving_stereo(folder / "both", 3)
        for kind, name in (("test-left-image", "left-image-half-size"), ("test-depth-map", "depth-map-half-size")):
            (folder / kind).mkdir(parents=True)
            (folder / "both" / name).rename(folder / kind / name)
        (folder / "both").rmdir()

    root, _ = folder_or_tar(tmp_path, how, write)
    assert_dataset(open_benchmark("driving-stereo", root, strict_count=False), 3, jpeg=True)
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("driving-stereo", root)
    one_line(caught, 3, 7751)


def test_driving_stereo_train_and_lists(tmp_path):
    for seed in range(4):
        sequence = f"2018-07-{9 + seed % 2:02d}-16-11-56"
        layouts.save_image(tmp_path / f"train-left-image/{sequence}/{seed:03d}.jpg", seed)
        layouts.save_depth(tmp_path / f"train-depth-map/{sequence}/{seed:03d}.png", seed, 256)
    dataset = open_benchmark("driving-stereo", tmp_path, subset="train", strict_count=False)
    assert len(dataset.items) == 4
    assert_sample(next(item for item in dataset.items if item.name.endswith("003.jpg")), 3, jpeg=True)
    names = [f"train-left-image/2018-07-{9 + seed % 2:02d}-16-11-56/{seed:03d}.jpg" for seed in (2, 0, 1)]
    # There is no official list, so the user's has the right length whatever it is.
    dataset = open_benchmark("driving-stereo", tmp_path, subset="train", split=save_list(tmp_path / "l.txt", names))
    assert dataset.expected is None
    assert [item.name for item in dataset.items] == names
    assert_sample(dataset.items[0], 2, jpeg=True)


@pytest.mark.parametrize("how", FORMS)
def test_moge_bundle(tmp_path, how):
    def write(folder):
        for name, count in (("NYUv2", 3), ("Sintel", 2)):
            save_list(folder / name / ".index.txt", layouts.moge_bundle(folder / name, count))

    root, _ = folder_or_tar(tmp_path, how, write)
    for name, count, is_metric, dense in (("NYUv2", 3, True, False), ("Sintel", 2, False, True)):
        dataset = open_benchmark("moge-bundle", root, subset=name)
        assert dataset.name == f"moge-bundle-{name}"
        assert len(dataset.items) == count
        stored, near, far = layouts.moge_codes(1)
        image, truth = dataset.items[1].read()
        assert image.shape == (*SIZE, 3)
        assert (truth.is_metric, truth.dense) == (is_metric, dense)
        np.testing.assert_array_equal(truth.valid, (stored > 0) & (stored < 65535))
        t = (stored[truth.valid].astype(np.float64) - 1) / 65533
        np.testing.assert_allclose(truth.depth[truth.valid], near ** (1 - t) * far**t, rtol=1e-6)
        # The ends of the scale are exactly near and far.
        np.testing.assert_allclose(truth.depth[2, :2], [near, far], rtol=1e-6)


# --- lists ---


REAL_LISTS = [
    ("nyuv2", "marigold_nyu_depth__labeled__filename_list_test.txt", None, 654, 3),
    ("nyuv2", "newcrfs_nyudepthv2_test_files_with_gt.txt", None, 654, 3),
    ("kitti-eigen", "marigold_kitti_depth__eigen_test_files_with_gt.txt", None, 697, 3),
    ("kitti-eigen", "newcrfs_eigen_test_files_with_gt.txt", None, 697, 3),
    ("kitti-official", "newcrfs_kitti_official_valid.txt", None, 1000, 1),
    ("eth3d", "marigold_eth3d_depth__eth3d_filename_list.txt", None, 454, 2),
    ("scannet", "marigold_scannet_depth__scannet_val_sampled_list_800_1.txt", None, 800, 2),
    ("diode", "marigold_diode_depth__diode_val_all_filename_list.txt", None, 771, 3),
    ("diode", "marigold_diode_depth__diode_val_all_filename_list.txt", "indoor", 771, 3),
    ("diode", "marigold_diode_depth__diode_val_all_filename_list.txt", "outdoor", 771, 3),
    ("diode", "marigold_diode_depth__diode_val_indoor_filename_list.txt", "indoor", 325, 3),
    ("diode", "marigold_diode_depth__diode_val_outdoor_filename_list.txt", "outdoor", 446, 3),
]


@needs_real_lists
@pytest.mark.parametrize(("name", "file", "subset", "lines", "columns"), REAL_LISTS)
def test_real_lists_give_the_benchmarks_counts(tmp_path, name, file, subset, lines, columns):
    split = read_split(Stored(Folder(LISTS), file))
    assert len(split.rows) == lines
    assert all(len(row.fields) == columns for row in split.rows)
    # One sample on disk is enough for the list to fit: the others are missing files, and still count.
    for row in split.rows:
        if "None" not in row.fields:
            paths = [field for field in row.fields if "/" in field]
            break
    if name == "kitti-official":
        paths.append(paths[0].replace("/image/", "/groundtruth_depth/").replace("sync_image", "sync_groundtruth_depth"))
    if subset == "outdoor":
        paths = next([*row.fields] for row in split.rows if row.fields[0].startswith("outdoor"))
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"not an image")
    dataset = open_benchmark(name, tmp_path, split=LISTS / file, subset=subset)
    assert (
        len(dataset.items) == dataset.expected == BENCHMARKS[name].counts[subset or next(iter(BENCHMARKS[name].counts))]
    )
    assert len({item.name for item in dataset.items}) == len(dataset.items)
    errors = set()
    for item in (dataset.items[0], dataset.items[-1]):
        with pytest.raises((FileNotFoundError, DistillDepthError)) as caught:
            item.read()
        errors.add(caught.type)
        one_line(caught)
    assert FileNotFoundError in errors


@needs_real_lists
def test_real_submission_list(tmp_path):
    folder = tmp_path / "depth_selection/test_depth_prediction_anonymous/image"
    layouts.save_image(folder / "0000000499.png", 0)
    layouts.save_image(folder / "0000000000.png", 0)
    items = submission_items(tmp_path, split=LISTS / "newcrfs_kitti_official_test.txt")
    assert len(items) == 500
    assert items[-1].read()[0].shape == (*SIZE, 3)


@needs_real_lists
def test_a_folder_of_lists_serves_all_benchmarks(tmp_path):
    lists = tmp_path / "lists" / "nyu"
    lists.mkdir(parents=True)
    (lists / "filename_list_test.txt").write_bytes(
        (LISTS / "marigold_nyu_depth__labeled__filename_list_test.txt").read_bytes()
    )
    layouts.save_image(tmp_path / "data/test/kitchen_0004/rgb_0001.png", 0)
    layouts.save_depth(tmp_path / "data/test/kitchen_0004/depth_0001.png", 0, 1000)
    dataset = open_benchmark("nyuv2", tmp_path / "data", split=tmp_path / "lists")
    assert len(dataset.items) == 654
    assert dataset.fields == ("raw",)
    assert_sample(dataset.items[0], 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["names no image"]),
        ("# only a comment\n\n", ["names no image"]),
        ("a.png b.png\n../../etc/passwd c.png\n", [":2:", "data folder"]),
        ("a.png b.png\nc.png d.png\na.png b.png\n", [":3:", "line 1"]),
    ],
)
def test_bad_lists(tmp_path, text, words):
    path = tmp_path / "l.txt"
    path.write_text(text or "\n")
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("scannet", tmp_path, split=path)
    one_line(caught, *words)


def test_lists_of_other_systems():
    split = parse_split(
        "\ufeffa\\b.png\tc\\d.png\r\n/x/y.png /x/z.png 5\r\nC:\\q\\r.png s.png".lstrip("\ufeff"), "l.txt"
    )
    assert [row.fields for row in split.rows] == [
        ("a/b.png", "c/d.png"), ("x/y.png", "x/z.png", "5"), ("q/r.png", "s.png"),
    ]  # fmt: skip
    assert [row.absolute for row in split.rows] == [False, True, True]


def test_absolute_paths_of_another_machine(tmp_path):
    lines = layouts.scannet(tmp_path / "data", 3)
    far = [" ".join(f"/mnt/bn/someone/scannet/{part}" for part in line.split()) for line in lines]
    dataset = open_benchmark("scannet", tmp_path, split=save_list(tmp_path / "l.txt", far), strict_count=False)
    assert [item.name for item in dataset.items] == [line.split()[0] for line in lines]
    assert_dataset(dataset, 3, jpeg=True)


# --- what goes wrong ---


@pytest.mark.parametrize(
    "name", ["nyuv2", "kitti-eigen", "kitti-official", "eth3d", "scannet", "diode", "driving-stereo"]
)
def test_an_empty_folder(tmp_path, name):
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark(name, tmp_path)
    one_line(caught, tmp_path, *(BENCHMARKS[name].splits[:1]))


def test_moge_bundle_without_index(tmp_path):
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("moge-bundle", tmp_path, subset="KITTI")
    one_line(caught, "KITTI/.index.txt")


@pytest.mark.parametrize(
    "name", ["nyuv2", "kitti-eigen", "kitti-official", "eth3d", "scannet", "diode", "driving-stereo"]
)
def test_a_list_that_does_not_fit(tmp_path, name):
    line = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png x/y.png"
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark(
            name,
            tmp_path,
            split=save_list(tmp_path / "l.txt", [line, "indoors " + line, "outdoor " + line][:1]),
            strict_count=False,
        )
    one_line(caught, "none of the", "l.txt", "--root")


@pytest.mark.parametrize("name", ["nyuv2", "kitti-eigen", "eth3d", "scannet", "diode"])
def test_images_without_ground_truth(tmp_path, name):
    image = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png"
    layouts.save_image(tmp_path / image, 0)
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark(name, tmp_path, split=save_list(tmp_path / "l.txt", [f"{image} a/b.png c/d.npy"]))
    one_line(caught, "ground truth", "looked for")


def test_another_count_is_an_error_that_says_how_to_go_on(tmp_path):
    save_list(tmp_path / "filename_list_test.txt", layouts.nyu_marigold(tmp_path, 4))
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("nyuv2", tmp_path)
    one_line(caught, "found 4", "654", "--limit 4", "filename_list_test.txt")
    assert len(open_benchmark("nyuv2", tmp_path, limit=4).items) == 4
    limited = open_benchmark("nyuv2", tmp_path, limit=2)
    assert len(limited.items) == 2
    assert limited.expected == 654


def test_a_missing_file_stays_a_sample(tmp_path):
    lines = layouts.nyu_marigold(tmp_path, 4)
    save_list(tmp_path / "filename_list_test.txt", lines)
    (tmp_path / lines[2].split()[0]).unlink()
    (tmp_path / lines[1].split()[1]).write_bytes(b"")
    dataset = open_benchmark("nyuv2", tmp_path, strict_count=False)
    assert len(dataset.items) == 4
    with pytest.raises(FileNotFoundError) as caught:
        dataset.items[2].read()
    one_line(caught, lines[2].split()[0])
    with pytest.raises(DistillDepthError, match="empty"):
        dataset.items[1].read()
    assert_sample(dataset.items[3], 3)


def test_a_picture_of_depth_is_not_ground_truth(tmp_path):
    lines = layouts.nyu_marigold(tmp_path, 1)
    Image.fromarray(np.full(SIZE, 200, np.uint8)).save(tmp_path / lines[0].split()[1])
    dataset = open_benchmark("nyuv2", tmp_path, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    with pytest.raises(DistillDepthError, match="8 bits"):
        dataset.items[0].read()


def test_truth_without_a_valid_pixel(tmp_path):
    lines = layouts.scannet(tmp_path, 1)
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(tmp_path / lines[0].split()[1])
    dataset = open_benchmark("scannet", tmp_path, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    with pytest.raises(DistillDepthError, match="no valid pixel"):
        dataset.items[0].read()


def test_wrong_names(tmp_path):
    with pytest.raises(ValueError, match="kitti-eigen"):
        open_benchmark("kitti-eigne", tmp_path)
    with pytest.raises(ValueError, match="rainy"):
        open_benchmark("driving-stereo", tmp_path, subset="rany")
    with pytest.raises(ValueError, match="no parts"):
        open_benchmark("nyuv2", tmp_path, subset="indoor")
    with pytest.raises(ValueError, match="limit"):
        open_benchmark("nyuv2", tmp_path, limit=0)
    with pytest.raises(FileNotFoundError):
        open_benchmark("nyuv2", tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        open_benchmark("nyuv2", tmp_path, split=tmp_path / "gone.txt")
    with pytest.raises(FileNotFoundError, match="filename_list_test"):
        open_benchmark("nyuv2", tmp_path, split=tmp_path)
    save_list(tmp_path / "l.txt", layouts.nyu_marigold(tmp_path, 1))
    with pytest.raises(DistillDepthError, match="raw"):
        open_benchmark("nyuv2", tmp_path, split=tmp_path / "l.txt", field="row", strict_count=False)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.tgz", "set.zip"])
def test_compressed_archives_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DistillDepthError) as caught:
        open_benchmark("scannet", tmp_path)
    one_line(caught, name, "unpacked")
    with pytest.raises(DistillDepthError) as caught:
        Root(tmp_path / name)
    one_line(caught, "unpack")


def test_a_damaged_tar(tmp_path):
    layouts.scannet(tmp_path / "set", 3)
    tar = pack(tmp_path / "set", tmp_path / "set.tar")
    data = bytearray(tar.read_bytes())
    second = next(span for name, span in Tar(tar).members.items() if "depth" in name)
    tar.write_bytes(data[: second.offset + 20])
    with pytest.raises(DistillDepthError) as caught:
        _ = Tar(tar).members
    one_line(caught, "set.tar")
    tar.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DistillDepthError):
        _ = Tar(tar).members


def test_hard_links_in_a_tar(tmp_path):
    lines = layouts.scannet(tmp_path / "set", 2)
    image = tmp_path / "set" / lines[1].split()[0]
    image.unlink()
    os.link(tmp_path / "set" / lines[0].split()[0], image)
    tar = pack(tmp_path / "set", tmp_path / "set.tar")
    dataset = open_benchmark("scannet", tar, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    np.testing.assert_array_equal(dataset.items[0].read()[0], dataset.items[1].read()[0])


def test_items_travel_to_worker_processes(tmp_path):
    lines = layouts.scannet(tmp_path / "set", 2)
    tar = pack(tmp_path / "set", tmp_path / "set.tar")
    dataset = open_benchmark("scannet", tar, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    assert_sample(pickle.loads(pickle.dumps(dataset.items[1])), 1, jpeg=True)
    assert len(set(dataset.items)) == 2


def test_orientation_in_the_file_is_not_applied(tmp_path):
    # Ground truth belongs to the stored pixels; a viewer would turn this photograph.
    lines = layouts.scannet(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph(0)).save(tmp_path / lines[0].split()[0], exif=exif)
    dataset = open_benchmark("scannet", tmp_path, split=save_list(tmp_path / "l.txt", lines), strict_count=False)
    assert_sample(dataset.items[0], 0, jpeg=True)


# --- codec ---


def test_codec_never_calls_these_valid():
    stored = np.array([[np.nan, np.inf, -np.inf, -1, 0, 1e-45, 5, 7]])
    depth, valid = DepthCodec(scale=1e3, invalid=(7,)).metres(stored)
    assert valid.tolist() == [[False] * 6 + [True, False]]
    assert depth.tolist() == [[0] * 6 + [np.float32(0.005), 0]]


def test_codec_turns_distance_into_z():
    size, focal = (5, 7), 3.0
    v, u = np.mgrid[: size[0], : size[1]]
    ray = np.sqrt(1 + ((u - 3) / focal) ** 2 + ((v - 2) / focal) ** 2)
    z = metres(3, size)
    depth, valid = DepthCodec(focal_px=focal).metres((z * ray).astype(np.float32))
    assert valid.all()
    np.testing.assert_allclose(depth, z, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"format": "exr"}, {"scale": 0}, {"scale": float("nan")}])
def test_codec_settings(settings):
    with pytest.raises(ValueError, match="DepthCodec"):
        DepthCodec(**settings)


def test_large_raw_maps_are_read_without_a_second_copy(tmp_path):
    import tracemalloc

    size = (1008, 1512)
    layouts.save_raw(tmp_path / "a.JPG", 0, size)
    tracemalloc.start()
    try:
        DepthCodec(format="raw-float32").read(Stored(Folder(tmp_path), "a.JPG"), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The map itself and three masks at most, a quarter of it each.
    assert peak < 1.8 * 4 * size[0] * size[1]


# --- check ---


def test_check(tmp_path):
    lines = layouts.nyu_marigold(tmp_path, 5)
    save_list(tmp_path / "filename_list_test.txt", lines)
    (tmp_path / lines[3].split()[0]).unlink()
    dataset = open_benchmark("nyuv2", tmp_path, strict_count=False)
    report = check(dataset)
    there = [seed for seed in range(5) if seed != 3]
    values = np.concatenate([metres(seed)[~holes(seed)] for seed in there])
    assert (report["name"], report["count"], report["expected"], report["read"]) == ("nyuv2", 5, 654, 4)
    assert report["images"] == report["truths"] == [[*SIZE, 4]]
    assert report["valid_share"] == values.size / (4 * SIZE[0] * SIZE[1])
    assert (report["min"], report["median"], report["max"]) == (values.min(), np.median(values), values.max())
    assert [bad["name"] for bad in report["unreadable"]] == [lines[3].split()[0]]
    assert report["field"] == "raw"
    assert report["warnings"] == []


def test_check_reads_some_evenly(tmp_path):
    read = []

    def item(index):
        def reader():
            read.append(index)
            return np.zeros((2, 3, 3), np.uint8), Truth(np.ones((2, 3), np.float32), np.ones((2, 3), bool), True)

        return Item("x", str(index), reader)

    dataset = Dataset("x", [item(index) for index in range(200)])
    assert check(dataset)["read"] == 50
    assert sorted(read) == list(range(0, 200, 4))
    assert check(dataset, limit=3, workers=1)["read"] == 3
    assert check(dataset, all=True)["read"] == 200
    with pytest.raises(ValueError, match="limit"):
        check(dataset, limit=0)


def test_check_shows_a_wrong_scale(tmp_path):
    # Millimetres in a set that counts 256 to the metre.
    frames = layouts.kitti_eigen(tmp_path, 3, "marigold")
    for seed, frame in enumerate(frames):
        layouts.save_depth(tmp_path / layouts.KITTI_DEPTH["marigold"].format(**frame), seed + 5, 20)
    split = save_list(tmp_path / "l.txt", [layouts.kitti_line(frame) for frame in frames])
    report = check(open_benchmark("kitti-eigen", tmp_path, split=split, strict_count=False))
    assert len(report["warnings"]) == 1
    assert "scale" in report["warnings"][0]


def test_check_shows_truth_of_another_shape():
    def turned():
        return np.zeros((4, 6, 3), np.uint8), Truth(np.ones((6, 4), np.float32), np.ones((6, 4), bool), True)

    report = check(Dataset("x", [Item("x", "a", turned)]))
    assert len(report["warnings"]) == 1
    assert "1 of 1" in report["warnings"][0]


def test_check_of_nothing_readable():
    def broken():
        raise DistillDepthError("gone")

    report = check(Dataset("x", [Item("x", "a", broken)]))
    assert (report["read"], report["median"]) == (0, None)
    assert report["unreadable"] == [{"name": "a", "error": "gone"}]


def test_every_benchmark_describes_itself():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.layouts
        assert benchmark.source.startswith("http")
        assert set(benchmark.domains) <= set(benchmark.counts)


# --- annotations of Metric3D ---


def annotations(path, files):
    path.write_text(json.dumps({"files": files}))
    return path


def test_annotations(tmp_path):
    layouts.save_image(tmp_path / "d/a.png", 0)
    layouts.save_depth(tmp_path / "d/a_depth.png", 0, 6000)
    entry = {"rgb": "d/a.png", "depth": "d/a_depth.png", "depth_scale": 6000, "cam_in": [518.8, 519.4, 325.5, 253.7]}
    path = annotations(tmp_path / "test.json", [entry, {"rgb": "d/a.png", "depth": None}])
    source = open_rgbd(path)
    assert (len(source), source.skipped) == (1, 1)
    sample = source[0]
    assert (sample["name"], sample["dataset"]) == ("d/a.png", "test")
    np.testing.assert_array_equal(sample["valid"], ~holes(0))
    np.testing.assert_array_equal(sample["target"], np.where(holes(0), 0, metres(0)))
    assert sample["intrinsics"][0].tolist() == [np.float32(518.8), 0, np.float32(325.5)]
    elsewhere = annotations(tmp_path / "d" / "other.json", [entry])
    assert open_rgbd(elsewhere, root=tmp_path)[0]["image"].shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not a JSON file"]),
        ("[1]", ["must hold a JSON object"]),
        ('{"files": []}', ["empty"]),
        ('{"files": [{"rgb": "a", "depth": "b"}, 3]}', ["files[1]", "object"]),
        ('{"files": [{"depth": "b"}]}', ["files[0]", "`rgb`"]),
        ('{"files": [{"rgb": "a", "depth": "b", "depth_scale": 0}]}', ["`depth_scale`", "positive"]),
        ('{"files": [{"rgb": "a", "depth": "b", "cam_in": [1, 2]}]}', ["`cam_in`"]),
        ('{"files": [{"rgb": "a", "depth": null}]}', ["all 1"]),
    ],
)
def test_bad_annotations(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DistillDepthError) as caught:
        open_rgbd(tmp_path / "a.json")
    one_line(caught, "a.json", *words)
