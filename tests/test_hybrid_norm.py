"""hybrid_norm_loss against a second truth, its own gradient formula, and everything that can be wrong with an input."""

from __future__ import annotations

import numpy as np
import pytest
import slow_truth
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import INVARIANT, assert_gradient, assert_loss

from distilldepth import ops, reference
from distilldepth.errors import DistillDepthError

CONTEXTS = ("range", "quantile", "spatial")
SEGMENTS = ((1,), (4,), (1, 2, 4), (3,))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make(shape, seed=0, valid_share=0.8, device="cpu"):
    """An asymmetric pair: the two maps differ in scale, distribution and sign, so that swapping them shows."""
    g = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=g, dtype=torch.float64) * 3 - 5
    target = torch.rand(shape, generator=g, dtype=torch.float64).square() + 0.1 * prediction.cos()
    valid = torch.rand(shape, generator=g) < valid_share
    return prediction.to(device), target.to(device), valid.to(device)


def loss_and_gradient(function, prediction, *args, **kwargs):
    prediction = prediction.detach().clone().requires_grad_()
    loss = function(prediction, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss, prediction)[0]


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_equals_the_second_truth(contexts, segments, device):
    prediction, target, valid = make((2, 9, 7), device=device)
    truth, gradient = slow_truth.hybrid_norm(
        prediction.cpu().numpy(), target.cpu().numpy(), valid.cpu().numpy(), segments, contexts
    )
    options = {"segments": segments, "contexts": contexts}
    got, got_gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, valid, **options)
    assert_loss(got, truth, torch.float64)
    assert_gradient(got_gradient.cpu(), torch.from_numpy(gradient), torch.float64)
    if contexts != "spatial" and segments != (1,):
        # Elsewhere the loss is symmetric, and only the gradient tells a swap.
        swapped = ops.hybrid_norm_loss(target, prediction, valid, **options)
        assert abs(float(swapped) - truth) > 1e-3, "the pair must tell prediction from target"


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_ties_share_a_context_and_the_center_is_the_first_of_them(contexts, device):
    g = torch.Generator().manual_seed(3)
    prediction = torch.randint(-3, 3, (2, 8, 11), generator=g).double().to(device)
    prediction[prediction == 0] *= -1  # -0.0 equals 0.0
    target = torch.randint(0, 5, (2, 8, 11), generator=g).double().to(device)
    valid = torch.ones_like(target, dtype=torch.bool)
    for dtype in (torch.float64, torch.float32):
        truth, gradient = slow_truth.hybrid_norm(
            prediction.cpu().numpy(), target.cpu().numpy(), valid.cpu().numpy(), contexts=contexts
        )
        got, got_gradient = loss_and_gradient(
            ops.hybrid_norm_loss, prediction.to(dtype), target.to(dtype), contexts=contexts
        )
        assert_loss(got, truth, dtype)
        # Exact ties of |N(p) - N(t)| at 0 have no derivative; pixels on one are left out.
        settled = np.abs(gradient - got_gradient.cpu().double().numpy()) < 1e-3
        assert settled.mean() > 0.9


