"""Labels on disk: what a folder of them says of itself, which shards it has, and one sample as members of a tar file.

    LABELS/
      labels.json                 who labelled what, and how it was cut; written first
      index.json                  every shard with its samples, bytes and checksum; written when all are there
      dav2-large/000000.tar       shards of one teacher, WebDataset samples in the order of the run that they are for
      dav2-large/000000.json      the shard's line of the index; written when the shard is whole
      dav2-large/heldout.tar      held-out images, whole, labelled by every teacher

A sample is `KEY.json`, `KEY.image.jpg` (unless the photographs stay where they are), `KEY.map.png` and, if there are
windows, `KEY.windows.png`, where KEY counts the samples of the teacher from `000000000`. In 16-bit maps 0 is unknown
and everything else `value = stored * scale + offset`; in float16 maps NaN is unknown.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from distilldepth.documents import Record, parse_json
from distilldepth.errors import DistillDepthError
from distilldepth.images.crops import Cut
from distilldepth.images.decode import decode_image, open_image
from distilldepth.words import MAX_SIDE, QUANTITIES

VERSION = 1
LABELS = "labels.json"
INDEX = "index.json"
HELDOUT = "heldout"
"""Name of the shard with the held-out images."""
IMAGES = ("jpeg", "png", "none")
"""How a sample holds its region; `none`: it is cut from the photograph again."""
MAPS = ("png16", "float16")
MAX_WINDOWS = 1024
MAX_SAMPLES = 1 << 40
_STEPS = 65534
"""Values of a 16-bit map between its smallest and its largest; 0 is unknown."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_SHARD = re.compile(r"[0-9]{6,12}\.tar|heldout\.tar")


@dataclass(frozen=True)
class StoredTeacher(Record):
    """One teacher of a set of labels."""

    name: str
    """As it calls itself."""
    spec: str
    """What it was loaded by."""
    weight: float
    folder: str
    """Where its shards are, below the set."""
    samples: int
    """Training samples that it labels."""
    digest: str
    """SHA-256 of all that decides its numbers; see `model_digest`."""
    quantity: str
    """What it predicts itself; its labels are disparity."""
    licence: str
    source: str
    precision: str


@dataclass(frozen=True)
class LabelSet(Record):
    """What `labels.json` says."""

    images: list[str]
    """What `--images` named."""
    fingerprint: str
    """Which images these were: how many, and a digest of their names."""
    training: int
    """Images for training; each is seen once in a view."""
    heldout: int
    views: int
    """How often each training image was cut and labelled."""
    group: int
    """So many crops in a row have one teacher, as the batches of a run have."""
    seed: int
    """Of the order of the images, of the crops, and of the draw of teachers."""
    crops: dict[str, Any]
    """How regions and windows were cut: `CropConfig`."""
    settings: dict[str, Any]
    """The same as a run is told it: keys of its configuration with their values."""
    teachers: list[StoredTeacher]
    image_format: str
    """One of `IMAGES`."""
    map_format: str
    """One of `MAPS`."""
    samples_per_shard: int
    versions: dict[str, str] = field(default_factory=dict)
    """Of distilldepth, torch and others, for the record."""
    version: int = VERSION

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of regions and their maps."""
        height, width = self.crops["size"]
        return height, width

    @property
    def windows(self) -> tuple[int, int, int]:
        """How many windows a region has, and their height and width."""
        height, width = self.crops["patch_size"] or self.crops["size"]
        return self.crops["patches"], height, width

    def for_heldout(self) -> LabelSet:
        """The same for the held-out images: whole, without windows, every one labelled by every teacher."""
        return replace(self, crops={**self.crops, "patches": 0}, image_format="png")

    def shards(self, teacher: StoredTeacher) -> int:
        """How many training shards a teacher has."""
        return -(-teacher.samples // self.samples_per_shard)


@dataclass(frozen=True)
class Shard(Record):
    """One line of the index, in the words that WebDataset's index has."""

    url: str
    """Path below the set, `teacher/000000.tar`."""
    nsamples: int
    filesize: int
    """Bytes."""
    sha256: str


@dataclass
class LabelledRegion:
    """One sample: a region that was cut, and what a teacher says about it and about its windows."""

    ordinal: int
    """Number of the crop in the endless sequence of a run with this seed; decides image, region and windows."""
    name: str
    """Of the photograph."""
    cut: Cut
    image: np.ndarray | None
    """uint8 `(H, W, 3)`; None if the photograph is to be cut again."""
    boxes: np.ndarray
    """float32 `(N, 4)`, edges x0, y0, x1, y1 of the windows in pixels of the region."""
    disparity: np.ndarray
    """float32 `(H, W)`, larger = nearer; NaN = unknown."""
    windows: np.ndarray
    """float32 `(N, h, w)`, likewise."""
    inverse_depth: bool
    """Whether the maps are inverse depth up to a scale, with no unknown shift."""
    teacher: str = ""


