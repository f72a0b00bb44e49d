"""What may be a model: a file or folder, what it says, and what was said of it. Families are asked about these."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilldepth.errors import UsageError
from distilldepth.models.files import read_weights
from distilldepth.models.pretrained import read_json
from distilldepth.models.registry import ALIASES, Entry
from distilldepth.models.state_dict import Found, Known, find_state

FORMAT = "distilldepth"
"""What `config.json` says of a folder that `save_model` wrote."""


@dataclass(frozen=True)
class Request:
    """What was asked for besides the model."""

    offline: bool
    base: str | None
    quantity: str | None
    """What a file's numbers are, where that was told."""
    max_depth: float | None
    sampling: tuple[int, int] | None = None
    """Steps and members, where they were told."""

    def refuse_max_depth(self, what: object) -> None:
        """Raise UsageError if a unit was told for something that says its own."""
        if self.quantity is not None:
            raise UsageError(
                f"load_model: {what} is no Depth Anything or NeWCRFs file of weights and says itself what its numbers "
                "are; leave max_depth out"
            )


@dataclass(frozen=True)
class Candidate:
    """A file or folder; read no further than it is asked."""

    path: Path
    entry: Entry | None
    """What the user said it is, if anything."""
    name: str
    """What the model will be called."""
    request: Request
    _found: dict[Known, Found | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def pinned(self) -> Entry | None:
        """The entry, if its name was given in full: a bare alias (dav2@file) says the family, not the size."""
        return None if self.name in ALIASES else self.entry

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """What the `config.json` of a folder says; empty if there is none.

        Raises:
            DistillDepthError: unreadable.
        """
        file = self.path / "config.json"
        return read_json(file) if file.is_file() else {}

    @property
    def is_saved(self) -> bool:
        """Whether `save_model` wrote this folder."""
        return self.config.get("format") == FORMAT

    @property
    def model_type(self) -> object:
        """What transformers calls the network of a folder; None if it says nothing."""
        return None if self.is_saved else self.config.get("model_type")

    @functools.cached_property
    def weights(self) -> tuple[Any, dict[str, str]]:
        """Content and metadata of a file; see `read_weights`."""
        return read_weights(self.path)

    def find(self, known: Known) -> Found | None:
        """Return the state dictionary in a file that `known` takes for its network's, or None; see `find_state`."""
        if known not in self._found:
            self._found[known] = find_state(self.weights[0], self.path, known)
        return self._found[known]

    def refuse_max_depth(self) -> None:
        """Raise UsageError if a unit was told for something that says its own."""
        self.request.refuse_max_depth(self.path)
