"""Everything a distillation run can be told: one dataclass, its sections, presets, TOML files and `key=value` pairs.

Knows nothing of torch, so that `distilldepth distill --help` and `--print-config` answer at once.
"""

from __future__ import annotations

import copy
import importlib.resources
import re
import shlex
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilldepth.distill.terms.table import TERMS, LossSection, level_names
from distilldepth.distill.trackers import PACKAGES, tracker_names
from distilldepth.documents import parse_toml, read_toml
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, refuse_url, shown
from distilldepth.settings import apply, check, get_key, option, set_key
from distilldepth.teachers.spec import ORACLE, TeacherSpec, check_known, parse_teachers
from distilldepth.words import MAX_SIDE, PRECISIONS

INITIAL_WEIGHTS = ("random", "pretrained", "encoder")
"""What `initial_weights` may be besides a file."""
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
    flip: bool = option(True, "mirror half of the regions; a mirrored stereo pair has its views exchanged")
    rotate_deg: float = option(
        0.0, "photographs, or both views of a pair, are turned by at most so many degrees", least=0, most=45
    )
    kb_crop: bool = option(
        False,
        "cut 352 x 1216 pixels at the bottom, in the middle, out of larger photographs first, as with KITTI",
    )
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
class PointsSection:
    """What a student that completes sparse depth is given besides the picture."""

    draw: bool = option(
        False, "draw sparse points from the true depth: random, lines or keypoints, with holes, noise and outliers"
    )
    guides: str = option(
        "",
        "models whose map is aligned to the points, for the student to correct: name[=weight], comma-separated, one is "
        "drawn per batch; empty = the student's own",
    )
    jitter: float = option(
        0.3,
        "share of the maps that are blurred or bent, so that the student does not trust them blindly",
        least=0,
        most=1,
    )


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
        "trained weights, 2e-3 for random ones of light, topformer and efficientnet-lite students, 3e-4 for other "
        "random ones; a random decoder on a trained encoder counts as random",
        least=0,
        most=1000,
    )
    encoder_lr_share: float = option(
        -1.0,
        "the encoder's learning rate as a share of lr; -1 = what suits the student: 0.1 if the encoder is trained, 1 "
        "if random",
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
        "poly",
        "after the warm-up poly (power 0.9), cosine or constant; or one-cycle: torch's OneCycleLR, which rises from a "
        "25th of lr over the warm-up and falls after it, both along a cosine, beta1 going from 0.95 to 0.85 and back",
        choices=("poly", "cosine", "constant", "one-cycle"),
    )
    warmup: float = option(
        0.02, "share of the steps in which the learning rate rises, linearly for all but one-cycle", least=0, most=1
    )
    final_lr_share: float = option(0.0, "learning rate at the last step as a share of lr", least=0, most=1)
    clip_norm: float = option(1.0, "largest norm of the gradient", least=0, most=1e12)
    freeze_batch_norm: str = option(
        "auto",
        "on = batch normalisation in the encoder keeps the running statistics that it came with and normalises by "
        "them in training too, while its scale and shift learn on; auto = on for a trained encoder under a random "
        "decoder, else off",
        choices=("auto", "on", "off"),
    )
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
        f"what a student given by name starts from: {', '.join(INITIAL_WEIGHTS)}, or FILE; a path or hub id has its "
        "own. encoder = the trained weights of its encoder, by name or path, and random ones for the rest; FILE = the "
        "same with the encoder's weights from a .safetensors or .pth",
    )
    images: list[str] = option(
        ["scenes"],
        "folder, glob, list file, tar shards, scenes, scenes:COUNT, stereo-scenes or stereo-scenes:COUNT; may be given "
        "several times",
    )
    data: list[str] = option(
        [],
        "images with true depth to train on, instead of --images or besides: kitti-eigen, kitti-official, "
        "driving-stereo, or a manifest (.jsonl), with right views if it has them; may be given several times",
    )
    root: str = option("", "folder that holds the files of --data")
    split: str = option("train", "which part of a benchmark of --data: train, or a list of its images")
    labels: list[str] = option(
        [],
        "labels that distilldepth label wrote, instead of teachers in memory: PATH[=WEIGHT], http(s)://... or "
        "pipe:COMMAND PREFIX; may be given several times, and besides --teachers that label --images",
    )
    heldout: int = option(
        16,
        "images kept out of training on which agreement with the teachers is measured before and after",
        least=0,
        most=1_000_000,
    )
    out: str = option("runs/distill", "run folder")
    preset: str = option("", "values to start from; see `list presets`")
    two_views: bool = option(
        False,
        "the student sees both views of stereo pairs: its first layer is doubled, and begins as half of what it was "
        "for each view (newcrfs)",
    )
    uncertainty: bool = option(False, "the student says how unsure it is, too: see predict --uncertainty")
    steps: int = option(20_000, "optimiser steps", least=1, most=_MANY)
    batch_size: int = option(4, "images per step and process", least=1, most=65_536)
    grad_accumulation: int = option(1, "batches per optimiser step", least=1, most=65_536)
    micro_batch: int = option(
        0,
        "images of a batch that go through the student at once, the step being that of the whole batch; 0 = all of "
        "them. Halved where memory runs out, with a warning. Fewer than all cost a second forward pass",
        least=0,
        most=65_536,
    )
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
    compile_teachers: bool = option(False, "the same for the teachers")
    gradient_checkpointing: bool = option(
        False,
        "keep only what passes between the student's blocks, and compute their insides again in the backward pass: "
        "less memory, the same weights, about a third more time for the student",
    )
    teacher_offload: bool = option(
        False, "teachers rest in the host's memory; the one that is drawn comes to the device while it labels"
    )
    seed: int = option(0, "seed of initial weights, order, crops and draws", least=0)
    workers: int = option(2, "processes that decode or render images; 0 = in the main process", least=0, most=1024)
    threads: int = option(0, "CPU threads of the training process; 0 = all", least=0, most=4096)
    checkpoint_every: int = option(500, "steps between checkpoints", least=1, most=_MANY)
    keep_checkpoints: int = option(2, "checkpoints kept", least=1, most=_MANY)
    log_every: int = option(20, "steps between lines of metrics.jsonl", least=1, most=_MANY)
    log: str = option(
        "tensorboard",
        f"where every number of metrics.jsonl goes too: {', '.join(PACKAGES)}, several with commas; none = nowhere",
    )
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
    points: PointsSection = field(default_factory=PointsSection)
    loss: LossSection = field(default_factory=LossSection)
    optimiser: OptimiserSection = field(default_factory=OptimiserSection)

    def __post_init__(self) -> None:
        for key in ("images", "data", "labels"):  # As a caller may give who has one alone.
            if isinstance(given := getattr(self, key), str):
                setattr(self, key, [given])

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

    @property
    def teacher_specs(self) -> list[TeacherSpec]:
        """The teachers that are loaded into memory; none where `labels` alone teach."""
        return parse_teachers(self.teachers) if self.teachers.strip() or not self.labels else []

    def check_names(self) -> None:
        """Raise UsageError, with the nearest name, for a teacher or student that is neither known nor a path."""
        from distilldepth.images.decode import path_exists
        from distilldepth.models import registry

        check_known(self.teacher_specs)
        if self.points.guides.strip():
            check_known(parse_teachers(self.points.guides))
        name = self.student
        for path in (name, self.out, self.resume, self.initial_weights, self.root, *self.images, *self.data):
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
        _check_initial_weights(self.initial_weights)
        self._check_points()
        tracker_names(self.log)
        level_names(self.loss.feature_levels)
        live = self.teacher_specs
        if self.labels:
            from distilldepth.teachers.location import parse_location

            for text in self.labels:
                parse_location(text)
        teaching = [name for name, row in TERMS.items() if row.teaches]
        if not any(getattr(self.loss, name) for name in teaching):
            *others, last = (f"loss.{name}" for name in teaching)
            raise UsageError(f"distill: {', '.join(others)} and {last} are all 0; nothing to learn from")
        if live and self.labels and not (self.images or self.data):
            raise UsageError(
                f"distill: teachers in memory ({self.teachers}) besides labels need --images; leave --teachers out to "
                "train from the labels alone"
            )
        if not (self.images or self.data or self.labels) or not all(map(str.strip, (*self.images, *self.data))):
            give = "a folder, or `scenes`"
            if self.two_views or self.loss.silog:  # Which look at right views and true depth.
                give = "--data with --root, a manifest, or --images stereo-scenes"
            raise UsageError(f"distill: images must name at least one source, and no empty one; give {give}")
        if 0 < self.loss.farthest <= self.loss.nearest:
            raise UsageError(
                f"distill: loss.farthest must be more than loss.nearest, got {self.loss.farthest:g} and "
                f"{self.loss.nearest:g} m"
            )
        _ = self.height_width, self.patch_height_width, self.scene_height_width
        return self

    def _check_points(self) -> None:
        """Raise UsageError where points are drawn and what else is asked for cannot be, or the other way round."""
        if not self.points.draw:
            if self.loss.metric_log:
                raise UsageError(
                    "distill: loss.metric_log is for students that complete points; set points.draw, or use "
                    "--preset completion"
                )
            return
        if self.teachers.strip() != ORACLE or self.labels:
            raise UsageError(
                "distill: points.draw needs true depth, which teacher oracle alone has: --teachers oracle --images "
                f"scenes, without --labels; got teachers {shown(self.teachers)}"
            )
        others = [name for name in TERMS if name != "metric_log" and getattr(self.loss, name)]
        if not self.loss.metric_log:
            raise UsageError("distill: points.draw is for loss.metric_log, which is 0; nothing to learn from")
        if others:
            raise UsageError(f"distill: points.draw is for loss.metric_log alone; set loss.{others[0]}=0")
        for spec in parse_teachers(self.points.guides) if self.points.guides.strip() else []:
            if spec.model == ORACLE:
                raise UsageError("distill: points.guides must be models, and oracle is none")


