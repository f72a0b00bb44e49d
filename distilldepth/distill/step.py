"""One training step as one module: student, objective, and the watch over what is not finite."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distilldepth.distill.objective import DistillationObjective
from distilldepth.distill.progress import Stopwatch
from distilldepth.images.crops import Regions
from distilldepth.models import DepthModel
from distilldepth.models.preprocess import nearest_size, resize, restore
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
    """

    def __init__(
        self, student: DepthModel, objective: DistillationObjective, stopwatch: Stopwatch, *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self._watch = stopwatch
        self._compiled = torch.compile(student.forward) if compiled else None

    def forward(self, regions: Regions, label: PseudoLabel) -> StepOutputs:
        """Run the student on the regions' images, and weigh what it says against the label."""
        height, width = regions.image.shape[-2:]
        with self._watch("student"):
            preprocessing = self.student.preprocessing
            inner = nearest_size(height, width, preprocessing.multiple)
            images = resize(regions.image, inner, preprocessing.interpolation)
            with _fastest_attention(images):
                output = (self._compiled or self.student)(images, features=bool(label.features))
            prediction = restore(output.values, (height, width), preprocessing)
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
            return StepOutputs(
                loss, terms, (~usable).sum(), center, (detached - center).abs().mean(), detached.abs().amax()
            )


def _labelled(labels: Tensor, valid: Tensor) -> Tensor:
    """Per map: every valid pixel is finite and there is at least one."""
    good = torch.isfinite(labels) | ~valid
    return good.flatten(1).all(1) & valid.flatten(1).any(1)


def _fastest_attention(images: Tensor) -> AbstractContextManager[None]:
    """Plain matrix products for short sequences on a CPU, where fused attention's backward takes seven times as long.

    Measured with bfloat16, 63 tokens: 39 ms against 6 ms. From a few hundred tokens on the fused kernel wins.
    """
    short = images.device.type == "cpu" and images.shape[-2] * images.shape[-1] <= _SHORT_SEQUENCE_PIXELS
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
