"""Depth Anything V2, Distill-Any-Depth and small relatives: a DINOv2 backbone with a DPT head, by transformers.

Source: Yang et al., Depth Anything V2 (2406.09414); He et al., Distill Any Depth (2502.19204).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import DEEPEST, WIDEST, flag, listed, number, optional, whole
from distilldepth.models.candidate import Candidate
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.pretrained import load_pretrained
from distilldepth.models.recompute import recompute_layers
from distilldepth.models.state_dict import build_to_fit, check_state
from distilldepth.models.unit import settle_unit
from distilldepth.words import FEATURE_LEVELS

FAMILY = "depth-anything"
_VIT = {"mlp_ratio": 4, "patch_size": 14, "image_size": 518, "head_hidden": 32, "official_positions": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "vits": {"hidden": 384, "layers": 12, "heads": 6, "taps": [2, 5, 8, 11], "neck": [48, 96, 192, 384], "fusion": 64}
    | _VIT,
    "vitb": {
        "hidden": 768,
        "layers": 12,
        "heads": 12,
        "taps": [2, 5, 8, 11],
        "neck": [96, 192, 384, 768],
        "fusion": 128,
    }
    | _VIT,
    "vitl": {
        "hidden": 1024,
        "layers": 24,
        "heads": 16,
        "taps": [4, 11, 17, 23],
        "neck": [256, 512, 1024, 1024],
        "fusion": 256,
    }
    | _VIT,
    "vitg": {"hidden": 1536, "layers": 40, "heads": 24, "taps": [9, 19, 29, 39], "neck": [1536] * 4, "fusion": 384}
    | _VIT
    | {"swiglu": True},
    # The same architecture small enough to train on two cores: a short position grid, and a neck that stays thin.
    "mini": {
        "hidden": 192,
        "layers": 8,
        "heads": 3,
        "mlp_ratio": 3,
        "taps": [1, 3, 5, 7],
        "neck": [32, 48, 96, 192],
        "fusion": 48,
        "head_hidden": 24,
        "patch_size": 14,
        "image_size": 224,
        "inference": {"size": 196, "interpolation": "bilinear-antialias"},
    },
}
"""Architectures by name; `taps` are the blocks (counted from 0) whose tokens go to the neck."""

_WIDTH = whole(1, WIDEST)
ARCHITECTURE = {
    "hidden": _WIDTH,
    "layers": whole(1, DEEPEST),
    "heads": whole(1, DEEPEST),
    "mlp_ratio": number(0.01, 64),
    "swiglu": flag,
    "taps": listed(whole(0, DEEPEST - 1), 4, 4),
    "neck": listed(_WIDTH, 4, 4),
    "fusion": _WIDTH,
    "head_hidden": _WIDTH,
    "patch_size": whole(1, 128),
    "image_size": whole(1, WIDEST),
    "max_depth": optional(number(0.001, 1e6)),
    "official_positions": flag,
}
"""What the entries of an architecture may be in a file."""

DEFAULTS = {
    "mlp_ratio": 4,
    "swiglu": False,
    "patch_size": 14,
    "image_size": 518,
    "head_hidden": 32,
    "max_depth": None,
    "official_positions": False,
}
"""What entries are where an architecture lacks them."""


class OfficialPositionEmbeddings(Dinov2Embeddings):
    """DINOv2 embeddings whose position grid is resized as the official code does it.

    The official code asks for a scale factor of `(patches + 0.1) / grid` where transformers asks for the exact size, so
    that the sampling points differ slightly at every size but the native one.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return `(1, 1 + tokens, C)` position embeddings for an input of `height` x `width` pixels."""
        positions = self.position_embeddings
        side = math.isqrt(positions.shape[1] - 1)
        patch: Any = self.patch_size  # To transformers it may have two sides.
        rows, columns = height // patch, width // patch
        if rows == columns == side:
            return positions
        grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)), dim=1)


class DepthAnythingDepth(DepthModel):
    """A Depth Anything network; disparity (ReLU) or, with `max_depth`, metres (sigmoid)."""

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        network: DepthAnythingForDepthEstimation,
        *,
        official_positions: bool,
    ) -> None:
        super().__init__(info, preprocessing)
        self.network = network
        config: Any = network.config  # To transformers a patch may have two sides.
        self._patch: int = config.patch_size
        self.official_positions = official_positions
        if official_positions:
            embeddings = OfficialPositionEmbeddings(network.backbone.config)
            embeddings.load_state_dict(network.backbone.embeddings.state_dict(), assign=True)
            network.backbone.embeddings = embeddings

    @property
    def architecture(self) -> dict[str, Any]:
        config = self.network.config
        backbone: Any = config.backbone_config  # To transformers it may be one of many classes.
        return {
            "hidden": backbone.hidden_size,
            "layers": backbone.num_hidden_layers,
            "heads": backbone.num_attention_heads,
            "mlp_ratio": backbone.mlp_ratio,
            "swiglu": backbone.use_swiglu_ffn,
            "taps": [index - 1 for index in backbone.out_indices],
            "neck": list(config.neck_hidden_sizes),
            "fusion": config.fusion_hidden_size,
            "head_hidden": config.head_hidden_size,
            "patch_size": backbone.patch_size,
            "image_size": backbone.image_size,
            "max_depth": self.network.head.max_depth if config.depth_estimation_type == "metric" else None,
            "official_positions": self.official_positions,
        }

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        patch = self._patch
        height, width = images.shape[-2:]
        self.check_sides(height, width, patch)
        rows, columns = height // patch, width // patch
        maps = self.network.backbone(self.normalise(images)).feature_maps
        values = self.network.head(self.network.neck(list(maps), rows, columns), rows, columns)
        if not features:
            return DepthOutput(values)
        # The head enlarges or reduces its four to about these sizes; here all are on the grid of patches.
        taps = [tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for tokens in maps]
        return DepthOutput(values, {"encoder": taps[-1]} | dict(zip(FEATURE_LEVELS, taps, strict=False)))

    def enable_gradient_checkpointing(self) -> None:
        recompute_layers(self.network)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "encoder": list(self.network.backbone.parameters()),
            "decoder": [*self.network.neck.parameters(), *self.network.head.parameters()],
        }


def build(
    architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
) -> DepthAnythingDepth:
    """Make a randomly initialised network.

    Args:
        architecture: the keys of a `VARIANTS` entry, or `{"variant": name}` with any of them to override; `max_depth`
            (metres) makes it a metric network, whose values are sigmoid * max_depth.
        info: what the network is called and what its numbers mean.
        preprocessing: None for 518 pixels, or the variant's own size, by the official rule.
    """
    options = dict(architecture)
    if "variant" in options:
        options = VARIANTS[options.pop("variant")] | options
    inference = {"size": options.get("image_size", 518)} | options.pop("inference", {})
    options = DEFAULTS | options
    network = DepthAnythingForDepthEstimation(_config(options))
    if options["max_depth"] is not None:
        # The configuration knows whole metres only.
        network.head.max_depth = options["max_depth"]
    _initialise(network)
    preprocessing = preprocessing or Preprocessing(multiple=options["patch_size"], **inference)
    return DepthAnythingDepth(info, preprocessing, network, official_positions=options["official_positions"])


def _config(options: dict[str, Any]) -> DepthAnythingConfig:
    backbone = Dinov2Config(
        image_size=options["image_size"],
        patch_size=options["patch_size"],
        hidden_size=options["hidden"],
        num_hidden_layers=options["layers"],
        num_attention_heads=options["heads"],
        mlp_ratio=options["mlp_ratio"],
        use_swiglu_ffn=options["swiglu"],
        out_indices=[tap + 1 for tap in options["taps"]],  # type: ignore[call-arg]  # A property, which it takes too.
        apply_layernorm=True,
        reshape_hidden_states=False,
        layerscale_value=1.0,
    )
    metric = options["max_depth"] is not None
    return DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=options["patch_size"],
        reassemble_hidden_size=options["hidden"],
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=list(options["neck"]),
        fusion_hidden_size=options["fusion"],
        head_hidden_size=options["head_hidden"],
        depth_estimation_type="metric" if metric else "relative",
        max_depth=math.ceil(options["max_depth"]) if metric else 1,
    )


@torch.no_grad()
def _initialise(network: DepthAnythingForDepthEstimation) -> None:
    """Initialise so that training from nothing works.

    The library draws every weight with deviation 0.02, made for pretrained backbones: through the convolutions of the
    head the signal shrinks at each layer until the last ReLU sees a constant. Here every layer keeps its input's
    variance, residual branches start small, and the last bias is positive so that the last ReLU is open everywhere.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # a transposed convolution whose stride is its kernel gives each output pixel one tap of each input channel
            fan = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in network.backbone.encoder.layer:
        output = layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp.fc2
        for linear in (layer.attention.o_proj, output):
            linear.weight.mul_((2 * len(network.backbone.encoder.layer)) ** -0.5)
    for layer in network.neck.fusion_stage.layers:
        for unit in (layer.residual_layer1, layer.residual_layer2):
            unit.convolution1.weight.mul_(2**0.5)
            unit.convolution2.weight.mul_(0.5)
    network.head.conv2.weight.mul_(2**0.5)
    network.head.conv3.weight.mul_(0.3)
    nn.init.constant_(network.head.conv3.bias, 1.0 if network.config.depth_estimation_type == "relative" else 0.0)
    positions = network.backbone.embeddings.position_embeddings
    side = math.isqrt(positions.shape[1] - 1)
    positions[0, 1:] = 0.5 * _waves(side, positions.shape[-1])


