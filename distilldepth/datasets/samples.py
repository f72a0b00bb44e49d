"""What the readers of all benchmarks share: what one is, and how the lines of a list become samples."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags

from distilldepth.datasets.archive import Place, Readable, Root, Stored
from distilldepth.datasets.codec import DepthCodec
from distilldepth.datasets.rgbd import decode_depth
from distilldepth.datasets.splits import Row, Split
from distilldepth.datasets.truth import RightReader, Truth
from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.images.decode import as_rgb, open_image

T = TypeVar("T")
_PROBES = 16
"""How many lines of a list are looked for, spread evenly, before it is said not to fit the folder."""


class ListMismatch(DistillDepthError):
    """The files that a list names are not in the data; another list may fit."""


@dataclass(frozen=True)
class Frame:
    """One image with ground truth as its benchmark names it, not read yet; in an opened dataset it is an `Item`."""

    name: str
    read: Callable[[], tuple[np.ndarray, Truth]]
    right: RightReader | None = None


@dataclass
class Found:
    """What a benchmark's reader found."""

    samples: list[Frame]
    fields: tuple[str, ...] = ()
    """Kinds of ground truth on disk."""
    field: str = ""
    """Which of them is read."""
    notes: list[str] = default(default_factory=list)
    """How the samples were found."""
    has_own_count: bool = False
    """Whether the user's list decides how many samples there are."""


@dataclass(frozen=True)
class Request:
    """What is asked of a benchmark's reader."""

    root: Root
    splits: list[Split]
    """Lists to try, in this order; empty if there is none."""
    subset: str
    field: str | None
    benchmark: Benchmark
    split_path: Path | None = None
    """What the user named as the list; only needed where it is no text."""
    preferred_field: str | None = None
    """Kind of ground truth to read where there are several; `field` has to be there."""

    def choose_field(self, fields: tuple[str, ...]) -> str:
        """Return the kind of ground truth to read: the one asked for, or the first.

        Args:
            fields: those on disk; empty where there is one kind only, which has no name.

        Raises:
            DistillDepthError: what is asked for is not on disk.
        """
        field = self.field or (self.preferred_field if fields else None)
        if field and field not in fields:
            there = did_you_mean(field, fields) if fields else "; there is one kind only, which has no name"
            raise DistillDepthError(f"{self.benchmark.name}: has no ground truth called {field!r} on disk{there}")
        return field or (fields[0] if fields else "")

    def no_list(self, hint: str = "") -> DistillDepthError:
        """Return the error for a root without a list, which says what to put where."""
        names = " or ".join(self.benchmark.splits)
        count = self.benchmark.counts.get(self.subset)
        return DistillDepthError(
            f"{self.root}: {self.benchmark.name} needs the list of its {count} images; put {names} there, "
            f"or name it with --split{hint}{self._packed()}"
        )

    def not_found(self, what: str, looked_for: str, source: str) -> ListMismatch:
        """Return the error for a list that does not fit the root."""
        return ListMismatch(
            f"{self.root}: none of the {what} that {source} names is there, looked for {looked_for} and so on; "
            f"check --root and --split{self._packed()}"
        )

    def _packed(self) -> str:
        names = self.root.compressed
        return f"; {', '.join(names[:3])} there must be unpacked first" if names else ""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: str
    title: str
    domain: str
    """`indoor`, `outdoor` or empty for both."""
    counts: dict[str, int | None]
    """How many samples each subset has; the first is the one meant without a name."""
    splits: tuple[str, ...]
    """Usual names of its list."""
    layouts: tuple[str, ...]
    """What may be on disk, one line each."""
    licence: str
    source: str
    find: Callable[[Request], Found]
    training: tuple[str, ...] = ()
    """Usual names of the list of its training images."""
    find_training: Callable[[Request], Found] | None = None
    """How those are found, where it is otherwise than those that are scored."""
    domains: dict[str, str] = default(default_factory=dict)
    """Domains of subsets where they differ."""
    count_hint: str = ""
    """What a wrong count usually comes from."""


@dataclass(frozen=True)
class FileReader:
    """Reads one sample from files."""

    image: tuple[Readable, ...]
    """Where the photograph may be; the first that exists is read."""
    depth: tuple[Readable, ...]
    codec: DepthCodec
    mask: tuple[Readable, ...] = ()
    """File that alone says what is valid."""
    is_metric: bool = True
    dense: bool = False

    def __call__(self) -> tuple[np.ndarray, Truth]:
        """Return the image and its truth.

        Raises:
            FileNotFoundError, DistillDepthError: a file is missing, damaged, or has no valid pixel.
        """
        image = read_photograph(existing(self.image))
        file = existing(self.depth)
        depth, valid = self.codec.read(file, image.shape[:2])
        if self.mask:
            mask_file = existing(self.mask)
            mask = decode_depth(io.BytesIO(mask_file.read()), str(mask_file))
            if mask.shape != depth.shape:
                raise DistillDepthError(f"{mask_file}: must have the depth map's shape {depth.shape}, got {mask.shape}")
            valid &= mask > 0
            np.copyto(depth, 0, where=~valid)
        if not valid.any():
            raise DistillDepthError(f"{file}: no valid pixel in the ground truth")
        return image, Truth(depth, valid, is_metric=self.is_metric, dense=self.dense)


