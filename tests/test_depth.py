"""Conversions between depth, inverse depth, disparity and stereo disparity, and the camera of a field of view."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distilldepth.depth import depth_to_inverse_depth, intrinsics_from_fov, stereo_disparity_to_depth, to_disparity
from distilldepth.ops import backproject


def test_inverse_depth_of_no_point_is_nan():
    depth = torch.tensor([0.5, 4.0, torch.inf, 0.0, -1.0, torch.nan])
    got = depth_to_inverse_depth(depth)
    assert got[:3].tolist() == [2.0, 0.25, 0.0]
    assert got[3:].isnan().all()


def test_every_quantity_is_brought_to_larger_is_nearer():
    near_to_far = torch.tensor([1.0, 2.0, 5.0])
    assert torch.equal(to_disparity(near_to_far, "metric_depth"), 1 / near_to_far)
    assert torch.equal(to_disparity(near_to_far, "depth"), -near_to_far)
    assert torch.equal(to_disparity(near_to_far, "disparity"), near_to_far)
    for quantity in ("metric_depth", "depth"):
        assert (to_disparity(near_to_far, quantity).diff() < 0).all()
    with pytest.raises(ValueError, match="quantity must be disparity, depth or metric_depth, got 'inverse'"):
        to_disparity(near_to_far, "inverse")


def test_stereo_disparity():
    got = stereo_disparity_to_depth(torch.tensor([10.0, 50.0, 0.0, -2.0]), focal_px=500.0, baseline_m=0.2)
    assert got.tolist() == [10.0, 2.0, math.inf, math.inf]


def test_an_array_is_refused_with_what_to_do():
    array = np.ones((2, 3), np.float32)
    for call in (
        lambda: depth_to_inverse_depth(array),
        lambda: to_disparity(array, "metric_depth"),
        lambda: stereo_disparity_to_depth(array, 500.0, 0.1),
    ):
        with pytest.raises(TypeError, match=r"must be a tensor, got ndarray; use torch\.as_tensor"):
            call()


@pytest.mark.parametrize("fov_deg", [30.0, 60.0, 120.0])
def test_intrinsics_span_the_field_of_view(fov_deg):
    height, width = 48, 64
    intrinsics = intrinsics_from_fov(height, width, fov_deg)
    focal_px, center = float(intrinsics[0, 0]), float(intrinsics[0, 2])
    # The edges of the outer pixels, half a pixel beyond their centres, lie on the field of view.
    left, right = (-0.5 - center) / focal_px, (width - 0.5 - center) / focal_px
    assert math.degrees(math.atan(right) - math.atan(left)) == pytest.approx(fov_deg, rel=1e-5)
    assert intrinsics[0, 0] == intrinsics[1, 1]
    points = backproject(torch.ones(1, height, width), intrinsics)[0]
    assert points.mean((0, 1)).tolist() == pytest.approx([0, 0, 1], abs=1e-5)


@pytest.mark.parametrize("fov_deg", [0.0, 180.0, -5.0, math.nan])
def test_a_field_of_view_outside_its_range_is_refused(fov_deg):
    with pytest.raises(ValueError, match="fov_deg must be between 0 and 180"):
        intrinsics_from_fov(10, 10, fov_deg)
