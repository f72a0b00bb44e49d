"""Muon against its definition: singular values, torch's own for matrices, what it must leave alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distilldepth.distill.config import load_config
from distilldepth.distill.muon import Muon, matrix_parameters, orthogonalise
from distilldepth.distill.optimiser import make_optimiser
from distilldepth.models import create_student


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, groups=24), nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 2, stride=2), nn.Conv2d(16, 1, 1),
    )  # fmt: skip


def optimiser_of(module, **options):
    matrices = matrix_parameters(module)
    chosen = [p for p in module.parameters() if id(p) in matrices]
    others = [p for p in module.parameters() if id(p) not in matrices]
    return Muon([{"params": chosen, "muon": True}, {"params": others}], **options)


def set_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@given(
    rows=st.integers(8, 70), columns=st.integers(8, 70), count=st.integers(1, 3),
    scale=st.floats(-6, 6).map(lambda power: 10.0**power), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40)
def test_singular_values_come_near_one_and_vectors_stay(precision, rows, columns, count, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(count, rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(count, columns, columns, generator=generator))
    least = min(rows, columns)
    values = torch.linspace(0.2, 1, least)
    matrices = scale * (left[..., :least] * values) @ right[..., :least].mT
    result = orthogonalise(matrices, precision)
    assert result.shape == matrices.shape
    core = left[..., :least].mT @ result @ right[..., :least]
    diagonal = core.diagonal(dim1=-2, dim2=-1)
    assert (diagonal > 0.55).all()
    assert (diagonal < 1.35).all()
    assert (core - torch.diag_embed(diagonal)).abs().max() < 0.08


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalise(torch.zeros(2, 9, 12)), torch.zeros(2, 9, 12))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_a_matrix_is_stepped_as_by_torch(shape):
    torch.manual_seed(4)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    mine = Muon([{"params": [ours], "muon": True}], precision=torch.bfloat16, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = ours.detach().clone()
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = (ours - before).abs().mean()
    assert (ours - theirs).abs().mean() < 0.01 * moved


def test_a_convolution_is_stepped_as_its_matrix():
    torch.manual_seed(5)
    kernel = nn.Parameter(torch.randn(12, 10, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(12, 10, 3, 3)
    kernel.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    Muon([{"params": [kernel], "muon": True}, {"params": [matrix], "muon": True}], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())


def test_only_matrices_are_muons_and_the_rest_is_adamw():
    module, other = network(), network()
    chosen = {name for name, p in module.named_parameters() if id(p) in matrix_parameters(module)}
    assert chosen == {"0.weight", "4.weight"}  # neither depthwise, nor of one output, nor of a norm
    mine, adamw = optimiser_of(module, lr=0.01), torch.optim.AdamW(other.parameters(), lr=0.01)
    for seed in range(3):
        for part, optimiser in ((module, mine), (other, adamw)):
            set_gradients(part, seed)
            optimiser.step()
    for (name, ours), theirs in zip(module.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) == (name not in chosen), name


def test_a_parameter_without_gradient_stays():
    module = network()
    optimiser = optimiser_of(module, lr=0.1)
    set_gradients(module, 1)
    module[0].weight.grad = None
    before = module[0].weight.detach().clone()
    optimiser.step()
    assert torch.equal(module[0].weight, before)


def test_a_step_that_is_not_finite_leaves_weights_and_momentum():
    module, clean = network(), network()
    mine, other = (optimiser_of(part, lr=0.01, fused=True) for part in (module, clean))
    for seed, infinite in ((1, False), (2, True), (3, False)):
        set_gradients(module, seed)
        if infinite:
            for parameter in module.parameters():
                parameter.grad.view(-1)[0] = float("inf")
        mine.found_inf, mine.grad_scale = torch.tensor(float(infinite)), None
        mine.step()
        if not infinite:
            set_gradients(clean, seed)
            other.step()
    for ours, theirs in zip(module.parameters(), clean.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_scaled_gradient_is_unscaled():
    module, clean = network(), network()
    mine, other = (optimiser_of(part, lr=0.01, fused=True) for part in (module, clean))
    set_gradients(clean, 1)
    other.step()
    set_gradients(module, 1)
    for parameter in module.parameters():
        parameter.grad *= 1024
    mine.found_inf, mine.grad_scale = torch.zeros(()), torch.tensor(1024.0)
    mine.step()
    for ours, theirs in zip(module.parameters(), clean.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_saved_state_continues():
    module = network()
    optimiser = optimiser_of(module, lr=0.01, fused=True)
    set_gradients(module, 1)
    optimiser.step()
    other = copy.deepcopy(module)
    restored = optimiser_of(other, lr=0.5, fused=True)
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for part, opt in ((module, optimiser), (other, restored)):
        set_gradients(part, 2)
        opt.step()
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("student", ["light-mini", "topformer-tiny"])
def test_the_setting_takes_every_parameter_once(student):
    module = nn.Module()
    module.student = create_student(student, seed=0)
    optimiser = make_optimiser(
        load_config(settings=["optimiser.algorithm=muon"]), module, torch.device("cpu"), torch.float32
    )
    held = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    muons = sum(p.numel() for group in optimiser.param_groups if group["muon"] for p in group["params"])
    assert muons > 0.9 * sum(p.numel() for p in module.parameters())
