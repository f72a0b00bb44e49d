"""One-step latent depth models: GenPercept, Lotus-D, and a tiny one of the same make, on diffusers' VAE and U-Net.

Source: Xu et al., What Matters When Repurposing Diffusion Models (GenPercept, 2403.06090); He et al., Lotus
(2409.18124).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Not from `diffusers` itself, where mypy takes what stands in for them without torch.
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.errors import DistillDepthError, one_line
from distilldepth.files import cache_folder, expand_user, write_atomically
from distilldepth.models import bounds, hub, pretrained, registry
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.candidate import Candidate
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.pretrained import check_config, load_pretrained
from distilldepth.models.state_dict import check_state, read_state

FAMILY = "latent"

_SD_VAE = {
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
_SD_UNET = {
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
_CLASS_EMBEDDING = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}
_OFFICIAL = {"vae": _SD_VAE, "unet": _SD_UNET, "fold": 1, "output": "clamp", "train_vae": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "genpercept": _OFFICIAL | {"timestep": 1, "sign": -1.0},
    "lotus": _OFFICIAL | {"unet": _SD_UNET | _CLASS_EMBEDDING, "timestep": 999, "sign": 1.0},
    # Small enough to train on two cores. At full resolution even 16 channels would cost more than all the rest, so the
    # VAE sees 4x4 pixels folded into channels. Attention starts at 1/16.
    "mini": {
        "vae": {
            "in_channels": 48,
            "out_channels": 48,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [32, 64],
            "layers_per_block": 1,
            "latent_channels": 16,
            "norm_num_groups": 8,
            "mid_block_add_attention": False,
            "scaling_factor": 1.0,
        },
        "unet": {
            "in_channels": 16,
            "out_channels": 16,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [48, 64, 96],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "norm_num_groups": 16,
            "use_linear_projection": True,
        },
        "timestep": 1,
        "sign": -1.0,
        "fold": 4,
        "output": "sigmoid",
        "train_vae": True,
        "inference": {"size": 192, "resize_policy": "lower-bound"},
    },
}
"""Architectures by name: configurations of the VAE and the U-Net, and how they are used (see `OneStepLatentDepth`)."""

ARCHITECTURE = {
    "vae": bounds.config,
    "unet": bounds.config,
    "timestep": bounds.whole(0, 100_000),
    "sign": bounds.word(-1.0, 1.0, -1, 1),
    "fold": bounds.whole(1, 32),
    "output": bounds.word("clamp", "sigmoid"),
    "train_vae": bounds.flag,
}
"""What the entries of an architecture may be in a file."""

_TEXT_TOKENS = 2


@dataclass(frozen=True)
class LatentUse:
    """How a U-Net of diffusion is used for one step of depth."""

    timestep: int
    """The constant time that the U-Net is told."""
    sign: float
    """-1 for GenPercept, +1 where the clean latent is predicted (Lotus)."""
    fold: int = 1
    """Side of the square of pixels that is folded into channels before the VAE; 1 for none."""
    output: str = "clamp"
    """`clamp`: values clamped to [0, 1] in evaluation and left free in training, where a clamp would have no gradient
    outside; `sigmoid`: `sigmoid(y)`, bounded in both."""
    train_vae: bool = False
    """Whether the VAE is trained too."""


class OneStepLatentDepth(DepthModel):
    """One deterministic pass through a latent diffusion network.

    `z = k mode(encode(2 rgb - 1))`, `v = unet(z, timestep, context)`, `y = mean over channels of decode(sign v / k)`,
    values `(y + 1) / 2`, with k the VAE's scaling factor and the context a constant: the encoded empty prompt. The
    minus of GenPercept comes from v-prediction at a signal level of zero, where the clean latent is -v.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: its mean and deviation must be 0.5, which is the range [-1, 1] of the VAE.
        vae, unet: the two networks.
        context: `(1, tokens, C)` encoded empty prompt.
        use: how the two are put together.
    """

    context: Tensor
    class_label: Tensor | None

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        context: Tensor,
        use: LatentUse,
    ) -> None:
        super().__init__(info, preprocessing)
        self.vae = vae
        self.unet = unet
        self.register_buffer("context", context)
        self.use = use
        vae.requires_grad_(use.train_vae)
        if unet.config["class_embed_type"] == "projection":
            # the task label of Lotus: depth, not image reconstruction
            label = torch.tensor([[math.sin(1), math.sin(0), math.cos(1), math.cos(0)]])
            self.register_buffer("class_label", label, persistent=False)
        else:
            self.class_label = None

    @property
    def architecture(self) -> dict[str, Any]:
        return {
            "vae": _public(self.vae.config),
            "unet": _public(self.unet.config),
            **dataclasses.asdict(self.use),
        }

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        multiple = self.preprocessing.multiple
        height, width = images.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(
                f"OneStepLatentDepth.forward: sides of images must be multiples of {multiple}, got {height}x{width}; "
                "use estimate() or predict() for images of any size"
            )
        scale, count = self.vae.config["scaling_factor"], len(images)
        pixels = self.normalise(images)
        if self.use.fold > 1:
            pixels = F.pixel_unshuffle(pixels, self.use.fold)
        latent = self.vae.encode(pixels).latent_dist.mode() * scale
        deepest: list[Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda *args: deepest.append(args[2])) if features else None
        try:
            velocity = self.unet(
                latent,
                self.use.timestep,
                encoder_hidden_states=self.context.expand(count, -1, -1),
                class_labels=None if self.class_label is None else self.class_label.expand(count, -1),
            ).sample
        finally:
            if hook is not None:
                hook.remove()
        decoded = self.vae.decode(self.use.sign * velocity / scale).sample
        if self.use.fold > 1:
            decoded = F.pixel_shuffle(decoded, self.use.fold)
        decoded = decoded.mean(1)
        if self.use.output == "sigmoid":
            values = torch.sigmoid(decoded.float())
        else:
            values = ((decoded if self.training else decoded.clamp(-1, 1)) + 1) / 2
        return DepthOutput(values, {"encoder": deepest[0]} if features else {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": [], "decoder": [p for p in self.parameters() if p.requires_grad]}


def _public(config: Any) -> dict[str, Any]:
    """A diffusers configuration without the names of the machine that wrote it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if not k.startswith("_")}


