"""What a network thinks of its own error: a module beside any student, that gives a log-variance for every pixel.

Source: ADU-Depth: Attention-based Distillation with Uncertainty Modeling for Depth Estimation (CoRL 2023), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distilldepth.errors import DistillDepthError, UsageError, shown
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import WIDEST, check_architecture, whole, word
from distilldepth.models.families import Family, find_family
from distilldepth.models.preprocess import Preprocessing, resize
from distilldepth.words import DECODER_LEVELS, FEATURE_LEVELS, LOG_VARIANCE

KEY = "uncertainty"
"""What the module is called in an architecture and in the names of its tensors."""
LOWEST, HIGHEST = -5.0, 5.0
"""Bounds of the log-variance."""
HIDDEN = 32
"""Channels between its two convolutions."""

ARCHITECTURE = {
    "level": word(*FEATURE_LEVELS, *DECODER_LEVELS, "encoder"),
    "channels": whole(1, WIDEST),
    "hidden": whole(1, WIDEST),
}
"""What the entries of the module may be in a file."""

_ENLARGED = "bilinear"


class UncertainDepth(DepthModel):
    """A depth model with an uncertainty module beside it; see `with_uncertainty`.

    Its `values` are those of the model, its features too where they are asked for. It is called, resized, trained and
    counted as the model is: what decides that is passed on.

    Args:
        network: the model; becomes part of this one.
        level: the level of its features that the module looks at.
        channels: of that level.
        hidden: channels between the module's convolutions.

    Raises:
        UsageError: the model has such a module already, completes points, or takes images of any size in a way of its
            own.
    """

    extra_maps: ClassVar[tuple[str, ...]] = (LOG_VARIANCE,)

    def __init__(self, network: DepthModel, *, level: str, channels: int, hidden: int = HIDDEN) -> None:
        if LOG_VARIANCE in network.extra_maps:
            raise UsageError(f"{network.info.name}: gives its uncertainty already")
        if network.takes_points:
            raise UsageError(
                f"{network.info.name}: completes depth that is known at some points, and no uncertainty is made of that"
            )
        if type(network).estimate is not DepthModel.estimate:
            raise UsageError(
                f"{network.info.name}: takes images of any size in a way of its own, which an uncertainty cannot follow"
            )
        super().__init__(network.info, network.preprocessing)
        self.views = network.views
        self.memory_format = network.memory_format  # type: ignore[misc]  # Of this one alone.
        self.network = network
        self.level, self.channels, self.hidden = level, channels, hidden
        self.uncertainty = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1)
        )
        last = self.uncertainty[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        # About 0 everywhere: a loss that is weighed by it begins as the loss without.
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which `build_again` makes this network again: the model's, and the module's as `uncertainty`.

        Raises:
            TypeError: the model's family cannot be built again.
        """
        module = {"level": self.level, "channels": self.channels, "hidden": self.hidden}
        return {**self.network.architecture, KEY: module}

    @property
    def identity(self) -> Any:
        """What decides the numbers besides tensors: the model's identity with the module's level."""
        return [self.network.identity, KEY, self.level]

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Run the network once; see `DepthModel.forward`.

        Args:
            images: as the model takes them.
            features: whether the encoder's features are wanted too.

        Returns:
            What the model says, and `extras["log_variance"]`: float32 under autocast, `(B, H, W)`, s = log sigma^2 of
            the model's own numbers (of metres for one that predicts metres), within -5 and 5.

        Raises:
            ValueError: as the model.
            DistillDepthError: the model has no such level of features.

        Gradient: from the log-variance to the module, the encoder and the images.
        """
        output = self.network(images, features=True)
        level = output.features.get(self.level)
        if level is None or level.shape[1] != self.channels:
            found = ", ".join(f"{name} with {maps.shape[1]} channels" for name, maps in output.features.items())
            raise DistillDepthError(
                f"{self.info.name}: its uncertainty module looks at features of the level {self.level} with "
                f"{self.channels} channels, and the network has {found or 'none'}; its config.json was changed"
            )
        logits = self.uncertainty(level)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        spread = LOWEST + (HIGHEST - LOWEST) * logits.sigmoid()
        spread = resize(spread, (images.shape[-2], images.shape[-1]), _ENLARGED)[:, 0]
        return DepthOutput(output.values, output.features if features else {}, {**output.extras, LOG_VARIANCE: spread})

    def estimate_output(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> DepthOutput:
        """Predict for images of any size; see `DepthModel.estimate_output`."""
        return self._resized(images, policy, size)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the model's groups, the module's parameters in `decoder`."""
        groups = self.network.parameter_groups()
        return {**groups, "decoder": [*groups["decoder"], *self.uncertainty.parameters()]}

    def enable_gradient_checkpointing(self) -> None:
        """Do for the model what `DepthModel.enable_gradient_checkpointing` says."""
        self.network.enable_gradient_checkpointing()


