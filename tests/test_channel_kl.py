"""channel_kl_loss against a second truth, its closed-form gradient and its invariance."""

from __future__ import annotations

import pytest
import slow_truth
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_gradient, assert_loss

from distilldepth import ops, reference
from distilldepth.ops.backend import active_backend, available_backends


def make(shape=(3, 2, 7, 9), seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 1
    teacher = torch.rand(shape, generator=g, dtype=torch.float64) * 5
    valid = torch.rand((shape[0], *shape[-2:]), generator=g) < 0.7
    return student.to(device), teacher.to(device), valid.to(device)


def loss_and_gradient(function, student, *args, **kwargs):
    student = student.detach().clone().requires_grad_()
    loss = function(student, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_the_second_truth(temperature, device):
    student, teacher, valid = make(device=device)
    valid[1] = False
    numpy = [x.cpu().numpy() for x in (student, teacher, valid)]
    truth = slow_truth.channel_kl(*numpy, temperature)
    assert_loss(ops.channel_kl_loss(student, teacher, valid, temperature=temperature), truth, torch.float64)
    assert abs(float(ops.channel_kl_loss(teacher, student, valid, temperature=temperature)) - truth) > 1e-3
    everywhere = slow_truth.channel_kl(numpy[0], numpy[1], numpy[2] | True, temperature)
    assert_loss(ops.channel_kl_loss(student, teacher, temperature=temperature), everywhere, torch.float64)
    one_channel = ops.channel_kl_loss(student[:, 0], teacher[:, 0], valid, temperature=temperature)
    assert_loss(
        one_channel, ops.channel_kl_loss(student[:, :1], teacher[:, :1], valid, temperature=temperature), torch.float64
    )


def test_gradient_is_the_closed_form(device):
    student, teacher, _ = make(device=device)
    _, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher, temperature=3.0)
    phi = [(x / 3.0).flatten(2).softmax(2).view(x.shape) for x in (student, teacher)]
    assert_gradient(gradient, 3.0 * (phi[0] - phi[1]) / 6, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype, device):
    student, teacher, valid = (x if x.dtype == torch.bool else x.to(dtype) for x in make((2, 3, 41, 33), device=device))
    truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double(), valid, temperature=1.0)
    got, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher, valid, temperature=1.0)
    assert got.dtype == torch.float32
    assert_loss(got, truth[0], dtype)
    assert_gradient(gradient, truth[1], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [-3.0, 1000.0])
def test_the_gradient_follows_what_comes_in(dtype, factor, device):
    student, teacher, valid = (x if x.dtype == torch.bool else x.to(dtype) for x in make((2, 3, 41, 33), device=device))
    _, truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double(), valid)
    _, gradient = loss_and_gradient(lambda *maps: factor * ops.channel_kl_loss(*maps), student, teacher, valid)
    assert_gradient(gradient, factor * truth, dtype)


def test_only_the_inputs_and_a_few_numbers_per_map_are_kept(device):
    student, teacher, valid = (x if x.dtype == torch.bool else x.float() for x in make((2, 3, 20, 30), device=device))
    if active_backend("channel_kl", student) == "reference":
        pytest.skip("promised by the kernels")
    student.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = ops.channel_kl_loss(student, teacher, valid)
    own = {x.untyped_storage().data_ptr() for x in (student, teacher, valid)}
    assert sum(x.untyped_storage().data_ptr() in own for x in kept) == 3
    assert all(x.numel() <= 6 * 8 for x in kept if x.untyped_storage().data_ptr() not in own)
    assert torch.autograd.grad(loss, student)[0].shape == student.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_apart_by_a_tower_or_by_the_whole_range(dtype, device):
    student, teacher, _ = (x.to(dtype) for x in make((4, 1, 41, 133), device=device))
    student[0, 0, 5, 7] += 300
    teacher[1, 0, 40, 130] += 300
    student[2, 0, 8, 9], teacher[2, 0, 8, 10] = 30, 25
    student[3, 0, 0, :5], teacher[3, 0, 40, :5] = 80, 80
    truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double())
    got, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher)
    assert_loss(got, truth[0], dtype)
    for one, true in zip(gradient, truth[1], strict=True):
        assert_gradient(one, true, dtype)


