"""The rows of a result: a scored sample, a dataset, a failure, a doubt; as dataclasses here, as objects in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import TYPE_CHECKING, Any

from distilldepth.documents import Record
from distilldepth.evaluate.protocol import Rules

if TYPE_CHECKING:
    from distilldepth.models.base import ModelInfo

Metrics = dict[str, float | None]
"""Numbers by name; None stands for one that is not finite."""
Intervals = dict[str, list[float]]
"""`[low, high]` by metric."""


@dataclass
class ScoredModel(Record):
    """What a result says of its model; see `ModelInfo`."""

    name: str
    family: str = ""
    quantity: str = ""
    licence: str = ""
    source: str = ""
    notes: list[str] = default(default_factory=list)

    @classmethod
    def of(cls, info: ModelInfo) -> ScoredModel:
        """Return what is said of a model."""
        return cls(info.name, info.family, info.quantity, info.licence, info.source, list(info.notes))


@dataclass
class Metadata(Record):
    """How a result was made, for people. None: it does not say."""

    model: ScoredModel
    device: str | None = None
    precision: str | None = None
    resize_policy: str | None = None
    size: int | None = None
    torch: str | None = None
    command: str | None = None
    seconds: float | None = None
    model_seconds: float | None = None
    resumed_after: int | None = None
    """How many samples were scored by an earlier run into the same folder."""
    points: str | None = None
    """For completion: which pixels of the ground truth were given; None where it is depth that was scored."""
    score: str | None = None
    """For completion: whether the given pixels were scored too."""
    seed: int | None = None
    """For completion: what the pixels were drawn with."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metadata:
        """Return the metadata that `to_dict` was called on."""
        model = ScoredModel(**_known(ScoredModel, values["model"]))
        return cls(**{**_known(cls, values), "model": model})


@dataclass
class Failure(Record):
    """A frame that could not be scored."""

    dataset: str
    name: str
    error: str


@dataclass
class Doubt(Record):
    """What makes the numbers of a dataset doubtful."""

    kind: str
    """One of those in `doubts`."""
    frames: int
    text: str
    """What, where, and what to look at."""


@dataclass
class ScoredSample(Record):
    """The numbers of one frame."""

    dataset: str
    name: str
    metrics: Metrics
    sums: Metrics = default(default_factory=dict)
    """What pixel-pooled metrics are made of."""
    scale: float | None = None
    shift: float | None = None
    error_by_depth: list[list[float]] | None = None
    """From, to (metres), pixels, sum of |d - g| / g and pixels within a factor 1.25, for every bin of depth with
    pixels; in a run with a folder."""
    sparsification: dict[str, list[list[float]]] | None = None
    """For a model with an uncertainty, in a run with a folder: for AbsRel and RMSE the error of the pixels that stay
    where 0, 4, ... 100 % are taken away, first by the uncertainty, then by the error itself."""
    constant: bool = False
    """Whether the predicted map says nothing."""
    doubts: dict[str, str] = default(default_factory=dict)
    """What is wrong with the frame, text by kind."""
    ratio: float | None = None
    """For metres: median predicted by median true."""
    digest: str = ""
    """Of the files of a prediction that was on disk."""
    seconds: float | None = None
    """Only in results of earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; what belongs to some samples only is not in that of others."""
        given = super().to_dict()
        unset = {
            "error_by_depth": None,
            "sparsification": None,
            "constant": False,
            "ratio": None,
            "digest": "",
            "seconds": None,
        }
        return {key: value for key, value in given.items() if key not in unset or value != unset[key]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredSample:
        """Return the sample that `to_dict` was called on."""
        return cls(**_known(cls, values))


@dataclass
class ScoredDataset(Record):
    """The numbers of one dataset."""

    name: str
    kind: str = ""
    domain: str = ""
    field: str = ""
    frames: int = 0
    """How many were scored."""
    expected: int | None = None
    """The benchmark's count, if it has one."""
    failed: int = 0
    metrics: Metrics = default(default_factory=dict)
    """Means over its frames."""
    intervals: Intervals = default(default_factory=dict)
    """95 % bootstrap."""
    pooled: Metrics = default(default_factory=dict)
    """Over all pixels of all frames."""
    rules: Rules | None = None
    """The protocol's for this kind of dataset."""
    doubts: list[Doubt] = default(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON."""
        return {**super().to_dict(), "rules": {} if self.rules is None else self.rules.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoredDataset:
        """Return the dataset that `to_dict` was called on.

        Raises:
            ValueError: unknown rule or value.
        """
        known = _known(cls, values)
        known["rules"] = Rules.from_dict(known["rules"]) if known.get("rules") else None
        known["doubts"] = [Doubt(**_known(Doubt, doubt)) for doubt in known.get("doubts", ())]
        return cls(**known)

    @property
    def headline(self) -> tuple[Metrics, Intervals]:
        """The metrics by the protocol's aggregation, and the intervals that belong to them.

        Intervals are of per-image means, so there are none beside pixel-pooled numbers.
        """
        if self.rules is not None and self.rules.aggregation == "pixel-pooled" and self.pooled:
            return {**self.metrics, **self.pooled}, {}
        return self.metrics, self.intervals


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the class has a field for: a later version may write more."""
    names = {one.name for one in dataclasses.fields(cls)}
    return {key: value for key, value in values.items() if key in names}