def sample_key(number: int) -> str:
    """Return the key of a teacher's sample."""
    return f"{number:09d}"


def shard_name(teacher: StoredTeacher, shard: int | str) -> str:
    """Return the path of a shard below its set; `shard` is a number or `HELDOUT`."""
    return f"{teacher.folder}/{shard if isinstance(shard, str) else f'{shard:06d}'}.tar"


def folder_name(teacher: str) -> str:
    """Return a folder's name for a teacher of any name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", teacher).strip("-._+")[:80] or "teacher"


def encode_sample(sample: LabelledRegion, labels: LabelSet) -> dict[str, bytes]:
    """Return the members of a sample, by what follows the key in their names.

    A 16-bit map is off by at most half of its range / 65534, a float16 one by 2^-12 of it.
    """
    members: dict[str, bytes] = {}
    if sample.image is not None and labels.image_format != "none":
        members["image.jpg" if labels.image_format == "jpeg" else "image.png"] = _encode_image(
            sample.image, labels.image_format
        )
    ending = "png" if labels.map_format == "png16" else "npy"
    maps = [sample.disparity[None], sample.windows] if len(sample.windows) else [sample.disparity[None]]
    scales: list[list[float]] = []
    for name, stack in zip(("map", "windows"), maps, strict=False):
        members[f"{name}.{ending}"], found = _encode_maps(stack, labels.map_format)
        scales += found
    facts = {
        "ordinal": sample.ordinal,
        "name": sample.name,
        "cut": [sample.cut.top, sample.cut.left, sample.cut.height, sample.cut.width, sample.cut.mirrored],
        "boxes": [[float(edge) for edge in box] for box in sample.boxes],
        "scales": scales,
        "inverse_depth": sample.inverse_depth,
        "teacher": sample.teacher,
        "digest": next((teacher.digest for teacher in labels.teachers if teacher.name == sample.teacher), ""),
        "of": [labels.fingerprint, labels.seed],
        "version": labels.versions.get("distilldepth", ""),
        "crc32": {name: zlib.crc32(content) for name, content in members.items()},
    }
    text = json.dumps(facts).encode("utf-8")
    return {"json": text, **members}


def decode_sample(members: Mapping[str, bytes], labels: LabelSet, name: str) -> LabelledRegion:
    """Return what the members of a sample hold.

    Args:
        members: bytes by what follows the key in their names.
        labels: the set it is of.
        name: shard and key, for messages.

    Raises:
        DistillDepthError: a member is missing, damaged, of another size or with another checksum than recorded.
    """
    if "json" not in members:
        raise DistillDepthError(f"{name}: has no .json member")
    facts = parse_json(members["json"], f"{name}.json")
    if not _is_sample(facts, labels.windows[0]):
        raise DistillDepthError(f"{name}.json: does not describe a sample of these labels")
    if facts.get("of") != [labels.fingerprint, labels.seed]:
        raise DistillDepthError(f"{name}.json: is of another set (images or seed differ); copy the right shard")
    count, height, width = labels.windows
    ending = "png" if labels.map_format == "png16" else "npy"
    wanted = [f"map.{ending}", *([f"windows.{ending}"] if count else [])]
    pictured = {"jpeg": "image.jpg", "png": "image.png"}.get(labels.image_format)
    for member in [*wanted, *([pictured] if pictured else [])]:
        if member not in members:
            raise DistillDepthError(f"{name}.{member}: is missing")
        if zlib.crc32(members[member]) != facts["crc32"].get(member):
            raise DistillDepthError(f"{name}.{member}: is not what was written (checksum)")
    scales = facts["scales"]
    disparity = _decode_maps(members[wanted[0]], 1, labels.size, scales[:1], f"{name}.{wanted[0]}")[0]
    windows = np.empty((0, height, width), np.float32)
    if count:
        windows = _decode_maps(members[wanted[1]], count, (height, width), scales[1:], f"{name}.{wanted[1]}")
    image = None
    if pictured:
        with open_image(io.BytesIO(members[pictured]), f"{name}.{pictured}") as picture:
            found = (picture.height, picture.width)  # By its header: nothing of another size is decoded.
        if found != labels.size:
            raise DistillDepthError(f"{name}.{pictured}: is {found}, these labels are {labels.size}")
        image = decode_image(members[pictured], f"{name}.{pictured}")
    return LabelledRegion(
        ordinal=facts["ordinal"],
        name=facts["name"],
        cut=Cut(*facts["cut"]),
        image=image,
        boxes=np.array(facts["boxes"], np.float32).reshape(count, 4),
        disparity=disparity,
        windows=windows,
        inverse_depth=facts["inverse_depth"],
        teacher=facts["teacher"],
    )


def _is_sample(facts: Any, windows: int) -> bool:
    def numbers(values: Any, count: int) -> bool:
        return (
            isinstance(values, list)
            and len(values) == count
            and all(isinstance(value, int | float) and abs(value) < float("inf") for value in values)
        )

    return (
        isinstance(facts, dict)
        and isinstance(facts.get("ordinal"), int)
        and 0 <= facts["ordinal"] < MAX_SAMPLES
        and isinstance(facts.get("name"), str)
        and isinstance(facts.get("teacher"), str)
        and isinstance(facts.get("inverse_depth"), bool)
        and isinstance(facts.get("crc32"), dict)
        and numbers(facts.get("cut"), 5)
        and isinstance(facts.get("boxes"), list)
        and len(facts["boxes"]) == windows
        and all(numbers(box, 4) for box in facts["boxes"])
        and isinstance(facts.get("scales"), list)
        and len(facts["scales"]) == 1 + windows
        and all(numbers(scale, 2) for scale in facts["scales"])
    )


def _encode_image(image: np.ndarray, how: str) -> bytes:
    content = io.BytesIO()
    if how == "jpeg":
        Image.fromarray(image).save(content, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(image).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _encode_maps(maps: np.ndarray, how: str) -> tuple[bytes, list[list[float]]]:
    """The maps one below the other in one file, with the scale and offset of each."""
    count, height, width = maps.shape
    flat = maps.reshape(count, -1).astype(np.float64)
    known = np.isfinite(flat)
    low = np.where(known, flat, np.inf).min(1, initial=np.inf)
    high = np.where(known, flat, -np.inf).max(1, initial=-np.inf)
    low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
    span = np.where(high > low, high - low, 1.0)
    share = np.where(known, (flat - low[:, None]) / span[:, None], np.nan)
    content = io.BytesIO()
    if how == "float16":
        np.save(content, share.astype(np.float16).reshape(count * height, width))
        return content.getvalue(), [[float(s), float(o)] for s, o in zip(span, low, strict=True)]
    scale = span / _STEPS
    stored = np.where(known, np.rint(np.nan_to_num(share) * _STEPS) + 1, 0).astype(np.uint16)
    Image.fromarray(stored.reshape(count * height, width)).save(content, "PNG", compress_level=1)
    return content.getvalue(), [[float(s), float(o - s)] for s, o in zip(scale, low, strict=True)]


def _decode_maps(content: bytes, count: int, size: tuple[int, int], scales: list[list[float]], name: str) -> np.ndarray:
    height, width = size
    stored = _read_stored(content, (count * height, width), name)
    flat = stored.reshape(count, height * width)
    numbers = np.array(scales, np.float64)
    if flat.dtype == np.uint16 and height * width > _STEPS:
        # Fewer values than pixels: each is computed once, to the same bits as below.
        tables = (np.arange(_STEPS + 2) * numbers[:, :1] + numbers[:, 1:]).astype(np.float32)
        tables[:, 0] = np.nan
        return np.stack([table.take(row) for table, row in zip(tables, flat, strict=True)]).reshape(-1, height, width)
    values = flat.astype(np.float64) * numbers[:, :1] + numbers[:, 1:]
    if flat.dtype == np.uint16:
        values[flat == 0] = np.nan
    return values.astype(np.float32).reshape(count, height, width)


def _read_stored(content: bytes, shape: tuple[int, int], name: str) -> np.ndarray:
    try:
        if name.endswith(".npy"):
            file = io.BytesIO(content)
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            if found == shape and dtype == np.float16 and not by_columns:
                return np.frombuffer(content, np.float16, shape[0] * shape[1], file.tell()).reshape(shape)
        else:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                # Nothing is decoded before the header has said the right size.
                found = (picture.height, picture.width)
                if found == shape and picture.mode.startswith("I"):
                    return np.asarray(picture).astype(np.uint16, copy=False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DistillDepthError(f"{name}: is damaged ({error})") from error
    raise DistillDepthError(f"{name}: is no map of {shape[0]} x {shape[1]} values (found {found[0]} x {found[1]})")


def labels_text(labels: LabelSet) -> str:
    """Return what `labels.json` holds."""
    return json.dumps({"format": "distilldepth labels", **labels.to_dict()}, indent=2) + "\n"


def parse_labels(text: bytes | str, name: str) -> LabelSet:
    """Return what a `labels.json` says.

    Raises:
        DistillDepthError: it is not one, of a later version, or says what makes no sense.
    """
    found = parse_json(text, name, remedy="is this a folder that distilldepth label wrote?")
    if not isinstance(found, dict) or found.get("format") != "distilldepth labels":
        raise DistillDepthError(f"{name}: does not describe labels; is this a folder that distilldepth label wrote?")
    if found.get("version") != VERSION:
        raise DistillDepthError(f"{name}: is of version {found.get('version')}, this distilldepth reads {VERSION}")
    values: dict[str, Any] = {key: found.get(key) for key in LabelSet.__dataclass_fields__}
    wrong = next((key for key, is_right in _LABEL_FIELDS.items() if not is_right(values[key])), None)
    if wrong is not None:
        raise DistillDepthError(f"{name}: has no sensible '{wrong}'; the file is damaged, copy it again")
    teachers = [StoredTeacher(**{key: row[key] for key in _TEACHER_FIELDS}) for row in values["teachers"] or ()]
    if len({teacher.folder for teacher in teachers}) != len(teachers):
        raise DistillDepthError(f"{name}: two teachers have one folder; the file is damaged, copy it again")
    return LabelSet(**{**values, "teachers": teachers})


def index_text(shards: list[Shard]) -> str:
    """Return what `index.json` holds; WebDataset's own tools for indexed shards read it too."""
    rows = [shard.to_dict() for shard in shards]
    return json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": rows}, indent=1) + "\n"