def _waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `(side * side, width)`: neighbours start alike, far rows different."""
    quarter = width // 4
    frequencies = torch.logspace(0, -2, quarter) if quarter else torch.empty(0)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    waves = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
    return F.pad(waves, (0, width - waves.shape[1]))


# Official checkpoints name the same tensors differently. The encoder's prefix is `pretrained.`, or `backbone.` in
# Distill-Any-Depth large, which also has one more integer in `blocks.0.<i>.`, the number of a chunk of blocks.
_ENCODER = "(?:pretrained|backbone)"
_BLOCK = rf"{_ENCODER}\.blocks\.(?:\d+\.)?(\d+)"
_LAYER = r"backbone.encoder.layer.\1"
_HEAD = "depth_head"
_FUSION = rf"{_HEAD}\.scratch\.refinenet([1-4])"
KEY_MAP: tuple[tuple[str, str], ...] = (
    (rf"{_ENCODER}\.cls_token", "backbone.embeddings.cls_token"),
    (rf"{_ENCODER}\.pos_embed", "backbone.embeddings.position_embeddings"),
    (rf"{_ENCODER}\.mask_token", "backbone.embeddings.mask_token"),
    (rf"{_ENCODER}\.patch_embed\.proj\.(weight|bias)", r"backbone.embeddings.patch_embeddings.projection.\1"),
    (rf"{_ENCODER}\.norm\.(weight|bias)", r"backbone.layernorm.\1"),
    (rf"{_BLOCK}\.(norm[12]|mlp\.fc[12])\.(weight|bias)", rf"{_LAYER}.\2.\3"),
    (rf"{_BLOCK}\.attn\.qkv\.(weight|bias)", rf"{_LAYER}.attention.{{q_proj,k_proj,v_proj}}.\2"),
    (rf"{_BLOCK}\.attn\.proj\.(weight|bias)", rf"{_LAYER}.attention.o_proj.\2"),
    (rf"{_BLOCK}\.ls([12])\.gamma", rf"{_LAYER}.layer_scale\2.lambda1"),
    (rf"{_BLOCK}\.mlp\.w12\.(weight|bias)", rf"{_LAYER}.mlp.{{gate_proj,up_proj}}.\2"),
    (rf"{_BLOCK}\.mlp\.w3\.(weight|bias)", rf"{_LAYER}.mlp.down_proj.\2"),
    (rf"{_HEAD}\.projects\.(\d)\.(weight|bias)", r"neck.reassemble_stage.layers.\1.projection.\2"),
    (rf"{_HEAD}\.resize_layers\.(\d)\.(weight|bias)", r"neck.reassemble_stage.layers.\1.resize.\2"),
    (rf"{_HEAD}\.scratch\.layer([1-4])_rn\.weight", r"neck.convs.<\1-1>.weight"),
    (rf"{_FUSION}\.out_conv\.(weight|bias)", r"neck.fusion_stage.layers.<4-\1>.projection.\2"),
    (
        rf"{_FUSION}\.resConfUnit([12])\.conv([12])\.(weight|bias)",
        r"neck.fusion_stage.layers.<4-\1>.residual_layer\2.convolution\3.\4",
    ),
    (rf"{_HEAD}\.scratch\.output_conv1\.(weight|bias)", r"head.conv1.\1"),
    (rf"{_HEAD}\.scratch\.output_conv2\.0\.(weight|bias)", r"head.conv2.\1"),
    (rf"{_HEAD}\.scratch\.output_conv2\.2\.(weight|bias)", r"head.conv3.\1"),
)
"""Official name -> name in transformers. `{a,b}`: the tensor is cut into equal parts along its first axis, in this
order. `<n-m>`: an index that is counted differently."""


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary has the official layout of Depth Anything V2 or Distill-Any-Depth."""
    return any(key.startswith(f"{_HEAD}.") for key in state) and any(re.match(rf"{_ENCODER}\.", key) for key in state)


