"""Everything a distillation run can be told: one dataclass, its sections, presets, TOML files and `key=value` pairs.

Knows nothing of torch, so that `distilldepth distill --help` and `--print-config` answer at once.
"""

from __future__ import annotations

import copy
import importlib.resources
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilldepth.distill.terms.table import TERMS, LossSection
from distilldepth.documents import parse_toml, read_toml
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, refuse_url, shown
from distilldepth.settings import apply, check, get_key, option, set_key
from distilldepth.teachers.spec import check_known, parse_teachers
from distilldepth.words import MAX_SIDE, PRECISIONS

INITIAL_WEIGHTS = ("random", "pretrained")
_MANY = 1_000_000_000
"""Upper bounds are far beyond any use: they keep a slip of the keyboard from filling memory or overflowing."""


@dataclass
class CropSection:
    """Which windows of a photograph the student and the teachers see."""

    min_crop: int = option(
        644,
        "shorter side of the smallest region, in pixels of the photograph; smaller images give all",
        least=1,
        most=_MANY,
    )
    min_crop_share: float = option(
        0.0, "the region's shorter side is at least this share of the photograph's; 0 = no bound", least=0, most=1
    )
    patches: int = option(
        4, "overlapping windows of each region that the teacher sees alone (local-global); 0 = none", least=0, most=1024
    )
    patch_size: str = option("", "size HxW at which the teacher sees a window; empty = the size of the run")
    patch_window: int = option(560, "side of a window, in pixels of the region", least=1, most=_MANY)
    patch_share: float = option(
        0.0, "side of a window as a share of the region's, instead of patch_window; 0 = unused", least=0, most=1
    )
    flip: bool = option(True, "mirror half of the regions")
    scene_size: str = option(
        "192x256",
        "size HxW at which procedural scenes are rendered before regions are cut; empty = the size of the run",
    )
    max_side: int = option(
        2240,
        "larger photographs are reduced to this many pixels on the longer side while decoding; 0 = never",
        least=0,
        most=_MANY,
    )


@dataclass
class AugmentSection:
    """Changes to the picture that the student sees; the teacher always sees the clean one."""

    colour: float = option(
        0.0,
        "strength of random brightness, contrast, saturation and channel gain; 0 = off, 0.4 = strong",
        least=0,
        most=10,
    )
    noise: float = option(
        0.0, "largest standard deviation of added Gaussian noise, in units of the full range", least=0, most=10
    )
    blur: float = option(0.0, "share of the images that are blurred", least=0, most=1)


@dataclass
class OptimiserSection:
    """The optimiser and its schedule."""

    algorithm: str = option(
        "adamw",
        "adamw, or muon for weight matrices and convolutions with adamw for everything else, at the same lr",
        choices=("adamw", "muon"),
    )
    lr: float = option(
        0.0,
        "learning rate of the decoder and of everything that is not an encoder; 0 = what suits the student: 5e-5 for "
        "trained weights, 2e-3 for random ones of light and topformer students, 3e-4 for other random ones",
        least=0,
        most=1000,
    )
    encoder_lr_share: float = option(
        -1.0,
        "the encoder's learning rate as a share of lr; -1 = what suits the student: 0.1 if trained, 1 if random",
        least=0,
        most=1,
        besides=-1,
    )
    weight_decay: float = option(
        0.01, "decoupled weight decay; not applied to biases and normalisation", least=0, most=1000
    )
    beta1: float = option(0.9, "decay of the first moment of adamw", least=0, below=1)
    beta2: float = option(0.999, "decay of the second moment of adamw", least=0, below=1)
    schedule: str = option(
        "poly", "poly (power 0.9), cosine or constant, after the warm-up", choices=("poly", "cosine", "constant")
    )
    warmup: float = option(0.02, "share of the steps in which the learning rate rises linearly", least=0, most=1)
    final_lr_share: float = option(0.0, "learning rate at the last step as a share of lr", least=0, most=1)
    clip_norm: float = option(1.0, "largest norm of the gradient", least=0, most=1e12)
    ema: float = option(
        0.0,
        "decay of the moving average of the weights that becomes the student; 0 = the last weights",
        least=0,
        below=1,
    )