def _check_initial_weights(text: str) -> None:
    """Raise UsageError for what is no word that is known and does not look like a file."""
    from distilldepth.images.decode import path_exists

    if text not in INITIAL_WEIGHTS and not re.search(r"[./\\]", text) and not (text and path_exists(Path(text))):
        raise UsageError(
            f"distill: initial_weights must be one of {', '.join(INITIAL_WEIGHTS)}, or a file of encoder weights, got "
            f"{shown(text)}{did_you_mean(text, INITIAL_WEIGHTS, otherwise='')}"
        )


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
    to_run: bool = True,
) -> DistillConfig:
    """Merge preset, file, `key=value` settings and flags, each overriding the one before.

    With `labels`, how these were cut comes before all of them, and teachers and images count only if file, settings or
    flags name them.

    Args:
        preset: name of a preset; None takes the one that the file names, if any.
        file: TOML file, for example the `config.toml` of an earlier run.
        settings: texts `key=value` with dotted keys.
        flags: values by key; None values are not set.
        to_run: whether a run is to follow: labels are opened then to see how they were cut, and the file may name
            nothing that runs code. Without, it is what a run said of itself.

    Returns:
        A configuration whose values make sense together.

    Raises:
        UsageError: unknown key, wrong type, or a value that makes no sense, in what was typed.
        DistillDepthError: the same in the file, or the file cannot be read.
        FileNotFoundError: the file does not exist.
    """
    values: dict[str, Any] = {}
    if file is not None:
        refuse_url(file)
        if not Path(file).exists():
            raise FileNotFoundError(f"distill: config file not found: {file}")
        values = read_toml(Path(file), remedy="it must be a TOML file as --print-config shows it")
    typed = [_split_setting(text) for text in settings]
    typed += [(key, value, f"--{key.replace('_', '-')}") for key, value in (flags or {}).items() if value is not None]
    config, of_file = _merge(DistillConfig(), preset, file, values, typed)
    named = {key.replace("-", "_") for key, *_ in typed}
    if file is not None and to_run and "teachers" not in named:
        _refuse_callables(config.teachers, file)
    if config.labels and to_run:
        if "labels" not in named:
            _refuse_commands(config.labels, file)
        config, of_file = _merge(_as_labelled(config.labels), preset, file, values, typed)
        for key, nothing in (("teachers", ""), ("images", [])):
            if key not in named | values.keys():
                setattr(config, key, nothing)
    if config.data and not {"images"} & (named | values.keys()):
        config.images = []
    try:
        return config.validate()
    except UsageError as error:
        if file is not None and _complaint(of_file) == str(error):
            with blamed_on(file):
                raise
        raise


