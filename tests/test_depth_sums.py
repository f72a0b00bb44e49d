"""The native scoring operation against the torch path of score_batch, which defines it."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SCORE

from distilldepth import native
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.protocol import PROTOCOLS, Rules, choose_protocol
from distilldepth.evaluate.score import score_batch, scored_pixels
from distilldepth.metrics.depth import DELTAS, SUMS
from distilldepth.ops import library
from distilldepth.ops.depth_sums import FLOORS, FitAndClip, depth_sums, has_depth_sums

SIZES = {"nyuv2": (480, 640), "kitti-eigen": (352, 1216), "diode": (61, 83)}
QUANTITIES = ("disparity", "depth", "metric_depth")

pytestmark = pytest.mark.skipif(
    not native.load("cpu").loaded, reason="the native CPU library is not built: distilldepth doctor --build"
)


@pytest.fixture(autouse=True)
def choose_freely(monkeypatch, device):
    if device.type != "cpu":
        pytest.skip("there is no kernel of this operation for other devices")
    monkeypatch.delenv("DISTILLDEPTH_BACKEND", raising=False)


def make(shape, seed=0, *, share=0.7, ties=()):
    """A disparity, true depth and what is valid; `ties` are depths that many pixels have exactly."""
    g = torch.Generator().manual_seed(seed)
    depth = torch.rand(shape, generator=g) * 12 + 0.3
    disparity = 3 / depth + 0.4 + 0.3 * torch.randn(shape, generator=g)
    valid = torch.rand(shape, generator=g) < share
    place = torch.rand(shape, generator=g)
    for number, value in enumerate(ties):
        depth[(place > 0.1 * number) & (place < 0.1 * number + 0.1)] = value
    return disparity, depth, valid


def both(*arguments, **options):
    """Scores of the kernel and of torch."""
    assert has_depth_sums(arguments[0].float(), arguments[2])
    found = score_batch(*arguments, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLDEPTH_BACKEND", "reference")
        return found, score_batch(*arguments, **options)


def assert_same(found, wanted, *, slack=False):
    """Equal up to the rounding of float32; one pixel of an image may be on the other side of a delta.

    With `slack` every pixel's depth may round the other way, twice: where few pixels are fitted exactly, that is all
    that their errors consist of.
    """
    assert found.problems == wanted.problems
    for name in ("scale", "shift"):
        a, b = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(a, b, rtol=SCORE, atol=1e-3 * SCORE, equal_nan=True, msg=name)
    rounding = rounding_of(wanted) if slack else dict.fromkeys(SUMS, 0.0)
    for name in SUMS:
        a, b = found.sums[name], wanted.sums[name]
        # Of a sum of both signs the rest is as exact as what was added.
        size = wanted.sums["log_absolute" if name == "log" else name]
        allowed = 1 if name.startswith("below") else SCORE * size + rounding[name]
        close = ((a - b).abs() <= allowed) | (a == b) | (a.isnan() & b.isnan())
        assert close.all(), (name, a, b)


def rounding_of(scores):
    """How much each sum changes when every depth moves by two roundings."""
    kept, g, d = scores.scored, scores._maps.truth.double(), scores.depth.double()
    eps = 2 * torch.finfo(torch.float32).eps
    apart, move, log = (d - g).abs(), eps * d, (d / g).log().abs()
    square = 2 * apart * move + move**2
    errors = {
        "absolute": move,
        "square": square,
        "relative": move / g,
        "square_relative": square / g,
        "relative_square": square / g**2,
        "inverse_absolute": eps / d,
        "inverse_square": 2 * apart / g / d * eps / d + (eps / d) ** 2,
        "log": torch.full_like(d, eps),
        "log_absolute": torch.full_like(d, eps),
        "log_square": 2 * log * eps + eps**2,
    }
    return {name: torch.where(kept, values, 0).flatten(1).sum(1) for name, values in errors.items()} | {"count": 0.0}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol(name, kind):
    quantities = [q for q in QUANTITIES if q == "metric_depth" or PROTOCOLS[name].for_quantity(q).align != "none"]
    for quantity in quantities:
        rules = choose_protocol(quantity, name=name).rules(kind)
        if rules.align in ("l1", "ransac"):  # Only how they are fitted, which is not done here, would take its time.
            continue
        disparity, depth, valid = make((1, *SIZES[kind]), seed=len(name), ties=(1e-3, 10.0, 80.0))
        values = disparity if quantity == "disparity" else 1 / disparity.clamp(min=0.05)
        assert_same(*both(values, quantity, depth, valid, True, rules))


@settings(max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1, 1), (3, 7, 9), (2, 40, 61), (1, 65, 64), (2, 3, 5000), (5, 120, 70)]),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    space=st.sampled_from(["disparity", "depth"]),
    align=st.sampled_from(["least-squares", "median", "l1", "none"]),
    bounds=st.sampled_from(["strict", "inclusive"]),
    limits=st.sampled_from([(0.0, math.inf), (1e-3, 10.0), (0.7, 9.3), (2.5, 2.6)]),
    crop=st.sampled_from(["", "garg", "eigen"]),
    fit_on=st.sampled_from(["valid", "positive-prediction"]),
    floor=st.sampled_from([None, "relative", "farthest", 0.01]),
    clips=st.sampled_from([(None, None), (1e-3, 80.0), (None, 5.0), (0.5, None)]),
    more=st.sampled_from([{}, {"far_cut": 3.0}, {"align_max_res": 20}, {"min_pixels": 4}]),
    offset=st.sampled_from([0.0, -5.0, 300.0]),
)
def test_rules_of_all_kinds(seed, shape, share, space, align, bounds, limits, crop, fit_on, floor, clips, more, offset):
    rules = Rules(
        align=align, space=space, bounds=bounds, min_depth=limits[0], max_depth=limits[1], score_crop=crop,
        fit_on=fit_on, disparity_floor=floor, clip_low=clips[0], clip_high=clips[1], **more,
    )  # fmt: skip
    values, depth, valid = make(shape, seed, share=share, ties=(*limits, 2.5, 0.7))
    quantity = "metric_depth" if align == "none" or space == "depth" else "disparity"
    values = values + offset if quantity == "disparity" else 1 / values.clamp(min=0.05) - 0.3 * (offset < 0)
    found, wanted = both(values, quantity, depth, valid, True, rules)
    assert_same(found, wanted, slack=True)
    counts = scored_pixels(depth, valid, rules).flatten(1).sum(1).double()
    assert all(found.sums["count"][i] == counts[i] for i in range(len(depth)) if i not in found.problems)


@pytest.mark.parametrize("space", ["disparity", "depth"])
def test_rubbish(space):
    values, depth, valid = make((5, 61, 83))
    rules = Rules(space=space)
    quantity = "disparity" if space == "disparity" else "depth"
    clean = score_batch(values, quantity, depth, valid, True, rules)
    for rubbish in (math.nan, math.inf, -math.inf, -3.0, 1e30):
        outside = values.masked_fill(~valid, rubbish), depth.masked_fill(~valid, rubbish)
        dirty = score_batch(outside[0], quantity, outside[1], valid, True, rules)
        assert all(torch.equal(dirty.sums[name], clean.sums[name]) for name in SUMS)
        # Truth that is not finite or not positive does not count even where it is said to be valid.
        holes = depth.clone()
        holes[:, ::3] = rubbish
        assert_same(*both(values, quantity, holes if rubbish != 1e30 else depth, valid, True, rules))
    broken = values.clone()
    for image, rubbish in enumerate((math.nan, math.inf, -math.inf)):
        broken[image][valid[image]] = rubbish
    broken[3][tuple(valid[3].nonzero()[100])] = math.nan
    for fit_on in ("valid", "positive-prediction"):  # Of which the second does not fit to NaN.
        found, wanted = both(broken, quantity, depth, valid, True, Rules(space=space, fit_on=fit_on))
        assert set(found.problems) == {0, 1, 2, 3}
        assert found.scale[:4].isnan().all()
        assert_same(found, wanted)
    empty, _ = both(values, quantity, depth, torch.zeros_like(valid), True, rules)
    assert set(empty.problems) == set(range(5))
    nobody = score_batch(values[:0], quantity, depth[:0], valid[:0], True, rules)
    assert nobody.metrics["abs_rel"].shape == (0,)


@pytest.mark.parametrize("space", ["disparity", "depth"])
def test_a_prediction_of_zero_is_not_positive(space):
    values, depth, valid = make((2, 61, 83))
    values[:, ::3] = 0.0
    rules = Rules(space=space, fit_on="positive-prediction")
    assert_same(*both(values, "disparity" if space == "disparity" else "depth", depth, valid, True, rules))


def test_depth_that_is_hardly_finite():
    values, depth, valid = make((4, 30, 40), share=1.0)
    values = values.abs() + 0.1
    values[0] *= 1e34
    values[1, :, ::2] *= 1e-37
    # Ratios beyond the normal numbers of float32, which the sums in float32 cannot hold.
    depth[1], depth[2, 3, 4], values[2, 3, 4] = depth[1] * 1e-3, 1e-38, 5
    rules = Rules(align="none", space="depth")
    found = score_batch(values, "metric_depth", depth, valid, True, rules)
    d, g = values.double().clamp(min=1e-6), depth.double()
    apart, relative, inverse, log = (d - g).abs(), (d - g).abs() / g, (1 / d - 1 / g).abs(), (d / g).log()
    for name, values_of in {"relative": relative, "log": log, "log_square": log**2}.items():
        torch.testing.assert_close(found.sums[name], values_of.flatten(1).sum(1), rtol=SCORE, atol=0, msg=name)
    exact = {
        "absolute": apart, "square": apart**2, "square_relative": apart * relative, "relative_square": relative**2,
        "inverse_absolute": inverse, "inverse_square": inverse**2, "log_absolute": log.abs(),
    }  # fmt: skip
    for name, values_of in exact.items():
        torch.testing.assert_close(found.sums[name][2], values_of[2].sum(), rtol=SCORE, atol=0, msg=name)
    # No pixel to fit, and nothing that could be scored.
    rules = Rules(space="disparity", fit_on="positive-prediction")
    nothing, wanted = both(-values, "disparity", depth, valid, True, rules)
    assert_same(nothing, wanted)
    assert nothing.metrics["abs_rel"].isnan().all()
    assert set(nothing.problems) == {0, 1, 2, 3}


@pytest.mark.parametrize("odd", [False, True])
def test_deltas_are_exact(odd):
    # As products, every ratio is compared as it is, not as it would be rounded.
    g = torch.Generator().manual_seed(0)
    depth = torch.rand((3, 30, 60), generator=g) * 10 + 0.5
    number = torch.tensor(DELTAS, dtype=torch.float64)[:, None, None]
    for way, step in itertools.product((1, -1), (-1, 0, 1)):
        values = (depth.double() * number**way).float()
        if step:
            values = torch.nextafter(values, torch.full_like(values, step * math.inf))
        if odd:  # One ratio beyond float32 has all of them taken in double.
            depth[:, 0, 0], values[:, 0, 0] = 1e-38, 5
        found = score_batch(
            values, "metric_depth", depth, torch.ones_like(depth, dtype=torch.bool), True, Rules("none", "depth")
        )
        for image, limit in enumerate(DELTAS):
            pairs = zip(values[image].flatten().tolist(), depth[image].flatten().tolist(), strict=True)
            exact = sum(max(Fraction(d) / Fraction(t), Fraction(t) / Fraction(d)) < Fraction(limit) for d, t in pairs)
            assert found.sums[f"below{image + 1}"][image] == exact


def test_logarithms():
    g = torch.Generator().manual_seed(0)
    spread = torch.logspace(-7, 1.2, 3000)
    depth = torch.rand((3000, 1, 1), generator=g) * 10 + 0.5
    values = depth * (spread * torch.randn(3000, generator=g)).clamp(-13, 13).exp()[:, None, None]
    rules = Rules("none", "depth", min_pixels=1)
    found = score_batch(values, "metric_depth", depth, torch.ones_like(depth, dtype=torch.bool), True, rules)
    truth = (values.double() / depth.double()).log().flatten()
    assert (found.sums["log"] - truth).abs().le(0.2 * SCORE * truth.abs()).all()


def test_a_ratio_that_is_nearly_constant_keeps_its_variance():
    # Of the sums of logarithms and of their squares hardly anything is left: rounded to float32 they give noise.
    g = torch.Generator().manual_seed(0)
    depth = torch.rand((4, 61, 83), generator=g) * 10 + 0.5
    values = depth * 2 * (1 + 0.01 * torch.randn(depth.shape, generator=g))
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    found = score_batch(values, "metric_depth", depth, everywhere, True, Rules("none", "depth"))
    exact = 100 * (values.double() / depth.double()).log().flatten(1).std(1, unbiased=False)
    torch.testing.assert_close(found.metrics["silog"], exact, rtol=SCORE, atol=0)


def test_maps_far_from_zero_keep_their_digits():
    values, depth, valid = make((2, 61, 83))
    far = values.double() * 1e-2 + 1000
    rounded = far.float().double() - 1000
    rules = Rules(space="disparity")
    found = score_batch(far.float(), "disparity", depth, valid, True, rules)
    near = score_batch(rounded.float(), "disparity", depth, valid, True, rules)
    for name in SUMS:
        torch.testing.assert_close(found.sums[name], near.sums[name], rtol=SCORE, atol=SCORE)
    constant = score_batch(torch.full_like(depth, 1 / 3), "disparity", depth, valid, True, rules)
    assert (constant.scale == 0).all()
    # What is summed up at a time is constant here, and the map is not.
    steps = torch.tensor([1.0, 2.0, 4.0])[None, :, None].expand(1, 3, 4096)
    stepped, wanted = both(steps, "disparity", 1 / (2 * steps + 1), torch.ones(1, 3, 4096) > 0, True, rules)
    assert_same(stepped, wanted)
    assert stepped.scale.item() == pytest.approx(2, rel=SCORE)


@pytest.mark.parametrize("crop", ["", "garg"])
def test_neither_threads_nor_other_images_change_a_bit(crop):
    maps = make((5, 301, 223))
    rules = Rules(space="disparity", score_crop=crop)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 8):
            torch.set_num_threads(threads)
            results.append(score_batch(maps[0], "disparity", *maps[1:], True, rules))
        singles = [[part[image : image + 1] for part in maps] for image in range(5)]
        alone = [score_batch(one, "disparity", *rest, True, rules) for one, *rest in singles]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other.sums[name], results[0].sums[name]) for name in SUMS)
        assert torch.equal(other.scale, results[0].scale)
    for image, one in enumerate(alone):
        assert all(torch.equal(one.sums[name][0], results[0].sums[name][image]) for name in SUMS)


def operands(batch=2):
    values, depth, valid = make((batch, 13, 18))
    bounds = torch.tensor([[0.5, 10.0]]).repeat(batch, 1)
    return values, depth, valid, bounds


def test_opcheck():
    for given_fit in (None, torch.tensor([[0.3, 0.1], [0.2, 0.0]], dtype=torch.float64)):
        arguments = (*operands(), [1, 12, 2, 18], given_fit, True, False, 1, 1e-3, 1e-6, math.inf)
        torch.library.opcheck(torch.ops.distilldepth.depth_sums.default, arguments)
    assert len(SUMS) == library.DEPTH_SUMS
    how = FitAndClip(in_disparity=True, fit_positive=False, floor_kind=FLOORS[0], floor=1e-6, low=1e-6, high=math.inf)
    sums, alignment = depth_sums(*operands(), (0, 13, 0, 18), None, how)
    assert (sums.shape, alignment.shape) == ((2, library.DEPTH_SUMS), (2, library.DEPTH_ALIGNMENT))


def test_who_takes_what(monkeypatch):
    values, depth, _, _ = operands()
    assert has_depth_sums(values, depth)
    assert not has_depth_sums(values.double(), depth)
    assert not has_depth_sums(values, depth.double())
    for backend in ("reference", "triton"):
        monkeypatch.setenv("DISTILLDEPTH_BACKEND", backend)
        assert not has_depth_sums(values, depth)
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "nativ")
    with pytest.raises(ValueError, match="did you mean 'native'"):
        has_depth_sums(values, depth)
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "native")
    assert has_depth_sums(values, depth)
    monkeypatch.setattr(native, "load", lambda kind: native.Status(kind, False, reason="gone"))
    with pytest.raises(DistillDepthError, match="gone"):
        has_depth_sums(values, depth)
    monkeypatch.delenv("DISTILLDEPTH_BACKEND")
    assert not has_depth_sums(values, depth)
    rules = Rules(space="disparity")
    maps = make((2, 20, 30))
    score_batch(maps[0], "disparity", maps[1], maps[2], True, rules)
