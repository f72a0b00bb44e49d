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
