"""How many multiplications a named network takes for one image: counted from its shapes, without weights or numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.families import find_family
from distilldepth.models.preprocess import Preprocessing, target_size
from distilldepth.models.registry import Entry, has_weights

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Costs:
    """What one image costs at the network's own input size."""

    height: int
    """Pixels of what the network sees of a square image."""
    width: int
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention: torch's count of operations, halved."""
    macs_thop: int
    """The same as the tool thop counts, whose numbers papers print as FLOPs: convolutions and linear layers, 4 per
    output of a normalisation and 11 per output of a bilinear enlargement, no attention."""


def count_costs(entry: Entry) -> Costs | None:
    """Count the multiply-accumulates of a named model; a second or two for one of a billion parameters.

    Args:
        entry: of a student or teacher. Nothing is downloaded: the network is made without numbers from the
            architecture that the package knows.

    Returns:
        The counts; None for a model whose architecture stands in its checkpoint alone.
    """
    if not entry.variant:
        return None
    return _count(entry.family, entry.variant, entry if has_weights(entry) else None)


def count_model(model: DepthModel) -> Costs:
    """Count the multiply-accumulates of a model for a square image of its own size.

    Args:
        model: on any device; on `meta` nothing is computed. The modes of its layers are changed.

    Returns:
        The counts for one image, resizing before and after the network left out.
    """
    side = model.preprocessing.size
    height, width = target_size(side, side, model.preprocessing)
    model.eval()
    for module in model.modules():
        # With fixed statistics some families run it as part of the convolution, where it would not be seen.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    thop = _Thop()
    hooks = [module.register_forward_hook(thop.hook) for module in model.modules()]
    counter = FlopCounterMode(display=False)
    device = next(model.buffers()).device
    try:
        # The kernel of CPUs that does attention at once is one that torch does not count.
        with torch.no_grad(), torch.device(device), sdpa_kernel(SDPBackend.MATH), thop, counter:
            maps = {name: torch.ones(1, height, width) for name in ("sparse", "aligned") if model.takes_points}
            model(torch.zeros(1, 3 * model.views, height, width), **maps)
    finally:
        for hook in hooks:
            hook.remove()
    return Costs(height, width, counter.get_total_flops() // 2, thop.count)


@cache
def _count(family: str, variant: str, bundled: Entry | None) -> Costs:
    """Count once what several names share; bundled weights say themselves how they want to see images."""
    architecture: dict[str, Any] = {"variant": variant}
    preprocessing = None
    if bundled is not None:
        config = json.loads((bundled.folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architecture"]
        preprocessing = Preprocessing(**config["preprocessing"])
    info = ModelInfo(variant, family, "disparity", "", "")
    with torch.device("meta"):
        return count_model(find_family(family).build(architecture, info, preprocessing))


class _Thop(TorchFunctionMode):
    """Counts as thop does, and enlargements wherever they are called: thop sees those of `nn.Upsample` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def hook(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count one layer that ran."""
        if isinstance(module, nn.modules.conv._ConvNd):
            self.count += output.numel() * (inputs[0].shape[1] // module.groups) * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            self.count += output.numel() * module.in_features
        elif isinstance(module, _NORMS):
            self.count += output.numel() * (2 if module.weight is None else 4)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is F.interpolate and (kwargs or {}).get("mode") == "bilinear":
            assert isinstance(result, Tensor)
            self.count += 11 * result.numel()
        return result
