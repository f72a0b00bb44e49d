"""A teacher, and what it says about images: whatever it predicts is brought to disparity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from distilldepth.depth import depth_to_inverse_depth, to_disparity
from distilldepth.images.batches import SourceView
from distilldepth.images.crops import Regions
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo, run_resized
from distilldepth.teachers.offload import Resting
from distilldepth.teachers.spec import ORACLE, TeacherSpec


@dataclass
class PseudoLabel:
    """What a teacher says about a batch of regions, and about their windows seen alone."""

    disparity: Tensor
    """`(B, H, W)` float32, larger = nearer."""
    valid: Tensor
    """bool `(B, H, W)`, True where the teacher knows."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """The teacher's encoder features by name, each `(B, C, h, w)`; empty if it has none."""
    patch_disparity: Tensor | None = None
    """`(B * N, h, w)` float32, the maps of the windows, of all regions together; None if there are no windows."""
    patch_valid: Tensor | None = None
    """bool `(B * N, h, w)`, likewise."""
    teacher: str = ""
    """Name of the teacher; chooses its projection where two teachers have equally wide features."""
    inverse_depth: bool = False
    """Whether the maps are inverse depth up to a scale, with no unknown shift."""
    quantity: str = "disparity"
    """What the teacher's own maps were: of `depth` these are the negative, see `to_disparity`."""
    readable: Tensor | None = None
    """bool `(B,)`, False for stored labels that cannot be read: not valid anywhere, and not for being not finite."""

    def to(self, device: torch.device) -> PseudoLabel:
        """Return it with all tensors on a device, without waiting for it."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PseudoLabel:
        """Return it in memory from which a GPU copies by itself."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> PseudoLabel:
        changed: dict[str, Any] = {
            item.name: change(value) for item in fields(self) if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **changed)


class Teacher:
    """A frozen model, or the renderer's truth (`oracle`).

    Args:
        spec: what it was asked for by.
        model: the model; None for the oracle.
        precision: in which it runs.
        offload: the device to which a model that is on the CPU comes for each label; None for one that stays.
        compiled: run it through `torch.compile`.
    """

    heldout: SourceView | None = None
    """Held-out images of its own, on which alone it is asked; None for those of the run."""
    views: int = 1
    """How many images of a scene it sees at once, along the channels."""
    parts: int
    """In how many parts a batch is labelled, one after another."""

    def __init__(
        self,
        spec: TeacherSpec,
        model: DepthModel | None,
        precision: torch.dtype = torch.float32,
        *,
        offload: torch.device | None = None,
        compiled: bool = False,
    ) -> None:
        self.parts = 1
        self.weight = spec.weight
        self.precision = precision
        self.model = model
        if model is None:
            self.info = ModelInfo(ORACLE, ORACLE, "metric_depth", "Apache-2.0", "the renderer's depth buffer")
        else:
            self.model = model.eval().requires_grad_(False)
            # A callable of a user's need not have parameters.
            if next(model.buffers()).device.type == "cpu":
                model.to(memory_format=model.memory_format)  # type: ignore[call-overload]  # torch tells of tensors only
            self.info = model.info
            if model.in_pixels:  # Of which the camera of each pair makes metres.
                self.info = replace(model.info, quantity="metric_depth")
        self.name = self.info.name
        self.views = 1 if model is None else model.views
        self._resting = None if model is None or offload is None else Resting(model, offload)
        self._compiled = torch.compile(model.forward) if compiled and model is not None else None

    def used(self) -> AbstractContextManager[None]:
        """Keep it on its device inside the block, over several labels."""
        return nullcontext() if self._resting is None else self._resting.used()

    def label(self, images: Tensor, depth: Tensor | None, *, features: Collection[str] = ()) -> PseudoLabel:
        """Label images `(B, 3 * views, H, W)` in [0, 1]; `depth` `(B, H, W)` in metres is what the oracle reads.

        `features` are the levels of the encoder's features that are wanted too; those that it lacks are left out. Runs
        in the teacher's own precision, whatever autocast surrounds it.
        """
        if self.model is None:
            if depth is None:
                raise ValueError(f"Teacher.label: depth must be given to {self.name}, which reads it, got None")
            inverse = depth_to_inverse_depth(depth)
            known = ~torch.isnan(inverse)
            return PseudoLabel(inverse, known, teacher=self.name, inverse_depth=True, quantity="metric_depth")
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=self.model.memory_format)
        reduced = self.precision != torch.float32
        kind = images.device.type
        with self.used(), torch.inference_mode(), torch.autocast(kind, self.precision, enabled=reduced):
            output = self._run(images, features=features)
            values = output.values
            quantity = self.model.info.quantity if self.model.in_pixels else self.info.quantity
            disparity = to_disparity(values, quantity)
        # Tensors made in inference mode may not enter a graph; a clone made outside it may.
        disparity = disparity.clone()
        # Interpolation may bring metres below 0 beside a deep edge, and the inverse is unknown; the step looks for NaN.
        valid = ~(values <= 0) if quantity == "metric_depth" else torch.ones_like(disparity, dtype=torch.bool)
        return PseudoLabel(
            disparity,
            valid,
            {name: value.clone() for name, value in output.features.items()},
            teacher=self.name,
            inverse_depth=quantity == "metric_depth",
            quantity=quantity,
        )

    def label_pairs(self, regions: Regions, images: Tensor, *, features: Collection[str] = ()) -> PseudoLabel:
        """Label stereo pairs, for a teacher that sees both views.

        Args:
            regions: whose `depth` the oracle reads; for one whose disparity is in pixels their `intrinsics` and
                `baseline_m` make inverse depth in 1/m of it, and what has no camera is not valid.
            images: `(B, 3 * views, H, W)` in [0, 1], the views of the regions.
            features: as `label`.
        """
        label = self.label(images, regions.depth, features=features)
        if self.model is None or not self.model.in_pixels:
            return label
        assert regions.intrinsics is not None, "regions of photographs have them"
        assert regions.baseline_m is not None, "pairs have one"
        factor = (regions.intrinsics[:, 0, 0] * regions.baseline_m).to(label.disparity)[:, None, None]
        known = (label.disparity > 0) & ~torch.isnan(factor)
        inverse = label.disparity / torch.where(torch.isnan(factor), 1, factor)
        return replace(label, disparity=inverse, valid=label.valid & known, inverse_depth=True, quantity="metric_depth")

    def label_whole(self, regions: Regions, images: Tensor, depth: Tensor | None) -> PseudoLabel:
        """Label held-out images, whole; `regions` says which they are."""
        if self.views == 1:
            return self.label(images, depth)
        return self.label_pairs(regions.to(images.device), regions.views(self.views).to(images) / 255)

    def _run(self, images: Tensor, *, features: Collection[str]) -> DepthOutput:
        assert self.model is not None, "the oracle runs nothing"
        pieces = images.tensor_split(max(1, min(self.parts, len(images))))
        outputs = [
            run_resized(self.model, piece, features=bool(features), network=self._compiled).only(features)
            for piece in pieces
        ]
        if len(outputs) == 1:
            return outputs[0]
        return DepthOutput(
            torch.cat([output.values for output in outputs]),
            {name: torch.cat([output.features[name] for output in outputs]) for name in outputs[0].features},
        )
