"""Multiply-accumulates of networks: against counts by hand, published ones, and torch on real numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distilldepth.models import DepthModel, DepthOutput, ModelInfo, create_student
from distilldepth.models.costs import count_costs, count_model
from distilldepth.models.inventory import describe
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.registry import ENTRIES


class Known(DepthModel):
    """Few layers, each of another kind."""

    def __init__(self) -> None:
        super().__init__(ModelInfo("known", "test", "disparity", "", ""), Preprocessing(20, 4))
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 10, (1, 5), groups=2, padding=(0, 2), bias=False)
        self.linear = nn.Linear(10, 7)

    def forward(self, images, *, features=False):
        x = self.grouped(self.norm(self.first(images)))
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        values = mixed.mean(-1).reshape(-1, 1, *x.shape[-2:])
        return DepthOutput(F.interpolate(values, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_kind_of_layer_is_counted(device):
    costs = count_model(Known().to(device))
    pixels = 10 * 10
    layers = pixels * (6 * 3 * 9 + 10 * 3 * 5 + 10 * 7)
    assert (costs.height, costs.width) == (20, 20)
    assert costs.macs == layers + 2 * pixels**2 * 7
    assert costs.macs_thop == layers + 4 * 6 * pixels + 11 * 20 * 20


def test_the_published_teacher():
    """Robust Lightweight Depth Estimation has 52.13 M and 96.14 G for LeReS-ResNet50 at 448 x 448."""
    costs = count_costs(ENTRIES["leres-r50"])
    assert (costs.height, costs.width) == (448, 448)
    assert round(ENTRIES["leres-r50"].parameters / 1e6, 3) == 52.127
    assert round(costs.macs / 1e9, 3) == 95.712
    assert round(costs.macs_thop / 1e9, 3) == 96.139


@pytest.mark.parametrize("name", ["light-mini", "efficientnet-lite0"])
def test_without_numbers_the_count_is_the_same(name):
    assert count_costs(ENTRIES[name]) == count_model(create_student(name, seed=1))


def test_normalisation_counts_where_a_family_folds_it():
    """EfficientNet-Lite has 4 multiply-accumulates more for each output of a normalisation, folded or not."""
    model = create_student("efficientnet-lite0", seed=1)
    norms, layers = [], []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: norms.append(4 * output.numel()))
        elif isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda it, _, output: layers.append(output.numel() * it.weight[0].numel()))
    costs = count_model(model)
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    enlarged = 11 * (128 * 16**2 + 64 * 32**2 + 32 * 64**2 + 16 * 128**2 + 256**2)
    assert costs.macs_thop == sum(layers) + sum(norms) + enlarged
    # What is really computed has a row more, where a stride of 2 meets an even side.
    assert sum(layers) < costs.macs < 1.03 * sum(layers)


def test_networks_are_counted_but_those_that_only_their_checkpoints_describe():
    assert count_costs(ENTRIES["dpt-large"]) is None
    assert [entry.family for entry in ENTRIES.values() if not entry.variant] == ["transformers"] * 14
    assert all(count_costs(entry) for entry in ENTRIES.values() if entry.bundled)
    assert "macs" not in describe("student")[0]


def test_nothing_random_is_drawn_and_nothing_is_left_behind():
    state = torch.get_rng_state()
    count_costs(ENTRIES["topformer-tiny"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.zeros(1).device.type == "cpu"
    model = Known()
    count_model(model)
    assert not any(module._forward_hooks for module in model.modules())
