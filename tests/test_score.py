"""score_batch against a float64 loop over images, and each rule of a protocol where the answer is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tolerances import SCORE

from distilldepth.alignment import align
from distilldepth.datasets.truth import Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import PROTOCOLS, Rules, choose_protocol, crop_box
from distilldepth.evaluate.score import apply_image_crop, fill_background, pool, score_batch, scored_pixels
from distilldepth.metrics import HIGHER_IS_BETTER, NAMES, depth_metrics

QUANTITIES = ("disparity", "depth", "metric_depth")
SIZES = {"nyuv2": (480, 640), "kitti-eigen": (352, 1216), "": (61, 83), "diode": (60, 80)}


def make(shape=(3, 61, 83), seed=0, *, share=0.7, device="cpu", far=9.0):
    """True depth and a disparity of it with scale, shift and noise, float32; rubbish-free zeros where not valid."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(shape, generator=g) * far + 0.5
    disparity = 3 / depth + 0.7 + 0.1 * torch.randn(shape, generator=g)
    valid = torch.rand(shape, generator=g) < share
    return disparity.to(device), (depth * valid).to(device), valid.to(device)


def loop(values, quantity, depth, valid, rules):
    """One image in float64 numpy, every rule that the cases below use."""
    d, g, keep = values.double().cpu().numpy(), depth.double().cpu().numpy(), valid.cpu().numpy().copy()
    top, bottom, left, right = crop_box(rules.score_crop, *g.shape)
    inside = np.zeros_like(keep)
    inside[top:bottom, left:right] = True
    low = g > rules.min_depth if rules.bounds == "strict" else g >= rules.min_depth
    high = g < rules.max_depth if rules.bounds == "strict" else g <= rules.max_depth
    keep &= inside & low & high & (g > 0)
    g, d = g[keep], d[keep]
    space = rules.space_for(quantity)
    if space == "disparity":
        t = 1 / g
        d = d if quantity == "disparity" else 1 / d if quantity == "metric_depth" else -d
    else:
        t = g
        d = -d if quantity == "disparity" else d
    used = d > 0 if rules.fit_on == "positive-prediction" else np.ones_like(d, dtype=bool)
    scale, shift = 1.0, 0.0
    if rules.align == "least-squares":
        scale, shift = np.linalg.lstsq(np.stack([d[used], np.ones(used.sum())], 1), t[used], rcond=None)[0]
    elif rules.align == "median":
        middle = (len(d) - 1) // 2
        scale = np.sort(t)[middle] / np.sort(d)[middle]
    elif rules.align in ("l1", "ransac"):
        pytest.skip("tested in test_alignment")
    floor = {"relative": 0.001 * t.max(), "farthest": 1 / g.max(), None: 1e-6}.get(
        rules.disparity_floor, rules.disparity_floor
    )
    if space == "depth" and rules.disparity_floor != "relative":
        floor = 1e-6
    d = np.maximum(scale * d + shift, floor)
    d = 1 / d if space == "disparity" else d
    d = np.clip(d, rules.clip_low or 1e-6, rules.clip_high or np.inf)
    # As score_batch, and align before it, give depth: rounded once.
    d = torch.from_numpy(d.astype(np.float32))
    return depth_metrics(d[None], torch.from_numpy(g)[None]), scale, shift


def assert_metrics(scores, truth, image):
    """Equal to the loop; of the shares, one pixel may be on the other side, where a ratio rounds to the limit."""
    for name in NAMES:
        a, b = float(scores.metrics[name][image]), float(truth[name])
        if name in HIGHER_IS_BETTER:
            assert abs(a - b) * float(scores.sums["count"][image]) < 1 + SCORE, name
        else:
            assert a == pytest.approx(b, rel=SCORE, abs=0.01 * SCORE), name


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_batched_equals_the_loop_over_images(name, kind, device):
    quantities = [q for q in QUANTITIES if q == "metric_depth" or PROTOCOLS[name].for_quantity(q).align != "none"]
    for quantity in quantities:
        rules = choose_protocol(quantity, name=name).rules(kind)
        if rules.align in ("l1", "ransac") or (rules.align == "median" and quantity == "disparity"):
            continue
        disparity, depth, valid = make((2, *SIZES[kind]), seed=len(name), device=device, far=12.0)
        values = disparity if quantity == "disparity" else 1 / disparity.clamp(min=0.3)
        scores = score_batch(values, quantity, depth, valid, True, rules)
        assert not scores.problems
        for image in range(2):
            truth, scale, shift = loop(values[image], quantity, depth[image], valid[image], rules)
            assert_metrics(scores, truth, image)
            assert float(scores.scale[image]) == pytest.approx(scale, rel=SCORE)
            assert float(scores.shift[image]) == pytest.approx(shift, rel=SCORE, abs=SCORE)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 7, 9), (5, 301, 223)])
