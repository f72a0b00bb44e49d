"""`distilldepth distill`: train a student from teachers on unlabelled images."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distilldepth.cli import options
from distilldepth.distill.config import DistillConfig, blamed_on, load_config, preset_names
from distilldepth.distill.launch import continuing
from distilldepth.settings import keys, to_toml

if TYPE_CHECKING:
    from distilldepth.distill.record.result import RunResult

F = TypeVar("F", bound=Callable[..., Any])

_PLACEHOLDERS = {int: click.INT, float: click.FLOAT, str: click.STRING}


def _flags(command: F) -> F:
    """Add one option per top-level key: flag, config file and --set are the same thing."""
    for key, (hint, doc) in reversed(keys(DistillConfig).items()):
        if "." in key or key == "preset":
            continue
        name = f"--{key.replace('_', '-')}"
        names = [name, "-o"] if key == "out" else [name]
        default = getattr(DistillConfig(), key)
        if hint is bool:
            option = click.option(*names, is_flag=True, default=None, help=doc)
        elif hint in _PLACEHOLDERS:
            shown = f"{doc}  [default: {default}]" if default != "" else doc
            option = click.option(*names, type=_PLACEHOLDERS[hint], default=None, help=shown)
        else:
            shown = f"{doc}  [default: {' '.join(default)}]" if default else doc
            option = click.option(*names, multiple=True, help=shown)
        command = option(command)
    return command


_GROUPS = {
    "Models": ("teachers", "student", "initial_weights", "two_views", "uncertainty"),
    "Data": ("images", "data", "root", "split", "labels", "size", "heldout"),
    "Recipe": (
        "preset", "config_file", "settings", "print_config",
        "steps", "batch_size", "grad_accumulation", "seed", "max_skipped_share",
    ),
    "Output": (
        "out", "resume", "overwrite", "checkpoint_every", "keep_checkpoints", "log_every", "log", "agreement_every",
        "json_target",
    ),
    "Machine": (
        "device", "precision", "teacher_precision", "compile", "compile_teachers", "gradient_checkpointing",
        "teacher_offload", "micro_batch", "workers", "threads", "offline",
    ),
}  # fmt: skip


@click.command(cls=options.GroupedCommand, groups=_GROUPS)
@_flags
@click.option("--preset", metavar="NAME", help=f"values to start from: {', '.join(preset_names())}")
@click.option(
    "--config", "config_file", metavar="FILE", help="TOML file, for example the config.toml of an earlier run"
)
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="any key, for example --set loss.gradient=1"
)
@click.option("--print-config", is_flag=True, help="print the resulting configuration with explanations and stop")
@click.option("--json", "json_target", metavar="FILE", help="write the result as JSON to FILE, or to stdout with -")
def distill(
    preset: str | None,
    config_file: str | None,
    settings: tuple[str, ...],
    print_config: bool,
    json_target: str | None,
    **flags: Any,
) -> None:
    """Train a student from teachers on unlabelled images.

    With teachers alone this takes the preset `demo`: procedural scenes, bundled teachers, minutes on two CPU cores.

    \b
    distilldepth distill --teachers dav2,genpercept
    distilldepth distill --images PHOTOS --preset photos --out runs/mine
    distilldepth distill --labels LABELS --student light-mini --out runs/stored
    distilldepth distill --preset adu-teacher --data kitti-eigen --root KITTI
    distilldepth distill --config runs/mine/config.toml --resume auto
    """
    flags = {key: list(value) if isinstance(value, tuple) else value for key, value in flags.items()}
    flags = {key: value for key, value in flags.items() if value not in (None, [])}
    demo = not (preset or config_file or settings or set(flags) - {"teachers", "out", "overwrite", "resume", "offline"})
    if demo:
        preset = "demo"
    if config_file == "":
        raise click.UsageError("--config must name a file, got an empty text")
    config = load_config(preset=preset, file=config_file, settings=settings, flags=flags)
    used: list[str | Path] = [*config.images, Path(config.out, "student", "config.json")]
    used += [config_file] if config_file else []
    options.check_json_target(json_target, used)
    if not ({"out", "resume", "overwrite"} & set(flags) or config_file):
        config.out = _free_folder(config.out)
    if print_config:
        click.echo(to_toml(config, comments=True), nl=False)
        return
    typed = set(flags) - {"out", "overwrite", "resume", "offline"} or settings
    # Where nothing was typed but the name of a file, what is wrong is in the file.
    blame = nullcontext if typed or config_file is None else partial(blamed_on, config_file)
    with blame():
        config.check_names()
    if config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if demo:
        click.echo(
            "Nothing but teachers was given, so this is the preset 'demo': procedural scenes and a light student from "
            "scratch. For your own photographs type:\n"
            f"  distilldepth distill --teachers {config.teachers} --images FOLDER "
            "--student light-mini --preset photos --out runs/mine",
            err=True,
        )

    from distilldepth.distill.trainer import distill as run

    command = shlex.join(["distilldepth", *sys.argv[1:]])
    try:
        with blame():
            result = run(config, command=command)
    except KeyboardInterrupt:
        if any(Path(config.out, "checkpoints").glob("step-*")) and os.environ.get("RANK", "0") == "0":
            click.echo(f"\nto continue from the last checkpoint: {continuing(config)}", err=True)
        raise
    if os.environ.get("RANK", "0") != "0":
        return
    _summary(result)
    if json_target:
        options.write_json({**dataclasses.asdict(result), "folder": str(result.folder)}, json_target)


def _free_folder(out: str) -> str:
    """The default run folder, or that name with the first number that is not taken."""
    candidate, number = out, 2
    while Path(candidate).exists() and any(Path(candidate).iterdir()):
        candidate, number = f"{out}-{number}", number + 1
    return candidate


def _summary(result: RunResult) -> None:
    from distilldepth.distill.agreement import replaced_note
    from distilldepth.distill.record.result import how_to_use

    for name, after in result.after.get("teachers", {}).items():
        before = result.before["teachers"][name]
        click.echo(
            f"agreement with {name} on {result.after['images']} held-out images{replaced_note(result.after)}: "
            f"correlation {before['correlation']:.3f} -> {after['correlation']:.3f}, "
            f"SSI error {before['ssi_error']:.3f} -> {after['ssi_error']:.3f}",
            err=True,
        )
    if "depth" in result.after:
        before, after = result.before["depth"], result.after["depth"]
        click.echo(
            f"against true depth: AbsRel {before['abs_rel']:.3f} -> {after['abs_rel']:.3f}, "
            f"delta1 {before['delta1']:.3f} -> {after['delta1']:.3f}",
            err=True,
        )
    for finding in result.findings:
        click.secho(f"WARNING: {options.printable(finding)}", fg="red", bold=True, err=True)
    click.echo(f"student: {result.folder / 'student'}", err=True)
    click.echo(f"report:  {result.folder / 'report.html'}", err=True)
    click.echo(
        f"try it:  {how_to_use(result.kind, result.folder / 'student', uncertainty=result.uncertainty)}", err=True
    )