def convert_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an official state dictionary to transformers' names.

    Returns:
        The renamed dictionary, and the names for which `KEY_MAP` has no row.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        for pattern, target in KEY_MAP:
            match = re.fullmatch(pattern, key)
            if match:
                name = re.sub(r"<(\d)-(\d)>", lambda m: str(int(m[1]) - int(m[2])), match.expand(target))
                parts = re.search(r"\{(.+)\}", name)
                if parts is None or tensor.ndim == 0:
                    converted[name] = tensor
                else:
                    names = parts[1].split(",")
                    for part, piece in zip(names, tensor.chunk(len(names)), strict=False):
                        converted[name.replace(parts[0], part)] = piece.contiguous()
                break
        else:
            unknown.append(key)
    return converted, unknown


def infer_architecture(state: dict[str, Tensor], *, max_depth: float | None = None, v1: bool = False) -> dict[str, Any]:
    """Read the architecture off the shapes of a converted state dictionary.

    Which blocks are tapped leaves no trace in the weights: known depths have their official taps, others four evenly
    spaced ones. `v1` is Depth Anything V1, which taps the last four.

    Raises:
        KeyError: a tensor that is needed for this is missing.
    """
    hidden = state["backbone.embeddings.cls_token"].shape[-1]
    layers = 1 + max(int(m[1]) for key in state if (m := re.match(r"backbone\.encoder\.layer\.(\d{1,6})\.", key)))
    if layers > len(state):
        raise ValueError(f"blocks: the last one has the number {layers - 1}, with {len(state)} tensors in all")
    known = next((v for v in VARIANTS.values() if (v["hidden"], v["layers"]) == (hidden, layers)), None)
    taps = known["taps"] if known else [(i + 1) * layers // 4 - 1 for i in range(4)]
    patch = state["backbone.embeddings.patch_embeddings.projection.weight"].shape[-1]
    swiglu = "backbone.encoder.layer.0.mlp.gate_proj.weight" in state
    mlp = 4 if swiglu else state["backbone.encoder.layer.0.mlp.fc1.weight"].shape[0] / hidden
    return {
        "hidden": hidden,
        "layers": layers,
        "heads": known["heads"] if known else max(1, hidden // 64),
        "mlp_ratio": int(mlp) if mlp == int(mlp) else mlp,
        "swiglu": swiglu,
        "taps": list(range(layers - 4, layers)) if v1 else list(taps),
        "neck": [state[f"neck.reassemble_stage.layers.{i}.projection.weight"].shape[0] for i in range(4)],
        "fusion": state["neck.convs.0.weight"].shape[0],
        "head_hidden": state["head.conv2.weight"].shape[0],
        "patch_size": patch,
        "image_size": math.isqrt(state["backbone.embeddings.position_embeddings"].shape[1] - 1) * patch,
        "max_depth": max_depth,
        "official_positions": True,
    }


def claims(candidate: Candidate) -> bool:
    """Official files, whatever a training script wrapped around them, and folders of transformers."""
    if candidate.path.is_dir():
        return candidate.model_type == "depth_anything"
    return candidate.find(is_official) is not None


def load(candidate: Candidate) -> DepthAnythingDepth:
    """Load what was claimed, strictly; an official file does not always say what its numbers are, see `settle_unit`."""
    path, name, entry, pinned = candidate.path, candidate.name, candidate.entry, candidate.pinned
    if path.is_dir():
        metric = candidate.config.get("depth_estimation_type") == "metric"
        licence = entry.licence if entry else "see the source"
        quantity = "metric_depth" if metric else "disparity"
        return load_transformers(path, ModelInfo(name, FAMILY, quantity, licence, str(path)))
    if entry is not None and entry.family != FAMILY:
        raise DistillDepthError(f"load_model: {path} holds a Depth Anything network, but '{name}' is not one")
    told, max_depth = candidate.request.quantity, candidate.request.max_depth
    if pinned is not None:
        if told is not None and told != pinned.quantity:
            raise UsageError(f"load_model: '{name}' predicts {pinned.quantity}, and has no max_depth")
        told, max_depth = pinned.quantity, max_depth or pinned.max_depth
    content, metadata = candidate.weights
    settled = settle_unit(
        path, content, metadata, name="" if pinned is None else name, quantity=told, max_depth=max_depth
    )
    found = candidate.find(is_official)
    assert found is not None, "only what was claimed is loaded"
    info = ModelInfo(
        name,
        FAMILY,
        "disparity" if settled.max_depth is None else "metric_depth",
        "see the source" if pinned is None else pinned.licence,
        str(path),
        tuple(note for note in (found.note, settled.note) if note),
    )
    variant = None if pinned is None else pinned.variant
    return load_official(path, found.state, info, variant=variant, max_depth=settled.max_depth)


def load_official(
    path: Path, state: dict[str, Tensor], info: ModelInfo, *, variant: str | None = None, max_depth: float | None = None
) -> DepthAnythingDepth:
    """Build the network that an official checkpoint holds, and load it strictly.

    Args:
        path: where it was read from, for messages; its name tells V1 from V2.
        state: official state dictionary.
        info: what the model is called.
        variant: the size that it must have; None for whichever it has.
        max_depth: metres at which a metric network saturates; None for a relative one.

    Raises:
        DistillDepthError: tensors missing, left over or of another shape, or another size than `variant`.
    """
    converted, unknown = convert_official(state)
    try:
        v1 = re.match(r"depth_anything_vit", path.name) is not None
        architecture = infer_architecture(converted, max_depth=max_depth, v1=v1)
    except (LookupError, ValueError, ArithmeticError) as error:
        raise DistillDepthError(f"load_model: {path} lacks {error} of Depth Anything; download it again") from None
    if variant:
        wanted = VARIANTS[variant]
        if (wanted["hidden"], wanted["layers"]) != (architecture["hidden"], architecture["layers"]):
            raise DistillDepthError(
                f"load_model: {path} has ViT width {architecture['hidden']} and {architecture['layers']} layers, "
                f"'{info.name}' has width {wanted['hidden']} and {wanted['layers']} layers; name the right size"
            )
    model = build_to_fit(
        lambda: build(architecture, info),
        lambda skeleton: check_state(path, skeleton.network, converted, unknown),
        f"{path} describes no network",
    )
    model.network.load_state_dict(converted)
    return model


def load_transformers(folder: Path, info: ModelInfo) -> DepthAnythingDepth:
    """Load a folder that transformers saved (`config.json` and weights), strictly.

    Raises:
        DistillDepthError: weights missing, left over, of another shape or unreadable.
    """
    network = load_pretrained(DepthAnythingForDepthEstimation, folder)
    config = network.config.backbone_config
    return DepthAnythingDepth(
        info,
        Preprocessing(config.image_size, config.patch_size, "lower-bound"),
        network,
        official_positions=True,
    )
