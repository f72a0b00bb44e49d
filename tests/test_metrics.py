"""depth_metrics against published fixtures and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SCORE

from distilldepth.metrics import (
    HIGHER_IS_BETTER,
    NAMES,
    UNCERTAINTY_NAMES,
    boundary_f1,
    boundary_f1_masked,
    calibration_error,
    depth_metrics,
    ordinal_accuracy,
    uncertainty_metrics,
    whdr,
)

TRUTH, PREDICTED = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1.1, 1.8, 4.4, 11.0]])
FIXTURE = {
    "abs_rel": "0.16875",
    "sq_rel": "0.29875",
    "rmse_log": "0.18075",
    "silog": "14.9946",
    "irmse": "0.057074",
    "delta1": "0.75",
    "delta2": "1.0",
    "delta3": "1.0",
    # Depth Anything V2
    "silog_dav2": "0.166064",
    # Metric3D
    "rmse_log10": "0.078499",
    "silog_log10": "0.065121",
    # UniDepth
    "silog_unbiased": "17.3143",
    # KITTI devkit, which prints 4.2656 % and 57.07 1/km
    "sq_rel_squared": "0.042656",
    "silog_fraction": "0.149946",
    "irmse_km": "57.07",
}
"""What the code of Marigold, NeWCRFs and ZoeDepth, or else of the project named, gives on these four pixels; every
digit that it was published with."""


def make(shape=(3, 7, 9), seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=g, dtype=torch.float64) * 9 + 0.3
    prediction = target * (0.3 * torch.randn(shape, generator=g, dtype=torch.float64)).exp() + 0.1
    valid = torch.rand(shape, generator=g) < 0.7
    return prediction.to(device), target.to(device), valid.to(device)


def slow(d, g):
    """Every metric once more, from its definition."""
    log = np.log(d) - np.log(g)
    worst = np.maximum(d / g, g / d)
    return {
        "abs_rel": np.mean(np.abs(d - g) / g),
        "sq_rel": np.mean((d - g) ** 2 / g),
        "rmse": np.mean((d - g) ** 2) ** 0.5,
        "rmse_log": np.mean(log**2) ** 0.5,
        "log10": np.mean(np.abs(np.log10(d) - np.log10(g))),
        "silog": 100 * np.std(log),
        "irmse": np.mean((1 / d - 1 / g) ** 2) ** 0.5,
        "imae": np.mean(np.abs(1 / d - 1 / g)),
        "mae": np.mean(np.abs(d - g)),
        "delta1": np.mean(worst < 1.25),
        "delta2": np.mean(worst < 1.25**2),
        "delta3": np.mean(worst < 1.25**3),
        "sq_rel_squared": np.mean((d - g) ** 2 / g**2),
        "rmse_log10": np.mean((np.log10(d) - np.log10(g)) ** 2) ** 0.5,
        "silog_dav2": (np.mean(log**2) - 0.5 * np.mean(log) ** 2) ** 0.5,
        "silog_log10": np.std(np.log10(d) - np.log10(g)),
        "silog_unbiased": 100 * np.std(log, ddof=1),
        "silog_fraction": np.std(log),
        "irmse_km": np.mean((1000 / d - 1000 / g) ** 2) ** 0.5,
        "imae_km": np.mean(np.abs(1000 / d - 1000 / g)),
    }


def test_published_fixture(device):
    scores = depth_metrics(PREDICTED.to(device), TRUTH.to(device))
    assert tuple(scores) == NAMES
    assert all(isinstance(value, float) for value in scores.values())
    for name, value in FIXTURE.items():
        digits = len(value.partition(".")[2])
        # Half a unit of the last digit, and what float32 inputs and a tie at that half may add.
        assert abs(scores[name] - float(value)) <= 0.51 * 10**-digits, name
    assert scores["abs_rel"] != pytest.approx(depth_metrics(TRUTH, PREDICTED)["abs_rel"])


def test_batches_equal_numpy_image_by_image(device):
    prediction, target, valid = make(device=device)
    scores = depth_metrics(prediction, target, valid)
    for b in range(3):
        d, g = prediction[b][valid[b]].cpu().numpy(), target[b][valid[b]].cpu().numpy()
        single = depth_metrics(prediction[b], target[b], valid[b])
        for name, truth in slow(d, g).items():
            assert float(scores[name][b]) == pytest.approx(truth, rel=1e-9), name
            assert single[name] == pytest.approx(truth, rel=1e-9), name
    assert all(value.shape == (3,) and value.dtype == torch.float64 for value in scores.values())


def test_what_is_not_valid_does_not_matter(device):
    prediction, target, valid = make(device=device)
    clean = depth_metrics(prediction, target, valid)
    for rubbish in (torch.nan, torch.inf, 0.0, -3.0):
        dirty = depth_metrics(prediction.masked_fill(~valid, rubbish), target.masked_fill(~valid, rubbish), valid)
        assert all(torch.equal(dirty[name], clean[name]) for name in NAMES)


def test_degenerate_images(device):
    prediction, target, valid = make(device=device)
    valid[1] = False
    valid[2] = False
    valid[2, 3, 4] = True
    scores = depth_metrics(prediction, target, valid)
    for name, value in scores.items():
        assert value.isnan().tolist() == [False, True, name == "silog_unbiased"], name
    assert scores["silog"][2] == 0
    assert all(value.shape == (0,) for value in depth_metrics(prediction[:0], target[:0]).values())
    same = depth_metrics(target, target)
    for name, value in same.items():
        assert (value == (1.0 if name in HIGHER_IS_BETTER else 0.0)).all(), name


def test_predictions_that_are_no_depth(device):
    prediction, target, _ = make((1, 2, 2), device=device)
    bad = prediction.clone()
    bad[0, 0, 0] = -1.0
    scores = depth_metrics(bad, target)
    assert all(math.isfinite(float(value)) for value in scores.values())
    bad[0, 0, 0] = torch.nan
    scores = depth_metrics(bad, target)
    for name in NAMES:
        assert scores[name].isnan() != (name in HIGHER_IS_BETTER), name
    assert scores["delta3"] <= 0.75
    assert depth_metrics(prediction.half(), target.bfloat16())["rmse"].dtype == torch.float64


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_ratios_do_not_depend_on_the_unit(seed, unit):
    prediction, target, valid = make(seed=seed)
    plain, scaled = depth_metrics(prediction, target, valid), depth_metrics(unit * prediction, unit * target, valid)
    power = {"sq_rel": 1, "rmse": 1, "mae": 1, "irmse": -1, "imae": -1, "irmse_km": -1, "imae_km": -1}
    for name in NAMES:
        if name not in HIGHER_IS_BETTER:
            torch.testing.assert_close(scaled[name], plain[name] * unit ** power.get(name, 0), rtol=1e-7, atol=1e-9)


def test_mistakes_are_named():
    prediction, target, valid = make()
    with pytest.raises(ValueError, match="target must have the shape"):
        depth_metrics(prediction, target[0], valid)
    with pytest.raises(ValueError, match="prediction must be"):
        depth_metrics(prediction[0, 0], target[0, 0])
    with pytest.raises(TypeError, match="valid must be bool"):
        depth_metrics(prediction, target, valid.float())
    with pytest.raises(TypeError, match="target must be a floating"):
        depth_metrics(prediction, target.int())


# Boundaries


def steps(shape=(12, 15), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=torch.float64) * 3 + 0.5


def slow_boundary(d, g):
    """Depth Pro's F1 pixel by pixel."""
    ratios = np.linspace(1.05, 1.25, 10)
    scores = []
    for ratio in ratios:
        precision, recall = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            hits = predicted = true = 0
            for y in range(len(d)):
                for x in range(len(d[0])):
                    if 0 <= y + dy < len(d) and 0 <= x + dx < len(d[0]):
                        a, b = d[y + dy][x + dx] / d[y][x] > ratio, g[y + dy][x + dx] / g[y][x] > ratio
                        hits, predicted, true = hits + (a and b), predicted + a, true + b
            precision.append(hits / max(predicted, 1))
            recall.append(hits / max(true, 1))
        p, r = np.mean(precision), np.mean(recall)
        scores.append(2 * p * r / (p + r) if p + r else 0.0)
    return float((np.array(scores) * ratios).sum() / ratios.sum())