@dataclass
class DistillConfig:
    """One distillation run."""

    teachers: str = option(
        "dav2,genpercept", "teachers: name[:variant][=weight] or name@path, comma-separated; one is drawn per step"
    )
    student: str = option("dav2-small", "student: a name of `list students`, a run folder, a checkpoint or a hub id")
    initial_weights: str = option(
        "random",
        f"what a student given by name starts from: {', '.join(INITIAL_WEIGHTS)}; a path or hub id has its own",
        choices=INITIAL_WEIGHTS,
    )
    images: list[str] = option(
        ["scenes"], "folder, glob, list file, tar shards, scenes or scenes:COUNT; may be given several times"
    )
    heldout: int = option(
        16,
        "images kept out of training on which agreement with the teachers is measured before and after",
        least=0,
        most=1_000_000,
    )
    out: str = option("runs/distill", "run folder")
    preset: str = option("", "values to start from; see `list presets`")
    steps: int = option(20_000, "optimiser steps", least=1, most=_MANY)
    batch_size: int = option(4, "images per step and process", least=1, most=65_536)
    grad_accumulation: int = option(1, "batches per optimiser step", least=1, most=65_536)
    size: str = option("560", "size at which the student sees a region: SIDE or HxW, in pixels")
    device: str = option("auto", "auto, cpu, cuda, cuda:INDEX or mps")
    precision: str = option(
        "auto",
        "auto, float32, bfloat16 or float16; auto = bfloat16 where this machine is faster with it, else float32",
        choices=PRECISIONS,
    )
    teacher_precision: str = option(
        "auto", "the same for the teachers; bfloat16 rounds pseudo-labels to about three digits", choices=PRECISIONS
    )
    compile: bool = option(
        False,
        "run the student through torch.compile: a slow start, for some students faster steps; needs a compiler on CPUs",
    )
    seed: int = option(0, "seed of initial weights, order, crops and draws", least=0)
    workers: int = option(2, "processes that decode or render images; 0 = in the main process", least=0, most=1024)
    threads: int = option(0, "CPU threads of the training process; 0 = all", least=0, most=4096)
    checkpoint_every: int = option(500, "steps between checkpoints", least=1, most=_MANY)
    keep_checkpoints: int = option(2, "checkpoints kept", least=1, most=_MANY)
    log_every: int = option(20, "steps between lines of metrics.jsonl", least=1, most=_MANY)
    agreement_every: int = option(
        250,
        "steps between measurements of the agreement with each teacher on held-out images; 0 = none in between",
        least=0,
        most=_MANY,
    )
    max_skipped_share: float = option(
        0.05, "the run stops when more than this share of the samples is non-finite", least=0, most=1
    )
    resume: str = option("", "auto continues the run in the run folder if there is one; or a checkpoint folder of it")
    overwrite: bool = option(False, "delete what the run folder holds and start again")
    offline: bool = option(False, "never use the network")
    crop: CropSection = field(default_factory=CropSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    loss: LossSection = field(default_factory=LossSection)
    optimiser: OptimiserSection = field(default_factory=OptimiserSection)

    def __post_init__(self) -> None:
        given: object = self.images
        if isinstance(given, str):  # As a caller may who has one alone.
            self.images = [given]

    @property
    def height_width(self) -> tuple[int, int]:
        """`size` as (height, width)."""
        return parse_size(self.size, "size")

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """`crop.patch_size` as (height, width)."""
        return parse_size(self.crop.patch_size or self.size, "crop.patch_size")

    @property
    def scene_height_width(self) -> tuple[int, int]:
        """`crop.scene_size` as (height, width)."""
        return parse_size(self.crop.scene_size or self.size, "crop.scene_size")

    def check_names(self) -> None:
        """Raise UsageError, with the nearest name, for a teacher or student that is neither known nor a path."""
        from distilldepth.images.decode import path_exists
        from distilldepth.models import registry

        check_known(parse_teachers(self.teachers))
        name = self.student
        for path in (name, self.out, self.resume, *self.images):
            refuse_url(path)
        if re.fullmatch(r"[\w:-]+", name) and registry.lookup(name) is None and not path_exists(Path(name)):
            hint = registry.what_else(name, registry.student_names(), "students")
            raise UsageError(f"distill: unknown student {shown(name)}{hint}")

    def validate(self) -> DistillConfig:
        """Return self, or raise UsageError naming the first field whose value makes no sense."""
        check(self, "distill")
        if self.seed >= 1 << 63:
            raise UsageError(f"distill: seed must be below 2^63, got {shown(self.seed)}")
        for key, what in (("out", "a folder"), ("student", "a student"), ("device", "a device")):
            if not get_key(self, key).strip():
                raise UsageError(f"distill: {key} must name {what}, got an empty text")
        parse_teachers(self.teachers)
        teaching = [name for name, row in TERMS.items() if row.teaches]
        if not any(getattr(self.loss, name) for name in teaching):
            *others, last = (f"loss.{name}" for name in teaching)
            raise UsageError(f"distill: {', '.join(others)} and {last} are all 0; nothing to learn from")
        if not self.images or not all(image.strip() for image in self.images):
            raise UsageError(
                "distill: images must name at least one source, and no empty one; give a folder, or `scenes`"
            )
        _ = self.height_width, self.patch_height_width, self.scene_height_width
        return self


def parse_size(text: str, name: str) -> tuple[int, int]:
    """Read `SIDE` or `HxW`.

    >>> parse_size("96x128", "size")
    (96, 128)
    """
    parts = str(text).lower().split("x")
    if not (1 <= len(parts) <= 2 and all(part.strip().isdecimal() for part in parts)):
        raise UsageError(
            f"distill: {name} must be SIDE or HxW in pixels, got {shown(text)}; for example 560 or 192x256"
        )
    # Cut, because Python refuses to read thousands of digits.
    height, width = (int(part.strip().lstrip("0")[:9] or 0) for part in (parts[0], parts[-1]))
    if min(height, width) < 32:
        raise UsageError(f"distill: {name} must be at least 32 pixels on each side, got {shown(text)}")
    if max(height, width) > MAX_SIDE:
        raise UsageError(f"distill: {name} must be at most {MAX_SIDE} pixels on each side, got {shown(text)}")
    return height, width


def preset_names() -> list[str]:
    """Return the names of the presets that are shipped."""
    folder = importlib.resources.files(__package__) / "presets"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the values of a preset as nested dictionaries.

    Raises:
        UsageError: there is no such preset.
    """
    if not isinstance(name, str):
        raise UsageError(f"distill: preset must be text, got {shown(name)}; there are {', '.join(preset_names())}")
    if name not in preset_names():
        raise UsageError(f"distill: unknown preset {shown(name)}{did_you_mean(name, preset_names())}")
    path = importlib.resources.files(__package__) / "presets" / f"{name}.toml"
    return parse_toml(path.read_bytes(), f"preset {name}")


def load_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    settings: typing.Sequence[str] = (),
    flags: dict[str, Any] | None = None,
) -> DistillConfig:
    """Merge preset, file, `key=value` settings and flags, each overriding the one before.

    Args:
        preset: name of a preset; None takes the one that the file names, if any.
        file: TOML file, for example the `config.toml` of an earlier run.
        settings: texts `key=value` with dotted keys.
        flags: values by key; None values are not set.

    Returns:
        A configuration whose values make sense together.

    Raises:
        UsageError: unknown key, wrong type, or a value that makes no sense, in what was typed.
        DistillDepthError: the same in the file, or the file cannot be read.
        FileNotFoundError: the file does not exist.
    """
    config = DistillConfig()
    values: dict[str, Any] = {}
    if file is not None:
        refuse_url(file)
        if not Path(file).exists():
            raise FileNotFoundError(f"distill: config file not found: {file}")
        values = read_toml(Path(file), remedy="it must be a TOML file as --print-config shows it")
    if preset:
        apply(config, read_preset(preset), f"preset {preset}", "distill")
    if file is not None:
        with blamed_on(file):
            if not preset and (preset := values.get("preset") or ""):
                apply(config, read_preset(preset), f"preset {preset}", "distill")
            apply(config, values, str(file), "distill")
    config.preset = preset or ""
    of_file = copy.deepcopy(config)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"distill: --set needs key=value, got {shown(text)}")
        if key.strip() == "preset":
            raise UsageError(f"distill: a preset is chosen with --preset {value.strip()}, not with --set")
        set_key(config, key.strip(), value.strip(), "--set", "distill")
    for key, value in (flags or {}).items():
        if value is not None:
            set_key(config, key, value, f"--{key.replace('_', '-')}", "distill")
    try:
        return config.validate()
    except UsageError as error:
        if file is not None and _complaint(of_file) == str(error):
            with blamed_on(file):
                raise
        raise


@contextmanager
def blamed_on(file: str | Path) -> Iterator[None]:
    """Turn a UsageError into a DistillDepthError: what a file says wrongly is no wrong usage of the command."""
    try:
        yield
    except UsageError as error:
        where = "" if str(file) in str(error) else f" (in {file})"
        raise DistillDepthError(f"{error}{where}") from error


def _complaint(config: DistillConfig) -> str:
    try:
        config.validate()
    except UsageError as error:
        return str(error)
    return ""
