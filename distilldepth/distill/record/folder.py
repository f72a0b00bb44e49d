"""The run folder: new, continued, or somebody else's and not to be touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distilldepth.distill.agreement import AGREEMENT
from distilldepth.distill.config import DistillConfig, load_config
from distilldepth.distill.record.checkpoint import (
    CONTENTS,
    EARLIER_CONTENTS,
    list_checkpoints,
    newest_readable,
    read_state,
    read_tensors,
)
from distilldepth.distill.trackers import CONTENTS as TRACKED
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically
from distilldepth.folders import LOCK, FolderKind
from distilldepth.settings import get_key, keys, to_toml

CONFIG, METRICS = "config.toml", "metrics.jsonl"
RUN = FolderKind(
    "run",
    "distill",
    (
        CONFIG,
        METRICS,
        AGREEMENT,
        "report.html",
        "failed-step-*.safetensors",
        *(f"checkpoints/step-*/{name}" for name in (*CONTENTS, *EARLIER_CONTENTS)),
        "checkpoints/.partial-*/*",
        "samples/heldout-*.png",
        "samples/before/*.npy",
        "samples/after/*.npy",
        "student/model.safetensors",
        "student/config.json",
        "student/README.md",
        *TRACKED,
    ),
)
"""What carries our mark, and all that a run writes."""

_NOT_OF_TRAINING = {
    "workers", "threads", "root", "checkpoint_every", "keep_checkpoints", "log_every", "log", "agreement_every",
    "resume", "overwrite", "offline", "out", "device", "max_skipped_share", "gradient_checkpointing", "teacher_offload",
}  # fmt: skip
"""Keys that a resumed run may change and that do not touch what is learned."""
_MAY_CHANGE = {
    "steps", "optimiser.lr", "optimiser.encoder_lr_share", "optimiser.weight_decay", "optimiser.beta1",
    "optimiser.beta2", "optimiser.schedule", "optimiser.warmup", "optimiser.final_lr_share", "optimiser.clip_norm",
    "loss.anchor", "micro_batch",
}  # fmt: skip
"""Keys that a resumed run may change too, and that are told and recorded; any other makes it another run."""


@dataclass
class Start:
    """Where a run begins."""

    checkpoint: Path | None = None
    """What it goes on from; None to start anew."""
    changes: list[str] = field(default_factory=list)
    """`key: old -> new` of what is trained differently from here on."""


def find_start(config: DistillConfig, folder: Path, tell: Callable[[str], None] = print) -> Start:
    """Return where to begin; nothing is changed yet.

    Args:
        config: of this run.
        folder: the run folder; it exists.
        tell: told of damaged checkpoints that are passed over.

    Raises:
        ValueError: the folder holds something that this run may not replace or cannot continue.
        DistillDepthError: no checkpoint can be read, or the folder holds what is not ours.
    """
    checkpoint = _chosen_checkpoint(config, folder, tell)
    if checkpoint is not None:
        done = read_state(checkpoint).step
        changes = _changes(config, folder)
        if done > config.steps:
            raise ValueError(f"distill: steps is {config.steps}, but {checkpoint} has {done} done; use --steps {done}")
        return Start(checkpoint, changes)
    if not any(item.name != LOCK for item in folder.iterdir()):
        return Start()
    if not (config.overwrite or config.resume):
        raise ValueError(
            f"distill: {folder} is not empty; continue it with --resume auto, replace it with --overwrite, "
            "or choose another --out"
        )
    RUN.check_clearable(folder)
    if not config.overwrite:
        _changes(config, folder)
        if (folder / "student").exists():
            raise ValueError(
                f"distill: {folder} has a student but no checkpoint to continue from; replace it with --overwrite, "
                "or choose another --out"
            )
    return Start()


def _chosen_checkpoint(config: DistillConfig, folder: Path, tell: Callable[[str], None]) -> Path | None:
    if not config.resume:
        return None
    if config.resume == "auto":
        return newest_readable(folder / "checkpoints", tell)
    checkpoint = Path(config.resume)
    read_tensors(checkpoint)
    return checkpoint


def recorded_precisions(config: DistillConfig, folder: Path) -> dict[str, str]:
    """Return what the run to be resumed computes in, by who; empty for a new run or an unreadable checkpoint."""
    if not config.resume:
        return {}
    found = list_checkpoints(folder / "checkpoints") if config.resume == "auto" else [Path(config.resume)]
    for checkpoint in reversed(found):
        try:
            return read_state(checkpoint).precisions
        except DistillDepthError:
            continue  # Told of when the checkpoint is chosen.
    return {}


def start_folder(config: DistillConfig, folder: Path) -> None:
    """Remove what an earlier run left, mark the folder and write the configuration.

    Raises:
        DistillDepthError: something in it is not ours.
    """
    if any(item.name != LOCK for item in folder.iterdir()):
        RUN.clear(folder)
    RUN.mark(folder)
    (folder / "checkpoints").mkdir()
    write_config(config, folder)


def continue_folder(config: DistillConfig, folder: Path) -> None:
    """Mark the folder of a run that goes on, which a readable checkpoint proves ours, and write its configuration."""
    RUN.mark(folder)
    write_config(config, folder)


def write_config(config: DistillConfig, folder: Path) -> None:
    """Write `config.toml`: what the run is, without what was to be done with the folder this time."""
    text = to_toml(config).splitlines(keepends=True)
    kept = "".join(line for line in text if not line.startswith(("resume = ", "overwrite = ")))
    write_atomically(folder / CONFIG, kept)


def _changes(config: DistillConfig, folder: Path) -> list[str]:
    """What a resumed run changes of the run in the folder; ValueError for what would make it another run."""
    saved_file = folder / CONFIG
    if not saved_file.is_file():
        raise ValueError(f"distill: {folder} has no config.toml to continue with; name the run's own folder with --out")
    saved = load_config(file=saved_file, to_run=False)
    changes = []
    for key in keys(DistillConfig):
        old, new = get_key(saved, key), get_key(config, key)
        if old == new or key in _NOT_OF_TRAINING:
            continue
        if key not in _MAY_CHANGE:
            raise ValueError(
                f"distill: {key} was {old!r} when {folder} was started and is {new!r} now; "
                f"resume with --config {saved_file}, or choose another --out"
            )
        changes.append(f"{key}: {_short(old)} -> {_short(new)}")
    return changes


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
