"""Files of sparse depth: every kind that is read, and one line for every kind of mistake."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.formats.png import write_depth_png
from distilldepth.sparse.files import check_points, read_sparse

SIZE = (12, 20)


def points() -> np.ndarray:
    sparse = np.zeros(SIZE, np.float32)
    sparse[2, 5], sparse[7, 11], sparse[11, 19], sparse[0, 0] = 1.5, 3.25, 20.125, 4.0
    return sparse


def refused(path: Path, scale: float | None = None) -> str:
    with pytest.raises((DistillDepthError, UsageError, FileNotFoundError)) as caught:
        read_sparse(path, SIZE, scale=scale)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


def png16(path: Path, stored: np.ndarray) -> Path:
    Image.fromarray(stored.astype(np.uint16)).save(path)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_arrays_in_every_type_and_order(tmp_path):
    for dtype in ("<f4", "<f8", ">f4", "<f2"):
        values = points().astype(dtype)
        values[3, 3] = np.nan
        np.save(tmp_path / "a.npy", np.asfortranarray(values) if dtype == "<f8" else values)
        sparse = read_sparse(tmp_path / "a.npy", SIZE)
        assert sparse.dtype == np.float32
        np.testing.assert_array_equal(sparse, points())
    np.savez_compressed(tmp_path / "a.npz", depth=points(), other=np.ones(3))
    np.testing.assert_array_equal(read_sparse(tmp_path / "a.npz", SIZE), points())
    np.savez(tmp_path / "b.npz", whatever=points())
    np.testing.assert_array_equal(read_sparse(tmp_path / "b.npz", SIZE), points())


def test_whole_numbers_ask_for_their_unit(tmp_path):
    np.save(tmp_path / "mm.npy", (points() * 1000).astype(np.uint16))
    assert "--sparse-scale" in refused(tmp_path / "mm.npy")
    np.testing.assert_allclose(read_sparse(tmp_path / "mm.npy", SIZE, scale=1000), points())


def test_png_with_a_scale_and_one_that_says_it_itself(tmp_path):
    path = png16(tmp_path / "a.png", points() * 256)
    np.testing.assert_allclose(read_sparse(path, SIZE, scale=256), points())
    message = refused(path)
    assert all(number in message for number in ("256", "1000", "5000", "--sparse-scale"))
    ours = tmp_path / "ours.png"
    write_depth_png(ours, points(), "metric_depth", units_per_metre=1000)
    np.testing.assert_allclose(read_sparse(ours, SIZE), points(), rtol=1e-4)
    np.testing.assert_allclose(read_sparse(ours, SIZE, scale=1000), points(), rtol=1e-4)
    assert "1000 units per metre, and 256 were given" in refused(ours, 256)
    write_depth_png(ours, points(), "disparity")
    assert "'disparity', not depth in metres" in refused(ours)


@pytest.mark.parametrize(
    "text",
    [
        "5 2 1.5\n11 7 3.25\n19 11 20.125\n0 0 4\n",
        "u,v,depth\n5,2,1.5\n11, 7, 3.25\n19.4,11.49,20.125\n-0.5,-0.4,4.0\n",
        "# from a scanner\n\nu v depth_m\n5\t2\t1.5  # near\n11;7;3.25\r\n19 11 20.125\n0 0 4\n0 0 9.0\n",
        "\ufeff5 2 1.5\n11 7 3.25\n19 11 20.125\n0 0 4\n",
    ],
)
def test_lines_of_column_row_depth(tmp_path, text):
    np.testing.assert_array_equal(read_sparse(written(tmp_path / "a.csv", text), SIZE), points())
    thousandths = read_sparse(written(tmp_path / "b.txt", "1 2 1500\n4 3 2500"), SIZE, scale=1000)
    assert (thousandths[2, 1], thousandths[3, 4]) == (1.5, 2.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "5 2 1.5\n20 3 2\n",
            "1 of 2 points lie outside the photograph, 20 wide and 12 high; the first in line 2: u 20",
        ),
        ("5 2 1.5\n1e300 nan 2\n", "u 1e+300, v nan"),
        ("5 2 1.5\n3 15 2\n", "the column and v the row: are they swapped"),
        ("5 2 1.5\n3 4 nan\n", "line 2: depth must be positive and finite, got nan"),
        ("5 2 1.5\n3 4 -1\n", "line 2: depth must be positive and finite, got -1"),
        ("5 2 1.5\n3 4 inf\n", "line 2: depth must be positive and finite, got inf"),
        ("5 2 1.5\n3 4\n", "line 2: must be `u v depth`"),
        ("5 2 1.5\nu v depth\n", "line 2: must be `u v depth`"),
        ("5 x 1.5\n", "line 1: must be `u v depth`"),
        ("5 2 1.5 3\n", "line 1: must be `u v depth`"),
        ("5 2 1.5\n", "has one point of known depth"),
        ("u v depth\n", "has no point of known depth"),
        ("5 2 1.5\n5 2 2.5\n", "has one point of known depth"),
        ("5 2 1.5\n6 2 1.5\n", "all 2 points are at 1.5 m"),
    ],
)
def test_lines_that_are_wrong(tmp_path, text, said):
    assert said in refused(written(tmp_path / "a.txt", text))


def test_a_swapped_hint_is_given_only_where_it_would_help(tmp_path):
    assert "are they swapped" not in refused(written(tmp_path / "a.txt", "5 2 1.5\n30 3 2\n"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((3, 4, -2.0), "1 value is negative, the first at column 4, row 3"),
        ((3, 4, np.inf), "1 value is infinite, the first at column 4, row 3"),
    ],
)
def test_arrays_with_impossible_values(tmp_path, change, said):
    values = points()
    values[change[0], change[1]] = change[2]
    np.save(tmp_path / "a.npy", values)
    assert said in refused(tmp_path / "a.npy")


def test_too_few_points_and_one_depth_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.full(SIZE, np.nan, np.float32))
    assert "no point of known depth; at least two" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.where(points() > 0, 2.0, 0))
    assert "all 4 points are at 2 m" in refused(tmp_path / "a.npy")


def test_other_sizes_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((6, 10)))
    assert "is 6 x 10 (height x width), its photograph 12 x 20; they must be of one size" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", points().T)
    assert "is 20 x 12 (height x width), its photograph 12 x 20; is it turned" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", points()[None])
    assert "got shape (1, 12, 20)" in refused(tmp_path / "a.npy")
    assert "is 12 x 19" in refused(png16(tmp_path / "a.png", points()[:, :19] * 256), 256)


@pytest.mark.parametrize(
    ("unit", "suggested"),
    [(1000, "3.62 m with 1000 (millimetres)"), (5000, "3.62 m with 5000 (TUM RGB-D)"), (1000, "--sparse-scale 1000")],
)
def test_a_unit_that_cannot_be_metres_is_named(tmp_path, unit, suggested):
    np.save(tmp_path / "a.npy", points() * unit)
    message = refused(tmp_path / "a.npy")
    assert "points lie beyond 250 m" in message
    assert suggested in message


def test_a_scale_that_cannot_be_is_answered_with_the_one_that_can(tmp_path):
    path = png16(tmp_path / "a.png", points() * 1000)
    message = refused(path, 1)
    assert "it would be 3.62 m with 1000 (millimetres), " in message
    assert message.endswith(": give --sparse-scale 1000")
    assert "points lie short of 0.02 m" in refused(path, 1e7)
    # KITTI's unit, read as that of metres: all its points lie far off.
    far = np.where(points() > 0, points() + 15, 0)
    assert "256 (KITTI)" in refused(png16(tmp_path / "b.png", far * 256), 1)
    with pytest.raises(UsageError, match="scale must be positive"):
        read_sparse(path, SIZE, scale=-1)


def test_what_is_only_unusual_is_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", points() * 40)
    with pytest.warns(UserWarning, match=r"the median of the points is 145 m; if that is not meant"):
        read_sparse(tmp_path / "a.npy", SIZE)
    np.save(tmp_path / "a.npy", points())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_sparse(tmp_path / "a.npy", SIZE)


def test_outliers_alone_are_no_wrong_unit():
    sparse = np.zeros(SIZE)
    sparse[::2, ::2] = np.linspace(1, 5, 60).reshape(6, 10)
    sparse[0, 0], sparse[4, 4] = 900.0, 0.001
    assert check_points(sparse, "points")[0, 0] == 900


def test_files_that_are_something_else(tmp_path):
    assert "sparse depth is read from .npy, .npz, .png, .txt or .csv" in refused(written(tmp_path / "a.exr", "x"))
    assert "is empty" in refused(written(tmp_path / "a.npy", ""))
    assert "damaged header" in refused(written(tmp_path / "a.npy", "hello"))
    assert "damaged or no PNG" in refused(written(tmp_path / "a.png", "hello"), 1000)
    assert "no readable .npz" in refused(written(tmp_path / "a.npz", "hello"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert "is no text" in refused(tmp_path / "b.txt")
    (tmp_path / "c.npy").mkdir()
    assert "is a folder" in refused(tmp_path / "c.npy")
    assert "No such file" in refused(tmp_path / "d.npy")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "e.png")
    assert "so it is a picture and not depth" in refused(tmp_path / "e.png", 1000)
    np.savez(tmp_path / "f.npz", a=points(), b=points())
    assert "holds 2 arrays; name the one that is meant `depth`" in refused(tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "not opened" in refused(tmp_path / "g.npy")


def test_what_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 20)})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + b"\0" * 64)
    assert "promises more than" in refused(tmp_path / "a.npy")
    monkeypatch.setattr("distilldepth.sparse.files.MAX_BYTES", 4096)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("depth.npy", b"\0" * 100_000)
    assert "unpacks to 100000 bytes" in refused(tmp_path / "a.npz")
    (tmp_path / "b.npy").write_bytes(b"\0" * 5000)
    assert "has 5000 bytes; sparse depth has at most 4096" in refused(tmp_path / "b.npy")
