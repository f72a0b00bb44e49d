"""The one table of how far a result may be from the truth, and the comparisons that use it.

The truth is computed in float64 from the inputs as they are after rounding to the tested type, so rounding the inputs
costs nothing and every entry is about arithmetic. Gradients come back in the input's type and carry its last rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOSS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
"""Relative error of a scalar loss; losses are float32 for every smaller input."""
GRADIENT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Relative L2 error of a gradient."""
COSINE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-6}
"""1 - cosine between two gradients."""
MAP = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
"""Error of each value of a map, relative to the largest."""
INVARIANT = 1e-5
"""Change of an invariant float64 loss; the added eps in a spread is what breaks exact invariance."""
PUBLISHED_DIGITS = 5e-4
"""Half a unit of the last digit of numbers published with three."""
FIXTURE_DIGITS = 3e-5
"""Relative error of numbers published with five digits."""
SCORE = 1e-6
"""Relative error of a metric from float32 maps against the float64 loop over images."""
OFFICIAL = 2e-6
"""Relative error of a number that published code computed in float32."""
BATCHED = 1e-6
"""Relative difference of a score computed for many regions or images at once from the same one computed alone."""


def assert_loss(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """A scalar equals the truth as closely as inputs of `dtype` allow."""
    assert actual.shape == ()
    actual, truth = float(actual.detach()), float(truth)
    assert abs(actual - truth) <= LOSS[dtype] * max(abs(truth), 1e-3), f"{actual} is not {truth}"


def assert_gradient(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """A gradient has the input's type and equals the truth in length and direction."""
    assert actual.dtype == dtype
    a, b = actual.double().flatten(), truth.double().flatten()
    assert torch.isfinite(a).all()
    norm = b.norm()
    assert norm > 0, "a zero gradient shows nothing"
    assert (a - b).norm() / norm <= GRADIENT[dtype]
    assert 1 - torch.dot(a, b) / (a.norm() * norm) <= COSINE[dtype]


def assert_map(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Every value of a map equals the truth; NaN where the truth is NaN."""
    assert actual.shape == truth.shape
    scale = truth.nan_to_num().abs().max().clamp(min=1e-6)
    torch.testing.assert_close(actual.double() / scale, truth.double() / scale, rtol=0, atol=MAP[dtype], equal_nan=True)