def test_center_share_goes_to_the_lowest_index():
    # Sorted: 1 2 2 2 9; the lower median 2 is first met at index 1.
    prediction = torch.tensor([[[9.0, 2.0, 1.0, 2.0, 2.0]]], dtype=torch.float64)
    target = torch.tensor([[[0.5, 0.1, 0.3, 0.9, 0.7]]], dtype=torch.float64)
    _, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, segments=(1,))
    _, truth = slow_truth.hybrid_norm(prediction.numpy(), target.numpy(), np.ones((1, 1, 5), bool), (1,))
    assert_gradient(gradient, torch.from_numpy(truth), torch.float64)
    # The loss ignores a shift, so the gradient sums to 0 only with the center's share.
    assert abs(float(gradient.sum())) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_two_zeros_are_one_value(dtype, device):
    # The median of -1 0 0 1 2 is 0, first met at index 0 whatever its sign.
    target = torch.tensor([[[0.5, 0.1, 0.3, 0.9, 0.95]]], dtype=dtype, device=device)
    for zeros in ((0.0, -0.0), (-0.0, 0.0)):
        prediction = torch.tensor([[[*zeros, 1.0, 2.0, -1.0]]], dtype=dtype, device=device)
        _, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, segments=(1,))
        _, truth = slow_truth.hybrid_norm(
            prediction.double().cpu().numpy(), target.double().cpu().numpy(), np.ones((1, 1, 5), bool), (1,)
        )
        assert_gradient(gradient.cpu(), torch.from_numpy(truth), dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_precision(contexts, dtype, device):
    prediction, target, valid = (x if x.dtype == torch.bool else x.to(dtype) for x in make((3, 33, 47), device=device))
    truth = loss_and_gradient(
        reference.hybrid_norm_loss, prediction.double(), target.double(), valid, contexts=contexts
    )
    got, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, valid, contexts=contexts)
    assert got.dtype == torch.float32
    assert_loss(got, truth[0], dtype)
    assert_gradient(gradient, truth[1], dtype)


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("kind", ["noise", "skewed", "ordered"])
def test_precision_on_a_large_map(kind, contexts, device):
    # Sums of a hundred thousand one-sided numbers: made in float32 they would be off by thirty times the tolerance.
    prediction, target, _ = make((1, 280, 351), device=device)
    if kind == "skewed":
        prediction = (prediction + 5).exp()
    elif kind == "ordered":
        target = torch.linspace(0, 1, target.numel(), dtype=torch.float64, device=device).view(target.shape)
        prediction = target**3 + 100
    prediction, target = prediction.float(), target.float()
    truth = loss_and_gradient(reference.hybrid_norm_loss, prediction.double(), target.double(), contexts=contexts)
    got, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, contexts=contexts)
    assert_loss(got, truth[0], torch.float32)
    assert_gradient(gradient, truth[1], torch.float32)


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_gradcheck(contexts, device):
    prediction, target, valid = make((2, 5, 6), seed=1, device=device)
    torch.autograd.gradcheck(
        lambda p: reference.hybrid_norm_loss(p, target, valid, contexts=contexts), prediction.requires_grad_()
    )


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_what_is_not_valid_never_leaks(contexts, device):
    prediction, target, valid = make((3, 8, 9), device=device)
    valid[2] = False
    clean = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, valid, contexts=contexts)
    for number, rubbish in enumerate((torch.nan, torch.inf, -torch.inf, 1e300)):
        dirty = prediction.masked_fill(~valid, rubbish), target.masked_fill(~valid, (-1) ** number * rubbish)
        got = loss_and_gradient(ops.hybrid_norm_loss, *dirty, valid, contexts=contexts)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    assert (clean[1][~valid] == 0).all()


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["prediction", "target"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_finite_where_valid_is_nan(side, rubbish, contexts, dtype, device):
    prediction, target, valid = make((3, 6, 7), device=device)
    maps = {"prediction": prediction.to(dtype), "target": target.to(dtype)}
    valid[1, 2, 3] = True
    maps[side][1, 2, 3] = rubbish
    got, gradient = loss_and_gradient(
        ops.hybrid_norm_loss, maps["prediction"], maps["target"], valid, contexts=contexts
    )
    assert got.isnan()
    # The other images' gradients are what they are without the broken one, up to the count of valid pixels.
    assert torch.isfinite(gradient[0]).all()
    assert torch.isfinite(gradient[2]).all()


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("shape", [(2, 5, 7), (0, 5, 7), (2, 0, 7)])
def test_no_valid_pixel_is_zero_with_zero_gradient(shape, contexts, device):
    prediction, target, _ = make(shape, device=device)
    valid = torch.zeros(shape, dtype=torch.bool, device=device)
    for given_valid in (valid, valid if valid.numel() else None):
        got, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, given_valid, contexts=contexts)
        assert got == 0
        assert gradient.shape == shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_one_valid_pixel_and_constant_maps_are_finite(contexts, device):
    prediction, target, valid = make((1, 7, 5), device=device)
    one = torch.zeros_like(valid)
    one[0, 3, 2] = True
    cases = [
        (prediction, target, one),
        (torch.full_like(prediction, 3.0), target, valid),
        (prediction, torch.full_like(target, -2.0), valid),
    ]
    for p, t, v in cases:
        for dtype in (torch.float64, torch.float32):
            got, gradient = loss_and_gradient(ops.hybrid_norm_loss, p.to(dtype), t.to(dtype), v, contexts=contexts)
            truth, _ = slow_truth.hybrid_norm(p.cpu().numpy(), t.cpu().numpy(), v.cpu().numpy(), contexts=contexts)
            if (p == p.flatten()[0]).all() or (t == t.flatten()[0]).all() or dtype == torch.float64:
                assert torch.isfinite(got)
                assert torch.isfinite(gradient).all()
            if dtype == torch.float64:
                assert_loss(got, truth, dtype)
    got, gradient = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, one, contexts=contexts)
    assert got == 0
    assert (gradient == 0).all()