def build(
    architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
) -> OneStepLatentDepth:
    """Make a randomly initialised network; the context is random too, as it is only a constant.

    Args:
        architecture: the keys of a `VARIANTS` entry, or `{"variant": name}` with any of them to override.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the variant's own.
    """
    options = copy.deepcopy(architecture)
    if "variant" in options:
        options = copy.deepcopy(VARIANTS[options.pop("variant")]) | options
    inference = options.pop("inference", {})
    vae = AutoencoderKL.from_config(options.pop("vae"))
    unet = UNet2DConditionModel.from_config(options.pop("unet"))
    context = torch.randn(1, _TEXT_TOKENS, unet.config["cross_attention_dim"])
    return OneStepLatentDepth(
        info, preprocessing or _preprocessing(**inference), vae, unet, context, LatentUse(**options)
    )


def _preprocessing(size: int = 768, resize_policy: str = "upper-bound") -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    smooth = "bilinear-antialias"  # both ways, in GenPercept's pipeline
    return Preprocessing(size, 8, resize_policy, half, half, interpolation=smooth, map_interpolation=smooth)


def claims(candidate: Candidate) -> bool:
    """What is named as one of this family, folders of diffusers, and weights that lie as in one."""
    if candidate.entry is not None and candidate.entry.family == FAMILY:
        return True
    path = candidate.path
    if not path.is_dir():
        return False
    if (path / "config.json").is_file():
        return not candidate.is_saved and candidate.model_type is None and "_class_name" in candidate.config
    return any(path.glob("diffusion_pytorch_model*")) or any(path.glob("*/*.safetensors"))


