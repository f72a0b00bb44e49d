"""align against numpy's least squares, in degenerate cases, and against the published numbers of trivial predictors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import PUBLISHED_DIGITS, assert_map

from distilldepth.alignment import align
from distilldepth.datasets.rgbd import open_rgbd
from distilldepth.metrics import depth_metrics

RGBD = Path(__file__).resolve().parents[2] / "shared" / "data" / "rgbd"

PUBLISHED = {
    "icl_nuim": (5, 0.252, 0.506, 0.244, 0.504),
    "kitti2012": (13, 0.389, 0.348, 0.627, 0.505),
    "kitti_object": (5, 0.391, 0.324, 0.319, 0.539),
    "marigold_dc": (1, 0.290, 0.422, 0.271, 0.544),
    "middlebury": (4, 0.342, 0.246, 0.224, 0.599),
    "mosd": (10, 0.196, 0.621, 0.065, 0.953),
    "nuscenes": (6, 0.521, 0.194, 6.293, 0.467),
    "nyu": (6, 0.406, 0.232, 0.306, 0.416),
    "priorda": (3, 0.224, 0.576, 0.165, 0.715),
    "redwood": (5, 0.220, 0.545, 0.164, 0.689),
    "seven_scenes": (20, 0.318, 0.321, 0.190, 0.646),
    "slambook_rgbd": (3, 0.398, 0.302, 0.320, 0.376),
    "sunrgbd": (2, 0.343, 0.362, 0.293, 0.522),
    "tri_dgp": (7, 0.620, 0.206, 7.125, 0.389),
    "tum": (3, 0.207, 0.626, 0.189, 0.724),
}
"""Frames, then AbsRel and delta1 of a constant and of a vertical ramp, per-image means."""


def make(shape=(3, 9, 11), seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(shape, generator=g, dtype=torch.float64) * 8 + 0.5
    prediction = 4 / depth - 2 + 0.3 * torch.randn(shape, generator=g, dtype=torch.float64)
    valid = torch.rand(shape, generator=g) < 0.7
    return prediction.to(device), depth.to(device), valid.to(device)


@pytest.mark.parametrize("space", ["disparity", "depth"])
def test_least_squares_equals_numpy(space, device):
    prediction, depth, valid = make(device=device)
    got = align(prediction, depth, valid, space=space)
    for b in range(3):
        p, t = prediction[b][valid[b]].cpu().numpy(), depth[b][valid[b]].cpu().numpy()
        t = 1 / t if space == "disparity" else t
        scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), t, rcond=None)[0]
        assert float(got.scale[b]) == pytest.approx(scale, rel=1e-9)
        assert float(got.shift[b]) == pytest.approx(shift, rel=1e-9)
        aligned = np.maximum(scale * prediction[b].cpu().numpy() + shift, 0.001 * t.max())
        assert_map(
            got.depth[b].cpu(), torch.from_numpy(1 / aligned if space == "disparity" else aligned), torch.float64
        )
    assert (got.scale < 0).all() == (space == "depth"), "a fit in the other orientation turns the map round"


def test_perfect_predictions_come_back(device):
    _, depth, valid = make(device=device)
    assert_map(align(7 / depth - 3, depth, valid).depth, depth, torch.float64)
    assert_map(align(0.1 * depth + 3, depth, valid, space="depth").depth, depth, torch.float64)
    assert_map(align(5 * depth, depth, valid, space="depth", method="median").depth, depth, torch.float64)
    assert_map(align(5 / depth, depth, valid, method="median").depth, depth, torch.float64)
    assert_map(align(depth, depth, valid, space="depth", method="none").depth, depth, torch.float64)
    assert_map(align(1 / depth, depth, valid, method="none").depth, depth, torch.float64)


def test_float32_maps_far_from_zero_lose_no_digits(device):
    _, depth, valid = make(device=device)
    prediction = (1 / depth + 1000).float()
    got = align(prediction, depth.float(), valid)
    again = align(prediction.double(), depth.float().double(), valid)
    torch.testing.assert_close(got.scale, again.scale)
    assert got.scale.dtype == torch.float64
    assert got.depth.dtype == torch.float32


def test_the_floor_is_a_share_of_the_largest_valid_inverse_depth(device):
    depth = torch.tensor([[1.0, 2.0, 4.0, 0.01]], device=device, dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False]], device=device)
    prediction = torch.tensor([[1.0, 0.5, 0.25, -50.0]], device=device, dtype=torch.float64)
    got = align(prediction, depth, valid)
    assert_map(got.depth, torch.tensor([[1.0, 2.0, 4.0, 1000.0]], device=device, dtype=torch.float64), torch.float64)


def test_one_map_is_a_batch_of_one(device):
    prediction, depth, valid = make(device=device)
    batch, single = align(prediction, depth, valid), align(prediction[1], depth[1], valid[1])
    assert single.scale.shape == ()
    assert torch.equal(single.depth, batch.depth[1])
    assert torch.equal(align(prediction, depth).depth, align(prediction, depth, torch.ones_like(valid)).depth)


def test_degenerate_fits(device):
    prediction, depth, valid = make(device=device)
    for value in (0.1, 1 / 3, 1e9 / 7):  # their means are a rounding error away from them
        constant = align(torch.full_like(prediction, value), depth, valid)
        for b in range(3):
            mean = float((1 / depth[b][valid[b]]).mean())
            assert float(constant.scale[b]) == 0
            assert float(constant.shift[b]) == pytest.approx(mean)
            torch.testing.assert_close(constant.depth[b], torch.full_like(depth[b], 1 / mean))
    few = torch.zeros_like(valid)
    few[1, 2, 3] = few[2, 2, 3] = few[2, 4, 5] = True  # none, one, two valid pixels
    got = align(prediction, depth, few)
    assert got.scale[0].isnan()
    assert got.shift[0].isnan()
    assert got.depth[0].isnan().all()
    assert got.scale[1] == 0
    torch.testing.assert_close(got.depth[1], depth[1, 2, 3].expand(9, 11))
    torch.testing.assert_close(got.depth[2][few[2]], depth[2][few[2]])
    assert align(prediction[:0], depth[:0]).depth.shape == (0, 9, 11)
    assert align(prediction[:, :0], depth[:, :0]).scale.isnan().all()
    for method in ("median", "none"):
        assert align(prediction, depth, few, method=method).depth[0].isnan().all()


def test_what_is_not_valid_does_not_matter_and_what_is_must_be_finite(device):
    prediction, depth, valid = make(device=device)
    clean = align(prediction, depth, valid)
    for rubbish in (torch.nan, torch.inf, 0.0, -1.0):
        dirty = align(prediction.masked_fill(~valid, torch.nan), depth.masked_fill(~valid, rubbish), valid)
        assert torch.equal(dirty.scale, clean.scale)
        assert torch.equal(dirty.depth[valid], clean.depth[valid])
    valid[1, 2, 3] = True
    for rubbish in (torch.nan, torch.inf):
        broken = prediction.clone()
        broken[1, 2, 3] = rubbish
        got = align(broken, depth, valid)
        assert got.scale.isnan().tolist() == [False, True, False]
        assert got.depth.flatten(1).isnan().all(1).tolist() == [False, True, False]


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-100, 100), st.booleans())
def test_scale_shift_and_sign_of_the_prediction_do_not_matter(seed, scale, shift, flip):
    prediction, depth, valid = make(seed=seed)
    moved = (-scale if flip else scale) * prediction + shift
    torch.testing.assert_close(
        align(moved, depth, valid).depth, align(prediction, depth, valid).depth, rtol=1e-6, atol=0
    )


def test_l1_is_the_best_line_through_two_pixels(device):
    # Some optimum of a sum of absolute deviations passes through two points, so trying all pairs finds it.
    g = torch.Generator().manual_seed(3)
    depth = torch.rand((2, 4, 5), generator=g, dtype=torch.float64) * 8 + 0.5
    prediction = depth + torch.randn((2, 4, 5), generator=g, dtype=torch.float64)
    valid = torch.rand((2, 4, 5), generator=g) < 0.8
    got = align(prediction.to(device), depth.to(device), valid.to(device), space="depth", method="l1")
    for image in range(2):
        p, t = prediction[image][valid[image]].numpy(), depth[image][valid[image]].numpy()
        lines = [(s, t[i] - s * p[i]) for i in range(len(p)) for j in range(i) for s in [(t[i] - t[j]) / (p[i] - p[j])]]
        costs = [np.sum(np.abs(s * p + b - t) / t) for s, b in lines]
        found = np.sum(np.abs(float(got.scale[image]) * p + float(got.shift[image]) - t) / t)
        assert found == pytest.approx(min(costs), rel=1e-9)
        assert np.allclose([float(got.scale[image]), float(got.shift[image])], lines[int(np.argmin(costs))])


def test_l1_takes_the_valid_pixel_nearest_to_the_centre_of_a_cell(device):
    # 6 x 9 in a grid of 2: cells of 3 rows and 5 or 4 columns. Only one pixel of a cell is perfect, the nearest.
    depth = torch.rand((1, 6, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    prediction = torch.full_like(depth, 50.0)
    valid = torch.ones_like(depth, dtype=torch.bool)
    nearest = [(1, 2), (1, 6), (4, 2), (4, 6)]  # the fourth cell spans columns 5 to 8: 6 and 7 tie, the first wins
    for y, x in nearest:
        prediction[0, y, x] = 0.5 * depth[0, y, x] - 0.1
    options = {"space": "depth", "method": "l1", "grid": 2}
    got = align(prediction.to(device), depth.to(device), valid.to(device), **options)
    assert float(got.scale) == pytest.approx(2)
    assert float(got.shift) == pytest.approx(0.2)
    valid[0, 1, 2] = False
    assert float(align(prediction.to(device), depth.to(device), valid.to(device), **options).scale) != pytest.approx(2)
    valid[0, :3, :5] = False
    assert float(align(prediction.to(device), depth.to(device), valid.to(device), **options).scale) == pytest.approx(2)


@pytest.mark.parametrize("method", ["l1", "ransac"])
@pytest.mark.parametrize("space", ["disparity", "depth"])
def test_robust_fits_do_not_see_outliers(method, space, device):
    _, depth, _ = make((3, 40, 50), device=device)
    prediction = ((1 / depth if space == "disparity" else depth) - 0.3) / 2.5
    g = torch.Generator().manual_seed(1)
    wrong = (torch.rand(depth.shape, generator=g) < 0.2).to(device)
    noise = torch.rand(depth.shape, generator=g, dtype=torch.float64).to(device)
    # Wrong truth and not wrong predictions: no fit by distances along t is safe from outliers far out in the latter.
    depth = torch.where(wrong, 3 + 20 * noise if space == "depth" else 1 / (3 + 20 * noise), depth)
    got = align(prediction, depth, space=space, method=method)
    plain = align(prediction, depth, space=space)
    tolerance = {"rtol": 0.02, "atol": 0} if method == "ransac" else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(got.scale, torch.full_like(got.scale, 2.5), **tolerance)
    assert (plain.scale - 2.5).abs().min() > 0.05
    again = align(prediction, depth, space=space, method=method)
    assert torch.equal(got.scale, again.scale)
    alone = align(prediction[1], depth[1], space=space, method=method)
    torch.testing.assert_close(alone.scale, got.scale[1])


@pytest.mark.parametrize("method", ["l1", "ransac"])
def test_robust_fits_in_degenerate_cases(method, device):
    prediction, depth, valid = make(device=device)
    few = torch.zeros_like(valid)
    few[1, 2, 3] = few[2, 2, 3] = few[2, 4, 5] = True
    got = align(prediction, depth, few, method=method)
    assert got.depth[0].isnan().all()
    assert got.scale[1] == 0
    torch.testing.assert_close(got.depth[1], depth[1, 2, 3].expand(9, 11))
    torch.testing.assert_close(got.depth[2][few[2]], depth[2][few[2]])
    assert align(prediction[:0], depth[:0], method=method).depth.shape == (0, 9, 11)
    broken = prediction.clone()
    broken[1][valid[1]] = torch.nan
    clean, dirty = align(prediction, depth, valid, method=method), align(broken, depth, valid, method=method)
    assert dirty.scale.isnan().tolist() == [False, True, False]
    assert torch.equal(dirty.scale[[0, 2]], clean.scale[[0, 2]])
    rubbish = align(
        prediction.masked_fill(~valid, torch.nan), depth.masked_fill(~valid, torch.inf), valid, method=method
    )
    assert torch.equal(rubbish.scale, clean.scale)


def test_mistakes_are_named():
    prediction, depth, valid = make()
    cases = [
        (ValueError, "grid must not be negative", (prediction, depth, valid), {"grid": -1}),
        (ValueError, "did you mean 'disparity'", (prediction, depth, valid), {"space": "disparty"}),
        (ValueError, "did you mean 'least-squares'", (prediction, depth, valid), {"method": "least_squares"}),
        (ValueError, "target must have the shape", (prediction, depth[:2], valid), {}),
        (TypeError, "prediction must be a floating", (prediction.int(), depth, valid), {}),
        (TypeError, "valid must be bool", (prediction, depth, valid.int()), {}),
    ]
    for error, message, args, options in cases:
        with pytest.raises(error, match=message):
            align(*args, **options)


@pytest.mark.skipif(not RGBD.is_dir(), reason="real RGB-D frames are not beside the checkout")
@pytest.mark.parametrize("dataset", PUBLISHED)
def test_trivial_predictors_score_what_is_published(dataset):
    source = open_rgbd(RGBD / f"{dataset}.jsonl")
    rows = []
    for entry_number in range(len(source)):
        sample = source[entry_number]
        target, valid = torch.from_numpy(sample["target"]), torch.from_numpy(sample["valid"])
        depth = target if sample["kind"] == "depth" else 1 / target.where(valid, torch.ones(()))
        depth = depth.where(valid, torch.ones(()))
        ramp = torch.linspace(0, 1, len(depth))[:, None].expand_as(depth)
        row = []
        for prediction in (torch.ones_like(depth), ramp):
            scores = depth_metrics(align(prediction, depth, valid).depth, depth, valid)
            row += [scores["abs_rel"], scores["delta1"]]
        rows.append(row)
    frames, *published = PUBLISHED[dataset]
    assert len(rows) == frames
    assert np.mean(rows, 0) == pytest.approx(published, abs=1.01 * PUBLISHED_DIGITS)
