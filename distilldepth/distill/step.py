"""One training step as one module: student, objective, and the watch over what is not finite."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distilldepth.distill.objective import DistillationObjective
from distilldepth.distill.progress import Stopwatch
from distilldepth.images.crops import Regions
from distilldepth.models import DepthModel
from distilldepth.models.base import DepthOutput, restore_output
from distilldepth.models.preprocess import nearest_size, resize
from distilldepth.models.recompute import recompute
from distilldepth.teachers.teacher import PseudoLabel

_SHORT_SEQUENCE_PIXELS = 128 * 14 * 14
"""Up to this many pixels a transformer on patches of 14 sees at most 128 tokens."""


@dataclass
class StepOutputs:
    """The loss, its terms, and what is logged."""

    loss: Tensor
    terms: dict[str, Tensor]
    """Unweighted, detached."""
    skipped: Tensor
    """Samples left out because the teacher's or the student's map was not finite."""
    center: Tensor
    """Mean of the student's output."""
    spread: Tensor
    """Mean absolute deviation of the student's output from its mean."""
    peak: Tensor
    """Largest magnitude of the student's output."""


class DistillationStep(nn.Module):
    """Student and objective together, so that one wrapper (DDP, FSDP) serves both.

    With `compiled` the student's pass goes through `torch.compile`; the module itself stays as it is.

    `at_once` images go through the student at a time, None for all of a batch. The objective sees the maps of all of
    them whatever that is, so that a loss over the batch, its counts and its means are those of the whole batch, and so
    is the gradient, to the rounding of its sums. For that the student runs over each part twice: once without keeping
    anything but the map, once more in the backward pass, with what that needs. Batch normalisation alone can tell: it
    normalises by the statistics of each part, and its running ones move once per part.
    """

    at_once: int | None

    def __init__(
        self, student: DepthModel, objective: DistillationObjective, stopwatch: Stopwatch, *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.at_once = None
        self._watch = stopwatch
        self._compiled = torch.compile(student.forward) if compiled else None

    def forward(self, regions: Regions, label: PseudoLabel) -> StepOutputs:
        """Run the student on the regions' images, and weigh what it says against the label."""
        with self._watch("student"):
            output = self.run_student(regions, features=label.features.keys())
            prediction = output.values
        with self._watch("loss"):
            batch = len(prediction)
            finite = torch.isfinite(prediction.detach()).flatten(1).all(1)
            usable = finite & _labelled(label.disparity, label.valid)
            patch_valid = label.patch_valid
            if label.patch_disparity is not None and patch_valid is not None:
                usable = usable & _labelled(label.patch_disparity, patch_valid).view(batch, -1).all(1)
                patch_valid = patch_valid & usable[regions.image_index][:, None, None]
            label = replace(label, valid=label.valid & usable[:, None, None], patch_valid=patch_valid)
            prediction = torch.where(usable[:, None, None], prediction, prediction.detach().nan_to_num())
            loss, terms = self.objective(replace(output, values=prediction), label, regions)
            detached = prediction.detach()
            center = detached.mean()
            # What could not be read is counted as that.
            skipped = ~usable if label.readable is None else ~usable & label.readable
            return StepOutputs(
                loss, terms, skipped.sum(), center, (detached - center).abs().mean(), detached.abs().amax()
            )

    def run_student(self, regions: Regions, *, features: Collection[str]) -> DepthOutput:
        """Return what the student says of the images `(B, 3, H, W)` in [0, 1] of regions, of any size, at that size.

        `features` are the levels of its features that are wanted too.
        """
        if self.student.takes_points:
            points = {"sparse": regions.sparse, "aligned": regions.aligned}
            return self._run_in_parts(regions.image, features=features, **points)
        images = regions.views(self.student.views)
        height, width = images.shape[-2:]
        preprocessing = self.student.preprocessing
        inner = nearest_size(height, width, preprocessing.multiple)
        images = resize(images, inner, preprocessing.interpolation)
        with _fastest_attention(inner, images.device):
            output = self._run_in_parts(images, features=features)
        return restore_output(output, (height, width), preprocessing)

    def _run_in_parts(self, images: Tensor, *, features: Collection[str], **points: Tensor | None) -> DepthOutput:
        network, count = self._compiled or self.student, len(images)

        def run(part: Tensor, **points_of_part: Tensor | None) -> DepthOutput:
            return network(part, features=bool(features), **points_of_part).only(features)

        if self.at_once is None or self.at_once >= count:
            return run(images, **points)
        pieces = -(-count // self.at_once)
        given = {name: values.tensor_split(pieces) for name, values in points.items() if values is not None}
        parts = [
            recompute(
                partial(run, **{name: values[place] for name, values in given.items()}),
                part,
                module=self.student,
            )
            for place, part in enumerate(images.tensor_split(pieces))
        ]
        return DepthOutput(
            torch.cat([part.values for part in parts]),
            {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features},
            {name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
        )


def _labelled(labels: Tensor, valid: Tensor) -> Tensor:
    """Per map: every valid pixel is finite and there is at least one."""
    good = torch.isfinite(labels) | ~valid
    return good.flatten(1).all(1) & valid.flatten(1).any(1)


def _fastest_attention(size: tuple[int, int], device: torch.device) -> AbstractContextManager[None]:
    """Plain matrix products for short sequences on a CPU, where fused attention's backward takes seven times as long.

    Measured with bfloat16, 63 tokens: 39 ms against 6 ms. From a few hundred tokens on the fused kernel wins.

    Args:
        size: (height, width) at which the student sees images.
        device: where it is.
    """
    short = device.type == "cpu" and size[0] * size[1] <= _SHORT_SEQUENCE_PIXELS
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
