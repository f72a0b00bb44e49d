"""MiDaS / DPT, ZoeDepth, GLPN, Depth Pro and whatever else `AutoModelForDepthEstimation` loads.

Source: Ranftl et al., DPT (2103.13413) and MiDaS (1907.01341); the transformers library.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForDepthEstimation, PreTrainedModel

from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.models import bounds
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.candidate import Candidate
from distilldepth.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, resize
from distilldepth.models.pretrained import load_pretrained, read_json
from distilldepth.models.recompute import recompute_layers

QUANTITIES = {
    "dpt": "disparity",
    "depth_pro": "disparity",
    "zoedepth": "metric_depth",
    "glpn": "metric_depth",
    "prompt_depth_anything": "metric_depth",
    "tipsv2_dpt": "metric_depth",
}
"""What the numbers of each transformers type mean. Depth Pro gives inverse depth for a canonical focal length, which is
inverse depth up to the image's own unknown scale."""

_HALF = (0.5, 0.5, 0.5)
_ENCODERS = ("backbone", "dpt", "glpn", "depth_pro", "vision_model")
_RESAMPLING: dict[object, str] = {2: "bilinear", 3: "bicubic"}

# Tensors without which the network computes the same. The first fusion layer has nothing to fuse, so that its
# `residual_layer1` never runs and some published files lack it; the others are constants that the library computes.
_NEVER_USED = (
    r"fusion_stage\.layers\.0\.residual_layer1\.|relative_position_index|relative_coords_table|"
    r"\.pooler\.|position_ids|num_batches_tracked"
)


ARCHITECTURE = {"config": bounds.config, "square": bounds.flag}
"""What the entries of an architecture may be in a file."""


class TransformersDepth(DepthModel):
    """A depth network of the transformers library.

    With `square`, the network takes square inputs only; any other input is resized to `preprocessing.size` and back.
    """

    def __init__(
        self, info: ModelInfo, preprocessing: Preprocessing, network: PreTrainedModel, *, square: bool
    ) -> None:
        super().__init__(info, preprocessing)
        self.network = network
        self.square = square

    @property
    def architecture(self) -> dict[str, Any]:
        return {"config": json.loads(self.network.config.to_json_string(use_diff=False)), "square": self.square}

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        size = images.shape[-2], images.shape[-1]
        multiple = self.preprocessing.multiple
        pixels = self.normalise(images)
        if self.square and (size[0] != size[1] or size[0] % multiple):
            side = self.preprocessing.size
            pixels = resize(pixels, (side, side), self.preprocessing.interpolation)
        else:
            self.check_sides(size[0], size[1], multiple)
        values = self.network(pixel_values=pixels).predicted_depth
        if values.ndim == 3:
            values = values[:, None]
        # several networks answer at a size of their own
        return DepthOutput(resize(values, size, "bilinear")[:, 0])

    def enable_gradient_checkpointing(self) -> None:
        recompute_layers(self.network)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        parts = [getattr(self.network, name, None) for name in _ENCODERS]
        encoder = [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]
        known = {id(p) for p in encoder}
        return {"encoder": encoder, "decoder": [p for p in self.network.parameters() if id(p) not in known]}


def build(
    architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
) -> TransformersDepth:
    """Make a randomly initialised network.

    Args:
        architecture: `config` (a transformers configuration as a dictionary, with its `model_type`) and, optionally,
            `square`.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the type's default.
    """
    options = dict(architecture["config"])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    default, square = _preprocessing(config)
    return TransformersDepth(
        info,
        preprocessing or default,
        AutoModelForDepthEstimation.from_config(config),
        square=architecture.get("square", square),
    )


def claims(candidate: Candidate) -> bool:
    """Any folder of transformers, whatever its type."""
    return isinstance(candidate.model_type, str)