def test_boundary_f1_is_that_of_the_definition(device):
    prediction, target = steps((2, 12, 15), 1), steps((2, 12, 15), 2)
    target[1] = 0.7 * target[1] + 0.3 * prediction[1]
    scores = boundary_f1(prediction.to(device), target.to(device))
    for image in range(2):
        truth = slow_boundary(prediction[image].tolist(), target[image].tolist())
        assert float(scores[image]) == pytest.approx(truth, rel=1e-9)
    assert boundary_f1(target[0], target[0]) == pytest.approx(1.0)
    assert boundary_f1(5 * target[0], target[0]) == pytest.approx(1.0)
    assert boundary_f1(torch.ones_like(target[0]), target[0]) == 0


def test_masked_boundary_f1_leaves_out_what_is_unknown(device):
    prediction, target = steps((2, 12, 15), 1).to(device), steps((2, 12, 15), 2).to(device)
    valid = torch.rand((2, 12, 15), generator=torch.Generator().manual_seed(3)).to(device) < 0.7
    clean = boundary_f1_masked(prediction, target, valid)
    for rubbish in (torch.nan, torch.inf, 0.0):
        dirty = boundary_f1_masked(prediction.masked_fill(~valid, rubbish), target.masked_fill(~valid, rubbish), valid)
        assert torch.equal(dirty, clean)
    assert (boundary_f1_masked(target, target, valid) > 1 - 1e-9).all()
    assert (clean < 1).all()
    assert not torch.equal(boundary_f1_masked(prediction, target, valid, radius=2), clean)
    # One step from 1 to 2 between columns 4 and 5 seen one column off: nothing agrees at radius 1. At 2 a row of
    # centres has five contours in each map, four from the last near column and one from that before; one is shared.
    wall = torch.tensor([1.0, 1, 1, 1, 1, 2, 2, 2, 2, 2], device=device).expand(8, 10)
    moved = wall.roll(-1, 1).index_fill(1, torch.tensor([9], device=device), 2.0)
    assert boundary_f1_masked(moved, wall) == 0
    assert boundary_f1_masked(moved, wall, radius=2) == pytest.approx(0.2)
    assert boundary_f1_masked(wall, wall, radius=3) == pytest.approx(1)
    assert boundary_f1_masked(wall, wall, radius=4) == 0
    with pytest.raises(ValueError, match="radius"):
        boundary_f1_masked(moved, wall, radius=0)