def test_memory_layout_does_not_matter(device):
    prediction, target, valid = make((2, 12, 10), device=device)
    plain = ops.hybrid_norm_loss(prediction, target, valid)
    strided = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (prediction, target, valid))
    assert torch.equal(ops.hybrid_norm_loss(*strided), plain)
    wide = [torch.stack([x, x], -1).flatten(2)[:, :, ::2] for x in (prediction, target, valid)]
    assert not wide[0].is_contiguous()
    assert torch.equal(ops.hybrid_norm_loss(*wide), plain)
    expanded = ops.hybrid_norm_loss(prediction[:1].expand(3, -1, -1), target[:1].expand(3, -1, -1))
    assert_loss(expanded, ops.hybrid_norm_loss(prediction[:1], target[:1]), torch.float64)


def test_many_images_take_wider_group_numbers(device):
    for batch in (63, 64, 300):
        prediction, target, valid = make((batch, 3, 4), device=device)
        each = [
            ops.hybrid_norm_loss(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1]) * valid[i].sum()
            for i in range(batch)
        ]
        assert_loss(ops.hybrid_norm_loss(prediction, target, valid), sum(each) / valid.sum(), torch.float64)


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_contexts_are_the_same_in_float32_and_float64(contexts, device):
    # Targets on and around edges that float32 cannot represent: lo + (hi - lo) * k / 3.
    base = torch.tensor([0.1, 0.7], dtype=torch.float32)
    third = (base[0].double() + (base[1].double() - base[0].double()) / 3).float()
    near = torch.stack([third, torch.nextafter(third, torch.tensor(0.0)), torch.nextafter(third, torch.tensor(1.0))])
    target = torch.cat([base, near, torch.linspace(0.11, 0.69, 20)]).view(1, 5, 5).to(device)
    prediction = torch.linspace(0, 1, 25, device=device).cos().view(1, 5, 5).mul(7).sin()
    options = {"segments": (3,), "contexts": contexts}
    truth, _ = slow_truth.hybrid_norm(
        prediction.cpu().numpy(), target.cpu().numpy(), np.ones((1, 5, 5), bool), **options
    )
    assert_loss(ops.hybrid_norm_loss(prediction, target, **options), truth, torch.float32)


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_hdn_compat_does_what_the_published_code_does(contexts):
    prediction, target, valid = make((2, 8, 8), seed=5)
    truth, gradient = slow_truth.hybrid_norm(
        prediction.numpy(), target.numpy(), valid.numpy(), contexts=contexts, compat=True
    )
    got, got_gradient = loss_and_gradient(
        reference.hybrid_norm_loss, prediction, target, valid, contexts=contexts, hdn_compat=True
    )
    assert_loss(got, truth, torch.float64)
    assert_gradient(got_gradient, torch.from_numpy(gradient), torch.float64)
    assert abs(float(reference.hybrid_norm_loss(prediction, target, valid, contexts=contexts)) - truth) > 1e-3
    constant = reference.hybrid_norm_loss(prediction, torch.ones_like(target), contexts=contexts, hdn_compat=True)
    assert (constant == 0) == (contexts != "spatial")


