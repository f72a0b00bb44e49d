"""Models of two views in Python: pairs in every form, pixels into metres at any size, exchanged views."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stereo_pairs import MetricReader, Reader, a_pair
from torch.nn import functional as F

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.stereo import RightView, _shifts, are_swapped, check_camera
from distilldepth.models import create_student, load_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.newcrfs import with_two_views
from distilldepth.models.families.psmnet import build
from distilldepth.scenes import render_scene
from distilldepth.words import RESIZE_POLICIES

TINY = {"width": 2, "depths": [1, 1, 1, 1], "cells": [2], "max_disparity": 32, "align_corners": True}


def tiny_psmnet():
    torch.manual_seed(3)
    return build(TINY, ModelInfo("tiny", "psmnet", "disparity", "MIT", "random")).eval()


def as_file(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


FORMS = {
    "array": lambda image: image,
    "float array": lambda image: image.astype(np.float64) / 255,
    "tensor": as_tensor,
    "float tensor": lambda image: as_tensor(image).float() / 255,
    "bytes": as_file,
    "picture": Image.fromarray,
}


@pytest.mark.parametrize("left_form", FORMS)
@pytest.mark.parametrize("right_form", ["array", "float tensor"])
def test_a_pair_in_every_form(left_form, right_form):
    left, right, disparity = a_pair(1)
    model = Reader()
    found = model.predict(FORMS[left_form](left), right=FORMS[right_form](right))
    assert (found.quantity, found.model, found.values.shape) == ("disparity", "reader", (40, 64))
    np.testing.assert_allclose(found.values, disparity, rtol=2e-2)
    metres = model.predict(FORMS[left_form](left), right=FORMS[right_form](right), focal_px=80, baseline_m=0.3)
    assert metres.quantity == "metric_depth"
    np.testing.assert_allclose(metres.values, 80 * 0.3 / disparity, rtol=2e-2)


def test_a_path(tmp_path):
    left, right, _ = a_pair(2)
    for name, image in (("l.png", left), ("r.png", right)):
        (tmp_path / name).write_bytes(as_file(image))
    model = Reader()
    found = model.predict(tmp_path / "l.png", right=str(tmp_path / "r.png"))
    np.testing.assert_array_equal(found.values, model.predict(left, right=right).values)


def test_lists_have_their_own_sizes_and_cameras():
    pairs = [a_pair(seed, size) for seed, size in enumerate([(40, 64), (32, 52), (40, 64)])]
    lefts, rights = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = Reader().predict(lefts, right=rights, focal_px=[50, 60.5, np.float32(70)], baseline_m=0.2, batch_size=2)
    for one, (_, _, disparity), focal in zip(found, pairs, (50, 60.5, 70), strict=True):
        assert one.quantity == "metric_depth"
        np.testing.assert_allclose(one.values, focal * 0.2 / disparity, rtol=2e-2)
    assert Reader().predict([], right=[], focal_px=1, baseline_m=1) == []


def test_batches():
    pairs = [a_pair(seed) for seed in range(3)]
    lefts, rights = (torch.stack([as_tensor(pair[side]) for pair in pairs]) for side in (0, 1))
    model = Reader()
    found = model.predict(lefts, right=rights, focal_px=torch.tensor([50.0, 60, 70]), baseline_m=0.2, batch_size=2)
    assert (found.values.shape, found.quantity) == ((3, 40, 64), "metric_depth")
    for values, (left, right, _), focal in zip(found.values, pairs, (50, 60, 70), strict=True):
        alone = model.predict(left, right=right, focal_px=focal, baseline_m=0.2)
        np.testing.assert_allclose(values, alone.values, rtol=1e-5)
    arrays = model.predict(np.stack([pair[0] for pair in pairs]), right=np.stack([pair[1] for pair in pairs]))
    assert (arrays.values.shape, arrays.quantity) == ((3, 40, 64), "disparity")
    nothing = model.predict(lefts[:0], right=rights[:0], focal_px=5.0, baseline_m=0.1)
    assert (nothing.values.shape, nothing.quantity) == ((0, 40, 64), "metric_depth")


LEFT, RIGHT, _ = a_pair(0)


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "message"),
    [
        (Reader(), {}, UsageError, "reader sees two views of a scene, and there is one here; give the right view"),
        (Reader(), {"focal_px": 5, "baseline_m": 1}, UsageError, "and there is one here; give the right view"),
        (Reader(), {"right": RIGHT[:, :-1]}, ValueError, "both views must have one size, got 40 x 64 left and 40 x 63"),
        (Reader(), {"right": [RIGHT, RIGHT]}, ValueError, "each image needs its right view, got 1 left and 2 right"),
        (Reader(), {"right": RIGHT, "focal_px": 9}, ValueError, "focal_px is given without baseline_m; disparity"),
        (Reader(), {"right": RIGHT, "baseline_m": 9}, ValueError, "baseline_m is given without focal_px; disparity"),
        (
            Reader(),
            {"right": RIGHT, "focal_px": 0, "baseline_m": 1},
            ValueError,
            "focal_px must be positive and finite",
        ),
        (Reader(), {"right": RIGHT, "focal_px": 1, "baseline_m": float("inf")}, ValueError, "baseline_m must be pos"),
        (Reader(), {"right": RIGHT, "focal_px": [1, 2], "baseline_m": 1}, ValueError, "one for each of 1 pairs, got 2"),
        (Reader(), {"right": RIGHT, "focal_px": "7", "baseline_m": 1}, TypeError, "focal_px must be a number, got '7'"),
        (Reader(), {"right": RIGHT, "focal_px": [None], "baseline_m": 1}, TypeError, "must be a number, got None"),
        (Reader(), {"right": 5}, TypeError, ""),
        (create_student("light-mini"), {"right": RIGHT}, UsageError, "light-mini sees one view of a scene; leave the"),
        (create_student("light-mini"), {"focal_px": 5.0}, UsageError, "leave the right view and its camera out"),
    ],
)
def test_what_does_not_fit_is_one_line(model, arguments, kind, message):
    with pytest.raises(kind) as caught:
        model.predict(LEFT, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_metres_needs_no_camera():
    metric = MetricReader()
    left, right, disparity = a_pair(4)
    found = metric.predict(left, right=right)
    np.testing.assert_allclose(found.values, 64 / disparity, rtol=2e-2)
    again = metric.predict(left, right=right, focal_px=3.0, baseline_m=9.0)
    assert found.quantity == again.quantity == "metric_depth"
    np.testing.assert_array_equal(found.values, again.values)
    wide = with_two_views(create_student("newcrfs-micro", seed=1)).eval()
    values = wide.predict(left, right=right, size=64).values
    assert values.shape == (40, 64)
    assert np.abs(values - wide.predict(left, right=left, size=64).values).max() > 0


# --- metres whatever the size ---


@settings(max_examples=40)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 90),
    size=st.one_of(st.none(), st.integers(8, 120)),
    policy=st.sampled_from([None, *RESIZE_POLICIES]),
)
def test_metres_are_the_same_at_any_size(height, width, size, policy):
    left = np.full((height, width, 3), 120, np.uint8)
    right = np.full((height, width, 3), 8, np.uint8)
    found = Reader().predict(left, right=right, focal_px=100, baseline_m=0.5, size=size, policy=policy)
    wanted = 100 * 0.5 / ((120 - 8) / 64 / 64 * width)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4)


@pytest.mark.parametrize("size", [(20, 32), (64, 100), (40, 96)])
def test_a_pair_that_is_resized_itself_has_another_focal_length_and_the_same_metres(size):
    left, right, _ = a_pair(5, (40, 64))
    smaller = [
        np.asarray(Image.fromarray(view).resize(size[::-1], Image.Resampling.BILINEAR)) for view in (left, right)
    ]
    model = Reader(multiple=1)
    whole = model.predict(left, right=right, focal_px=100, baseline_m=0.5).values
    other = model.predict(smaller[0], right=smaller[1], focal_px=100 * size[1] / 64, baseline_m=0.5).values
    back = F.interpolate(torch.from_numpy(other)[None, None], (40, 64), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(back, whole, rtol=0.03)


def test_psmnet_sees_another_size_if_it_is_asked_for():
    model, images = tiny_psmnet(), torch.rand(2, 6, 41, 70)
    inner = F.interpolate(images, (28, 48), mode="bilinear", align_corners=False)
    wanted = F.interpolate(model(inner).values[:, None], (41, 70), mode="bilinear", align_corners=False)[:, 0] * 70 / 48
    found = model.estimate(images, size=48)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-4)
    square = model.estimate(images, size=32, policy="square")
    assert square.shape == (2, 41, 70)
    assert not torch.allclose(square, found, rtol=0.01)
    torch.testing.assert_close(model.estimate(images), model(images).values, rtol=1e-5, atol=1e-5)


# --- exchanged views ---


def test_shifts_are_those_of_a_moved_texture():
    rng = np.random.default_rng(2)
    scene = rng.normal(size=(54, 120)).astype(np.float32)
    for shift in (-9, -1, 0, 3, 17):
        start = 20 + max(shift, 0)
        left = scene[:, 20:100]
        right = scene[:, 20 + shift : 100 + shift]
        found = _shifts(left, right)
        assert len(found) > 20, start
        assert (found == shift).all()
    assert len(_shifts(scene[:, :80], rng.normal(size=(54, 80)).astype(np.float32))) < 24
    assert len(_shifts(np.zeros((54, 80), np.float32), np.zeros((54, 80), np.float32))) == 0


def test_exchanged_views_of_scenes_are_found():
    told, wrong = [], []
    for seed in (0, 2, 3, 4, 6):
        scene = render_scene(seed, (72, 96), stereo=True)
        wrong.append(are_swapped(scene.image, scene.right))
        told.append(are_swapped(scene.right, scene.image))
    assert not any(wrong)
    assert sum(told) >= 4


def test_nothing_is_said_of_views_that_say_nothing():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)
    other = rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)
    stripes = np.tile(np.array([0, 0, 255, 255], np.uint8)[None, :, None], (60, 20, 3))
    flat = np.full((60, 90, 3), 9, np.uint8)
    pairs = [(noise, noise), (noise, other), (flat, flat), (stripes, np.roll(stripes, 1, 1))]
    for left, right in (*pairs, (noise[:3], other[:3]), (noise[:1, :1], noise[:1, :1])):
        assert not are_swapped(left, right)


def test_python_warns_of_exchanged_views():
    scene = render_scene(3, (72, 96), stereo=True)
    model = tiny_psmnet()
    with pytest.warns(UserWarning, match="the views of the pair look exchanged"):
        model.predict(scene.right, right=scene.image)
    with pytest.warns(UserWarning, match=r"the views of 1 of 2 pairs \(first: 1\) look exchanged"):
        model.predict([scene.image, scene.right], right=[scene.right, scene.image])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(scene.image, right=scene.right)


def test_cameras_and_sizes_are_checked():
    with pytest.raises(ValueError, match=r"^x: baseline_m is given without focal_px"):
        check_camera(None, 0.5, "x")
    check_camera(None, None, "x")
    view = RightView(RIGHT, 100.0, 0.5)
    assert (view.factor, RightView(RIGHT, 100.0).factor, RightView(RIGHT).factor) == (50.0, None, None)
    view.check_size(LEFT)
    with pytest.raises(DistillDepthError, match="the left view is 39 x 64 and the right one 40 x 64"):
        view.check_size(LEFT[1:])


def test_models_of_one_view_are_as_they_were():
    model = load_model("distilldepth-mini")
    assert (model.views, model.in_pixels, model.own_size) == (1, False, False)
    assert model.predict(LEFT, size=64).values.shape == (40, 64)
