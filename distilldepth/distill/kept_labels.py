"""The sets of labels of a run: opened together, and checked against what the run asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from distilldepth.distill.config import DistillConfig
from distilldepth.distill.crops import crop_config
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.batches import CropDataset, SourceView, fingerprint, split_heldout
from distilldepth.images.crops import CropConfig
from distilldepth.images.sources import open_source
from distilldepth.settings import apply
from distilldepth.teachers.location import parse_location
from distilldepth.teachers.shards import LabelSet
from distilldepth.teachers.stored import AbsentTeacher, FirstRegions, LabelFolder, crops_differ, open_teachers
from distilldepth.teachers.teacher import Teacher

_FIRST = 16
"""Regions on which the range of a student's output is measured where there are no photographs."""


@dataclass
class KeptLabels:
    """The sets of a run, none or several."""

    folders: list[LabelFolder]
    absent: list[AbsentTeacher]

    @property
    def identity(self) -> str:
        """What tells these sets from others; empty if there are none."""
        return ", ".join(folder.identity[:32] for folder in self.folders)

    @property
    def description(self) -> str:
        """One line for reports; empty if there are none."""
        return " + ".join(folder.description for folder in self.folders)

    def teachers(self, taken: list[str]) -> list[Teacher]:
        """Return the teachers, under names that none of `taken` is."""
        for teacher in self.absent:
            if teacher.name in taken:
                teacher.name = teacher.longer_name
        return list(self.absent)

    def first_regions(self) -> SourceView:
        """Return some of the regions as images."""
        first = FirstRegions(self.absent[0], _FIRST)
        return SourceView(first, range(len(first)))


def open_labels(config: DistillConfig, process: tuple[int, int]) -> KeptLabels:
    """Open what `labels` names.

    Args:
        config: of the run.
        process: number of this process, and how many there are.

    Raises:
        UsageError: the run asks for other crops than these labels have.
        DistillDepthError: a set is not there, damaged, not whole, or of other photographs than are given.
    """
    folders = [LabelFolder(parse_location(text)) for text in config.labels]
    for folder in folders:
        _check_crops(config, folder)
    cuts = [_crops_of(config, folder) for folder in folders]
    share = (*process, config.batch_size)
    return KeptLabels(folders, open_teachers(folders, cuts, seed=config.seed, share=share))


def _check_crops(config: DistillConfig, folder: LabelFolder) -> None:
    """Raise UsageError, with each difference, if the regions of a set are not cut as the run says."""
    # Windows that the objective does not look at are no difference.
    wanted = dataclasses.replace(crop_config(config), patches=config.crop.patches)
    differ = crops_differ(folder, wanted.to_dict())
    if differ:
        raise UsageError(
            f"distill: labels {folder.location.root} are cut in another way than this run asks for "
            f"({'; '.join(differ)}); leave these settings out to take those of the labels (with several sets, those of "
            "the first), or label again with the settings of the run"
        )


def _crops_of(config: DistillConfig, folder: LabelFolder) -> CropDataset | None:
    """The crops of a set that leaves the photographs where they are, None for one that has its regions."""
    labels = folder.labels
    if labels.image_format != "none":
        return None
    how = _settings_of(labels)
    for images in filter(None, (config.images, labels.images)):
        try:
            source = open_source(
                images, size=how.scene_height_width, seed=labels.seed, max_side=how.crop.max_side or None
            )
        except (FileNotFoundError, DistillDepthError) as error:
            raise DistillDepthError(
                f"{folder.location.root}: holds no regions, and the photographs that it was made from cannot be read "
                f"({error}); name the place where they are now with --images"
            ) from error
        found = fingerprint(source)
        # Teachers in memory may label other photographs than these.
        if found == labels.fingerprint or not config.teacher_specs:
            break
    if found != labels.fingerprint:
        raise DistillDepthError(
            f"{folder.location.root}: holds no regions, and the photographs are not those that were labelled "
            f"({labels.fingerprint} then, {found} now); name those with --images"
        )
    training, _ = split_heldout(source, labels.heldout)
    if len(training) != labels.training:
        raise DistillDepthError(
            f"{folder.location.root}: was made from {labels.training} training images, now there are {len(training)}"
        )
    crops: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in labels.crops.items()
    }
    try:
        return CropDataset(training, CropConfig(**crops), labels.seed, right=False)
    except (TypeError, ValueError) as error:
        raise DistillDepthError(
            f"{folder.location.root}: labels.json does not say how regions are cut ({error})"
        ) from error


def _settings_of(labels: LabelSet) -> DistillConfig:
    """How the photographs of a set were opened."""
    config = DistillConfig()
    known = {key: value for key, value in labels.settings.items() if key == "size" or key.startswith("crop")}
    apply(config, known, "labels.json", "distill")
    return config