def load(candidate: Candidate) -> OneStepLatentDepth:
    """Load GenPercept or Lotus-D from the layouts in which they are published.

    The U-Net is the path itself (a file or its folder), `unet` in it, or one of GenPercept's `unet_<kind>_v2`. The VAE
    and the text context are beside it (`vae`, `context.safetensors` or `text_encoder` and `tokenizer`) or come from the
    base that was asked for.

    Raises:
        DistillDepthError: a part is missing, corrupt, or of a kind that is not one-step depth.
    """
    path, entry, request = candidate.path, candidate.entry, candidate.request
    candidate.refuse_max_depth()
    if entry is not None and entry.family != FAMILY:
        raise DistillDepthError(
            f"load_model: {path} has no config.json, which a folder of '{candidate.name}' must have"
        )
    kind = _kind(candidate)
    unet_path = _find_unet(path, kind)
    folder = unet_path if unet_path.is_dir() else unet_path.parent
    root = path if path.is_dir() and unet_path != path else folder.parent
    if (root / "dpt_head_identity").is_dir() or "dpt_head" in unet_path.name:
        raise DistillDepthError(
            f"load_model: {path} is GenPercept's variant with a DPT head, which is not supported; "
            "use genpercept-disparity"
        )
    unet, lotus = _load_unet(unet_path, entry)
    if kind is None:
        raise DistillDepthError(
            f"load_model: {path} does not say whether it predicts depth or disparity; name it as "
            f"genpercept-disparity@{path} or genpercept-depth@{path}"
        )
    base, has_vae = root, (root / "vae").is_dir()
    if not has_vae or not _has_context(root):
        base = _base_folder(request.base, request.offline, has_vae=has_vae)
    vae = _load_vae(root if has_vae else base, root)
    context = _context(root if _has_context(root) else base)
    if context.shape[-1] != unet.config["cross_attention_dim"]:
        raise DistillDepthError(
            f"load_model: the text context of {base} has width {context.shape[-1]}, the U-Net of "
            f"{unet_path} wants {unet.config['cross_attention_dim']}; name the right base"
        )
    variant = VARIANTS["lotus" if lotus else "genpercept"]
    known = entry or registry.ENTRIES[f"{'lotus' if lotus else 'genpercept'}-{kind}"]
    info = ModelInfo(candidate.name, FAMILY, kind, known.licence, str(path))
    use = LatentUse(variant["timestep"], variant["sign"])
    return OneStepLatentDepth(info, _preprocessing(), vae, unet, context, use)


def _load_unet(path: Path, entry: registry.Entry | None) -> tuple[UNet2DConditionModel, bool]:
    """The U-Net, and whether it is one of Lotus."""
    unet = _load_part(UNet2DConditionModel, path, _SD_UNET)
    lotus = unet.config["class_embed_type"] == "projection" if entry is None else entry.variant == "lotus"
    if unet.config["in_channels"] != unet.config["out_channels"]:
        raise DistillDepthError(
            f"load_model: {path} takes {unet.config['in_channels']} channels, image and noise; only one-step models "
            "without noise (GenPercept, Lotus-D) are supported"
        )
    if lotus != (unet.config["class_embed_type"] == "projection"):
        raise DistillDepthError(f"load_model: {path} is {'not ' if lotus else ''}a Lotus network; name the right model")
    return unet, lotus


def _load_vae(folder: Path, root: Path) -> AutoencoderKL:
    """The VAE of one folder, with the decoder that another may have instead."""
    vae = _load_part(AutoencoderKL, folder / "vae", _SD_VAE)
    for part, network in (("vae_decoder", vae.decoder), ("vae_post_quant_conv", vae.post_quant_conv)):
        if (root / part).is_dir():
            file = _weights_file(root / part)
            state = read_state(file, network)
            check_state(file, network, state)
            network.load_state_dict(state)
    return vae


