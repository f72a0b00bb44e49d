"""The losses built on the operations, and the objective that weighs them."""

from __future__ import annotations

import importlib
import math
from functools import partial

import numpy as np
import pytest
import slow_truth
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import INVARIANT, assert_gradient, assert_loss, assert_map

from distilldepth import losses
from distilldepth.distill.config import load_config
from distilldepth.distill.terms.table import TERMS
from distilldepth.images.crops import Regions
from distilldepth.losses import (
    DistillationObjective,
    Term,
    aligned_log_loss,
    anchor_loss,
    center_and_spread,
    distill_any_depth_objective,
    feature_loss,
    gradient_loss,
    l1_loss,
    normalise,
    ssi_loss,
)
from distilldepth.models.base import DepthOutput
from distilldepth.ops import sample_crops
from distilldepth.teachers.teacher import PseudoLabel

TRIMMED = partial(ssi_loss, trim=0.2)
PAIR_LOSSES = (gradient_loss, ssi_loss, l1_loss, TRIMMED)


def make(shape=(3, 13, 10), seed=0, valid_share=0.8, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=g, dtype=torch.float64) * 3 + 2
    target = torch.rand(shape, generator=g, dtype=torch.float64).square() + 0.1 * prediction.cos()
    valid = torch.rand(shape, generator=g) < valid_share
    return prediction.to(device), target.to(device), valid.to(device)


def loss_and_gradient(function, prediction, *args, **kwargs):
    prediction = prediction.detach().clone().requires_grad_()
    loss = function(prediction, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss, prediction)[0]


def slow_normalise(values, valid):
    """Median and mean absolute deviation of one image, by hand."""
    context = [tuple(p) for p in np.argwhere(valid)]
    center, spread = slow_truth.statistics(values, context, 1e-6)
    return np.where(valid, (values - center) / spread, 0)


def slow_gradient_loss(prediction, target, valid, scales=4):
    images = []
    for p, t, v in zip(prediction, target, valid, strict=True):
        if not v.any():
            continue
        residual, total = slow_normalise(p, v) - slow_normalise(t, v), 0.0
        for scale in range(scales):
            step = 2**scale
            r, m, part = residual[::step, ::step], v[::step, ::step], 0.0
            for i in range(r.shape[0]):
                for j in range(r.shape[1]):
                    if j + 1 < r.shape[1] and m[i, j] and m[i, j + 1]:
                        part += abs(r[i, j + 1] - r[i, j])
                    if i + 1 < r.shape[0] and m[i, j] and m[i + 1, j]:
                        part += abs(r[i + 1, j] - r[i, j])
            total += part / max(int(m.sum()), 1)
        images.append(total)
    return sum(images) / max(len(images), 1)


# --- one loss at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 4])
def test_gradient_loss_equals_the_second_truth(scales, device):
    prediction, target, valid = make(device=device)
    valid[1] = False
    numpy = [x.cpu().numpy() for x in (prediction, target, valid)]
    truth = slow_gradient_loss(*numpy, scales)
    assert_loss(gradient_loss(prediction, target, valid, scales=scales), truth, torch.float64)
    everywhere = slow_gradient_loss(numpy[0], numpy[1], np.ones_like(numpy[2]), scales)
    assert_loss(gradient_loss(prediction, target, scales=scales), everywhere, torch.float64)


def test_gradient_loss_sees_edges_that_pixels_do_not():
    slope = torch.linspace(0, 1, 64, dtype=torch.float64).repeat(1, 64, 1)
    ripple = slope + 0.017 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(32)
    bend = slope + 0.0315 * (4 * slope).sin()
    assert float(ssi_loss(ripple, slope)) == pytest.approx(float(ssi_loss(bend, slope)), rel=0.2)
    assert gradient_loss(ripple, slope) > 1.5 * gradient_loss(bend, slope)


def test_normalise(device):
    values, _, valid = make(device=device)
    valid[2] = False
    got = normalise(values, valid)
    for b in range(2):
        truth = slow_normalise(values[b].cpu().numpy(), valid[b].cpu().numpy())
        assert_map(got[b].cpu(), torch.from_numpy(truth), torch.float64)
    assert (got[2] == 0).all()
    centers, spreads = center_and_spread(values, valid)
    assert centers[2] == spreads[2] == 0
    assert_map(normalise(values), normalise(values, torch.ones_like(valid)), torch.float64)
    torch.autograd.gradcheck(lambda x: normalise(x, valid), values.requires_grad_())
    assert normalise(values.detach()[:0]).shape == (0, 13, 10)
    assert normalise(values.detach()[:, :0]).shape == (3, 0, 10)


