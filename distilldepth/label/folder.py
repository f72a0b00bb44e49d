"""The folder of a set of labels: who may write into it, what it says of itself, and its index."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilldepth.documents import read_json, read_text
from distilldepth.errors import DistillDepthError, shown
from distilldepth.files import TEMPORARY, write_atomically
from distilldepth.folders import LOCK, FolderKind, claim_folder
from distilldepth.label.plan import count_samples, shard_urls
from distilldepth.teachers.shards import (
    INDEX,
    LABELS,
    LabelSet,
    Shard,
    index_text,
    labels_text,
    parse_labels,
    parse_shard,
)  # fmt: skip

PAGE = "samples.html"
"""What `--check` shows, unless it is told another name."""
KIND = FolderKind("labels", "label", (LABELS, INDEX, "*/*.tar", "*/*.json", PAGE))


@contextmanager
def claim_labels(folder: Path, which: tuple[int, int], *, overwrite: bool) -> Iterator[None]:
    """Make the folder ours, and the part `which` of it that of this process alone.

    Raises:
        DistillDepthError: another process writes that part, or something else is in the folder.
        ValueError: it is a file.
    """
    index, count = which
    with claim_folder(folder, "label", f"{index}-of-{count}"):
        if overwrite and _is_used(folder):
            KIND.check_clearable(folder)
            with _alone(folder, which):
                KIND.clear(folder)
        if not KIND.is_marked(folder):
            # Looked at in this order, since another process may mark and fill it in the meantime.
            if _is_used(folder) and not KIND.is_marked(folder):
                raise DistillDepthError(
                    f"label: {folder} is not empty and does not carry the mark of a distilldepth labels folder; "
                    "choose another --out"
                )
            KIND.mark(folder)
        try:
            yield
        finally:
            if not (folder / LABELS).exists() and all(_is_minor(item) for item in folder.iterdir()):
                (folder / ".distilldepth.json").unlink(missing_ok=True)


def _is_minor(item: Path) -> bool:
    """What is there before anything is: the mark, one that another process is writing, and locks."""
    return item.name == ".distilldepth.json" or item.name.startswith((LOCK, TEMPORARY))


def _is_used(folder: Path) -> bool:
    return not all(_is_minor(item) for item in folder.iterdir())


@contextmanager
def _alone(folder: Path, which: tuple[int, int]) -> Iterator[None]:
    """Refuse to empty a folder in which another process holds a part."""
    own = f"{LOCK}-{which[0]}-of-{which[1]}"
    for item in folder.glob(f"{LOCK}-*"):
        if item.name != own:
            with claim_folder(folder, "label", item.name.removeprefix(f"{LOCK}-")):
                pass
    yield


def read_labels(folder: Path) -> LabelSet | None:
    """Return what a set says of itself, None if it says nothing yet."""
    path = folder / LABELS
    if not path.exists():
        return None
    return parse_labels(read_text(path), str(path))


def publish(folder: Path, labels: LabelSet) -> LabelSet:
    """Write `labels.json`; if another process was first, return what that one wrote."""
    path = folder / LABELS
    temporary = folder / f".distilldepth-{secrets.token_hex(6)}"
    try:
        with temporary.open("wb") as file:
            file.write(labels_text(labels).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # Unlike a rename it fails where the name is taken.
        except FileExistsError:
            pass
        except OSError:  # A file system without links.
            if not path.exists():
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return read_labels(folder) or labels


def check_same(folder: Path, found: LabelSet, asked: LabelSet) -> None:
    """Raise DistillDepthError, with all that differs, unless a folder holds the labels that are asked for."""
    changes = [
        f"{name}: {_brief(getattr(found, name))} then, {_brief(getattr(asked, name))} now"
        for name in ("fingerprint", "seed", "views", "training", "heldout", "group", "image_format", "map_format")
        if getattr(found, name) != getattr(asked, name)
    ]
    changes += _changed("crops.", found.crops, asked.crops)
    if [teacher.spec for teacher in found.teachers] != [teacher.spec for teacher in asked.teachers]:
        changes.append(f"teachers: {_specs(found)} then, {_specs(asked)} now")
    else:
        for then, now in zip(found.teachers, asked.teachers, strict=True):
            changes += [
                f"{name} of teacher {then.spec}: {_brief(before)} then, {_brief(after)} now"
                for name in ("weight", "digest", "precision", "quantity")
                # What is not known yet is checked when the teacher is loaded.
                if (before := getattr(then, name)) != (after := getattr(now, name)) and after != ""
            ]
    if changes:
        raise DistillDepthError(
            f"label: {folder} holds other labels than this command would write ({'; '.join(changes)}); "
            "choose another --out, or --overwrite"
        )


def _changed(prefix: str, then: dict, now: dict) -> list[str]:
    return [
        f"{prefix}{key}: {_brief(then.get(key))} then, {_brief(now.get(key))} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def _specs(labels: LabelSet) -> str:
    return ",".join(f"{teacher.spec}={teacher.weight:g}" for teacher in labels.teachers)


def _brief(value: object) -> str:
    text = value[:16] if isinstance(value, str) and len(value) == 64 else value
    return text if isinstance(text, str) else shown(text)


def read_record(folder: Path, url: str) -> Shard | None:
    """Return a shard's own line of the index, None if it has none yet.

    Raises:
        DistillDepthError: it is damaged, or that of another shard.
    """
    path = (folder / url).with_suffix(".json")
    if not path.exists():
        return None
    shard = parse_shard(read_json(path), str(path))
    if shard.url != url:
        raise DistillDepthError(f"{path}: speaks of {shard.url}; the file is damaged, copy it again")
    return shard


def complete_index(folder: Path, labels: LabelSet) -> list[str]:
    """Write `index.json` if every shard is there.

    Returns:
        The shards that are missing.
    """
    shards, missing = [], []
    for url in shard_urls(labels):
        shard = read_record(folder, url)
        if shard is None or not (folder / url).is_file() or shard.nsamples != count_samples(url, labels):
            missing.append(url)
        else:
            shards.append(shard)
    text = index_text(shards)
    path = folder / INDEX
    if not missing and not (path.is_file() and path.read_text(encoding="utf-8") == text):
        write_atomically(path, text)
    return missing
