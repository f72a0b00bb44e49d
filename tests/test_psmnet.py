"""PSMNet: the official architecture written out a second time, official files, two views, and pixels into metres."""

from __future__ import annotations

import copy
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from tolerances import OFFICIAL
from torch import Tensor
from torch.nn import functional as F

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError
from distilldepth.models import DepthModel, count_parameters, create_student, describe, load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families import psmnet
from distilldepth.models.families.psmnet import VARIANTS, build, convert_official
from distilldepth.models.load import CheckpointWarning
from distilldepth.models.registry import ENTRIES, lookup, teacher_names

INFO = ModelInfo("psmnet-test", "psmnet", "disparity", "MIT", "random")
# No two depths alike, and cells that tiny images hold more than once.
SMALL = {"width": 3, "depths": [2, 3, 1, 4], "cells": [8, 16, 32, 64], "max_disparity": 192, "align_corners": True}
TINY = SMALL | {"max_disparity": 32, "cells": [1, 2, 3, 64]}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


# --- the official layout and what it computes, a second time ---


def official_shapes(width, depths) -> dict[str, tuple[int, ...]]:
    """Official name of every tensor: its shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.0.weight"] = (outputs, inputs, *kernel)
        shapes.update({f"{name}.1.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")})

    def cube(name: str, outputs: int, inputs: int) -> None:
        layer(name, outputs, inputs, 3, 3, 3)

    f, w = "feature_extraction", width
    layer(f"{f}.firstconv.0", w, 3, 3, 3)
    for place in (2, 4):
        layer(f"{f}.firstconv.{place}", w, w, 3, 3)
    inputs = w
    for stage, (outputs, depth) in enumerate(zip((w, 2 * w, 4 * w, 4 * w), depths, strict=True), 1):
        for place in range(depth):
            block = f"{f}.layer{stage}.{place}"
            layer(f"{block}.conv1.0", outputs, inputs, 3, 3)
            layer(f"{block}.conv2", outputs, outputs, 3, 3)
            if inputs != outputs:
                layer(f"{block}.downsample", outputs, inputs, 1, 1)
            inputs = outputs
    for branch in range(1, 5):
        layer(f"{f}.branch{branch}.1", w, 4 * w, 1, 1)
    layer(f"{f}.lastconv.0", 4 * w, 10 * w, 3, 3)
    shapes[f"{f}.lastconv.2.weight"] = (w, 4 * w, 1, 1)
    for name, entered in (("dres0.0", 2 * w), ("dres0.2", w), ("dres1.0", w), ("dres1.2", w)):
        cube(name, w, entered)
    for name in ("dres2", "dres3", "dres4"):
        cube(f"{name}.conv1.0", 2 * w, w)
        for step in ("conv2", "conv3.0", "conv4.0", "conv5"):
            cube(f"{name}.{step}", 2 * w, 2 * w)
        # The last one enlarges: its kernel is stored from inputs to outputs.
        cube(f"{name}.conv6", w, 2 * w)
        shapes[f"{name}.conv6.0.weight"] = (2 * w, w, 3, 3, 3)
    for place in (1, 2, 3):
        cube(f"classif{place}.0", w, w)
        shapes[f"classif{place}.2.weight"] = (1, w, 3, 3, 3)
    return shapes


def official_state(width: int, depths: list[int], contrast: float = 1.0) -> dict[str, Tensor]:
    """Weights in the official layout, drawn by numpy from the names; statistics are not the usual 0 and 1.

    `contrast`: of the scores, such that the softmax prefers some and chooses none.
    """
    state = {}
    for name, shape in official_shapes(width, depths).items():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
        if len(shape) > 1:
            is_score = name.startswith("classif") and name.endswith(".2.weight")
            spread = np.float32(np.sqrt((40 * contrast**2 if is_score else 18) / np.prod(shape[1:])))
            state[name] = torch.from_numpy((drawn - np.float32(0.5)) * spread)
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.from_numpy(drawn * np.float32(0.5) + np.float32(0.5))
        else:
            state[name] = torch.from_numpy((drawn - np.float32(0.5)) * np.float32(0.4))
    return state


class Official:
    """What the official network computes from such a state, in float64."""

    def __init__(self, state: dict[str, Tensor], architecture: dict, *, training: bool = False) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.depths, self.count = architecture["depths"], architecture["max_disparity"]
        self.cells, self.corners = architecture["cells"], architecture["align_corners"]
        self.training = training

    def layer(self, name: str, x: Tensor, stride: int = 1, dilation: int = 1, *, up: bool = False) -> Tensor:
        weight, (scale, bias, mean, var) = self.state[f"{name}.0.weight"], (
            self.state[f"{name}.1.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )  # fmt: skip
        padding = dilation * (weight.shape[-1] // 2)
        if up:
            x = F.conv_transpose3d(x, weight, None, 2, 1, 1)
        elif weight.ndim == 5:
            x = F.conv3d(x, weight, None, stride, padding)
        else:
            x = F.conv2d(x, weight, None, stride, padding, dilation)
        sides = [0, *range(2, x.ndim)]
        if self.training:
            mean, var = x.mean(sides), x.var(sides, correction=0)
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * scale.view(shape) + bias.view(shape)

    def features(self, view: Tensor) -> Tensor:
        f, x, levels = "feature_extraction", view, []
        for place in (0, 2, 4):
            x = self.layer(f"{f}.firstconv.{place}", x, 1 if place else 2).relu()
        for stage, (depth, dilation) in enumerate(zip(self.depths, (1, 1, 1, 2), strict=True), 1):
            for place in range(depth):
                block, stride = f"{f}.layer{stage}.{place}", 2 if (stage, place) == (2, 0) else 1
                y = self.layer(f"{block}.conv1.0", x, stride, dilation).relu()
                y = self.layer(f"{block}.conv2", y, 1, dilation)
                if f"{block}.downsample.0.weight" in self.state:
                    x = self.layer(f"{block}.downsample", x, stride)
                x = x + y
            levels.append(x)
        size, parts = x.shape[2:], [levels[1], x]
        for branch, cell in zip((4, 3, 2, 1), self.cells, strict=True):
            y = F.avg_pool2d(x, [min(cell, side) for side in size])
            y = self.layer(f"{f}.branch{branch}.1", y).relu()
            parts.append(F.interpolate(y, size, mode="bilinear", align_corners=self.corners))
        x = self.layer(f"{f}.lastconv.0", torch.cat(parts, 1)).relu()
        return F.conv2d(x, self.state[f"{f}.lastconv.2.weight"])

    def hourglass(self, name: str, x: Tensor, inner: Tensor | None, outer: Tensor | None) -> tuple[Tensor, ...]:
        y = self.layer(f"{name}.conv2", self.layer(f"{name}.conv1.0", x, 2).relu())
        down = (y if outer is None else y + outer).relu()
        y = self.layer(f"{name}.conv4.0", self.layer(f"{name}.conv3.0", down, 2).relu()).relu()
        up = (self.layer(f"{name}.conv5", y, up=True) + (down if inner is None else inner)).relu()
        return self.layer(f"{name}.conv6", up, up=True), down, up

    def __call__(self, images: Tensor) -> list[Tensor]:
        """What each hourglass says of pairs `(B, 6, H, W)`, filled up above and at the right."""
        height, width = images.shape[2:]
        above, beside = -height % 16, -width % 16
        left, right = ((view - MEAN.double()) / STD.double() for view in images.double().split(3, 1))
        left, right = (self.features(F.pad(view, (0, beside, above, 0))) for view in (left, right))
        volume = slow_volume(left, right, self.count // 4)
        volume = self.layer("dres0.2", self.layer("dres0.0", volume).relu()).relu()
        volume = self.layer("dres1.2", self.layer("dres1.0", volume).relu()) + volume
        found, out, first, outer, total = [], volume, None, None, 0.0
        for place in (1, 2, 3):
            grown, down, outer = self.hourglass(f"dres{place + 1}", out, first, outer)
            first = down if place == 1 else first
            out = grown + volume
            head = self.layer(f"classif{place}.0", out).relu()
            total = F.conv3d(head, self.state[f"classif{place}.2.weight"], padding=1) + total
            size = [self.count, height + above, width + beside]
            scores = F.interpolate(total, size, mode="trilinear", align_corners=self.corners)
            shares = scores[:, 0].softmax(1)
            mean = sum(d * shares[:, d] for d in range(self.count))
            found.append(mean[:, above:, :width])
        return found


def slow_volume(left: Tensor, right: Tensor, count: int) -> Tensor:
    batch, channels, height, width = left.shape
    volume = torch.zeros(batch, 2 * channels, count, height, width, dtype=left.dtype)
    for d in range(count):
        for x in range(d, width):
            volume[:, :channels, d, :, x] = left[..., x]
            volume[:, channels:, d, :, x] = right[..., x - d]
    return volume


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def counted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch saves it from 0.4.1 on."""
    means = [name for name in state if name.endswith(".running_mean")]
    return state | {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in means}