def test_ssi_and_l1(device):
    prediction, target, valid = make(device=device)
    numpy = [x.cpu().numpy() for x in (prediction, target, valid)]
    truth, gradient = slow_truth.hybrid_norm(*numpy, (1,))
    got = loss_and_gradient(ssi_loss, prediction, target, valid)
    assert_loss(got[0], truth, torch.float64)
    assert_gradient(got[1].cpu(), torch.from_numpy(gradient), torch.float64)
    difference = np.abs(numpy[0] - numpy[1])
    assert_loss(l1_loss(prediction, target, valid), difference[numpy[2]].mean(), torch.float64)
    assert_loss(l1_loss(prediction, target), difference.mean(), torch.float64)


@pytest.mark.parametrize("trim", [0.2, 0.5])
def test_trimmed_ssi_leaves_out_the_largest_differences_of_each_image(trim, device):
    prediction, target, valid = make(device=device)
    prediction[1] = prediction[1] ** 3  # one image is far worse: pooled over the batch the pixels would be its alone
    total, count = 0.0, 0
    for p, t, v in zip(*(x.cpu().numpy() for x in (prediction, target, valid)), strict=True):
        differences = np.sort(np.abs(slow_normalise(p, v) - slow_normalise(t, v))[v])
        total, count = total + differences[: int(len(differences) * (1 - trim))].sum(), count + len(differences)
    assert_loss(ssi_loss(prediction, target, valid, trim=trim), total / count, torch.float64)
    assert ssi_loss(prediction, target, valid, trim=trim) < 0.9 * ssi_loss(prediction, target, valid)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="trim must be at least 0 and below 1"):
            ssi_loss(prediction, target, valid, trim=wrong)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_gradcheck(loss, device):
    prediction, target, valid = make((2, 5, 6), seed=4, device=device)
    torch.autograd.gradcheck(lambda p: loss(p, target, valid), prediction.requires_grad_())


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_precision(loss, device):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        prediction, target, valid = make((2, 33, 41), device=device)
        prediction, target = prediction.to(dtype), target.to(dtype)
        truth = loss_and_gradient(loss, prediction.double(), target.double(), valid)
        got = loss_and_gradient(loss, prediction, target, valid)
        assert got[0].dtype == torch.float32
        assert_loss(got[0], truth[0], dtype)
        assert_gradient(got[1], truth[1], dtype)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_what_is_not_valid_never_leaks(loss, device):
    prediction, target, valid = make(device=device)
    valid[2] = False
    clean = loss_and_gradient(loss, prediction, target, valid)
    for rubbish in (torch.nan, torch.inf, -torch.inf):
        dirty = [x.masked_fill(~valid, rubbish) for x in (prediction, target)]
        got = loss_and_gradient(loss, *dirty, valid)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    assert (clean[1][~valid] == 0).all()
    for side in (0, 1):
        for rubbish in (torch.nan, torch.inf):
            dirty = [prediction.clone(), target.clone()]
            valid[0, 4, 5] = True
            dirty[side][0, 4, 5] = rubbish
            got = loss(*dirty, valid)
            assert got.isnan() or (loss is l1_loss and not got.isfinite())


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_degenerate_inputs(loss, device):
    prediction, target, valid = make(device=device)
    one = torch.zeros_like(valid)
    one[1, 4, 5] = True
    for p, t, v in (
        (prediction, target, torch.zeros_like(valid)),
        (prediction[:0], target[:0], None),
        (prediction[:0], target[:0], valid[:0]),
        (prediction[:, :0], target[:, :0], None),
    ):
        got, gradient = loss_and_gradient(loss, p, t, v)
        assert got == 0
        assert (gradient == 0).all()
    for p, t, v in (
        (prediction, target, one),
        (torch.ones_like(prediction), target, valid),
        (prediction, one * 2.0, valid),
    ):
        got, gradient = loss_and_gradient(loss, p, t, v)
        assert torch.isfinite(got)
        assert torch.isfinite(gradient).all()
    with pytest.raises(ValueError, match="target must not require grad"):
        loss(prediction, target.requires_grad_())


