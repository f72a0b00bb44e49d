"""Where a run's numbers go beside its files: TensorBoard in the run folder, and what else accelerate knows."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, first_line, shown
from distilldepth.files import write_atomically

PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
"""The trackers of accelerate, and what is installed for each."""
TENSORBOARD, IDENTITY = "tensorboard", "tracking.json"
"""What a run folder holds of them: the folder of event files, and by what name others know the run."""
CONTENTS = (f"{TENSORBOARD}/events.out.tfevents.*", IDENTITY)


def tracker_names(log: str) -> list[str]:
    """Read `tensorboard,wandb`; an empty text and `none` are no tracker.

    Raises:
        UsageError: there is no such tracker.

    >>> tracker_names("tensorboard, wandb"), tracker_names("none")
    (['tensorboard', 'wandb'], [])
    """
    names = [name for name in dict.fromkeys(part.strip().lower() for part in log.split(",")) if name]
    if names == ["none"]:
        return []
    for name in names:
        if name not in PACKAGES:
            raise UsageError(
                f"distill: log must name trackers of {', '.join(PACKAGES)}, or be none, got {shown(name)}"
                f"{did_you_mean(name, PACKAGES, otherwise='')}"
            )
    return names


def check_trackers(log: str) -> None:
    """Raise DistillDepthError, with the command that installs it, for a tracker that is not there."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in tracker_names(log):
        if name not in there or name not in LOGGER_TYPE_TO_CLASS:
            package = PACKAGES[name] if name in LOGGER_TYPE_TO_CLASS else "--upgrade accelerate"
            raise DistillDepthError(f"distill: --log {name} needs a package: pip install {package}, or leave it out")


class Trackers:
    """The trackers of a run, in its main process; empty elsewhere.

    Those that keep their numbers elsewhere start at once, since they may fail; what lies in the run folder waits for
    `begin`, before which an earlier run's may lie there.

    Args:
        names: see `tracker_names`.
        folder: the run folder.
        start: step from which the run goes on; what a killed run has told TensorBoard beyond it is taken back.
        settings: by key, for those that show them.

    Raises:
        DistillDepthError: one cannot start.
    """

    def __init__(self, names: list[str], folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._folder, self._start, self._trackers = folder, start, []
        self._identity = _identity(folder, start) if "wandb" in names else ""
        self._waiting = [name for name in names if name == TENSORBOARD]
        for name in names:
            made_by: Any = LOGGER_TYPE_TO_CLASS[name]
            if name in self._waiting:
                continue
            options = {"name": folder.name, "id": self._identity, "resume": "allow"} if name == "wandb" else {}
            # They write where they usually do; a run folder holds nothing that is not known to be ours.
            where = ["."] if made_by.requires_logging_directory else []
            try:
                tracker = made_by("distilldepth", *where, **options)
                tracker.start()
                if not start:
                    tracker.store_init_configuration(dict(settings))
            except Exception as error:
                # Each has errors of its own: no login, no network, a setting in the environment.
                raise DistillDepthError(
                    f"distill: --log {name} cannot start ({type(error).__name__}: {first_line(error, 200)})"
                ) from error
            self._trackers.append(tracker)

    def begin(self) -> None:
        """Start what lies in the run folder, which is this run's now."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if self._identity:
            write_atomically(self._folder / IDENTITY, json.dumps({"id": self._identity}) + "\n")
        for name in self._waiting:
            options = {"purge_step": self._start + 1} if self._start else {}
            made_by: Any = LOGGER_TYPE_TO_CLASS[name]
            tracker = made_by(TENSORBOARD, str(self._folder), **options)
            tracker.start()
            self._trackers.append(tracker)
        self._waiting = []

    def tell(self, numbers: Mapping[str, Any], step: int, group: str = "") -> None:
        """Pass on every number of a line: `terms/anchor` for what is in a table, all of it below `group` if given."""
        if self._trackers:
            values = _flat(numbers, f"{group}/" if group else "")
            for tracker in self._trackers:
                tracker.log(values, step=step)

    def finish(self) -> None:
        """Write what is left, and end them."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _identity(folder: Path, start: int) -> str:
    """By what a tracker knows the run again after it was resumed."""
    path = folder / IDENTITY
    if start and path.is_file():
        known = read_json(path).get("id")
        if isinstance(known, str) and known.isalnum() and len(known) <= 64:
            return known
    return secrets.token_hex(8)


def _flat(numbers: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            flat[prefix + name] = value
    return flat