def official_file(state: dict[str, Tensor]) -> dict:
    return {"state_dict": under("module.", state)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.delenv("DISTILLDEPTH_CHECKPOINTS", raising=False)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(SMALL["width"], SMALL["depths"])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 6, 41, 70, generator=torch.Generator().manual_seed(1))


def tiny(state: dict[str, Tensor], **changes) -> psmnet.PSMNetDepth:
    """The weights in a network whose volume is small."""
    model = build(TINY | changes, INFO).eval()
    model.load_state_dict(convert_official(state)[0])
    return model


# --- the numbers ---


def test_the_network_has_the_published_size():
    with torch.device("meta"):
        model = build({"variant": "stacked-hourglass"}, INFO)
    assert count_parameters(model) == ENTRIES["psmnet-kitti2015"].parameters == 5_224_768
    groups = model.parameter_groups()
    assert count_parameters(model) == sum(p.numel() for group in groups.values() for p in group)
    # Those of the published file, whose normalisations do not count batches.
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(names) == len(official_shapes(32, VARIANTS["stacked-hourglass"]["depths"])) == 429
    assert (DepthModel.views, model.views) == (1, 2)


@pytest.mark.parametrize("corners", [True, False])
def test_the_map_is_that_of_the_official_formulas(state, images, corners):
    architecture = TINY | {"align_corners": corners}
    expected = Official(state, architecture)(images)[-1]
    model = tiny(state, align_corners=corners).double()
    output = model(images.double(), features=True)
    assert expected.std() > 1
    torch.testing.assert_close(output.values, expected, rtol=1e-9, atol=1e-9)
    assert output.extras == {}
    assert output.features["encoder"].shape == (2, 3, 12, 20)
    other = tiny(state, align_corners=not corners).double()(images.double()).values
    assert (other - expected).abs().max() > 0.1
    swapped = model(images.double().roll(3, 1)).values
    assert (swapped - expected).abs().max() > 0.1


