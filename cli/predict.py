"""`distilldepth predict`: depth for images and folders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from distilldepth.cli import options
from distilldepth.formats.colormaps import COLORMAPS
from distilldepth.formats.table import PREDICTED, listed_suffixes

if TYPE_CHECKING:
    from distilldepth.models import DepthModel
    from distilldepth.predict import PredictReport


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE|FOLDER|GLOB...")
@click.option("--out", "-o", required=True, metavar="FILE|FOLDER", help=f"A {listed_suffixes()} file, or a folder.")
@options.model_option()
@options.model_max_depth_option
@click.option(
    "--as",
    "formats",
    type=options.WordList(PREDICTED, aliases={"png": "png16", "colour": "color"}),
    multiple=True,
    help="What to write; repeatable or separated by commas. Default: what the suffix of -o says, else png16.",
)
@click.option(
    "--png-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="UNITS",
    help="For 16-bit PNGs of models that predict metres: stored = metres x UNITS in every image, 0 = unknown; 1000 for "
    "millimetres, 256 as KITTI has it. Default: the finest of 1000, 256 or less that holds the image's farthest point.",
)
@click.option(
    "--colormap", type=options.NearestChoice(COLORMAPS), default="spectral", show_default=True, help="For --as color."
)
@click.option(
    "--percentiles",
    type=options.Numbers("low", "high"),
    default="1,99",
    show_default=True,
    help="For --as color: nearness shown as the first and the last colour.",
)
@click.option(
    "--fov",
    type=float,
    default=None,
    help="For --as ply: horizontal field of view in degrees, between 0 and 180.  [default: 60]",
)
@click.option(
    "--intrinsics",
    type=options.Numbers("fx", "fy", "cx", "cy"),
    default=None,
    help="For --as ply, instead of --fov: pixels of the photograph.",
)
@click.option(
    "--depth-range",
    type=options.Numbers("near", "far"),
    default="1,10",
    show_default=True,
    help="For --as ply of a map without a unit: where its nearest and farthest points are put.",
)
@options.resize_options
@options.batch_size_option()
@options.device_option
@options.precision_option
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Leave out images whose outputs are there and would come out the same: same weights, photograph and options. "
    "Older outputs are made again; a file that predict did not make stays, and is reported.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what is there; without it, a single -o file that predict made is replaced, and nothing else.",
)
@options.json_option
@options.offline_option
def predict(
    inputs: tuple[str, ...],
    out: str,
    model: str,
    model_max_depth: float | None,
    formats: tuple[tuple[str, ...], ...],
    png_scale: float | None,
    colormap: str,
    percentiles: tuple[float, float],
    fov: float | None,
    intrinsics: tuple[float, ...] | None,
    depth_range: tuple[float, float],
    resize_policy: str | None,
    size: int | None,
    batch_size: int,
    device: str,
    precision: str,
    skip_existing: bool,
    overwrite: bool,
    json_file: str | None,
    offline: bool,
) -> None:
    """Predict depth for images and folders.

    \b
    distilldepth predict img.jpg -o depth.png
    distilldepth predict photos/ -o depth/ --as png16,color --skip-existing
    distilldepth predict 'photos/**/*.jpg' -o clouds/ --as ply --fov 65

    A folder is searched for images and its tree is kept below -o; a .txt file names one image per line. The 16-bit PNG
    says in its text chunks what its numbers mean: value = stored * scale + offset, stored 0 = unknown; for disparity
    near is bright. Maps lie upright, as a viewer shows the photograph, whatever orientation its EXIF data gives the
    stored pixels. PNGs that this program made are not taken for photographs. A bad image is listed at the end, the rest
    is done, and the exit code is 1.
    """
    existing = _existing(skip_existing, overwrite)
    _check_ranges(fov, intrinsics, percentiles, depth_range)
    options.check_json_target(json_file, (*inputs, out, model, Path(model, "config.json")))

    from distilldepth.predict import PointCloudOptions, PredictOptions, predict_files

    with ExitStack() as stack:

        def start(loaded: DepthModel, count: int) -> Callable[[int], None]:
            info = loaded.info
            click.echo(f"{info.name}: {info.quantity}, {info.licence}, {count} image{'s' * (count != 1)}", err=True)
            _warn_of_idle_options(formats, out)
            return stack.enter_context(options.progress(count, "predict"))

        report = predict_files(
            inputs,
            out,
            model=options.with_max_depth(model, model_max_depth),
            formats=[name for words in formats for name in words] or None,
            existing=existing,
            options=PredictOptions(
                resize_policy=resize_policy,
                size=size,
                batch_size=batch_size,
                device=device,
                precision=precision,
                png_scale=png_scale,
                colormap=colormap,
                percentiles=percentiles,
                point_cloud=PointCloudOptions(60.0 if fov is None else fov, intrinsics, depth_range),
            ),
            offline=offline,
            start=start,
        )
    _tell(report, out, png_scale)
    options.write_json(report.to_dict(), json_file)
    options.end_with_failures(report.failures, len(report.written) + len(report.skipped) + len(report.failures))


def _existing(skip: bool, overwrite: bool) -> str:
    """What is to be done with outputs that are there."""
    if skip and overwrite:
        raise click.UsageError("--skip-existing and --overwrite contradict each other")
    return "skip" if skip else "overwrite" if overwrite else "refuse"


def _check_ranges(
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


def _tell(report: PredictReport, out: str, png_scale: float | None) -> None:
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
    if report.clipped and png_scale is not None:
        click.echo(f"distilldepth: warning: {_clipped_line(report, png_scale)}", err=True)
    if report.skipped:
        click.echo(f"skipped {len(report.skipped)} whose outputs are there, made the same way", err=True)
    for why, count in report.remade.items():
        click.echo(f"made again {count} whose outputs were {why}", err=True)


def _constant_line(report: PredictReport) -> str:
    """What is said of maps that are the same everywhere."""
    count, whole = len(report.constant), len(report.written)
    named = ", ".join(map(options.printable, report.constant[:3])) + (", ..." if count > 3 else "")
    return (
        f"{count} of {whole} maps {'is' if count == 1 else 'are'} constant ({named}): the model says nothing about "
        "these images; its weights may be untrained or damaged"
    )


def _clipped_line(report: PredictReport, png_scale: float) -> str:
    """What is said of depths that a fixed scale cannot hold."""
    count, maps = sum(report.clipped.values()), len(report.clipped)
    named = ", ".join(map(options.printable, list(report.clipped)[:3])) + (", ..." if maps > 3 else "")
    return (
        f"--png-scale {png_scale:g} holds {1 / png_scale:.3g} to {65535 / png_scale:.5g} m: {count} pixel"
        f"{'s' * (count != 1)} of {maps} map{'s' * (maps != 1)} beyond that {'are' if count > 1 else 'is'} stored as "
        f"the nearest of these ({named})"
    )


def _warn_of_idle_options(formats: tuple[tuple[str, ...], ...], out: str) -> None:
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
