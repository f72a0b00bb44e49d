"""What `model.predict` takes: tensors, arrays, bytes and batches give what the file gives; wrong ranges are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_models_loading import TINY

from distilldepth.models.base import ModelInfo
from distilldepth.models.families.depth_anything import build


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(TINY, ModelInfo("tiny", "depth-anything", "disparity", "Apache-2.0", "a test")).eval()


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """uint8 `(2, 33, 47, 3)`, smooth, different in every channel."""
    small = np.random.default_rng(3).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((47, 33), Image.Resampling.BICUBIC)) for each in small])


def encoded(photo: np.ndarray) -> bytes:
    Image.fromarray(photo).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


SINGLE = {
    "float tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1) / 255,
    "double tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1).double() / 255,
    "uint8 tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1),
    "tensor that needs a gradient": lambda p: (torch.from_numpy(p).permute(2, 0, 1) / 255).requires_grad_(),
    "float32 array": lambda p: p.astype(np.float32) / 255,
    "float64 array": lambda p: p / 255,
    "array turned around": lambda p: np.ascontiguousarray((p / 255)[::-1])[::-1],
    "bytes": encoded,
    "bytearray": lambda p: bytearray(encoded(p)),
    "memoryview": lambda p: memoryview(encoded(p)),
    "picture": Image.fromarray,
}


@pytest.mark.parametrize("kind", SINGLE)
def test_every_kind_of_image_gives_the_same_map(model, photos, kind):
    expected = model.predict(photos[0])
    found = model.predict(SINGLE[kind](photos[0]))
    assert found.values.shape == (33, 47)
    assert found.values.dtype == np.float32
    assert found.quantity == "disparity"
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)
    other = model.predict(photos[1]).values
    assert np.abs(other - expected.values).max() > 1e-3


BATCHES = {
    "float tensor": lambda p: torch.from_numpy(p).permute(0, 3, 1, 2) / 255,
    "uint8 tensor": lambda p: torch.from_numpy(p).permute(0, 3, 1, 2),
    "float array": lambda p: p / 255,
    "uint8 array": lambda p: p,
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_batch_gives_a_batch(model, photos, kind, batch_size):
    expected = [each.values for each in model.predict(list(photos))]
    found = model.predict(BATCHES[kind](photos), batch_size=batch_size)
    assert found.values.shape == (2, 33, 47)
    assert found.values.dtype == np.float32
    assert found.resize_policy == "lower-bound"
    np.testing.assert_allclose(found.values, np.stack(expected), rtol=1e-5, atol=1e-6)
    one = model.predict(BATCHES[kind](photos)[1:])
    assert one.values.shape == (1, 33, 47)
    np.testing.assert_allclose(one.values[0], expected[1], rtol=1e-5, atol=1e-6)
    assert model.predict(BATCHES[kind](photos)[:0]).values.shape == (0, 33, 47)


def test_a_list_may_mix_kinds(model, photos):
    mixed = [photos[0], BATCHES["float tensor"](photos)[1], encoded(photos[0])[:], photos[1][:20] / 255]
    found = model.predict(mixed)
    assert [each.values.shape for each in found] == [(33, 47), (33, 47), (33, 47), (20, 47)]
    np.testing.assert_allclose(found[1].values, model.predict(photos[1]).values, rtol=1e-5, atol=1e-6)


def test_floating_values_are_not_rounded_to_bytes(model, photos):
    fine = photos[0] / 255 * 0.02
    values = model.predict(fine).values
    rounded = model.predict(np.rint(fine * 255).astype(np.uint8)).values
    assert np.abs(values - rounded).max() > 1e-5


def test_grey_floats_are_their_three_channels(model, photos):
    grey = photos[0, ..., 0] / 255
    expected = model.predict(np.stack([grey] * 3, axis=-1)).values
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(model.predict(array).values, expected)


def test_what_resizing_leaves_outside_is_clamped(model, photos):
    array = photos[0].astype(np.float32) / 255
    array[0, 0], array[1, 1] = 1.0005, -0.0005
    np.testing.assert_array_equal(model.predict(array).values, model.predict(array.clip(0, 1)).values)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.astype(np.float32), ValueError, r"in \[0, 1\], got .* to 2\d\d; divide by 255, or give uint8"),
        (lambda p: p.astype(np.float32) * 200, ValueError, "scale it first"),
        (lambda p: p / 127.5 - 1, ValueError, r"in \[0, 1\], got -.*; undo its normalisation"),
        (lambda p: np.where(p > 250, np.nan, 0.5), ValueError, r"in \[0, 1\], got NaN"),
        (lambda p: np.where(p > 250, np.inf, 0.5), ValueError, r"in \[0, 1\], got 0.5 to inf"),
        (lambda p: torch.from_numpy(p).permute(2, 0, 1).float(), ValueError, "divide by 255"),
        (lambda p: torch.full((2, 3, 9, 9), torch.nan), ValueError, "got NaN"),
        (lambda p: torch.from_numpy(p).float() / 255, ValueError, r"got \(33, 47, 3\); permute it to channels first"),
        (lambda p: torch.rand(33, 47), ValueError, r"shape \(3, H, W\) or \(B, 3, H, W\), got \(33, 47\)"),
        (lambda p: torch.rand(1, 33, 47), ValueError, r"got \(1, 33, 47\)"),
        (lambda p: torch.rand(3, 0, 47), ValueError, "at least one pixel"),
        (lambda p: torch.zeros(3, 0, 47, dtype=torch.uint8), ValueError, "at least one pixel"),
        (lambda p: torch.zeros(3, 9, 9, dtype=torch.int64), TypeError, "floating in .* or uint8"),
        (lambda p: (p / 255).transpose(2, 0, 1), ValueError, r"got \(3, 33, 47\); transpose it to \(H, W, 3\)"),
        (lambda p: np.zeros((0, 9, 3)), ValueError, "at least one pixel"),
        (lambda p: np.zeros((2, 3, 33, 47)), ValueError, r"shape \(B, H, W, 3\), got \(2, 3, 33, 47\)"),
        (lambda p: p.astype(np.int32), TypeError, "must be uint8"),
        (lambda p: [np.zeros((2, 9, 9, 3))], ValueError, "list must hold single images"),
        (lambda p: b"", Exception, "image bytes: is empty"),
        (lambda p: b"no image", Exception, "image bytes: is not an image"),
        (lambda p: {"image": p}, TypeError, "must be a path"),
    ],
)
def test_what_is_no_image_is_one_line(model, photos, make, error, message):
    with pytest.raises(error, match=message) as caught:
        model.predict(make(photos[0]))
    assert "\n" not in str(caught.value)
