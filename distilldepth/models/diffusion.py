"""Parts of published latent diffusion models: VAE, U-Net and text context, from their own folder or from a base.

On diffusers' VAE and U-Net; what a family makes of them stands in its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch

# Not from `diffusers` itself, where mypy takes what stands in for them without torch.
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from distilldepth.errors import DistillDepthError, one_line
from distilldepth.files import cache_folder, expand_user, write_atomically
from distilldepth.models import hub, pretrained, registry
from distilldepth.models.candidate import Request
from distilldepth.models.pretrained import check_config, load_pretrained
from distilldepth.models.state_dict import check_state, read_state

SD_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
SD_UNET = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
"""Configurations of Stable Diffusion 2.1, for files that come without one."""

TEXT_TOKENS = 2
"""Tokens of the empty prompt: begin and end."""


def public_config(config: Any) -> dict[str, Any]:
    """A diffusers configuration without the names of the machine that wrote it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if not k.startswith("_")}


def load_vae(folder: Path, root: Path) -> AutoencoderKL:
    """The VAE of one folder, with the decoder that another may have instead."""
    vae = load_part(AutoencoderKL, folder / "vae", SD_VAE)
    for part, network in (("vae_decoder", vae.decoder), ("vae_post_quant_conv", vae.post_quant_conv)):
        if (root / part).is_dir():
            file = weights_file(root / part)
            state = read_state(file, network)
            check_state(file, network, state)
            network.load_state_dict(state)
    return vae


def load_surroundings(
    root: Path, unet: UNet2DConditionModel, unet_path: Path, request: Request
) -> tuple[AutoencoderKL, Tensor]:
    """Load the VAE and the text context `(1, tokens, C)` of a U-Net: from its own folder, else from the base.

    Args:
        root: folder of the model.
        unet: which they must fit.
        unet_path: where it is, for messages.
        request: names the base.

    Raises:
        DistillDepthError: they are not to be had, or belong to another U-Net.
    """
    base, has_vae = root, (root / "vae").is_dir()
    if not has_vae or not has_context(root):
        base = base_folder(request.base, request.offline, has_vae=has_vae)
    vae = load_vae(root if has_vae else base, root)
    context = load_context(root if has_context(root) else base)
    if context.shape[-1] != unet.config["cross_attention_dim"]:
        raise DistillDepthError(
            f"load_model: the text context of {base} has width {context.shape[-1]}, the U-Net of "
            f"{unet_path} wants {unet.config['cross_attention_dim']}; name the right base"
        )
    return vae, context


def weights_file(folder: Path) -> Path:
    """The file of weights in the folder of a part; not a half precision one if there is another."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    plain = [file for file in files if ".fp16." not in file.name and ".non_ema." not in file.name]
    if not files:
        raise DistillDepthError(f"load_model: {folder} holds no weights (.safetensors or .bin)")
    return (plain or files)[0]


def load_part(cls: Any, path: Path, default: dict[str, Any], *, unused: str | None = None) -> Any:
    """Load a VAE or U-Net; published U-Nets may come without a configuration, then `default` is it.

    `unused`: regular expression of tensors that the file may have or lack, since the caller drops their modules.
    """
    file = path if path.is_file() else weights_file(path)
    if (file.parent / "config.json").is_file() and file.suffix == ".safetensors" and path.is_dir():
        # by diffusers, which renames the attention weights of old VAEs
        return load_pretrained(cls, path, never_used=unused, variant="fp16" if ".fp16." in file.name else None)
    config = default
    if (file.parent / "config.json").is_file():
        check_config(file.parent / "config.json")
        config = cls.load_config(file.parent, local_files_only=True)
    with torch.device("meta"):
        network = cls.from_config(config)
    state = read_state(file, network)
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    if unused is not None:
        own = {key: torch.zeros(t.shape) for key, t in network.state_dict().items() if re.match(unused, key)}
        state = {key: t for key, t in state.items() if not re.match(unused, key)} | own
    check_state(file, network, state)
    network.load_state_dict(state, assign=True)
    return network


def base_folder(base: str | None, offline: bool, *, has_vae: bool) -> Path:
    """Folder of the repository that the VAE and the text context come from."""
    named = base or os.environ.get("DISTILLDEPTH_SD_BASE")
    if named and expand_user(named).is_dir():
        return expand_user(named)
    if named and (named.startswith((".", "/", "~")) or named.count("/") != 1):
        raise FileNotFoundError(f"load_model: no such base folder: {named}")
    repo_id = named or registry.STABLE_DIFFUSION_BASE
    short = repo_id.partition("/")[2]
    for folder in hub.checkpoint_folders():
        for candidate in (folder / repo_id, folder / short):
            if has_vae or (candidate / "vae").is_dir():
                if not has_context(candidate):
                    continue
                return candidate
    wanted = () if has_vae else ("vae",)
    return hub.fetch(
        repo_id, folders=(*wanted, "text_encoder", "tokenizer"), family="latent", offline=offline, expected=(short,)
    )


def has_context(folder: Path) -> bool:
    return (folder / "context.safetensors").is_file() or (
        (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()
    )


def load_context(folder: Path) -> Tensor:
    """The encoded empty prompt `(1, tokens, C)`: from `context.safetensors`, or encoded once and kept in our cache."""
    if (folder / "context.safetensors").is_file():
        return read_context(folder / "context.safetensors")
    if not has_context(folder):
        raise DistillDepthError(
            f"load_model: {folder} has no text context; it must hold context.safetensors, or text_encoder/ and "
            "tokenizer/"
        )
    weights = weights_file(folder / "text_encoder").resolve()
    stat = weights.stat()
    key = hashlib.sha256(f"{weights}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    file = cache_folder() / "contexts" / f"{key}.safetensors"
    if file.is_file():
        with contextlib.suppress(DistillDepthError):  # Damaged: it is encoded again.
            return read_context(file)
    context = encode_empty_prompt(folder)
    from safetensors.torch import save

    with contextlib.suppress(OSError):  # a cache that cannot be written costs seconds next time, nothing else
        write_atomically(file, save({"context": context}))
    return context


def read_context(file: Path) -> Tensor:
    state = read_state(file)
    context = state.get("context", next(iter(state.values())))
    if context.ndim != 3 or len(context) != 1 or not context.is_floating_point():
        raise DistillDepthError(
            f"load_model: {file} must hold one floating tensor (1, tokens, C), got {context.dtype} "
            f"{tuple(context.shape)}; remove it, or download it again"
        )
    return context.float()


@torch.no_grad()  # An inference tensor could take no part in training.
def encode_empty_prompt(folder: Path) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = load_pretrained(CLIPTextModel, folder / "text_encoder").eval()
    try:
        with pretrained.quiet_transformers():
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        why = one_line(error, 160)
        raise DistillDepthError(f"load_model: {folder / 'tokenizer'} cannot be loaded ({why})") from error
    # unpadded, as in training: begin and end of text only
    tokens = tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
    return encoder(tokens)[0]