def test_training_says_what_each_hourglass_does(state, images):
    expected = Official(state, TINY, training=True)(images)
    output = tiny(state).double().train()(images.double())
    found = [output.extras["hourglass1"], output.extras["hourglass2"], output.values]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (found[0] - found[2]).abs().max() > 0.1


def test_float32_is_near_the_truth(state, images):
    expected = Official(state, TINY)(images)[-1]
    model = tiny(state)
    values = model(images).values
    assert values.dtype == torch.float32
    assert (values - expected).abs().max() < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images).values
    assert half.dtype == torch.float32
    assert (half - expected).abs().mean() < 1


# JiaRenChang/PSMNet 87ac909, models/stackhourglass.py in float64 with maxdisp 32, its pools 64, 32, 16 and 8 made 4, 3,
# 2 and 1 for a small image, its upsample with align_corners as given: mean, deviation and four pixels
OFFICIAL_MAPS = {
    True: (
        18.63105890504372, 5.79466926169857, 9.40009856839487, 15.160632058133258, 25.944385591602064,
        21.07158772852205,
    ),
    False: (
        18.813314062602984, 5.87723713245828, 7.5651590242823, 15.050465818447904, 27.619543132797993,
        21.086814596445947,
    ),
}  # fmt: skip


@pytest.mark.parametrize("corners", [True, False])
def test_the_numbers_are_those_of_the_official_code(corners):
    changes = {"max_disparity": 32, "cells": [1, 2, 3, 4], "align_corners": corners}
    model = build({"variant": "stacked-hourglass"} | changes, INFO).eval()
    model.load_state_dict(convert_official(official_state(32, VARIANTS["stacked-hourglass"]["depths"], 0.02))[0])
    pixels = torch.from_numpy(np.random.default_rng(4).random((1, 6, 32, 64)))
    with torch.no_grad():
        values = model.double()(pixels).values[0]
    found = values.mean(), values.std(), values[0, 0], values[5, 40], values[20, 63], values[31, 17]
    assert [float(number) for number in found] == pytest.approx(OFFICIAL_MAPS[corners], rel=OFFICIAL)


