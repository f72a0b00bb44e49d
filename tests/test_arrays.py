"""`.npy` files of others: read within the bytes there are, or one line in our own words."""

import io
import pickle

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError
from distilldepth.formats.npy import read_npy

KINDS = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<u2", ">i4", "<i8"])


@given(st_numpy.arrays(KINDS, st_numpy.array_shapes(max_side=6)), st.booleans())
def test_it_reads_what_numpy_writes(values, is_fortran):
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(values) if is_fortran else values)
    stream.seek(0)
    found = read_npy(stream, "x")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def header(text: str) -> bytes:
    body = text.encode()
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def of_shape(shape: str, descr: str = "'<f4'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n") + bytes(64)


BAD = {
    "digits": of_shape(f"({'9' * 400}, 2)"),
    "huge": of_shape("(1000000, 1000000)"),
    "over": of_shape(f"({1 << 64},)"),
    "negative": of_shape("(-1, 4)"),
    "cut": of_shape("(5, 5)"),
    "call": of_shape("__import__('os').getpid()"),
    "long": header(" " * 60_000 + "\n"),
    "nested": header("(" * 5000),
    "object": of_shape("(2, 2)", "'|O'"),
    "text": of_shape("(2, 2)", "'<U4'"),
    "fields": of_shape("(2,)", "[('a', '<f4')]"),
    "complex": of_shape("(2, 2)", "'<c8'"),
    "version": b"\x93NUMPY\x03\x00" + bytes(100),
    "empty": b"",
    "pickle": pickle.dumps([1, 2]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_none_is_one_line_in_our_words(name, tmp_path):
    with pytest.raises(DistillDepthError, match=r"^x\.npy: ") as caught:
        read_npy(io.BytesIO(BAD[name]), "x.npy")
    for word in ("allow_pickle", "max_header_size", "<ast", "\n", "Unable to allocate"):
        assert word not in str(caught.value)
    # The same where predictions and depth are read.
    (tmp_path / "images").mkdir()
    (tmp_path / "depth").mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    (tmp_path / "depth" / "a.npy").write_bytes(BAD[name])
    result = CliRunner().invoke(cli, ["evaluate", "--model", "baseline:ramp", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "fault of the program" not in result.stderr
    np.save(tmp_path / "depth" / "a.npy", np.ones((5, 6), np.float32))
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.npy").write_bytes(BAD[name])
    words = ["evaluate", "--predictions", str(tmp_path / "maps"), "--quantity", "depth", "--data", str(tmp_path)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1
    assert "fault of the program" not in result.stderr
    assert "allow_pickle" not in result.stderr