@settings(max_examples=20, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20))
def test_gradient_loss_ignores_scale_and_shift(seed, scale, shift):
    prediction, target, valid = make(seed=seed)
    plain = float(gradient_loss(prediction, target, valid))
    got = gradient_loss(scale * prediction + shift, target * 3 - 1, valid)
    assert float(got) == pytest.approx(plain, rel=1e-4, abs=INVARIANT)


def positive(*args, **kwargs):
    prediction, target, valid = make(*args, **kwargs)
    return prediction - 4 * target, target.abs() + 0.05, valid


def slow_aligned_log(prediction, target, valid, knee=None):
    """Image by image: numpy's least squares, then the mean."""
    images = []
    for p, t, v in zip(prediction, target, valid & (target > 0), strict=True):
        if v.sum() < 2:
            continue
        p, t = p[v], t[v]
        design = np.stack([p, np.ones_like(p)], 1)
        scale, shift = np.linalg.lstsq(design, t, rcond=None)[0]
        ratio = (scale * p + shift if scale > 0 else np.full_like(p, t.mean())) / t
        low = ratio < 0.5
        tangent = np.log(2) + (0.5 - ratio) * 2
        error = np.where(low, tangent, np.abs(np.log(np.where(low, 1, ratio))))
        images.append((error if knee is None else error / (error + knee)).mean())
    return sum(images) / max(len(images), 1)


@pytest.mark.parametrize("knee", [None, 0.3])
def test_aligned_log_equals_the_second_truth(device, knee):
    prediction, target, valid = positive((5, 13, 10), device=device)
    prediction[1] *= -1  # the fit of the first is negative, of this one positive
    target[2, 4:9] = 0
    valid[3] = False
    valid[4] = False
    valid[4, 2, 3] = True
    truth = slow_aligned_log(*(x.cpu().numpy() for x in (prediction, target, valid)), knee)
    got, gradient = loss_and_gradient(partial(aligned_log_loss, knee=knee), prediction, target, valid)
    assert_loss(got, torch.tensor(truth), torch.float64)
    assert gradient[1].abs().sum() > 0
    assert (gradient[0] == 0).all()
    assert (gradient[2, 4:9] == 0).all()
    assert (gradient[3:] == 0).all()
    assert aligned_log_loss(7 * target[:2] - 3, target[:2], knee=knee) < INVARIANT


@pytest.mark.parametrize("knee", [None, 0.3])
def test_aligned_log_precision_and_gradient(device, knee):
    loss = partial(aligned_log_loss, knee=knee)
    prediction, target, valid = positive((2, 5, 6), seed=4, device=device)
    prediction = -prediction
    torch.autograd.gradcheck(lambda p: loss(p, target, valid), prediction.requires_grad_())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        prediction, target, valid = positive((2, 33, 41), device=device)
        prediction, target = -prediction.to(dtype), target.to(dtype)
        truth = loss_and_gradient(loss, prediction.double(), target.double(), valid)
        got = loss_and_gradient(loss, prediction, target, valid)
        assert got[0].dtype == torch.float32
        assert_loss(got[0], truth[0], dtype)
        assert_gradient(got[1], truth[1], dtype)


@settings(max_examples=20, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20), st.floats(0.01, 100))
def test_aligned_log_ignores_scale_and_shift_and_the_unit(seed, scale, shift, unit):
    prediction, target, valid = positive(seed=seed)
    plain = float(aligned_log_loss(-prediction, target, valid))
    got = aligned_log_loss(-scale * prediction + shift, target * unit, valid)
    assert float(got) == pytest.approx(plain, rel=1e-6)


