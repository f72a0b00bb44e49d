"""How many images go through the student at once, and what happens when that is more than the memory holds."""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilldepth.capacity import is_out_of_memory
from distilldepth.distill.config import AugmentSection, DistillConfig
from distilldepth.distill.guides import Guides
from distilldepth.distill.labels import label_batch
from distilldepth.distill.launch import continuing
from distilldepth.distill.sharding import is_sharded
from distilldepth.distill.step import DistillationStep
from distilldepth.errors import DistillDepthError, first_line
from distilldepth.images.crops import Regions
from distilldepth.models import DepthModel
from distilldepth.models.preprocess import nearest_size
from distilldepth.teachers.stored import AbsentTeacher, LabelledRegions
from distilldepth.teachers.teacher import Teacher


class MicroBatch:
    """The number of images at once, as step and teachers are told of it; it falls where memory runs out.

    Args:
        config: `micro_batch` is where it begins.
        earlier: what an earlier part of this run came to, 0 if nothing; it counts unless `config` was changed since.
        step: of the run, without wrappers.
        teachers: they label as many parts of a batch one after another as the student sees.
        accelerator: of the run.
        tell: where the warning goes.
        guides: of a student that completes points.
    """

    def __init__(
        self,
        config: DistillConfig,
        earlier: int,
        step: DistillationStep,
        teachers: list[Teacher],
        accelerator: Accelerator,
        tell: Callable[[str], None],
        guides: Guides | None = None,
    ) -> None:
        self._config, self._step, self._teachers = config, step, teachers
        self._accelerator, self._tell, self._guides = accelerator, tell, guides
        self._set(earlier or config.micro_batch or config.batch_size)

    @property
    def kept(self) -> int:
        """What a checkpoint keeps: 0 as long as a batch goes through as a whole."""
        return self._size if self._size < self._config.batch_size else 0

    def _set(self, size: int) -> None:
        batch = self._config.batch_size
        self._size = min(size, batch)
        self._step.at_once = self._size if self._size < batch else None
        for teacher in self._teachers:
            teacher.parts = -(-batch // self._size)

    @contextmanager
    def attempt(self, number: int) -> Iterator[None]:
        """Surround the gradient of a step; one for which memory runs out leaves no trace but smaller parts.

        The block is left without an error, for the caller to repeat it with them.

        Raises:
            DistillDepthError: a single image is too much, or there are several processes: one alone cannot repeat a
                step that the others are in the middle of.
        """
        statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(self._step)]
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._accelerator.num_processes > 1:
                raise self._stopped(error) from error
            self._shrink(error)
            self._tell(
                f"distilldepth: warning: memory ran out at step {number + 1} ({first_line(error, 100)}); from here on "
                f"{self._size} of {self._config.batch_size} images go through the student at once (micro_batch)"
            )
            for buffer, value in statistics:
                buffer.copy_(value)
            self._let_go(error)

    def _shrink(self, error: BaseException) -> None:
        if self._size == 1:
            raise out_of_memory(self._config, error) from error
        half = -(-self._size // 2)
        parts = -(-self._config.batch_size // half)
        if self._config.batch_size // parts == 1 and one_image_is_too_little(self._step.student, self._config):
            raise out_of_memory(self._config, error) from error
        self._set(half)

    def _stopped(self, error: BaseException) -> DistillDepthError:
        """What ends several processes, whose next run may begin with less."""
        if self._size == 1:
            return out_of_memory(self._config, error)
        again = continuing(self._config, "--set", f"micro_batch={-(-self._size // 2)}")
        return DistillDepthError(
            f"distill: memory ran out with {self._size} images at once ({first_line(error, 100)}); "
            f"continue with {again}"
        )

    def _let_go(self, error: BaseException) -> None:
        """Free what a failed attempt holds: its frames keep tensors alive as long as the error does."""
        traceback.clear_frames(error.__traceback__)
        self._step.zero_grad(set_to_none=True)
        gc.collect()
        if self._accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def settle(self, batch: Regions, augment: AugmentSection, *, features: bool) -> None:
        """Find what fits in every one of several processes, by a trial that trains nothing.

        Each tries by itself, without a word to the others: teachers, student forward and backward, with the
        optimiser's moments in memory. All take the smallest number that any of them comes to. Students that FSDP
        shards are not tried, since no process can run one alone.

        Raises:
            DistillDepthError: a single image is too much.
        """
        if self._accelerator.num_processes == 1 or is_sharded(dict(self._step.named_parameters())):
            return
        failed: DistillDepthError | None = None
        while True:
            try:
                self._try(batch, augment, features=features)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._let_go(error)
                try:
                    self._shrink(error)
                except DistillDepthError as too_large:
                    failed = too_large
                    break
        sizes = self._accelerator.gather(torch.tensor([0 if failed else self._size], device=self._accelerator.device))
        least = int(sizes.min())
        if failed or not least:
            raise failed or out_of_memory(self._config, MemoryError("in another process"))
        if least < min(self._config.micro_batch or self._config.batch_size, self._config.batch_size):
            self._tell(
                f"distilldepth: warning: {least} of {self._config.batch_size} images go through the student at once "
                "(micro_batch), since memory has no room for more in every process"
            )
        self._set(least)

    def _try(self, batch: Regions, augment: AugmentSection, *, features: bool) -> None:
        moments = [torch.empty_like(p) for p in self._step.parameters() if p.requires_grad for _ in range(2)]
        norms = [layer for layer in self._step.modules() if _is_norm(layer) and layer.training]
        for layer in norms:
            layer.eval()  # So that it neither moves its statistics nor asks other processes for theirs.
        try:
            kept = isinstance(batch, LabelledRegions) and batch.label is not None
            for teacher in self._teachers[:1] if kept else filter(_is_here, self._teachers):
                device = self._accelerator.device
                regions, label = label_batch(batch, teacher, augment, device, features=features, guides=self._guides)
                with self._accelerator.autocast():
                    output = self._step.run_student(regions, features=bool(label.features))
                output.values.square().mean().backward()
        finally:
            for layer in norms:
                layer.train()
            self._step.zero_grad(set_to_none=True)
            del moments


def out_of_memory(config: DistillConfig, error: BaseException) -> DistillDepthError:
    """Return what ends a run that fewer images at once would not help."""
    height, width = config.height_width
    return DistillDepthError(
        f"distill: not enough memory for images of {height} x {width} ({first_line(error, 100)}); use a smaller --size "
        "or --batch-size, --gradient-checkpointing or --teacher-offload"
    )


def _is_here(teacher: Teacher) -> bool:
    return not isinstance(teacher, AbsentTeacher)


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._NormBase)


def _running_statistics(module: nn.Module) -> list[Tensor]:
    return [buffer for layer in module.modules() if _is_norm(layer) for buffer in layer.buffers(recurse=False)]


@torch.no_grad()
def one_image_is_too_little(student: DepthModel, config: DistillConfig) -> bool:
    """Return whether a single image leaves a batch normalisation a single value, which has no spread."""
    if not any(map(_is_norm, student.modules())):
        return False
    height, width = nearest_size(*config.height_width, student.preprocessing.multiple)
    trial = copy.deepcopy(student).train()  # A copy, since a pass changes running means.
    try:
        trial(torch.zeros(1, 3, height, width, device=next(trial.parameters()).device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return True
    return False
