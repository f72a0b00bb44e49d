"""Resize policies against the sizes that the official code and transformers' processor give."""

from __future__ import annotations

import pytest
import torch

from distilldepth.models.preprocess import Preprocessing, choose_policy, resize, target_size

OFFICIAL = Preprocessing(518, 14)


@pytest.mark.parametrize(
    ("image", "hf", "official"),
    [
        ((480, 640), (518, 686), (518, 686)),
        ((375, 1242), (518, 1722), (518, 1722)),
        ((2048, 1024), (1036, 518), (1036, 518)),
        ((200, 300), (350, 518), (518, 784)),
        ((400, 600), (350, 518), (518, 784)),
        ((1000, 100), (518, 56), (5180, 518)),
        ((427, 640), (350, 518), (518, 770)),
        ((240, 320), (392, 518), (518, 686)),
    ],
)
def test_sizes(image, hf, official):
    assert target_size(*image, OFFICIAL, policy="hf") == hf
    assert target_size(*image, OFFICIAL, policy="lower-bound") == official


@pytest.mark.parametrize("image", [(1, 1), (8, 5000), (5000, 8), (517, 519), (37, 1999)])
def test_bounds_hold_for_every_shape(image):
    for policy in ("lower-bound", "upper-bound", "square", "hf"):
        height, width = target_size(*image, OFFICIAL, policy=policy)
        assert height % 14 == width % 14 == 0
        assert min(height, width) >= 14
        if policy == "lower-bound":
            assert min(height, width) >= 518
        if policy == "upper-bound":
            assert max(height, width) <= 518
        if policy == "square":
            assert height == width == 518


def test_a_policy_or_size_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="policy must be one of"):
        target_size(10, 10, OFFICIAL, policy="lower")
    with pytest.raises(ValueError, match="at least 14"):
        target_size(10, 10, OFFICIAL, size=13)

    with pytest.raises(ValueError, match="at least 14"):
        target_size(10, 10, OFFICIAL, size=0)
    for size in (64.5, "64"):
        with pytest.raises(TypeError, match="whole number"):
            target_size(10, 10, OFFICIAL, size=size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size must be a whole number"),
        ({"multiple": 0}, "multiple must be a whole number"),
        ({"size": "518"}, "size must be a whole number"),
        ({"resize_policy": "lower"}, "resize_policy must be one of"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"interpolation": "bilinear-corners"}, "interpolation must be one of"),
        ({"map_interpolation": "corners"}, "map_interpolation must be one of"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
    ],
)
def test_what_no_network_can_want_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**({"size": 518, "multiple": 14} | wrong))


def test_a_policy_that_explodes_is_replaced_or_refused():
    assert choose_policy(480, 640, OFFICIAL) is None
    assert choose_policy(8, 5000, OFFICIAL) == "upper-bound"
    with pytest.raises(ValueError, match="518 x 323750"):
        choose_policy(8, 5000, OFFICIAL, "lower-bound")


def test_resize_keeps_what_has_the_size_and_corners_where_they_are():
    maps = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert resize(maps, (5, 7), "bicubic") is maps
    larger = resize(maps, (9, 20), "bilinear-corners")
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert larger[0, 0, row, column] == maps[0, 0, row, column]
    assert set(resize(maps, (9, 20), "nearest").flatten().tolist()) == set(maps.flatten().tolist())
    for interpolation in ("bicubic", "bilinear", "bilinear-antialias", "nearest"):
        assert resize(maps, (3, 4), interpolation).shape == (1, 1, 3, 4)
