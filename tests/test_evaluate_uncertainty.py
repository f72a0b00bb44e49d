"""`evaluate` of a model that says how uncertain it is: order, calibration, and where both are shown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from narrow_pages import check_narrow
from test_evaluate import Brightness, in_memory, levels, pairs, run  # noqa: F401
from test_uncertainty_module import loud, small

from distilldepth.cli.main import cli
from distilldepth.datasets.truth import Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate import choose_protocol, evaluate, read_evaluation
from distilldepth.evaluate.compare import compare
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.record.cases import FOLDER, Cases
from distilldepth.evaluate.record.folder import _is_row
from distilldepth.evaluate.record.table import to_markdown
from distilldepth.evaluate.score import score_batch
from distilldepth.metrics import (
    LAPLACE_NAMES,
    UNCERTAINTY_NAMES,
    laplace_calibration,
    sparsification_areas,
    sparsification_curves,
    uncertainty_metrics,
)
from distilldepth.models import save_model
from distilldepth.models.base import DepthOutput

SHARES = [share / 10 for share in range(1, 10)]


def maps(shape: tuple[int, ...] = (2, 7, 9), seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(shape, generator=generator, dtype=torch.float64) * 5 + 0.5
    target = torch.rand(shape, generator=generator, dtype=torch.float64) * 5 + 0.5
    spread = torch.randn(shape, generator=generator, dtype=torch.float64)
    return prediction, target, spread, torch.rand(shape, generator=generator) > 0.3


# --- the numbers ---


def test_calibration_is_that_of_the_loop():
    prediction, target, spread, valid = maps()
    found = laplace_calibration(prediction, target, spread, valid)
    assert tuple(found) == LAPLACE_NAMES
    for image in range(2):
        covered = [0.0] * len(SHARES)
        for d, t, s, counts in zip(
            *(each[image].flatten().tolist() for each in (prediction, target, spread, valid)), strict=True
        ):
            for place, share in enumerate(SHARES):
                half = -math.exp(s / 2) / math.sqrt(2) * math.log(1 - share)
                covered[place] += counts and abs(t - d) <= half
        covered = [count / int(valid[image].sum()) for count in covered]
        for place, share in enumerate(SHARES):
            assert float(found[f"coverage_{round(100 * share)}"][image]) == pytest.approx(covered[place], rel=1e-12)
        gap = np.mean([abs(a - b) for a, b in zip(covered, SHARES, strict=True)])
        assert float(found["laplace_error"][image]) == pytest.approx(gap, rel=1e-9)
    single = laplace_calibration(prediction[1], target[1], spread[1], valid[1])
    assert single == {name: float(values[1]) for name, values in found.items()}


def test_errors_drawn_from_the_distribution_are_calibrated_and_others_are_not():
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn((1, 300, 400), generator=generator, dtype=torch.float64)
    uniform = torch.rand(spread.shape, generator=generator, dtype=torch.float64) - 0.5
    scale = (spread / 2).exp() / math.sqrt(2)
    error = -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())
    # The variance of what was drawn is the one that is stated.
    assert float((error.square() / spread.exp()).mean()) == pytest.approx(1, abs=0.05)
    target = torch.full_like(spread, 50)
    right, sure, unsure = (laplace_calibration(target + error, target, spread + by) for by in (0, -3, 3))
    assert float(right["laplace_error"]) < 0.01
    for name, share in zip(LAPLACE_NAMES[1:], SHARES, strict=True):
        assert float(sure[name]) < share - 0.03
        assert float(unsure[name]) > share + 0.03
    # sigma = 4.48 times as large: within p lie then 1 - (1 - p)^4.48.
    assert float(unsure["coverage_10"]) == pytest.approx(1 - 0.9 ** math.exp(1.5), abs=0.01)


def test_curves_are_those_of_the_loop_and_their_areas_the_metrics():
    prediction, target, spread, valid = maps()
    curves = sparsification_curves(prediction, target, spread, valid)
    for image in range(2):
        kept = valid[image]
        d, t, s = (each[image][kept].numpy() for each in (prediction, target, spread))
        for name, error in (("abs_rel", np.abs(d - t) / t), ("rmse", (d - t) ** 2)):
            for row, order in enumerate((np.argsort(s, kind="stable"), np.argsort(error, kind="stable"))):
                wanted = []
                for step in range(50):
                    stays = order[: math.ceil(len(order) * (50 - step) / 50)]
                    wanted.append(error[stays].mean() ** (0.5 if name == "rmse" else 1))
                np.testing.assert_allclose(curves[name][image, row].numpy(), [*wanted, 0], rtol=1e-9, atol=1e-12)
    areas = sparsification_areas(curves)
    assert tuple(areas) == UNCERTAINTY_NAMES
    for name, values in uncertainty_metrics(prediction, target, spread, valid).items():
        torch.testing.assert_close(areas[name], values)


def test_what_is_not_valid_does_not_leak():
    prediction, target, spread, valid = maps()
    valid[1] = False
    for measure in (laplace_calibration, sparsification_curves):
        clean = measure(prediction, target, spread, valid)
        dirty = measure(*(each.masked_fill(~valid, torch.nan) for each in (prediction, target, spread)), valid)
        for name, values in clean.items():
            torch.testing.assert_close(dirty[name], values, rtol=0, atol=0, equal_nan=True)
            assert values[0].isfinite().all()
            assert values[1].isnan().all()
    broken = spread.masked_fill(valid, torch.nan)
    assert all(values[0].isnan() for values in laplace_calibration(prediction, target, broken, valid).values())


@pytest.mark.parametrize(
    ("quantity", "align", "calibrated"),
    [("metric_depth", None, True), ("metric_depth", "median", False), ("disparity", None, False)],
)
def test_calibration_is_for_metres_without_a_fit(quantity, align, calibrated):
    prediction, target, spread, valid = (each.float() for each in maps((2, 12, 15)))
    rules = choose_protocol(quantity, overrides={"align": align} if align else None).rules()
    scored = score_batch(
        prediction, quantity, target, valid.bool(), True, rules, extras={"log_variance": spread[:, ::2, ::3]}
    )
    plain = score_batch(prediction, quantity, target, valid.bool(), True, rules)
    assert set(UNCERTAINTY_NAMES) <= scored.metrics.keys()
    assert (set(LAPLACE_NAMES) <= scored.metrics.keys()) == calibrated
    assert set(scored.sparsification) == {"rmse", "abs_rel", "delta1"}
    assert plain.sparsification == {}
    for name, values in plain.metrics.items():
        assert torch.equal(scored.metrics[name], values)
    if calibrated:
        resized = torch.nn.functional.interpolate(spread[:, None, ::2, ::3], (12, 15), mode="bilinear")[:, 0]
        wanted = laplace_calibration(scored.depth, target, resized, scored.scored)
        torch.testing.assert_close(scored.metrics["coverage_50"], wanted["coverage_50"])


# --- models ---


class Sure(Brightness):
    """Predicts from the picture, and states a log-variance made of its prediction."""

    extra_maps = ("log_variance",)

    def __init__(self, quantity, function, spread) -> None:
        super().__init__(quantity, function)
        self.info = type(self.info)("sure", "test", quantity, "Apache-2.0", "test")
        self.spread = spread

    def estimate_output(self, images, *, policy=None, size=None):
        values = self.estimate(images)
        return DepthOutput(values, {}, {"log_variance": self.spread(values)})


def scenes(count: int = 3):
    """Truth that is farther than the picture says, the more so the farther away: by up to 2 m."""
    samples = []
    for seed in range(count):
        said = levels(24, 32, seed).astype(np.float32) / 25.5 + 1
        image = np.round((said - 1) * 25.5).astype(np.uint8)[..., None].repeat(3, -1)
        wrong = 0.02 * said**2
        samples.append((image, Truth(said + wrong, np.ones(said.shape, bool), is_metric=True)))
    return in_memory(*samples, name="set|<1>")


def metres(images):
    return images * 10 + 1


def knows(values):
    """b = the error itself: every interval above 1 - 1/e = 63 % holds all pixels, none below any."""
    return 2 * (0.02 * values**2 * math.sqrt(2)).log()


def test_a_model_that_knows_its_error_is_perfect_in_its_order():
    result = evaluate(Sure("metric_depth", metres, knows), scenes())
    means = result.datasets[0].metrics
    assert abs(means["ause_rmse"]) < 1e-5
    assert means["aurg_rmse"] > 0.05
    assert means["aurg_abs_rel"] > 0
    assert [means[f"coverage_{share}"] for share in (10, 60, 70, 90)] == [0, 0, 1, 1]
    assert means["laplace_error"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.3 + 0.2 + 0.1) / 9)
    assert not [note for note in result.notes if "uncertainty" in note]
    fooled = evaluate(Sure("metric_depth", metres, lambda values: -knows(values)), scenes())
    assert fooled.datasets[0].metrics["aurg_rmse"] < 0
    plain = evaluate(Brightness("metric_depth", metres), scenes())
    assert not [name for name in plain.datasets[0].metrics if name.startswith(("ause", "aurg", "cov", "lap"))]
    for name, value in plain.datasets[0].metrics.items():
        assert means[name] == value


def test_a_disparity_is_scored_by_its_order_and_that_is_said():
    result = evaluate(Sure("disparity", lambda x: 1 / metres(x), lambda values: -values), scenes())
    assert "ause_abs_rel" in result.datasets[0].metrics
    assert "laplace_error" not in result.datasets[0].metrics
    (note,) = [note for note in result.notes if "uncertainty" in note]
    assert "order alone, since its disparity is fitted to the truth" in note
    fitted = evaluate(Sure("metric_depth", metres, knows), scenes(), protocol="scale-depth")
    assert "laplace_error" not in fitted.datasets[0].metrics
    assert any("its metric_depth is fitted" in note for note in fitted.notes)


def test_everything_written_has_it(tmp_path):
    result = evaluate(Sure("metric_depth", metres, knows), scenes(), out=tmp_path / "run")
    means = result.datasets[0].metrics
    own = means["rmse"] - means["aurg_rmse"]

    saved = read_evaluation(tmp_path / "run")
    assert saved.datasets[0].metrics == pytest.approx(means)
    curves = saved.samples[0].sparsification
    assert set(curves) == {"abs_rel", "rmse"}
    assert [len(line) for both in curves.values() for line in both] == [26] * 4
    assert curves["rmse"][0][0] == pytest.approx(saved.samples[0].metrics["rmse"], rel=1e-4)
    assert curves["rmse"][0] == pytest.approx(curves["rmse"][1], rel=1e-4)

    (header, *rows) = list(csv.reader(io.StringIO((tmp_path / "run" / "samples.csv").read_text())))
    assert {"ause_abs_rel", "aurg_rmse", "laplace_error", "coverage_90"} <= set(header)
    assert float(rows[1][header.index("coverage_90")]) == 1

    markdown = (tmp_path / "run" / "table.md").read_text()
    assert "| dataset | error | random | own | best | AUSE | AURG | Laplace error |" in markdown
    cells = [
        means["rmse"],
        own,
        own - means["ause_rmse"],
        means["ause_rmse"],
        means["aurg_rmse"],
        means["laplace_error"],
    ]
    assert f"| set\\|\\<1> | RMSE | {' | '.join(f'{cell:.3f}' for cell in cells)} |" in markdown

    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("<h3>Uncertainty</h3>", "AbsRel of what stays", "RMSE of what stays", "Pixels within"):
        assert text in page
    assert "70 % interval: 100.0% of the pixels" in page
    assert f'<td class="number">{own:.3f}</td>' in page
    assert page.count('alt="stated uncertainty of') == 3
    case = Cases.load(tmp_path / "run").worst("set|<1>")[0]
    assert case.uncertainty.shape == case.truth.shape == (24, 32)
    np.testing.assert_allclose(case.uncertainty, knows(torch.from_numpy(case.prediction.astype(np.float32))), atol=0.02)
    low, high = np.exp(np.percentile(case.uncertainty.astype(np.float64), [2, 98]) / 2)
    assert f"<span>sigma {low:.3g} m</span><span>{high:.3g} m</span>" in page
    check_narrow(page)

    plain = evaluate(Brightness("metric_depth", metres), scenes(), out=tmp_path / "plain")
    page, markdown = ((tmp_path / "plain" / name).read_text() for name in ("report.html", "table.md"))
    assert "stated uncertainty" not in page
    assert "<h3>Uncertainty" not in page
    assert "AUSE" not in markdown
    assert "sparsification" not in page
    assert "AUSE" not in to_markdown(plain)


def test_comparisons_have_it_where_both_do():
    knowing, fooled, plain = (
        evaluate(model, scenes(4))
        for model in (
            Sure("metric_depth", metres, knows),
            Sure("metric_depth", metres, lambda values: -knows(values)),
            Brightness("metric_depth", metres),
        )
    )
    found = compare(fooled, knowing).datasets[0].metrics
    assert found["ause_rmse"].wins == found["aurg_rmse"].wins == 1.0
    assert found["ause_rmse"].difference < 0 < found["aurg_rmse"].difference
    assert "laplace_error" in found
    # More pixels within an interval is neither better nor worse.
    assert not [name for name in found if name.startswith("coverage")]
    assert "ause_rmse" not in compare(plain, knowing).datasets[0].metrics


def test_an_evaluation_goes_on_with_its_curves(tmp_path):
    model, folder = Sure("metric_depth", metres, knows), tmp_path / "run"
    whole = evaluate(model, scenes(), out=folder)
    lines = (folder / "progress.jsonl").read_text().splitlines()
    (folder / "progress.jsonl").write_text(f"{lines[0]}\n")
    again = evaluate(model, scenes(), out=folder, resume="auto")
    assert again.metadata.resumed_after == 1
    assert [row.sparsification for row in again.samples] == [row.sparsification for row in whole.samples]
    row = json.loads(lines[0])
    assert _is_row(row)
    for wrong in (
        3,
        [[1], [2]],
        {"rmse": [[1, 2]]},
        {"rmse": [[1, 2], [3]]},
        {"rmse": [[1], ["x"]]},
        {"a": [[1], [None]]},
    ):
        assert not _is_row({**row, "sparsification": wrong}), wrong


def test_pictures_of_it_are_small_and_damaged_ones_are_said(tmp_path):
    cases = Cases(width=10)
    flat = np.ones((8, 20), np.float32)
    spread = np.arange(160, dtype=np.float32).reshape(8, 20)
    for name, stated in (("a", spread), ("b", np.where(spread == 3, np.nan, spread))):
        assert cases.offer("set", name, 0.5, np.zeros((8, 20, 3), np.uint8), flat, flat, flat > 0)
        cases.add_uncertainty("set", name, torch.from_numpy(stated))
    cases.add_uncertainty("set", "lost", spread)
    cases.save(tmp_path)
    b, a = Cases.load(tmp_path).worst("set")
    np.testing.assert_array_equal(a.uncertainty, spread.reshape(4, 2, 10, 2).mean((1, 3)))
    assert b.uncertainty is None
    (path,) = (tmp_path / FOLDER).glob("*.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "uncertainty_0": spread})
    with pytest.raises(DistillDepthError, match="damaged; delete it"):
        Cases.load(tmp_path)


# --- the command ---


@pytest.mark.parametrize("family", ["newcrfs", "light"])
def test_the_command_shows_it(pairs, tmp_path, family, monkeypatch):  # noqa: F811
    save_model(loud(small(family)), tmp_path / "model")
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--model", tmp_path / "model", "--data", pairs, "--size", "64", "--out", tmp_path / "run"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert re.search(r"uncertainty on pairs: AbsRel left [\d.]+ \(random order [\d.]+, best [\d.]+; AUSE [\d.]+", text)
    metric = family == "newcrfs"
    assert ("Laplace intervals off by" in text) == metric
    assert ("scored by its order alone" in " ".join(result.output.split())) != metric
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Pixels within" in page) == metric
    assert ("Only the order is scored" in page) != metric
    second = run("--compare", tmp_path / "run", tmp_path / "run")
    assert second.exit_code == 0, second.output
    assert "ause_abs_rel" in second.stdout
    assert ("laplace_error" in second.stdout) == metric


@pytest.mark.parametrize("form", ["npy", "png16"])
def test_maps_that_predict_wrote_are_scored_with_theirs(pairs, tmp_path, form):  # noqa: F811
    save_model(loud(small("newcrfs")), tmp_path / "model")
    out = tmp_path / "maps"
    common = ["--model", str(tmp_path / "model"), "--size", "64", "--device", "cpu", "--precision", "float32"]
    words = ["predict", str(pairs / "images"), "-o", str(out), "--as", form, "--uncertainty", *common]
    assert CliRunner().invoke(cli, words).exit_code == 0
    data = ["--data", pairs, "--json", "-"]
    stored, own = run("--predictions", out, "--quantity", "metric-depth", *data), run(*common[:-4], *common[-2:], *data)
    assert (stored.exit_code, own.exit_code) == (0, 0), stored.output
    stored, own = (json.loads(result.stdout)["datasets"][0]["metrics"] for result in (stored, own))
    names = [*UNCERTAINTY_NAMES, *LAPLACE_NAMES]
    # An array does not say that it is a log-variance.
    assert [name for name in names if name in stored] == (names if form == "png16" else [*UNCERTAINTY_NAMES])
    for name in set(names) & stored.keys():
        assert stored[name] == pytest.approx(own[name], rel=0.02, abs=0.01), name


@pytest.mark.parametrize("form", ["npy", "png16", "kitti"])
def test_maps_that_were_kept_are_scored_the_same(tmp_path, form):
    first = evaluate(Sure("metric_depth", metres, knows), scenes(), out=tmp_path / "run", save_predictions=form)
    names = sorted(path.name for path in (tmp_path / "run" / "predictions" / "set|<1>").iterdir())
    suffix = ".npy" if form == "npy" else ".png"
    second = [] if form == "kitti" else [f"{index}_uncertainty{suffix}" for index in range(3)]
    assert names == sorted([*(f"{index}{suffix}" for index in range(3)), *second])
    again = evaluate(StoredPredictions(tmp_path / "run"), scenes())
    for name in (*UNCERTAINTY_NAMES, *LAPLACE_NAMES):
        assert (name in again.datasets[0].metrics) == (form != "kitti")
        if name.startswith(("ause", "aurg")) and form != "kitti":
            assert again.datasets[0].metrics[name] == pytest.approx(first.datasets[0].metrics[name], rel=0.05, abs=1e-3)
    plain = evaluate(Brightness("metric_depth", metres), scenes(), out=tmp_path / "plain", save_predictions="npy")
    assert plain.complete
    assert "uncertainty" not in (tmp_path / "plain" / "predictions" / "predictions.json").read_text()


def test_names_that_would_share_a_file_are_refused(tmp_path):
    (data,) = scenes(2)
    items = [
        dataclasses.replace(data.items[0], name="a.png"),
        dataclasses.replace(data.items[1], name="a_uncertainty.png"),
    ]
    data = [dataclasses.replace(data, items=items)]
    with pytest.raises(ValueError, match=r"would both be saved as .*a_uncertainty\.npy"):
        evaluate(Sure("metric_depth", metres, knows), data, out=tmp_path / "run", save_predictions="npy")
    assert evaluate(Brightness("metric_depth", metres), data, out=tmp_path / "b", save_predictions="npy").complete
