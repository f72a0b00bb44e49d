"""The evaluation's tables, cases and page: on a result made by hand, so that every number on them is known."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow_pages import check_narrow
from PIL import Image
from rich.console import Console

from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import PROTOCOLS
from distilldepth.evaluate.record.cases import FOLDER, Cases
from distilldepth.evaluate.record.page import write_report
from distilldepth.evaluate.record.published import published_rows
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.rows import Failure, Metadata, ScoredDataset, ScoredModel, ScoredSample
from distilldepth.evaluate.record.table import format_metric, make_table, to_csv, to_latex, to_markdown
from distilldepth.pages import Chart, data_url, depth_ticks, jpeg, nice_ticks, palette_png, png

BINS = [[1.0, 2.0, 30, 3.0, 27], [2.0, 4.0, 10, 4.0, 2]]


def metrics(seed: int) -> dict[str, float]:
    generator = np.random.default_rng(seed)
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3", "boundary_f1")
    return dict(zip(names, generator.uniform(0.1, 0.9, len(names)).tolist(), strict=True))


def make_evaluation(*, complete: bool = False) -> Evaluation:
    means = {"nyu_v2": {**metrics(0), "abs_rel": 0.2345, "delta1": 0.6364}, "a|b <i>": metrics(1)}
    datasets = [
        {
            "name": "nyu_v2", "kind": "nyuv2", "domain": "indoor", "frames": 3, "expected": 3 if complete else 654,
            "failed": 0, "metrics": means["nyu_v2"], "pooled": {"abs_rel": 0.777, "delta1": 0.111},
            "intervals": {"abs_rel": [0.2301, 0.2388], "delta1": [0.6, 0.67]},
            "rules": PROTOCOLS["marigold"].rules("nyuv2").to_dict(),
        },
        {
            "name": "a|b <i>", "kind": "", "domain": "", "frames": 2, "expected": None, "failed": int(not complete),
            "metrics": means["a|b <i>"], "pooled": {}, "intervals": {}, "rules": {},
        },
    ]  # fmt: skip
    samples = [
        {"dataset": name, "name": f"{index},\n\"{name}\"", "metrics": {**metrics(10 + index), "delta3": None},
         "sums": {}, "scale": 0.1 + index, "shift": -0.25, "error_by_depth": BINS}
        for name, count in (("nyu_v2", 3), ("a|b <i>", 2))
        for index in range(count)
    ]  # fmt: skip
    failures = [] if complete else [{"dataset": "a|b <i>", "name": "x.png", "error": "no & such <file>, 100%"}]
    model = {
        "name": "my_model", "family": "light", "quantity": "disparity", "licence": "Apache-2.0", "source": "bundled",
        "notes": [],
    }  # fmt: skip
    return Evaluation(
        Metadata(
            ScoredModel(**model), device="cpu", size=96, resize_policy="hf", command="distilldepth evaluate & co"
        ),
        PROTOCOLS["affine-disparity"], [ScoredDataset.from_dict(row) for row in datasets], metrics(2),
        [ScoredSample.from_dict(row) for row in samples], [Failure(**row) for row in failures],
        ["a stand-in <is> used"],
    )  # fmt: skip


def printed(evaluation: Evaluation, width: int, **options: object) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(make_table(evaluation, **options))
    return console.export_text()


# Tables


def test_an_interval_has_as_many_digits_as_tell_its_ends_apart():
    values = {"delta1": 0.6364, "abs_rel": 0.2345, "rmse": 1.0}
    intervals = {"delta1": [0.6, 0.67], "abs_rel": [0.2301, 0.2388], "rmse": [0.0, 2.0]}
    assert format_metric("delta1", values, intervals) == "0.636 [0.60, 0.67]"
    # Round half to even would be a difference of the last digit only.
    assert format_metric("abs_rel", values, intervals) == f"{0.2345:.3f} [0.230, 0.239]"
    assert format_metric("rmse", values, intervals) == "1.000"
    assert format_metric("delta1", values, {"delta1": [None, None]}) == "0.636"
    assert format_metric("silog", values) == ""
    assert format_metric("rmse", {"rmse": float("nan")}) == ""


def test_a_wide_terminal_sees_everything_on_one_line():
    text = printed(make_evaluation(), 170)
    assert re.search(r"nyu_v2\s*│\s*3 of 654 │\s*0.23\d \[0.230, 0.239\]", text)
    assert "0.636 [0.60, 0.67]" in text
    assert "2 of 3" in text
    assert "INCOMPLETE: 1 of 6 frames could not be scored" in text
    assert "3 of the 654 frames of nyu_v2 were asked for" in text
    assert "mean of datasets" in text
    assert "no room" not in text


@pytest.mark.parametrize("width", [40, 64, 80, 110])
def test_a_narrow_terminal_loses_columns_but_no_digits(width):
    text = printed(make_evaluation(), width, published=published_rows("nyuv2")[:1])
    assert max(map(len, text.splitlines())) <= width
    assert "0.636" in text
    assert "…" not in text
    assert "INCOMPLETE" in text
    assert "no room for SqRel" in " ".join(text.split())
    if width >= 64:
        assert "[0.60, 0.67]" in text


def test_a_complete_result_is_not_called_incomplete():
    evaluation = make_evaluation(complete=True)
    for text in (printed(evaluation, 170), to_markdown(evaluation), to_latex(evaluation)):
        assert "INCOMPLETE" not in text
        assert "PART OF" not in text


def test_published_rows_are_marked_in_the_table():
    text = " ".join(printed(make_evaluation(), 170, published=published_rows("nyuv2")[:1]).split())
    assert "published: DiverseDepth on nyuv2" in text


def test_pixel_pooled_numbers_have_no_interval_of_per_image_means():
    evaluation = make_evaluation()
    dataset = evaluation.datasets[0]
    dataset.rules = replace(dataset.rules, aggregation="pixel-pooled")
    text = printed(evaluation, 170)
    assert "0.777" in text
    assert "[0.60, 0.67]" not in text


def test_markdown():
    text = to_markdown(make_evaluation())
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert len(table) == 2 + 2 + 1
    assert set(cells) == {12}
    assert r"a\|b \<i>" in text
    assert "Protocol affine-disparity: least-squares" in text
    assert "**INCOMPLETE: 1 of 6 frames" in text
    assert r"nyu\_v2" in text


def test_latex_is_escaped_and_has_booktabs():
    evaluation = make_evaluation()
    evaluation.datasets[1].name = r"50% & #1 \x ~^{}$_"
    text = to_latex(evaluation)
    assert r"50\% \& \#1 \textbackslash{}x \textasciitilde{}\textasciicircum{}\{\}\$\_" in text
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrrrrrr}", r"$\delta_1$"):
        assert word in text
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    assert "Protocol affine-disparity" in caption
    assert "INCOMPLETE: 1 of 6 frames" in caption
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {10}


def test_csv_keeps_every_digit_and_every_failure():
    evaluation = make_evaluation()
    text = to_csv(evaluation)
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 6
    assert rows[1]["name"] == '1,\n"nyu_v2"'
    assert float(rows[1]["abs_rel"]) == evaluation.samples[1]["metrics"]["abs_rel"]
    assert float(rows[4]["scale"]) == 1.1
    assert rows[0]["delta3"] == ""
    assert rows[0]["error"] == ""
    assert rows[5]["error"] == "no & such <file>, 100%"
    assert rows[5]["abs_rel"] == ""
    assert {row["protocol"] for row in rows} == {"affine-disparity"}
    assert "boundary_f1" in rows[0]


# Cases


def offer(cases: Cases, score: float, *, dataset: str = "d", size: tuple[int, int] = (30, 40), name: str = "") -> bool:
    height, width = size
    depth = np.full(size, 1 + score, dtype=np.float32)
    image = np.full((height, width, 3), round(10 * min(score, 9) if score == score else 0), dtype=np.uint8)
    return cases.offer(dataset, name or f"s{score}", score, image, depth, depth + 1, np.ones(size, dtype=bool))


def test_the_worst_and_the_best_are_kept_whatever_the_order():
    scores = np.random.default_rng(3).permutation(30) / 10
    for order in (scores, scores[::-1], np.sort(scores)):
        cases = Cases()
        for score in order:
            offer(cases, float(score))
        assert [case.score for case in cases.worst("d")] == [2.9, 2.8, 2.7, 2.6]
        assert [case.score for case in cases.best("d")] == [0.0, 0.1]


def test_few_samples_are_shown_once_each():
    cases = Cases()
    for score in (0.5, 0.1, 0.3, 0.9, 0.7):
        assert offer(cases, score)
    assert [case.score for case in cases.worst("d")] == [0.9, 0.7, 0.5, 0.3]
    assert [case.score for case in cases.best("d")] == [0.1]
    assert Cases().worst("nothing") == []


def test_a_score_that_is_not_a_number_or_a_sample_seen_before_is_not_kept():
    cases = Cases()
    assert not offer(cases, float("nan"))
    assert offer(cases, 0.5)
    assert not offer(cases, 0.5)
    assert offer(cases, 0.5, name="other")


def test_equal_scores_are_decided_by_the_name():
    kept = []
    for names in ("abcdefgh", "hgfedcba"):
        cases = Cases()
        for name in names:
            offer(cases, 0.5, name=name)
        kept.append([case.name for case in (*cases.worst("d"), *cases.best("d"))])
    assert kept[0] == kept[1] == ["h", "g", "f", "e", "a", "b"]


def test_pictures_are_small_and_sparse_truth_survives():
    generator = np.random.default_rng(0)
    truth = np.zeros((375, 1242), dtype=np.float32)
    rows, columns = generator.integers(0, 375, 900), generator.integers(0, 1242, 900)
    truth[rows, columns] = generator.uniform(2, 80, 900)
    valid = truth > 0
    image = generator.integers(0, 255, (375, 1242, 3), dtype=np.uint8)
    cases = Cases()
    cases.offer("d", "n", 0.1, image, torch.from_numpy(truth * 2 + 1), torch.from_numpy(truth), torch.from_numpy(valid))
    (case,) = cases.worst("d")
    assert case.image.shape == (*case.truth.shape, 3)
    assert case.truth.shape == (94, 311)
    # 900 points fall into 29 234 blocks of 16 pixels; only those that share a block are lost.
    assert case.valid.sum() == len({(row // 4, column // 4) for row, column in zip(rows, columns, strict=True)})
    assert set(case.truth[case.valid]) <= set(truth[valid].astype(np.float16))
    # Prediction and truth are of the same pixel.
    wanted = 2 * case.truth[case.valid].astype(np.float32) + 1
    assert np.allclose(case.prediction[case.valid], wanted, rtol=2e-3)
    assert not case.truth[~case.valid].any()


def test_without_shrinking_nothing_moves():
    depth = np.random.default_rng(1).uniform(1, 5, (7, 11)).astype(np.float32)
    cases = Cases()
    cases.offer("d", "n", 0.1, np.zeros((7, 11, 3), np.uint8), depth, depth[::-1], depth > 2, is_metric=False)
    (case,) = cases.worst("d")
    assert np.array_equal(case.prediction, depth.astype(np.float16))
    assert np.array_equal(case.valid, depth > 2)
    assert not case.is_metric


def test_cases_come_back_from_disk_and_a_run_goes_on(tmp_path):
    cases = Cases()
    for index in range(8):
        offer(cases, index / 10, dataset="kitti: a/b")
        offer(cases, index / 10, dataset="..")
    cases.save(tmp_path)
    assert sorted(path.suffix for path in (tmp_path / FOLDER).iterdir()) == [".npz", ".npz"]
    again = Cases.load(tmp_path)
    assert set(again.datasets()) == {"kitti: a/b", ".."}
    for case, other in zip(cases.worst(".."), again.worst(".."), strict=True):
        assert (case.name, case.score, case.is_metric) == (other.name, other.score, other.is_metric)
        assert np.array_equal(case.image, other.image)
        assert np.array_equal(case.prediction, other.prediction)
        assert np.array_equal(case.valid, other.valid)
    assert offer(again, 5.0, dataset="..")
    assert not offer(again, 0.35, dataset="..")
    again.save(tmp_path)
    assert [case.score for case in Cases.load(tmp_path).worst("..")] == [5.0, 0.7, 0.6, 0.5]
    assert Cases.load(tmp_path / "nothing").datasets() == []


def test_damaged_pictures_are_one_clear_line(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "d.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(DistillDepthError, match=r"d\.npz: damaged; delete it"):
        Cases.load(tmp_path)
    page = write_report(make_evaluation(), tmp_path).read_text()
    assert "d.npz: damaged" in page


# The page


def make_page(folder: Path, *, is_metric: bool = True) -> str:
    cases = Cases()
    generator = np.random.default_rng(4)
    for index in range(3):
        depth = generator.uniform(1, 4, (24, 36)).astype(np.float32)
        image = generator.integers(0, 255, (24, 36, 3), dtype=np.uint8)
        name = f'{index},\n"nyu_v2"'
        valid = depth > 1.5
        cases.offer("nyu_v2", name, 0.1 * index, image, 1.1 * depth, depth, valid, is_metric=is_metric)
    cases.save(folder)
    return write_report(make_evaluation(), folder).read_text(encoding="utf-8")


def test_nothing_on_the_page_is_wider_than_a_small_screen(tmp_path):
    check_narrow(make_page(tmp_path))


@pytest.mark.parametrize("planted", ["<table><tr><td>x</td></tr></table>", '<img alt="x" src="data:">'])
def test_what_is_too_wide_is_noticed(tmp_path, planted):
    page = make_page(tmp_path)
    with pytest.raises(AssertionError):
        check_narrow(page.replace("</body>", planted + "</body>"))


def test_the_page_stands_alone_and_escapes_what_comes_from_outside(tmp_path):
    page = make_page(tmp_path)
    assert page.startswith("<!doctype html>")
    for outside in ("http", "<script", "<link", "@import", "url(", "<i>", "<is>", "<file>"):
        assert outside not in page.replace("<i style", "")
    assert "a|b &lt;i&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert not list(tmp_path.glob(".distilldepth-*"))


def test_the_page_says_what_was_measured_and_what_is_missing(tmp_path):
    page = make_page(tmp_path)
    for words in (
        "my_model", "Apache-2.0", "affine-disparity: least-squares", "INCOMPLETE: 1 of 6 frames",
        "no &amp; such &lt;file&gt;, 100%", "a stand-in &lt;is&gt; used", "distilldepth evaluate &amp; co",
        "0.636<small>[0.60, 0.67]</small>", "Effective rules", "score crop", "eigen-nyu",
    ):  # fmt: skip
        assert words in page, words


def test_the_page_has_pictures_with_legends_in_metres(tmp_path):
    page = make_page(tmp_path)
    assert page.count("data:image/jpeg;base64") == 3
    assert page.count("data:image/png;base64") == 9
    assert "Worst cases" in page
    # The prediction is 10 % too far everywhere; half of the valid depths are below 2.75 m.
    assert re.search(r"half of the pixels within 0\.2[67]\d? m", page)
    assert re.search(r"<span>1\.\d+ m</span><span>\d\.\d+ m</span><span>3\.\d+ m</span>", page)
    without = make_page(tmp_path / "none" if (tmp_path / "none").mkdir() is None else tmp_path, is_metric=False)
    assert "The ground truth has no unit" in without


def test_error_against_depth_adds_up_the_pixels_of_all_frames(tmp_path):
    page = make_page(tmp_path)
    assert "1 to 2 m: 90 pixels, 75.0%; AbsRel 0.100" in page
    assert "2 to 4 m: 30 pixels, 25.0%; delta1 0.200" in page
    assert "1 to 2 m: 60 pixels, 75.0%; AbsRel 0.100" in page


def test_published_numbers_are_beside_ours_and_marked(tmp_path):
    page = make_page(tmp_path)
    section = page[page.index("Published numbers beside these") :]
    assert "nobody measured them here" in section
    assert "my_model on nyu_v2, 3 of 654 frames" in section
    assert "this run, affine-disparity" in section
    assert "Marigold" in section
    assert "[1] Distill Any Depth, Table 5" in section
    # The poster's RMSE has no stated unit: it is not set beside ours.
    assert "0.0436" not in section
    evaluation = replace(make_evaluation(), datasets=[make_evaluation().datasets[1]])
    assert "Published numbers" not in write_report(evaluation, tmp_path).read_text()


def test_a_page_without_pictures_or_bins(tmp_path):
    evaluation = make_evaluation()
    for sample in evaluation.samples:
        sample.error_by_depth = None
        sample.metrics = {"delta1": None}
    evaluation.datasets[0] = replace(evaluation.datasets[0], metrics={}, intervals={}, frames=0)
    page = write_report(evaluation, tmp_path).read_text()
    assert "nan" not in page.lower().replace("nanosecond", "")
    assert "Worst cases" not in page


# Pieces of pages


def test_pictures_as_files_read_back():
    picture = np.random.default_rng(2).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)
    assert Image.open(io.BytesIO(jpeg(picture))).size == (9, 5)
    table = np.random.default_rng(3).integers(0, 255, (256, 3), dtype=np.uint8)
    indices = np.array([[0, 1, 255], [7, 0, 9]], dtype=np.uint8)
    back = np.asarray(Image.open(io.BytesIO(palette_png(indices, table, 0))).convert("RGBA"))
    assert np.array_equal(back[..., :3][indices > 0], table[indices][indices > 0])
    assert np.array_equal(back[..., 3] > 0, indices > 0)
    assert data_url(b"abc") == "data:image/png;base64,YWJj"


def test_a_chart_places_points_by_its_axes():
    ticks = [(1.0, "1"), (10.0, "10"), (100.0, "100")]
    chart = Chart(
        "t <x>", ticks, [(0, "0"), (1, "1")], "x", {"a": [(10.0, 0.5, "middle"), (1e9, 9.0, "out")]}, [], True
    )
    svg = chart.to_svg()
    assert "t &lt;x&gt;" in svg
    (middle, end) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    lines = [float(y) for y in re.findall(r'<line x1="48" x2="400" y1="([\d.]+)"', svg)]
    assert float(middle[0]) == pytest.approx((48 + 400) / 2)
    assert float(middle[1]) == pytest.approx(sum(lines) / 2)
    assert (float(end[0]), float(end[1])) == (400, min(lines))


@pytest.mark.parametrize("highest", [0.013, 0.3, 1.0, 7.0, 99.0, 12345.0])
def test_ticks_reach_the_data_and_not_much_further(highest):
    ticks = [value for value, _ in nice_ticks(highest)]
    assert ticks[0] == 0
    assert highest <= ticks[-1] <= 1.6 * highest
    assert 3 <= len(ticks) <= 6
    around = [value for value, _ in depth_ticks(highest, 20 * highest)]
    assert around[0] <= highest
    assert around[-1] >= 20 * highest