def test_aligned_log_degenerate_inputs(device):
    prediction, target, valid = positive(device=device)
    clean = loss_and_gradient(aligned_log_loss, -prediction, target, valid)
    for rubbish in (torch.nan, torch.inf, -torch.inf):
        dirty = [x.masked_fill(~valid, rubbish) for x in (-prediction, target)]
        got = loss_and_gradient(aligned_log_loss, *dirty, valid)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    for side in (0, 1):
        broken = [-prediction, target.clone()]
        valid[0, 4, 5] = True
        broken[side][0, 4, 5] = torch.nan
        assert aligned_log_loss(*broken, valid).isnan()
    for p, t, v in (
        (prediction, target, torch.zeros_like(valid)),
        (prediction[:0], target[:0], None),
        (prediction[:, :0], target[:, :0], None),
        (prediction, torch.zeros_like(target), None),
    ):
        got, gradient = loss_and_gradient(aligned_log_loss, p, t, v)
        assert got == 0
        assert (gradient == 0).all()
    for constant in (torch.zeros_like(prediction), torch.full_like(prediction, 0.1), torch.full_like(prediction, 1e6)):
        for p in (constant, constant.float()):
            got, gradient = loss_and_gradient(aligned_log_loss, p, target.to(p), None)
            assert torch.isfinite(got)
            assert torch.isfinite(gradient).all()
    with pytest.raises(ValueError, match="target must not require grad"):
        aligned_log_loss(prediction, target.requires_grad_())
    for knee in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="knee must be positive"):
            aligned_log_loss(prediction, target.detach(), knee=knee)


def test_aligned_log_knee_reaches_the_loss():
    data = student, label, _ = inputs()
    label.inverse_depth, label.disparity = True, label.disparity.abs()
    value = objective(weights={"aligned_log": 1.0}, aligned_log_knee=0.3)(*data)[1]["aligned_log"]
    expected = aligned_log_loss(student.values, label.disparity, label.valid, knee=0.3)
    assert_loss(value, expected, torch.float32)
    assert abs(expected - aligned_log_loss(student.values, label.disparity, label.valid)) > 0.01


def test_aligned_log_is_for_teachers_that_know_depth():
    module = objective(weights={"aligned_log": 3.0})
    data = student, label, _ = inputs()
    assert "aligned_log" not in module(*data)[1]
    label.inverse_depth, label.disparity = True, label.disparity.abs()
    total, values = module(*data)
    assert_loss(values["aligned_log"], aligned_log_loss(student.values, label.disparity, label.valid), torch.float32)
    without = objective()(*data)[0]
    assert_loss(total - without, 3 * values["aligned_log"], torch.float32)


def test_feature_loss_drops_close_tokens_and_divides_by_the_rest(device):
    teacher = torch.zeros(1, 2, 1, 4, device=device, dtype=torch.float64)
    teacher[0, 0] = 1
    angle = torch.tensor([0.0, 0.5, 1.0, 2.0], device=device, dtype=torch.float64)  # 1 - cos: 0, .12, .46, 1.42
    student = torch.stack([angle.cos(), angle.sin()])[None, :, None] * 7
    got, gradient = loss_and_gradient(feature_loss, student, teacher)
    assert_loss(got, ((1 - angle.cos())[2:]).mean(), torch.float64)
    assert (gradient[..., :2] == 0).all()
    assert (gradient[..., 2:].abs().sum((0, 1, 2)) > 0).all()
    assert_loss(feature_loss(student, teacher, tolerance=0.0), (1 - angle.cos()).mean(), torch.float64)
    assert feature_loss(teacher * 3, teacher) == 0


def test_feature_loss_resizes_the_student_and_names_mistakes(device):
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, 4, generator=g).to(device), torch.randn(2, 5, 6, 7, generator=g).to(device)
    resized = torch.nn.functional.interpolate(student, (6, 7), mode="bilinear", align_corners=False)
    assert_loss(feature_loss(student, teacher), feature_loss(resized, teacher), torch.float32)
    assert feature_loss(student.half(), teacher.bfloat16()).dtype == torch.float32
    assert feature_loss(torch.zeros_like(teacher), teacher) == 1
    assert feature_loss(student * torch.nan, teacher).isnan()
    assert feature_loss(student[:0], teacher[:0]) == 0
    with pytest.raises(ValueError, match="project the student"):
        feature_loss(student[:, :4], teacher)
    with pytest.raises(ValueError, match="teacher must not require grad"):
        feature_loss(student, teacher.requires_grad_())


