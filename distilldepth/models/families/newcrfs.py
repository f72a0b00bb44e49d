"""NeWCRFs: a Swin encoder of transformers under fully-connected CRFs in windows; metric depth, in metres.

The decoder starts from a pyramid of pooled maps at 1/32 and goes up to 1/4, where one convolution, a sigmoid and four
times the size make the map. At every level two blocks of attention in windows, the second with shifted ones, look at
the encoder's map for who attends to whom, and at the decoder's map from below for what is passed on.

The published files (large, KITTI and NYUv2) load as they are; `micro` is the same network, small enough to train on a
CPU. With `views=2` the network sees a left and a right image at once, six channels, as the teacher of ADU-Depth does.

Source: Yuan et al., NeW CRFs: Neural Window Fully-connected CRFs for Monocular Depth Estimation (2203.01502), and its
released code; Liu et al., Swin Transformer (2103.14030).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinBackbone, SwinConfig

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import DEEPEST, WIDEST, full_architecture, listed, number, whole
from distilldepth.models.candidate import Candidate
from distilldepth.models.positions import PIECE, Linear, by_position, fits_in_pieces, in_pieces, speed_up_linear
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.models.recompute import recompute, run_block
from distilldepth.models.state_dict import build_to_fit, check_state, count_blocks
from distilldepth.models.unit import LARGEST
from distilldepth.words import DECODER_LEVELS

FAMILY = "newcrfs"

_OFFICIAL = {
    "window": 7,
    "crf": [128, 256, 512, 1024],
    "crf_heads": [4, 8, 16, 32],
    "pyramid": 512,
    "drop_path": 0.3,
    "max_depth": 80,
    "views": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "micro": {
        "width": 32,
        "depths": [2, 2, 2, 2],
        "heads": [1, 2, 4, 8],
        "window": 7,
        "crf": [32, 64, 128, 192],
        "crf_heads": [1, 2, 4, 6],
        "pyramid": 64,
        "drop_path": 0.1,
        "max_depth": 80,
        "views": 1,
    },
    "tiny": {"width": 96, "depths": [2, 2, 6, 2], "heads": [3, 6, 12, 24], **_OFFICIAL},
    "base": {"width": 128, "depths": [2, 2, 18, 2], "heads": [4, 8, 16, 32], **_OFFICIAL},
    "large": {"width": 192, "depths": [2, 2, 18, 2], "heads": [6, 12, 24, 48], **_OFFICIAL},
}
"""Arguments of `NeWCRFsDepth` by variant; its docstring says what each means."""

POOLED = (1, 2, 3, 6)
"""Sides to which the pyramid pools the map at 1/32."""
MULTIPLE = 32
LEVELS = ("1/4", "1/8", "1/16", "1/32")
"""What the encoder's maps are called in `DepthOutput.features`."""

_BY_NAME = {"kitti": 80, "nyu": 10}
"""Metres of the official files, by a word in their names."""
_SIZES = {"outdoor": 352, "indoor": 480}
"""Shorter side in pixels at which the official networks see KITTI and NYUv2."""
_MOST_INDOORS = 20
"""Metres; networks that reach farther are for the outdoors."""

_WIDTH = whole(1, WIDEST)
ARCHITECTURE = {
    "width": _WIDTH,
    "depths": listed(whole(1, DEEPEST), 4, 4),
    "heads": listed(whole(1, DEEPEST), 4, 4),
    "window": whole(2, 64),
    "crf": listed(whole(4, WIDEST), 4, 4),
    "crf_heads": listed(whole(1, DEEPEST), 4, 4),
    "pyramid": whole(2, WIDEST),
    "drop_path": number(0, 1),
    "max_depth": number(0.001, LARGEST),
    "views": whole(1, 2),
}
"""What the arguments of `NeWCRFsDepth` may be in a file."""


