"""Label-free distillation: its losses, the PointNet, the camera of a region, its terms, and runs with each of them."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import slow_truth
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import inputs, loss_and_gradient
from test_resume import photographs, weights
from tolerances import INVARIANT, assert_gradient, assert_loss, assert_map

from distilldepth.cli.main import cli
from distilldepth.depth import intrinsics_from_fov
from distilldepth.distill.config import load_config
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.terms.table import TERMS
from distilldepth.images.crops import CropConfig, make_crop
from distilldepth.losses import (
    channel_kl_loss,
    channel_mse_loss,
    depths_to_compare,
    geometric_loss,
    mse_loss,
    normalise,
    pairwise_loss,
    spatial_kl_loss,
)
from distilldepth.models import load_model
from distilldepth.models.pointnet import PointNet
from distilldepth.scenes import render_scene
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import Teacher

NAMES = (
    "map_mse", "map_channel_mse", "map_channel_kl", "geometric", "feature_mse", "feature_channel_mse",
    "feature_channel_kl", "feature_spatial_kl", "feature_pairwise",
)  # fmt: skip
QUANTITIES = ("disparity", "depth", "metric_depth")
CAMERA = torch.tensor([[7.0, 0, 4.2], [0, 6.0, 3.1], [0, 0, 1]], dtype=torch.float64)


def pair(shape=(3, 4, 9, 7), seed=0, valid_share=0.8):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 1
    teacher = torch.rand(shape, generator=g, dtype=torch.float64).square() * 3 + 0.4 * student.cos()
    valid = torch.rand((shape[0], *shape[-2:]), generator=g) < valid_share
    return student, teacher, valid


def maps(seed=0, shape=(3, 9, 7)):
    """A student that sees what is near, and inverse depth."""
    student, teacher, valid = pair(shape, seed)
    return student + 2 * teacher, teacher.abs() + 0.1, valid


@pytest.fixture(scope="module")
def network():
    return PointNet(summarised=16).double()


# --- one loss at a time ----------------------------------------------------------------------------------------------


def softmax(values):
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def slow_channel_mse(student, teacher, valid, temperature):
    found = []
    for s, t, v in zip(student, teacher, valid, strict=True):
        if v.any():
            found += [
                ((softmax(b[v] / temperature) - softmax(a[v] / temperature)) ** 2).sum()
                for a, b in zip(s, t, strict=True)
            ]
    return sum(found) / max(len(found), 1)


def slow_spatial_kl(student, teacher, temperature):
    found = []
    for b in range(student.shape[0]):
        for i in range(student.shape[2]):
            for j in range(student.shape[3]):
                p_s, p_t = (softmax(x[b, :, i, j] / temperature) for x in (student, teacher))
                found.append(sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True)))
    return temperature**2 * sum(found) / len(found)


def slow_likeness(features, rows, columns):
    """Cells as torch has them: from floor(k H / n) to ceil((k + 1) H / n)."""
    _, height, width = features.shape
    nodes = []
    for r in range(rows):
        for c in range(columns):
            cell = features[
                :,
                r * height // rows : -(-(r + 1) * height // rows),
                c * width // columns : -(-(c + 1) * width // columns),
            ]
            mean = np.array([plane.mean() for plane in cell])
            nodes.append(mean / math.sqrt((mean**2).sum()))
    return np.array([[float((a * b).sum()) for b in nodes] for a in nodes])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_losses_equal_the_loops(temperature, device):
    student, teacher, valid = (x.to(device) for x in pair())
    valid[1] = False
    s, t, v = (x.cpu().numpy() for x in (student, teacher, valid))
    everywhere = np.ones_like(v)
    got = channel_mse_loss(student, teacher, valid, temperature=temperature)
    assert_loss(got, slow_channel_mse(s, t, v, temperature), torch.float64)
    got = channel_mse_loss(student, teacher, temperature=temperature)
    assert_loss(got, slow_channel_mse(s, t, everywhere, temperature), torch.float64)
    got = channel_mse_loss(student[:, 0], teacher[:, 0], valid, temperature=temperature)
    assert_loss(got, slow_channel_mse(s[:, :1], t[:, :1], v, temperature), torch.float64)
    got = spatial_kl_loss(student, teacher, temperature=temperature)
    assert_loss(got, slow_spatial_kl(s, t, temperature), torch.float64)
    kept = np.broadcast_to(v[:, None], s.shape)
    assert_loss(mse_loss(student, teacher, valid), ((s - t) ** 2)[kept].mean(), torch.float64)
    assert_loss(mse_loss(student, teacher), ((s - t) ** 2).mean(), torch.float64)
    assert_loss(mse_loss(student[:, 1], teacher[:, 1], valid), ((s - t) ** 2)[:, 1][v].mean(), torch.float64)
    assert channel_kl_loss(student, teacher, valid, temperature=temperature) == pytest.approx(
        slow_truth.channel_kl(s, t, v, temperature), rel=1e-9
    )


@pytest.mark.parametrize(("nodes", "other"), [((3, 2), (3, 4, 9, 7)), ((8, 8), (3, 6, 5, 8)), ((1, 1), (3, 2, 9, 7))])
def test_pairwise_equals_the_loop_for_any_width_and_size(nodes, other, device):
    student, teacher = pair()[0].to(device), pair(other, seed=3)[1].to(device)
    rows, columns = min(nodes[0], 9, other[2]), min(nodes[1], 7, other[3])
    truth = [
        ((slow_likeness(s, rows, columns) - slow_likeness(t, rows, columns)) ** 2).mean()
        for s, t in zip(student.cpu().numpy(), teacher.cpu().numpy(), strict=True)
    ]
    assert abs(float(pairwise_loss(student, teacher, nodes=nodes)) - sum(truth) / 3) < 1e-12


def slow_features(network, points):
    """The PointNet of one cloud `(N, 3)` in numpy, without any saving: of at most `summarised` points."""
    state = {key: value.cpu().numpy() for key, value in network.state_dict().items()}

    def layer(values, name):
        values = values @ state[f"{name}.linear.weight"].T + state[f"{name}.linear.bias"]
        spread = np.sqrt(state[f"{name}.norm.running_var"] + 1e-5)
        values = (values - state[f"{name}.norm.running_mean"]) / spread
        return np.maximum(values * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"], 0)

    def transform(values, name, width):
        most = network.summarised
        count = len(values)
        hidden = values if count <= most else values[[k * count // most for k in range(most)]]
        for number in range(3):
            hidden = layer(hidden, f"{name}.wide.{number}")
        hidden = hidden.max(0)
        for number in range(2):
            hidden = layer(hidden, f"{name}.deep.{number}")
        made = state[f"{name}.last.weight"] @ hidden + state[f"{name}.last.bias"]
        return values @ (made.reshape(width, width) + np.eye(width))

    values = transform(points, "input_transform", 3)
    for number in range(2):
        values = layer(values, f"local.{number}")
    return transform(values, "feature_transform", 64)


def slow_geometric(student, teacher, camera, network, valid, count):
    images = []
    height, width = student.shape[1:]
    for s, t, v, k in zip(student, teacher, valid, camera, strict=True):
        places = [(i, j) for i in range(height) for j in range(width) if v[i, j]]
        if not places:
            continue

        def point(z, i, j, k=k):
            return [(j - k[0, 2]) * z[i, j] / k[0, 0], (i - k[1, 2]) * z[i, j] / k[1, 1], z[i, j]]

        clouds = [np.array([point(z, i, j) for i, j in places]) for z in (s, t)]
        some = [len(places) * k // count for k in range(count)]
        said = [slow_features(network, cloud[some]) for cloud in clouds]
        images.append(((clouds[0] - clouds[1]) ** 2).mean() + ((said[0] - said[1]) ** 2).mean())
    return sum(images) / max(len(images), 1)


def depths(seed=0, shape=(3, 9, 7)):
    student, teacher, valid = maps(seed, shape)
    return student.abs() + 0.3, teacher + 0.5, valid


@pytest.mark.parametrize("points", [12, 40, 4096])
def test_geometric_equals_the_loop(points, network, device):
    student, teacher, valid = (x.to(device) for x in depths())
    valid[1] = False
    camera = CAMERA.to(device).repeat(3, 1, 1)
    camera[2, 0, 0], camera[2, 1, 2] = 5.0, 1.5
    net = network.to(device)
    arrays = [x.cpu().numpy() for x in (student, teacher)]
    for mask in (valid, None):
        got = geometric_loss(student, teacher, camera, net, mask, points=points)
        v = np.ones((3, 9, 7), bool) if mask is None else mask.cpu().numpy()
        truth = slow_geometric(*arrays, camera.cpu().numpy(), net, v, min(points, 63))
        assert abs(float(got) - truth) <= 1e-9 * truth
    assert torch.equal(geometric_loss(student[:, None], teacher[:, None], camera, net, points=points), got)


def slow_depths(student, teacher, valid, quantity, floor=0.2):
    """One image: depths of the valid pixels that are near enough, and which these are."""
    sign = -1 if quantity == "depth" else 1
    s, t = sign * student[valid], sign * teacher[valid]
    near = np.ones(len(t), bool)
    if quantity == "metric_depth":
        t = t / t.mean()
        near = t >= floor
    else:
        t = t - t.min()
        t = t / t.mean() + floor
    s, t = s[near], t[near]
    (scale, shift), *_ = np.linalg.lstsq(np.stack([s, np.ones_like(s)], 1), t, rcond=None)
    fit = scale * s + shift if scale > 0 else np.full_like(s, t.mean())
    fade = np.exp(np.minimum(fit / floor - 1, 0))
    if quantity == "depth":
        return np.where(fit < floor, floor * fade, fit), t, near
    return np.where(fit < floor, (2 - fade) / floor, 1 / np.maximum(fit, floor)), 1 / t, near


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_depths_equal_the_loop(quantity, device):
    student, teacher, valid = (x.to(device) for x in maps())
    student[2] *= -1  # whose fit has a negative scale
    teacher[0, 2:4] = 0.001  # far
    got = [x.cpu() for x in depths_to_compare(student, teacher, valid, quantity=quantity)]
    below = 0
    for b in range(3):
        kept = valid[b].cpu().numpy()
        s, t, near = slow_depths(student[b].cpu().numpy(), teacher[b].cpu().numpy(), kept, quantity)
        kept[kept] = near
        assert np.array_equal(got[2][b].numpy(), kept)
        assert_map(got[0][b][got[2][b]], torch.from_numpy(s), torch.float64)
        assert_map(got[1][b][got[2][b]], torch.from_numpy(t), torch.float64)
        below += int(((s < 0.2) if quantity == "depth" else (s > 5)).sum())
    assert below > 0 or quantity == "depth", "a fit below the floor shows how it goes on"
    assert all(bool((x > 0).all()) for x in got[:2])
    assert not (got[2][0, 2:4].any() and quantity == "metric_depth")


def composite(student, teacher, valid, network, quantity="disparity", points=16):
    a, b, kept = depths_to_compare(student, teacher, valid, quantity=quantity)
    return geometric_loss(a, b, CAMERA.to(a), network, kept, points=points)


def test_gradcheck(network):
    student, teacher, valid = pair((2, 3, 3, 4), seed=4)
    student.requires_grad_()
    for loss in (mse_loss, channel_mse_loss, partial(channel_mse_loss, temperature=3.0)):
        torch.autograd.gradcheck(lambda x, loss=loss: loss(x, teacher, valid), student)
        torch.autograd.gradcheck(lambda x, loss=loss: loss(x, teacher), student)
    torch.autograd.gradcheck(lambda x: spatial_kl_loss(x, teacher, temperature=2.0), student)
    torch.autograd.gradcheck(lambda x: pairwise_loss(x, teacher[:, :2], nodes=(2, 2)), student)
    student, teacher, valid = maps(seed=4, shape=(2, 3, 4))
    student.requires_grad_()
    for quantity in QUANTITIES:
        torch.autograd.gradcheck(lambda x, q=quantity: depths_to_compare(x, teacher, valid, quantity=q)[0], student)
    few = student[:1, :, :3].detach().requires_grad_()
    torch.autograd.gradcheck(lambda x: composite(x, teacher[:1, :, :3], valid[:1, :, :3], network, points=5), few)


LOSSES = {
    "mse": lambda s, t, v, n: mse_loss(s, t, v),
    "channel_mse": lambda s, t, v, n: channel_mse_loss(s, t, v),
    **{q: partial(lambda s, t, v, n, q: composite(s, t, v, n, q), q=q) for q in QUANTITIES},
    "geometric": lambda s, t, v, n: geometric_loss(s.abs() + 0.1, t.abs() + 0.1, CAMERA.to(s), n, v, points=16),
}
"""Those that know of valid pixels."""


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_valid_never_leaks(name, network):
    loss = LOSSES[name]
    student, teacher, valid = maps()
    valid[2] = False
    clean = loss_and_gradient(loss, student, teacher, valid, network)
    assert clean[1].abs().sum() > 0
    for rubbish in (torch.nan, torch.inf, -torch.inf, 1e30):
        got = loss_and_gradient(loss, *(x.masked_fill(~valid, rubbish) for x in (student, teacher)), valid, network)
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[1], clean[1])
    assert (clean[1][~valid] == 0).all()
    for side in (0, 1):
        broken = [student.clone(), teacher.clone()]
        valid[0, 4, 5] = True
        broken[side][0, 4, 5] = torch.nan
        assert loss(*broken, valid, network).isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_inputs(name, network):
    loss = LOSSES[name]
    student, teacher, valid = maps()
    for s, t, v in (
        (student, teacher, torch.zeros_like(valid)),
        (student[:0], teacher[:0], None),
        (student[:0], teacher[:0], valid[:0]),
        (student[:, :0], teacher[:, :0], None),
    ):
        got, gradient = loss_and_gradient(loss, s, t, v, network)
        assert got == 0
        assert (gradient == 0).all()
    one = torch.zeros_like(valid)
    one[1, 4, 5] = True
    for s, t, v in (
        (student, teacher, one),
        (torch.full_like(student, 0.1), teacher, valid),
        (student, torch.full_like(teacher, 0.7), valid),
        (student, torch.zeros_like(teacher), valid),
        (-1e6 * student, teacher, valid),
    ):
        got, gradient = loss_and_gradient(loss, s, t, v, network)
        assert torch.isfinite(got)
        assert torch.isfinite(gradient).all()
    with pytest.raises(ValueError, match="must not require grad"):
        loss(student, teacher.clone().requires_grad_(), valid, network)


def test_features_of_length_zero_have_no_gradient():
    student, teacher, _ = pair()
    student[:, :, :4] = 0
    got, gradient = loss_and_gradient(partial(pairwise_loss, nodes=(9, 7)), student, teacher)
    assert torch.isfinite(got)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, :, :4] == 0).all()
    assert (gradient[:, :, 4:] != 0).any()
    assert pairwise_loss(student * torch.nan, teacher).isnan()
    assert spatial_kl_loss(student * torch.nan, teacher).isnan()
    for loss in (pairwise_loss, spatial_kl_loss):
        assert loss(student[:0], teacher[:0]) == 0
        assert loss(student[:, :, :0], teacher[:, :, :0]) == 0


def test_precision(network):
    small = PointNet(summarised=16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        student, teacher, valid = (x.to(dtype) if x.is_floating_point() else x for x in pair((2, 4, 12, 17)))
        for loss in (
            partial(mse_loss, valid=valid), partial(channel_mse_loss, valid=valid), spatial_kl_loss, pairwise_loss,
        ):  # fmt: skip
            truth = loss_and_gradient(loss, student.double(), teacher.double())
            got = loss_and_gradient(loss, student, teacher)
            assert got[0].dtype == torch.float32
            # What is small beside 1 is a difference of numbers of about 1.
            assert abs(float(got[0] - truth[0])) < 2e-6
            if dtype != torch.float16:  # of which the smallest gradients are no normal numbers
                assert_gradient(got[1], truth[1], dtype)
        student, teacher, valid = (x.to(dtype) if x.is_floating_point() else x for x in maps(shape=(2, 12, 17)))
        truth = composite(student.double(), teacher.double(), valid, network)
        got = composite(student, teacher, valid, small)
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(float(truth), rel=1e-4)


@settings(max_examples=15, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20))
def test_invariances_of_maps_and_features(seed, scale, shift):
    student, teacher, valid = pair(seed=seed)
    plain = channel_mse_loss(student, teacher, valid)
    assert channel_mse_loss(student + shift, teacher - shift, valid) == pytest.approx(float(plain), rel=1e-6)
    assert abs(channel_mse_loss(1.5 * student, teacher, valid) - plain) > 1e-4 * plain
    place = shift * torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = spatial_kl_loss(student, teacher)
    assert spatial_kl_loss(student + place, teacher - place) == pytest.approx(float(plain), rel=1e-6)
    turn = torch.linalg.qr(student[0, :, :4, 0].T @ student[0, :, :4, 1] + torch.eye(4, dtype=torch.float64)).Q
    turned = torch.einsum("dc,bchw->bdhw", turn, scale * student)
    plain = pairwise_loss(student, teacher, nodes=(4, 4))
    assert pairwise_loss(turned, 3 * teacher, nodes=(4, 4)) == pytest.approx(float(plain), rel=1e-6)
    wide = torch.cat([student, torch.zeros_like(student)], 1)
    assert pairwise_loss(wide, teacher, nodes=(4, 4)) == pytest.approx(float(plain), rel=1e-6)
    for loss in (spatial_kl_loss, pairwise_loss, channel_mse_loss, mse_loss):
        assert abs(loss(teacher, teacher)) < 1e-12
        assert loss(student, teacher) > 1e-6


@pytest.mark.parametrize("quantity", QUANTITIES)
@settings(max_examples=8, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20))
def test_geometric_ignores_what_nobody_knows(network, quantity, seed, scale, shift):
    """Scale and shift of the student, and of the teacher's map what its quantity leaves open."""
    student, teacher, valid = maps(seed)
    plain = float(composite(student, teacher, valid, network, quantity))
    assert plain > 1e-3
    other = 3 * teacher if quantity == "metric_depth" else 3 * teacher - 5
    got = composite(scale * student + shift, other, valid, network, quantity)
    assert float(got) == pytest.approx(plain, rel=1e-4)
    perfect = composite(scale * teacher + shift, teacher, valid, network, quantity)
    assert abs(float(perfect)) < INVARIANT