def test_sparse_truth_and_odd_sizes(share, shape, device):
    disparity, depth, valid = make(shape, share=share, device=device)
    valid[:, 3, 4] = True
    valid[:, 3, 5] = True
    depth[:, 3, 4:6] = 2.5
    depth = depth + 0.1 * (depth == 0)  # positive, but not valid
    rules = choose_protocol("disparity", overrides={"min_pixels": 2}).rules()
    # Views that are not contiguous give the same.
    maps = [torch.stack([m, m], -1)[..., 0] for m in (disparity, depth, valid)]
    scores, again = score_batch(disparity, "disparity", depth, valid, True, rules), None
    again = score_batch(maps[0], "disparity", maps[1], maps[2], True, rules)
    for image in range(shape[0]):
        truth, *_ = loop(disparity[image], "disparity", depth[image], valid[image], rules)
        assert_metrics(scores, truth, image)
    for name in NAMES:
        assert torch.equal(scores.metrics[name], again.metrics[name]), name


def test_depth_is_that_of_align(device):
    disparity, depth, valid = make(device=device)
    rules = choose_protocol("disparity").rules()
    scores = score_batch(disparity, "disparity", depth, valid, True, rules)
    aligned = align(disparity, torch.where(valid, depth, 1), valid)
    torch.testing.assert_close(scores.depth, aligned.depth, rtol=SCORE, atol=0)
    assert torch.equal(scores.scored, valid)
    far = disparity + 1000
    torch.testing.assert_close(
        score_batch(far.double(), "disparity", depth, valid, True, rules).metrics["abs_rel"],
        depth_metrics(align(far, torch.where(valid, depth, 1), valid).depth, torch.where(valid, depth, 1), valid)[
            "abs_rel"
        ],
        rtol=SCORE,
        atol=0,
    )


def test_what_is_not_valid_does_not_matter(device):
    disparity, depth, valid = make(device=device)
    rules = choose_protocol("disparity", name="marigold").rules()
    clean = score_batch(disparity, "disparity", depth, valid, True, rules)
    for rubbish in (torch.nan, torch.inf, -torch.inf, -3.0, 1e30):
        dirty = score_batch(
            disparity.masked_fill(~valid, rubbish), "disparity", depth.masked_fill(~valid, rubbish), valid, True, rules
        )
        assert not dirty.problems
        for name in NAMES:
            assert torch.equal(dirty.metrics[name], clean.metrics[name]), (rubbish, name)


@pytest.mark.parametrize("method", ["least-squares", "median", "l1", "ransac"])
def test_images_with_problems_leave_the_others_alone(method, device):
    disparity, depth, valid = make((5, 61, 83), device=device)
    rules = Rules(align=method, space="disparity", min_pixels=3)
    clean = score_batch(disparity, "disparity", depth, valid, True, rules)
    valid[1] = False
    disparity[2][valid[2]] = torch.nan
    valid[3] = False
    valid[3, 5, 6] = True
    depth[3, 5, 6] = 2.0
    scores = score_batch(disparity, "disparity", depth, valid, True, rules)
    assert scores.problems == {
        1: "no valid pixel in the ground truth",
        2: "the prediction is not finite on every valid pixel",
        3: "only 1 valid pixel in the ground truth, the protocol asks for 3",
    }
    for name in NAMES:
        assert scores.metrics[name].isnan().tolist() == [False, True, True, True, False], name
        torch.testing.assert_close(scores.metrics[name][[0, 4]], clean.metrics[name][[0, 4]], rtol=1e-12, atol=0)
    assert scores.by_depth.shape == (5, 20, 5)


def test_a_fit_to_as_many_pixels_as_it_has_parameters_is_no_score(device):
    # Scale and shift meet any two pixels: a perfect frame, whatever the map.
    disparity, depth, valid = make((3, 20, 30), device=device)
    for image, count in enumerate((1, 9, 10)):
        valid[image] = False
        valid[image].view(-1)[7 : 7 + count], depth[image] = True, depth[image].clamp(min=1)
    usual = score_batch(disparity, "disparity", depth, valid, True, Rules(space="disparity"))
    assert set(usual.problems) == {0, 1}
    assert "only 9 valid pixels" in usual.problems[1]
    assert "asks for 10" in usual.problems[1]
    # Nobody can ask for fewer than are fitted.
    for method, fewest in (("least-squares", 2), ("l1", 2), ("ransac", 2), ("median", 1)):
        rules = Rules(align=method, space="disparity", min_pixels=1)
        assert set(score_batch(disparity, "disparity", depth, valid, True, rules).problems) == set(range(fewest - 1))


