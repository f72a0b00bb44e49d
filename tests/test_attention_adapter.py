"""Attention among positions of features: each form against loops, its memory, its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerances import assert_gradient, assert_map
from torch.nn.attention import SDPBackend, sdpa_kernel

from distilldepth import capacity
from distilldepth.errors import DistillDepthError
from distilldepth.models import AttentionAdapter


def make(form="full", channels=5, key_width=3, size=(9, 10), *, batch=2, scaled=False, device="cpu"):
    torch.manual_seed(4)
    adapter = AttentionAdapter(channels, form=form, key_width=key_width, scaled=scaled).double()
    features = torch.randn(batch, channels, *size, dtype=torch.float64) * 1.5 + 0.3
    return adapter.to(device), features.to(device)


def slow(adapter, features, form, scale):
    """One position after the other."""
    q, k = ((adapter.query.weight, adapter.query.bias), (adapter.key.weight, torch.zeros(1)))
    q, k = ([x.detach().cpu().double().numpy() for x in pair] for pair in (q, k))
    x = features.cpu().numpy()
    batch, channels, height, width = x.shape
    found = np.zeros_like(x)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                if form == "full":
                    seen = [x[b, :, r, c] for r in range(height) for c in range(width)]
                elif form == "reduced":
                    seen = [
                        x[b, :, r : r + 4, c : c + 4].reshape(channels, -1).mean(1)
                        for r in range(0, height, 4)
                        for c in range(0, width, 4)
                    ]
                else:
                    rows, columns = (
                        range(8 * (p // 8), min(8 * (p // 8) + 8, n)) for p, n in ((i, height), (j, width))
                    )
                    seen = [x[b, :, r, c] for r in rows for c in columns]
                query = q[0][:, :, 0, 0] @ x[b, :, i, j] + q[1]
                weights = np.array([math.exp(scale * float(query @ (k[0][:, :, 0, 0] @ s))) for s in seen])
                found[b, :, i, j] = (weights[:, None] * np.array(seen)).sum(0) / weights.sum()
    return torch.from_numpy(found)


@pytest.mark.parametrize("form", ["full", "reduced", "window"])
@pytest.mark.parametrize(("channels", "key_width"), [(5, 3), (3, 7)])
@pytest.mark.parametrize("size", [(9, 10), (8, 16), (3, 2)])
def test_each_form_equals_the_loop(form, channels, key_width, size, device):
    adapter, features = make(form, channels, key_width, size, device=device)
    got = adapter(features)
    assert_map(got.cpu(), slow(adapter, features, form, 1.0), torch.float64)
    # One pass holds what another kernel says too.
    with sdpa_kernel(SDPBackend.MATH):
        assert_map(adapter(features), got, torch.float64)


def test_products_are_divided_where_that_is_asked_for(device):
    adapter, features = make(key_width=4, scaled=True, size=(4, 3), device=device)
    assert_map(adapter(features).cpu(), slow(adapter, features, "full", 0.5), torch.float64)
    plain, _ = make(key_width=4, size=(4, 3), device=device)
    assert (plain(features) - adapter(features)).abs().max() > 0.01


@pytest.mark.parametrize("form", ["full", "reduced", "window"])
def test_gradcheck(form, device):
    # Larger than a cell and, in one direction, than a window.
    adapter, features = make(form, 2, 3, (3, 9), batch=1, device=device)
    names, parameters = zip(*adapter.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (features.requires_grad_(), *parameters))
    for gradient in torch.autograd.grad(adapter(features).square().sum(), parameters):
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("form", ["full", "reduced", "window"])
def test_float32_and_half(form, device):
    adapter, features = make(form, device=device)
    truth = adapter(features)
    single = AttentionAdapter(5, form=form, key_width=3).to(device)
    single.load_state_dict(adapter.state_dict())
    got = single(features.float().requires_grad_())
    assert (got - truth).abs().max() < 1e-5 * truth.abs().max()
    with torch.autocast(device.type, torch.bfloat16):
        half = single(features.float())
    assert half.shape == features.shape
    assert (half - truth).abs().max() < 0.1 * truth.abs().max()
    gradients = []
    for module, x in ((adapter, features), (single, features.float())):
        x = x.detach().requires_grad_()
        gradients.append(torch.autograd.grad(module(x).square().sum(), x)[0])
    assert_gradient(gradients[1], gradients[0], torch.float32)


def test_images_do_not_see_each_other(device):
    for form in ("full", "reduced", "window"):
        adapter, features = make(form, device=device)
        assert_map(adapter(features[1:])[0], adapter(features)[1], torch.float64)
        assert adapter(features[:0]).shape == (0, 5, 9, 10)


def test_a_window_does_not_see_another(device):
    adapter, features = make("window", size=(9, 20), device=device)
    changed = features.clone()
    changed[:, :, :8, 8:16] += 100
    moved = (adapter(changed) - adapter(features)).abs().amax((0, 1)) > 1e-9
    assert moved[:8, 8:16].all()
    moved[:8, 8:16] = False
    assert not moved.any()


def test_a_table_that_does_not_fit_is_refused_with_its_size(device, monkeypatch):
    adapter, features = make("full", 4, 4, (30, 20), device=device)
    monkeypatch.setattr(capacity, "total_memory", lambda *_: 2 * 2 * 600 * 600 * 8 - 1)
    with (
        sdpa_kernel(SDPBackend.MATH),
        pytest.raises(
            DistillDepthError, match=r"full attention from 600 positions to 600, twice 2 x 600 x 600"
        ) as caught,
    ):
        adapter(features)
    for words in ("of 8 bytes", "would take at least 0.0 GiB", "use the form reduced or window"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with sdpa_kernel(SDPBackend.MATH):
        make("reduced", 4, 4, (30, 20), device=device)[0](features)
        make("window", 4, 4, (30, 20), device=device)[0](features)
        monkeypatch.setattr(capacity, "total_memory", lambda *_: 2 * 2 * 600 * 600 * 8)
        adapter(features)


def test_on_a_cpu_the_table_is_never_laid_out(monkeypatch):
    monkeypatch.setattr(capacity, "total_memory", lambda *_: 0)
    for form, channels in (("full", 4), ("full", 2), ("reduced", 4), ("window", 4)):
        adapter, features = make(form, channels, 3)
        adapter(features.requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "ful"}, "form must be one of full, reduced, window, got 'ful'; did you mean 'full'"),
        ({"key_width": 0}, "key_width must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionAdapter(4, **arguments)
    with pytest.raises(ValueError, match=r"features must be \(B, 4, H, W\), got \(2, 5, 3, 3\)"):
        AttentionAdapter(4)(torch.zeros(2, 5, 3, 3))