# Order


def test_ordinal_accuracy_counts_pairs(device):
    prediction = torch.tensor([[[5.0, 1, 3], [2, 2, 4]]], device=device)
    points = torch.tensor([[[[0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 1], [1, 2]], [[0, 2], [0, 1]]]], device=device)
    nearer = torch.tensor([[0, 0, 1, -1]], device=device)
    assert float(ordinal_accuracy(prediction, points, nearer)) == pytest.approx(2 / 3)
    assert float(ordinal_accuracy(prediction, points, nearer, quantity="depth")) == 0
    assert ordinal_accuracy(prediction[0], points[0], nearer[0]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="inside the map"):
        ordinal_accuracy(prediction, points + 2, nearer)
    with pytest.raises(TypeError, match="int64"):
        ordinal_accuracy(prediction, points.float(), nearer)


def test_whdr(device):
    prediction, target, valid = make(device=device)
    rate = whdr(prediction, target, valid)
    assert rate.shape == (3,)
    assert ((rate > 0) & (rate < 0.5)).all()
    assert (whdr(target, target, valid) == 0).all()
    assert torch.equal(rate, whdr(3 * prediction, target, valid))
    assert not torch.equal(rate, whdr(prediction, target, valid, seed=1))
    # All pairs of one image, by hand.
    index = [(y, x) for y in range(7) for x in range(9)]
    pairs = torch.tensor([[a, b] for a in index for b in index if a < b], device=device)
    d, g, keep = prediction[0].cpu().numpy(), target[0].cpu().numpy(), valid[0].cpu().numpy()
    weights = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = total = 0.0
    for weight, (a, b) in zip(weights.tolist(), pairs.tolist(), strict=True):
        a, b = tuple(a), tuple(b)
        if keep[a] and keep[b]:
            sides = [int(m[a] > 1.03 * m[b]) - int(m[b] > 1.03 * m[a]) for m in (d, g)]
            wrong, total = wrong + weight * (sides[0] != sides[1]), total + weight
    found = whdr(prediction[0], target[0], valid[0], points=pairs, weights=weights.to(device))
    assert found == pytest.approx(wrong / total, rel=SCORE)
    assert whdr(prediction, target, torch.zeros_like(valid)).isnan().all()