def test_geometric_gives_scale_and_shift_no_gradient(network):
    student, teacher, valid = maps()
    _, gradient = loss_and_gradient(composite, student, teacher, valid, network)
    for b in range(3):
        assert abs(gradient[b].sum()) < 1e-9 * gradient[b].abs().sum()
        assert abs((gradient[b] * student[b]).sum()) < 1e-9 * (gradient[b] * student[b]).abs().sum()
    backwards = loss_and_gradient(composite, -student, teacher, valid, network)
    assert (backwards[1] == 0).all()


def test_mistakes_are_named(network):
    student, teacher, valid = pair()
    flat = maps()
    cases = [
        (lambda: mse_loss(student, teacher[:, :2]), "teacher must have the shape of student"),
        (lambda: channel_mse_loss(student, teacher, valid[:, :3]), r"valid must be \(3, 9, 7\)"),
        (lambda: channel_mse_loss(student, teacher, temperature=0.0), "temperature must be positive"),
        (lambda: spatial_kl_loss(student, teacher, temperature=math.nan), "temperature must be positive"),
        (lambda: pairwise_loss(student, teacher[:2]), "teacher must have the student's batch of 3, got 2"),
        (lambda: pairwise_loss(student, teacher, nodes=(0, 4)), r"nodes must be \(rows, columns\) of at least 1"),
        (lambda: geometric_loss(student, teacher, CAMERA, network), r"student_depth must be \(B, H, W\)"),
        (lambda: geometric_loss(*flat[:2], CAMERA, network, points=0), "points must be at least 1"),
        (lambda: geometric_loss(*flat[:2], CAMERA * 0, network), "focal lengths other than 0"),
        (lambda: depths_to_compare(*flat, quantity="metres"), "quantity must be one of disparity, depth"),
        (lambda: PointNet(summarised=0), "summarised must be at least 1"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    for call in (lambda: mse_loss(student.long(), teacher), lambda: spatial_kl_loss(student, teacher, temperature="1")):
        with pytest.raises(TypeError):
            call()


# --- the PointNet ----------------------------------------------------------------------------------------------------


def test_the_pointnet_depends_on_its_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = PointNet()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = PointNet(), PointNet(seed=1)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.local[0].linear.weight, other.local[0].linear.weight)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert sum(parameter.numel() for parameter in first.parameters()) == 2_812_105
    points = torch.rand(2, 30, 3)
    assert torch.equal(first.train()(points), first.eval()(points))
    assert 0.3 < float(first(points).std()) < 3, "as large as the points"


def test_the_pointnet_equals_the_loop_and_does_not_mind_the_order(network):
    points = pair((2, 40, 3, 1))[0][..., 0]
    for cloud in points:
        assert_map(network(cloud[None])[0], torch.from_numpy(slow_features(network, cloud.numpy())), torch.float64)
    some = points[:, :16]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert_map(network(some[:, order]), network(some)[:, order], torch.float64)
    assert_map(network.summary(some[:, order]), network.summary(some), torch.float64)
    assert network.summary(some).shape == (2, 1024)


def test_keeping_few_points_changes_no_gradient(network, monkeypatch):
    pointnet = importlib.import_module("distilldepth.models.pointnet")

    def plain(layers, values, most):
        count = values.shape[1]
        values = values[:, torch.arange(most) * count // most] if count > most else values
        return layers(values).amax(1)

    points = pair((2, 40, 3, 1), seed=5)[0][..., 0]
    got = loss_and_gradient(lambda p: network(p).sin().sum(), points)
    monkeypatch.setattr(pointnet, "_largest", plain)
    truth = loss_and_gradient(lambda p: network(p).sin().sum(), points)
    assert_loss(got[0], truth[0], torch.float64)
    assert_gradient(got[1], truth[1], torch.float64)


# --- the camera of a region ------------------------------------------------------------------------------------------


def test_intrinsics_follow_the_crop():
    """A point in space is seen where the crop shows the pixel that saw it in the photograph."""
    camera = np.array([[90.0, 0, 61.5], [0, 95.0, 40.25], [0, 0, 1]], np.float32)
    image = np.zeros((80, 120, 3), np.uint8)
    config = CropConfig(size=(32, 48), min_crop=30)
    mirrored = set()
    for seed in range(8):
        region = make_crop({"image": image, "name": "x", "intrinsics": camera}, config, np.random.default_rng(seed))
        (cut,) = region.cut
        mirrored.add(cut.mirrored)
        place = np.array([cut.left + 0.3 * cut.width, cut.top + 0.7 * cut.height])  # of a pixel's centre
        ray = np.linalg.inv(camera) @ np.array([*place, 1])
        seen = region.intrinsics.numpy() @ (ray * ([-1, 1, 1] if cut.mirrored else [1, 1, 1]))
        x = (place[0] + 0.5 - cut.left) / cut.width * 48 - 0.5
        y = (place[1] + 0.5 - cut.top) / cut.height * 32 - 0.5
        expected = [47 - x if cut.mirrored else x, y]
        assert seen[:2] / seen[2] == pytest.approx(expected, abs=1e-3)
    assert mirrored == {False, True}


def test_an_unknown_camera_sees_sixty_degrees_of_the_photograph():
    image = np.zeros((80, 120, 3), np.uint8)
    region = make_crop({"image": image, "name": "x"}, CropConfig(size=(80, 120)).whole(), np.random.default_rng(0))
    assert torch.allclose(region.intrinsics, intrinsics_from_fov(80, 120, 60.0, vertical=True))
    focal = float(region.intrinsics[1, 1])
    assert focal == pytest.approx(40 / math.tan(math.radians(30)))
    assert region.intrinsics[0, 0] == region.intrinsics[1, 1]


def test_scenes_give_their_own_camera():
    from distilldepth.scenes.source import SceneSource

    source = SceneSource((48, 64), 4)
    region = make_crop(source[1], CropConfig(size=(48, 64)).whole(), np.random.default_rng(0))
    assert torch.allclose(region.intrinsics, torch.from_numpy(render_scene(source.seed + 1, (48, 64)).intrinsics))


# --- terms -----------------------------------------------------------------------------------------------------------


def with_camera(quantity="disparity"):
    student, label, regions = inputs()
    regions.intrinsics = torch.tensor(CAMERA.tolist()) + torch.tensor(
        [[[0.0] * 3] * 3, [[1.0, 0, 2.0], [0, 2.0, 0], [0, 0, 0]]]
    )
    label.quantity = quantity
    if quantity == "metric_depth":
        label.disparity, label.inverse_depth = label.disparity.abs() + 0.1, True
    return student, label, regions


def only(name, **options):
    torch.manual_seed(0)
    weights = {**dict.fromkeys(TERMS, 0.0), name: 2.5}
    channels = {"student_channels": 6, "teacher_channels": {"a": 8, "b": 6}}
    return distill_any_depth_objective(weights=weights, **{**channels, **options})


@pytest.mark.parametrize("name", NAMES)
def test_a_term_gives_its_loss_what_it_wants(name):
    module = only(name, temperature=2.0)
    data = student, label, _ = with_camera()
    student.values.requires_grad_()
    student.features["encoder"].requires_grad_()
    total, values = module(*data)
    own, target = student.values.detach(), label.disparity
    if name.startswith("feature"):
        own, target = student.features["encoder"].detach(), label.features["encoder"]
        if name != "feature_pairwise":
            own = module.terms[0].projections[0](own)
            target = torch.nn.functional.interpolate(target, own.shape[2:], mode="bilinear")
    elif name != "geometric":
        own, target = normalise(own, label.valid), normalise(target, label.valid)
    kept = (label.valid,) if name.startswith("map") else ()
    if name == "geometric":
        a, b, known = depths_to_compare(own, target, label.valid, quantity="disparity")
        expected = geometric_loss(a, b, data[2].intrinsics, PointNet(), known)
    else:
        loss = {
            "mse": mse_loss, "pairwise": pairwise_loss, "channel_mse": partial(channel_mse_loss, temperature=2.0),
            "channel_kl": partial(channel_kl_loss, temperature=2.0),
            "spatial_kl": partial(spatial_kl_loss, temperature=2.0),
        }[name.partition("_")[2]]  # fmt: skip
        expected = loss(own, target, *kept)
    assert_loss(values[name], expected.detach(), torch.float32)
    assert float(total.detach()) == pytest.approx(2.5 * float(values[name]), rel=1e-6)
    total.backward()
    gradient = student.features["encoder"].grad if name.startswith("feature") else student.values.grad
    assert gradient.abs().sum() > 0
    projections = getattr(module.terms[0], "projections", ())
    assert len(list(module.parameters())) == 2 * (len(projections) > 0), "the PointNet is not among what is trained"
    assert len(projections) == 2 * (name.startswith("feature") and name != "feature_pairwise")
    if projections:
        assert projections[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("feature")])
def test_terms_of_features_are_absent_without_features(name):
    module = only(name)
    assert module.needs == {"features"}
    student, label, regions = with_camera()
    assert module(student, label, regions)[1].keys() == {name}
    label.features = {}
    assert module(student, label, regions)[1] == {}
    with pytest.raises(ValueError, match="at least one term"):
        only(name, teacher_channels=None)
    with pytest.raises(ValueError, match="at least one term"):
        only(name, student_channels=None)


def test_the_quantity_and_the_camera_reach_the_points():
    module = only("geometric", geometric_points=50)
    found = []
    for quantity in QUANTITIES:
        student, label, regions = with_camera("disparity")
        label.disparity, label.quantity = label.disparity + 0.1, quantity
        found.append(float(module(student, label, regions)[1]["geometric"]))
        a, b, known = depths_to_compare(student.values, label.disparity, label.valid, quantity=quantity)
        expected = geometric_loss(a, b, regions.intrinsics, PointNet(), known, points=50)
        assert found[-1] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(found)) == 3
    regions.intrinsics = None
    assumed = geometric_loss(a, b, intrinsics_from_fov(16, 20, 60.0, vertical=True), PointNet(), known, points=50)
    assert float(module(student, label, regions)[1]["geometric"]) == pytest.approx(float(assumed), rel=1e-5)