@pytest.mark.parametrize(("count", "width"), [(1, 5), (4, 7), (6, 3)])
def test_the_volume_is_that_of_the_loop(count, width):
    left, right = torch.randn(2, 2, 3, 4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(psmnet._volume(left, right, count), slow_volume(left, right, count))
    inputs = left[:1, :2, :2].requires_grad_(), right[:1, :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda *views: psmnet._volume(*views, count), inputs)


def test_disparity_is_the_mean_over_the_softmax():
    model = build(TINY | {"max_disparity": 16}, INFO)
    # At 1/4 the scores have a corner at every fourth disparity, kept in place: 0, 5, 10 and 15.
    scores = torch.full((1, 1, 4, 2, 2), -60.0, dtype=torch.float64)
    scores[:, :, 2] = 60
    values = model._disparity(scores, (16, 8, 8))
    torch.testing.assert_close(values, torch.full((1, 8, 8), 10.0, dtype=torch.float64), rtol=0, atol=1e-3)
    assert model._disparity(torch.zeros_like(scores), (16, 8, 8)).unique().tolist() == pytest.approx([7.5])


# --- pairs, pixels and metres ---


def test_estimates_are_at_the_images_own_size(state, images):
    model = tiny(state)
    values = model.estimate(images)
    torch.testing.assert_close(values, model(images).values, rtol=0, atol=1e-4)
    depth = model.metric_depth(images, 721.5, 0.54)
    torch.testing.assert_close(depth, 721.5 * 0.54 / values, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"focal_px and baseline_m must be positive, got 0 and 0\.54"):
        model.metric_depth(images, 0, 0.54)


def test_what_does_not_fit_is_refused(state, images, monkeypatch):
    monkeypatch.setattr("distilldepth.capacity.total_memory", lambda *_: 8 * 32 * 2 * 41 * 70 - 1)
    with pytest.raises(DistillDepthError, match="2 x 41 x 70 pixels in psmnet-test would take at least") as caught:
        tiny(state).estimate(images)
    assert str(caught.value).endswith("give it fewer or smaller pairs, or a smaller --size")


@pytest.mark.parametrize("call", [DepthModel.__call__, DepthModel.estimate])
def test_a_single_view_is_refused_in_one_line(state, images, call):
    model = tiny(state)
    call = {DepthModel.estimate: model.estimate}.get(call, model)
    told = r"^psmnet-test: images must be \(B, 6, H, W\), the left and the right view .* a single view$"
    with pytest.raises(ValueError, match=told):
        call(images[:, :3])


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (1, 1), (30, 90)])
def test_any_size_will_do(state, size):
    output = tiny(state)(torch.rand(2, 6, *size))
    assert output.values.shape == (2, *size)
    assert output.values.isfinite().all()
    assert tiny(state)(torch.rand(0, 6, *size)).values.shape == (0, *size)


