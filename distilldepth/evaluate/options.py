"""What an evaluation can be asked for besides a model and data, for each thing that is done with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.datasets.kitti_official import TEST_COUNT
from distilldepth.evaluate.protocol import Protocol
from distilldepth.evaluate.words import SCORED, TASKS
from distilldepth.inference.estimator import InferenceOptions
from distilldepth.sparse.patterns import Points

Start = Callable[[int], Callable[[int], None]]
"""Called with the number of frames when the work begins; what it returns is told how many more are done."""


@dataclass(frozen=True)
class EvaluateOptions(InferenceOptions):
    """What `evaluate` can be asked for; `InferenceOptions` says how the model is run."""

    root: str | Path | None = None
    """Folder or tar file of the benchmarks, or folder that the paths in manifests are relative to."""
    split: str | Path | None = None
    """File that lists a benchmark's samples."""
    limit: int | None = None
    """First so many frames of each dataset."""
    truth_scale: float | None = None
    """Stored units per metre of ground truth in RGB-D sets whose files do not say it; see `open_data`."""
    protocol: str | Protocol | None = None
    """A protocol or its name; None for the one that fits the model's quantity."""
    overrides: Mapping[str, Any] | None = None
    """Rules of the protocol to replace, for example `{"align": "median"}`; its name then says so."""
    task: str = TASKS[0]
    """`depth` from the photograph alone, or `completion` of points of the ground truth."""
    points: str | int | Points | None = None
    """For completion: which pixels of the ground truth are given, `500`, `lines:64` or `keypoints`; see
    `distilldepth.sparse.patterns.parse_points`."""
    score: str = SCORED[0]
    """For completion: `unseen` scores the pixels that were not given, `all` those too."""
    seed: int = 0
    """For completion: with a frame's name it decides which of its pixels are given, whatever the model."""
    offline: bool = False
    """Never touch the network for the model."""
    out: str | Path | None = None
    """Folder for the results in every format, with pictures of the worst and best cases and a line per sample as soon
    as it is scored; None writes nothing."""
    resume: str = ""
    """`auto` continues in `out` after the samples that are scored already; empty starts anew."""
    overwrite: bool = False
    """Replace an evaluation that is in `out`."""
    save_predictions: str | None = None
    """Write every map below `out`: `npy`, `png16` or `kitti`; None writes none."""
    command: str = ""
    """Written into the metadata."""
    start: Start | None = None


@dataclass(frozen=True)
class AnalysisOptions(InferenceOptions):
    """What `local_global` can be asked for."""

    shares: Sequence[float] = (0.5, 0.25, 0.125)
    """Sides of the regions, each a share of the map's between 0 and 1."""
    crops: bool = True
    """Whether the model is run on crops too; with small regions most of the time goes there."""
    root: str | Path | None = None
    """As in `EvaluateOptions`, like the rest."""
    limit: int | None = None
    offline: bool = False
    start: Start | None = None


@dataclass(frozen=True)
class SubmissionOptions(InferenceOptions):
    """What `write_kitti_submission` can be asked for."""

    overwrite: bool = False
    """Replace maps that are there."""
    expected: int = TEST_COUNT
    """How many images the server wants."""
    start: Start | None = None