def _kind(candidate: Candidate) -> str | None:
    """What the numbers mean: as named in full, else by the path's last words, else by the short name's default."""
    if candidate.pinned is not None:
        return candidate.pinned.quantity
    path, entry = candidate.path, candidate.entry
    words = path.resolve().name if path.name != "unet" else path.resolve().parent.name
    held = {child.name for child in path.glob("unet_*")} if path.is_dir() else set()
    if len(held) == 1:
        words = held.pop()
    for kind in ("disparity", "depth"):
        if kind in words:
            return kind
    return entry.quantity if entry is not None else None


def _find_unet(path: Path, kind: str | None) -> Path:
    if path.is_file() or any(path.glob("diffusion_pytorch_model*")):
        return path
    for name in ("unet", f"unet_{kind}_v2"):
        if (path / name).is_dir():
            return path / name
    raise DistillDepthError(
        f"load_model: {path} has no U-Net; a GenPercept or Lotus folder holds unet/ (or unet_{kind or 'disparity'}_v2/)"
    )


def _weights_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    plain = [file for file in files if ".fp16." not in file.name and ".non_ema." not in file.name]
    if not files:
        raise DistillDepthError(f"load_model: {folder} holds no weights (.safetensors or .bin)")
    return (plain or files)[0]


def _load_part(cls: Any, path: Path, default: dict[str, Any]) -> Any:
    """Load a VAE or U-Net; published U-Nets may come without a configuration, then `default` is it."""
    file = path if path.is_file() else _weights_file(path)
    if (file.parent / "config.json").is_file() and file.suffix == ".safetensors" and path.is_dir():
        # by diffusers, which renames the attention weights of old VAEs
        return load_pretrained(cls, path, variant="fp16" if ".fp16." in file.name else None)
    config = default
    if (file.parent / "config.json").is_file():
        check_config(file.parent / "config.json")
        config = cls.load_config(file.parent, local_files_only=True)
    with torch.device("meta"):
        network = cls.from_config(config)
    state = read_state(file, network)
    state = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    check_state(file, network, state)
    network.load_state_dict(state, assign=True)
    return network


def _base_folder(base: str | None, offline: bool, *, has_vae: bool) -> Path:
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
                if not _has_context(candidate):
                    continue
                return candidate
    wanted = () if has_vae else ("vae",)
    return hub.fetch(
        repo_id, folders=(*wanted, "text_encoder", "tokenizer"), family=FAMILY, offline=offline, expected=(short,)
    )


def _has_context(folder: Path) -> bool:
    return (folder / "context.safetensors").is_file() or (
        (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()
    )


def _context(folder: Path) -> Tensor:
    """The encoded empty prompt `(1, tokens, C)`: from `context.safetensors`, or encoded once and kept in our cache."""
    if (folder / "context.safetensors").is_file():
        return _read_context(folder / "context.safetensors")
    if not _has_context(folder):
        raise DistillDepthError(
            f"load_model: {folder} has no text context; it must hold context.safetensors, or text_encoder/ and "
            "tokenizer/"
        )
    weights = _weights_file(folder / "text_encoder").resolve()
    stat = weights.stat()
    key = hashlib.sha256(f"{weights}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    file = cache_folder() / "contexts" / f"{key}.safetensors"
    if file.is_file():
        with contextlib.suppress(DistillDepthError):  # Damaged: it is encoded again.
            return _read_context(file)
    context = _encode_empty_prompt(folder)
    from safetensors.torch import save

    with contextlib.suppress(OSError):  # a cache that cannot be written costs seconds next time, nothing else
        write_atomically(file, save({"context": context}))
    return context


def _read_context(file: Path) -> Tensor:
    state = read_state(file)
    context = state.get("context", next(iter(state.values())))
    if context.ndim != 3 or len(context) != 1 or not context.is_floating_point():
        raise DistillDepthError(
            f"load_model: {file} must hold one floating tensor (1, tokens, C), got {context.dtype} "
            f"{tuple(context.shape)}; remove it, or download it again"
        )
    return context.float()


@torch.inference_mode()
def _encode_empty_prompt(folder: Path) -> Tensor:
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
    return encoder(tokens)[0].clone()
