"""What every depth model is here, whoever made it: images in, a map with a declared quantity out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distilldepth.capacity import check_memory, network_bytes
from distilldepth.errors import UsageError
from distilldepth.models.inputs import ImageInput, as_images, camera_factors, is_batch, join_views, warn_of_swapped
from distilldepth.models.preprocess import Preprocessing, choose_policy, nearest_size, resize, restore, target_size
from distilldepth.words import FEATURE_LEVELS, LOG_VARIANCE, QUANTITIES

M = TypeVar("M", bound="DepthModel")


@dataclass(frozen=True)
class ModelInfo:
    """Who a model is: what its numbers mean, where it came from, what may be done with it."""

    name: str
    """The name it was asked for by, for example `dav2-small`."""
    family: str
    """Key of the family that built it, for example `depth-anything`."""
    quantity: str
    """`disparity` (larger = nearer), `depth` (larger = farther) or `metric_depth` (metres)."""
    licence: str
    """Licence of the weights, as an SPDX identifier where there is one."""
    source: str
    """Hub id, path or `bundled`."""
    notes: tuple[str, ...] = ()
    """Things a user must be told, for example that a bundled stand-in is used."""
    max_depth: float | None = None
    """Metres at which a metric network saturates; None where there are none, or its family keeps them to itself."""

    def __post_init__(self) -> None:
        for name in ("name", "family", "licence", "source"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"ModelInfo: {name} must be a text, got {getattr(self, name)!r}")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"ModelInfo: quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return asdict(self)


@dataclass
class DepthOutput:
    """What one forward pass returns."""

    values: Tensor
    """`(B, H, W)`, in the model's quantity, at the input's size."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Encoder features by name, each `(B, C, h, w)`; `encoder` is the last level, and those that a family has of
    `FEATURE_LEVELS` come by their names. Empty if there are none."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further named maps at the input's size, for example an uncertainty."""

    def only(self, levels: Collection[str]) -> DepthOutput:
        """Return it with these levels of features alone, so that nothing else stays in memory.

        Args:
            levels: names of features; those that are not there are left out.
        """
        return dataclasses.replace(
            self, features={name: self.features[name] for name in self.features if name in levels}
        )


@dataclass
class Prediction:
    """A predicted map for one image, or those of a batch, at the images' own resolution."""

    values: np.ndarray
    """float32 `(H, W)`; `(B, H, W)` for a batch."""
    quantity: str
    """`disparity`, `depth` or `metric_depth`."""
    model: str = ""
    """Name of the model."""
    resize_policy: str = ""
    """How the image was resized before the model saw it."""
    log_variance: np.ndarray | None = None
    """s = log sigma^2 of the values, as the model itself estimates it, float32 of their shape; larger = less certain.
    None for a model that says nothing of it."""


