"""PSMNet, the stacked hourglass: stereo disparity in pixels from both views of a rectified pair.

Features of both views at 1/4, in which averages over large cells have a part; a volume of both, the right view's moved
by every disparity; 3-D convolutions in three hourglasses; and the mean disparity of a softmax over the scores
(soft-argmin). 5.22 M parameters, nearly all of the time in 3-D convolutions.

The published files differ in how maps are enlarged, and do not say it: earlier torch kept the corners where today's
keeps the frame. See `load`.

Source: Chang and Chen, Pyramid Stereo Matching Network (2018, 1803.08669), and its released code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.capacity import check_memory
from distilldepth.depth import stereo_disparity_to_depth
from distilldepth.errors import DistillDepthError
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo, run_resized
from distilldepth.models.bounds import DEEPEST, flag, full_architecture, listed, whole
from distilldepth.models.candidate import Candidate
from distilldepth.models.preprocess import Preprocessing, target_size
from distilldepth.models.recompute import run_block
from distilldepth.models.state_dict import build_to_fit, check_state, count_blocks

FAMILY = "psmnet"

VARIANTS: dict[str, dict[str, Any]] = {
    "stacked-hourglass": {
        "width": 32,
        "depths": [3, 16, 3, 3],
        "cells": [8, 16, 32, 64],
        "max_disparity": 192,
        "align_corners": True,
    },
}
"""Arguments of `PSMNetDepth` by variant; its docstring says what each means."""

MULTIPLE = 16
"""What sides of images and the number of disparities are brought to, or must be, a multiple of."""
_STEP = 4
"""Pixels from one column of the features to the next, and from one of their disparities to the next."""

ARCHITECTURE = {
    "width": whole(1, 1024),
    "depths": listed(whole(1, DEEPEST), 4, 4),
    "cells": listed(whole(1, 1024), 1, 16),
    "max_disparity": whole(MULTIPLE, 4096),
    "align_corners": flag,
}
"""What the arguments of `PSMNetDepth` may be in a file."""


class PSMNetDepth(DepthModel):
    """Siamese features, a volume of all disparities, hourglasses; disparity in pixels from a left and a right view.

    Its quantity is `disparity`, larger = nearer, and of the best kind: the shift between the views in pixels of the
    images, whose scale only focal length and baseline say. `predict` and `metric_depth` turn pairs into metres with
    them.

    Images are seen as they are, as in training, unless a size is asked for: pairs with larger disparities than
    `max_disparity` need a smaller one. What is no multiple of 16 is filled up above and at the right, as official code
    does, with the mean colour.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: mean and deviation of the images; its sizes are not used.
        width: channels of the first features, of what is compared, and of the volume.
        depths: residual blocks of the four stages of the features.
        cells: sides of the cells over which features are averaged, in positions of 1/4, finest first; where an image
            has fewer, all of it is one cell.
        max_disparity: disparities from 0 to one less than this are told apart, pixels; a multiple of 16.
        align_corners: how maps and volumes are enlarged: whether the centres of the corner pixels stay in place, or the
            corners of the frame do.

    Raises:
        ValueError: not four depths, no cells, or disparities that are no multiple of 16.
    """

    views = 2
    in_pixels = True
    own_size = True
    memory_format = torch.contiguous_format

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        *,
        width: int,
        depths: Sequence[int],
        cells: Sequence[int],
        max_disparity: int,
        align_corners: bool,
    ) -> None:
        if len(depths) != 4:
            raise ValueError(f"PSMNetDepth: depths must have 4 entries, got {len(depths)}")
        if not cells:
            raise ValueError("PSMNetDepth: cells must have at least one entry")
        if max_disparity < MULTIPLE or max_disparity % MULTIPLE:
            raise ValueError(f"PSMNetDepth: max_disparity must be a multiple of {MULTIPLE}, got {max_disparity}")
        super().__init__(info, preprocessing)
        self._architecture = {
            "width": width,
            "depths": list(depths),
            "cells": list(cells),
            "max_disparity": max_disparity,
            "align_corners": align_corners,
        }
        self.max_disparity, self.align_corners = max_disparity, align_corners
        self._again = False
        self.features = _Features(width, depths, cells, align_corners=align_corners)
        self.enter = nn.Sequential(
            _layer3d(2 * width, width), nn.ReLU(inplace=True), _layer3d(width, width), nn.ReLU(inplace=True)
        )
        self.refine = nn.Sequential(_layer3d(width, width), nn.ReLU(inplace=True), _layer3d(width, width))
        self.hourglasses = nn.ModuleList(_Hourglass(width) for _ in range(3))
        self.heads = nn.ModuleList(
            nn.Sequential(_layer3d(width, width), nn.ReLU(inplace=True), nn.Conv3d(width, 1, 3, padding=1, bias=False))
            for _ in range(3)
        )
        _initialise(self)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build` makes this network again."""
        return copy.deepcopy(self._architecture)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Predict for pairs `(B, 6, H, W)`, RGB of the left view and RGB of the right one, in [0, 1], of any size.

        Returns:
            Stereo disparity of the left view in pixels `(B, H, W)`, float32 under autocast. In training `extras` has
            what the first two hourglasses say, `hourglass1` and `hourglass2`: official training weighs the three 0.5,
            0.7 and 1. `features["encoder"]` are the left view's at 1/4.

        Raises:
            ValueError: not two views.
        """
        self.check_views(images)
        height, width = images.shape[-2:]
        views = self.normalise(images.unflatten(1, (2, 3)))
        # The mean colour is 0 by now.
        above, beside = -height % MULTIPLE, -width % MULTIPLE
        left, right = F.pad(views, (0, beside, above, 0)).unbind(1)
        # One view after the other: batch normalisation in training sees each by itself.
        left, right = (self.features(view, again=self._again) for view in (left, right))
        scores = self._scores(_volume(left, right, self.max_disparity // _STEP))
        if not self.training:
            scores = scores[-1:]
        size = self.max_disparity, height + above, width + beside
        maps = [self._disparity(score, size)[:, above:, :width] for score in scores]
        extras = {f"hourglass{place}": values for place, values in enumerate(maps[:-1], 1)}
        return DepthOutput(maps[-1], {"encoder": left} if features else {}, extras)

    def _scores(self, volume: Tensor) -> list[Tensor]:
        """How well each disparity fits, `(B, 1, D, h, w)`, after each hourglass; each adds to the one before."""
        volume = run_block(self.enter, volume, again=self._again)
        volume = run_block(self.refine, volume, again=self._again) + volume
        scores: list[Tensor] = []
        out, inner, outer = volume, None, None
        for hourglass, head in zip(self.hourglasses, self.heads, strict=True):
            grown, down, outer = run_block(hourglass, out, inner, outer, again=self._again)
            out = grown + volume
            # Later hourglasses are told what the first saw on its way down.
            inner = down if inner is None else inner
            score = run_block(head, out, again=self._again)
            scores.append(score + scores[-1] if scores else score)
        return scores

    def _disparity(self, scores: Tensor, size: tuple[int, int, int]) -> Tensor:
        # Half precision has too few steps for a mean over so many.
        if scores.dtype in (torch.bfloat16, torch.float16):
            scores = scores.float()
        scores = F.interpolate(scores, size, mode="trilinear", align_corners=self.align_corners)[:, 0]
        disparities = torch.arange(self.max_disparity, device=scores.device, dtype=scores.dtype)
        return (scores.softmax(1) * disparities[:, None, None]).sum(1)

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        """Predict for pairs `(B, 6, H, W)` of any size, at their own size or at another; see `forward`.

        Args:
            images: left and right view, RGB in [0, 1].
            policy: resize policy; None for `upper-bound` where a size is given.
            size: side in pixels at which the network sees them; None for their own size without a policy.

        Returns:
            Stereo disparity in pixels of the images, float32 `(B, H, W)`, whatever size the network saw.

        Raises:
            TypeError: size is not a whole number.
            ValueError: not two views, an unknown policy, or no size.
            DistillDepthError: more pixels than there is memory for.

        Gradient: as `forward`.
        """
        self.check_views(images)
        batch, own = len(images), (images.shape[-2], images.shape[-1])
        asked = policy is not None or size is not None
        height, width = target_size(*own, self.preprocessing, policy=policy, size=size) if asked else own
        # The scores of all pixels, and their softmax.
        check_memory(
            8 * self.max_disparity * batch * height * width,
            f"{batch} x {height} x {width} pixels in {self.info.name}",
            "give it fewer or smaller pairs, or a smaller --size",
            device=images.device,
        )
        return run_resized(self, images, (height, width)).values

    def metric_depth(self, images: Tensor, focal_px: float, baseline_m: float) -> Tensor:
        """Predict depth for pairs of a calibrated camera: `focal * baseline / disparity`.

        Args:
            images: `(B, 6, H, W)`, left and right view, RGB in [0, 1].
            focal_px: focal length of the rectified pair, pixels of these images.
            baseline_m: distance between the cameras, metres.

        Returns:
            Depth of the left view, metres, float32 `(B, H, W)`; infinite where the disparity is 0.

        Raises:
            ValueError: not two views; a focal length or baseline that is not positive.
            DistillDepthError: more pixels than there is memory for.

        Gradient: as `forward`.
        """
        if not (focal_px > 0 and baseline_m > 0):
            raise ValueError(
                f"PSMNetDepth.metric_depth: focal_px and baseline_m must be positive, got {focal_px} and {baseline_m}"
            )
        return stereo_disparity_to_depth(self.estimate(images), focal_px, baseline_m)

    def enable_gradient_checkpointing(self) -> None:
        self._again = True

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the features and of all that comes after them."""
        own = {id(parameter) for parameter in self.features.parameters()}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in own]
        return {"encoder": list(self.features.parameters()), "decoder": rest}


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(outputs)
    )