def test_the_largest_numbers_of_the_type(device):
    most = torch.finfo(torch.float32).max
    student = torch.tensor([[[-most, most, 1.0, 0.0]], [[-most, -most, -most, 0.5 * most]]], device=device)
    teacher = torch.tensor([[[-most, most, 2.0, -most]], [[most, -most, 0.0, 1.0]]], device=device)
    if active_backend("channel_kl", student) == "reference":
        pytest.skip("promised by the kernels")
    _, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher)
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 0, 0, 0]], [[-0.5, 0, 0, 0.5]]], device=device))


@pytest.mark.parametrize("shape", [(1, 1, 1, 64), (2, 1, 97, 127), (1, 2, 64, 65), (300, 3, 3, 5), (1, 1, 2, 8192)])
@pytest.mark.parametrize("masked", [False, True])
def test_maps_of_every_length(shape, masked, device):
    student, teacher, valid = (x if x.dtype == torch.bool else x.float() for x in make(shape, device=device))
    valid[:, : shape[2] // 2] = False
    valid = valid if masked else None
    truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double(), valid, temperature=0.7)
    got, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher, valid, temperature=0.7)
    assert_loss(got, truth[0], torch.float32)
    assert_gradient(gradient, truth[1], torch.float32)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_maps_that_are_almost_alike(shift, device, request):
    _, teacher, _ = make((2, 1, 41, 33), device=device)
    student = (teacher + 0.01 * make((2, 1, 41, 33), seed=1)[0].to(device) + shift).float()
    teacher = teacher.float()
    truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double())
    emulated = request.config.getoption("--backend") == "emulated"
    if student.device.type != "cpu" or active_backend("channel_kl", student) != "native" or emulated:
        pytest.skip("promised by the native CPU library, whose sums are in double where digits cancel")
    got, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher)
    assert_loss(got, truth[0], torch.float32)
    assert_gradient(gradient, truth[1], torch.float32)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_near_the_ends_of_the_type(scale, device):
    student, teacher, valid = make(device=device)
    student, teacher = (student * scale).float(), (teacher * scale).float()
    truth = loss_and_gradient(reference.channel_kl_loss, student.double(), teacher.double(), valid)
    got, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher, valid)
    assert_loss(got, truth[0], torch.float32)
    torch.testing.assert_close(gradient.double(), truth[1], rtol=1e-5, atol=1e-7)


def test_a_gradient_too_small_for_float16_is_kept_until_it_is_scaled(device):
    student, teacher, _ = (x.to(torch.float16) for x in make((4, 1, 160, 150), device=device))
    leaves = [x.clone().requires_grad_() for x in (student, student.double())]
    (ops.channel_kl_loss(leaves[0], teacher) * 2.0**16).backward()
    (reference.channel_kl_loss(leaves[1], teacher.double()) * 2.0**16).backward()
    assert (leaves[1].grad / 2.0**16).to(torch.float16).eq(0).any()
    assert_gradient(leaves[0].grad, leaves[1].grad, torch.float16)


def test_one_bad_map_leaves_the_gradients_of_others_finite(device):
    student, teacher, valid = make(device=device)
    valid[1, 2, 3] = True
    student[1, 0, 2, 3] = torch.nan
    if active_backend("channel_kl", student) == "reference":
        pytest.skip("promised by the kernels")
    loss, gradient = loss_and_gradient(ops.channel_kl_loss, student, teacher, valid)
    assert loss.isnan()
    assert gradient[1, 0, 2, 3].isnan()
    others = torch.ones_like(gradient, dtype=torch.bool)
    others[1, 0] = False
    assert torch.isfinite(gradient[others]).all()
    assert (gradient[~valid[:, None].expand_as(gradient)] == 0).all()


