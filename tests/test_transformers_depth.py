"""MiDaS / DPT, ZoeDepth, GLPN and Depth Pro through transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForDepthEstimation,
    BeitConfig,
    DepthProConfig,
    DPTConfig,
    GLPNConfig,
    ResNetConfig,
    ResNetModel,
    Swinv2Config,
    ZoeDepthConfig,
)

from distilldepth.errors import DistillDepthError
from distilldepth.models import load_model, save_model

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}


def config(kind: str):
    if kind == "dpt-vit":
        return DPTConfig(**VIT, is_hybrid=False, backbone_out_indices=[0, 1, 2, 3], **NECK)
    if kind == "dpt-beit":
        beit = BeitConfig(**VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, reshape_hidden_states=False)
        return DPTConfig(backbone_config=beit, **NECK)
    if kind == "dpt-swinv2":
        swin = Swinv2Config(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_indices=[1, 2, 3, 4],
        )
        return DPTConfig(
            backbone_config=swin,
            reassemble_factors=[1, 1, 1, 1],
            neck_hidden_sizes=[8, 16, 32, 64],
            fusion_hidden_size=8,
            use_batch_norm_in_fusion_residual=False,
        )
    if kind == "zoedepth":
        beit = BeitConfig(**VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, reshape_hidden_states=False)
        return ZoeDepthConfig(
            backbone_config=beit,
            bottleneck_features=8,
            num_relative_features=8,
            bin_embedding_dim=8,
            num_attractors=[4, 2, 2, 1],
            backbone_hidden_size=32,
            **NECK,
        )
    if kind == "glpn":
        return GLPNConfig(
            num_encoder_blocks=4,
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 8, 8],
            num_attention_heads=[1, 1, 1, 1],
            decoder_hidden_size=8,
        )
    vit = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit |= {"image_size": 32, "patch_size": 8}
    return DepthProConfig(
        patch_size=32,
        image_model_config=vit,
        patch_model_config=vit,
        fov_model_config=vit,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[8, 8, 8],
        fusion_hidden_size=8,
    )


def network(kind: str):
    torch.manual_seed(0)
    model = AutoModelForDepthEstimation.from_config(config(kind)).eval()
    with torch.no_grad():
        # the library's initial weights let the signal die out before the output
        for parameter in model.parameters():
            if parameter.ndim in (2, 4):
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        for parameter in model.head.parameters() if hasattr(model, "head") else []:
            if parameter.numel() == 1:
                parameter.fill_(2.0)
    return model


EXPECTED = {
    # quantity, size, multiple, policy, mean of the normalisation, way back to the image
    "dpt-vit": ("disparity", 64, 32, "square", 0.5, "bicubic"),
    "dpt-beit": ("disparity", 64, 32, "hf", 0.5, "bicubic"),
    "dpt-swinv2": ("disparity", 64, 32, "square", 0.5, "bicubic"),
    "zoedepth": ("metric_depth", 384, 32, "hf", 0.5, "bicubic"),
    "glpn": ("metric_depth", 480, 32, "lower-bound", 0.0, "bicubic"),
    "depth-pro": ("disparity", 128, 128, "square", 0.5, "bilinear"),
}


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_folder(tmp_path, kind):
    theirs = network(kind)
    theirs.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    quantity, size, multiple, policy, mean, back = EXPECTED[kind]
    told = model.preprocessing
    assert (model.info.quantity, told.size, told.multiple, told.resize_policy) == (quantity, size, multiple, policy)
    assert told.map_interpolation == back
    side = 128 if kind == "depth-pro" else 64
    images = torch.rand(1, 3, side, side)
    deviation = 0.5 if mean else 1.0
    with torch.no_grad():
        expected = theirs((images - mean) / deviation).predicted_depth.reshape(1, 1, *_shape(theirs, images))
        values = model(images).values
    assert values.shape == (1, side, side)
    assert values.std() > 1e-3
    if expected.shape[-1] == side:
        torch.testing.assert_close(values, expected[:, 0], rtol=1e-4, atol=1e-5)
    # sides that differ: natively, or through a square
    assert model(torch.rand(1, 3, 64, 96)).values.shape == (1, 64, 96)
    if kind not in ("zoedepth", "glpn"):
        assert model.estimate(torch.rand(1, 3, 50, 71)).shape == (1, 50, 71)
    groups = model.parameter_groups()
    assert groups["encoder"]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    torch.testing.assert_close(again(images).values, values)
    assert again.preprocessing == model.preprocessing


def _shape(theirs, images):
    return theirs(images).predicted_depth.shape[-2:]


def test_processor_config_is_read(tmp_path):
    network("dpt-beit").save_pretrained(tmp_path)
    processor = {
        "size": {"height": 96, "width": 96},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 32,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    told = load_model(tmp_path).preprocessing
    assert (told.size, told.multiple, told.resize_policy, told.interpolation) == (96, 32, "hf", "bilinear")
    assert told.map_interpolation == "bicubic"
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"keep_aspect_ratio": False}))
    assert load_model(tmp_path).preprocessing.resize_policy == "square"


def test_never_used_tensors_may_be_missing(tmp_path):
    """Published DPT files lack the first fusion layer's `residual_layer1`, which never runs."""
    network("dpt-vit").save_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    expected = load_model(tmp_path)(images).values
    state = load_file(tmp_path / "model.safetensors")
    gone = [key for key in state if "fusion_stage.layers.0.residual_layer1" in key]
    assert gone
    for key in gone:
        del state[key]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(load_model(tmp_path)(images).values, expected)


@pytest.mark.parametrize(
    ("change", "message"), [("missing", "1 missing: head.head.0.bias"), ("extra", "1 unexpected: stranger")]
)
def test_misfit(tmp_path, change, message):
    network("dpt-vit").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del state["head.head.0.bias"]
    else:
        state["stranger"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_networks_are_refused(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    with pytest.raises(DistillDepthError, match="'resnet' network, not a depth model"):
        load_model(tmp_path)
