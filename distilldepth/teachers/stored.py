"""Sets of labels opened for training: teachers that are not in memory, and what is checked before one teaches."""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distilldepth.documents import parse_json
from distilldepth.errors import DistillDepthError
from distilldepth.images.batches import CropDataset, SourceView
from distilldepth.images.crops import Regions
from distilldepth.images.sources import Sample
from distilldepth.models.base import ModelInfo
from distilldepth.teachers.location import Location
from distilldepth.teachers.shards import (
    HELDOUT,
    INDEX,
    LABELS,
    LabelledRegion,
    LabelSet,
    Shard,
    decode_sample,
    parse_index,
    parse_labels,
    sample_key,
    shard_name,
)
from distilldepth.teachers.shards import StoredTeacher as TeacherRecord
from distilldepth.teachers.spec import TeacherSpec
from distilldepth.teachers.stream import LabelStream, RawSample, Share, StreamOrder, buffer_size
from distilldepth.teachers.teacher import PseudoLabel, Teacher

LEFT_OUT = "the sample is left out"
"""What is said of a sample that cannot be read."""


class OtherTeacherError(DistillDepthError):
    """A sample says that somebody else labelled it than the set does."""


@dataclass
class LabelledRegions(Regions):
    """A batch of regions that comes with what a teacher says of them."""

    label: PseudoLabel | None = None

    def to(self, device: torch.device) -> LabelledRegions:
        """Return both on a device, without waiting for it."""
        moved = super().to(device)
        assert isinstance(moved, LabelledRegions)
        return moved if self.label is None else replace(moved, label=self.label.to(device))

    def pin_memory(self) -> LabelledRegions:
        """Return both in memory from which a GPU copies by itself."""
        pinned = super().pin_memory()
        assert isinstance(pinned, LabelledRegions)
        return pinned if self.label is None else replace(pinned, label=self.label.pin_memory())