class Windows:
    """How maps of one size are cut into windows, padded with zeros and shifted or not, and put together again.

    Args:
        side: of a window, positions.
        size: height and width of the maps, positions.
        shift: by how many positions the windows lie farther down and to the right; those that would lie over the edge
            hold both ends of the map, which do not see each other.
    """

    def __init__(self, side: int, size: tuple[int, int], shift: int) -> None:
        self.side = side
        self.size = size
        self.shift = shift
        self.padded = tuple(-(-length // side) * side for length in size)

    def cut(self, maps: Tensor) -> Tensor:
        """Return `(B * windows, side * side, C)` for maps `(B, h, w, C)`."""
        down, right = (whole - length for whole, length in zip(self.padded, self.size, strict=True))
        if down or right:
            maps = F.pad(maps, (0, 0, 0, right, 0, down))
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = (length // self.side for length in self.padded)
        tiles = maps.unflatten(2, (columns, self.side)).unflatten(1, (rows, self.side))
        return tiles.transpose(2, 3).reshape(len(maps) * rows * columns, self.side**2, maps.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Return the maps `(B, h, w, C)` that `cut` would cut into these windows."""
        rows, columns = (length // self.side for length in self.padded)
        batch, channels = len(windows) // (rows * columns), windows.shape[-1]
        tiles = windows.reshape(batch, rows, columns, self.side, self.side, channels)
        maps = tiles.transpose(2, 3).reshape(batch, *self.padded, channels)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), (1, 2))
        return maps[:, : self.size[0], : self.size[1]]

    def attend(self, module: nn.Module, project: Callable[..., Any], bias: Tensor, *maps: Tensor) -> Tensor:
        """Attention within every window, scaled by 1/sqrt(width of a head).

        Args:
            module: whose work it is; `fits_in_pieces` says what comes of it.
            project: takes windows `(n, side * side, C)` of the maps, returns their queries, keys and values.
            bias: `(heads, side * side, side * side)`, added to what the positions of a window are to each other.
            maps: `(B, h, w, C)`.

        Returns:
            `(B, h, w, C)`.
        """
        cut, batch, count = [self.cut(each) for each in maps], len(maps[0]), len(maps)
        del maps  # Often nobody else holds them any longer.
        if self.shift:
            cut.append(self._apart(bias).repeat(batch, 1, 1))

        def mix(*cut: Tensor) -> Tensor:
            parts = (part.unflatten(2, (len(bias), -1)).transpose(1, 2) for part in project(*cut[:count]))
            query, key, value = parts
            mask = bias.to(query.dtype)
            mask = mask + cut[-1][:, None].to(query.dtype) if self.shift else mask[None]
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)

        if fits_in_pieces(module, cut[0]):
            return self.join(in_pieces(mix, *cut, size=max(1, PIECE // self.side**2)))
        return self.join(mix(*cut))

    def _apart(self, like: Tensor) -> Tensor:
        """`(windows, side * side, side * side)`: -100 where two positions lie at different ends of the map, else 0."""
        ends = []
        for length in self.padded:
            place = torch.arange(length, device=like.device)
            ends.append((place >= length - self.side).long() + (place >= length - self.shift).long())
        part = ends[0][:, None] * 3 + ends[1]
        part = Windows(self.side, (self.padded[0], self.padded[1]), 0).cut(part[None, :, :, None])[..., 0]
        return (part[:, None] != part[:, :, None]).to(like.dtype) * -100


class Swin(SwinBackbone):
    """Swin of transformers that hands out its maps channels last and can compute its blocks again.

    Its layers and the names of its weights are the library's. Run here, so that stochastic depth is on both branches of
    a block, as in the published training; the library has it on one.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        # Of the last map without one of its own, which is not asked for.
        self.swin.add_module("layernorm", nn.Identity())
        self.again = False
        speed_up_linear(self)

    def levels(self, pixels: Tensor) -> list[Tensor]:
        """Return maps `(B, h, w, C)` at 1/4, 1/8, 1/16 and 1/32 of pixels `(B, C, H, W)`."""
        embedded, size = self.swin.embeddings(pixels)
        x = embedded.unflatten(1, size)
        maps = []
        stages: Any = self.swin.encoder.layers
        norms: Any = self.hidden_states_norms
        for stage, norm in zip(stages, norms.values(), strict=True):
            for block in stage.blocks:
                if self.again and self.training and torch.is_grad_enabled():
                    x = recompute(_run_swin, block, x)
                else:
                    x = _run_swin(block, x)
            maps.append(norm(x))
            if stage.downsample is not None:
                # Four neighbours as channels, columns before rows.
                pairs = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
                x = stage.downsample.reduction(stage.downsample.norm(pairs.flatten(3)))
        return maps


def _run_swin(block: Any, x: Tensor) -> Tensor:
    """Run a block of transformers' Swin on maps `(B, h, w, C)`."""
    attention = block.attention
    windows = Windows(block.window_size, (x.shape[1], x.shape[2]), block.shift_size)
    mixed = windows.attend(
        block,
        lambda cut: (attention.q_proj(cut), attention.k_proj(cut), attention.v_proj(cut)),
        attention.relative_position_bias()[0],
        block.layernorm_before(x),
    )
    x = by_position(block, lambda mixed, x: x + block.drop_path(attention.o_proj(mixed)), mixed, x)
    return by_position(block, lambda x: x + block.drop_path(block.mlp(block.layernorm_after(x))), x)


class CRFBlock(nn.Module):
    """Attention in windows whose queries and keys are one map's and whose values are another's, then two layers."""

    places: Tensor

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift, self.heads = side, shift, heads
        self.norm_before = nn.LayerNorm(width)
        self.query_key = Linear(width, 2 * width)
        self.bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        self.out = Linear(width, width)
        self.norm_after = nn.LayerNorm(width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        place = torch.arange(side)
        apart = place[:, None] - place + side - 1
        places = apart[:, None, :, None] * (2 * side - 1) + apart[None, :, None, :]
        self.register_buffer("places", places.flatten(), persistent=False)

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        """Return `x` with what the positions of its windows pass on of `values`; all `(B, h, w, C)`."""
        windows = Windows(self.side, (x.shape[1], x.shape[2]), self.shift)
        bias = self.bias_table[self.places].unflatten(0, (self.side**2, -1)).permute(2, 0, 1)
        mixed = windows.attend(
            self,
            lambda cut, values: (*self.query_key(cut).chunk(2, -1), values),
            bias,
            self.norm_before(x),
            values,
        )
        x = by_position(self, lambda mixed, x: x + self.out(mixed), mixed, x)
        return by_position(self, lambda x: x + self.mlp(self.norm_after(x)), x)


class CRF(nn.Module):
    """One level of the decoder: two blocks over the encoder's map, both with the map from below for their values."""

    def __init__(self, inputs: int, below: int, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.again = False
        self.project: nn.Module = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 3, padding=1)
        self.project_values: nn.Module = nn.Identity() if below == width else nn.Conv2d(below, width, 3, padding=1)
        self.blocks = nn.ModuleList(CRFBlock(width, heads, side, shift) for shift in (0, side // 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, level: Tensor, below: Tensor) -> Tensor:
        """Return `(B, width, h, w)` for the encoder's `(B, inputs, h, w)` and the decoder's `(B, below, h, w)`."""
        x = self.project(level).permute(0, 2, 3, 1)
        values = self.project_values(below).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = run_block(block, x, values, again=self.again)
        return self.norm(x).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Pool a map to a few sides, narrow each, enlarge them again, and mix them with the map itself."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        # Batch normalisation could not be trained on one image where a map is pooled to one position.
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.GroupNorm(width // 2, width), nn.ReLU())
            for _ in POOLED
        )
        mixed = inputs + len(POOLED) * width
        self.mix = nn.Sequential(nn.Conv2d(mixed, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        parts = [
            resize(layer(F.adaptive_avg_pool2d(x, side)), size, "bilinear")
            for side, layer in zip(POOLED, self.pooled, strict=True)
        ]
        return self.mix(torch.cat([x, *parts], 1))


class NeWCRFsDepth(DepthModel):
    """Swin and window CRFs; metres, `max_depth` times a sigmoid.

    Args:
        info: what the network is called and what its numbers mean; `max_depth` is written into it.
        preprocessing: how images are brought to it.
        width: channels of the encoder at 1/4; they double at 1/8, 1/16 and 1/32.
        depths: blocks of the encoder at these sizes.
        heads: attention heads of the encoder at these sizes.
        window: side of a window, positions, in encoder and decoder.
        crf: channels of the decoder at 1/4, 1/8, 1/16 and 1/32, multiples of 4.
        crf_heads: attention heads of the decoder at these sizes.
        pyramid: channels of the pooled maps, an even number.
        drop_path: rate of the encoder's last block; the others rise to it linearly from 0.
        max_depth: metres at which the network saturates: officially 80 for KITTI, 10 for NYUv2.
        views: images that are seen at once, one behind the other along the channels: 1, or 2 for left and right.

    Raises:
        ValueError: the number of depths, heads or channels is wrong, or channels do not divide as said.
    """

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        crf: Sequence[int],
        crf_heads: Sequence[int],
        pyramid: int,
        drop_path: float,
        max_depth: float,
        views: int = 1,
    ) -> None:
        widths = [width << place for place in range(4)]
        for name, values in (("depths", depths), ("heads", heads), ("crf", crf), ("crf_heads", crf_heads)):
            if len(values) != 4:
                raise ValueError(f"NeWCRFsDepth: {name} must have 4 entries, got {len(values)}")
        _check_channels(widths, heads, crf, crf_heads, pyramid)
        if views not in (1, 2):
            raise ValueError(f"NeWCRFsDepth: views must be 1 or 2, got {views}")
        super().__init__(dataclasses.replace(info, max_depth=max_depth), preprocessing)
        self._architecture = {
            "width": width,
            "depths": list(depths),
            "heads": list(heads),
            "window": window,
            "crf": list(crf),
            "crf_heads": list(crf_heads),
            "pyramid": pyramid,
            "drop_path": drop_path,
            "max_depth": max_depth,
            "views": views,
        }
        self.views = views
        self.max_depth = max_depth
        options: dict[str, Any] = {
            "num_channels": 3 * views,
            "embed_dim": width,
            "depths": list(depths),
            "num_heads": list(heads),
            "window_size": window,
            "drop_path_rate": drop_path,
            "out_features": [f"stage{place + 1}" for place in range(4)],
        }
        self.encoder = Swin(SwinConfig(**options))
        self.pyramid = Pyramid(widths[-1], pyramid)
        below = [channels // 4 for channels in crf[1:]] + [pyramid]
        self.crfs = nn.ModuleList(map(CRF, widths, below, crf, crf_heads, [window] * 4))
        self.head = nn.Conv2d(crf[0], 1, 3, padding=1)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build` makes this network again."""
        return copy.deepcopy(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Predict for images `(B, 3 * views, H, W)`, RGB in [0, 1], left view first; sides are multiples of 32.

        Training needs more than 32 x 32 or B > 1.

        Returns:
            Metres `(B, H, W)`, float32 under autocast; `features` are the encoder's maps by the names of `LEVELS`, the
            last of them as `encoder` too, and what the CRFs make of them by those of `DECODER_LEVELS`.

        Raises:
            ValueError: a side that is no multiple of 32, or another number of views.
        """
        height, width = images.shape[-2:]
        self.check_sides(height, width, MULTIPLE)
        self.check_views(images)
        pixels = torch.cat([self.normalise(view) for view in images.split(3, 1)], 1)
        levels = [level.permute(0, 3, 1, 2) for level in self.encoder.levels(pixels)]
        named = dict(zip(LEVELS, levels, strict=True)) | {"encoder": levels[-1]} if features else {}
        x = self.pyramid(levels[-1])
        for place in (3, 2, 1, 0):
            x = self.crfs[place](levels.pop(), x)
            if features:
                named[DECODER_LEVELS[place]] = x
            if place:
                x = F.pixel_shuffle(x, 2)
        logits = self.head(x)
        # In bfloat16 a sigmoid has 128 steps between one half and one, which would show as contour lines.
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        depth = resize(logits.sigmoid(), (height, width), "bilinear")[:, 0] * self.max_depth
        return DepthOutput(depth, named)

    def enable_gradient_checkpointing(self) -> None:
        for module in self.modules():
            if isinstance(module, (Swin, CRF)):
                module.again = True

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the Swin and of what stands on it."""
        encoder = list(self.encoder.parameters())
        parts = (self.pyramid, self.crfs, self.head)
        return {"encoder": encoder, "decoder": [parameter for part in parts for parameter in part.parameters()]}


def _check_channels(
    widths: Sequence[int], heads: Sequence[int], crf: Sequence[int], crf_heads: Sequence[int], pyramid: int
) -> None:
    for name, channels, counts in (("width", widths, heads), ("crf", crf, crf_heads)):
        for wide, count in zip(channels, counts, strict=True):
            if wide % count:
                raise ValueError(f"NeWCRFsDepth: {name} {wide} must be a multiple of its heads, got {count}")
    if any(wide % 4 for wide in crf[1:]):
        raise ValueError(f"NeWCRFsDepth: crf must be multiples of 4, got {list(crf)}")
    if pyramid % 2:
        raise ValueError(f"NeWCRFsDepth: pyramid must be even, got {pyramid}")


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> NeWCRFsDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `NeWCRFsDepth`; or `{"variant": "large"}`, with further arguments to replace
            those of the variant.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the official sizes, 352 pixels on the shorter side, or 480 for a network that reaches
            no farther than 20 m; ImageNet's mean and deviation, bilinear on the way there and back.

    Raises:
        ValueError: unknown variant or argument, an argument is missing, or they do not go together.

    >>> info = ModelInfo("newcrfs-micro", "newcrfs", "metric_depth", "Apache-2.0", "random")
    >>> build({"variant": "micro"}, info).eval()(torch.rand(1, 3, 64, 96)).values.shape
    torch.Size([1, 64, 96])
    """
    arguments = full_architecture("NeWCRFs", architecture, VARIANTS, ARCHITECTURE)
    if preprocessing is None:
        size = _SIZES["indoor" if arguments["max_depth"] <= _MOST_INDOORS else "outdoor"]
        preprocessing = Preprocessing(size, MULTIPLE, interpolation="bilinear", map_interpolation="bilinear")
    return NeWCRFsDepth(info, preprocessing, **arguments)


_PATCHES = "encoder.swin.embeddings.patch_embeddings.projection.weight"


def with_two_views(model: NeWCRFsDepth) -> NeWCRFsDepth:
    """Return a network of two views that starts from one of one view: for twice the same image it says the same.

    The kernel of the patch embedding is repeated for the second view and halved; all else is copied.

    Args:
        model: sees one view; it stays as it is, and shares no tensor with what is returned.

    Returns:
        In the mode and on the device of the model.

    Raises:
        ValueError: the model sees two views already.

    Source: ADU-Depth leaves open how the six channels of its teacher begin.
    """
    if model.views != 1:
        raise ValueError(f"with_two_views: {model.info.name} must see 1 view, it sees {model.views}")
    wide = build({**model.architecture, "views": 2}, model.info, model.preprocessing)
    state = model.state_dict()
    wide.to(state[_PATCHES].device, state[_PATCHES].dtype)
    wide.load_state_dict({**state, _PATCHES: state[_PATCHES].repeat(1, 2, 1, 1) / 2})
    return wide.train(model.training)


_STAGE = r"backbone\.layers\.(\d+)"
_BLOCK = rf"{_STAGE}\.blocks\.(\d+)"
_OUR_STAGE = r"encoder.swin.encoder.layers.\1"
_OUR_BLOCK = rf"{_OUR_STAGE}.blocks.\2"
_CRF = r"crf([0-3])"
_CRF_BLOCK = rf"{_CRF}\.crf_layer\.blocks\.(\d+)"
_OUR_CRF_BLOCK = r"crfs.\1.blocks.\2"
_ENDS = r"(weight|bias)"
_POOL = r"decoder\.psp_modules\.(\d)\.1"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
KEY_MAP: tuple[tuple[str, str], ...] = (
    (rf"backbone\.patch_embed\.proj\.{_ENDS}", r"encoder.swin.embeddings.patch_embeddings.projection.\1"),
    (rf"backbone\.patch_embed\.norm\.{_ENDS}", r"encoder.swin.embeddings.norm.\1"),
    (rf"{_BLOCK}\.norm1\.{_ENDS}", rf"{_OUR_BLOCK}.layernorm_before.\3"),
    (rf"{_BLOCK}\.norm2\.{_ENDS}", rf"{_OUR_BLOCK}.layernorm_after.\3"),
    (rf"{_BLOCK}\.attn\.qkv\.{_ENDS}", rf"{_OUR_BLOCK}.attention.{{q_proj,k_proj,v_proj}}.\3"),
    (rf"{_BLOCK}\.attn\.proj\.{_ENDS}", rf"{_OUR_BLOCK}.attention.o_proj.\3"),
    (
        rf"{_BLOCK}\.attn\.relative_position_bias_table",
        rf"{_OUR_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"{_BLOCK}\.mlp\.(fc[12])\.{_ENDS}", rf"{_OUR_BLOCK}.mlp.\3.\4"),
    (rf"{_STAGE}\.downsample\.(norm|reduction)\.{_ENDS}", rf"{_OUR_STAGE}.downsample.\2.\3"),
    (rf"backbone\.norm(\d)\.{_ENDS}", r"encoder.hidden_states_norms.stage<\1+1>.\2"),
    (rf"{_POOL}\.conv\.weight", r"pyramid.pooled.\1.0.weight"),
    (rf"{_POOL}\.gn\.{_ENDS}", r"pyramid.pooled.\1.1.\2"),
    (r"decoder\.bottleneck\.conv\.weight", "pyramid.mix.0.weight"),
    (rf"decoder\.bottleneck\.bn\.{_NORM}", r"pyramid.mix.1.\1"),
    (rf"{_CRF}\.proj_x\.{_ENDS}", r"crfs.\1.project.\2"),
    (rf"{_CRF}\.proj_v\.{_ENDS}", r"crfs.\1.project_values.\2"),
    (rf"{_CRF_BLOCK}\.norm1\.{_ENDS}", rf"{_OUR_CRF_BLOCK}.norm_before.\3"),
    (rf"{_CRF_BLOCK}\.norm2\.{_ENDS}", rf"{_OUR_CRF_BLOCK}.norm_after.\3"),
    (rf"{_CRF_BLOCK}\.attn\.qk\.{_ENDS}", rf"{_OUR_CRF_BLOCK}.query_key.\3"),
    (rf"{_CRF_BLOCK}\.attn\.proj\.{_ENDS}", rf"{_OUR_CRF_BLOCK}.out.\3"),
    (rf"{_CRF_BLOCK}\.attn\.relative_position_bias_table", rf"{_OUR_CRF_BLOCK}.bias_table"),
    (rf"{_CRF_BLOCK}\.mlp\.fc([12])\.{_ENDS}", rf"{_OUR_CRF_BLOCK}.mlp.<2*\3-2>.\4"),
    (rf"{_CRF}\.norm_crf\.{_ENDS}", r"crfs.\1.norm.\2"),
    (rf"disp_head1\.conv1\.{_ENDS}", r"head.\1"),
)
"""Official name -> our name. `{a,b}`: the tensor is cut into equal parts along its first axis, in this order. `<n+1>`,
`<2*n-2>`: an index that is counted differently."""
_COMPUTED = re.compile(r"(backbone|crf\d)\..*\.relative_position_index")
"""Constants that official files hold, and that follow from the side of a window."""
_SHIFTED: dict[str, Callable[[int], int]] = {"+1": lambda n: n + 1, "-2": lambda n: 2 * n - 2}


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary has the official layout of NeWCRFs."""
    return any(re.match(r"crf\d\.", key) for key in state) and any(key.startswith("backbone.") for key in state)


def convert_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an official state dictionary; constants that follow from the side of a window are left out.

    Returns:
        The renamed dictionary, and the names for which `KEY_MAP` has no row.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if _COMPUTED.fullmatch(key):
            continue
        rows = ((re.fullmatch(pattern, key), target) for pattern, target in KEY_MAP)
        match, target = next(((match, target) for match, target in rows if match), (None, ""))
        if match is None:
            unknown.append(key)
            continue
        name = re.sub(r"<(?:2\*)?(\d+)([+-]\d)>", lambda m: str(_SHIFTED[m[2]](int(m[1]))), match.expand(target))
        parts = re.search(r"\{(.+)\}", name)
        if parts is None or tensor.ndim == 0:
            converted[name] = tensor
        else:
            names = parts[1].split(",")
            for part, piece in zip(names, tensor.chunk(len(names)), strict=False):
                converted[name.replace(parts[0], part)] = piece.contiguous()
    return converted, unknown


def infer_architecture(state: dict[str, Tensor], max_depth: float) -> dict[str, Any]:
    """Read the architecture off the shapes of a converted state dictionary; `drop_path`, which leaves none, is 0.3.

    Args:
        state: of our names.
        max_depth: metres at which the network saturates, which leaves no trace either.

    Raises:
        KeyError: a tensor that is needed for this is missing.
        ValueError: a number of blocks that cannot be.
    """
    stages = "encoder.swin.encoder.layers"
    depths = count_blocks(state, r"encoder\.swin\.encoder\.layers\.{}\.blocks\.")
    table = "attention.relative_position_bias.relative_position_bias_table"
    tables = [state[f"{stages}.{stage}.blocks.0.{table}"] for stage in range(4)]
    decoder = [state[f"crfs.{level}.blocks.0.bias_table"] for level in range(4)]
    return {
        "width": len(state[_PATCHES]),
        "depths": depths,
        "heads": [each.shape[1] for each in tables],
        "window": (math.isqrt(len(tables[0])) + 1) // 2,
        "crf": [len(state[f"crfs.{level}.norm.weight"]) for level in range(4)],
        "crf_heads": [each.shape[1] for each in decoder],
        "pyramid": len(state["pyramid.mix.0.weight"]),
        "drop_path": _OFFICIAL["drop_path"],
        "max_depth": max_depth,
        "views": state[_PATCHES].shape[1] // 3,
    }


def claims(candidate: Candidate) -> bool:
    """Official files, whatever a training script wrapped around them."""
    return candidate.path.is_file() and candidate.find(is_official) is not None


def load(candidate: Candidate) -> NeWCRFsDepth:
    """Load what was claimed, strictly.

    Raises:
        UsageError: it is said to be disparity.
        DistillDepthError: nothing says the `max_depth`; another name than one of NeWCRFs, another size than the name
            says; or tensors missing, left over or of another shape.
    """
    path, name, entry, pinned = candidate.path, candidate.name, candidate.entry, candidate.pinned
    if entry is not None and entry.family != FAMILY:
        raise DistillDepthError(f"load_model: {path} holds a NeWCRFs network, but '{name}' is not one")
    max_depth = _settle_metres(candidate)
    found = candidate.find(is_official)
    assert found is not None, "only what was claimed is loaded"
    converted, unknown = convert_official(found.state)
    try:
        architecture = infer_architecture(converted, max_depth)
    except (LookupError, ValueError, TypeError) as error:
        raise DistillDepthError(f"load_model: {path} lacks {error} of NeWCRFs; download it again") from None
    if pinned is not None:
        _check_variant(path, name, architecture, VARIANTS[pinned.variant])
    licence = "see the source" if entry is None else entry.licence
    info = ModelInfo(name, FAMILY, "metric_depth", licence, str(path), (found.note,) if found.note else ())
    model = build_to_fit(
        lambda: build(architecture, info),
        lambda skeleton: check_state(path, skeleton, converted, unknown),
        f"{path} describes no network",
    )
    model.load_state_dict(converted)
    return model


def _check_variant(path: Path, name: str, architecture: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless a file has the size that its name says."""
    for key in ("width", "depths", "heads", "window", "crf", "crf_heads", "pyramid"):
        if architecture[key] != wanted[key]:
            raise DistillDepthError(
                f"load_model: {path} is a NeWCRFs network with {key} {architecture[key]}, '{name}' has {wanted[key]}; "
                f"name it newcrfs@{path}"
            )


def _settle_metres(candidate: Candidate) -> float:
    """The max_depth: what was said, what the name of the file says, what the name of the model says."""
    path, request, pinned = candidate.path, candidate.request, candidate.pinned
    if request.quantity == "disparity":
        raise UsageError(f"load_model: {path} is a NeWCRFs network, which predicts metres")
    if request.max_depth is not None:
        return request.max_depth
    by_name = [metres for word, metres in _BY_NAME.items() if word in path.stem.lower()]
    if len(by_name) == 1:
        return by_name[0]
    if pinned is not None and pinned.max_depth is not None:
        return pinned.max_depth
    raise DistillDepthError(
        f"load_model: {path} is a NeWCRFs network and does not say its max_depth; give the metres of its training, "
        "--model-max-depth METRES (in Python max_depth=METRES), officially 80 for KITTI and 10 for NYUv2, or name the "
        "file after one of these"
    )
