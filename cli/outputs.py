"""Options of the commands that write maps as files, and what these commands say of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from distilldepth.cli import options
from distilldepth.formats.colormaps import COLORMAPS
from distilldepth.formats.table import PREDICTED, listed_suffixes

if TYPE_CHECKING:
    from distilldepth.outputs.writing import Report

F = TypeVar("F", bound=Callable[..., Any])


def out_option(function: F) -> F:
    """`--out`, `-o`: a file or a folder."""
    return click.option(
        "--out", "-o", required=True, metavar="FILE|FOLDER", help=f"A {listed_suffixes()} file, or a folder."
    )(function)


def format_options(function: F) -> F:
    """`--as`, and what each format can be told; all but `--depth-range`, which is for maps without a unit."""
    rows = (
        click.option(
            "--as",
            "formats",
            type=options.WordList(PREDICTED, aliases={"png": "png16", "colour": "color"}),
            multiple=True,
            help="What to write; repeatable or separated by commas. Default: what the suffix of -o says, else png16.",
        ),
        click.option(
            "--png-scale",
            type=click.FloatRange(min=0, min_open=True),
            default=None,
            metavar="UNITS",
            help="For 16-bit PNGs of metres: stored = metres x UNITS in every image, 0 = unknown; 1000 for "
            "millimetres, 256 as KITTI has it. Default: the finest of 1000, 256 or less that holds the image's "
            "farthest point.",
        ),
        click.option(
            "--colormap",
            type=options.NearestChoice(COLORMAPS),
            default="spectral",
            show_default=True,
            help="For --as color.",
        ),
        click.option(
            "--percentiles",
            type=options.Numbers("low", "high"),
            default="1,99",
            show_default=True,
            help="For --as color: nearness shown as the first and the last colour.",
        ),
        click.option(
            "--fov",
            type=float,
            default=None,
            help="For --as ply: horizontal field of view in degrees, between 0 and 180.  [default: 60]",
        ),
        click.option(
            "--intrinsics",
            type=options.Numbers("fx", "fy", "cx", "cy"),
            default=None,
            help="For --as ply, instead of --fov: pixels of the photograph.",
        ),
    )
    for row in reversed(rows):
        function = row(function)
    return function


def existing_options(command: str) -> Callable[[F], F]:
    """`--skip-existing` and `--overwrite` of a command."""

    def add(function: F) -> F:
        function = click.option(
            "--overwrite",
            is_flag=True,
            help=f"Replace what is there; without it, a single -o file that {command} made is replaced, and nothing "
            "else.",
        )(function)
        return click.option(
            "--skip-existing",
            is_flag=True,
            help="Leave out images whose outputs are there and would come out the same: same weights, photograph and "
            f"options. Older outputs are made again; a file that {command} did not make stays, and is reported.",
        )(function)

    return add


def chosen_existing(skip: bool, overwrite: bool) -> str:
    """Return what is to be done with outputs that are there, a word of `outputs.writing.EXISTING`."""
    if skip and overwrite:
        raise click.UsageError("--skip-existing and --overwrite contradict each other")
    return "skip" if skip else "overwrite" if overwrite else "refuse"


def check_ranges(
    fov: float | None,
    intrinsics: tuple[float, ...] | None,
    percentiles: tuple[float, float],
    depth_range: tuple[float, float],
) -> None:
    """Refuse numbers that make no sense before anything is imported for them."""
    if fov is not None and intrinsics is not None:
        raise click.UsageError("--fov and --intrinsics contradict each other")
    if fov is not None and not 0 < fov < 180:
        raise click.UsageError(f"--fov must be between 0 and 180 degrees, got {fov:g}")
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        low, high = percentiles
        raise click.UsageError(f"--percentiles must be LOW,HIGH with 0 <= LOW < HIGH <= 100, got {low:g},{high:g}")
    if not 0 < depth_range[0] < depth_range[1]:
        near, far = depth_range
        raise click.UsageError(f"--depth-range must be NEAR,FAR with 0 < NEAR < FAR, got {near:g},{far:g}")


def tell(report: Report, out: str, png_scale: float | None) -> None:
    """Say what was done and what is odd about it."""
    if len(report.written) == 1:
        click.echo(f"wrote {', '.join(map(options.printable, report.written[0]['outputs'].values()))}", err=True)
    elif report.written:
        rate = len(report.written) / max(report.seconds, 1e-9)
        click.echo(
            f"wrote {len(report.written)} images to {options.printable(out)} in {report.seconds:.1f} s "
            f"({rate:.1f} images/s on {report.device})",
            err=True,
        )
    if report.constant:
        click.echo(f"distilldepth: warning: {_constant_line(report)}", err=True)
    if report.swapped:
        click.echo(f"distilldepth: warning: {_swapped_line(report)}", err=True)
    if report.clipped and png_scale is not None:
        click.echo(f"distilldepth: warning: {_clipped_line(report, png_scale)}", err=True)
    if report.skipped:
        click.echo(f"skipped {len(report.skipped)} whose outputs are there, made the same way", err=True)
    for why, count in report.remade.items():
        click.echo(f"made again {count} whose outputs were {why}", err=True)


def _constant_line(report: Report) -> str:
    """What is said of maps that are the same everywhere."""
    count, whole = len(report.constant), len(report.written)
    named = ", ".join(map(options.printable, report.constant[:3])) + (", ..." if count > 3 else "")
    return (
        f"{count} of {whole} maps {'is' if count == 1 else 'are'} constant ({named}): the model says nothing about "
        "these images; its weights may be untrained or damaged"
    )


def _swapped_line(report: Report) -> str:
    """What is said of pairs whose views look exchanged."""
    count, whole = len(report.swapped), len(report.written)
    named = ", ".join(map(options.printable, report.swapped[:3])) + (", ..." if count > 3 else "")
    return (
        f"the views of {count} of {whole} pair{'s' * (whole != 1)} look exchanged ({named}): what is near lies farther "
        "right in the right view; give the left views as inputs and the right ones with --right"
    )


def _clipped_line(report: Report, png_scale: float) -> str:
    """What is said of depths that a fixed scale cannot hold."""
    count, maps = sum(report.clipped.values()), len(report.clipped)
    named = ", ".join(map(options.printable, list(report.clipped)[:3])) + (", ..." if maps > 3 else "")
    return (
        f"--png-scale {png_scale:g} holds {1 / png_scale:.3g} to {65535 / png_scale:.5g} m: {count} pixel"
        f"{'s' * (count != 1)} of {maps} map{'s' * (maps != 1)} beyond that {'are' if count > 1 else 'is'} stored as "
        f"the nearest of these ({named})"
    )


def warn_of_idle_options(formats: tuple[tuple[str, ...], ...], out: str) -> None:
    """Say which options change nothing: `-o depth.png --colormap inferno` writes a grey PNG."""
    made = {name for words in formats for name in words} or {Path(out).suffix.lower().removeprefix(".")}
    context = click.get_current_context()
    made = {name if name in PREDICTED else "png16" for name in made}
    needs = {"png16": ("png_scale",), "color": ("colormap", "percentiles"), "ply": ("fov", "intrinsics", "depth_range")}
    for needed, names in needs.items():
        for name in names:
            if needed not in made and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = "--" + name.replace("_", "-")
                click.echo(f"distilldepth: warning: {option} has no effect without --as {needed}", err=True)