def parse_index(text: bytes | str, name: str) -> list[Shard]:
    """Return the shards of an `index.json`.

    Raises:
        DistillDepthError: it is not one.
    """
    found = parse_json(text, name)
    rows = found.get("shardlist") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise DistillDepthError(f"{name}: is no index of shards; distilldepth label --check says what is wrong")
    return [parse_shard(row, name) for row in rows]


def parse_shard(row: Any, name: str) -> Shard:
    """Return one line of an index.

    Raises:
        DistillDepthError: it makes no sense, or names a file outside the set.
    """
    good = (
        isinstance(row, dict)
        and isinstance(row.get("url"), str)
        and _is_shard_url(row["url"])
        and _is_count(row.get("nsamples"))
        and _is_count(row.get("filesize"))
        and isinstance(row.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", row["sha256"]) is not None
    )
    if not good:
        raise DistillDepthError(f"{name}: {json.dumps(row)[:200]} is no line of an index of labels")
    return Shard(row["url"], row["nsamples"], row["filesize"], row["sha256"])


def _is_shard_url(url: str) -> bool:
    folder, slash, file = url.partition("/")
    return bool(slash and _FOLDER.fullmatch(folder) and _SHARD.fullmatch(file))


def _is_count(value: Any, most: int = MAX_SAMPLES) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most


def _is_crops(value: Any) -> bool:
    def is_size(size: Any) -> bool:
        return (
            isinstance(size, list) and len(size) == 2 and all(_is_count(side, MAX_SIDE + 1) and side for side in size)
        )

    return (
        isinstance(value, dict)
        and is_size(value.get("size"))
        and (value.get("patch_size") is None or is_size(value.get("patch_size")))
        and _is_count(value.get("patches"), MAX_WINDOWS + 1)
    )


def _is_teacher(row: Any) -> bool:
    return isinstance(row, dict) and all(is_right(row.get(key)) for key, is_right in _TEACHER_FIELDS.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TEACHER_FIELDS: dict[str, Any] = {
    "name": _is_text,
    "spec": _is_text,
    "weight": lambda value: isinstance(value, int | float) and 0 < value < float("inf"),
    "folder": lambda value: _is_text(value) and _FOLDER.fullmatch(value) is not None,
    "samples": _is_count,
    "digest": _is_text,
    "quantity": lambda value: value in QUANTITIES,
    "licence": _is_text,
    "source": _is_text,
    "precision": _is_text,
}
_LABEL_FIELDS: dict[str, Any] = {
    "images": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "fingerprint": _is_text,
    "training": _is_count,
    "heldout": _is_count,
    "views": _is_count,
    "group": lambda value: _is_count(value) and value > 0,
    "seed": lambda value: _is_count(value, 1 << 63),
    "crops": _is_crops,
    "settings": lambda value: isinstance(value, dict),
    "teachers": lambda value: isinstance(value, list) and 0 < len(value) <= 100 and all(map(_is_teacher, value)),
    "image_format": lambda value: value in IMAGES,
    "map_format": lambda value: value in MAPS,
    "samples_per_shard": lambda value: _is_count(value) and value > 0,
    "versions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
}
