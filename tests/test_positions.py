"""Linear layers in another library, and work in pieces, against the plain ways."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distilldepth import machine
from distilldepth.models import positions
from distilldepth.models.families.newcrfs import CRFBlock
from distilldepth.models.positions import Linear, by_position, in_pieces, speed_up_linear


@pytest.fixture
def convolutions(monkeypatch):
    """Every call of a convolution, on a processor said to multiply slowly."""
    monkeypatch.setattr(positions, "multiplies_slowly", lambda: True)
    calls, convolve = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: calls.append(a) or convolve(*a, **k))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1024, 5), (3, 17, 23, 5), (2, 1031, 5)])
def test_another_library_gives_the_same_numbers_and_gradients(convolutions, shape, bias):
    torch.manual_seed(2)
    layer = Linear(5, 7, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    found = layer(x)
    assert len(convolutions) == 1
    assert found.shape == (*shape[:-1], 7)
    wanted = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    slope = torch.randn_like(found)
    learned = [x, *layer.parameters()]
    gradients = torch.autograd.grad(found, learned, slope)
    for gradient, exact in zip(gradients, torch.autograd.grad(wanted, learned, slope.double()), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-3)


def test_a_view_that_is_not_contiguous_is_read_as_it_lies(convolutions):
    layer = Linear(6, 4)
    x = torch.randn(40, 6, 50).transpose(1, 2)[:, 3:47]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert len(convolutions) == 1


def test_where_it_would_not_pay_or_change_types_it_is_the_usual_one(convolutions, monkeypatch):
    layer = Linear(5, 7)
    layer(torch.randn(1023, 5))
    with torch.no_grad():
        layer(torch.randn(127, 5))
        assert layer(torch.randn(0, 5)).shape == (0, 7)
        layer.double()(torch.randn(2000, 5).double())
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(torch.randn(2000, 5)).dtype == torch.bfloat16
        torch.jit.trace(layer, torch.randn(2000, 5), check_trace=False)
    assert not convolutions
    with torch.no_grad():
        layer(torch.randn(128, 5))
    assert len(convolutions) == 1
    monkeypatch.setattr(positions, "multiplies_slowly", lambda: False)
    layer(torch.randn(2000, 5))
    assert len(convolutions) == 1


@pytest.mark.parametrize(
    ("name", "width", "slow"),
    [("AMD EPYC 9655", "AVX512", True), ("AMD Ryzen", "AVX2", False), ("Intel(R) Xeon(R)", "AVX512", False)],
)
def test_which_processors_multiply_slowly(monkeypatch, name, width, slow):
    monkeypatch.setattr(machine, "processor_name", lambda: name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert machine.multiplies_slowly.__wrapped__() is slow


def test_only_plain_layers_are_taken():
    class Other(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), Other(3, 1))
    state = copy.deepcopy(network.state_dict())
    speed_up_linear(network)
    assert [type(each) for each in (network[0], network[1][0], network[2])] == [Linear, Linear, Other]
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_pieces_give_what_the_whole_gives():
    over, other = torch.randn(2, 11, 3)
    wanted = over * 2 + other
    sizes = []

    def function(a, b):
        sizes.append(len(a))
        return a * 2 + b

    kept = over.clone()
    halves = in_pieces(lambda a, b: function(a, b).bfloat16(), over, other, size=4)
    assert halves.dtype == torch.bfloat16
    assert torch.equal(over, kept), "of another type: nothing is overwritten"
    torch.testing.assert_close(halves, wanted.bfloat16())
    assert sizes == [4, 4, 3]
    torch.testing.assert_close(in_pieces(function, over, other, size=4), wanted)
    torch.testing.assert_close(over, wanted)


def test_only_predictions_are_made_in_pieces(monkeypatch):
    sizes = []

    def function(x):
        sizes.append(x.shape)
        return x + 1

    x = torch.randn(2, 40, 60, 1)
    module = nn.Identity()
    by_position(module.eval(), function, x)
    with torch.no_grad():
        by_position(module.train(), function, x)
    assert sizes == [x.shape] * 2
    with torch.no_grad():
        found = by_position(module.eval(), function, x[:, 1:, :50].clone())
    torch.testing.assert_close(found, x[:, 1:, :50] + 1)
    assert sizes[2:] == [(2048, 1), (2 * 39 * 50 - 2048, 1)]


@pytest.mark.parametrize("size", [(8, 13), (6, 3)])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_block_in_pieces_is_the_block(monkeypatch, shift, size):
    torch.manual_seed(3)
    block = CRFBlock(6, 2, 3, shift).double().eval()
    block.bias_table.data.normal_()
    x, values = torch.randn(2, 9, *size, 6, dtype=torch.float64)
    kept = x.clone(), values.clone()
    whole = block(x, values)
    monkeypatch.setattr("distilldepth.models.families.newcrfs.PIECE", 7 * 9)
    with torch.inference_mode():
        torch.testing.assert_close(block(x, values), whole, rtol=1e-9, atol=1e-12)
    assert torch.equal(x, kept[0]), "the map of the encoder is handed out"
    assert torch.equal(values, kept[1]), "both blocks of a level read it"
