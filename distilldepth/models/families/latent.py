"""One-step latent depth models: GenPercept, Lotus-D, and a tiny one of the same make, on diffusers' VAE and U-Net.

Source: Xu et al., What Matters When Repurposing Diffusion Models (GenPercept, 2403.06090); He et al., Lotus
(2409.18124).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Not from `diffusers` itself, where mypy takes what stands in for them without torch.
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.errors import DistillDepthError
from distilldepth.models import bounds, registry
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.candidate import Candidate
from distilldepth.models.diffusion import (
    SD_UNET,
    SD_VAE,
    TEXT_TOKENS,
    load_part,
    load_surroundings,
    public_config,
    weights_file,
)
from distilldepth.models.dpt_head import DPTHead
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.models.recompute import recompute
from distilldepth.models.state_dict import check_state, read_state

FAMILY = "latent"

_SMOOTH = "bilinear-antialias"
"""How GenPercept's pipeline resizes images and maps."""

_CLASS_EMBEDDING = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}
_OFFICIAL = {"vae": SD_VAE, "unet": SD_UNET, "fold": 1, "output": "clamp", "train_vae": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "genpercept": _OFFICIAL | {"timestep": 1, "sign": -1.0},
    "genpercept-dpt": _OFFICIAL | {"timestep": 1, "sign": -1.0, "output": "dpt"},
    "lotus": _OFFICIAL | {"unet": SD_UNET | _CLASS_EMBEDDING, "timestep": 999, "sign": 1.0},
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
    "output": bounds.word("clamp", "sigmoid", "dpt"),
    "train_vae": bounds.flag,
    "head_width": bounds.whole(2, bounds.WIDEST),
}
"""What the entries of an architecture may be in a file."""

DEFAULTS = {"head_width": 256}
"""Entries that folders lack which have no use for them."""


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
    outside; `sigmoid`: `sigmoid(y)`, bounded in both; `dpt`: a DPT head in place of the VAE's decoder, each map brought
    to [0, 1] by its least and largest value."""
    train_vae: bool = False
    """Whether the VAE is trained too."""
    head_width: int = DEFAULTS["head_width"]
    """Channels of the DPT head."""


class OneStepLatentDepth(DepthModel):
    """One deterministic pass through a latent diffusion network.

    `z = k mode(encode(2 rgb - 1))`, `v = unet(z, timestep, context)`, `y = mean over channels of decode(sign v / k)`,
    values `(y + 1) / 2`, with k the VAE's scaling factor and the context a constant: the encoded empty prompt. The
    minus of GenPercept comes from v-prediction at a signal level of zero, where the clean latent is -v. With a DPT
    head, that head reads the outputs of the U-Net's up blocks instead, the finest first, and no velocity is made.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: its mean and deviation must be 0.5, which is the range [-1, 1] of the VAE.
        vae, unet: the two networks.
        context: `(1, tokens, C)` encoded empty prompt.
        use: how the two are put together.
    """

    # Group normalisation in bfloat16 takes twice as long with channels last.
    memory_format = torch.contiguous_format
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
        if use.output == "dpt":
            # What makes and decodes the velocity has no part in it.
            for network, name in (
                (unet, "conv_norm_out"),
                (unet, "conv_out"),
                (vae, "post_quant_conv"),
                (vae, "decoder"),
            ):
                setattr(network, name, nn.Identity())
            self.head = DPTHead(list(unet.config["block_out_channels"]), use.head_width)
        if unet.config["class_embed_type"] == "projection":
            # the task label of Lotus: depth, not image reconstruction
            label = torch.tensor([[math.sin(1), math.sin(0), math.cos(1), math.cos(0)]])
            self.register_buffer("class_label", label, persistent=False)
        else:
            self.class_label = None

    @property
    def architecture(self) -> dict[str, Any]:
        use = dataclasses.asdict(self.use)
        if self.use.output != "dpt":
            del use["head_width"]
        return {"vae": public_config(self.vae.config), "unet": public_config(self.unet.config), **use}

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        height, width = images.shape[-2:]
        self.check_sides(height, width, self.preprocessing.multiple)
        scale, count = self.vae.config["scaling_factor"], len(images)
        pixels = self.normalise(images)
        if self.use.fold > 1:
            pixels = F.pixel_unshuffle(pixels, self.use.fold)
        latent = self.vae.encode(pixels).latent_dist.mode() * scale
        deepest: list[Tensor] = []
        levels: list[Tensor] = []
        hooks = [self.unet.mid_block.register_forward_hook(lambda *args: deepest.append(args[2]))] if features else []
        if self.use.output == "dpt":
            hooks += [
                block.register_forward_hook(lambda *args: levels.append(args[2])) for block in self.unet.up_blocks
            ]
        try:
            velocity = self.unet(
                latent,
                self.use.timestep,
                encoder_hidden_states=self.context.expand(count, -1, -1),
                class_labels=None if self.class_label is None else self.class_label.expand(count, -1),
            ).sample
        finally:
            for hook in hooks:
                hook.remove()
        encoder = {"encoder": deepest[0]} if features else {}
        if self.use.output == "dpt":
            return DepthOutput(_to_unit_range(resize(self.head(levels[::-1]), (height, width), _SMOOTH)[:, 0]), encoder)
        decoded = self.vae.decode(self.use.sign * velocity / scale).sample
        if self.use.fold > 1:
            decoded = F.pixel_shuffle(decoded, self.use.fold)
        decoded = decoded.mean(1)
        if self.use.output == "sigmoid":
            values = torch.sigmoid(decoded.float())
        else:
            values = ((decoded if self.training else decoded.clamp(-1, 1)) + 1) / 2
        return DepthOutput(values, encoder)

    def enable_gradient_checkpointing(self) -> None:
        for network in (self.unet, self.vae):
            network.enable_gradient_checkpointing(recompute)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": [], "decoder": [p for p in self.parameters() if p.requires_grad]}


def _to_unit_range(maps: Tensor) -> Tensor:
    """Bring each map `(B, H, W)` to [0, 1]; 0 for one that is constant. Official code does so over a batch of one."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


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
    context = torch.randn(1, TEXT_TOKENS, unet.config["cross_attention_dim"])
    return OneStepLatentDepth(
        info, preprocessing or _preprocessing(**inference), vae, unet, context, LatentUse(**options)
    )