def load(candidate: Candidate) -> TransformersDepth:
    """Load a folder that transformers saved (`config.json`, weights, perhaps `preprocessor_config.json`), strictly.

    Raises:
        DistillDepthError: a type that is no depth model known here, or weights that do not fit.
    """
    folder, kind = candidate.path, str(candidate.model_type)
    if kind not in QUANTITIES:
        raise DistillDepthError(
            f"load_model: {folder} is a '{kind}' network, not a depth model known here"
            f"{did_you_mean(kind, [*QUANTITIES, 'depth_anything'])}"
        )
    network = load_pretrained(AutoModelForDepthEstimation, folder, never_used=_NEVER_USED)
    preprocessing, square = _preprocessing(network.config)
    file = folder / "preprocessor_config.json"
    if file.is_file():
        preprocessing = _from_processor(read_json(file), preprocessing, square=square)
    licence = candidate.entry.licence if candidate.entry else "see the source"
    info = ModelInfo(candidate.name, "transformers", QUANTITIES[kind], licence, str(folder))
    return TransformersDepth(info, preprocessing, network, square=square)


def _preprocessing(config: Any) -> tuple[Preprocessing, bool]:
    """What a type of network wants to see, and whether its input must be square.

    Maps go back as the library's processors and MiDaS' own code bring them back: bicubic, and Depth Pro's bilinear.
    """
    preprocessing, square = _input(config)
    back = "bilinear" if config.model_type == "depth_pro" else "bicubic"
    return dataclasses.replace(preprocessing, map_interpolation=back), square


def _input(config: Any) -> tuple[Preprocessing, bool]:
    kind = config.model_type
    backbone = getattr(config, "backbone_config", None)
    if kind == "dpt":
        if backbone is None or config.is_hybrid:
            side = _side(config.image_size, 384)
            return Preprocessing(
                side, 32 if side % 32 == 0 else _side(config.patch_size, 16), "square", _HALF, _HALF
            ), True
        side = _side(getattr(backbone, "image_size", 384), 384)
        if backbone.model_type == "dinov2":
            return Preprocessing(side, backbone.patch_size, "hf"), False
        policy = "square" if backbone.model_type == "swinv2" else "hf"
        return Preprocessing(side, 32, policy, _HALF, _HALF), False
    if kind == "zoedepth":
        return Preprocessing(384, 32, "hf", _HALF, _HALF, "bilinear"), False
    if kind == "glpn":
        return Preprocessing(480, 32, "lower-bound", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear-antialias"), False
    if kind == "depth_pro":
        side = round(_side(config.patch_size, 384) / min(config.scaled_images_ratios))
        return Preprocessing(side, side, "square", _HALF, _HALF, "bilinear-antialias"), True
    inner = backbone or getattr(config, "vision_config", None) or config
    side = _side(getattr(inner, "image_size", 518), 518)
    patch = _side(getattr(inner, "patch_size", 14), 14)
    return Preprocessing(side - side % patch or patch, patch, "hf", IMAGENET_MEAN, IMAGENET_STD), False


def _side(value: Any, default: int) -> int:
    """One number out of an integer or a pair."""
    if isinstance(value, (list, tuple)):
        value = value[0]
    return int(value) if value else default


def _from_processor(config: dict[str, Any], default: Preprocessing, *, square: bool) -> Preprocessing:
    """Read a published preprocessor configuration; what it leaves open comes from `default`."""
    size = config.get("size") or {}
    sides = [size] if isinstance(size, int) else [size[key] for key in ("height", "width") if key in size]
    side = min(sides) if sides else default.size
    if "keep_aspect_ratio" in config and not square:
        policy = "hf" if config["keep_aspect_ratio"] else "square"
    else:
        policy = default.resize_policy
    # never below what the network itself needs
    stated = max(1, int(config.get("ensure_multiple_of") or 1))
    multiple = stated if stated % default.multiple == 0 else default.multiple
    if square and side % multiple:
        side = default.size
    mean, std = default.mean, default.std
    if config.get("do_normalize", True):
        mean, std = tuple(config.get("image_mean") or mean), tuple(config.get("image_std") or std)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    interpolation = _RESAMPLING.get(config.get("resample"), default.interpolation)
    return Preprocessing(max(side, multiple), multiple, policy, mean, std, interpolation, default.map_interpolation)