def test_anchor_is_zero_at_its_target_and_grows_away_from_it(device):
    prediction, _, valid = make((4, 9, 9), device=device)
    center, spread = (float(x.mean()) for x in center_and_spread(prediction, valid))
    assert anchor_loss(prediction, valid, center=center, spread=spread) < 1e-12
    before = 0.0
    for factor in (1.1, 2, 10, 1000):
        away = [
            anchor_loss(prediction * factor, valid, center=center * factor, spread=spread),
            anchor_loss(prediction / factor, valid, center=center / factor, spread=spread),
            anchor_loss(prediction + factor, valid, center=center, spread=spread),
            anchor_loss(prediction - factor, valid, center=center, spread=spread),
        ]
        assert min(away) > before / 2
        before = max(before, min(map(float, away)))
    assert before < 400, "far away the pull must not drown the rest"
    torch.autograd.gradcheck(
        lambda p: anchor_loss(p, valid, center=0.5, spread=0.15), prediction.clone().requires_grad_()
    )


def test_anchor_is_safe_for_constant_maps_and_ignores_what_is_not_valid(device):
    prediction, _, valid = make(device=device)
    got, gradient = loss_and_gradient(anchor_loss, torch.full_like(prediction, 0.5), valid, center=0.5, spread=0.1)
    assert torch.isfinite(got)
    assert got > 1
    assert torch.isfinite(gradient).all()
    valid[1] = False
    clean = loss_and_gradient(anchor_loss, prediction, valid, center=0.5, spread=0.1)
    dirty = loss_and_gradient(anchor_loss, prediction.masked_fill(~valid, torch.nan), valid, center=0.5, spread=0.1)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    some = [0, 2]
    assert_loss(anchor_loss(prediction[some], valid[some], center=0.5, spread=0.1), clean[0], torch.float64)
    got, gradient = loss_and_gradient(anchor_loss, prediction, torch.zeros_like(valid), center=3.0, spread=0.1)
    assert got == 0
    assert (gradient == 0).all()
    assert anchor_loss(prediction[:0], valid[:0], center=0.5, spread=0.1) == 0
    with pytest.raises(ValueError, match="spread must be positive"):
        anchor_loss(prediction, valid, center=0.5, spread=0.0)


def test_anchor_holds_the_magnitude_that_scale_free_losses_let_grow():
    def train(weight):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 1, 3, padding=1)
        images = torch.rand(8, 3, 12, 12)
        target = images.mean(1).sin()
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
        for _ in range(200):
            noisy = target + 0.5 * torch.rand_like(target)  # a target that cannot be met keeps the gradient alive
            prediction = layer(images)[:, 0]
            loss = ssi_loss(prediction, noisy)
            if weight:
                loss = loss + weight * anchor_loss(prediction, center=0.5, spread=0.15)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return float(center_and_spread(layer(images)[:, 0].detach())[1].mean())

    free, held = train(0.0), train(0.1)
    assert free > 0.3
    assert 0.12 < held < 0.2


# --- the objective ---------------------------------------------------------------------------------------------------


def inputs(device="cpu", dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=g, dtype=torch.float64).to(device, dtype)

    student = DepthOutput(uniform(2, 16, 20))
    label = PseudoLabel(
        disparity=uniform(2, 16, 20) * 5,
        valid=uniform(2, 16, 20) < 0.9,
        patch_disparity=uniform(4, 8, 9),
        patch_valid=uniform(4, 8, 9) < 0.9,
    )
    boxes = [[[0, 0, 10, 8], [3.5, 2, 20, 16]], [[1, 1, 9, 9], [0, 0, 20, 16]]]
    regions = Regions(
        image=torch.zeros(2, 3, 16, 20, device=device),
        patches=torch.zeros(2, 2, 3, 8, 9, device=device),
        boxes=torch.tensor(boxes, dtype=torch.float32, device=device),
        name=["a", "b"],
    )
    student.features = {"encoder": uniform(2, 6, 4, 5) - 0.5}
    label.features = {"encoder": uniform(2, 8, 3, 4) - 0.5}
    return student, label, regions


def test_a_window_knows_its_region():
    assert inputs()[2].image_index.tolist() == [0, 0, 1, 1]


def objective(**options):
    torch.manual_seed(0)
    return distill_any_depth_objective(**{"student_channels": 6, "teacher_channels": {"a": 8, "b": 6}, **options})