def _layer3d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs))


def _enlarge3d(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm3d(outputs))


class _Block(nn.Module):
    """Two convolutions around a skip; nothing is cut off after it."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = _layer(inputs, outputs, stride=stride, dilation=dilation)
        self.second = _layer(outputs, outputs, dilation=dilation)
        self.shortcut = None if (inputs, stride) == (outputs, 1) else _layer(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x), inplace=True))
        return y + (x if self.shortcut is None else self.shortcut(x))


class _Features(nn.Module):
    """Of one view `(B, 3, H, W)`, at 1/4: `(B, width, H / 4, W / 4)`."""

    def __init__(self, width: int, depths: Sequence[int], cells: Sequence[int], *, align_corners: bool) -> None:
        super().__init__()
        self.cells, self.align_corners = tuple(cells), align_corners
        self.stem = nn.ModuleList(
            [_layer(3, width, stride=2), _layer(width, width), _layer(width, width)],
        )
        stages, inputs = [], width
        for depth, outputs, stride, dilation in zip(
            depths, (width, 2 * width, 4 * width, 4 * width), (1, 2, 1, 1), (1, 1, 1, 2), strict=True
        ):
            blocks = [_Block(inputs if not place else outputs, outputs, 1 if place else stride, dilation)
                      for place in range(depth)]  # fmt: skip
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.pyramid = nn.ModuleList(_layer(4 * width, width, 1) for _ in cells)
        self.mix = _layer((6 + len(cells)) * width, 4 * width)
        self.project = nn.Conv2d(4 * width, width, 1, bias=False)

    def forward(self, x: Tensor, *, again: bool) -> Tensor:
        for layer in self.stem:
            x = F.relu(layer(x), inplace=True)
        levels = []
        for stage in self.stages:
            for block in stage.children():
                x = run_block(block, x, again=again)
            levels.append(x)
        raw, last = levels[1], levels[3]
        size = last.shape[-2:]
        parts = [raw, last]
        for cell, layer in zip(self.cells, self.pyramid, strict=True):
            averages = F.avg_pool2d(last, (min(cell, size[0]), min(cell, size[1])))
            x = F.relu(layer(averages), inplace=True)
            parts.append(F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners))
        return self.project(F.relu(self.mix(torch.cat(parts, 1)), inplace=True))


def _volume(left: Tensor, right: Tensor, count: int) -> Tensor:
    """The left view's features beside the right one's, moved to the right by 0 to count - 1 positions: `(B, 2 C, count,
    h, w)`; 0 where the moved ones do not reach."""
    columns = left.shape[-1]
    moved = F.pad(right, (count - 1, 0)).unfold(3, columns, 1).flip(3).transpose(2, 3)
    place = torch.arange(columns, device=left.device)
    reached = place >= torch.arange(count, device=left.device)[:, None]
    still = torch.where(reached[:, None, :], left[:, :, None], 0)
    return torch.cat([still, moved], 1)


class _Hourglass(nn.Module):
    """Down to a quarter of the volume's sides and up again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.at_half = _layer3d(width, 2 * width, 2)
        self.at_half_again = _layer3d(2 * width, 2 * width)
        self.at_quarter = _layer3d(2 * width, 2 * width, 2)
        self.at_quarter_again = _layer3d(2 * width, 2 * width)
        self.to_half = _enlarge3d(2 * width, 2 * width)
        self.to_whole = _enlarge3d(2 * width, width)

    def forward(self, x: Tensor, inner: Tensor | None, outer: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the volume, what was at a half on the way down, and what was there on the way up.

        Args:
            x: `(B, C, D, h, w)`.
            inner: what the first hourglass had at a half on its way down; None for the first.
            outer: what the hourglass before had at a half on its way up; None for the first.
        """
        down = self.at_half_again(F.relu(self.at_half(x), inplace=True))
        down = F.relu(down if outer is None else down + outer)
        deep = F.relu(self.at_quarter_again(F.relu(self.at_quarter(down), inplace=True)), inplace=True)
        up = F.relu(self.to_half(deep) + (down if inner is None else inner))
        return self.to_whole(up), down, up


def _initialise(network: nn.Module) -> None:
    """As the official network begins: normal, of deviation sqrt(2 / (kernel's size x outputs)), where it says so."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(layer.weight, std=(2 / (layer.weight[0, 0].numel() * layer.out_channels)) ** 0.5)


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> PSMNetDepth:
    """Make a randomly initialised network.

    Args:
        architecture: keyword arguments of `PSMNetDepth`; or `{"variant": "stacked-hourglass"}`, with further arguments
            to replace those of the variant.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the official one: ImageNet's mean and deviation.

    Raises:
        ValueError: unknown variant or argument, or an argument is missing.

    >>> info = ModelInfo("psmnet", "psmnet", "disparity", "MIT", "random")
    >>> small = {"width": 2, "depths": [1, 1, 1, 1], "cells": [2], "max_disparity": 16, "align_corners": True}
    >>> build(small, info).eval()(torch.rand(1, 6, 30, 40)).values.shape
    torch.Size([1, 30, 40])
    """
    arguments = full_architecture("PSMNet", architecture, VARIANTS, ARCHITECTURE)
    preprocessing = preprocessing or Preprocessing(
        512, 1, "upper-bound", interpolation="bilinear", map_interpolation="bilinear"
    )
    return PSMNetDepth(info, preprocessing, **arguments)


_FEATURES = "feature_extraction."


def _layers() -> dict[str, str]:
    """Official name of every layer, a block's number left as `{}`: our name."""
    names = {f"firstconv.{2 * place}": f"stem.{place}" for place in range(3)}
    for stage in range(4):
        theirs, ours = f"layer{stage + 1}.{{}}", f"stages.{stage}.{{}}"
        names |= {f"{theirs}.conv1.0": f"{ours}.first", f"{theirs}.conv2": f"{ours}.second"}
        names[f"{theirs}.downsample"] = f"{ours}.shortcut"
    # Theirs are counted from the largest cells on.
    names |= {f"branch{4 - place}.1": f"pyramid.{place}" for place in range(4)} | {"lastconv.0": "mix"}
    pairs = {f"{_FEATURES}{theirs}": f"features.{ours}" for theirs, ours in names.items()}
    for place in (0, 2):
        pairs |= {f"dres0.{place}": f"enter.{place}", f"dres1.{place}": f"refine.{place}"}
    steps = {
        "conv1.0": "at_half",
        "conv2": "at_half_again",
        "conv3.0": "at_quarter",
        "conv4.0": "at_quarter_again",
        "conv5": "to_half",
        "conv6": "to_whole",
    }
    for place in range(3):
        pairs |= {f"dres{place + 2}.{theirs}": f"hourglasses.{place}.{ours}" for theirs, ours in steps.items()}
        pairs[f"classif{place + 1}.0"] = f"heads.{place}.0"
    # Each of these is a convolution and its normalisation.
    layers = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in pairs.items() for part in (0, 1)}
    layers |= {f"classif{place + 1}.2": f"heads.{place}.2" for place in range(3)}
    return layers | {f"{_FEATURES}lastconv.2": "features.project"}


_LAYERS = _layers()


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary has the official layout of the stacked hourglass."""
    parts = (f"{_FEATURES}firstconv.", "dres4.conv6.", "classif3.")
    return all(any(key.startswith(part) for key in state) for part in parts)


def convert_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename an official state dictionary; where none of its normalisations counted batches, those counts are 0.

    Returns:
        The renamed dictionary, and the names that are none of this network's.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        block = re.match(rf"({re.escape(_FEATURES)}layer\d\.)(\d{{1,6}})(\..+)", layer)
        theirs = f"{block[1]}{{}}{block[3]}" if block else layer
        if theirs in _LAYERS:
            converted[f"{_LAYERS[theirs].format(block[2] if block else '')}.{name}"] = tensor
        else:
            unknown.append(key)
    if not _counts_batches(state):
        means = [key for key in converted if key.endswith(".running_mean")]
        converted |= {key.replace(".running_mean", ".num_batches_tracked"): torch.tensor(0) for key in means}
    return converted, unknown


def _counts_batches(state: dict[str, Tensor]) -> bool:
    return any(key.endswith(".num_batches_tracked") for key in state)


def infer_architecture(state: dict[str, Tensor]) -> dict[str, Any]:
    """Read off the shapes of a converted state dictionary what they say, as the variant has the rest.

    Raises:
        KeyError: a tensor that is needed for this is missing.
        ValueError: a number of blocks that cannot be.
    """
    depths = count_blocks(state, r"features\.stages\.{}\.")
    return VARIANTS["stacked-hourglass"] | {"width": len(state["features.stem.0.0.weight"]), "depths": depths}


def claims(candidate: Candidate) -> bool:
    """Official files, whatever a training script wrapped around them."""
    return candidate.path.is_file() and candidate.find(is_official) is not None


def load(candidate: Candidate) -> PSMNetDepth:
    """Load what was claimed, strictly.

    How maps are enlarged is not in a file. Those whose normalisations did not count batches were saved by torch before
    0.4.1, and the corners are kept, as torch did then and official code advises for them; of others the frame is, as
    the official code does today, and a note says so.

    Raises:
        DistillDepthError: another name than one of PSMNet, or tensors missing, left over or of another shape.
    """
    path, name, entry = candidate.path, candidate.name, candidate.entry
    candidate.refuse_max_depth()
    if entry is not None and entry.family != FAMILY:
        raise DistillDepthError(f"load_model: {path} holds a PSMNet network, but '{name}' is not one")
    found = candidate.find(is_official)
    assert found is not None, "only what was claimed is loaded"
    converted, unknown = convert_official(found.state)
    try:
        architecture = infer_architecture(converted)
    except (LookupError, ValueError, TypeError) as error:
        raise DistillDepthError(f"load_model: {path} lacks {error} of PSMNet; download it again") from None
    notes = [found.note] if found.note else []
    if _counts_batches(found.state):
        architecture["align_corners"] = False
        notes.append(
            f"{path}: does not say how maps are enlarged; the corners of the frame are kept, as official code does "
            "today (align_corners=False)"
        )
    licence = "see the source" if entry is None else entry.licence
    info = ModelInfo(name, FAMILY, "disparity", licence, str(path), tuple(notes))
    model = build_to_fit(
        lambda: build(architecture, info),
        lambda skeleton: check_state(path, skeleton, converted, unknown),
        f"{path} describes no network",
    )
    model.load_state_dict(converted)
    return model