@pytest.mark.parametrize("method", ["least-squares", "median", "l1", "ransac", "none"])
def test_no_image_at_all_gives_no_score(method):
    none = torch.rand(0, 20, 30)
    scores = score_batch(none, "metric_depth", none, none > 2, True, Rules(align=method, space="depth"))
    assert (scores.problems, scores.scale.shape, scores.metrics["abs_rel"].shape) == ({}, (0,), (0,))


def test_a_fit_without_a_positive_prediction_is_a_problem(device):
    disparity, depth, valid = make(device=device)
    rules = Rules(space="disparity", fit_on="positive-prediction")
    disparity[1] = -disparity[1].abs()
    scores = score_batch(disparity, "disparity", depth, valid, True, rules)
    assert list(scores.problems) == [1]
    assert "no valid pixel where the prediction is positive" in scores.problems[1]


def test_what_cannot_be_scored_at_all_says_why(device):
    disparity, depth, valid = make(device=device)
    cases = [
        ("metric_depth", False, Rules(align="none", space="depth"), "no unit"),
        ("disparity", True, Rules(align="median", space="depth"), "--space disparity"),
        ("disparity", True, Rules(score_crop="eigen-nyu"), "480 x 640"),
        ("disparity", True, Rules(align="none", space="disparity"), "needs alignment"),
    ]
    for quantity, is_metric, rules, reason in cases:
        scores = score_batch(disparity, quantity, depth, valid, is_metric, rules)
        assert set(scores.problems) == {0, 1, 2}
        assert reason in scores.problems[0]
        assert scores.metrics["abs_rel"].isnan().all()
        assert (scores.depth.shape, scores.scored.shape) == (depth.shape, depth.shape)
    empty = score_batch(disparity[:0], "disparity", depth[:0], valid[:0], True, Rules())
    assert empty.metrics["abs_rel"].shape == (0,)


# Rules, one by one


def test_bounds_are_strict_or_inclusive(device):
    depth = torch.tensor([[[1.0, 2.0, 3.0, 80.0]]], device=device)
    values = torch.tensor([[[1.5, 2.0, 3.0, 40.0]]], device=device)
    valid = torch.ones_like(depth, dtype=torch.bool)
    found = {}
    for bounds in ("strict", "inclusive"):
        rules = Rules(align="none", space="depth", min_depth=1, max_depth=80, bounds=bounds, min_pixels=1)
        scores = score_batch(values, "metric_depth", depth, valid, True, rules)
        found[bounds] = (float(scores.sums["count"]), float(scores.metrics["abs_rel"]))
        assert int(scored_pixels(depth, valid, rules).sum()) == found[bounds][0]
    assert found == {"strict": (2, 0), "inclusive": (4, 0.25)}


def test_depth_at_the_limit_of_marigold_and_of_dav2(device):
    # 10 m in NYUv2 does not count for the one and does for the other.
    depth = torch.full((1, 480, 640), 10.0, device=device)
    depth[0, 100:110] = 5.0
    valid = torch.ones_like(depth, dtype=torch.bool)
    counts = {
        name: float(score_batch(1 / depth + 1, "disparity", depth, valid, True, rules).sums["count"])
        for name in ("marigold", "dav2")
        for rules in [choose_protocol("disparity", name=name).rules("nyuv2")]
    }
    assert counts == {"marigold": 10 * 560, "dav2": 426 * 560}


def test_the_fit_uses_positive_predictions_and_the_score_all(device):
    depth = torch.tensor([[[1.0, 2.0, 4.0, 5.0]]], device=device)
    values = torch.tensor([[[1.0, 0.5, 0.25, -7.0]]], device=device)
    valid = torch.ones_like(depth, dtype=torch.bool)
    rules = Rules(space="disparity", fit_on="positive-prediction", disparity_floor=1e-3, min_pixels=4)
    scores = score_batch(values, "disparity", depth, valid, True, rules)
    assert float(scores.scale) == pytest.approx(1, rel=SCORE)
    # The negative one is floored at 0.001 1/m: 1000 m instead of 5.
    assert float(scores.metrics["abs_rel"]) == pytest.approx(199 / 4, rel=SCORE)
    clipped = dataclasses.replace(rules, clip_low=1e-3, clip_high=10)
    scores = score_batch(values, "disparity", depth, valid, True, clipped)
    assert float(scores.metrics["abs_rel"]) == pytest.approx(1 / 4, rel=SCORE)