def test_every_parameter_learns_and_computing_again_changes_nothing(state, images):
    found = []
    for again in (False, True):
        trained = tiny(state).double().train()
        if again:
            trained.enable_gradient_checkpointing()
        pair = images.double().requires_grad_()
        output = trained(pair)
        sum(values.std() for values in (output.values, *output.extras.values())).backward()
        counts = {name: int(v) for name, v in trained.state_dict().items() if name.endswith("num_batches_tracked")}
        # One view after the other.
        assert {name.partition(".")[0]: count for name, count in counts.items()}["features"] == 2
        assert set(counts.values()) == {1, 2}
        found.append({name: parameter.grad for name, parameter in trained.named_parameters()} | {"images": pair.grad})
    plain, again = found
    for name, gradient in plain.items():
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-9, name
        torch.testing.assert_close(again[name], gradient, rtol=1e-7, atol=1e-10)
    assert plain["images"][:, 3:].abs().max() > 1e-9


# --- official files ---


@pytest.mark.parametrize(
    "wrapped",
    [official_file, lambda state: state, lambda state: {"epoch": 3, "train_loss": 0.1, "model": under("net.", state)}],
    ids=["official", "bare", "training"],
)
def test_official_files_load(state, wrapped):
    name = "pretrained_model_KITTI2015.tar"
    # The published file is of this older form.
    torch.save(wrapped(state), name, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        model = load_model(name)
    assert (model.info.family, model.info.quantity, model.info.notes) == ("psmnet", "disparity", ())
    assert model.architecture == SMALL
    assert not model.training
    named = load_model(f"psmnet@{name}")
    assert "non-commercial" in named.info.licence
    expected = convert_official(state)[0]
    for loaded in (model.state_dict(), named.state_dict()):
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.items())


