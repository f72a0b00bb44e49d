"""depth_metrics against published fixtures and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FIXTURE_DIGITS

from distilldepth.metrics import HIGHER_IS_BETTER, NAMES, depth_metrics

TRUTH, PREDICTED = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1.1, 1.8, 4.4, 11.0]])
FIXTURE = {
    "abs_rel": 0.16875,
    "sq_rel": 0.29875,
    "rmse_log": 0.18075,
    "silog": 14.9946,
    "irmse": 0.057074,
    "delta1": 0.75,
    "delta2": 1.0,
    "delta3": 1.0,
}
"""What the code of Marigold gives on these four pixels."""


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
    }


def test_published_fixture(device):
    scores = depth_metrics(PREDICTED.to(device), TRUTH.to(device))
    assert tuple(scores) == NAMES
    assert all(isinstance(value, float) for value in scores.values())
    for name, value in FIXTURE.items():
        assert scores[name] == pytest.approx(value, rel=FIXTURE_DIGITS), name
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
        assert value.isnan().tolist() == [False, True, False], name
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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_ratios_do_not_depend_on_the_unit(seed, unit):
    prediction, target, valid = make(seed=seed)
    plain, scaled = depth_metrics(prediction, target, valid), depth_metrics(unit * prediction, unit * target, valid)
    power = {"sq_rel": 1, "rmse": 1, "mae": 1, "irmse": -1, "imae": -1}
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
