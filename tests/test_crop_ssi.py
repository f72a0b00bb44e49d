"""crop_ssi_loss: sampling, normalisation per crop, and boxes that do not fit."""

from __future__ import annotations

import pytest
import slow_truth
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import INVARIANT, assert_gradient, assert_loss, assert_map
from torch.nn import functional as F

from distilldepth import ops, reference
from distilldepth.ops.crop_ssi import EDGE_TOLERANCE

CONTEXTS = ("range", "quantile", "spatial")


def make(seed=0, batch=3, height=11, width=14, crops=4, size=(7, 6), device="cpu"):
    """A region, asymmetric targets, boxes with fractional edges, and valid pixels."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=g, dtype=torch.float64)

    prediction = torch.randn((batch, height, width), generator=g, dtype=torch.float64) * 2 + 9
    corner = torch.stack([uniform(crops) * width * 0.6, uniform(crops) * height * 0.6], 1)
    extent = torch.tensor([width, height], dtype=torch.float64) - corner
    boxes = torch.cat([corner, corner + extent * (0.3 + 0.7 * uniform(crops, 2))], 1)
    index = torch.randint(0, max(batch, 1), (crops,), generator=g)
    targets = uniform(crops, *size).square()
    valid = uniform(crops, *size) < 0.8
    return [x.to(device) for x in (prediction, targets, boxes, index, valid)]


def loss_and_gradient(function, prediction, *args, **kwargs):
    prediction = prediction.detach().clone().requires_grad_()
    loss = function(prediction, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss, prediction)[0]


@pytest.mark.parametrize("segments", [(1,), (1, 2, 4)])
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_equals_the_second_truth(contexts, segments, device):
    prediction, targets, boxes, index, valid = make(device=device)
    valid[2] = False
    truth = slow_truth.crop_ssi(
        *(x.cpu().numpy() for x in (prediction, targets, boxes, index, valid)), segments, contexts
    )
    got = ops.crop_ssi_loss(prediction, targets, boxes, index, valid, segments=segments, contexts=contexts)
    assert_loss(got, truth, torch.float64)


def test_default_is_one_context(device):
    arguments = make(device=device)
    assert torch.equal(ops.crop_ssi_loss(*arguments), ops.crop_ssi_loss(*arguments, segments=(1,)))


def test_sampling_equals_torch_interpolate_on_whole_pixels(device):
    prediction, *_ = make(device=device)
    boxes = torch.tensor([[3.0, 2.0, 11.0, 9.0], [0, 0, 14, 11]], device=device)
    for size in ((5, 9), (16, 16), (7, 8)):
        crops = ops.sample_crops(prediction, boxes, torch.tensor([1, 2], device=device), size)
        whole = F.interpolate(prediction[2][None, None], size, mode="bilinear", align_corners=False)[0, 0]
        assert_map(crops[1], whole, torch.float64)
    same = ops.sample_crops(prediction, boxes[:1], torch.tensor([1], device=device), (7, 8))
    assert torch.equal(same[0], prediction[1, 2:9, 3:11])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype, device):
    arguments = make(height=61, width=83, size=(40, 37), device=device)
    prediction, targets = arguments[0].to(dtype), arguments[1].to(dtype)
    boxes = arguments[2].float()
    rest = arguments[3:]
    options = {"segments": (1, 2, 4)}
    truth = loss_and_gradient(reference.crop_ssi_loss, prediction.double(), targets.double(), boxes, *rest, **options)
    got, gradient = loss_and_gradient(ops.crop_ssi_loss, prediction, targets, boxes, *rest, **options)
    assert got.dtype == torch.float32
    assert_loss(got, truth[0], dtype)
    assert_gradient(gradient, truth[1], dtype)


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_gradcheck(contexts, device):
    prediction, targets, boxes, index, valid = make(seed=2, height=6, width=5, size=(4, 5), device=device)
    torch.autograd.gradcheck(
        lambda p: reference.crop_ssi_loss(p, targets, boxes, index, valid, segments=(1, 2), contexts=contexts),
        prediction.requires_grad_(),
    )


def test_what_is_not_valid_never_leaks(device):
    prediction, targets, _, _, valid = make(crops=2, device=device)
    boxes = torch.tensor([[2.0, 2.0, 8.0, 9.0], [0.0, 0.0, 6.0, 7.0]], device=device)
    index = torch.tensor([0, 2], device=device)
    valid[:, 3] = False
    valid[1] = False
    clean = loss_and_gradient(ops.crop_ssi_loss, prediction, targets, boxes, index, valid)
    dirty = prediction.clone()
    dirty[1] = torch.inf  # no crop of this image
    dirty[2] = torch.nan  # its only crop has no valid pixel
    dirty[0, 5, 2:8] = torch.nan  # under the crop's row that is not valid; boxes on whole pixels touch no neighbour
    got = loss_and_gradient(ops.crop_ssi_loss, dirty, targets.masked_fill(~valid, torch.inf), boxes, index, valid)
    assert torch.equal(got[0], clean[0])
    assert torch.equal(got[1], clean[1])
    dirty = prediction.clone()
    dirty[0, 6, 5] = torch.nan
    valid[0] = True
    assert ops.crop_ssi_loss(dirty, targets, boxes, index, valid).isnan()


def test_nothing_to_compare_is_zero_with_zero_gradient(device):
    prediction, targets, boxes, index, valid = make(device=device)
    cases = [
        (targets, boxes, index, torch.zeros_like(valid)),
        (targets[:0], boxes[:0], index[:0], valid[:0]),
        (targets[:0], boxes[:0], index[:0], None),
    ]
    for case in cases:
        got, gradient = loss_and_gradient(ops.crop_ssi_loss, prediction, *case)
        assert got == 0
        assert (gradient == 0).all()


def test_crops_weigh_the_same_however_many_pixels_are_valid(device):
    prediction, targets, boxes, index, valid = make(crops=3, device=device)
    valid[0], valid[1] = True, False
    valid[1, 2, 2:5], valid[2] = True, False
    each = [ops.crop_ssi_loss(prediction, *(x[i : i + 1] for x in (targets, boxes, index, valid))) for i in (0, 1)]
    assert_loss(ops.crop_ssi_loss(prediction, targets, boxes, index, valid), sum(each) / 2, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_images_have_any_number_of_crops_in_any_order(dtype, device):
    prediction, targets, boxes, _, valid = make(batch=7, crops=9, device=device)
    prediction, targets = prediction.to(dtype), targets.to(dtype)
    index = torch.tensor([5, 1, 5, 0, 3, 5, 1, 3, 5], device=device)  # none of images 2, 4 and 6
    truth = loss_and_gradient(reference.crop_ssi_loss, prediction.double(), targets.double(), boxes, index, valid)
    for order in (torch.arange(9), torch.tensor([8, 2, 4, 0, 7, 1, 3, 6, 5])):
        crops = (x[order.to(device)] for x in (targets, boxes, index, valid))
        loss, gradient = loss_and_gradient(ops.crop_ssi_loss, prediction, *crops)
        assert_loss(loss, truth[0], dtype)
        assert_gradient(gradient, truth[1], dtype)
        assert (gradient[[2, 4, 6]] == 0).all()


def test_memory_layout_does_not_matter(device):
    arguments = make(device=device)
    plain = ops.crop_ssi_loss(*arguments)
    arguments[0], arguments[1] = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in arguments[:2])
    arguments[2] = arguments[2].t().contiguous().t()
    assert torch.equal(ops.crop_ssi_loss(*arguments), plain)


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-20, 20), st.integers(1, 9), st.integers(1, 9))
def test_scale_and_shift_do_not_matter(seed, scale, shift, height, width):
    prediction, targets, *rest = make(seed=seed, height=height, width=width)
    plain = ops.crop_ssi_loss(prediction, targets, *rest, spread_eps=1e-12)
    got = ops.crop_ssi_loss(scale * prediction + shift, targets, *rest, spread_eps=1e-12)
    assert float(got) == pytest.approx(float(plain), abs=INVARIANT)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 5),
        (0, 5, 4, 5),
        (4, 0, 2, 3),
        (-0.5, 0, 4, 4),
        (0, 0, 14.5, 4),
        (0, 0, 4, 12),
        (0, 0, float("nan"), 4),
    ],
)
def test_boxes_that_do_not_fit_are_named(box):
    prediction, targets, boxes, index, valid = make()
    boxes[2] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"boxes must be non-empty .* inside the map \(0, 0, 14, 11\), got box 2 = \("):
        ops.crop_ssi_loss(prediction, targets, boxes, index, valid)


@pytest.mark.parametrize("size", [(11, 14), (448, 336), (4000, 3)])
def test_an_edge_that_rounding_puts_outside_is_the_map_s_own(size, device):
    """On every device alike, and without looking at the values."""
    height, width = size
    prediction, targets, boxes, index, valid = make(height=height, width=width, device=device)
    exact = torch.tensor([[0, 0, width, height]], dtype=torch.float64, device=device).repeat(len(boxes), 1)
    outwards = torch.tensor([-width, -height, width, height], dtype=torch.float64, device=device)
    for share in (1e-16, 1e-9, 0.9 * EDGE_TOLERANCE):
        got = loss_and_gradient(ops.crop_ssi_loss, prediction, targets, exact + share * outwards, index, valid)
        expected = loss_and_gradient(ops.crop_ssi_loss, prediction, targets, exact, index, valid)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        crops = ops.sample_crops(prediction, exact + share * outwards, index, (5, 4))
        assert torch.equal(crops, ops.sample_crops(prediction, exact, index, (5, 4)))


def test_an_edge_beyond_the_tolerance_is_refused_where_values_are_looked_at(device, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CHECK_VALUES", "1")
    prediction, targets, boxes, index, valid = make(device=device)
    boxes[1] = torch.tensor([-2 * EDGE_TOLERANCE * 14, 0, 14, 11])
    with pytest.raises(ValueError, match="got box 1"):
        ops.crop_ssi_loss(prediction, targets, boxes, index, valid)


def test_mistakes_are_named():
    p, t, b, i, v = make()
    cases = [
        (TypeError, "prediction must be a floating", (p.int(), t, b, i)),
        (ValueError, "targets must not require grad", (p, t.clone().requires_grad_(), b, i)),
        (TypeError, "boxes must be a floating", (p, t, b.int(), i)),
        (ValueError, r"boxes must be \(N, 4\)", (p, t, b[:, :3], i)),
        (ValueError, "boxes must be one per crop", (p, t[:2], b, i)),
        (ValueError, "boxes must not require grad", (p, t, b.clone().requires_grad_(), i)),
        (TypeError, "image_index must be an int64 tensor", (p, t, b, i.int())),
        (ValueError, "image_index must be one per box", (p, t, b, i[:2])),
        (ValueError, "image_index must be from 0 to 2, got 3 for box 0", (p, t, b, torch.full_like(i, 3))),
        (ValueError, "image_index must be from 0 to 2, got -1", (p, t, b, torch.full_like(i, -1))),
        (TypeError, "valid must be bool", (p, t, b, i, v.int())),
        (ValueError, "valid must be", (p, t, b, i, v[:, :2])),
    ]
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            ops.crop_ssi_loss(*args)