def test_files_that_count_batches_are_taken_for_later_ones(state):
    torch.save(official_file(counted(state)), "new.tar")
    with pytest.warns(CheckpointWarning, match=r"new\.tar: does not say how maps are enlarged; .*align_corners=False"):
        model = load_model("new.tar")
    assert model.architecture == SMALL | {"align_corners": False}
    assert {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")} == {7}
    save_file(under("module.", counted(state)), "new.safetensors")
    with pytest.warns(CheckpointWarning, match="does not say how"):
        assert load_model("new.safetensors").architecture == model.architecture


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ("a.tar", lambda s: without(s, "dres3.conv2.1.bias"), r"1 missing: hourglasses\.1\.at_half_again\.1\.bias"),
        ("a.tar", lambda s: without(s, "dres0.0.1.running_var"), r"1 missing: enter\.0\.1\.running_var"),
        ("a.tar", lambda s: without(s, "feature_extraction.firstconv.0.0.weight"), "lacks 'features.stem.0.0.weight'"),
        ("a.tar", lambda s: s | {"classif0.2.weight": torch.ones(2)}, r"1 unexpected: classif0\.2\.weight"),
        ("a.tar", lambda s: s | {"dres4.conv6.1.bias": torch.ones(2)}, r"bias \(2,\) instead of \(3,\)"),
        ("a.tar", lambda s: s | {"dres1.0.1.bias": torch.full((3,), torch.nan)}, "not finite"),
        (
            "a.tar",
            lambda s: s | {"feature_extraction.layer2.999999.conv2.0.weight": torch.ones(6, 6, 3, 3)},
            "the last ones have the numbers",
        ),
        ("dav2@a.tar", dict, "holds a PSMNet network, but 'dav2' is not one"),
        ("leres@a.tar", dict, "holds a PSMNet network, but 'leres' is not one"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(state, spec, change, message):
    torch.save(official_file(change(state)), "a.tar")
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(spec)
    assert "a.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_unit_is_refused(state):
    torch.save(official_file(state), "a.tar")
    with pytest.raises(ValueError, match="leave max_depth out"):
        load_model("a.tar", max_depth=80)


# --- names, folders, command lines ---


def test_names():
    assert lookup("psmnet") is lookup("psmnet:kitti2015") is ENTRIES["psmnet-kitti2015"]
    assert {"psmnet", "psmnet-kitti2015"} <= set(teacher_names())
    row = next(row for row in describe("teacher") if row["name"] == "psmnet-kitti2015")
    assert (row["quantity"], row["at_hand"]) == ("disparity", False)
    assert "non-commercial" in row["licence"]
    done = CliRunner().invoke(cli, ["list", "teachers", "--json", "-"])
    assert any(row["name"] == "psmnet-kitti2015" and row["also"] == "psmnet" for row in json.loads(done.stdout))
    with pytest.raises(ValueError, match="'psmnet' is a teacher only"):
        create_student("psmnet")


def test_where_the_file_is_looked_for_and_comes_from(state):
    with pytest.raises(DistillDepthError) as caught:
        load_model("psmnet")
    for words in (
        "no weights of 'psmnet-kitti2015'",
        "JiaRenChang/PSMNet",
        "checkpoints/pretrained_model_KITTI2015.tar",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: elsewhere\.tar"):
        load_model("elsewhere.tar")
    Path("checkpoints").mkdir()
    torch.save(official_file(state), "checkpoints/pretrained_model_KITTI2015.tar")
    assert load_model("psmnet").info.name == "psmnet-kitti2015"
    assert load_model("checkpoints").info.name == "checkpoints"


def test_commands_that_are_given_single_views_say_so_in_one_line(state):
    torch.save(official_file(state), "a.tar")
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save("a.png")
    predict = ["predict", "a.png", "-o", "a.npy", "--model", "psmnet@a.tar"]
    distill = [
        "distill", "--teachers", "psmnet@a.tar", "--student", "light-mini", "--images", "scenes:4", "--size", "64x96",
        "--batch-size", "2", "--workers", "0", "--heldout", "2", "--steps", "2", "--device", "cpu", "--log", "none",
        "--out", "run",
    ]  # fmt: skip
    for arguments, code, told in (
        (predict, 2, "sees two views of a scene, and there is one here; give the right view"),
        (distill, 2, "psmnet sees both views of stereo pairs, and the images have one"),
    ):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == code, done.output
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("distilldepth: error: ")
        assert told in last
        assert "Traceback" not in done.output
    assert not Path("a.npy").exists()


def test_saving_and_building_again(state, images):
    model = tiny(state, align_corners=False)
    again = load_model(save_model(model, "saved"))
    assert (again.architecture, again.preprocessing) == (model.architecture, model.preprocessing)
    assert torch.equal(again(images).values, model(images).values)
    config = json.loads(Path("saved/config.json").read_text())
    config["architecture"]["max_disparity"] = 24
    Path("saved/config.json").write_text(json.dumps(config))
    with pytest.raises(DistillDepthError, match="max_disparity must be a multiple of 16, got 24"):
        load_model("saved")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"variant": "stacked"}, "did you mean 'stacked-hourglass'"),
        ({"variant": "stacked-hourglass", "depth": [1] * 4}, "did you mean 'depths'"),
        ({"width": 4}, "needs depths, cells, max_disparity, align_corners"),
        (SMALL | {"depths": [1] * 3}, "depths must have 4 entries, got 3"),
        (SMALL | {"cells": []}, "cells must have at least one entry"),
        (SMALL | {"max_disparity": 40}, "max_disparity must be a multiple of 16, got 40"),
    ],
)
def test_a_bad_architecture_says_what_is_wrong(architecture, message):
    with pytest.raises(ValueError, match=message):
        build(architecture, INFO)


def test_a_copy_is_another_network(state, images):
    model = tiny(state)
    other = copy.deepcopy(model)
    other.architecture["depths"].append(9)
    assert other.architecture == model.architecture
    assert torch.equal(other(images).values, model(images).values)