def test_a_label_says_what_its_teacher_predicts():
    oracle = Teacher(parse_teachers("oracle")[0], None)
    assert oracle.label(torch.rand(1, 3, 32, 32), torch.rand(1, 32, 32) + 1).quantity == "metric_depth"
    model = load_model("distilldepth-mini")
    for quantity in QUANTITIES:
        teacher = Teacher(parse_teachers("distilldepth-mini")[0], model)
        teacher.info = model.info.__class__(**{**vars(model.info), "quantity": quantity})
        label = teacher.label(torch.rand(1, 3, 32, 64), None)
        assert (label.quantity, label.inverse_depth) == (quantity, quantity == "metric_depth")
        assert bool((label.disparity < 0).all()) == (quantity == "depth")


def test_nothing_waits_for_the_device(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    # A fake tensor has no values: whatever would wait for one raises instead. On the CPU only looks at masks and
    # cameras do.
    for name in ("losses.normalise", "ops.backproject"):
        monkeypatch.setattr(importlib.import_module(f"distilldepth.{name}"), "values_are_checked", lambda tensor: False)
    with FakeTensorMode():
        for name in NAMES:
            if name == "geometric":  # Its network cannot be made of fake tensors.
                continue
            data = student, _, _ = with_camera()
            student.values.requires_grad_()
            student.features["encoder"].requires_grad_()
            only(name)(*data)[0].backward()
            assert student.values.grad is not None


# --- runs ------------------------------------------------------------------------------------------------------------

RUN = [
    "--teachers", "dav2-mini", "--student", "light-mini", "--size", "32x64", "--batch-size", "2", "--workers", "0",
    "--heldout", "0", "--precision", "float32", "--teacher-precision", "float32", "--offline",
    "--log", "none", "--set", "crop.min_crop=32", "--set", "crop.patches=0", "--set", "agreement_every=0",
    "--set", "log_every=1", "--set", "loss.local_global=0", "--set", "loss.feature=0", "--set", "loss.gradient=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("label-free") / "photos")


def run(photos, out, *arguments):
    result = CliRunner().invoke(cli, ["distill", *RUN, "--images", str(photos), "--out", str(out), *arguments])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_each_term(name, photos, tmp_path):
    alone = ["--set", "loss.shared_context=0"] if TERMS[name].teaches else []
    rows = run(photos, tmp_path / "run", "--steps", "3", "--set", f"loss.{name}=0.5", *alone)
    terms = {name, "anchor"} | ({"shared_context"} - ({"shared_context"} if alone else set()))
    assert [set(row["terms"]) for row in rows] == [terms] * 3
    assert all(row["skipped"] == 0 and row["terms"][name] > 0 for row in rows)
    assert all(math.isfinite(row["grad_norm"]) for row in rows)
    assert load_config(file=tmp_path / "run" / "config.toml").loss.__dict__[name] == 0.5


def test_a_run_with_all_of_them_goes_on_bit_for_bit(photos, tmp_path):
    chosen = [value for name in NAMES for value in ("--set", f"loss.{name}=0.1")]
    arguments = ["--steps", "4", "--set", "checkpoint_every=2", "--set", "keep_checkpoints=3", *chosen]
    run(photos, tmp_path / "whole", *arguments)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step-00000004", "student"):
        shutil.rmtree(tmp_path / "cut" / name)
    rows = run(photos, tmp_path / "cut", *arguments, "--resume", "auto")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[-1]["terms"]) == {*NAMES, "shared_context", "anchor"}
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