def test_the_number_of_threads_does_not_matter(monkeypatch):
    student, teacher, valid = make((3, 2, 120, 101))
    student, teacher = student.float(), teacher.float()
    if "native" not in available_backends("channel_kl", "cpu"):
        pytest.skip("promised by the native library")
    # Of the CPU, whatever backend and device are under test.
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "native")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(ops.channel_kl_loss, student, teacher, valid))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_gradcheck(device):
    student, teacher, valid = make((2, 2, 3, 4), device=device)
    torch.autograd.gradcheck(
        lambda s: reference.channel_kl_loss(s, teacher, valid, temperature=2.0), student.requires_grad_()
    )


def test_what_is_not_valid_never_leaks(device):
    student, teacher, valid = make(device=device)
    valid[2] = False
    clean = loss_and_gradient(ops.channel_kl_loss, student, teacher, valid)
    for rubbish in (torch.nan, torch.inf, -torch.inf):
        dirty = [x.masked_fill(~valid[:, None], rubbish) for x in (student, teacher)]
        got = loss_and_gradient(ops.channel_kl_loss, *dirty, valid)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    assert (clean[1][~valid[:, None].expand_as(student)] == 0).all()


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_not_finite_where_valid_is_nan(side, rubbish, masked, device):
    maps = make(device=device)
    maps[2][1, 2, 3] = True
    maps[side][1, 0, 2, 3] = rubbish
    assert ops.channel_kl_loss(maps[0], maps[1], maps[2] if masked else None).isnan()


def test_degenerate_inputs_are_zero(device):
    student, teacher, valid = make(device=device)
    one = torch.zeros_like(valid)
    one[:, 3, 3] = True
    constant = torch.full_like(student, 5.0)
    cases = [(student, teacher, torch.zeros_like(valid)), (student, teacher, one), (constant, constant - 3, valid)]
    cases += [
        (student[:0], teacher[:0], valid[:0]),
        (student[:0], teacher[:0], None),
        (student[:, :0], teacher[:, :0], None),
    ]
    for s, t, v in cases:
        got, gradient = loss_and_gradient(ops.channel_kl_loss, s, t, v)
        assert float(got) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(gradient, torch.zeros_like(s))


def test_memory_layout_does_not_matter(device):
    student, teacher, valid = make(device=device)
    plain = ops.channel_kl_loss(student, teacher, valid)
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (student, teacher, valid)]
    assert torch.equal(ops.channel_kl_loss(*strided), plain)
    last = [x.contiguous(memory_format=torch.channels_last) for x in (student, teacher)]
    assert torch.equal(ops.channel_kl_loss(*last, valid), plain)


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10_000), st.floats(-300, 300), st.floats(0.3, 5))
def test_a_shift_does_not_matter_and_equal_maps_cost_nothing(seed, shift, temperature):
    student, teacher, valid = make(seed=seed)
    plain = float(ops.channel_kl_loss(student, teacher, valid, temperature=temperature))
    moved = ops.channel_kl_loss(student + shift, teacher - 2 * shift, valid, temperature=temperature)
    assert float(moved) == pytest.approx(plain, rel=1e-9)
    assert plain > 0
    assert float(ops.channel_kl_loss(teacher, teacher, valid, temperature=temperature)) == pytest.approx(0, abs=1e-12)


def test_mistakes_are_named():
    s, t, v = make()
    cases = [
        (TypeError, "student must be a floating", (s.int(), t), {}),
        (ValueError, "student must be", (s[0, 0], t[0, 0]), {}),
        (ValueError, "teacher must have the shape", (s, t[:, :1]), {}),
        (ValueError, "teacher must not require grad", (s, t.clone().requires_grad_()), {}),
        (ValueError, "valid must be", (s, t, v[:, :2]), {}),
        (TypeError, "temperature must be a number", (s, t), {"temperature": "1"}),
        (ValueError, "temperature must be positive", (s, t), {"temperature": 0.0}),
        (ValueError, "temperature must be positive", (s, t), {"temperature": float("nan")}),
    ]
    for error, message, args, options in cases:
        with pytest.raises(error, match=message):
            ops.channel_kl_loss(*args, **options)