def test_hdn_compat_spread_of_four_pixels_is_a_quarter_too_small():
    # Mean |normalised| of a 4-pixel context is 1.25 instead of 1 when the divisor is 5; the maximum is in no context.
    prediction = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 99.0]]], dtype=torch.float64)
    target = torch.tensor([[[0.0, 0.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    got = reference.hybrid_norm_loss(prediction, target, segments=(1,), hdn_compat=True)
    assert float(got) * 5 / 4 == pytest.approx(1.25, rel=1e-5)


maps = st.tuples(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, derandomize=True)
@given(maps, st.floats(0.05, 20), st.floats(-50, 50), st.sampled_from(CONTEXTS))
def test_scale_and_shift_of_either_map_do_not_matter(shape, scale, shift, contexts):
    prediction, target, valid = make(shape[1:], seed=shape[0])
    options = {"contexts": contexts, "spread_eps": 1e-12}
    plain = float(ops.hybrid_norm_loss(prediction, target, valid, **options))
    assert float(ops.hybrid_norm_loss(scale * prediction + shift, target, valid, **options)) == pytest.approx(
        plain, abs=INVARIANT
    )
    # Powers of two keep the target's edges where they are to the last bit.
    assert float(ops.hybrid_norm_loss(prediction, 4 * target, valid, **options)) == pytest.approx(plain, abs=INVARIANT)


@settings(max_examples=25, derandomize=True)
@given(maps, st.sampled_from(CONTEXTS[:2]), st.randoms(use_true_random=False))
def test_order_of_pixels_and_images_does_not_matter(shape, contexts, random):
    prediction, target, valid = make(shape[1:], seed=shape[0])
    batch, size = shape[1], shape[2] * shape[3]
    pixels, images = random.sample(range(size), size), random.sample(range(batch), batch)
    moved = [x.flatten(1)[images][:, pixels].view(x.shape) for x in (prediction, target, valid)]
    plain = loss_and_gradient(ops.hybrid_norm_loss, prediction, target, valid, contexts=contexts)
    got = loss_and_gradient(ops.hybrid_norm_loss, *moved, contexts=contexts)
    assert float(got[0]) == pytest.approx(float(plain[0]), abs=1e-12)
    torch.testing.assert_close(got[1], plain[1].flatten(1)[images][:, pixels].view(prediction.shape))


@settings(max_examples=25, derandomize=True)
@given(maps, st.sampled_from(CONTEXTS), st.sampled_from(SEGMENTS))
def test_equals_the_second_truth_for_any_shape(shape, contexts, segments):
    prediction, target, valid = make(shape[1:], seed=shape[0])
    truth, _ = slow_truth.hybrid_norm(prediction.numpy(), target.numpy(), valid.numpy(), segments, contexts)
    assert_loss(
        ops.hybrid_norm_loss(prediction, target, valid, segments=segments, contexts=contexts), truth, torch.float64
    )


def test_mistakes_are_named():
    p, t, v = make((1, 4, 4))
    cases = [
        (TypeError, "prediction must be a floating tensor", (p.long(), t), {}),
        (TypeError, "prediction must be a tensor", (p.numpy(), t), {}),
        (ValueError, r"prediction must be \(B, H, W\)", (p[0], t), {}),
        (ValueError, "target must have the shape", (p, t[:, :2]), {}),
        (ValueError, "target must not require grad", (p, t.clone().requires_grad_()), {}),
        (TypeError, "valid must be bool", (p, t, v.float()), {}),
        (ValueError, "valid must be", (p, t, v[0]), {}),
        (TypeError, "segments must be a sequence of ints", (p, t), {"segments": 4}),
        (ValueError, "segments must be one or more positive", (p, t), {"segments": ()}),
        (ValueError, "segments must be one or more positive", (p, t), {"segments": (1, 0)}),
        (ValueError, "did you mean 'quantile'", (p, t), {"contexts": "quantiles"}),
        (ValueError, "spread_eps must be positive", (p, t), {"spread_eps": 0.0}),
    ]
    for error, message, args, options in cases:
        with pytest.raises(error, match=message):
            ops.hybrid_norm_loss(*args, **options)


def test_backend_is_chosen_by_the_environment(monkeypatch):
    p, t, _ = make((1, 4, 4))
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "reference")
    ops.hybrid_norm_loss(p, t)
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "tritn")
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        ops.hybrid_norm_loss(p, t)
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "triton")
    with pytest.raises(DistillDepthError, match="DISTILLDEPTH_BACKEND=triton is not available for cpu"):
        ops.hybrid_norm_loss(p, t)
