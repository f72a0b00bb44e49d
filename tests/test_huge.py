"""Maps of more than 2^31 values: an index of 32 bits would wrap around. Needs 16 GB of memory: `pytest -m slow`."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_loss

from distilldepth import ops
from distilldepth.ops.backend import active_backend

pytestmark = pytest.mark.slow
IMAGES, HEIGHT, WIDTH = 2150, 1000, 1001  # 2.15e9 pixels


@pytest.fixture
def pair(device):
    """Two images of a prediction and a target in bfloat16."""
    if active_backend("hybrid_norm", torch.empty(0, device=device)) == "reference":
        pytest.skip("the reference sorts with indices of 64 bits, which takes more memory than this")
    g = torch.Generator().manual_seed(0)
    prediction = torch.randn((2, HEIGHT, WIDTH), generator=g)
    target = torch.rand((2, HEIGHT, WIDTH), generator=g).square() + 0.1 * prediction.cos()
    return prediction.bfloat16().to(device), target.bfloat16().to(device)


def repeated(images):
    """The two images, over and over."""
    return images.repeat(IMAGES // 2, *[1] * (images.ndim - 1))


def test_hybrid_norm(pair):
    # The mean over many copies is the mean over one.
    assert_loss(ops.hybrid_norm_loss(*map(repeated, pair)), ops.hybrid_norm_loss(*pair), torch.bfloat16)


def test_channel_kl(pair):
    assert_loss(ops.channel_kl_loss(*map(repeated, pair)), ops.channel_kl_loss(*pair), torch.bfloat16)


def test_crop_ssi(pair):
    prediction, target = pair
    boxes = torch.tensor([[10.5, 20.0, 900.0, 800.0]], device=prediction.device)
    crop, last = target[1:, :300, :400].contiguous(), torch.tensor([IMAGES - 1], device=prediction.device)
    got = ops.crop_ssi_loss(repeated(prediction), crop, boxes, last)
    assert_loss(got, ops.crop_ssi_loss(prediction, crop, boxes, last - IMAGES + 2), torch.bfloat16)


def test_backproject(pair):
    depth, _ = pair
    intrinsics = torch.tensor([[900.0, 0, 500], [0, 910.0, 480], [0, 0, 1]], device=depth.device)
    count = 720  # times HEIGHT * WIDTH * 3 values of points
    points = ops.backproject(depth.repeat(count // 2, 1, 1), intrinsics)
    assert points.numel() > 2**31
    assert torch.equal(points[-2:], ops.backproject(depth, intrinsics))
