"""Losses of distillation from a stereo teacher: spread of logarithms, focus on bad images, uncertainty."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from test_losses import loss_and_gradient
from tolerances import assert_gradient, assert_loss

from distilldepth.losses import (
    feature_uncertainty_loss,
    focal_depth_loss,
    l1_loss,
    response_uncertainty_loss,
    silog_loss,
)

LAPLACE = partial(response_uncertainty_loss, form="laplace")


def make(shape=(3, 9, 7), seed=0, valid_share=0.7, device="cpu"):
    """Depth of a student and of a teacher, positive, the logarithm of a variance, and what is valid."""
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=g, dtype=torch.float64) * 6 + 0.5
    prediction = target * (torch.randn(shape, generator=g, dtype=torch.float64) * 0.3 + 0.1).exp()
    log_variance = torch.randn(shape, generator=g, dtype=torch.float64)
    valid = torch.rand(shape, generator=g) < valid_share
    return prediction.to(device), target.to(device), log_variance.to(device), valid.to(device)


def unsure(function):
    """A loss with an uncertainty as one of two maps, the uncertainty drawn from them."""
    return lambda prediction, target, valid=None: function(prediction, target, (prediction.detach() / 5).cos(), valid)


PAIR_LOSSES = {
    "silog": silog_loss,
    "focal": focal_depth_loss,
    "printed": unsure(response_uncertainty_loss),
    "laplace": unsure(LAPLACE),
}


# --- the formulas, pixel by pixel ---


def slow_silog(prediction, target, valid, focus):
    errors = [math.log(p) - math.log(t) for p, t, v in zip(prediction.flat, target.flat, valid.flat, strict=True) if v]
    mean = sum(errors) / len(errors)
    return 10 * math.sqrt(sum(g * g for g in errors) / len(errors) - focus * mean * mean)


def slow_focal(prediction, target, valid, alpha, gamma):
    images = []
    for p, t, v in zip(prediction, target, valid, strict=True):
        if v.any():
            share = 1 - sum(abs(b - a) / b for a, b in zip(p[v], t[v], strict=True)) / v.sum()
            assert 0.05 < share < 1, "the printed formula holds here only"
            images.append(-alpha * (1 - share) ** gamma * math.log(share))
    return sum(images) / len(images)


def slow_response(prediction, target, log_variance, valid, half):
    total, count = 0.0, 0
    maps = (x.flat for x in (prediction, target, log_variance, valid))
    for p, t, s, v in zip(*maps, strict=True):
        if v:
            total, count = total + math.sqrt(2) * math.exp(-s * half) * abs(t - p) + s * half, count + 1
    return total / count


def slow_feature(student, teacher, log_variance):
    """Cells of uncertainty as torch has them: from floor(k H / h) to ceil((k + 1) H / h)."""
    (batch, channels, rows, columns), (_, height, width) = student.shape, log_variance.shape
    total = 0.0
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                top, bottom = i * height // rows, -(-(i + 1) * height // rows)
                left, right = j * width // columns, -(-(j + 1) * width // columns)
                s = log_variance[b, top:bottom, left:right].mean()
                square = sum((teacher[b, c, i, j] - student[b, c, i, j]) ** 2 for c in range(channels)) / channels
                total += 0.5 * math.exp(-s) * square + 0.5 * s
    return total / (batch * rows * columns)


def test_losses_equal_the_loops(device):
    prediction, target, log_variance, valid = make(device=device)
    valid[1] = False
    p, t, s, v = (x.cpu().numpy() for x in (prediction, target, log_variance, valid))
    for mask, kept in ((valid, v), (None, np.ones_like(v))):
        for focus in (0.85, 0.0, 1.0):
            got = silog_loss(prediction, target, mask, variance_focus=focus)
            assert_loss(got, slow_silog(p, t, kept, focus), torch.float64)
        for alpha, gamma in ((1.0, 2.0), (0.25, 1.5), (2.0, 0.0)):
            got = focal_depth_loss(prediction, target, mask, alpha=alpha, gamma=gamma)
            assert_loss(got, slow_focal(p, t, kept, alpha, gamma), torch.float64)
        got = response_uncertainty_loss(prediction, target, log_variance, mask)
        assert_loss(got, slow_response(p, t, s, kept, 1.0), torch.float64)
        got = response_uncertainty_loss(prediction, target, log_variance, mask, form="laplace")
        assert_loss(got, slow_response(p, t, s, kept, 0.5), torch.float64)
    for loss in PAIR_LOSSES.values():
        # Which map is whose decides, but for a spread of logarithms.
        assert loss is silog_loss or abs(loss(prediction, target) - loss(target, prediction)) > 1e-3


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (2, 3)])
def test_feature_uncertainty_equals_the_loop(size, device):
    g = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 2, 5, 4, 6, generator=g, dtype=torch.float64).to(device)
    log_variance = torch.randn(2, *size, generator=g, dtype=torch.float64).to(device)
    got = feature_uncertainty_loss(student, teacher + student.cos(), log_variance)
    truth = slow_feature(*(x.cpu().numpy() for x in (student, teacher + student.cos(), log_variance)))
    assert_loss(got, truth, torch.float64)


def test_a_common_factor_costs_what_the_focus_leaves(device):
    _, target, _, valid = make(device=device)
    valid[0] = False
    for focus, left in ((0.85, 0.15), (0.0, 1.0)):
        got = silog_loss(3 * target, target, valid, variance_focus=focus)
        assert_loss(got, 10 * math.sqrt(left) * math.log(3), torch.float64)
    assert silog_loss(3 * target, target, valid, variance_focus=1.0) < 1e-6


# --- gradients ---


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradcheck(name, device):
    prediction, target, _, valid = make((2, 4, 5), seed=4, device=device)
    variance = (prediction / 5).cos()
    loss = PAIR_LOSSES[name]
    if name in ("printed", "laplace"):
        loss = partial(response_uncertainty_loss, form=name)
        inputs = (prediction.requires_grad_(), variance.detach().requires_grad_())
        assert torch.autograd.gradcheck(lambda p, s: loss(p, target, s, valid), inputs)
    else:
        assert torch.autograd.gradcheck(lambda p: loss(p, target, valid), prediction.requires_grad_())


def test_gradcheck_of_features(device):
    g = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, 2, 3, 2, 3, generator=g, dtype=torch.float64).to(device)
    log_variance = torch.randn(2, 5, 7, generator=g, dtype=torch.float64).to(device)
    inputs = (student.requires_grad_(), log_variance.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, s: feature_uncertainty_loss(f, teacher, s), inputs)


def test_where_the_spread_is_nothing_its_gradient_is_finite(device):
    _, target, _, valid = make(device=device)
    for prediction, focus in ((target, 0.85), (2 * torch.ones_like(target), 1.0)):
        truth = target if focus < 1 else torch.ones_like(target)
        loss, gradient = loss_and_gradient(silog_loss, prediction, truth, valid, variance_focus=focus)
        assert loss == 0
        assert (gradient == 0).all()
    # And beside it: with one pixel wrong by a hair.
    prediction = target.clone()
    prediction[0, 0, 0] *= 1 + 1e-9
    loss, gradient = loss_and_gradient(silog_loss, prediction, target)
    assert loss > 0
    assert gradient.isfinite().all()
    assert gradient[0, 0, 0] > 0.1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_student_that_is_right_costs_nothing(gamma, device):
    _, target, _, _ = make(device=device)
    loss, gradient = loss_and_gradient(focal_depth_loss, target, target, gamma=gamma)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_focal_loss_goes_on_softly_where_the_formula_ends(device):
    target = torch.full((1, 3, 4), 2.0, dtype=torch.float64, device=device)
    found = []
    for error in (0.9, 0.94, 0.949999, 0.950001, 0.96, 1.0, 2.0, 20.0, 1000.0):
        loss, gradient = loss_and_gradient(focal_depth_loss, target * (1 + error), target)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        # Towards the teacher, the same for every pixel, never gone.
        assert (gradient > 0).all()
        found.append((float(loss), float(gradient.sum())))
    losses, slopes = zip(*found, strict=True)
    assert list(losses) == sorted(losses)
    assert losses[-1] < -math.log(1e-4)
    assert losses[3] == pytest.approx(losses[2], rel=1e-4)
    assert slopes[3] == pytest.approx(slopes[2], rel=1e-3)
    assert slopes[6] > 0.01 * slopes[2]
    assert losses[1] == pytest.approx(-(0.94**2) * math.log(0.06), rel=1e-9)


def test_the_uncertainty_that_costs_least_is_that_of_the_error(device):
    target = torch.zeros(1, 1, 1, dtype=torch.float64, device=device)
    error = 0.7
    best = math.log(math.sqrt(2) * error)
    for form, least in (("printed", best), ("laplace", 2 * best)):
        loss = partial(response_uncertainty_loss, target + error, target, form=form)
        at = float(loss(target + least))
        assert at < float(loss(target + least + 0.1))
        assert at < float(loss(target + least - 0.1))
    features = torch.ones(1, 3, 1, 1, dtype=torch.float64, device=device)
    found = [float(feature_uncertainty_loss(features, features * 3, target + math.log(4) + d)) for d in (-0.1, 0, 0.1)]
    assert min(found) == found[1]


# --- what is not valid, what is nothing, what is wrong ---


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_what_is_not_valid_never_leaks(name, device):
    loss = PAIR_LOSSES[name]
    prediction, target, _, valid = make(device=device)
    valid[2] = False
    clean = loss_and_gradient(loss, prediction, target, valid)
    assert (clean[1][~valid] == 0).all()
    assert clean[1][valid].abs().max() > 0
    for rubbish in (torch.nan, torch.inf, -torch.inf, 0.0, -1.0):
        got = loss_and_gradient(loss, *(x.masked_fill(~valid, rubbish) for x in (prediction, target)), valid)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    valid[0, 4, 5] = True
    for side in (0, 1):
        for rubbish in (torch.nan, torch.inf):
            dirty = [prediction.clone(), target.clone()]
            dirty[side][0, 4, 5] = rubbish
            assert not loss(*dirty, valid).isfinite()


@pytest.mark.parametrize("form", ["printed", "laplace"])
def test_uncertainty_that_is_not_valid_never_leaks(form, device):
    prediction, target, log_variance, valid = make(device=device)
    clean = response_uncertainty_loss(prediction, target, log_variance, valid, form=form)
    for rubbish in (torch.nan, torch.inf, -torch.inf, -1e9):
        dirty = log_variance.masked_fill(~valid, rubbish).requires_grad_()
        loss = response_uncertainty_loss(prediction, target, dirty, valid, form=form)
        assert torch.equal(loss.detach(), clean)
        gradient = torch.autograd.grad(loss, dirty)[0]
        assert gradient.isfinite().all()
        assert (gradient[~valid] == 0).all()


def test_pixels_that_are_not_positive_show(device):
    prediction, target, _, _ = make(device=device)
    for wrong in (0.0, -2.0):
        dirty = target.clone()
        dirty[1, 2, 3] = wrong
        assert not silog_loss(prediction, dirty).isfinite()
        assert focal_depth_loss(prediction, dirty).isnan()
    prediction[1, 2, 3] = 0
    assert not silog_loss(prediction, target).isfinite()
    assert focal_depth_loss(prediction, target).isfinite()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_degenerate_inputs(name, device):
    loss = PAIR_LOSSES[name]
    prediction, target, _, valid = make(device=device)
    nothing = torch.zeros_like(valid)
    for p, t, v in (
        (prediction, target, nothing),
        (prediction[:0], target[:0], None),
        (prediction[:0], target[:0], valid[:0]),
        (prediction[:, :0], target[:, :0], None),
    ):
        got, gradient = loss_and_gradient(loss, p, t, v)
        assert got == 0
        assert (gradient == 0).all()
    one = nothing.clone()
    one[1, 4, 5] = True
    got, gradient = loss_and_gradient(loss, prediction, target, one)
    assert got.isfinite()
    assert gradient.isfinite().all()
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (prediction, target, valid)]
    assert_loss(loss(*strided), loss(prediction, target, valid), torch.float64)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(name, dtype, device):
    loss = PAIR_LOSSES[name]
    prediction, target, _, valid = make((2, 33, 41), device=device)
    prediction, target = prediction.to(dtype), target.to(dtype)
    if name in ("printed", "laplace"):
        variance = (prediction / 5).cos()
        loss = lambda p, t, v: response_uncertainty_loss(p, t, variance.to(p.dtype), v, form=name)  # noqa: E731
    truth = loss_and_gradient(loss, prediction.double(), target.double(), valid)
    got = loss_and_gradient(loss, prediction, target, valid)
    assert got[0].dtype == torch.float32
    assert_loss(got[0], truth[0], dtype)
    assert_gradient(got[1], truth[1], dtype)


def test_features_of_a_smaller_type(device):
    g = torch.Generator().manual_seed(6)
    student, teacher = torch.randn(2, 2, 5, 4, 6, generator=g).to(device)
    variance = torch.randn(2, 16, 24, generator=g).to(device)
    truth = feature_uncertainty_loss(*(x.bfloat16().double() for x in (student, teacher, variance)))
    got = feature_uncertainty_loss(*(x.bfloat16() for x in (student, teacher, variance)))
    assert got.dtype == torch.float32
    assert_loss(got, truth, torch.bfloat16)
    assert feature_uncertainty_loss(student[:0], teacher[:0], variance[:0]) == 0
    assert feature_uncertainty_loss(student, teacher, variance[:, :0]) == 0
    assert feature_uncertainty_loss(student, teacher * torch.nan, variance).isnan()


def test_mistakes_are_named(device):
    prediction, target, variance, valid = make(device=device)
    features = torch.zeros(3, 2, 4, 5, device=device)
    for function, arguments, message in (
        (silog_loss, {"variance_focus": 1.1}, "variance_focus must be from 0 to 1, got 1.1"),
        (silog_loss, {"variance_focus": math.nan}, "variance_focus must be from 0 to 1"),
        (focal_depth_loss, {"alpha": 0}, "alpha must be finite and positive, got 0"),
        (focal_depth_loss, {"gamma": -1}, "gamma must be finite and at least 0, got -1"),
        (focal_depth_loss, {"gamma": math.inf}, "gamma must be finite"),
        (partial(response_uncertainty_loss, log_variance=variance), {"form": "laplac"}, "did you mean 'laplace'"),
        (response_uncertainty_loss, {"log_variance": variance[:2]}, "log_variance must have the shape of prediction"),
        (silog_loss, {"valid": valid[:2]}, "valid must be"),
    ):
        with pytest.raises(ValueError, match=message):
            function(prediction, target, **arguments)
    for loss in PAIR_LOSSES.values():
        with pytest.raises(ValueError, match="target must not require grad"):
            loss(prediction, target.clone().requires_grad_())
    with pytest.raises(ValueError, match="log_variance must have the student's batch of 3, got 2"):
        feature_uncertainty_loss(features, features, variance[:2])
    with pytest.raises(ValueError, match=r"log_variance must be \(B, H, W\)"):
        feature_uncertainty_loss(features, features, variance[0])
    with pytest.raises(ValueError, match=r"student must be \(B, C, h, w\)"):
        feature_uncertainty_loss(features[0], features[0], variance)
    with pytest.raises(ValueError, match="teacher must not require grad"):
        feature_uncertainty_loss(features, features.clone().requires_grad_(), variance)
    with pytest.raises(TypeError, match="log_variance must be a floating tensor"):
        response_uncertainty_loss(prediction, target, valid)


def test_without_uncertainty_nothing_is_weighed(device):
    prediction, target, variance, valid = make(device=device)
    got = response_uncertainty_loss(prediction, target, 0 * variance, valid)
    assert_loss(got, math.sqrt(2) * l1_loss(prediction, target, valid), torch.float64)
