"""The runs that a table wants: what decides the numbers of each, and where it lies.

A run is known by a digest of all that decides its numbers, and lies in `OUT/runs/DIGEST`. So runs that two tables share
are trained once, and one whose settings change is another run: it is trained anew, and the earlier one stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.ablation.table import BASELINES, DATA, OF_CELL, PHOTOS, PROTOCOLS, Cell, Table
from distilldepth.distill.config import DistillConfig
from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, UsageError, shown
from distilldepth.files import expand_user, file_digest, write_atomically
from distilldepth.images.decode import list_images
from distilldepth.images.sources import SCENES
from distilldepth.models.registry import has_weights, lookup
from distilldepth.scenes import RENDERER_VERSION
from distilldepth.teachers.spec import parse_teachers

KEY, LOG, TRAIN, TRAINED, LIST = "run.json", "log.txt", "train", "trained.json", "photographs.txt"
"""What lies in the folder of a run, besides its scores."""
LABELS = "labels"
"""Where the teachers' labels lie until all is done, beside the folder of the runs."""
_DIGITS = 16


@dataclass(frozen=True)
class Places:
    """What the command line names."""

    out: Path
    """Where the runs lie."""
    images: Path | None = None
    """A folder of photographs without depth."""
    data: Path | None = None
    """A manifest, or a folder of manifests."""


@dataclass(frozen=True)
class Job:
    """One run: a cell with a seed, or a model that is scored as it is."""

    cell: str
    seed: int | None
    """None for a model."""
    key: Mapping[str, Any]
    """All that decides its student, ready for JSON."""
    folder: Path
    score: str
    """Name of the file of its scores, in which that of the data is."""
    protocol: str
    """By which it is scored."""
    data: tuple[str, ...]
    """What it is scored on."""
    after: Path | None = None
    """Folder of the run whose student teaches it; None if no run has to be done before."""
    photographs: tuple[str, ...] = field(default=(), repr=False)
    """Files that it is trained on."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.cell if self.seed is None else f"{self.cell}, seed {self.seed}"

    @property
    def scores(self) -> Path:
        """The file of its scores."""
        return self.folder / self.score

    @property
    def command(self) -> list[str]:
        """The arguments of its process."""
        return [str(self.folder), self.score, self.protocol, *self.data]


def plan(table: Table, places: Places) -> list[Job]:
    """Return the runs of a table, the first seed of every cell first: what is cut short is a table with fewer seeds.

    Raises:
        UsageError: the command line does not name what the table wants.
        DistillDepthError, FileNotFoundError: photographs or data cannot be read.
    """
    photographs = _photographs(places.images) if _wants_photographs(table) else []
    data, score = _data(table, places)
    scored = _Scored(table.protocol, data, score)
    jobs = []
    for baseline in BASELINES if table.protocol == PROTOCOLS[0] else ():
        if all(cell.model != baseline for cell in table.cells):
            jobs.append(_job(Cell(baseline, {}, baseline), None, [], places, scored, {}))
    jobs += [_job(cell, None, [], places, scored, {}) for cell in table.cells if cell.model]
    for seed in range(table.seeds):
        earlier: dict[str, Job] = {}
        for cell in table.cells:
            if not cell.model:
                earlier[cell.name] = _job(cell, seed, photographs, places, scored, earlier)
        jobs += earlier.values()
    return jobs


@dataclass(frozen=True)
class _Scored:
    protocol: str
    data: tuple[str, ...]
    score: str


def _job(
    cell: Cell,
    seed: int | None,
    photographs: Sequence[tuple[str, str]],
    places: Places,
    scored: _Scored,
    earlier: Mapping[str, Job],
) -> Job:
    after = None
    if cell.model:
        key: dict[str, Any] = {"model": cell.model, "weights": _weights([cell.model])}
        used: Sequence[tuple[str, str]] = []
    else:
        settings = dict(cell.settings)
        settings["images"], used = _images(cell, photographs, places.images is not None)
        taught_by = str(settings.get("teachers", DistillConfig().teachers))
        if taught_by.startswith(OF_CELL):
            after = earlier[taught_by.removeprefix(OF_CELL)].folder
            names = []
        else:
            names = [spec.model for spec in parse_teachers(taught_by)]
        if settings.get("initial_weights", "random") != "random":
            names.append(settings.get("student", DistillConfig().student))
        key = {"settings": settings, "seed": seed, "photographs": _digest([name for name, _ in used]) if used else ""}
        key["weights"] = _weights(names)
        key |= _renderer(settings["images"])
        if after is not None:
            key["taught_by"] = after.name
    folder = places.out.absolute() / "runs" / _digest(key)
    photographs_used = tuple(path for _, path in used)
    return Job(cell.name, seed, key, folder, scored.score, scored.protocol, scored.data, after, photographs_used)


def _digest(value: Any) -> str:
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]


@cache
def _bundled_digest(path: Path) -> str:
    return file_digest(path)[:_DIGITS]


def _weights(names: Sequence[str]) -> dict[str, str]:
    """Digests of the bundled weights among the models: a later version may bring others."""
    entries = {name: lookup(name) for name in names}
    return {
        name: _bundled_digest(entry.folder / "model.safetensors")
        for name, entry in sorted(entries.items())
        if entry is not None and has_weights(entry)
    }


def _renderer(specs: Sequence[str]) -> dict[str, int]:
    """The renderer's version, where scenes are among the images or data: a later one makes other scenes."""
    return {"renderer": RENDERER_VERSION} if any(spec.partition(":")[0] in SCENES for spec in specs) else {}


