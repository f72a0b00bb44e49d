"""Depth Anything V2 and Distill-Any-Depth: official checkpoints against transformers' own network."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from distilldepth.errors import DistillDepthError
from distilldepth.models import count_parameters, create_student, load_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.depth_anything import VARIANTS, build

LAYERS = 4


def tiny_network(*, metric: bool = False, image_size: int = 70) -> DepthAnythingForDepthEstimation:
    torch.manual_seed(0)
    backbone = Dinov2Config(
        image_size=image_size,
        patch_size=14,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=64,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type="metric" if metric else "relative",
        max_depth=20 if metric else 1,
    )
    network = DepthAnythingForDepthEstimation(config).eval()
    with torch.no_grad():
        # weights that keep the signal alive and are all different, so that a swapped pair of tensors is seen
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim in (2, 4) else 100
            parameter.add_(torch.randn_like(parameter) * fan**-0.5)
        network.head.conv3.bias.fill_(2.0)
    return network


def official_state(network: DepthAnythingForDepthEstimation, *, prefix: str = "pretrained", chunk: str = "") -> dict:
    """Write a network's tensors under their official names, tensor by tensor, without the product's table."""
    own = network.state_dict()
    out: dict[str, Tensor] = {}
    embeddings = "backbone.embeddings"
    out[f"{prefix}.cls_token"] = own[f"{embeddings}.cls_token"]
    out[f"{prefix}.pos_embed"] = own[f"{embeddings}.position_embeddings"]
    out[f"{prefix}.mask_token"] = own[f"{embeddings}.mask_token"]
    for kind in ("weight", "bias"):
        out[f"{prefix}.patch_embed.proj.{kind}"] = own[f"{embeddings}.patch_embeddings.projection.{kind}"]
        out[f"{prefix}.norm.{kind}"] = own[f"backbone.layernorm.{kind}"]
        for i in range(LAYERS):
            block, layer = f"{prefix}.blocks.{chunk}{i}", f"backbone.encoder.layer.{i}"
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{block}.{name}.{kind}"] = own[f"{layer}.{name}.{kind}"]
            parts = [own[f"{layer}.attention.{part}_proj.{kind}"] for part in "qkv"]
            out[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
            out[f"{block}.attn.proj.{kind}"] = own[f"{layer}.attention.o_proj.{kind}"]
        stage = "neck.reassemble_stage.layers"
        for j in range(4):
            out[f"depth_head.projects.{j}.{kind}"] = own[f"{stage}.{j}.projection.{kind}"]
            if j != 2:
                out[f"depth_head.resize_layers.{j}.{kind}"] = own[f"{stage}.{j}.resize.{kind}"]
        for official, index in ((4, 0), (3, 1), (2, 2), (1, 3)):
            theirs, ours = f"depth_head.scratch.refinenet{official}", f"neck.fusion_stage.layers.{index}"
            out[f"{theirs}.out_conv.{kind}"] = own[f"{ours}.projection.{kind}"]
            for unit in (1, 2):
                for conv in (1, 2):
                    tail = f"residual_layer{unit}.convolution{conv}.{kind}"
                    out[f"{theirs}.resConfUnit{unit}.conv{conv}.{kind}"] = own[f"{ours}.{tail}"]
        for official, ours in (("output_conv1", "conv1"), ("output_conv2.0", "conv2"), ("output_conv2.2", "conv3")):
            out[f"depth_head.scratch.{official}.{kind}"] = own[f"head.{ours}.{kind}"]
    for i in range(LAYERS):
        for j in (1, 2):
            out[f"{prefix}.blocks.{chunk}{i}.ls{j}.gamma"] = own[f"backbone.encoder.layer.{i}.layer_scale{j}.lambda1"]
    for j in range(4):
        out[f"depth_head.scratch.layer{j + 1}_rn.weight"] = own[f"neck.convs.{j}.weight"]
    return {key: value.clone().contiguous() for key, value in out.items()}


def reference_values(network: DepthAnythingForDepthEstimation, images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        return network((images - mean) / std).predicted_depth


@pytest.fixture(scope="module")
def network() -> DepthAnythingForDepthEstimation:
    return tiny_network()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", ["pth", "safetensors", "dad-large", "data-parallel", "wrapped"])
def test_official_file_gives_transformers_output(tmp_path, network, images, layout):
    state = official_state(network)
    path = tmp_path / "depth_anything_v2_tiny.pth"
    if layout == "dad-large":
        state = official_state(network, prefix="backbone", chunk="0.")
    if layout == "data-parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    if layout in ("safetensors", "dad-large"):
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save({"model": state} if layout == "wrapped" else state, path)
    model = load_model(path)
    assert model.info.quantity == "disparity"
    assert not model.training
    assert count_parameters(model) == sum(p.numel() for p in network.parameters())
    values = model(images).values
    assert values.std() > 0.05
    torch.testing.assert_close(values, reference_values(network, images), rtol=1e-5, atol=1e-6)


def test_metric_file_is_metres(tmp_path, images):
    network = tiny_network(metric=True)
    path = tmp_path / "depth_anything_v2_metric_hypersim_tiny.pth"
    torch.save(official_state(network), path)
    model = load_model(path)
    assert model.info.quantity == "metric_depth"
    torch.testing.assert_close(model(images).values, reference_values(network, images), rtol=1e-5, atol=1e-5)
    assert model.architecture["max_depth"] == 20
    path = path.rename(tmp_path / "depth_anything_v2_metric_vkitti_tiny.pth")
    torch.testing.assert_close(load_model(path)(images).values, 4 * reference_values(network, images))


def test_name_at_path(tmp_path, network, images):
    path = tmp_path / "mine.pth"
    torch.save(official_state(network), path)
    model = load_model(f"dav2@{path}")
    assert model.info.name == "dav2"
    torch.testing.assert_close(model(images).values, reference_values(network, images))
    with pytest.raises(DistillDepthError, match=r"width 64.*'dav2-small' has width 384"):
        load_model(f"dav2-small@{path}")
    with pytest.raises(DistillDepthError, match=r"Depth Anything network, but 'dpt-large'"):
        load_model(f"dpt-large@{path}")


def test_official_position_interpolation(tmp_path, network):
    """Positions as the official code samples them: at a scale of (patches + 0.1) / grid, not at the exact size."""
    path = tmp_path / "a.pth"
    torch.save(official_state(network), path)
    model = load_model(path)
    rows, columns, side = 4, 7, 5
    grid = network.backbone.embeddings.position_embeddings[0, 1:].detach().T.reshape(1, 64, side, side)
    scale = ((rows + 0.1) / math.sqrt(side * side), (columns + 0.1) / side)
    expected = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    tokens = torch.zeros(1, 1 + rows * columns, 64)
    found = model.network.backbone.embeddings.interpolate_pos_encoding(tokens, rows * 14, columns * 14)
    torch.testing.assert_close(found[0, 1:].T.reshape(1, 64, rows, columns), expected)
    images = torch.rand(1, 3, rows * 14, columns * 14)
    exact = build({**model.architecture, "official_positions": False}, model.info)
    exact.load_state_dict(model.state_dict())
    values = exact.eval()(images).values
    torch.testing.assert_close(values, reference_values(network, images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(images).values, values, rtol=1e-5, atol=1e-6)


def test_transformers_folder(tmp_path, network, images):
    network.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.info.family == "depth-anything"
    torch.testing.assert_close(model(images).values, reference_values(network, images))
    assert model.preprocessing.size == 70
    assert model.architecture["taps"] == [0, 1, 2, 3]


def test_features_are_the_last_taps_patch_tokens(tmp_path, network):
    network.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    images = torch.rand(2, 3, 70, 98)
    encoder = model(images, features=True).features["encoder"]
    assert encoder.shape == (2, 64, 5, 7)
    tokens = model.network.backbone(model.normalise(images)).feature_maps[-1]
    torch.testing.assert_close(encoder[1, :, 2, 3], tokens[1, 1 + 2 * 7 + 3])
    assert model(images).features == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: head\.conv1\.bias"),
        ("extra", r"1 unexpected: depth_head\.surprise"),
        ("shape", r"1 of another shape: backbone\.layernorm\.bias \(3,\) instead of \(64,\)"),
        ("no-head", r"lacks 'neck\.reassemble_stage\.layers\.0\.projection\.weight'"),
    ],
)
def test_misfit_lists_what_is_wrong(tmp_path, network, change, message):
    state = official_state(network)
    if change == "missing":
        del state["depth_head.scratch.output_conv1.bias"]
    elif change == "extra":
        state["depth_head.surprise"] = torch.zeros(1)
    elif change == "shape":
        state["pretrained.norm.bias"] = torch.zeros(3)
    else:
        del state["depth_head.projects.0.weight"]
    path = tmp_path / "a.pth"
    torch.save(state, path)
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_swiglu_blocks(tmp_path):
    """The giant's feed-forward: `w12` is gate and value, in this order; `w3` leads out."""
    info = ModelInfo("g", "depth-anything", "disparity", "x", "y")
    wanted = build(
        VARIANTS["vits"]
        | {"hidden": 64, "layers": 4, "heads": 1, "taps": [0, 1, 2, 3], "neck": [8] * 4, "fusion": 8, "swiglu": True},
        info,
    ).eval()
    own = wanted.network.state_dict()
    state = {key: value for key, value in official_state_without_mlp(wanted.network).items() if ".mlp." not in key}
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            mlp = f"backbone.encoder.layer.{i}.mlp"
            gate, up = own[f"{mlp}.gate_proj.{kind}"], own[f"{mlp}.up_proj.{kind}"]
            state[f"pretrained.blocks.{i}.mlp.w12.{kind}"] = torch.cat([gate, up])
            state[f"pretrained.blocks.{i}.mlp.w3.{kind}"] = own[f"{mlp}.down_proj.{kind}"]
    torch.save(state, tmp_path / "g.pth")
    model = load_model(tmp_path / "g.pth")
    images = torch.rand(1, 3, 56, 70)
    torch.testing.assert_close(model(images).values, wanted(images).values)


