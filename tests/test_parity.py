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
from distilldepth.datasets.truth import Truth
from distilldepth.evaluate.protocol import choose_protocol
from distilldepth.evaluate.score import apply_image_crop, score_batch
from distilldepth.metrics import boundary_f1_masked
from distilldepth.models.preprocess import Preprocessing, restore, target_size


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


# Depth Anything V2 a561b84: get_size of Resize in depth_anything_v2/util/transform.py (MiDaS 4545977 has the same)


@pytest.mark.parametrize(
    ("multiple", "size", "image", "lower", "upper", "minimal"),
    [
        (14, 500, (480, 640), (504, 672), (378, 490), (504, 672)),
        (14, 500, (375, 1242), (504, 1652), (154, 490), (504, 1652)),
        (14, 500, (1024, 768), (672, 504), (490, 378), (672, 504)),
        (14, 500, (333, 517), (504, 770), (322, 490), (322, 504)),
        (14, 500, (200, 300), (504, 756), (336, 490), (336, 504)),
        (14, 506, (480, 640), (518, 672), (378, 504), (504, 672)),
        (14, 506, (375, 1242), (518, 1680), (154, 504), (504, 1680)),
        (14, 506, (1024, 768), (672, 518), (504, 378), (672, 504)),
        (14, 506, (333, 517), (518, 784), (322, 504), (322, 504)),
        (14, 506, (200, 300), (518, 756), (336, 504), (336, 504)),
        (32, 384, (480, 640), (384, 512), (288, 384), (384, 512)),
        (32, 384, (375, 1242), (384, 1280), (128, 384), (384, 1280)),
        (32, 384, (1024, 768), (512, 384), (384, 288), (512, 384)),
        (32, 384, (333, 517), (384, 608), (256, 384), (384, 608)),
        (32, 384, (200, 300), (384, 576), (256, 384), (256, 384)),
        (32, 500, (480, 640), (512, 672), (384, 480), (512, 672)),
        (32, 500, (375, 1242), (512, 1664), (160, 480), (512, 1664)),
        (32, 500, (1024, 768), (672, 512), (480, 384), (672, 512)),
        (32, 500, (333, 517), (512, 768), (320, 480), (320, 512)),
        (32, 500, (200, 300), (512, 736), (320, 480), (320, 512)),
    ],
)
def test_sizes_are_those_of_depth_anything(multiple, size, image, lower, upper, minimal):
    wants = Preprocessing(size, multiple)
    for policy, official in (("lower-bound", lower), ("upper-bound", upper), ("hf", minimal)):
        assert target_size(*image, wants, policy=policy) == official


@pytest.mark.parametrize(
    ("way", "larger", "smaller"),
    [
        # Depth Anything V2 a561b84, the last line of infer_image
        ("bilinear-corners", 34.66779612060267, 11.709287204219189),
        # GenPercept 7cff083 calls torchvision's resize with antialias=True; that of 0.28.0 was run
        ("bilinear-antialias", 42.473102467852925, 9.8609059773156),
        # transformers 5.23.0: post_process_depth_estimation of its DPT and GLPN processors
        ("bicubic", 46.189762948450905, 12.999938427432031),
    ],
)
def test_maps_go_back_to_the_image_as_in_official_code(way, larger, smaller, device):
    """Maps of 6 x 9 brought to 11 x 23 and to 5 x 7, and weighed by random numbers."""
    maps_ = torch.from_numpy(np.random.default_rng(21).random((1, 6, 9)).astype(np.float32) * 4 + 1).to(device)
    for seed, size, official in ((22, (11, 23), larger), (23, (5, 7), smaller)):
        weights = np.random.default_rng(seed).standard_normal(size)
        got = restore(maps_, size, Preprocessing(14, 14, map_interpolation=way))[0].cpu().numpy()
        assert float((got * weights).sum()) == pytest.approx(official, rel=OFFICIAL)


# NeWCRFs d327bf7: eval of newcrfs/eval.py, after the crop of its loader. BTS 5e3406b: eval of pytorch/bts_eval.py.
# ZoeDepth d87f17b: compute_metrics of zoedepth/utils/misc.py, after the crop of its loader; a map of half the size.

BTS_NAMES = ("silog", "abs_rel", "log10", "rmse", "sq_rel", "rmse_log", "delta1", "delta2", "delta3")


@pytest.mark.parametrize(
    ("name", "seed", "official"),
    [
        (
            "newcrfs",
            31,
            (23.294598, 0.40513691, 0.23712918, 24.509785, 10.075634, 0.59180796, 0.10884248, 0.30393916, 0.67606193),
        ),
        (
            "newcrfs",
            32,
            (23.199072, 0.40618053, 0.23784079, 24.62772, 10.141832, 0.59309375, 0.10658714, 0.30097717, 0.67429626),
        ),
        (
            "bts",
            31,
            (23.270462, 0.4050943, 0.23708047, 24.491676, 10.065561, 0.59163886, 0.10849562, 0.30418921, 0.67624551),
        ),
        (
            "bts",
            32,
            (23.254559, 0.40602782, 0.23777805, 24.638418, 10.147132, 0.59314519, 0.10735188, 0.30163771, 0.67363888),
        ),
        (
            "zoedepth",
            31,
            (40.549465, 0.43119487, 0.2534928, 26.579348, 11.758349, 0.65980041, 0.15162801, 0.33065947, 0.58969754),
        ),
        (
            "zoedepth",
            32,
            (40.42009, 0.43143529, 0.2536712, 26.674723, 11.800905, 0.65972048, 0.14942668, 0.33067764, 0.58852917),
        ),
    ],
)
def test_the_line_of_bts_scores_as_its_codes(name, seed, official, device):
    prediction, truth, known = maps(seed, 375, 1242, 0.6)
    rules = choose_protocol("metric_depth", name=name).rules("kitti-eigen")
    frame = Truth((10 * truth).where(known, torch.zeros(())).numpy(), known.numpy(), is_metric=True)
    image, frame = apply_image_crop(np.zeros((375, 1242, 3), np.uint8), frame, rules)
    values = 10 * prediction[23:375, 13:1229]
    assert image.shape[:2] == values.shape
    if name == "zoedepth":
        values = values[::2, ::2]
    depth, valid = (torch.from_numpy(part)[None].to(device) for part in (frame.depth, frame.valid))
    scores = score_batch(values[None].to(device), "metric_depth", depth, valid, True, rules).metrics
    assert [float(scores[metric]) for metric in BTS_NAMES] == pytest.approx(official, rel=OFFICIAL)