def read_photograph(file: Readable) -> np.ndarray:
    """Read an image as it is stored, uint8 `(H, W, 3)`: ground truth is aligned with stored pixels, so an EXIF
    orientation is not applied.

    Raises:
        FileNotFoundError, DistillDepthError: missing or damaged.
    """
    with open_image(io.BytesIO(file.read()), str(file)) as image:
        image.getexif().pop(ExifTags.Base.Orientation, None)
        return as_rgb(image)


def locate(root: Root, rows: Sequence[Row], paths: Callable[[Row], str]) -> tuple[Place, int] | None:
    """Find where the paths of a list lead to.

    Args:
        root: the data.
        rows: the list.
        paths: gives a path of a row.

    Returns:
        The place, and how many leading folders of each path are not to be used: lists made on other machines have
        absolute paths, and a root may be a folder inside the layout. None if nothing is found.
    """
    every = [paths(row).split("/") for row in rows]
    probes = spread(every, _PROBES)
    for dropped in range(min(map(len, every))):
        if dropped and len({"/".join(parts[dropped:]) for parts in every}) < len(every):
            # Names that are no longer different could be found anywhere.
            return None
        place = root.place("/".join(parts[dropped:]) for parts in probes)
        if place is not None:
            return place, dropped
    return None


def pair(
    request: Request,
    split: Split,
    codec: DepthCodec,
    depth_path: Callable[[Row], str],
    *,
    mask_path: Callable[[Row], str] | None = None,
    **options: bool,
) -> list[Frame]:
    """Make the samples of a list whose first column is the image.

    Args:
        request: names the data.
        split: the list.
        codec: how depth is stored.
        depth_path: gives the path of a row's ground truth.
        mask_path: gives the path of a row's mask, beside its depth.
        options: `is_metric`, `dense` of the samples.

    Returns:
        Samples in the list's order, those with missing files too.

    Raises:
        ListMismatch: none of the images, or none of the files with ground truth, is there.
    """
    rows = split.rows
    images = locate(request.root, rows, lambda row: row.fields[0])
    if images is None:
        raise request.not_found("images", rows[0].fields[0], split.name)
    depths = locate(request.root, rows, depth_path)
    if depths is None:
        raise request.not_found("files with ground truth", depth_path(rows[0]), split.name)

    def stored(found: tuple[Place, int], path: str) -> tuple[Stored]:
        place, dropped = found
        return (place.file("/".join(path.split("/")[dropped:])),)

    samples = []
    for row in rows:
        parts = row.fields[0].split("/")
        # A name means the same on every machine; absolute paths do not.
        name = "/".join(parts[images[1] :]) if row.absolute else row.fields[0]
        mask = stored(depths, mask_path(row)) if mask_path else ()
        reader = FileReader(stored(images, row.fields[0]), stored(depths, depth_path(row)), codec, mask, **options)
        samples.append(Frame(name, reader))
    return samples


def first_fit(request: Request, build: Callable[[Request, Split], Found]) -> Found:
    """Return the samples of the first list that fits the data.

    Raises:
        DistillDepthError: there is no list, or none fits.
    """
    if not request.splits:
        raise request.no_list()
    mismatches = []
    for split in request.splits:
        try:
            found = build(request, split)
        except ListMismatch as error:
            mismatches.append(error)
        else:
            found.notes.insert(0, f"list: {split.name}")
            return found
    raise mismatches[0]


def by_list(codec: DepthCodec, truth_path: Callable[[Row], str]) -> Callable[[Request], Found]:
    """Return the reader of a benchmark that is a list of images with one file of ground truth each.

    Args:
        codec: how depth is stored.
        truth_path: gives the path of a row's ground truth where a second column does not name it.
    """

    def depth_path(row: Row) -> str:
        return row.fields[1] if len(row.fields) > 1 else truth_path(row)

    def find_samples(request: Request) -> Found:
        return first_fit(request, lambda request, split: Found(pair(request, split, codec, depth_path)))

    return find_samples


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the values, evenly spread, the first among them.

    >>> spread(range(10), 3)
    [0, 3, 6]
    """
    count = min(count, len(values))
    return [values[index * len(values) // count] for index in range(count)]


def existing(files: tuple[Readable, ...]) -> Readable:
    """Return the first file that exists; the first of all if none does, so that a message names where it belongs."""
    return next((file for file in files if file.exists), files[0]) if len(files) > 1 else files[0]
