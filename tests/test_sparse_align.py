"""Relative maps brought to points of known depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distilldepth.sparse.align import METHODS, REACH, align_to_points


def scene(seed: int, size: tuple[int, int] = (23, 37), points: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth `(2, H, W)` between 1.5 and 6 m, and that depth at some pixels."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.5, 6.0, (2, *size))
    sparse = np.zeros_like(depth)
    for image in range(2):
        chosen = rng.choice(depth[image].size, points, replace=False)
        sparse[image].flat[chosen] = depth[image].flat[chosen]
    return torch.from_numpy(depth).float(), torch.from_numpy(sparse).float()


def relative_of(depth: torch.Tensor, quantity: str) -> torch.Tensor:
    scale, shift = torch.tensor([2.5, 0.3])[:, None, None], torch.tensor([-4.0, 7.0])[:, None, None]
    return scale * (1 / depth if quantity == "disparity" else depth) + shift


def slow_least_squares(relative: np.ndarray, sparse: np.ndarray, inverse: bool) -> np.ndarray:
    """One map, float64, loops over points."""
    pairs = [(relative[y, x], sparse[y, x]) for y, x in np.argwhere(sparse > 0)]
    matrix = np.array([[value, 1.0] for value, _ in pairs])
    wanted = np.array([1 / depth if inverse else depth for _, depth in pairs])
    scale, shift = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    if scale <= 0:
        scale, shift = 0.0, wanted.mean()
    aligned = np.clip(scale * relative + shift, wanted.min() / REACH, wanted.max() * REACH)
    return 1 / aligned if inverse else aligned


@pytest.mark.parametrize("quantity", ["disparity", "depth", "metric_depth"])
@pytest.mark.parametrize("method", METHODS)
def test_an_affine_map_comes_back_as_depth(method, quantity):
    depth, sparse = scene(0)
    aligned = align_to_points(relative_of(depth, quantity), sparse, quantity=quantity, method=method)
    assert aligned.dtype == torch.float32
    torch.testing.assert_close(aligned, depth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantity", ["disparity", "depth"])
def test_least_squares_is_that_of_a_slow_loop(quantity):
    depth, sparse = scene(1)
    generator = torch.Generator().manual_seed(3)
    relative = relative_of(depth, quantity) + 0.4 * torch.randn(depth.shape, generator=generator)
    aligned = align_to_points(relative, sparse, quantity=quantity)
    for image in range(2):
        slow = slow_least_squares(relative[image].double().numpy(), sparse[image].double().numpy(), quantity != "depth")
        np.testing.assert_allclose(aligned[image].numpy(), slow, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_batch_do_not_touch_each_other(method):
    depth, sparse = scene(2)
    relative = relative_of(depth, "disparity") + 0.1 * depth.sin()
    together = align_to_points(relative, sparse, quantity="disparity", method=method)
    alone = align_to_points(relative[1:], sparse[1:], quantity="disparity", method=method)
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)
    sparse[0] = 0
    sparse[0, 3, 5] = 40.0
    other = align_to_points(relative, sparse, quantity="disparity", method=method)
    torch.testing.assert_close(other[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["trimmed", "ransac", "local"])
def test_a_few_outliers_do_not_move_the_robust_fits(method):
    depth, sparse = scene(3, points=100)
    places = torch.nonzero(sparse[0])[:5]
    sparse[0, places[:, 0], places[:, 1]] *= torch.tensor([0.2, 5.0, 0.3, 4.0, 0.25])
    relative = relative_of(depth, "disparity")
    aligned = align_to_points(relative, sparse, quantity="disparity", method=method)
    # `local` takes no point out, it lets one that is far off count little.
    close = 0.05 if method == "local" else 2e-3
    torch.testing.assert_close(aligned, depth, rtol=close, atol=close)
    pulled = align_to_points(relative, sparse, quantity="disparity", method="least-squares")
    assert (pulled - depth)[0].abs().mean() > 0.1


def test_local_follows_a_scale_that_changes_over_the_map():
    depth, sparse = scene(4, size=(60, 90), points=900)
    drift = torch.linspace(0.7, 1.4, 90)
    relative = 1 / (depth * drift)
    errors = {
        method: (align_to_points(relative, sparse, quantity="disparity", method=method) / depth - 1).abs().mean()
        for method in METHODS
    }
    assert errors["local"] < 0.5 * min(errors["least-squares"], errors["trimmed"])


def test_local_is_the_global_fit_far_from_the_points_and_where_they_are_few():
    # All points but one lie in a corner and fit; the one far off does not, and moves the map around itself alone.
    depth, _ = scene(5, size=(60, 200))
    relative = relative_of(depth, "disparity")
    sparse = torch.zeros_like(depth)
    sparse[:, 5:35:3, 5:35:3] = depth[:, 5:35:3, 5:35:3]
    sparse[:, 50, 180] = 1.015 * depth[:, 50, 180]
    local = align_to_points(relative, sparse, quantity="disparity", method="local")
    change = (local / depth - 1).abs()
    assert float(change[:, 50, 180].min()) > 0.005
    assert float(change[:, :40, :40].max()) < 1e-3
    # Far from both what is known is the fit of all points.
    assert float(change[:, :, 90:110].max()) < 5e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantity", ["disparity", "metric_depth"])
def test_whatever_comes_in_positive_depth_comes_out(method, quantity):
    depth, sparse = scene(6)
    wrong_way = -relative_of(depth, quantity)
    aligned = align_to_points(wrong_way, sparse, quantity=quantity, method=method)
    for image in range(2):
        points = sparse[image][sparse[image] > 0]
        assert float(aligned[image].min()) >= float(points.min()) / REACH * 0.999
        assert float(aligned[image].max()) <= float(points.max()) * REACH * 1.001
    wrong_way[0, 2, 3], wrong_way[1, 4, 5], wrong_way[1, 0, 0] = torch.nan, torch.inf, -torch.inf
    sparse[0, 0, 0], sparse[1, 1, 1], sparse[1, 2, 1] = torch.nan, -3.0, torch.inf
    aligned = align_to_points(wrong_way, sparse, quantity=quantity, method=method)
    assert bool((torch.isfinite(aligned) & (aligned > 0)).all())


@pytest.mark.parametrize("method", METHODS)
def test_few_points_and_constant_maps(method):
    depth, sparse = scene(7)
    sparse[0] = 0
    sparse[1] = 0
    sparse[1, 4, 6] = 2.5
    aligned = align_to_points(relative_of(depth, "disparity"), sparse, quantity="disparity", method=method)
    assert bool((aligned[0] == 1).all())
    torch.testing.assert_close(aligned[1], torch.full_like(depth[1], 2.5), rtol=1e-5, atol=1e-5)
    _, sparse = scene(7)
    flat = align_to_points(torch.full_like(depth, 0.3), sparse, quantity="disparity", method="least-squares")
    for image in range(2):
        points = sparse[image][sparse[image] > 0]
        expected = (1 / (1 / points).mean()).expand(depth.shape[1:])
        torch.testing.assert_close(flat[image], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_change_with_the_unit(method):
    # Fits must not know absolute numbers: a room in metres, or in kilometres.
    depth, sparse = scene(8)
    relative = relative_of(depth, "disparity") + 0.2 * depth.cos()
    metres = align_to_points(relative, sparse, quantity="disparity", method=method)
    other = align_to_points(1000 * relative + 4, sparse / 1000, quantity="disparity", method=method)
    torch.testing.assert_close(1000 * other, metres, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["least-squares", "trimmed", "local"])
def test_points_that_are_gathered_and_points_in_place_give_the_same(method, monkeypatch):
    # Off the CPU the number of points stays on the device, and all pixels take part with a mask.
    depth, sparse = scene(9)
    relative = relative_of(depth, "disparity") + 0.2 * depth.cos()
    gathered = align_to_points(relative, sparse, quantity="disparity", method=method)
    monkeypatch.setattr("distilldepth.sparse.align.GATHERED_ON", ())
    in_place = align_to_points(relative, sparse, quantity="disparity", method=method)
    torch.testing.assert_close(in_place, gathered, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_named():
    depth, sparse = scene(10)
    with pytest.raises(ValueError, match=r"method must be one of .*did you mean 'trimmed'"):
        align_to_points(depth, sparse, quantity="disparity", method="trimed")
    with pytest.raises(ValueError, match="quantity must be one of"):
        align_to_points(depth, sparse, quantity="inverse")
    with pytest.raises(ValueError, match=r"both be \(B, H, W\)"):
        align_to_points(depth[0], sparse[0], quantity="depth")
    with pytest.raises(ValueError, match=r"both be \(B, H, W\)"):
        align_to_points(depth, sparse[:, 1:], quantity="depth")
    with pytest.raises(TypeError, match="sparse must be a floating tensor"):
        align_to_points(depth, sparse.long(), quantity="depth")
    assert align_to_points(depth[:0], sparse[:0], quantity="depth").shape == (0, 23, 37)