class LabelFolder:
    """A set of labels, wherever it is: what it says of itself, and its index.

    Args:
        location: where it is.

    Raises:
        DistillDepthError: there is no such set, it is damaged, or it is not whole.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.labels, text = read_label_set(location)
        index = location.read(INDEX)
        if index is None:
            raise self._incomplete(f"{INDEX} is missing: not everything is labelled")
        self.identity = hashlib.sha256(text + b"\0" + index).hexdigest()
        """Of the set: what a run was trained from."""
        shards = {shard.url: shard for shard in parse_index(index, location.url(INDEX))}
        self.shards = [self._shards_of(teacher, shards) for teacher in self.labels.teachers]
        self.heldout = [self._heldout_of(teacher, shards) for teacher in self.labels.teachers]

    def _shards_of(self, teacher: TeacherRecord, index: dict[str, Shard]) -> list[Shard]:
        found = []
        for number in range(self.labels.shards(teacher)):
            url = shard_name(teacher, number)
            left = teacher.samples - number * self.labels.samples_per_shard
            found.append(self._checked(url, min(left, self.labels.samples_per_shard), index))
        return found

    def _heldout_of(self, teacher: TeacherRecord, index: dict[str, Shard]) -> Shard | None:
        if not self.labels.heldout:
            return None
        return self._checked(shard_name(teacher, HELDOUT), self.labels.heldout, index)

    def _checked(self, url: str, samples: int, index: dict[str, Shard]) -> Shard:
        shard = index.get(url)
        if shard is None:
            raise self._incomplete(f"{INDEX} does not list {url}")
        if shard.nsamples != samples:
            raise self._incomplete(f"{url} has {shard.nsamples} samples, {samples} are meant to be in it")
        if self.location.is_local and not Path(self.location.url(url)).is_file():
            raise self._incomplete(f"{url} is missing")
        return shard

    def _incomplete(self, what: str) -> DistillDepthError:
        return DistillDepthError(f"{self.location.root}: {what}; {self._remedy()}")

    def _remedy(self) -> str:
        labels = self.labels
        if not self.location.is_local:
            return (
                f"look where it was copied from: distilldepth label --check {shlex.quote(Path(labels_name(self)).name)}"
            )
        teachers = ",".join(f"{teacher.spec}={teacher.weight:g}" for teacher in labels.teachers)
        images = [text for name in labels.images for text in ("--images", name)]
        again = ["distilldepth", "label", "--teachers", teachers, *images, "--out", self.location.root]
        return (
            f"the command that began it completes it ({shlex.join(again)} with its other options), and "
            f"distilldepth label --check {shlex.quote(self.location.root)} says what is wrong"
        )

    @property
    def description(self) -> str:
        """One line for reports."""
        labels = self.labels
        samples = sum(teacher.samples for teacher in labels.teachers)
        return f"labels {self.location.root} ({samples} samples of {labels.training} images, {self.identity[:16]})"


def labels_name(folder: LabelFolder) -> str:
    """Return the last part of where a set is."""
    return folder.location.root.rstrip("/").split("/")[-1] or "LABELS"


def read_label_set(location: Location) -> tuple[LabelSet, bytes]:
    """Return what a set says of itself, and the text that says it.

    Raises:
        DistillDepthError: there is none, or it is damaged.
    """
    text = location.read(LABELS)
    if text is None:
        raise DistillDepthError(
            f"{location.root}: has no {LABELS}; name the folder that distilldepth label wrote with --out"
        )
    return parse_labels(text, location.url(LABELS)), text


class AbsentTeacher(Teacher):
    """A teacher whose labels are on disk; itself it is not in memory.

    Args:
        folder: the set.
        place: of the teacher in it.
        seed: of the run.
        stream: number among the stored teachers of the run.
        share: process, processes and batch size.
        cut: crops of the photographs, where the set has no images of its own.
    """

    def __init__(
        self,
        folder: LabelFolder,
        place: int,
        *,
        seed: int,
        stream: int,
        share: tuple[int, int, int],
        cut: CropDataset | None = None,
    ) -> None:
        record = folder.labels.teachers[place]
        super().__init__(TeacherSpec(record.spec, record.weight * folder.location.weight), None)
        self.folder, self.record, self._cut = folder, record, cut
        notes = (
            f"{record.name}: labels of {folder.location.root} (set {folder.identity[:16]}), made with weights "
            f"{record.digest[:16] or 'of no digest'} in {record.precision}",
        )
        self.info = ModelInfo(record.name, "labels", record.quantity, record.licence, record.source, notes)
        self.name = record.name
        shards = folder.shards[place]
        process, processes, batch = share
        order = StreamOrder(
            tuple(shard.nsamples for shard in shards),
            buffer_size(shards),
            seed,
            stream,
            as_stored=seed == folder.labels.seed,
        )
        part = Share(process, processes, batch, len(shards) >= processes > 1, record.samples)
        self.stream = LabelStream(folder.location, folder.labels, shards, order, part)
        self.kept = HeldOut(self, folder.heldout[place])
        self.heldout = SourceView(self.kept, range(len(self.kept)))

    @property
    def longer_name(self) -> str:
        """The name with that of the set, for runs in which another teacher has it too."""
        return f"{self.record.name}@{labels_name(self.folder)}"

    def decode(self, raw: RawSample) -> LabelledRegion | str:
        """Return what a sample holds, or what is wrong with it.

        Raises:
            OtherTeacherError: somebody else labelled it.
        """
        if raw.error:
            return raw.error
        try:
            sample = self.decode_as(raw, self.folder.labels)
            if sample.image is None and self._cut is not None:
                sample.image = self._recut(raw.name, sample)
        except OtherTeacherError:
            raise
        except (DistillDepthError, FileNotFoundError) as error:
            return str(error)
        return sample

    def decode_as(self, raw: RawSample, labels: LabelSet) -> LabelledRegion:
        """Return a sample of this teacher, as `labels` describes it; DistillDepthError where it is broken."""
        sample = decode_sample(raw.members, labels, raw.name)
        digest = parse_json(raw.members["json"], raw.name).get("digest")
        if (sample.teacher, digest) != (self.record.name, self.record.digest):
            raise OtherTeacherError(
                f"{raw.name}: was labelled by {sample.teacher} ({str(digest)[:16]}), the set says by "
                f"{self.record.name} ({self.record.digest[:16]}); shards of two sets are "
                "mixed, label again or copy the right ones"
            )
        return sample

    def _recut(self, name: str, sample: LabelledRegion) -> np.ndarray:
        assert self._cut is not None, "asked for sets without images only"
        region = self._cut[sample.ordinal]
        if region.cut != [sample.cut] or not np.array_equal(region.boxes.numpy(), sample.boxes):
            raise DistillDepthError(
                f"{name}: {region.name[0]} is not cut as it was labelled; is it another photograph?"
            )
        return region.image.permute(1, 2, 0).numpy()

    def assemble(self, samples: Sequence[LabelledRegion | str]) -> LabelledRegions:
        """Return decoded samples as a batch with its label; those that could not be read are valid nowhere."""
        labels = self.folder.labels
        height, width = labels.size
        count, window_height, window_width = labels.windows
        good = [None if isinstance(sample, str) else sample for sample in samples]
        image = np.zeros((len(samples), height, width, 3), np.uint8)
        boxes = np.zeros((len(samples), count, 4), np.float32)
        boxes[:, :, 2:] = width, height
        disparity = np.full((len(samples), height, width), np.nan, np.float32)
        windows = np.full((len(samples), count, window_height, window_width), np.nan, np.float32)
        for place, sample in enumerate(good):
            if sample is not None:
                assert sample.image is not None, "stored, or cut again"
                image[place], boxes[place] = sample.image, sample.boxes
                disparity[place], windows[place] = sample.disparity, sample.windows
        maps, patches = torch.from_numpy(disparity), torch.from_numpy(windows).flatten(0, 1)
        label = PseudoLabel(
            maps,
            ~torch.isnan(maps),
            patch_disparity=patches if count else None,
            patch_valid=~torch.isnan(patches) if count else None,
            teacher=self.name,
            inverse_depth=all(sample.inverse_depth for sample in good if sample is not None),
            quantity=self.info.quantity,
            readable=torch.tensor([sample is not None for sample in good]),
        )
        return LabelledRegions(
            image=torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(),
            patches=torch.empty((len(samples), 0, 3, window_height, window_width), dtype=torch.uint8),
            boxes=torch.from_numpy(boxes),
            name=["" if sample is None else sample.name for sample in good],
            unreadable=[int(sample is None) for sample in good],
            errors=[f"{sample}; {LEFT_OUT}" if isinstance(sample, str) else "" for sample in samples],
            cut=[sample.cut for sample in good if sample is not None],
            label=label,
        )

    def label(self, images: Tensor, depth: Tensor | None, *, features: Collection[str] = ()) -> PseudoLabel:
        """Say that it is not there; its labels come with their regions."""
        raise ValueError(f"AbsentTeacher.label: {self.name} is not in memory, its labels come with their regions")

    def label_whole(self, regions: Regions, images: Tensor, depth: Tensor | None) -> PseudoLabel:
        """Return what the set keeps for held-out images, which the regions' names tell; NaN where it is broken."""
        maps = torch.stack([torch.from_numpy(self.kept.disparity(name)) for name in regions.name]).to(images.device)
        return PseudoLabel(
            maps, ~torch.isnan(maps), teacher=self.name, inverse_depth=self.info.quantity == "metric_depth"
        )


