"""Resize policies against the sizes that the official code and transformers' processor give."""

from __future__ import annotations

import pytest
import torch

from distilldepth.models.preprocess import Preprocessing, resize, target_size

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


def test_resize_keeps_what_has_the_size_and_corners_where_they_are():
    maps = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert resize(maps, (5, 7), "bicubic") is maps
    larger = resize(maps, (9, 20), "bilinear-corners")
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert larger[0, 0, row, column] == maps[0, 0, row, column]
    for interpolation in ("bicubic", "bilinear", "bilinear-antialias"):
        assert resize(maps, (3, 4), interpolation).shape == (1, 1, 3, 4)
