"""`distilldepth complete`: dense depth from a photograph and depth that is known at some of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distilldepth.cli import options, outputs
from distilldepth.words import ALIGNMENTS, COMPLETION_MODEL

if TYPE_CHECKING:
    from distilldepth.inference.completer import Completer


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE|FOLDER|GLOB...")
@click.option(
    "--sparse",
    required=True,
    metavar="FILE|FOLDER",
    help="Known depth: .npy or .npz (H, W) in metres, 0 or NaN for none; 16-bit PNG; .txt or .csv of lines `u v depth` "
    "(column, row, metres). A folder: files named as the images.",
)
@outputs.out_option
@click.option(
    "--sparse-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="UNITS",
    help="Stored units per metre of --sparse: 1000 for millimetres, 256 as KITTI, 5000 as TUM RGB-D. Needed for PNGs "
    "that do not say it themselves.",
)
@click.option(
    "--model",
    default=COMPLETION_MODEL,
    show_default=True,
    help="A completion network (a name, or the folder of a run of --preset completion), or the depth model that looks "
    "at the photograph before it: see `distilldepth predict --help`.",
)
@options.model_max_depth_option
@click.option(
    "--align",
    type=options.NearestChoice(ALIGNMENTS),
    default=None,
    help="How the depth model's map is brought to the points.  [default: as the network was trained; else local]",
)
@click.option("--align-only", is_flag=True, help="Leave the completion network out: the aligned map is the result.")
@outputs.format_options
@options.resize_options
@options.batch_size_option()
@options.device_option
@options.precision_option
@outputs.existing_options("complete")
@options.json_option
@options.offline_option
def complete(
    inputs: tuple[str, ...],
    sparse: str,
    out: str,
    model: str,
    model_max_depth: float | None,
    formats: tuple[tuple[str, ...], ...],
    fov: float | None,
    intrinsics: tuple[float, float, float, float] | None,
    skip_existing: bool,
    overwrite: bool,
    json_file: str | None,
    offline: bool,
    **how: Any,
) -> None:
    """Complete depth that is known at some pixels of photographs.

    \b
    distilldepth complete img.jpg --sparse points.txt -o dense.png
    distilldepth complete photos/ --sparse points/ -o dense/ --as npy,color
    distilldepth complete img.png --sparse lidar.png --sparse-scale 256 -o d.npy

    A depth model says what is near and what is far, its map is brought to the metres of the points, and a completion
    network corrects it by points and photograph. The result is depth in metres at every pixel. Points lie on the
    photograph as a viewer shows it: (0, 0) is the centre of its top left pixel. In a folder each photograph has the
    points of its name; one without, or points without a photograph, are listed at the end like bad files, the rest is
    done, and the exit code is 1.
    """
    # What is in `how` bears the names of `CompleteOptions`.
    existing = outputs.chosen_existing(skip_existing, overwrite)
    outputs.check_ranges(fov, intrinsics, how["percentiles"], (1.0, 10.0))
    options.check_json_target(json_file, (*inputs, sparse, out, model, Path(model, "config.json")))

    from distilldepth.completion import CompleteOptions, complete_files
    from distilldepth.formats.options import PointCloudOptions

    with ExitStack() as stack:

        def start(completer: Completer, count: int) -> Callable[[int], None]:
            info = completer.info
            click.echo(f"{info.name}: {info.quantity}, {info.licence}, {count} image{'s' * (count != 1)}", err=True)
            outputs.warn_of_idle_options(formats, out)
            return stack.enter_context(options.progress(count, "complete"))

        report = complete_files(
            inputs,
            sparse,
            out,
            model=options.with_max_depth(model, model_max_depth),
            formats=[name for words in formats for name in words] or None,
            existing=existing,
            options=CompleteOptions(point_cloud=PointCloudOptions(fov or 60.0, intrinsics), **how),
            offline=offline,
            start=start,
        )
    outputs.tell(report, out, how["png_scale"])
    options.write_json(report.to_dict(), json_file)
    options.end_with_failures(report.failures, len(report.written) + len(report.skipped) + len(report.failures))