def with_uncertainty(model: DepthModel, *, seed: int = 0) -> DepthModel:
    """Put an uncertainty module beside a model, of random weights: it gives a log-variance with every map.

    Two 3x3 convolutions, with a ReLU between them, on the level of features with the finest grid (of several on one
    grid the deepest), a sigmoid, an affine map to [-5, 5], bilinear to the size of the image. It begins at about 0:
    sigma = 1 in the unit of the model's numbers.

    Args:
        model: of any family that has features and can be saved; it becomes part of what is returned, and its values
            stay as they are.
        seed: seed of the module's random weights.

    Returns:
        A model whose outputs have `extras["log_variance"]`, `(B, H, W)`, s = log sigma^2 of the model's own numbers:
        metres where it predicts metres. On the model's device, in its dtype and mode. `save_model` and `load_model`
        write and read it as any other.

    Raises:
        TypeError: the family cannot be saved.
        UsageError: the model has no features, completes points, has such a module already, or takes images of any size
            in a way of its own.

    Source: ADU-Depth (CoRL 2023), section 3.3, with an affine map in place of its scaling layer: a positive factor
    alone would hold sigma at 1 or above.

    >>> from distilldepth import load_model
    >>> model = with_uncertainty(load_model("distilldepth-mini"))
    >>> model(torch.zeros(1, 3, 64, 96)).extras["log_variance"].shape
    torch.Size([1, 64, 96])
    """
    try:
        _ = model.architecture
    except TypeError as error:
        raise TypeError(f"{model.info.name}: an uncertainty module needs a model that can be saved; {error}") from error
    level, channels = ("", 1) if model.takes_points else _finest(model)
    weight = next(model.parameters())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = UncertainDepth(model, level=level, channels=channels)
    made.uncertainty.to(weight)
    return made.to(weight.device).train(model.training)


def _finest(model: DepthModel) -> tuple[str, int]:
    """The level of features with the finest grid and its channels: the decoder's if there are, of several the last."""
    multiple = model.preprocessing.multiple
    side = max(-(-64 // multiple), 1) * multiple
    images = next(model.parameters()).new_zeros(1, 3 * model.views, side, side)
    was_training = model.training
    try:
        with torch.no_grad():
            found = model.eval()(images, features=True).features
    finally:
        model.train(was_training)
    names = [name for name in (*FEATURE_LEVELS, *DECODER_LEVELS) if name in found] or list(found)
    if not names:
        raise UsageError(
            f"{model.info.name}: has no features that an uncertainty module could look at; take a student of another "
            "family"
        )
    level = max(reversed(names), key=lambda name: found[name].shape[-2] * found[name].shape[-1])
    return level, found[level].shape[1]


def build_again(
    architecture: Mapping[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
) -> DepthModel:
    """Make a randomly initialised network from `DepthModel.architecture`, with its uncertainty module if it has one.

    Args:
        architecture: as its family takes it; `uncertainty` describes the module.
        info: who it is; `family` says which family builds it.
        preprocessing: None for the family's own.

    Raises:
        DistillDepthError: no such family.
        ValueError, TypeError: the description makes no sense.
    """
    rest = {name: value for name, value in architecture.items() if name != KEY}
    network = find_family(info.family).build(rest, info, preprocessing)
    return UncertainDepth(network, **architecture[KEY]) if KEY in architecture else network


def check_description(architecture: Any, family: Family) -> None:
    """Raise ValueError, with the name of the entry, unless what a file says of an architecture makes sense.

    Args:
        architecture: what the file says.
        family: what is to build it.
    """
    if isinstance(architecture, Mapping) and KEY in architecture:
        module = architecture[KEY]
        if not isinstance(module, Mapping):
            raise ValueError(f"architecture.{KEY} must be an object, got {shown(module)}")
        if "variant" in module:
            raise ValueError(f"architecture.{KEY} has an unknown entry 'variant'")
        try:
            check_architecture(ARCHITECTURE, module)
        except ValueError as error:
            raise ValueError(str(error).replace("architecture", f"architecture.{KEY}", 1)) from error
        architecture = {name: value for name, value in architecture.items() if name != KEY}
    check_architecture(family.ARCHITECTURE, architecture, may_lack=frozenset(getattr(family, "DEFAULTS", ())))
