"""backproject against projection, and the compacted cloud."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_gradient, assert_map

from distilldepth import ops, reference
from distilldepth.ops.backend import active_backend, available_backends
from distilldepth.reference.backproject import point_cloud


def make(batch=2, height=5, width=7, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand((batch, height, width), generator=g, dtype=torch.float64) * 9 + 0.5
    focal = torch.rand((batch, 2), generator=g, dtype=torch.float64) * 50 + 20
    matrix = torch.zeros(batch, 3, 3, dtype=torch.float64)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = focal[:, 0], focal[:, 1], 1
    matrix[:, 0, 2], matrix[:, 1, 2] = width * 0.4, height * 0.6
    valid = torch.rand((batch, height, width), generator=g) < 0.7
    return depth.to(device), matrix.to(device), valid.to(device)


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_projection_gives_the_pixels_back(seed, batch, height, width):
    depth, matrix, _ = make(batch, height, width, seed)
    points = ops.backproject(depth, matrix)
    projected = torch.einsum("bij,bhwj->bhwi", matrix, points)
    pixels = projected[..., :2] / projected[..., 2:]
    u = torch.arange(width, dtype=torch.float64).expand(batch, height, width)
    v = torch.arange(height, dtype=torch.float64)[:, None].expand(batch, height, width)
    assert_map(pixels[..., 0] + 1, u + 1, torch.float64)
    assert_map(pixels[..., 1] + 1, v + 1, torch.float64)
    assert torch.equal(points[..., 2], depth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 31, 45), (1, 1, 16385), (1, 16385, 1), (3, 130, 257)])
@pytest.mark.parametrize("masked", [False, True])
def test_precision(dtype, shape, masked, device):
    depth, matrix, valid = make(*shape, device=device)
    depth, matrix = depth.to(dtype), matrix.float()
    valid = valid if masked else None
    weight = torch.rand(*shape, 3, device=device)
    if shape[1] > 1000 and active_backend("backproject", depth) == "triton" and device.type == "cpu":
        pytest.skip("a program per row: minutes in Triton's interpreter")
    results = []
    for function, d, k in (
        (ops.backproject, depth, matrix),
        (reference.backproject, depth.double(), matrix.double()),
    ):
        d, k = d.clone().requires_grad_(), k.clone().requires_grad_()
        points = function(d, k, valid)
        (points.nan_to_num() * weight).sum().backward()
        results.append((points.detach(), d.grad, k.grad))
    assert results[0][0].dtype == torch.float32
    assert_map(results[0][0], results[1][0], dtype)
    assert_gradient(results[0][1], results[1][1], dtype)
    assert_gradient(results[0][2], results[1][2], torch.float32)


def test_gradcheck_and_zero_gradient_where_not_valid(device):
    depth, matrix, valid = make(device=device)
    depth.requires_grad_()
    scale = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]], device=device).double()
    entries = (matrix * scale).requires_grad_()

    def points(d, k):
        return ops.backproject(d, k * scale + torch.diag(torch.tensor([0, 0, 1.0], device=device)).double(), valid)

    torch.autograd.gradcheck(lambda d, k: points(d, k)[valid], (depth, entries))
    dirty = depth.detach().masked_fill(~valid, torch.nan).requires_grad_()
    got = ops.backproject(dirty, matrix, valid)
    assert got[~valid].isnan().all()
    assert torch.isfinite(got[valid]).all()
    leaf = matrix.clone().requires_grad_()
    ops.backproject(dirty, leaf, valid).nan_to_num().sum().backward()
    assert (dirty.grad[~valid] == 0).all()
    assert (dirty.grad[valid] != 0).all()
    assert torch.isfinite(leaf.grad).all()


def test_one_camera_serves_a_batch(device):
    depth, matrix, valid = make(device=device)
    one = ops.backproject(depth, matrix[0], valid)
    assert_map(one, ops.backproject(depth, matrix[:1].expand(2, 3, 3), valid), torch.float64)
    assert not torch.allclose(one[1].nan_to_num(), ops.backproject(depth, matrix, valid)[1].nan_to_num())


def test_empty_batches_and_layouts(device):
    depth, matrix, valid = make(device=device)
    assert ops.backproject(depth[:0], matrix[:0]).shape == (0, 5, 7, 3)
    assert ops.backproject(depth[:, :0], matrix).shape == (2, 0, 7, 3)
    assert ops.backproject(depth, matrix, torch.zeros_like(valid)).isnan().all()
    strided = depth.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.backproject(strided, matrix), ops.backproject(depth, matrix))


def test_cloud_has_the_valid_points_and_their_colours(device):
    depth, matrix, valid = make(device=device)
    image = torch.arange(2 * 3 * 5 * 7, device=device).view(2, 3, 5, 7).to(torch.uint8)
    points, colours = ops.point_cloud(depth, matrix, image, valid)
    assert points.shape == colours.shape == (int(valid.sum()), 3)
    assert colours.dtype == torch.uint8
    where = valid.nonzero()
    maps = reference.backproject(depth, matrix)
    for k in (0, len(where) // 2, len(where) - 1):
        b, i, j = where[k]
        assert torch.equal(points[k], maps[b, i, j])
        assert torch.equal(colours[k], image[b, :, i, j])
    everything, _ = ops.point_cloud(depth, matrix, image)
    assert torch.equal(everything, maps.reshape(-1, 3))
    with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\)"):
        ops.point_cloud(depth, matrix, image.permute(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("masked", [False, True])
def test_cloud_keeps_order_and_dtype(dtype, masked, device):
    depth, matrix, valid = make(3, 130, 257, device=device)
    image = (torch.rand(3, 3, 130, 257, device=device) * 2).to(dtype)
    for kept in (valid, torch.zeros_like(valid)) if masked else (None,):
        points, colours = ops.point_cloud(depth, matrix, image, kept)
        expected = point_cloud(depth, matrix, image, kept)
        assert colours.dtype == dtype
        assert torch.equal(colours, expected[1])
        assert points.shape == expected[0].shape
        if len(points):
            assert_map(points, expected[0], torch.float64)


def test_the_number_of_threads_does_not_matter(monkeypatch):
    depth, matrix, valid = make(2, 300, 257)
    depth, matrix = depth.float(), matrix.float()
    if "native" not in available_backends("backproject", "cpu"):
        pytest.skip("promised by the native library")
    # Of the CPU, whatever backend and device are under test.
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "native")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            d, k = depth.clone().requires_grad_(), matrix.clone().requires_grad_()
            points = ops.backproject(d, k, valid)
            points.nan_to_num().square().sum().backward()
            results.append((points.detach().nan_to_num(), d.grad, k.grad))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_mistakes_are_named():
    depth, matrix, valid = make()
    skewed, flat, broken = matrix.clone(), matrix.clone(), matrix.clone()
    skewed[0, 0, 1], flat[1, 1, 1], broken[1, 0, 2] = 0.5, 0, torch.nan
    cases = [
        (TypeError, "depth must be a floating", (depth.int(), matrix)),
        (ValueError, "depth must be", (depth[0], matrix)),
        (TypeError, "intrinsics must be a floating", (depth, matrix.int())),
        (ValueError, r"intrinsics must be \(3, 3\) or \(2, 3, 3\)", (depth, matrix[:1])),
        (ValueError, "intrinsics must be", (depth, matrix[:, :2])),
        (ValueError, "zero skew", (depth, skewed)),
        (ValueError, "intrinsics must be finite", (depth, broken)),
        (ValueError, "focal lengths other than 0", (depth, flat)),
        (ValueError, "valid must be", (depth, matrix, valid[0])),
    ]
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            ops.backproject(*args)