def _merge(
    config: DistillConfig,
    preset: str | None,
    file: str | Path | None,
    values: dict[str, Any],
    typed: list[tuple[str, Any, str]],
) -> tuple[DistillConfig, DistillConfig]:
    """The configuration with all that it is told, and what it is without what was typed."""
    if preset:
        apply(config, read_preset(preset), f"preset {preset}", "distill")
    if file is not None:
        with blamed_on(file):
            if not preset and (preset := values.get("preset") or ""):
                apply(config, read_preset(preset), f"preset {preset}", "distill")
            apply(config, values, str(file), "distill")
    config.preset = preset or ""
    of_file = copy.deepcopy(config)
    for key, value, origin in typed:
        set_key(config, key, value, origin, "distill")
    return config, of_file


def _split_setting(text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"distill: --set needs key=value, got {shown(text)}")
    if key.strip() == "student.uncertainty":
        key = "uncertainty"
    if key.strip() == "preset":
        raise UsageError(f"distill: a preset is chosen with --preset {value.strip()}, not with --set")
    return key.strip(), value.strip(), "--set"


def _refuse_commands(labels: list[str], file: str | Path | None) -> None:
    """A file that somebody else wrote runs no command."""
    for text in labels:
        if text.strip().startswith("pipe:"):
            raise UsageError(
                f"distill: {file} names labels that a command prints ({shown(text)}); a command runs only if it is "
                f"typed: add --labels {shlex.quote(text)}"
            )


def _refuse_callables(teachers: str, file: str | Path) -> None:
    """A file that somebody else wrote runs no Python either."""
    if any(item.strip().startswith("python:") for item in teachers.split(",")):
        raise UsageError(
            f"distill: {file} names a teacher that is Python code ({shown(teachers)}); code runs only if it is typed: "
            f"add --teachers {shlex.quote(teachers)}"
        )


def _as_labelled(paths: list[str]) -> DistillConfig:
    """The defaults of a run that is trained from labels: regions as these were cut."""
    from distilldepth.teachers.location import parse_location
    from distilldepth.teachers.stored import read_label_set

    config = DistillConfig()
    location = parse_location(paths[0])
    labels = read_label_set(location)[0]
    for key, value in labels.settings.items():
        name = key.replace("-", "_")
        if name == "size" or name.startswith("crop."):
            try:
                set_key(config, name, value, "labels.json", "distill")
            except UsageError as error:
                raise DistillDepthError(f"{location.url('labels.json')}: {error}") from error
        elif name == "crop" and isinstance(value, dict):
            apply(config, {"crop": value}, location.url("labels.json"), "distill")
    # What was stored, which is less than what was set where the objective did not look at windows.
    config.crop.patches = labels.crops["patches"]
    return config


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