def test_objective_is_the_weighted_sum_of_its_named_terms(device):
    module, data = objective().to(device), inputs(device)
    student, label, regions = data
    student.values.requires_grad_()
    total, values = module(*data)
    assert list(values) == ["shared_context", "local_global", "feature", "gradient", "anchor"]
    weight = {"shared_context": 1.0, "local_global": 0.5, "feature": 1.0, "gradient": 2.0, "anchor": 0.1}
    assert_loss(total.detach(), sum(weight[name] * float(value) for name, value in values.items()), torch.float32)
    assert not any(value.requires_grad for value in values.values())
    pair = student.values.detach(), label.disparity, label.valid
    patches = label.patch_disparity, regions.boxes.flatten(0, 1), regions.image_index, label.patch_valid
    projected = module.terms[2].projections[0](student.features["encoder"])
    assert_loss(values["shared_context"], losses.hybrid_norm_loss(*pair), torch.float32)
    assert_loss(values["local_global"], losses.crop_ssi_loss(pair[0], *patches, segments=(1, 2, 4)), torch.float32)
    assert_loss(values["feature"], feature_loss(projected, label.features["encoder"]).detach(), torch.float32)
    assert_loss(values["gradient"], gradient_loss(*pair), torch.float32)
    assert_loss(values["anchor"], anchor_loss(pair[0], pair[2], center=0.5, spread=0.15), torch.float32)
    total.backward()
    assert student.values.grad.abs().sum() > 0
    assert module.terms[2].projections[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("normalisation", ["hybrid", "global", "local", "none"])
def test_normalisations(normalisation, device):
    segments = {"hybrid": (1, 2, 4), "global": (1,), "local": (4,)}
    data = inputs(device)
    student, label, regions = data
    for contexts in ("range", "quantile", "spatial"):
        module = objective(
            normalisation_shared=normalisation, normalisation_local_global=normalisation, contexts=contexts
        ).to(device)
        _, values = module(*data)
        pair = student.values, label.disparity, label.valid
        patches = label.patch_disparity, regions.boxes.flatten(0, 1), regions.image_index, label.patch_valid
        if normalisation == "none":
            shared = l1_loss(*pair)
            crops = sample_crops(student.values, *patches[1:3], (8, 9))
            each = [l1_loss(crops[i : i + 1], patches[0][i : i + 1], patches[3][i : i + 1]) for i in range(4)]
            local = sum(each) / 4
        else:
            options = {"segments": segments[normalisation], "contexts": contexts}
            shared = losses.hybrid_norm_loss(*pair, **options)
            local = losses.crop_ssi_loss(student.values, *patches, **options)
        assert_loss(values["shared_context"], shared, torch.float32)
        assert_loss(values["local_global"], local, torch.float32)


def test_terms_without_their_needs_are_absent():
    module = objective()
    assert module.needs == {"patches", "features"}
    data = student, label, _ = inputs()
    label.patch_disparity = label.patch_valid = None
    label.features = {}
    total, values = module(*data)
    assert list(values) == ["shared_context", "gradient", "anchor"]
    assert torch.isfinite(total)
    label.features, student.features = inputs()[1].features, {}
    assert "feature" not in module(*data)[1]
    alone = objective(weights=dict.fromkeys(("shared_context", "local_global", "gradient", "anchor"), 0.0))
    student.values.requires_grad_()
    total, values = alone(*data)
    assert total == 0
    assert values == {}
    total.backward()
    assert (student.values.grad == 0).all()


def test_a_term_of_weight_zero_is_not_computed(monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("computed")

    monkeypatch.setattr("distilldepth.distill.terms.gradient.gradient_loss", explode)
    monkeypatch.setattr("distilldepth.distill.terms.local_global.crop_ssi_loss", explode)
    module = objective(weights={"gradient": 0.0, "local_global": 0})
    assert [term.name for term in module.terms] == ["shared_context", "feature", "anchor"]
    module(*inputs())
    with pytest.raises(AssertionError, match="computed"):
        objective()(*inputs())


def test_projections_are_known_before_the_first_batch():
    module = objective()
    assert [tuple(p.shape) for p in module.parameters()] == [(8, 6, 1, 1), (8,)]
    assert objective(teacher_channels=None).needs == {"patches"}
    assert list(objective(student_channels=8, teacher_channels={"a": 8}).parameters()) == []
    other = objective()
    other.load_state_dict(module.state_dict())
    assert_loss(other(*inputs())[0], module(*inputs())[0].detach(), torch.float32)


def test_the_teacher_chooses_its_projection():
    module, data = objective(teacher_channels={"a": 8, "b": 8}), inputs()
    with pytest.raises(ValueError, match=r"one of a \(8\), b \(8\), got 8 channels"):
        module(*data)
    values = []
    for data[1].teacher in ("a", "b"):
        values.append(float(module(*data)[1]["feature"]))
    assert values[0] != values[1]
    data[1].teacher = "c"
    with pytest.raises(ValueError, match="got 8 channels of c teacher"):
        module(*data)


def test_autocast_does_not_lower_the_precision(device):
    module, data = objective().to(device), inputs(device)
    student = data[0]
    plain, _ = module(*data)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        total, values = module(*data)
        assert total.dtype == torch.float32
        assert torch.equal(total, plain)
        student.features = {"encoder": student.features["encoder"].bfloat16()}
        student.values = student.values.bfloat16()
        total, values = module(*data)
    assert all(value.dtype == torch.float32 for value in values.values())
    assert torch.isfinite(total)


def test_nothing_waits_for_the_device(monkeypatch):
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    # A fake tensor has no values: whatever would wait for one raises instead. On the CPU only checks of boxes and looks
    # at masks do.
    with FakeTensorMode():
        data = student, _, _ = inputs()
        student.values.requires_grad_()
        with pytest.raises(DataDependentOutputException):
            objective()(*data)
        for name in ("ops.crop_ssi", "losses.normalise"):
            module = importlib.import_module(f"distilldepth.{name}")  # Whose name a function bears too.
            monkeypatch.setattr(module, "values_are_checked", lambda tensor: False)
        for contexts in ("range", "quantile", "spatial"):
            total, _ = objective(contexts=contexts)(*data)
            total.backward()
        assert student.values.grad.shape == student.values.shape


def test_nothing_waits_for_a_real_device(device):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    module, data = objective().to(device), inputs(device)
    data[0].values.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(*data)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_objective_of_own_terms():
    class Mean(Term):
        def forward(self, student, label, regions):
            return student.values.mean()

    total, values = DistillationObjective([Mean("mean", 3.0), Mean("again", 1.0)])(*inputs())
    assert_loss(total, 4 * float(values["mean"]), torch.float32)
    with pytest.raises(ValueError, match="different names, got mean, mean"):
        DistillationObjective([Mean("mean", 3.0), Mean("mean", 1.0)])
    with pytest.raises(ValueError, match="weight of mean must be positive"):
        Mean("mean", 0.0)


def test_mistakes_are_named():
    cases = [
        ({"weights": {"gradiant": 1.0}}, "did you mean 'gradient'"),
        ({"weights": {"gradient": -1.0}}, "weight of gradient must be finite and not negative"),
        ({"weights": {"gradient": float("nan")}}, "weight of gradient"),
        ({"normalisation_shared": "hybrd"}, "did you mean 'hybrid'"),
        ({"weights": dict.fromkeys(TERMS, 0.0)}, "at least one term"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            distill_any_depth_objective(**options)
    with pytest.raises(ValueError, match="scales must be at least 1"):
        gradient_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), scales=0)


def test_zipdepth_has_the_gradient_weight_that_its_authors_have():
    """Their term with four scales, written out with subsampling in place of their averaging."""
    generator = torch.Generator().manual_seed(8)
    prediction, target = torch.rand(2, 3, 65, 89, generator=generator).unbind(0)
    total = torch.zeros(())
    residual = normalise(prediction) - normalise(target)
    for stride in (1, 2, 4, 8):
        part = residual[:, ::stride, ::stride]
        across, down = (part[:, :, 1:] - part[:, :, :-1]).abs(), (part[:, 1:] - part[:, :-1]).abs()
        total = total + (across.sum() + down.sum()) / (across.numel() + down.numel())
    weight = load_config(preset="zipdepth").loss.gradient
    # Borders have fewer pairs than pixels.
    assert float(weight * gradient_loss(prediction, target)) == pytest.approx(float(2 * total / 4), rel=0.1)
