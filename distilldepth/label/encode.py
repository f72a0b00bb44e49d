"""From what a teacher says of a batch to samples of a shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distilldepth.errors import one_line
from distilldepth.images.crops import Regions
from distilldepth.label.tar import pack_sample
from distilldepth.teachers.labelling import label_regions
from distilldepth.teachers.shards import LabelledRegion, LabelSet, encode_sample
from distilldepth.teachers.teacher import PseudoLabel, Teacher


@dataclass
class Packed:
    """A sample as a piece of a tar file."""

    content: bytes
    problems: list[dict[str, object]]
    """What was wrong with its photograph or its maps."""


class Labeller:
    """A teacher that labels batches of any size: where memory runs out it sees fewer regions at once from then on."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device
        self.most: int | None = None
        """Regions at once, if memory has run out before."""

    def label(self, regions: Regions) -> PseudoLabel:
        """Return what the teacher says; nothing waits for the device.

        Raises:
            MemoryError: a single region is too much.
        """
        count = len(regions.image)
        if self.most is None or count <= self.most:
            try:
                return label_regions(regions.to(self.device), self.teacher)
            except (RuntimeError, MemoryError) as error:
                if not _is_memory(error):
                    raise
            if count == 1:
                height, width = regions.image.shape[-2:]
                raise MemoryError(f"not enough memory to label a region of {height} x {width}; use a smaller --size")
            self.most = (count + 1) // 2
        step = self.most
        return _join([self.label(_some(regions, first, first + step)) for first in range(0, count, step)])


def _is_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _some(regions: Regions, first: int, last: int) -> Regions:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[first:last]

    return replace(
        regions,
        image=regions.image[first:last],
        patches=regions.patches[first:last],
        boxes=regions.boxes[first:last],
        depth=cut(regions.depth),
        patch_depth=cut(regions.patch_depth),
    )


def _join(parts: list[PseudoLabel]) -> PseudoLabel:
    def join(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    return replace(
        parts[0],
        disparity=torch.cat([part.disparity for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        patch_disparity=join([part.patch_disparity for part in parts]),
        patch_valid=join([part.patch_valid for part in parts]),
    )


def pack_batch(
    regions: Regions, label: PseudoLabel, labels: LabelSet, name: str, numbers: range, ordinals: list[int]
) -> list[Packed]:
    """Return the samples of a batch as pieces of a shard.

    A map that a teacher leaves without a number where it claims one makes its whole sample unknown, as a run leaves
    such a sample out.

    Args:
        regions: what was labelled, in the memory of the CPU.
        label: what the teacher said, wherever.
        labels: the set; see `LabelSet.for_heldout` for held-out images.
        name: the teacher's in the set.
        numbers: of the samples in their shard's teacher; those left out at the front are not packed.
        ordinals: of the crops, for the same samples.
    """
    skipped = len(regions.image) - len(numbers)
    maps, bad = _known(label.disparity, label.valid)
    count, height, width = labels.windows
    windows = np.empty((len(maps), 0, height, width), np.float32)
    if label.patch_disparity is not None and label.patch_valid is not None and count:
        flat, bad_windows = _known(label.patch_disparity, label.patch_valid)
        windows, bad_windows = flat.reshape(len(maps), count, height, width), bad_windows.reshape(len(maps), count)
        bad = bad | bad_windows.any(1)
        windows[bad] = np.nan
    maps[bad] = np.nan
    packed: list[Packed] = []
    for place, (number, ordinal) in enumerate(zip(numbers, ordinals, strict=True), start=skipped):
        sample = LabelledRegion(
            ordinal=ordinal,
            name=regions.name[place],
            cut=regions.cut[place],
            image=None if labels.image_format == "none" else regions.image[place].permute(1, 2, 0).numpy(),
            boxes=regions.boxes[place].numpy(),
            disparity=maps[place],
            windows=windows[place],
            inverse_depth=label.inverse_depth,
            teacher=name,
        )
        content = pack_sample(number, encode_sample(sample, labels))
        packed.append(Packed(content, _problems(regions, place, ordinal, bool(bad[place]), name)))
    return packed


def _known(values: Tensor, valid: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The maps with NaN where nothing is known, and which of them are not finite where they should be."""
    maps, there = values.float().cpu().numpy().copy(), valid.cpu().numpy()
    bad = (~np.isfinite(maps) & there).reshape(len(maps), -1).any(1)
    maps[~there] = np.nan
    return maps, bad


def _problems(regions: Regions, place: int, ordinal: int, bad: bool, teacher: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if regions.unreadable[place]:
        what = f"{regions.unreadable[place]} unreadable before it: {one_line(regions.errors[place], 500)}"
        found.append({"ordinal": ordinal, "name": regions.name[place], "unreadable": what})
    if bad:
        found.append({"ordinal": ordinal, "name": regions.name[place], "not finite": f"the map of {teacher}"})
    return found
