"""TopFormer student: the published sizes, the published attention, and that every part learns."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distilldepth.models.base import ModelInfo
from distilldepth.models.families.topformer import KEY_WIDTH, SIZES, VALUE_WIDTH, VARIANTS, Attention, DropPath, build

INFO = ModelInfo("topformer-test", "topformer", "disparity", "Apache-2.0", "random")
INJECTION_WIDTH = {"tiny": 128, "small": 192, "base": 256}


def published(variant: str) -> dict:
    """The encoder with injection at three levels, as published for segmentation."""
    width = INJECTION_WIDTH[variant]
    return {"variant": variant, "injection": [0, width, width, width]}


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)


def giga_macs(module: nn.Module, side: int = 448) -> float:
    with torch.device("meta"):
        images = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta").eval()(images)
    return counter.get_total_flops() / 2e9


def awake(model: nn.Module, *size: int) -> nn.Module:
    """Open every path: normalisations with weights that are not zero, and the statistics of inputs of this size."""
    generator = torch.Generator().manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.0, generator=generator)
            layer.bias.data.normal_(std=0.1, generator=generator)
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(*size, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return awake(build({"variant": "tiny"}, INFO), 4, 3, 128, 128)


@pytest.mark.parametrize(
    ("variant", "bare", "injected"), [("tiny", 1.294, 1.370), ("small", 2.808, 2.968), ("base", 4.683, 4.958)]
)
def test_encoder_has_the_published_parameter_counts(variant, bare, injected):
    with torch.device("meta"):
        assert millions(build({"variant": variant}, INFO).encoder) == bare
        assert millions(build(published(variant), INFO).encoder) == injected


@pytest.mark.parametrize(("variant", "macs"), [("tiny", 0.348), ("small", 0.645), ("base", 1.014)])
def test_encoder_has_the_published_cost(variant, macs):
    assert round(giga_macs(build(published(variant), INFO).encoder), 3) == macs


@pytest.mark.parametrize(
    ("architecture", "parameters", "macs"),
    [
        ({"variant": "base"}, 11.547, 20.85),
        ({"variant": "base", "injection": [160] * 4, "decoder": [128] * 3, "deepest": 384}, 11.366, 20.66),
        ({"variant": "tiny"}, 2.261, 3.09),
        ({"variant": "small"}, 4.637, 5.72),
    ],
)
def test_whole_network_has_the_designed_size(architecture, parameters, macs):
    model = build(architecture, INFO)
    assert millions(model) == parameters
    assert round(giga_macs(model), 2) == macs


@pytest.mark.parametrize("size", [(96, 128), (200, 300), (57, 33), (1, 1)])
def test_output_has_the_input_size_and_stays_bounded(tiny, size):
    output = tiny(torch.rand(2, 3, *size), features=True)
    assert output.values.shape == (2, *size)
    assert output.values.dtype == torch.float32
    assert 0 <= output.values.min() <= output.values.max() <= 1
    assert output.features["encoder"].shape == (2, 96, math.ceil(size[0] / 32), math.ceil(size[1] / 32))
    assert tiny(torch.rand(1, 3, *size)).features == {}


def test_empty_batch_gives_an_empty_map(tiny):
    assert tiny(torch.rand(0, 3, 64, 96)).values.shape == (0, 64, 96)


@pytest.mark.parametrize("architecture", [{"variant": "tiny"}, published("tiny")], ids=["slice", "published injection"])
def test_every_parameter_learns(architecture):
    torch.manual_seed(0)
    model = awake(build(architecture, INFO), 4, 3, 128, 128).double()
    model(torch.rand(2, 3, 96, 128, dtype=torch.float64)).values.std().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A constant on every key moves all of a query's scores alike, which softmax does not see.
        if not name.endswith("attention.key.1.bias"):
            assert parameter.grad.abs().max() > 1e-12, name


def test_attention_blocks_start_silent():
    torch.manual_seed(0)
    block = build({"variant": "tiny"}, INFO).encoder.context[0].eval()
    x = torch.randn(2, 208, 3, 5)
    assert torch.equal(block.attention(x), torch.zeros_like(x))


def test_training_steps_lower_the_loss():
    torch.manual_seed(0)
    model = build({"variant": "tiny"}, INFO).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.rand(4, 3, 96, 128)
    target = images[:, 0] * 0.3 + torch.linspace(0, 0.7, 96)[:, None]
    losses = []
    for _ in range(12):
        loss = (model(images).values - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_architecture_survives_json_and_build(tiny):
    torch.manual_seed(1)
    again = build(json.loads(json.dumps(tiny.architecture)), INFO).eval()
    assert again.architecture == tiny.architecture
    assert again.preprocessing == tiny.preprocessing
    again.load_state_dict(tiny.state_dict(), strict=True)
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(again(images).values, tiny(images).values)


def test_architecture_is_a_copy(tiny):
    tiny.architecture["blocks"][0][0][0] = 99
    tiny.architecture["decoder"].clear()
    assert tiny.architecture["blocks"] == VARIANTS["tiny"]["blocks"]
    assert tiny.architecture["decoder"] == VARIANTS["tiny"]["decoder"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_preprocessing_follows_the_variant(variant):
    with torch.device("meta"):
        preprocessing = build({"variant": variant}, INFO).preprocessing
    assert (preprocessing.size, preprocessing.multiple) == (SIZES[variant], 32)
    assert preprocessing.size % preprocessing.multiple == 0


def test_images_of_a_batch_do_not_see_each_other(tiny):
    images = torch.rand(3, 3, 64, 96)
    together = tiny(images).values
    apart = torch.cat([tiny(image[None]).values for image in images])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_attention_is_the_plain_formula_without_scaling():
    torch.manual_seed(0)
    heads, width = 3, 10
    attention = awake(Attention(width, heads), 4, width, 3, 5).double()
    x = torch.randn(2, width, 3, 5, dtype=torch.float64)
    query, key, value = (p(x).flatten(2) for p in (attention.query, attention.key, attention.value))
    mixed = torch.empty(2, heads * VALUE_WIDTH, 15, dtype=torch.float64)
    for image in range(2):
        for head in range(heads):
            q = query[image, head * KEY_WIDTH : (head + 1) * KEY_WIDTH]
            k = key[image, head * KEY_WIDTH : (head + 1) * KEY_WIDTH]
            v = value[image, head * VALUE_WIDTH : (head + 1) * VALUE_WIDTH]
            for position in range(15):
                scores = (q[:, position, None] * k).sum(0)
                weights = scores.exp() / scores.exp().sum()
                mixed[image, head * VALUE_WIDTH : (head + 1) * VALUE_WIDTH, position] = (v * weights).sum(1)
    expected = attention.out(mixed.reshape(2, -1, 3, 5))
    torch.testing.assert_close(attention(x), expected)


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 1, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y, y[:, :1, :, :1].expand_as(y))
    assert abs(y.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


def test_channels_last_gives_the_same_map(tiny):
    images = torch.rand(2, 3, 64, 96)
    values = tiny(images).values
    model = build(tiny.architecture, INFO).eval().to(memory_format=torch.channels_last)
    model.load_state_dict(tiny.state_dict())
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)).values, values, rtol=0, atol=1e-5)


def test_bfloat16_autocast_gives_a_fine_float32_map(tiny):
    images = torch.rand(2, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        values = tiny(images).values
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert values.unique().numel() > values.numel() // 2
    assert (values - tiny(images).values).abs().max() < 0.1


def test_input_is_left_alone(tiny):
    images = torch.rand(1, 3, 64, 96)
    before = images.clone()
    tiny(images)
    assert torch.equal(images, before)


def test_parameter_groups_hold_every_parameter_once(tiny):
    groups = tiny.parameter_groups()
    assert groups.keys() == {"encoder", "decoder"}
    held = [id(p) for parameters in groups.values() for p in parameters]
    assert sorted(held) == sorted(id(p) for p in tiny.parameters())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"variant": "bse"}, "did you mean 'base'"),
        ({"variant": "tiny", "injecton": [0] * 4}, "did you mean 'injection'"),
        ({"heads": 4}, "needs blocks"),
        ({"variant": "tiny", "injection": [0, 0, 0]}, "injection must have 4 entries, got 3"),
        ({"variant": "tiny", "decoder": [8] * 4}, "decoder must have 3 entries, got 4"),
        ({"variant": "tiny", "drop_path": 1.0}, "drop_path must be at least 0"),
    ],
)
def test_bad_architecture_says_what_is_wrong(architecture, message):
    with pytest.raises(ValueError, match=message):
        build(architecture, INFO)