def _preprocessing(size: int = 768, resize_policy: str = "upper-bound") -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    return Preprocessing(size, 8, resize_policy, half, half, interpolation=_SMOOTH, map_interpolation=_SMOOTH)


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
    unet_path = _find_unet(candidate, kind)
    folder = unet_path if unet_path.is_dir() else unet_path.parent
    root = path if path.is_dir() and unet_path != path else folder.parent
    head = _find_head(candidate, root, folder)
    unet, lotus = _load_unet(unet_path, entry, headless=head is not None)
    if kind is None:
        raise DistillDepthError(
            f"load_model: {path} does not say whether it predicts depth or disparity; name it as "
            f"genpercept-disparity@{path} or genpercept-depth@{path}"
        )
    vae, context = load_surroundings(root, unet, unet_path, request)
    variant = VARIANTS["lotus" if lotus else "genpercept"]
    known = entry or registry.ENTRIES[f"{'lotus' if lotus else 'genpercept'}-{kind}"]
    info = ModelInfo(candidate.name, FAMILY, kind, known.licence, str(path))
    use = LatentUse(variant["timestep"], variant["sign"])
    if head is None:
        return OneStepLatentDepth(info, _preprocessing(), vae, unet, context, use)
    file = weights_file(head)
    state = read_state(file)
    first = state.get("neck.convs.0.weight", torch.zeros(use.head_width, 1))
    use = dataclasses.replace(use, output="dpt", head_width=min(max(len(first), 2), bounds.WIDEST))
    model = OneStepLatentDepth(info, _preprocessing(), vae, unet, context, use)
    check_state(file, model.head, state)
    model.head.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return model


def _find_head(candidate: Candidate, root: Path, folder: Path) -> Path | None:
    """Folder of the DPT head of a U-Net that has one: beside it, under the name that GenPercept's code looks for."""
    named = candidate.entry is not None and candidate.entry.variant == "genpercept-dpt"
    official = folder.name.startswith("unet_")
    head = (folder.parent if official else root) / "dpt_head_identity"
    if head.is_dir() and ("dpt_head" in folder.name or not official):
        return head
    if named or "dpt_head" in folder.name:
        raise DistillDepthError(f"load_model: {candidate.path} has no DPT head; it must lie in {head}")
    if (root / "dpt_head").is_dir() and not official:
        raise DistillDepthError(
            f"load_model: {root / 'dpt_head'} is a DPT head that ends in a ReLU, for which GenPercept's own code has "
            "no use; only dpt_head_identity is supported"
        )
    return None


def _load_unet(path: Path, entry: registry.Entry | None, *, headless: bool) -> tuple[UNet2DConditionModel, bool]:
    """The U-Net, and whether it is one of Lotus; `headless`: without its last layers, which the file may lack."""
    unet = load_part(UNet2DConditionModel, path, SD_UNET, unused=r"conv_(norm_)?out\." if headless else None)
    lotus = unet.config["class_embed_type"] == "projection" if entry is None else entry.variant == "lotus"
    if unet.config["in_channels"] != unet.config["out_channels"]:
        raise DistillDepthError(
            f"load_model: {path} takes {unet.config['in_channels']} channels, image and noise; of these only Marigold "
            "is supported, in a folder with its model_index.json or named as marigold@"
        )
    if lotus != (unet.config["class_embed_type"] == "projection"):
        raise DistillDepthError(f"load_model: {path} is {'not ' if lotus else ''}a Lotus network; name the right model")
    return unet, lotus


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


def _find_unet(candidate: Candidate, kind: str | None) -> Path:
    path = candidate.path
    if path.is_file() or any(path.glob("diffusion_pytorch_model*")):
        return path
    with_head = "unet_disparity_dpt_head_v2"
    wants_head = candidate.entry is not None and candidate.entry.variant == "genpercept-dpt"
    names = ["unet", with_head] if wants_head else ["unet", f"unet_{kind}_v2", with_head]
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise DistillDepthError(
        f"load_model: {path} has no U-Net; a GenPercept or Lotus folder holds unet/ (or {' or '.join(names[1:])})"
    )