def test_floors(device):
    depth = torch.tensor([[[0.5, 2.0, 4.0, 5.0]]], device=device)
    valid = torch.ones_like(depth, dtype=torch.bool)
    values = torch.tensor([[[2.0, 0.5, 0.25, -1e6]]], device=device)
    worst = {}
    for floor in ("relative", "farthest", 0.01, None):
        rules = Rules(align="median", space="disparity", disparity_floor=floor, min_pixels=3)
        # The lower median of both is 1/4 here, and 0.2 against -1e6 there; scale from the former.
        scores = score_batch(values[..., :3], "disparity", depth[..., :3], valid[..., :3], True, rules)
        assert float(scores.metrics["abs_rel"]) == pytest.approx(0, abs=1e-6)
        fixed = Rules(align="none", space="disparity", disparity_floor=floor, min_pixels=4)
        metric = score_batch(1 / values.clamp(min=1e-6), "metric_depth", depth, valid, True, fixed)
        worst[floor] = float(metric.depth[0, 0, 3])
    assert worst["relative"] == pytest.approx(500)
    assert worst["farthest"] == pytest.approx(5)
    assert worst[0.01] == pytest.approx(100)
    assert worst[None] == pytest.approx(1e6, rel=1e-5)


def test_a_constant_negative_map_is_fitted_by_the_mean(device):
    _, depth, valid = make(device=device)
    for value in (-5.0, 1 / 3, 0.0):
        scores = score_batch(torch.full_like(depth, value), "disparity", depth, valid, True, Rules(space="disparity"))
        assert (scores.scale == 0).all()
        for image in range(3):
            assert float(scores.shift[image]) == pytest.approx(
                float((1 / depth[image][valid[image]].double()).mean()), rel=SCORE
            )


def test_thinned_fits(device):
    disparity, depth, valid = make((1, 40, 60), share=1.0, device=device)
    every = {"width-only": (slice(None), slice(None, None, 3)), "both": (slice(None, None, 3), slice(None, None, 3))}
    for style, (rows, columns) in every.items():
        rules = Rules(space="disparity", align_max_res=20, align_max_res_style=style)
        scores = score_batch(disparity, "disparity", depth, valid, True, rules)
        count = 40 if style == "width-only" else 13
        thinned = align(disparity[0][rows, columns][:count], depth[0][rows, columns][:count])
        assert float(scores.scale) == pytest.approx(float(thinned.scale), rel=SCORE)
        assert float(scores.sums["count"]) == 40 * 60
    rules = Rules(space="disparity", align_max_res=60)
    whole = score_batch(disparity, "disparity", depth, valid, True, rules)
    assert float(whole.scale) == pytest.approx(float(align(disparity, depth).scale), rel=SCORE)


def test_truth_far_beyond_its_quantile_does_not_count(device):
    depth = torch.ones((1, 10, 20), device=device)
    depth[0, 0, 0] = 1001.0
    depth[0, 0, 1] = 999.0
    valid = torch.ones_like(depth, dtype=torch.bool)
    scores = score_batch(1 / depth, "disparity", depth, valid, True, choose_protocol("disparity", name="moge").rules())
    assert float(scores.sums["count"]) == 199
    assert not scores.scored[0, 0, 0]
    assert scores.scored[0, 0, 1]


def test_a_prediction_is_brought_to_the_size_of_the_truth(device):
    inverse = torch.linspace(0.2, 1, 40, device=device)[None].expand(30, 40)[None]
    small = torch.nn.functional.interpolate(inverse[None], (15, 20), mode="bilinear")[0]
    valid = torch.ones_like(inverse, dtype=torch.bool)
    scores = score_batch(small, "disparity", 1 / inverse, valid, True, choose_protocol("disparity").rules())
    assert float(scores.metrics["abs_rel"]) < 0.02
    assert scores.depth.shape == inverse.shape