@dataclass
class HeldOut:
    """The held-out images of a set as one teacher labelled them, read when the first is asked for.

    A sequence of images that go by their keys in the set; members are kept as they are stored, and decoded each time.
    """

    teacher: AbsentTeacher
    shard: Shard | None
    _raw: list[RawSample] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return 0 if self.shard is None else self.shard.nsamples

    def __getitem__(self, index: int) -> Sample:
        sample = self._decode(index)
        assert sample.image is not None, "held-out images are always stored"
        return {"image": sample.image, "name": sample_key(index)}

    def disparity(self, name: str) -> np.ndarray:
        """Return the map of an image by its name, NaN if it is broken."""
        try:
            return self._decode(int(name)).disparity
        except OtherTeacherError:
            raise
        except DistillDepthError:
            return np.full(self.teacher.folder.labels.size, np.nan, np.float32)

    def _decode(self, index: int) -> LabelledRegion:
        raw = self._read()[index]
        if raw.error:
            raise DistillDepthError(raw.error)
        return self.teacher.decode_as(raw, self.teacher.folder.labels.for_heldout())

    def _read(self) -> list[RawSample]:
        if self._raw is None:
            assert self.shard is not None, "asked for images of a set that has some"
            labels = replace(self.teacher.folder.labels.for_heldout(), samples_per_shard=self.shard.nsamples)
            order = StreamOrder((self.shard.nsamples,), self.shard.nsamples, 0, 0, as_stored=True)
            share = Share(0, 1, self.shard.nsamples, own=False, samples=self.shard.nsamples)
            stream = LabelStream(self.teacher.folder.location, labels, [self.shard], order, share)
            self._raw = stream.batch(0)
            stream.close()
        return self._raw


