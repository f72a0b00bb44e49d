"""A table as a file: cells, seeds, data, and the order among the cells that a paper claims."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.distill.config import INITIAL_WEIGHTS, DistillConfig, read_preset
from distilldepth.documents import read_toml
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, shown
from distilldepth.images.sources import SCENES, parse_count
from distilldepth.models.registry import lookup, student_names, teacher_names
from distilldepth.settings import apply, get_key, keys
from distilldepth.teachers.spec import ORACLE

FOLDER = Path(__file__).resolve().parents[1] / "ablations"
"""Where the tables of this project lie."""
PHOTOS, DATA = "PHOTOS", "DATA"
"""Stand in a table for what `--images` and `--data` name; without these options they are left out."""
BASELINES = ("baseline:constant", "baseline:ramp")
"""Scored with every table."""
OF_THE_HARNESS = {
    "seed", "out", "preset", "resume", "overwrite", "offline", "labels", "device", "workers", "threads", "heldout",
    "agreement_every", "checkpoint_every", "keep_checkpoints", "log", "log_every",
}  # fmt: skip
"""Keys that a table may not set: they are the same for every cell, and decide no number but for the seed."""

PROTOCOLS = ("affine-disparity", "metric")
"""By which the cells of a table can be scored; the baselines, which know no metres, with the first alone."""
OF_CELL = "cell:"
"""Before the name of an earlier cell: its student of the same seed is the teacher."""

_TOP = {"title", "source", "claim", "notes", "seconds", "seeds", "data", "protocol", "shared", "cell", "compare"}
_PAIR = {"better", "worse", "paper"}
_MOST = 100
"""Cells, seeds or pairs; far beyond any use."""


@dataclass(frozen=True)
class Cell:
    """One way to come by a student."""

    name: str
    settings: Mapping[str, Any]
    """Of the training, by dotted key: those that are not the default. Empty for a model that is scored as it is."""
    model: str = ""
    """Name of a model that is scored as it is; empty for a cell that is trained."""


@dataclass(frozen=True)
class Pair:
    """Two cells of which a paper says that the first is better."""

    better: str
    worse: str
    paper: str = ""
    """The paper's own numbers for it."""


