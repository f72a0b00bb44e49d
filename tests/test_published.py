"""Published numbers: what is in the file, how it is marked, and that nothing gains digits or a unit on the way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distilldepth.evaluate.record.published import (
    TASKS,
    format_published,
    make_published_table,
    method_of,
    protocol_of,
    published_kinds,
    published_rows,
)


def row(kind: str, model: str, source: str = "", tasks: tuple[str, ...] = ("estimation",)) -> dict:
    found = [r for r in published_rows(kind, tasks=tasks) if r["model"] == model and source in r["source"]]
    assert len(found) == 1
    return found[0]


def text_of(table: object, width: int = 150) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_numbers_are_those_of_the_papers():
    assert row("nyuv2", "Marigold")["metrics"] == {"abs_rel": 0.055, "delta1": 0.961}
    assert row("eth3d", "HDN")["metrics"] == {"abs_rel": 0.121, "delta1": 0.833}
    assert row("kitti-eigen", "NeWCRFs")["metrics"] == {
        "sq_rel": 0.155, "abs_rel": 0.052, "rmse": 2.129, "rmse_log": 0.079, "delta1": 0.974, "delta2": 0.997,
        "delta3": 0.999,
    }  # fmt: skip
    assert row("driving-stereo", "ADU-Depth")["metrics"] == {"sq_rel": 0.064, "abs_rel": 0.028, "rmse": 1.146}
    assert "sq_rel" not in row("kitti-eigen", "PackNet-SAN")["metrics"]
    assert row("diode", "Distill Any Depth, local-global, hybrid norm.")["metrics"] == {"abs_rel": 0.232}


def test_percent_becomes_a_share_without_new_digits():
    server = row("kitti-official", "ADU-Depth (test server)")["metrics"]
    assert server == {"silog": 9.69, "sq_rel_squared": 0.0169, "abs_rel": 0.0726, "irmse_km": 9.61}
    assert row("kitti-official", "ADU-Depth")["metrics"]["abs_rel"] == 0.0461
    assert row("scannet", "Robust Lightweight (11.49 M parameters)")["metrics"]["delta3"] == 0.9992


def test_a_number_without_a_stated_unit_says_so():
    metrics = row("nyuv2", "Robust Lightweight (11.49 M parameters)")["metrics"]
    assert metrics["rmse_as_printed"] == 0.0436
    assert "rmse" not in metrics
    assert "sq_rel" not in row("kitti-official", "ADU-Depth")["metrics"]


def test_methods_that_see_more_than_one_image_are_kept_apart():
    names = {r["model"] for r in published_rows("kitti-eigen")}
    assert "ADU-Depth, teacher" not in names
    assert "NLSPN" not in names
    everything = published_rows("kitti-eigen", tasks=TASKS)
    assert {r["task"] for r in everything} == set(TASKS)
    assert row("kitti-eigen", "ADU-Depth, teacher", tasks=("stereo",))["metrics"]["abs_rel"] == 0.040


@pytest.mark.parametrize("kind", published_kinds())
def test_every_row_says_where_it_was_read_and_how_it_was_measured(kind):
    for published in published_rows(kind, tasks=TASKS):
        assert published["source"]
        assert published["protocol"]
        assert published["dataset"] == kind
        assert published["metrics"]
        for name, value in published["metrics"].items():
            assert value > 0
            if name.startswith("delta"):
                assert value <= 1
    # A paper that only says KITTI is not made to say Eigen.
    for published in published_rows("kitti-eigen"):
        if published["source"].startswith("Distill Any Depth"):
            assert "names no split" in protocol_of(published)
    assert not any("KITTI" in r["note"] for r in published_rows("nyuv2"))


def test_rows_are_copies():
    published_rows("nyuv2")[0]["metrics"]["abs_rel"] = 0.0
    assert published_rows("nyuv2")[0]["metrics"]["abs_rel"] == 0.117


def test_digits_as_printed():
    assert format_published("abs_rel", {"abs_rel": 0.09}) == "0.090"
    assert format_published("abs_rel", {"abs_rel": 0.0562}) == "0.0562"
    assert format_published("silog", {"silog": 12.22}) == "12.22"
    assert format_published("rmse", {}) == ""


def test_the_table_is_marked_as_theirs():
    text = text_of(make_published_table(["scannet", "driving-stereo"]))
    assert "nothing here was measured by this program" in text
    assert "[1] Distill Any Depth" in text
    assert "arXiv 2502.19204v1, Table 5: scale and shift aligned" in text
    assert "given sparse depth" in text
    assert "0.032" in text
    assert "nyuv2" not in text
    assert "NeWCRFs" in text_of(make_published_table())


def test_typos_are_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'nyuv2'"):
        make_published_table(["nyu2"])
    with pytest.raises(ValueError, match="did you mean 'stereo'"):
        published_rows("nyuv2", tasks=("sterio",))
    assert published_rows("scenes") == []


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_name_is_broken(width):
    console = Console(width=width, file=io.StringIO())
    console.print(make_published_table())
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    words = {word for line in lines for word in line.split()}
    for kind in published_kinds():
        for row in published_rows(kind, tasks=TASKS):
            assert set(method_of(row).split()) <= words
            assert kind in words