def open_teachers(
    folders: list[LabelFolder],
    cuts: list[CropDataset | None],
    *,
    seed: int,
    share: tuple[int, int, int],
) -> list[AbsentTeacher]:
    """Return the teachers of several sets; those that call themselves the same go by their set too.

    Args:
        folders: the sets.
        cuts: for each, the crops of its photographs where it has no images.
        seed: of the run.
        share: process, processes and batch size.

    Raises:
        DistillDepthError: a set has no samples at all.
    """
    teachers: list[AbsentTeacher] = []
    for folder, cut in zip(folders, cuts, strict=True):
        before = len(teachers)
        places = [place for place, teacher in enumerate(folder.labels.teachers) if teacher.samples]
        for record in folder.labels.teachers:
            if not record.samples and places:
                warnings.warn(
                    f"{folder.location.root}: {record.name} labelled no sample of so small a set and does not teach; "
                    "label with more images or --views",
                    stacklevel=2,
                )
        if not places:
            raise DistillDepthError(f"{folder.location.root}: has no samples; label with more images or --views")
        teachers += [
            AbsentTeacher(folder, place, seed=seed, stream=before + number, share=share, cut=cut)
            for number, place in enumerate(places)
        ]
        for teacher in teachers[before:]:
            teacher.heldout = teachers[before].heldout  # All of a set labelled the same images.
    names = [teacher.name for teacher in teachers]
    for number, teacher in enumerate(teachers):
        if names.count(teacher.record.name) > 1:
            teacher.name = teacher.longer_name
        if teacher.name in (other.name for other in teachers[:number]):
            teacher.name = f"{teacher.name}-{number + 1}"
    return teachers


class FirstRegions:
    """The first regions of a teacher as images, in the order of its shards; read when one is asked for."""

    def __init__(self, teacher: AbsentTeacher, count: int) -> None:
        self.teacher, self.count = teacher, min(count, teacher.record.samples)
        self._decoded: list[LabelledRegion | str] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if self._decoded is None:
            stream = self.teacher.stream
            order = replace(stream.order, as_stored=True)
            share = Share(0, 1, self.count, own=False, samples=order.samples)
            reader = LabelStream(stream.location, stream.labels, stream.shards, order, share)
            self._decoded = [self.teacher.decode(raw) for raw in reader.batch(0)]
            reader.close()
        sample = self._decoded[index]
        if isinstance(sample, str):
            raise DistillDepthError(sample)
        assert sample.image is not None, "stored, or cut again"
        return {"image": sample.image, "name": sample.name}


def crops_differ(folder: LabelFolder, wanted: dict[str, object]) -> list[str]:
    """Return what of the crops of a set is not as a run wants it: `key: labels X, run Y`."""
    found = folder.labels.crops
    return [
        f"{key}: labels {_shown(found.get(key))}, run {_shown(wanted.get(key))}"
        for key in (*wanted, *(key for key in found if key not in wanted))
        if (found.get(key) or None) != (wanted.get(key) or None)  # What is off may be left out.
    ]


def _shown(value: object) -> str:
    return json.dumps(value)