@dataclass(frozen=True)
class Table:
    """What is compared, and on what."""

    name: str
    title: str
    source: str
    """Paper and table that it mirrors."""
    claim: str
    """What the paper says."""
    notes: str
    """What is done otherwise than there."""
    seconds: float
    """Of one run, training and scoring, on one thread: measured, for the estimate."""
    seeds: int
    data: tuple[str, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    protocol: str = PROTOCOLS[0]
    """By which all cells are scored."""


def table_names() -> list[str]:
    """Return the names of this project's tables."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_table(name: str) -> Path:
    """Return the file that a name of this project's tables or a path stands for.

    Raises:
        UsageError: there is neither.
    """
    if name in table_names():
        return FOLDER / f"{name}.toml"
    if not Path(name).is_file():
        raise UsageError(f"no table {shown(name)}{did_you_mean(name, table_names())}")
    return Path(name)


def read_table(path: Path, *, seeds: int | None = None, steps: int | None = None) -> Table:
    """Read a table and check all of it, so that nothing is found wrong after hours.

    Args:
        path: a TOML file.
        seeds: in place of the table's number of seeds.
        steps: in place of every cell's number of steps.

    Raises:
        DistillDepthError: it cannot be read, or something in it makes no sense; the message names file and cell.
    """
    values = read_toml(path)
    try:
        _check_keys(values, _TOP, "")
        shared = _mapping(values.get("shared", {}), "shared")
        data = tuple(_texts(values.get("data", ["scenes:100", DATA]), "data"))
        for spec in data:
            _check_source(spec, "data", DATA, counted=False)
        cells = tuple(_read_cell(row, shared, steps) for row in _rows(values, "cell"))
        names = [cell.name for cell in cells]
        _check_taught_by(cells)
        protocol = _text(values, "protocol", PROTOCOLS[0])
        if protocol not in PROTOCOLS:
            raise UsageError(f"protocol must be {' or '.join(PROTOCOLS)}, got {shown(protocol)}")
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two cells are called {shown(repeated)}; give each a name of its own")
        if not cells:
            raise UsageError("has no cell; write [[cell]] with a name and its settings")
        return Table(
            name=path.stem,
            title=_text(values, "title"),
            source=_text(values, "source", ""),
            claim=_text(values, "claim", ""),
            notes=_text(values, "notes", ""),
            seconds=_number(values.get("seconds", 0), "seconds", 0, 1e6),
            seeds=int(_number(seeds or values.get("seeds", 5), "seeds", 1, _MOST, whole=True)),
            data=data,
            cells=cells,
            pairs=tuple(_read_pair(row, names) for row in _rows(values, "compare")),
            protocol=protocol,
        )
    except UsageError as error:
        raise DistillDepthError(f"{path}: {error}") from error


def _check_taught_by(cells: Sequence[Cell]) -> None:
    """Raise UsageError for a cell that is taught by one that is not trained before it."""
    for place, cell in enumerate(cells):
        teachers = str(cell.settings.get("teachers", ""))
        earlier = [other.name for other in cells[:place] if not other.model]
        if teachers.startswith(OF_CELL) and teachers.removeprefix(OF_CELL) not in earlier:
            raise UsageError(
                f"cell {shown(cell.name)}: teachers is {shown(teachers)}, and no cell before it that is trained is "
                f"called so{did_you_mean(teachers.removeprefix(OF_CELL), earlier)}"
            )


def _read_cell(row: dict[str, Any], shared: Mapping[str, Any], steps: int | None) -> Cell:
    name = _text(row, "name")
    if name.strip() != name or not name.isprintable() or "|" in name or len(name) > 60:
        raise UsageError(f"cell {shown(name)}: a name must be at most 60 printable characters without a |")
    if "model" in row:
        _check_keys(row, {"name", "model"}, f"cell {shown(name)}: ")
        return Cell(name, {}, _known_model(_text(row, "model"), name))
    if name in BASELINES:
        raise UsageError(f"cell {shown(name)}: that name is taken; the baselines are scored with every table")
    own = {key: value for key, value in row.items() if key != "name"}
    return Cell(name, _resolve(name, shared, own, steps))


def _resolve(name: str, shared: Mapping[str, Any], own: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """All that a cell's training is told, preset included, where it is not the default."""
    config = DistillConfig()
    preset = own.get("preset", shared.get("preset"))
    try:
        if preset is not None:
            apply(config, read_preset(preset), f"preset {preset}", "distill")
        for values, origin in ((shared, "shared"), (own, "the cell")):
            values = {key: value for key, value in values.items() if key != "preset"}
            for key in values:
                if key.replace("-", "_") in OF_THE_HARNESS:
                    raise UsageError(f"{key} in {origin} is no setting of a cell: the harness sets it for all of them")
            apply(config, values, origin, "distill")
        if steps is not None:
            config.steps = steps
        for spec in config.images:
            _check_source(spec, "images", PHOTOS, counted=True)
        for key in ("precision", "teacher_precision"):
            if get_key(config, key) == "auto":
                raise UsageError(f"{key} is auto, which depends on the machine; name one, for example float32")
        if any(item.strip().startswith("python:") for item in config.teachers.split(",")):
            raise UsageError("teachers is Python code; a table names models only")
        taught_by = config.teachers
        if taught_by.startswith(OF_CELL):
            config.teachers = ORACLE  # Which is a name, where a path will stand.
        config.validate()
        config.check_names()
        _check_models(config)
        config.teachers = taught_by
    except UsageError as error:
        raise UsageError(f"cell {shown(name)}: {str(error).removeprefix('distill: ')}") from error
    return settings_of(config)


def _check_models(config: DistillConfig) -> None:
    """Raise UsageError for what is no model that is known by name: neither code nor files stand in a digest."""
    for spec in config.teacher_specs:
        if spec.model != ORACLE and lookup(spec.model) is None:
            raise UsageError(f"teachers has {shown(spec.model)}, and a table names models that are known only")
    if lookup(config.student) is None:
        known = student_names()
        raise UsageError(f"student must be known, got {shown(config.student)}{did_you_mean(config.student, known)}")
    if config.initial_weights not in INITIAL_WEIGHTS:
        words = ", ".join(INITIAL_WEIGHTS)
        raise UsageError(f"initial_weights must be one of {words} in a table, got {shown(config.initial_weights)}")


def _known_model(model: str, name: str) -> str:
    if model not in BASELINES and lookup(model) is None:
        known = [*BASELINES, *teacher_names()]
        raise UsageError(f"cell {shown(name)}: model must be known, got {shown(model)}{did_you_mean(model, known)}")
    return model


def settings_of(config: DistillConfig) -> dict[str, Any]:
    """Return what a training is told, by dotted key, where it is not the default; without what the harness sets.

    Defaults are left out so that a key that a later version adds leaves the runs of earlier ones what they were.
    """
    usual = DistillConfig()
    given = {key: get_key(config, key) for key in keys(DistillConfig) if key not in OF_THE_HARNESS}
    return {key: value for key, value in given.items() if value != get_key(usual, key) or key in ("images", "steps")}


def _read_pair(row: dict[str, Any], names: list[str]) -> Pair:
    _check_keys(row, _PAIR, "compare: ")
    pair = Pair(_text(row, "better"), _text(row, "worse"), _text(row, "paper", ""))
    for name in (pair.better, pair.worse):
        if name not in names:
            raise UsageError(f"compare: no cell is called {shown(name)}{did_you_mean(name, names)}")
    if pair.better == pair.worse:
        raise UsageError(f"compare: {shown(pair.better)} is compared with itself")
    return pair


def _check_source(spec: str, key: str, placeholder: str, *, counted: bool) -> None:
    """Raise unless it is `scenes:COUNT` or stands for what the command line names: a table holds no paths."""
    word, colon, count = spec.partition(":")
    option = f"--{key}"
    known = word in SCENES or (word == placeholder and (counted or not colon))
    if not known or (word in SCENES and not colon) or (colon and parse_count(count) is None):
        own = f"{placeholder}:COUNT" if counted else placeholder
        raise UsageError(f"{key} must be scenes:COUNT or {own}, which stands for {option}, got {shown(spec)}")


def _check_keys(row: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in row:
        if key not in known:
            raise UsageError(f"{where}unknown key {shown(key)}{did_you_mean(key, known)}")


def _rows(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = values.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{key} must be written as [[{key}]], once for each")
    if len(rows) > _MOST:
        raise UsageError(f"has {len(rows)} of [[{key}]], at most {_MOST} are possible")
    return rows


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{key} must be written as [{key}], got {shown(value)}")
    return value


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise UsageError(f"{key} must be a text" + ("" if key in row else ", and is missing"))
    return re.sub(r"\s+", " ", value).strip() if key != "name" else value


def _texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{key} must be a list of texts, got {shown(value)}")
    return value


def _number(value: Any, key: str, least: float, most: float, *, whole: bool = False) -> float:
    right = isinstance(value, int) or (isinstance(value, float) and not whole)
    if not right or isinstance(value, bool) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{key} must be {kind} from {least:g} to {most:g}, got {shown(value)}")
    return value