def test_kitti_background_interpolation():
    holes = torch.tensor(
        [
            [
                [0.0, 0, 0, 0, 0, 0],
                [0, 7, 0, 0, 3, 0],
                [0, 0, 0, 0, 0, 0],
                [5, 0, 9, torch.nan, 2, -1],
                [0, 0, 0, 0, 0, torch.inf],
            ]
        ]
    )
    filled = torch.tensor(
        [[[7.0, 7, 3, 3, 3, 3], [7, 7, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0], [5, 5, 9, 2, 2, 2], [5, 5, 9, 2, 2, 2]]]
    )
    assert torch.equal(fill_background(holes), filled)
    dense = torch.rand(2, 5, 7) + 0.1
    assert torch.equal(fill_background(dense), dense)
    assert torch.equal(fill_background(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
    both = fill_background(torch.cat([holes, holes.flip(1)]))
    assert torch.equal(both[1], filled[0].flip(0))


def test_holes_are_filled_before_the_benchmark_scores(device):
    depth = torch.full((1, 4, 6), 5.0, device=device)
    values = depth.clone()
    values[0, 1, 2] = 0
    valid = torch.ones_like(depth, dtype=torch.bool)
    rules = choose_protocol("metric_depth", name="kitti-benchmark").rules()
    assert float(score_batch(values, "metric_depth", depth, valid, True, rules).metrics["abs_rel"]) == 0
    unfilled = choose_protocol("metric_depth", name="metric").rules()
    assert float(score_batch(values, "metric_depth", depth, valid, True, unfilled).metrics["abs_rel"]) > 0.04


def test_the_image_is_cropped_with_its_truth():
    image = np.arange(375 * 1242 * 3, dtype=np.uint32).astype(np.uint8).reshape(375, 1242, 3)
    depth = np.arange(375 * 1242, dtype=np.float32).reshape(375, 1242)
    rules = choose_protocol("disparity", name="marigold").rules("kitti-eigen")
    cropped, truth = apply_image_crop(image, Truth(depth, depth > 0, True, True), rules)
    assert cropped.shape == (352, 1216, 3)
    assert np.array_equal(cropped, image[23:375, 13:1229])
    assert np.array_equal(truth.depth, depth[23:375, 13:1229])
    assert truth.valid.shape == (352, 1216)
    assert truth.dense
    assert apply_image_crop(image, truth, Rules())[0] is image
    with pytest.raises(DistillDepthError, match="truth of the image's size"):
        apply_image_crop(image, truth, rules)
    with pytest.raises(DistillDepthError, match="352 x 1216"):
        apply_image_crop(image[:300], Truth(depth[:300], depth[:300] > 0, True), rules)


# What else comes out


def test_pooled_metrics_are_those_of_all_pixels(device):
    disparity, depth, valid = make((4, 61, 83), device=device)
    valid[1, 20:] = False
    scores = score_batch(disparity, "disparity", depth, valid, True, choose_protocol("disparity").rules())
    pooled = pool({name: math.fsum(values.tolist()) for name, values in scores.sums.items()})
    every = depth_metrics(scores.depth[valid][None, None], depth[valid][None, None])
    for name in NAMES:
        assert pooled[name] == pytest.approx(float(every[name]), rel=SCORE), name
    assert pooled["abs_rel"] != pytest.approx(float(scores.metrics["abs_rel"].mean()), rel=SCORE)


def test_error_by_depth(device):
    depth = torch.tensor([[[0.05, 1.5, 1.5, 400.0]]], device=device)
    values = torch.tensor([[[0.05, 3.0, 1.8, 400.0]]], device=device)
    valid = torch.ones_like(depth, dtype=torch.bool)
    scores = score_batch(values, "metric_depth", depth, valid, True, choose_protocol("metric_depth").rules())
    bins = scores.by_depth[0].tolist()
    assert bins[0][2:] == [1, pytest.approx(7, rel=1e-6), 0]  # 0.05 is below the floor of 0.001 x 400
    assert bins[-1][2:] == [1, 0, 1]
    inside = [row for row in bins if row[0] <= 1.5 < row[1]]
    assert inside == [[pytest.approx(10 ** (1 / 6)), pytest.approx(10 ** (2 / 6)), 2, pytest.approx(1.2), 1]]
    assert sum(row[2] for row in bins) == 4


def test_boundaries_and_uncertainty_where_they_are_known(device):
    disparity, depth, valid = make((2, 24, 30), share=1.0, device=device)
    valid[1, 3, 4] = False
    rules = choose_protocol("disparity").rules()
    plain = score_batch(disparity, "disparity", depth, valid, True, rules)
    assert tuple(plain.metrics) == NAMES
    extras = {"uncertainty": torch.rand((2, 12, 15), device=device), "std": torch.ones((2, 24, 30), device=device)}
    scores = score_batch(disparity, "disparity", depth, valid, True, rules, extras=extras, dense=True)
    assert scores.metrics["boundary_f1"].isnan().tolist() == [False, True]
    more = ("boundary_f1_masked", "ause_rmse", "aurg_abs_rel", "calibration_error")
    assert all(scores.metrics[name].isfinite().all() for name in more)
    for name in NAMES:
        assert torch.equal(scores.metrics[name], plain.metrics[name])
