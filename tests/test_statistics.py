"""Bootstrap intervals against the normal law and a loop, and paired comparison on numbers with known differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from distilldepth.cli.main import cli
from distilldepth.evaluate import Evaluation, choose_protocol
from distilldepth.evaluate.compare import compare
from distilldepth.evaluate.record.rows import Metadata, ScoredDataset, ScoredModel, ScoredSample
from distilldepth.evaluate.statistics import bootstrap_interval, mean_intervals


def test_an_interval_of_a_normal_mean_is_nearly_the_analytic_one():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap_interval(values, resamples=8000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_intervals_cover_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    draws = random.exponential(1.0, (200, 60))
    covered = [low <= 1 <= high for low, high in (bootstrap_interval(row, resamples=500) for row in draws)]
    assert 0.86 <= np.mean(covered) <= 0.99


def test_the_draws_are_those_of_a_plain_loop_and_do_not_depend_on_the_chunks(monkeypatch):
    values = np.random.default_rng(1).normal(size=37)
    random = np.random.default_rng(9)
    means = [values[random.integers(0, 37, 37)].mean() for _ in range(300)]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(values, seed=9, resamples=300), expected, rtol=1e-12)
    monkeypatch.setattr("distilldepth.evaluate.statistics._CHUNK", 100)
    np.testing.assert_allclose(bootstrap_interval(values, seed=9, resamples=300), expected, rtol=1e-12)


def test_columns_are_as_alone_and_one_bad_column_spoils_no_other():
    values = np.random.default_rng(2).normal(size=(50, 3))
    values[7, 1] = np.nan
    low, high = bootstrap_interval(values)
    assert np.isnan(low[1])
    assert np.isnan(high[1])
    for column in (0, 2):
        alone = bootstrap_interval(values[:, column])
        assert (low[column], high[column]) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("values", [[], [3.0]])
def test_fewer_than_two_images_have_no_interval(values):
    assert np.isnan(bootstrap_interval(values)).all()
    assert mean_intervals([{"abs_rel": value} for value in values]) == {}


def test_a_constant_has_an_interval_of_no_width():
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resamples": 0}, "resamples"), ({"confidence": 1.0}, "confidence")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval([1.0, 2.0], **options)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval(np.zeros((2, 2, 2)))


def result(model: str, scores: dict[str, float | None], *, protocol: str = "affine-disparity", **rules) -> Evaluation:
    chosen = choose_protocol("disparity", name=protocol)
    samples = [
        ScoredSample("set", name, {"abs_rel": value, "delta1": None if value is None else 1 - value})
        for name, value in scores.items()
    ]
    dataset = {"name": "set", "kind": "", "rules": {**chosen.rules("").to_dict(), **rules}}
    return Evaluation(Metadata(ScoredModel(model)), chosen, [ScoredDataset.from_dict(dataset)], {}, samples, [], [])


def test_differences_are_paired_by_name_not_by_place():
    names = [f"{index}.png" for index in range(30)]
    hard = np.random.default_rng(4).uniform(0.1, 0.9, 30)
    a = result("a", dict(zip(names, hard, strict=True)))
    # The second is better by 0.01 on every image; far less than images differ from each other.
    b = result("b", dict(zip(names[::-1], hard[::-1] - 0.01, strict=True)))
    row = compare(a, b).datasets[0]["metrics"]["abs_rel"]
    assert row["difference"] == pytest.approx(-0.01)
    assert row["interval"] == pytest.approx([-0.01, -0.01])
    assert row["wins"] == 1.0
    assert row["a"] == pytest.approx(hard.mean())
    assert compare(a, b).datasets[0]["metrics"]["delta1"]["wins"] == 1.0
    swapped = compare(b, a).datasets[0]["metrics"]["abs_rel"]
    assert swapped["difference"] == pytest.approx(0.01)
    assert swapped["wins"] == 0.0


def test_samples_in_one_only_are_named_and_left_out():
    a = result("a", {"x": 0.2, "y": 0.4, "only in a": 9.0})
    b = result("b", {"y": 0.3, "x": 0.1, "only in b": 9.0})
    dataset = compare(a, b).datasets[0]
    assert dataset["frames"] == 2
    assert dataset["only_a"] == ["only in a"]
    assert dataset["only_b"] == ["only in b"]
    assert dataset["metrics"]["abs_rel"]["difference"] == pytest.approx(-0.1)


def test_names_that_repeat_are_paired_in_order():
    a, b = result("a", {"x": 0.1}), result("b", {"x": 0.2})
    a.samples.append(ScoredSample("set", "x", {"abs_rel": 0.5}))
    b.samples.append(ScoredSample("set", "x", {"abs_rel": 0.4}))
    row = compare(a, b).datasets[0]["metrics"]["abs_rel"]
    assert row["difference"] == pytest.approx(0.0)
    assert row["wins"] == 0.5


def test_a_metric_that_is_undefined_somewhere_is_left_out():
    a, b = result("a", {"x": 0.1, "y": None}), result("b", {"x": 0.2, "y": 0.1})
    assert compare(a, b).datasets[0]["metrics"] == {}


def test_other_protocols_are_not_compared():
    a = result("a", {"x": 0.1})
    with pytest.raises(ValueError, match="affine-disparity and affine-depth"):
        compare(a, result("b", {"x": 0.1}, protocol="affine-depth"))
    with pytest.raises(ValueError, match=r"min_depth is 0\.0 and 3"):
        compare(a, result("b", {"x": 0.1}, min_depth=3))
    with pytest.raises(ValueError, match="in common"):
        compare(a, result("b", {"z": 0.1}))


def test_the_command_compares_files_and_refuses_other_protocols(tmp_path):
    random = np.random.default_rng(5)
    for name, shift in (("a", 0.0), ("b", 0.05)):
        scores = {str(index): 0.5 + shift + value for index, value in enumerate(random.normal(0, 0.01, 20))}
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name, scores).to_dict()))
    other = result("c", {"0": 0.5}, protocol="affine-depth").to_dict()
    (tmp_path / "c.json").write_text(json.dumps(other))
    (tmp_path / "broken.json").write_text("{}")

    def run(*args: str):
        return CliRunner().invoke(cli, ["evaluate", "--compare", *(str(tmp_path / arg) for arg in args)])

    compared = run("a.json", "b.json")
    assert compared.exit_code == 0, compared.stderr
    assert "a is better" in compared.stdout
    assert "+0.05" in compared.stdout
    refused = run("a.json", "c.json")
    assert refused.exit_code == 2
    assert "affine-disparity and affine-depth" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    for name, message in (("broken.json", "not the result of an evaluation"), ("none.json", "no such file")):
        failed = run("a.json", name)
        assert failed.exit_code == 1
        assert message in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    into = tmp_path / "difference.json"
    args = ["evaluate", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json", str(into)]
    assert CliRunner().invoke(cli, args).exit_code == 0
    row = json.loads(into.read_text())["datasets"][0]["metrics"]["abs_rel"]
    assert row["interval"][0] > 0
