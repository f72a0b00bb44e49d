"""One file per family of networks: what it claims of what lies on disk, how that is loaded, how it is built anew.

What all families share (their names, folders of ours, preprocessing) lies outside, in `models`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distilldepth.errors import DistillDepthError, did_you_mean
from distilldepth.models.base import DepthModel, ModelInfo
from distilldepth.models.bounds import Check
from distilldepth.models.candidate import Candidate, Request
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.registry import FAMILIES


@dataclass(frozen=True)
class Layout:
    """How another program names the tensors of an encoder."""

    names: Mapping[str, str]
    """Name in our state dictionary: name in theirs."""
    left_out: tuple[str, ...]
    """How the names begin of what their files hold besides: a classifier."""


class Family(Protocol):
    """What the file of a family has.

    One whose encoder others publish has `encoder_layouts(model)` too: the list of their layouts.
    """

    ARCHITECTURE: Mapping[str, Check]
    """What the entries of an architecture may be in a file."""

    def build(
        self, architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None
    ) -> DepthModel:
        """Make a randomly initialised network from `DepthModel.architecture`, or from `{"variant": name}`."""
        ...


class Reader(Family, Protocol):
    """What the file of a family has that reads what other programs wrote."""

    def claims(self, candidate: Candidate) -> bool:
        """Whether a file or folder is one of this family; of several that say so the first in `FAMILIES` has it."""
        ...

    def load(self, candidate: Candidate) -> DepthModel:
        """Load what was claimed, or raise DistillDepthError with what is wrong with it."""
        ...


class Namer(Family, Protocol):
    """What the file of a family has that loads texts of its own form."""

    def load_spec(self, spec: str, request: Request) -> DepthModel:
        """Load what a text that begins with the family's `prefix` names, or raise with what is wrong with it."""
        ...


def find_family(key: str) -> Family:
    """Return the family of a name.

    Raises:
        DistillDepthError: no such family.
    """
    if key not in FAMILIES:
        raise DistillDepthError(f"load_model: unknown family '{key}'{did_you_mean(key, sorted(FAMILIES))}")
    module: Any = importlib.import_module(f"{__name__}.{FAMILIES[key].module}")
    return module


def find_namer(spec: str | Path) -> Namer | None:
    """Return the family whose form a text has, rather than being a name or a path; None if it has none's."""
    for key, row in FAMILIES.items():
        if isinstance(spec, str) and row.prefix and spec.startswith(row.prefix):
            namer: Any = find_family(key)
            return namer
    return None


def find_reader(candidate: Candidate) -> Reader | None:
    """Return the family that reads a file or folder: the one that it was said to be, else the first that claims it.

    Folders of ours are no family's, whatever they were said to be; neither may any other be.
    """
    if candidate.path.is_dir() and candidate.is_saved:
        return None
    if candidate.entry is not None and (reader := _claimant(candidate, candidate.entry.family)):
        return reader
    return next((reader for key in FAMILIES if (reader := _claimant(candidate, key))), None)


def _claimant(candidate: Candidate, key: str) -> Reader | None:
    if not FAMILIES[key].reads:
        return None
    reader: Any = find_family(key)
    return reader if reader.claims(candidate) else None