# Uncertainty


def test_a_perfect_ranking_has_no_sparsification_error(device):
    prediction, target, valid = make((3, 20, 25), device=device)
    error = (prediction - target).abs()
    perfect = uncertainty_metrics(prediction, target, error / target, valid)
    assert tuple(perfect) == UNCERTAINTY_NAMES
    assert (perfect["ause_abs_rel"].abs() < 1e-12).all()
    assert (uncertainty_metrics(prediction, target, error, valid)["ause_rmse"].abs() < 1e-12).all()
    reverse = uncertainty_metrics(prediction, target, -error, valid)
    chance = uncertainty_metrics(prediction, target, torch.rand_like(error), valid)
    for name in ("rmse", "abs_rel", "delta1"):
        assert (perfect[f"aurg_{name}"] > 0).all()
        assert (reverse[f"aurg_{name}"] < 0).all()
        assert (chance[f"aurg_{name}"] < perfect[f"aurg_{name}"]).all()
        assert (chance[f"aurg_{name}"] > reverse[f"aurg_{name}"]).all()
        # Both areas together are the area between the flat curve and the best one, which does not depend on the map.
        total = [found[f"ause_{name}"] + found[f"aurg_{name}"] for found in (reverse, chance)]
        torch.testing.assert_close(*total)


def test_sparsification_of_two_values_in_closed_form(device):
    # Half the pixels have relative error 1 and are known to be bad: the curve falls from 1/2 to 0 at one half.
    target = torch.ones(1, 10, 10, device=device)
    prediction = target.clone()
    prediction[0, :5] = 2
    found = uncertainty_metrics(prediction, target, prediction)
    shares = np.arange(51) / 50
    curve = np.where(shares < 0.5, (0.5 - shares) / (1 - shares).clip(1e-9), 0)
    area = np.trapezoid(curve, shares) if hasattr(np, "trapezoid") else np.trapz(curve, shares)
    assert float(found["ause_abs_rel"]) == pytest.approx(0, abs=1e-12)
    assert float(found["aurg_abs_rel"]) == pytest.approx(0.5 - area, rel=1e-9)
    assert float(found["aurg_delta1"]) == pytest.approx(0.5 - area, rel=1e-9)


def test_uncertainty_ignores_what_is_not_valid(device):
    prediction, target, valid = make((3, 20, 25), device=device)
    uncertainty = torch.rand_like(target)
    valid[1] = False
    clean = uncertainty_metrics(prediction, target, uncertainty, valid)
    maps = (values.masked_fill(~valid, torch.nan) for values in (prediction, target, uncertainty))
    dirty = uncertainty_metrics(*maps, valid)
    for name in UNCERTAINTY_NAMES:
        torch.testing.assert_close(dirty[name], clean[name], rtol=0, atol=0, equal_nan=True)
        assert clean[name].isnan().tolist() == [False, True, False]
    assert calibration_error(prediction, target, uncertainty, valid).isnan().tolist() == [False, True, False]


def test_calibration_of_a_gaussian(device):
    g = torch.Generator().manual_seed(0)
    std = torch.rand((2, 200, 250), generator=g, dtype=torch.float64) + 0.1
    target = torch.full_like(std, 5.0)
    prediction = (target + std * torch.randn(std.shape, generator=g, dtype=torch.float64)).to(device)
    target, std = target.to(device), std.to(device)
    assert (calibration_error(prediction, target, std) < 0.01).all()
    # Half the deviation that it should be: coverage erf(z / 2 / sqrt 2) instead of p.
    shares = torch.arange(1, 20, dtype=torch.float64) / 20
    z = torch.special.ndtri((1 + shares) / 2)
    expected = float((shares - torch.erf(z / 2 / 2**0.5)).mean())
    assert calibration_error(prediction, target, std / 2)[0] == pytest.approx(expected, abs=0.01)
    assert float(calibration_error(prediction[0], target[0], torch.zeros_like(std[0]))) == pytest.approx(0.5)