class DepthModel(nn.Module):
    """A depth estimator: RGB in [0, 1] in, `DepthOutput` out.

    Subclasses set `info` and `preprocessing`, implement `forward`, and return in `architecture` the JSON-able
    arguments from which their family's `build` makes the same network again.

    Args:
        info: who it is.
        preprocessing: what the network wants to see: size, multiple, mean and deviation.

    >>> import numpy as np
    >>> from distilldepth import load_model
    >>> load_model("distilldepth-mini").predict(np.zeros((48, 64, 3), np.uint8)).values.shape
    (48, 64)
    """

    info: ModelInfo
    """Name, family, quantity, licence, source and notes."""
    preprocessing: Preprocessing
    """How images are resized and normalised before the network sees them."""
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """The layout of images and weights in which the network is fastest on a CPU."""
    folds: ClassVar[Mapping[type[nn.Module], tuple[str, str]]] = {}
    """Layers that pass a convolution's output on to a batch normalisation and nowhere else: their class, and what they
    call the two. Where a class states it, `nn.Sequential` counts too, and inference makes one layer of them."""
    views: int = 1
    """How many images of a scene the network sees at once, along the channels: left and right where it is 2."""
    in_pixels: ClassVar[bool] = False
    """Whether its disparity is the shift between both views in pixels of the images, which focal length and baseline
    turn into metres."""
    own_size: ClassVar[bool] = False
    """Whether images are seen at their own size unless another is asked for."""
    takes_points: ClassVar[bool] = False
    """Whether it completes depth that is known at some points, and predicts nothing without."""
    extra_maps: ClassVar[tuple[str, ...]] = ()
    """Names of the maps that are in `DepthOutput.extras` whenever it predicts."""
    _mean: Tensor
    _std: Tensor
    _frozen: bool = False

    def __init__(self, info: ModelInfo, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.info = info
        self.preprocessing = preprocessing
        self.register_buffer("_mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def refuse_without_points(self) -> None:
        """Raise UsageError, with the command that is meant, if the model predicts nothing without points.

        Whoever runs a model on many images asks it once, before the first.
        """
        if self.takes_points:
            raise UsageError(
                f"{self.info.name} completes depth that is known at some points, and there are none here; "
                "use distilldepth complete IMAGE --sparse POINTS"
            )

    def refuse_one_view(self) -> None:
        """Raise UsageError, with what is meant, if the model sees two views of a scene and is given one.

        Whoever runs a model on many images asks it once, before the first.
        """
        if self.views == 2:
            raise UsageError(
                f"{self.info.name} sees two views of a scene, and there is one here; give the right view of each "
                "rectified pair: distilldepth predict LEFT --right RIGHT, evaluate --data MANIFEST with `right`, or "
                "predict(left, right=right)"
            )

    def refuse_two_views(self) -> None:
        """Raise UsageError if the model sees one view of a scene and is given two."""
        if self.views != 2:
            raise UsageError(f"{self.info.name} sees one view of a scene; leave the right view and its camera out")

    def check_views(self, images: Tensor) -> None:
        """Refuse images of another number of views than the network sees; families call it first in `forward`.

        Args:
            images: `(B, 3 * views, H, W)`, the left view first.

        Raises:
            ValueError: another shape, with the one that is needed.
        """
        if images.ndim != 4 or images.shape[1] != 3 * self.views:
            needed, single = "(B, 3, H, W)", ""
            if self.views == 2:
                needed = "(B, 6, H, W), the left and the right view of rectified pairs"
                single = "; this network cannot do with a single view"
            raise ValueError(f"{self.info.name}: images must be {needed}, got {tuple(images.shape)}{single}")

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments from which the family builds this network again, ready for JSON.

        Raises:
            TypeError: the family cannot be built again, as those that other libraries make.
        """
        raise TypeError(f"{type(self).__name__}: this family cannot be saved as a distilldepth model")

    @property
    def identity(self) -> Any:
        """What decides the model's numbers besides its tensors and preprocessing, ready for JSON.

        The architecture; the name of the class where no family builds it again.
        """
        try:
            return self.architecture
        except TypeError:
            return type(self).__qualname__

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation that the network was trained with.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1].

        Returns:
            `(B, 3, H, W)` of the same dtype, about 0 with deviation 1; what most networks' first layer takes.
        """
        return (images - self._mean) / self._std

    def check_sides(self, height: int, width: int, multiple: int) -> None:
        """Refuse images that the network cannot take; families call it first in `forward`.

        Args:
            height: pixels.
            width: pixels.
            multiple: what both must be a multiple of, pixels.

        Raises:
            ValueError: a side that is none, with the multiple and what takes images of any size.
        """
        if height % multiple or width % multiple:
            raise ValueError(
                f"{type(self).__name__}.forward: sides of images must be multiples of {multiple}, got "
                f"{height}x{width}; use estimate() or predict() for images of any size"
            )

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        """Run the network once on images of a size that it can take; `estimate` and `predict` take any size.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1], not normalised, on the model's device; H and W are multiples
                of `preprocessing.multiple`.
            features: whether the encoder's features are wanted too, for losses on them.

        Returns:
            `values`: `(B, H, W)` at the size of the images, in the quantity that `info.quantity` names: `disparity`
            (larger = nearer, up to scale and shift), `depth` (larger = farther, up to scale and shift) or
            `metric_depth` (metres). Under autocast the dtype is that of the last layer. `features`: each
            `(B, C, h, w)`, empty if they were not asked for or the family has none.

        Raises:
            ValueError: a side that is no multiple, in families that cannot take it; the message says which number.

        Gradient: to the images and to every parameter, where the mode and `requires_grad` allow it.

        >>> from distilldepth import load_model
        >>> model = load_model("dav2-mini")
        >>> side = 4 * model.preprocessing.multiple
        >>> with torch.inference_mode():
        ...     tuple(model(torch.zeros(2, 3, side, 2 * side)).values.shape) == (2, side, 2 * side)
        True
        """
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Split the parameters for the optimiser: a pretrained encoder wants a smaller learning rate.

        Returns:
            `{"encoder": [...], "decoder": [...]}`: every parameter in exactly one list; all in `decoder` where a family
            draws no line.
        """
        return {"encoder": [], "decoder": list(self.parameters())}

    def enable_gradient_checkpointing(self) -> None:
        """From now on keep, in training, what passes between the blocks and compute their insides again for gradients.

        Less memory for about a third more time; results, gradients and names of weights stay as they are.

        Raises:
            TypeError: the family cannot do it.
        """
        raise TypeError(f"{self.info.name}: this network has no blocks that can be computed again")

    @property
    def has_encoder_statistics(self) -> bool:
        """Whether there is batch normalisation in the encoder."""
        return bool(self._encoder_norms())

    def freeze_encoder_statistics(self) -> None:
        """From now on keep the running statistics of the encoder's batch normalisation, and use them in training too.

        Its scale and shift go on learning. `train()` does not undo it; a copy of the model is frozen too.

        Raises:
            TypeError: the encoder has no batch normalisation, or the family draws no line around it.
        """
        if not self.has_encoder_statistics:
            raise TypeError(f"{self.info.name}: this network has no batch normalisation in its encoder")
        self._frozen = True
        self.train(self.training)

    def _encoder_norms(self) -> list[nn.Module]:
        encoder = {id(parameter) for parameter in self.parameter_groups()["encoder"]}
        norms = (module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return [norm for norm in norms if id(norm.weight) in encoder]

    def train(self: M, mode: bool = True) -> M:
        """Set training or evaluation mode, as every module does; what is frozen stays in evaluation mode.

        Returns:
            The model.
        """
        super().train(mode)
        if self._frozen:
            for norm in self._encoder_norms():
                norm.eval()
        return self

    def estimate(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> Tensor:
        """Predict for images of any size: resize by the policy, run, bring the map back to the images' size.

        Args:
            images: floating `(B, 3, H, W)`, RGB in [0, 1]; `(B, 6, H, W)` for a model of two views, left and right.
            policy: `lower-bound`, `upper-bound`, `hf` or `square`; None for the model's own.
            size: target side in pixels; None for the model's own.

        Returns:
            `(B, H, W)` float32 in the model's quantity, see `forward`.

        Raises:
            TypeError: size is not a whole number.
            ValueError: unknown policy, a size below the model's multiple, or another number of views.
            DistillDepthError: more pixels than there is memory for.

        Gradient: as `forward`; resizing is differentiable.
        """
        return self._resized(images, policy, size).values

    def estimate_output(self, images: Tensor, *, policy: str | None = None, size: int | None = None) -> DepthOutput:
        """Predict as `estimate` does, and say what else the network says.

        Args:
            images: floating `(B, 3 * views, H, W)`, RGB in [0, 1].
            policy, size: see `estimate`.

        Returns:
            `values` as `estimate` gives them, and those of `extra_maps` in `extras`, float32 at the images' size.

        Raises:
            TypeError, ValueError, DistillDepthError: as `estimate`.

        Gradient: as `estimate`.
        """
        return DepthOutput(self.estimate(images, policy=policy, size=size))

    def _resized(self, images: Tensor, policy: str | None, size: int | None) -> DepthOutput:
        self.check_views(images)
        height, width = images.shape[-2:]
        inner = target_size(height, width, self.preprocessing, policy=policy, size=size)
        check_memory(
            network_bytes(len(images) * inner[0] * inner[1]),
            f"{len(images)} x {inner[0]} x {inner[1]} pixels in {self.info.name}",
            "use a smaller --size or --batch-size",
            device=images.device,
        )
        return run_resized(self, images, inner)

    @torch.inference_mode()
    def predict(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        right: ImageInput | Sequence[ImageInput] | None = None,
        focal_px: float | Sequence[float] | None = None,
        baseline_m: float | Sequence[float] | None = None,
        policy: str | None = None,
        size: int | None = None,
        batch_size: int = 8,
    ) -> Prediction | list[Prediction]:
        """Predict for one image, a list of images or a batch; for models of two views, for rectified pairs.

        Args:
            image: a path, the bytes of an image file, a PIL image, a tensor `(3, H, W)` or an array `(H, W, 3)`, of
                floating RGB in [0, 1] or uint8 in 0..255; or a list of these. Or a batch in one tensor `(B, 3, H, W)`
                or one array `(B, H, W, 3)`. Of a pair it is the left view, which the map belongs to.
            right: for a model of two views the right view of each image, in the same form and of the same size.
            focal_px: focal length in pixels of the images, one number or one for each. With `baseline_m` a network that
                says disparity in pixels gives metres; one that predicts metres anyway does not need it.
            baseline_m: metres between both cameras, one number or one for each.
            policy: resize policy; None for the model's own, or `upper-bound`, with a warning, for an image so long and
                thin that its own would make it grow beyond reason.
            size: target side in pixels; None for the model's own.
            batch_size: how many images of equal size are run at once.

        Returns:
            A `Prediction` at the image's own resolution; a list of them, in its order, for a list (an empty one for an
            empty one); for a batch one whose `values` are `(B, H, W)`. Nothing in it carries a gradient, and the model
            stays in the mode that it was in.

        Raises:
            TypeError: not one of these kinds of image, or whole numbers that are not uint8; size is not a whole number.
            UsageError: a model of two views without a right one, or a right view for a model of one.
            ValueError: views of different number or size; focal length without baseline, or none that can be; another
                shape; floating values outside [0, 1], NaN included; a batch inside a list; unknown
                policy; a size below the model's multiple; no batch size; a URL.
            FileNotFoundError: the path does not exist.
            DistillDepthError: the file is not a readable image.
        """
        if batch_size < 1:
            raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
        items: list[object] = list(image) if isinstance(image, (list, tuple)) else [image]
        if isinstance(image, (list, tuple)) and any(map(is_batch, items)):
            raise ValueError("predict: a list must hold single images, got a batch in it; give the batch alone")
        arrays = [each for item in items for each in as_images(item)]
        if right is None and focal_px is None and baseline_m is None:
            self.refuse_one_view()
            factors = None
        else:
            self.refuse_two_views()
            if right is None:
                self.refuse_one_view()
            arrays = join_views(arrays, right)
            warn_of_swapped(arrays)
            factors = camera_factors(focal_px, baseline_m, len(arrays))
        was_training = self.training
        self.eval()
        try:
            results = self._predict_groups(arrays, policy, size, batch_size, factors)
        finally:
            self.train(was_training)
        if isinstance(image, (list, tuple)):
            return results
        if not is_batch(image):
            return results[0]
        if not results:
            shape = (0, *image.shape[-2:]) if isinstance(image, Tensor) else (0, *image.shape[1:3])
            none = np.zeros(shape, np.float32)
            spread = none.copy() if LOG_VARIANCE in self.extra_maps else None
            return self._prediction(none, policy, spread, metric=self.in_pixels and factors is not None)
        spreads = [result.log_variance for result in results if result.log_variance is not None]
        return dataclasses.replace(
            results[0],
            values=np.stack([result.values for result in results]),
            log_variance=np.stack(spreads) if spreads else None,
        )

    def _predict_groups(
        self,
        images: list[Tensor],
        policy: str | None,
        size: int | None,
        batch_size: int,
        factors: list[float] | None = None,
    ) -> list[Prediction]:
        """Predict for images `(3 * views, H, W)` in batches of one size; in their order."""
        if not self.in_pixels:
            factors = None  # There is nothing that they would turn into metres.
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault((image.shape[1], image.shape[2]), []).append(index)
        results: dict[int, Prediction] = {}
        for (height, width), indices in groups.items():
            chosen = choose_policy(height, width, self.preprocessing, policy, size)
            if chosen != policy:
                warnings.warn(
                    f"an image of {height} x {width} is too long for the model's resize policy; "
                    f"{chosen} is used for it",
                    UserWarning,
                    stacklevel=4,
                )
            for start in range(0, len(indices), batch_size):
                chunk = indices[start : start + batch_size]
                device = self._mean.device
                layout = self.memory_format if device.type == "cpu" else torch.contiguous_format
                batch = torch.empty((len(chunk), 3 * self.views, height, width), device=device, memory_format=layout)
                torch.stack([_unit(images[i].to(device)) for i in chunk], out=batch)
                output = self.estimate_output(batch, policy=chosen, size=size)
                maps, spread = output.values, output.extras.get(LOG_VARIANCE)
                if factors is not None:
                    maps = pixels_to_metres(maps, maps.new_tensor([factors[i] for i in chunk]))
                spreads = [None] * len(chunk) if spread is None else list(spread.cpu().numpy())
                for i, values, own in zip(chunk, maps.cpu().numpy(), spreads, strict=True):
                    results[i] = self._prediction(values, chosen, own, metric=factors is not None)
        return [results[index] for index in range(len(images))]

    def _prediction(
        self, values: np.ndarray, policy: str | None, log_variance: np.ndarray | None, *, metric: bool = False
    ) -> Prediction:
        quantity = "metric_depth" if metric else self.info.quantity
        policy = policy or self.preprocessing.resize_policy
        return Prediction(values, quantity, self.info.name, policy, log_variance)


def pixels_to_metres(disparity: Tensor, factors: Tensor) -> Tensor:
    """Turn disparity of pairs into depth: `factor / disparity`.

    Args:
        disparity: `(B, H, W)`, pixels.
        factors: `(B,)`, focal length times baseline of each, pixels times metres.

    Returns:
        Metres `(B, H, W)`; infinite where the disparity is not positive.
    """
    return torch.where(disparity > 0, factors[:, None, None] / disparity, torch.inf)


def _unit(image: Tensor) -> Tensor:
    """uint8 as floating numbers in [0, 1]; floating ones as they are."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def pyramid(levels: Sequence[Tensor], *, finest: int) -> dict[str, Tensor]:
    """Return the levels of an encoder as `DepthOutput.features`.

    Args:
        levels: `(B, C, h, w)` each, finest first, each half as large as the one before.
        finest: the size of the images over that of the first of them.
    """
    named = {f"1/{finest << place}": level for place, level in enumerate(levels)}
    return {"encoder": levels[-1]} | {name: named[name] for name in FEATURE_LEVELS if name in named}


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Return the number of parameters, each counted once.

    Args:
        model: any module.
        trainable_only: leave out those that need no gradient.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def run_resized(
    model: DepthModel,
    images: Tensor,
    inner: tuple[int, int] | None = None,
    *,
    features: bool = False,
    network: Callable[..., DepthOutput] | None = None,
) -> DepthOutput:
    """Resize images, run a model once, and bring its map back to their size; differentiable.

    Args:
        model: any.
        images: floating `(B, 3 * views, H, W)`, RGB in [0, 1].
        inner: the (height, width) at which the network sees them; None for the nearest that it can take.
        features: whether the encoder's features are wanted too; they come as they are, at the network's own size.
        network: what runs in place of the model, its compiled form for example; None for the model itself.

    Returns:
        What the model says, `values` and `extras` float32 `(B, H, W)`.
    """
    size, preprocessing = (images.shape[-2], images.shape[-1]), model.preprocessing
    inner = inner or nearest_size(*size, preprocessing.multiple)
    output = (network or model)(resize(images, inner, preprocessing.interpolation), features=features)
    output = restore_output(output, size, preprocessing)
    # Pixels of what the network saw become pixels of the images.
    return dataclasses.replace(output, values=output.values * (size[1] / inner[1])) if model.in_pixels else output


def restore_output(output: DepthOutput, size: tuple[int, int], preprocessing: Preprocessing) -> DepthOutput:
    """Bring the maps that a network said back to the size of its images, features left as they are; differentiable.

    Args:
        output: of one forward pass.
        size: (height, width) of the images before they were resized.
        preprocessing: the model's; its `map_interpolation` is how values go back. Extras do so too, but a cubic way is
            linear for them: it would carry them beyond the bounds that some have.

    Returns:
        `values` and `extras` float32 `(B, H, W)`.
    """
    linear = dataclasses.replace(
        preprocessing, map_interpolation=preprocessing.map_interpolation.replace("bicubic", "bilinear")
    )
    return dataclasses.replace(
        output,
        values=restore(output.values, size, preprocessing),
        extras={name: restore(maps, size, linear) for name, maps in output.extras.items()},
    )


def predict_at(student: DepthModel, images: Tensor) -> Tensor:
    """Return the student's map at the size of the images, `(B, H, W)`."""
    return run_resized(student, images).values
