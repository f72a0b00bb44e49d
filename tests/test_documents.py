"""JSON and TOML of others: within bounds or one line that names the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilldepth.documents import MAX_DEPTH, parse_json, parse_toml, read_json, read_json_lines, read_toml
from distilldepth.errors import DistillDepthError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_within_the_bounds_is_read_as_it_is(value):
    assert parse_json(json.dumps(value), "x") == value
    assert parse_json(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), '{"a":' * 100_000, "[" * 100_000, "9" * 5000, str(1 << 63),
        '{"a": -9223372036854775809}', "", "{", "nul", b"\xff\xfe", '{"a": 1} x',
    ],
)  # fmt: skip
def test_json_beyond_them_is_one_line(text):
    with pytest.raises(DistillDepthError, match=r"^name: ") as caught:
        parse_json(text, "name", remedy="start anew")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; start anew")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, f"a = {1 << 63}", "a", b"\xff", "[a]\n[a]\n", "a = 1\na = 2"]
)
def test_toml_beyond_them_is_one_line(text):
    with pytest.raises(DistillDepthError, match=r"^name: ") as caught:
        parse_toml(text, "name")
    assert "\n" not in str(caught.value)


def test_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    for read in (read_json, read_json_lines, read_toml):
        with pytest.raises(DistillDepthError, match=r"a\.json: no such file"):
            read(path)
        with pytest.raises(DistillDepthError, match="is not a file"):
            read(tmp_path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(DistillDepthError, match="more than 4 bytes"):
        read_json(path, limit=4)
    path.write_text("[1]")
    with pytest.raises(DistillDepthError, match="must hold a JSON object, got list"):
        read_json(path)


def test_a_line_that_was_cut_off_is_left_out_and_a_bad_one_has_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n[]\n')
    with pytest.raises(DistillDepthError, match=r"rows\.jsonl:2: must hold"):
        read_json_lines(path)
