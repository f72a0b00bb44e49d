"""Protocols: their files, their effective rules, their labels, and their crops in pixels."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from distilldepth.cli.evaluate import evaluate as evaluate_command
from distilldepth.evaluate.protocol import PROTOCOLS, Protocol, Rules, choose_protocol, crop_box, parse_protocol

NAMES = {
    "affine-depth", "affine-disparity", "bts", "completion", "dav2", "distill-any-depth", "eigen", "genpercept",
    "kitti-benchmark", "marigold", "metric", "moge", "newcrfs", "scale-depth", "zoedepth",
}  # fmt: skip
QUANTITIES = ("disparity", "depth", "metric_depth")


def test_every_protocol_says_what_it_is_and_comes_back_from_json():
    assert set(PROTOCOLS) == NAMES
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.summary
        assert protocol.source.endswith(".")
        for variant in (protocol, *map(protocol.for_quantity, QUANTITIES)):
            assert Protocol.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant
            for kind in ("", "nyuv2", "kitti-eigen", "never heard of"):
                rules = variant.rules(kind)
                assert Rules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules


def test_protocols_need_no_torch():
    code = "import sys; sys.modules['torch'] = None\nfrom distilldepth.evaluate.protocol import PROTOCOLS\n"
    done = subprocess.run([sys.executable, "-c", code + "assert [*PROTOCOLS.values()]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("crop", "frame", "box"),
    [
        ("kb", (375, 1242), (23, 375, 13, 1229)),
        ("kb", (370, 1226), (18, 370, 5, 1221)),
        ("kb", (376, 1241), (24, 376, 12, 1228)),
        ("eigen-nyu", (480, 640), (45, 471, 41, 601)),
        ("eigen", (352, 1216), (117, 321, 43, 1172)),
        ("garg", (352, 1216), (143, 349, 43, 1172)),
        ("eigen", (375, 1242), (124, 342, 44, 1197)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("", (7, 9), (0, 7, 0, 9)),
    ],
)
def test_crops_in_pixels(crop, frame, box):
    assert crop_box(crop, *frame) == box


def test_crops_refuse_other_frames():
    with pytest.raises(ValueError, match="480 x 640"):
        crop_box("eigen-nyu", 240, 320)
    with pytest.raises(ValueError, match="352 x 1216"):
        crop_box("kb", 352, 1215)
    with pytest.raises(ValueError, match="did you mean 'garg'"):
        crop_box("gargg", 352, 1216)


@pytest.mark.parametrize("name", ["marigold", "genpercept", "distill-any-depth"])
def test_the_constants_of_marigold(name):
    disparity, depth = (choose_protocol(quantity, name=name) for quantity in ("disparity", "depth"))
    assert (disparity.space, depth.space) == ("disparity", "depth")
    assert (disparity.rules().fit_on, depth.rules().fit_on) == ("positive-prediction", "valid")
    assert (disparity.rules().disparity_floor, depth.rules().disparity_floor) == (1e-3, None)
    limits = {
        kind: (rules.min_depth, rules.max_depth, rules.clip_low, rules.clip_high, rules.image_crop, rules.score_crop)
        for kind in ("nyuv2", "kitti-eigen", "eth3d", "scannet", "diode", "")
        for rules in [depth.rules(kind)]
    }
    inf = float("inf")
    assert limits == {
        "nyuv2": (1e-3, 10, 1e-3, 10, "", "eigen-nyu"),
        "kitti-eigen": (1e-5, 80, 1e-5, 80, "kb", "eigen"),
        "eth3d": (1e-5, inf, 1e-5, None, "", ""),
        "scannet": (1e-3, 10, 1e-3, 10, "", ""),
        "diode": (0, inf, 0.6, 350, "", ""),
        "": (0, inf, None, None, "", ""),
    }
    assert depth.rules("nyuv2").field == "raw"
    assert {depth.rules(kind).bounds for kind in limits} == {"strict"}
    assert (depth.rules("eth3d").align_max_res, depth.rules("eth3d").align_max_res_style) == (1024, "width-only")
    assert depth.rules("nyuv2").align_max_res == 0


def test_the_constants_of_the_others():
    for name, crop, resize in (
        ("newcrfs", "kb", "bilinear"), ("bts", "kb-in-frame", "bilinear"), ("zoedepth", "kb", "bilinear-corners"),
    ):  # fmt: skip
        line = choose_protocol("metric_depth", name=name)
        kitti, nyu = line.rules("kitti-eigen"), line.rules("nyuv2")
        assert (line.align, kitti.image_crop, kitti.score_crop, kitti.resize) == ("none", crop, "garg", resize)
        assert (kitti.min_depth, kitti.max_depth, nyu.max_depth, nyu.clip_high) == (1e-3, 80, 10, 10)
        assert (nyu.score_crop, nyu.resize) == ("eigen-nyu", resize)
    eigen = choose_protocol("metric_depth", name="eigen").rules("kitti-eigen")
    assert (eigen.image_crop, eigen.score_crop) == ("", "eigen")
    dav2 = choose_protocol("disparity", name="dav2")
    kitti = dav2.rules("kitti-eigen")
    assert (kitti.image_crop, kitti.score_crop, kitti.clip_high, kitti.bounds) == ("", "garg", 80, "inclusive")
    assert (dav2.rules("nyuv2").field, dav2.rules("nyuv2").score_crop) == ("raw", "eigen-nyu")
    trained = choose_protocol("metric_depth", name="dav2")
    assert trained.align == "none"
    indoor, outdoor = trained.rules("nyuv2"), trained.rules("kitti-eigen")
    assert (indoor.max_depth, outdoor.max_depth, indoor.score_crop, indoor.clip_high) == (20, 80, "", None)
    assert (indoor.min_pixels, indoor.resize) == (10, "bilinear-corners")
    moge = {quantity: choose_protocol(quantity, name="moge") for quantity in QUANTITIES}
    assert [moge[quantity].align for quantity in QUANTITIES] == ["least-squares", "l1", "none"]
    assert moge["disparity"].rules().disparity_floor == "farthest"
    assert choose_protocol("metric_depth", name="kitti-benchmark").rules().fill_holes


def test_a_former_name_leads_to_the_new_one_and_says_so():
    with pytest.warns(UserWarning, match="bts-garg: is called newcrfs now; the evaluation of BTS itself is bts"):
        chosen = choose_protocol("metric_depth", name="bts-garg", overrides={"max_depth": 60})
    assert chosen.name == "custom (max_depth=60.0 on newcrfs)"
    assert "bts-garg" in PROTOCOLS
    assert "bts-garg" not in list(PROTOCOLS)
    # An evaluation of before the change is one under the new name.
    saved = {**PROTOCOLS["newcrfs"].to_dict(), "name": "bts-garg"}
    assert Protocol.from_dict(saved) == PROTOCOLS["newcrfs"]


def test_an_override_changes_the_label_and_every_kind_of_data():
    plain = choose_protocol("disparity", name="marigold", overrides={"bounds": "strict"})
    assert plain.name == "marigold"
    changed = choose_protocol("disparity", name="marigold", overrides={"min_depth": 0.5, "score_crop": "none"})
    assert changed.name == "custom (min_depth=0.5, score_crop=none on marigold)"
    for kind in ("", "nyuv2", "kitti-eigen"):
        assert (changed.rules(kind).min_depth, changed.rules(kind).score_crop) == (0.5, "")
    assert changed.rules("nyuv2").max_depth == 10
    assert PROTOCOLS["marigold"].rules("nyuv2").min_depth == 1e-3
    other = choose_protocol("disparity", overrides={"space": "depth"})
    assert (other.name, other.space) == ("custom (space=depth on affine-disparity)", "depth")


def test_the_words_above_a_table():
    protocol = choose_protocol("disparity", name="marigold")
    assert protocol.describe().startswith("marigold: least-squares alignment in disparity per image, scored in depth")
    lines = protocol.effective(["kitti-eigen", "", "kitti-eigen"]).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("kitti-eigen: truth 1e-05 < depth < 80 m, images cropped to 352 x 1216 (kb), eigen crop")
    assert lines[1].startswith("own data: ")
    assert "0.001 <= depth <= 10 m" in choose_protocol("disparity", name="dav2").effective(["nyuv2"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_protocol("disparity", name="marygold"), "did you mean 'marigold'"),
        (lambda: choose_protocol("disparity", overrides={"min_deph": 1}), "did you mean 'min_depth'"),
        (lambda: choose_protocol("disparity", overrides={"align": "least_squares"}), "did you mean 'least-squares'"),
        (lambda: choose_protocol("disparity", overrides={"min_depth": 5, "max_depth": 2}), "min_depth < max_depth"),
        (lambda: choose_protocol("depth", overrides={"align": "none"}), "no unit"),
        (lambda: choose_protocol("disparity", name="newcrfs"), "no unit"),
        (lambda: Rules(disparity_floor="relativ"), "did you mean 'relative'"),
        (lambda: Rules(clip_low=3, clip_high=2), "clip_low < clip_high"),
        (lambda: parse_protocol("mine", 'summary = "s"\nsource = "t"\n[rule]'), "mine: unknown key 'rule'"),
        (lambda: parse_protocol("mine", 'summary = "s"'), "lacks 'source'"),
        (lambda: parse_protocol("mine", 'summary = "s"\nsource = "t"\n[dataset.x]\nalig = 1'), "did you mean 'align'"),
        (
            lambda: parse_protocol(
                "mine", 'summary = "s"\nsource = "t"\n[quantity.depth.dataset.x]\nclip_low = 2\nclip_high = 1'
            ),
            "mine: Rules: must have clip_low",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_the_names_are_completed():
    (option,) = (option for option in evaluate_command.params if "--protocol" in option.opts)
    found = option.type.shell_complete(click.Context(evaluate_command), option, "ne")
    assert [item.value for item in found] == ["newcrfs"]
