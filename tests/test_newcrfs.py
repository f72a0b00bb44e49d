"""NeWCRFs: numbers of the official code, its files, windows by loops, and two views."""

from __future__ import annotations

import copy
import json
import math
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

from distilldepth import DepthModel
from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError
from distilldepth.models import count_parameters, create_student, describe, load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.encoder import keep_encoder
from distilldepth.models.families.newcrfs import (
    VARIANTS,
    CRFBlock,
    Windows,
    _run_swin,
    build,
    convert_official,
    with_two_views,
)
from distilldepth.models.preprocess import target_size
from distilldepth.models.registry import ENTRIES, lookup, student_names, teacher_names

INFO = ModelInfo("newcrfs-test", "newcrfs", "metric_depth", "MIT", "random")
# No two widths alike where the network lets them differ; at 1/8 neither map is projected.
SMALL = {
    "width": 8,
    "depths": [2, 1, 3, 2],
    "heads": [1, 2, 2, 4],
    "window": 3,
    "crf": [12, 16, 64, 40],
    "crf_heads": [3, 2, 4, 5],
    "pyramid": 6,
    "drop_path": 0.3,
    "max_depth": 80,
    "views": 1,
}


# --- the official layout ---


def official_shapes(architecture: dict) -> dict[str, tuple[int, ...]]:
    """Official name of every tensor: its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    side = architecture["window"]

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def block(name: str, width: int, heads: int, mixed: str, times: int) -> None:
        layer(f"{name}.norm1", width)
        shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * side - 1) ** 2, heads)
        shapes[f"{name}.attn.relative_position_index"] = (side**2, side**2)
        layer(f"{name}.attn.{mixed}", times * width, width)
        layer(f"{name}.attn.proj", width, width)
        layer(f"{name}.norm2", width)
        layer(f"{name}.mlp.fc1", 4 * width, width)
        layer(f"{name}.mlp.fc2", width, 4 * width)

    widths = [architecture["width"] << stage for stage in range(4)]
    layer("backbone.patch_embed.proj", widths[0], 3 * architecture["views"], 4, 4)
    layer("backbone.patch_embed.norm", widths[0])
    for stage, (width, depth, heads) in enumerate(
        zip(widths, architecture["depths"], architecture["heads"], strict=True)
    ):
        for place in range(depth):
            block(f"backbone.layers.{stage}.blocks.{place}", width, heads, "qkv", 3)
        if stage < 3:
            layer(f"backbone.layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
            layer(f"backbone.layers.{stage}.downsample.norm", 4 * width)
        layer(f"backbone.norm{stage}", width)
    crf, pyramid = architecture["crf"], architecture["pyramid"]
    for level, (width, heads) in enumerate(zip(crf, architecture["crf_heads"], strict=True)):
        below = pyramid if level == 3 else crf[level + 1] // 4
        if widths[level] != width:
            layer(f"crf{level}.proj_x", width, widths[level], 3, 3)
        if below != width:
            layer(f"crf{level}.proj_v", width, below, 3, 3)
        for place in range(2):
            block(f"crf{level}.crf_layer.blocks.{place}", width, heads, "qk", 2)
        layer(f"crf{level}.norm_crf", width)
    for place in range(4):
        layer(f"decoder.psp_modules.{place}.1.conv", pyramid, widths[3], 1, 1, bias=False)
        layer(f"decoder.psp_modules.{place}.1.gn", pyramid)
    layer("decoder.bottleneck.conv", pyramid, widths[3] + 4 * pyramid, 3, 3, bias=False)
    layer("decoder.bottleneck.bn", pyramid)
    for part in ("running_mean", "running_var"):
        shapes[f"decoder.bottleneck.bn.{part}"] = (pyramid,)
    shapes["decoder.bottleneck.bn.num_batches_tracked"] = ()
    layer("disp_head1.conv1", 1, crf[0], 3, 3)
    return shapes


def places(side: int) -> Tensor:
    """Row of the table of biases for every pair of positions of a window."""
    at = [(row, column) for row in range(side) for column in range(side)]
    rows = [[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1 for c, d in at] for a, b in at]
    return torch.tensor(rows)


def official_state(architecture: dict) -> dict[str, Tensor]:
    """Weights in the official layout, drawn by numpy from the names; statistics are not the usual 0 and 1."""
    state = {}
    for name, shape in official_shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        if name.endswith("relative_position_index"):
            state[name] = places(architecture["window"])
            continue
        drawn = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32) - np.float32(0.5)
        if name.endswith("bias_table"):
            drawn *= 4
        elif len(shape) > 1:
            drawn *= np.float32(math.sqrt(18 / math.prod(shape[1:])))
        elif name.endswith(("weight", "running_var")):
            drawn += np.float32(1)
        state[name] = torch.from_numpy(drawn)
    return state


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def official_file(state: dict[str, Tensor]) -> dict:
    """What `model_kittieigen.ckpt` holds."""
    return {
        "global_step": 72000,
        "model": under("module.", state),
        "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 2e-5}]},
        "best_eval_measures_higher_better": torch.zeros(3),
        "best_eval_measures_lower_better": torch.zeros(6) + 1e3,
        "best_eval_steps": np.zeros(9, np.int32),
    }


def network(architecture: dict):
    """The network with the weights of `official_state`."""
    converted, unknown = convert_official(official_state(architecture))
    assert not unknown
    model = build(architecture, INFO).eval()
    model.load_state_dict(converted)
    return model


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.delenv("DISTILLDEPTH_CHECKPOINTS", raising=False)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(SMALL)


@pytest.fixture(scope="module")
def small():
    return network(SMALL)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


# --- size and numbers ---


@pytest.mark.parametrize(
    ("variant", "encoder", "decoder"),
    [("micro", 2.283, 2.293), ("tiny", 27.521, 60.935), ("base", 86.745, 53.236), ("large", 194.998, 75.447)],
)
def test_the_networks_have_the_published_sizes(variant, encoder, decoder):
    with torch.device("meta"):
        model = build({"variant": variant}, INFO)
    groups = model.parameter_groups()
    millions = {name: round(sum(p.numel() for p in group) / 1e6, 3) for name, group in groups.items()}
    assert millions == {"encoder": encoder, "decoder": decoder}
    assert count_parameters(model) == sum(p.numel() for group in groups.values() for p in group)
    assert count_parameters(model) == ENTRIES[f"newcrfs-{variant}"].parameters
    converted = {name for name in official_shapes(VARIANTS[variant]) if not name.endswith("position_index")}
    # Queries, keys and values are three tensors here.
    thirds = 4 * sum(VARIANTS[variant]["depths"])
    assert len(converted) + thirds == len(model.state_dict())


# NeWCRFs d327bf7: its classes in float64, `micro` with half as many groups as channels in the pyramid, as its 256 are
# of 512: mean, deviation and five pixels
OFFICIAL_NUMBERS = {
    ("micro", 96, 224, 80): (
        66.24301515753537, 5.942369567180446, 72.89303278516448, 74.24961360071607, 65.83087947867986,
        74.59537451953368, 54.11718378408733,
    ),
    ("micro", 32, 64, 10): (
        8.217089380736061, 0.9047219092039747, 8.896414244985571, 9.028083085165001, 7.699633384758874,
        9.225266078070675, 5.880627888988603,
    ),
    ("tiny", 32, 64, 80): (
        67.04558160029882, 6.280546826455375, 49.91781802377437, 74.01237848740789, 50.595947467534984,
        56.64056799982481, 58.60728670250546,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OFFICIAL_NUMBERS, ids=lambda case: "-".join(map(str, case)))
def test_the_numbers_are_those_of_the_official_code(case):
    variant, height, width, max_depth = case
    model = network(VARIANTS[variant] | {"max_depth": max_depth}).double()
    pixels = torch.from_numpy(np.random.default_rng(4).random((1, 3, height, width)))
    with torch.inference_mode():
        values = model(pixels).values[0]
    assert values.shape == (height, width)
    found = values.mean(), values.std(), values[0, 0], values[5, 40], values[20, 63], values[31, 17], values[-1, -1]
    assert [float(number) for number in found] == pytest.approx(OFFICIAL_NUMBERS[case], rel=OFFICIAL)


def test_float32_is_near_the_truth(state, small, images):
    torch.save(official_file(state), "kitti.ckpt")
    single = load_model("kitti.ckpt")
    truth = copy.deepcopy(small).double()(images.double()).values
    values = single(images).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), truth, rtol=1e-5, atol=0)
    assert truth.max() - truth.min() > 10


# --- windows ---


def window_of(length: int, side: int, shift: int, place: int) -> tuple[int, int]:
    """Which window a place lies in, and which end of the map it is of, once it is padded and shifted."""
    padded = -(-length // side) * side
    shifted = (place - shift) % padded
    return shifted // side, int(shifted >= padded - side) + int(shifted >= padded - shift) if shift else 0


def block_by_loops(block: CRFBlock, x: Tensor, values: Tensor) -> Tensor:
    """What a block of the decoder computes, position by position."""
    side, shift, heads = block.side, block.shift, block.heads
    batch, height, width, channels = x.shape
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded, passed = torch.zeros(2, batch, rows, columns, channels, dtype=x.dtype)
    padded[:, :height, :width] = torch.nn.functional.layer_norm(
        x, (channels,), block.norm_before.weight, block.norm_before.bias
    )
    passed[:, :height, :width] = values
    query, key = (padded @ block.query_key.weight.T + block.query_key.bias).split(channels, -1)
    mixed = torch.zeros_like(x)
    each = channels // heads
    for i in range(height):
        for j in range(width):
            row, column = window_of(height, side, shift, i), window_of(width, side, shift, j)
            weights, sources = [], []
            for k in range(rows):
                for m in range(columns):
                    other = window_of(height, side, shift, k), window_of(width, side, shift, m)
                    if (other[0][0], other[1][0]) != (row[0], column[0]):
                        continue
                    # Apart in the window: as both lie after the shift.
                    down = (i - shift) % rows - (k - shift) % rows
                    right = (j - shift) % columns - (m - shift) % columns
                    bias = block.bias_table[(down + side - 1) * (2 * side - 1) + right + side - 1]
                    product = (query[:, i, j] * key[:, k, m]).unflatten(-1, (heads, each)).sum(-1) / each**0.5
                    weights.append(product + bias - (0 if other == (row, column) else 100))
                    sources.append(passed[:, k, m].unflatten(-1, (heads, each)))
            share = torch.stack(weights).softmax(0)[..., None]
            mixed[:, i, j] = (share * torch.stack(sources)).sum(0).flatten(1)
    x = x + mixed @ block.out.weight.T + block.out.bias
    return x + block.mlp(torch.nn.functional.layer_norm(x, (channels,), block.norm_after.weight, block.norm_after.bias))


@pytest.mark.parametrize("size", [(6, 3), (5, 7), (1, 2)])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_block_is_what_loops_compute(size, shift):
    torch.manual_seed(7)
    block = CRFBlock(8, 2, 3, shift).double()
    for parameter in block.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    x, values = torch.randn(2, 2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x, values), block_by_loops(block, x, values), rtol=1e-9, atol=1e-9)


def test_the_ends_of_a_shifted_map_do_not_see_each_other():
    torch.manual_seed(1)
    block = CRFBlock(4, 1, 4, 2).double()
    x, values = torch.randn(2, 1, 8, 8, 4, dtype=torch.float64)
    changed = values.clone()
    changed[:, -1] += 5  # The last row lies in the first row's window once the map is shifted.
    with torch.no_grad():
        difference = (block(x, changed) - block(x, values)).abs().amax((0, 2, 3))
    assert difference[:6].max() < 1e-12
    assert difference[6:].min() > 1e-3


@pytest.mark.parametrize("size", [(7, 7), (9, 13), (1, 20)])
@pytest.mark.parametrize("shift", [0, 3])
def test_windows_are_put_together_as_they_were_cut(size, shift):
    maps = torch.rand(3, *size, 2)
    windows = Windows(7, size, shift)
    cut = windows.cut(maps)
    assert cut.shape == (3 * -(-size[0] // 7) * -(-size[1] // 7), 49, 2)
    assert torch.equal(windows.join(cut), maps)
    assert cut.sum() == pytest.approx(float(maps.sum()), rel=1e-5)


def test_a_blocks_gradient_is_that_of_its_map():
    torch.manual_seed(3)
    block = CRFBlock(4, 2, 2, 1).double()
    block.bias_table.data.normal_()
    x, values = torch.randn(2, 1, 3, 2, 4, dtype=torch.float64)

    def run(x, values, table):
        return torch.func.functional_call(block, {"bias_table": table}, (x, values))

    table = block.bias_table.detach().clone()
    assert torch.autograd.gradcheck(run, [each.requires_grad_() for each in (x, values, table)], atol=1e-7)


# --- official files ---


@pytest.mark.parametrize(
    "wrapped",
    [
        official_file,
        lambda state: under("module.", state),
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": under("net.module.", state), "optimizer": {"exp_avg": torch.ones(3)}},
    ],
    ids=["official", "without a dictionary", "bare", "training"],
)
def test_official_files_load(state, small, images, wrapped):
    torch.save(wrapped(state), "model_kittieigen.ckpt")
    model = load_model("model_kittieigen.ckpt")
    assert (model.info.family, model.info.quantity, model.info.notes) == ("newcrfs", "metric_depth", ())
    assert model.architecture == SMALL
    assert not model.training
    assert torch.equal(model(images).values, small(images).values)
    assert load_model("newcrfs@model_kittieigen.ckpt").info.licence == "MIT"


def test_safetensors_load_too(state, small, images):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, "kitti.safetensors")
    assert torch.equal(load_model("kitti.safetensors")(images).values, small(images).values)


@pytest.mark.parametrize(
    ("spec", "told", "metres"),
    [
        ("model_kittieigen.ckpt", None, 80),
        ("model_nyu.ckpt", None, 10),
        ("model_nyu.ckpt", 12.5, 12.5),
        ("newcrfs@model_nyu.ckpt", None, 10),
        ("last.ckpt", 25, 25),
    ],
)
def test_metres_are_what_is_said_or_what_the_name_says(state, small, images, spec, told, metres):
    torch.save(official_file(state), spec.partition("@")[2] or spec)
    model = load_model(spec, max_depth=told)
    assert model.max_depth == model.info.max_depth == model.architecture["max_depth"] == metres
    torch.testing.assert_close(model(images).values, small(images).values * (metres / 80), rtol=1e-6, atol=0)
    assert model.preprocessing.size == (480 if metres < 20 else 352)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ("kitti.ckpt", lambda s: without(s, "crf2.norm_crf.bias"), r"1 missing: crfs\.2\.norm\.bias"),
        ("kitti.ckpt", lambda s: without(s, "crf3.proj_v.weight"), r"1 missing: crfs\.3\.project_values\.weight"),
        ("kitti.ckpt", lambda s: without(s, "backbone.layers.2.blocks.1.attn.qkv.bias"), r"3 missing: .*q_proj\.bias"),
        ("kitti.ckpt", lambda s: without(s, "backbone.patch_embed.proj.weight"), "lacks 'encoder.swin.embeddings"),
        ("kitti.ckpt", lambda s: {k: t for k, t in s.items() if not k.startswith("crf0.")}, "lacks 'crfs.0.blocks.0"),
        ("kitti.ckpt", lambda s: s | {"crf2.strange": torch.ones(2)}, r"1 unexpected: crf2\.strange"),
        ("kitti.ckpt", lambda s: s | {"mask_head.0.weight": torch.ones(2)}, "1 unexpected: mask_head"),
        ("kitti.ckpt", lambda s: s | {"disp_head1.conv1.bias": torch.ones(3)}, r"bias \(3,\) instead of \(1,\)"),
        ("kitti.ckpt", lambda s: s | {"crf1.norm_crf.weight": torch.ones(7)}, "crf 7 must be a multiple of its heads"),
        (
            "kitti.ckpt",
            lambda s: s | {"backbone.layers.1.blocks.999999.norm1.weight": torch.ones(16)},
            "the last ones have the numbers",
        ),
        ("kitti.ckpt", lambda s: s | {"disp_head1.conv1.bias": torch.full((1,), torch.nan)}, "not finite"),
        ("last.ckpt", dict, r"does not say its max_depth; .* --model-max-depth METRES"),
        ("kitti-or-nyu.ckpt", dict, "does not say its max_depth"),
        ("newcrfs-large@kitti.ckpt", dict, r"with width 8, 'newcrfs-large' has 192; name it newcrfs@kitti\.ckpt"),
        ("newcrfs-tiny@kitti.ckpt", dict, "with width 8, 'newcrfs-tiny' has 96"),
        ("leres@kitti.ckpt", dict, "holds a NeWCRFs network, but 'leres' is not one"),
        ("dav2-relative@kitti.ckpt", dict, "is a NeWCRFs network, which predicts metres"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(state, spec, change, message):
    path = spec.partition("@")[2] or spec
    torch.save(official_file(change(state)), path)
    with pytest.raises((DistillDepthError, ValueError), match=message) as caught:
        load_model(spec)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# --- names ---


def test_names():
    assert lookup("newcrfs") is lookup("newcrfs:large") is ENTRIES["newcrfs-large"]
    assert {"newcrfs", "newcrfs-large", "newcrfs-large-nyu"} <= set(teacher_names())
    assert {"newcrfs-micro", "newcrfs-tiny", "newcrfs-base", "newcrfs-large"} <= set(student_names())
    rows = {row["name"]: row for row in describe() if row["family"] == "newcrfs"}
    assert rows.keys() == {f"newcrfs-{name}" for name in ("micro", "tiny", "base", "large", "large-nyu")}
    assert {row["quantity"] for row in rows.values()} == {"metric_depth"}
    assert rows["newcrfs-large"]["source"] == "github.com/aliyun/NeWCRFs"
    done = CliRunner().invoke(cli, ["list", "teachers", "--json", "-"])
    assert any(row["name"] == "newcrfs-large" and row["also"] == "newcrfs" for row in json.loads(done.stdout))


@pytest.mark.parametrize(
    ("name", "file"), [("newcrfs", "model_kittieigen.ckpt"), ("newcrfs-large-nyu", "model_nyu.ckpt")]
)
def test_what_no_hub_has_is_told_where_to_get(state, name, file):
    with pytest.raises(DistillDepthError, match=rf"{file}.*aliyun/NeWCRFs"):
        load_model(name)
    Path("checkpoints").mkdir()
    torch.save(official_file(state), f"checkpoints/{file}")
    # It is found, and is not of the size that the name says.
    with pytest.raises(DistillDepthError, match=rf"checkpoints/{file} is a NeWCRFs network with width 8"):
        load_model(name)


def test_the_smallest_is_made_by_name_and_distill_refuses_relative_terms():
    model = create_student("newcrfs-micro", seed=3)
    assert model.architecture == VARIANTS["micro"]
    assert (model.info.max_depth, model.training) == (80, True)
    assert torch.equal(create_student("newcrfs:micro", seed=3).head.weight, model.head.weight)
    arguments = ["distill", "--student", "newcrfs-micro", "--teachers", "dav2-mini", "--images", "scenes:8"]
    done = CliRunner().invoke(cli, [*arguments, "--size", "64x96", "--device", "cpu", "--out", "run"])
    assert done.exit_code == 2, done.output
    assert "predicts metres, and loss.shared_context compares maps up to scale and shift" in done.stderr


# --- photographs ---


def test_the_command_line(state, small):
    values = np.random.default_rng(3).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(values).resize((150, 100), Image.Resampling.BICUBIC).save("a.png")
    torch.save(official_file(state), "last.ckpt")
    arguments = ["predict", "a.png", "-o", "a.npy", "--precision", "float32", "--model", "last.ckpt", "--size", "64"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert "--model-max-depth METRES" in done.output
    for spec in ("last.ckpt", "newcrfs@last.ckpt"):
        arguments[-3] = spec
        done = CliRunner().invoke(cli, [*arguments, "--overwrite", "--model-max-depth", "80"])
        assert done.exit_code == 0, done.output
        assert ": metric_depth" in done.stderr
        predicted = np.load("a.npy")
        assert predicted.shape == (100, 150)
        np.testing.assert_allclose(predicted, small.predict("a.png", size=64).values, rtol=1e-4)


def test_official_crops_are_seen_as_they_are(small):
    assert target_size(352, 1216, small.preprocessing) == (352, 1216)
    indoors = build(SMALL | {"max_depth": 10}, INFO)
    assert target_size(480, 640, indoors.preprocessing) == (480, 640)


# --- as any network here ---


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 160)])
def test_features_of_all_levels_come_when_asked_for(small, size):
    x = torch.rand(2, 3, *size)
    output = small(x, features=True)
    assert output.values.shape == (2, *size)
    assert ((output.values > 0) & (output.values < 80)).all()
    shapes = {name: tuple(level.shape) for name, level in output.features.items()}
    expected = {f"1/{4 << p}": (2, 8 << p, size[0] >> p + 2, size[1] >> p + 2) for p in range(4)}
    widths = dict(zip(expected, SMALL["crf"], strict=True))
    decoder = {f"decoder-{name}": (2, widths[name], *sizes[2:]) for name, sizes in expected.items()}
    assert shapes == expected | {"encoder": expected["1/32"]} | decoder
    assert output.features["encoder"] is output.features["1/32"]
    assert small(x).features == {}


def test_an_empty_batch_gives_an_empty_map(small):
    assert small(torch.rand(0, 3, 64, 96)).values.shape == (0, 64, 96)


def test_images_of_a_batch_do_not_see_each_other(small, images):
    alone = torch.cat([small(image[None]).values for image in images])
    torch.testing.assert_close(small(images).values, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(33, 64), (64, 40), (16, 16)])
def test_other_sides_are_refused(small, size):
    with pytest.raises(ValueError, match=rf"multiples of 32, got {size[0]}x{size[1]}; use estimate"):
        small(torch.rand(1, 3, *size))
    assert small.estimate(torch.rand(1, 3, *size), size=32).shape == (1, *size)


def test_half_precision_gives_a_fine_float32_map(small, images):
    with torch.autocast("cpu", torch.bfloat16):
        values = small(images).values
    assert values.dtype == torch.float32
    assert values.unique().numel() > values.numel() // 2
    assert (values - small(images).values).abs().max() < 4


def test_every_parameter_learns_and_computing_again_changes_nothing(small, images):
    found = []
    for again in (False, True):
        trained = copy.deepcopy(small).double().train()
        if again:
            trained.enable_gradient_checkpointing()
        torch.manual_seed(5)  # Of the stochastic depth.
        trained(images.repeat(4, 1, 1, 1).double()).values.std().backward()
        assert trained.pyramid.mix[1].num_batches_tracked == 8
        found.append({name: parameter.grad for name, parameter in trained.named_parameters()})
    plain, again = found
    for name, gradient in plain.items():
        assert gradient.isfinite().all()
        # A constant that is added to all keys of a window changes no share of them.
        if not name.endswith("k_proj.bias"):
            assert gradient.abs().max() > 1e-9, name
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-12)


def test_stochastic_depth_drops_both_branches(small):
    block = copy.deepcopy(small.encoder.swin.encoder.layers[3].blocks[1]).train()
    x = torch.rand(4, 2, 3, 64)
    block.drop_path.drop_prob = 1 - 1e-7
    assert torch.equal(_run_swin(block, x), x)
    assert not torch.equal(_run_swin(block.eval(), x), x)


def test_the_gradient_is_that_of_the_map(small):
    model = copy.deepcopy(small).double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    part = x[:, :, 5:7, 9:11].clone().requires_grad_()

    def run(part):
        seen = x.clone()
        seen[:, :, 5:7, 9:11] = part
        return model(seen).values[:, ::9, ::7]

    assert torch.autograd.gradcheck(run, part, atol=1e-7)


def test_saving_and_building_again(small, images):
    again = load_model(save_model(small, "saved"))
    assert (again.architecture, again.preprocessing) == (small.architecture, small.preprocessing)
    assert again.info.max_depth == 80
    assert torch.equal(again(images).values, small(images).values)
    kept = keep_encoder(small, seed=1).state_dict()
    for name, tensor in small.state_dict().items():
        assert torch.equal(kept[name], tensor) or not name.startswith("encoder."), name
    assert not torch.equal(kept["head.weight"], small.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"variant": "mikro"}, "did you mean 'micro'"),
        ({"variant": "tiny", "depth": [1] * 4}, "did you mean 'depths'"),
        ({"width": 4}, "needs depths, heads, window"),
        (SMALL | {"crf": [8] * 3}, "crf must have 4 entries, got 3"),
        (SMALL | {"crf": [12, 16, 66, 40], "crf_heads": [3, 2, 3, 5]}, "crf must be multiples of 4"),
        (SMALL | {"crf_heads": [5, 2, 4, 5]}, "crf 12 must be a multiple of its heads, got 5"),
        (SMALL | {"heads": [3, 2, 2, 4]}, "width 8 must be a multiple of its heads, got 3"),
        (SMALL | {"pyramid": 5}, "pyramid must be even, got 5"),
        (SMALL | {"views": 3}, "views must be 1 or 2, got 3"),
    ],
)
def test_a_bad_architecture_says_what_is_wrong(architecture, message):
    with pytest.raises(ValueError, match=message):
        build(architecture, INFO)


# --- two views ---


def test_equal_views_say_what_one_says(small, images):
    wide = with_two_views(small)
    assert (wide.views, small.views, DepthModel.views, create_student("light-mini").views) == (2, 1, 1, 1)
    assert wide.training == small.training
    assert wide.architecture == SMALL | {"views": 2}
    both = torch.cat([images, images], 1)
    torch.testing.assert_close(wide(both).values, small(images).values, rtol=1e-5, atol=0)
    other = torch.cat([images, images.flip(3)], 1)
    assert (wide(other).values - small(images).values).abs().max() > 0.1
    wide.head.bias.data.add_(1)
    assert not torch.equal(wide.head.bias, small.head.bias)
    with pytest.raises(ValueError, match="must see 1 view, it sees 2"):
        with_two_views(wide)


def test_another_number_of_views_is_one_line(small, images):
    wide = with_two_views(small)
    for call in (lambda: wide(images), lambda: wide.estimate(images)):
        with pytest.raises(ValueError, match=r"images must be \(B, 6, H, W\), the left and the right view .*got") as e:
            call()
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 6, 64, 96\)"):
        small(torch.cat([images, images], 1))


def test_two_views_are_saved_and_read_from_official_files(small, images):
    wide = with_two_views(small)
    both = torch.rand(1, 6, 64, 96)
    assert torch.equal(load_model(save_model(wide, "saved"))(both).values, wide(both).values)
    torch.save(official_file(official_state(SMALL | {"views": 2})), "stereo-kitti.ckpt")
    read = load_model("stereo-kitti.ckpt")
    assert read.views == 2
    assert read(both).values.shape == (1, 64, 96)