def official_state_without_mlp(network: DepthAnythingForDepthEstimation) -> dict:
    class Padded(dict):
        """A state dictionary in which the ordinary feed-forward exists, to be thrown away."""

        def __missing__(self, key: str) -> Tensor:
            assert ".mlp.fc" in key
            return torch.zeros(1)

    class Stub:
        def state_dict(self) -> dict:
            return Padded(network.state_dict())

    return official_state(Stub())


@pytest.mark.parametrize(("variant", "parameters"), [("vits", 24_785_089), ("mini", 4_079_049)])
def test_parameter_counts(variant, parameters):
    model = build({"variant": variant}, ModelInfo(variant, "depth-anything", "disparity", "x", "y"))
    assert count_parameters(model) == parameters
    groups = model.parameter_groups()
    assert sum(p.numel() for group in groups.values() for p in group) == parameters


def test_mini_starts_alive():
    """From random weights: open everywhere, different from pixel to pixel, and every layer gets a gradient."""
    model = create_student("dav2-mini", seed=0)
    images = torch.rand(2, 3, 98, 126)
    values = model(images).values
    assert values.shape == (2, 98, 126)
    assert (values > 0).float().mean() > 0.99
    assert (values.flatten(1).std(1) > 0.03).all()
    (values * torch.rand_like(values)).sum().backward()
    never = ("mask_token", "fusion_stage.layers.0.residual_layer1")
    for name, parameter in model.named_parameters():
        if not any(part in name for part in never):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_sides_must_be_multiples():
    model = create_student("dav2-mini", seed=0)
    with pytest.raises(ValueError, match=r"multiples of 14, got 57x60"):
        model(torch.rand(1, 3, 57, 60))
    assert model.eval().estimate(torch.rand(1, 3, 57, 60), size=56).shape == (1, 57, 60)


def test_create_student_is_seeded():
    first, second, other = (create_student("dav2-mini", seed=seed) for seed in (1, 1, 2))
    weight = "network.backbone.encoder.layer.0.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    state = torch.get_rng_state()
    create_student("dav2-mini", seed=3)
    assert torch.equal(state, torch.get_rng_state())