def _wants_photographs(table: Table) -> bool:
    return any(spec.startswith(PHOTOS) for cell in table.cells for spec in cell.settings.get("images", ()))


def _photographs(folder: Path | None) -> list[tuple[str, str]]:
    """The photographs of a folder as (what tells it, path), in an order that has nothing to do with what they show."""
    if folder is None:
        return []
    paths = list_images(folder)
    found = []
    for path in paths:
        name = os.path.relpath(path, folder) if folder.is_dir() else path.name
        found.append((f"{name} {path.stat().st_size}", str(path.absolute())))
    return sorted(found, key=lambda item: hashlib.sha256(item[0].encode("utf-8", "surrogateescape")).digest())


def _images(
    cell: Cell, photographs: Sequence[tuple[str, str]], given: bool
) -> tuple[list[str], Sequence[tuple[str, str]]]:
    """What a cell is trained on with the photographs that are there, and which of them: the first so many."""
    images: list[str] = []
    used: Sequence[tuple[str, str]] = []
    for spec in cell.settings["images"]:
        word, colon, text = spec.partition(":")
        if word != PHOTOS:
            images.append(spec)
        elif given:
            count = int(text) if colon else len(photographs)
            if len(photographs) < count:
                raise UsageError(
                    f"cell {shown(cell.name)} is trained on {count} photographs, and --images has {len(photographs)}; "
                    "name a folder with more"
                )
            images.append(f"{PHOTOS}:{count}")
            used = photographs[:count]
    if not images:
        raise UsageError(
            f"cell {shown(cell.name)} is trained on photographs alone; name a folder of them with --images"
        )
    return images, used


def _data(table: Table, places: Places) -> tuple[tuple[str, ...], str]:
    """What is scored on, and the name of the file of the scores."""
    specs = [spec for spec in table.data if spec != DATA]
    known: dict[str, Any] = {"protocol": table.protocol, "data": list(specs), "manifests": []} | _renderer(specs)
    if DATA in table.data and places.data is not None:
        path = expand_user(places.data)
        manifests = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not manifests or not all(manifest.is_file() for manifest in manifests):
            raise UsageError(f"--data must be a manifest (.jsonl) or a folder of manifests, got {path}")
        known["manifests"] = [[manifest.name, file_digest(manifest)] for manifest in manifests]
        specs.append(str(path.absolute()))
    if not specs:
        raise UsageError(f"the table {table.name} is scored on {DATA} alone; name manifests with --data")
    return tuple(specs), f"score-{_digest(known)}.json"


def prepare(job: Job) -> None:
    """Make the folder of a run, with what its process reads.

    Raises:
        DistillDepthError: the folder says that it is another run.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / KEY
    if not path.exists():
        write_atomically(path, json.dumps(job.key, indent=1) + "\n")
    elif read_json(path) != job.key:
        raise DistillDepthError(f"{path} was changed since its run began; remove {job.folder}")
    if job.photographs:
        # A list may not hold what begins like a comment; these paths are absolute.
        write_atomically(job.folder / LIST, "".join(f"{name}\n" for name in job.photographs))


def changes(table: Table, jobs: Sequence[Job], out: Path) -> list[str]:
    """Return a line for what a cell is told otherwise than when this table was last run, and note how it is run now.

    A cell with other settings is other runs; the earlier ones stay in their folders, and come back with their settings.
    """
    path = out / f"{table.name}.last.json"
    now = {job.cell: _flat(job.key) for job in jobs if job.seed is not None}
    try:
        last = read_json(path) if path.exists() else {}
    except DistillDepthError:
        last = {}  # It serves a message only.
    told: dict[str, list[str]] = {}
    for cell, told_now in now.items():
        before = last.get(cell)
        if not isinstance(before, dict):
            continue
        for key in sorted(told_now.keys() | before.keys()):
            if told_now.get(key) != before.get(key):
                old, new = (shown(value.get(key, "the default")) for value in (before, told_now))
                told.setdefault(f"{key} was {old} and is {new}", []).append(cell)
    write_atomically(path, json.dumps(now, indent=1) + "\n")
    return [f"{'; '.join(cells) if len(cells) < len(now) else 'every cell'}: {what}" for what, cells in told.items()]


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(key["settings"]) | {name: key[name] for name in ("photographs", "renderer") if name in key}
    return flat | {f"weights of {name}": digest for name, digest in key["weights"].items()}
