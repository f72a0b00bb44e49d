"""Against the numbers of official code, which was run on the same small inputs; docs/parity.md is the table of them.

The inputs are made here by numpy, the constants are what the code named above each of them returned. None of that code
is needed, or copied.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import OFFICIAL

from distilldepth.alignment import align
from distilldepth.evaluate.protocol import choose_protocol
from distilldepth.evaluate.score import score_batch
from distilldepth.metrics import boundary_f1_masked


def maps(seed, height, width, holes):
    """Blocks of depth from 1 to 8 m, a bent and noisy prediction of them, and which of them are known."""
    g = np.random.default_rng(seed)
    blocks = np.kron(g.random((-(-height // 4), -(-width // 3))), np.ones((4, 3)))[:height, :width]
    truth = 1 + 7 * blocks + 0.3 * g.random((height, width))
    noise = 1 + 0.15 * g.standard_normal((height, width)).clip(-2, 2)
    prediction = 0.6 * truth**0.8 * noise + 0.5
    known = torch.from_numpy(g.random((height, width)) >= holes)
    return torch.from_numpy(prediction.astype(np.float32)), torch.from_numpy(truth.astype(np.float32)), known


# MoGe 0744441: boundary_f1 and compute_metrics of moge/test/metrics.py, with utils3d 3fab839 as it asks for


@pytest.mark.parametrize(
    ("seed", "height", "width", "holes", "official"),
    [
        (0, 23, 31, 0.0, (0.5789979919977453, 0.6839308474630222, 0.7422310701130187)),
        (1, 23, 31, 0.3, (0.5705140052928431, 0.6681472544370409, 0.7422222894292746)),
        (2, 40, 57, 0.6, (0.5371497717933125, 0.6825313406868515, 0.7698563195347902)),
    ],
)
def test_boundaries_are_those_of_moge(seed, height, width, holes, official, device):
    prediction, truth, known = (values.to(device) for values in maps(seed, height, width, holes))
    for radius, number in enumerate(official, 1):
        assert boundary_f1_masked(prediction, truth, known, radius=radius) == pytest.approx(number, rel=OFFICIAL)


@pytest.mark.parametrize(
    ("seed", "height", "width", "holes", "scale", "shift"),
    [
        (3, 150, 203, 0.0, 2.395996332168579, -1.6150434017181396),
        (4, 150, 203, 0.3, 2.417520523071289, -1.6525681018829346),
        (5, 150, 203, 0.97, 2.349149703979492, -1.488945484161377),
        (6, 45, 160, 0.9, 2.3291876316070557, -1.4268138408660889),
        (7, 480, 640, 0.95, 2.392758369445801, -1.5934505462646484),
    ],
)
def test_the_l1_fit_is_that_of_moge(seed, height, width, holes, scale, shift, device):
    prediction, truth, known = (values.to(device) for values in maps(seed, height, width, holes))
    got = align(prediction, truth, known, space="depth", method="l1")
    assert float(got.scale) == pytest.approx(scale, rel=OFFICIAL)
    assert float(got.shift) == pytest.approx(shift, rel=OFFICIAL)


@pytest.mark.parametrize(
    ("quantity", "official"),
    [
        ("depth", [(0.1349959671, 0.7946590781, 0.5081417895), (0.1363098621, 0.7985469103, 0.4603832340)]),
        ("disparity", [(0.1466032118, 0.7615908980, 0.4791162057), (0.1448366344, 0.7741083503, 0.4286831680)]),
        ("metric_depth", [(0.4041000903, 0.1107954532, 0.5739822263), (0.4013621807, 0.1215323657, 0.5219372062)]),
    ],
)
def test_the_moge_protocol_scores_as_moge(quantity, official, device):
    """AbsRel, delta1 and the boundaries of radius 1, a frame with holes and a sparse one."""
    rules = choose_protocol(quantity, name="moge").rules()
    for frame, numbers in zip([(11, 97, 150, 0.4), (12, 75, 203, 0.9)], official, strict=True):
        prediction, truth, known = (values.to(device)[None] for values in maps(*frame))
        if quantity == "disparity":
            prediction = 1 / prediction - 0.1
        scores = score_batch(prediction, quantity, truth, known, True, rules, dense=True).metrics
        got = [float(scores[name]) for name in ("abs_rel", "delta1", "boundary_f1_masked")]
        assert got == pytest.approx(numbers, rel=OFFICIAL)
