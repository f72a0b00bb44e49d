"""`distilldepth predict`: depth for images and folders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distilldepth.cli import options, outputs

if TYPE_CHECKING:
    from distilldepth.inference.estimator import Estimator


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE|FOLDER|GLOB|MANIFEST...")
@click.option(
    "--right",
    default=None,
    metavar="FILE|FOLDER",
    help="For models of two views: the right view of a rectified pair, whose left view is the input. A folder: files "
    "named as the images.",
)
@click.option(
    "--focal-px",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Of rectified pairs: focal length, pixels of the photographs. With --baseline-m, disparity becomes metres.",
)
@click.option(
    "--baseline-m",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Of rectified pairs: metres between the cameras.",
)
@outputs.out_option
@options.model_option()
@options.model_max_depth_option
@outputs.format_options
@click.option(
    "--uncertainty",
    is_flag=True,
    help="Write beside each map what the model says of its own uncertainty: NAME_uncertainty.png (16 bit, log of the "
    "variance), .npy or _color.png, as --as says. For students trained to say it.",
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
@outputs.existing_options("predict")
@options.json_option
@options.offline_option
def predict(
    inputs: tuple[str, ...],
    out: str,
    model: str,
    model_max_depth: float | None,
    formats: tuple[tuple[str, ...], ...],
    fov: float | None,
    intrinsics: tuple[float, ...] | None,
    uncertainty: bool,
    depth_range: tuple[float, float],
    skip_existing: bool,
    overwrite: bool,
    json_file: str | None,
    offline: bool,
    **how: Any,
) -> None:
    """Predict depth for images and folders.

    \b
    distilldepth predict img.jpg -o depth.png
    distilldepth predict photos/ -o depth/ --as png16,color --skip-existing
    distilldepth predict 'photos/**/*.jpg' -o clouds/ --as ply --fov 65
    distilldepth predict left/ --right right/ -o depth/ --model psmnet

    A folder is searched for images and its tree is kept below -o; a .txt file names one image per line, a .jsonl
    manifest one with `image` and perhaps `right`, `focal_px` (or `intrinsics`) and `baseline_m` per line. The 16-bit
    PNG says in its text chunks what its numbers mean: value = stored * scale + offset, stored 0 = unknown; for
    disparity near is bright. Maps lie upright, as a viewer shows the photograph, whatever orientation its EXIF data
    gives the stored pixels. PNGs that this program made are not taken for photographs. A bad image is listed at the
    end, the rest is done, and the exit code is 1.
    """
    # What is in `how` bears the names of `PredictOptions`.
    existing = outputs.chosen_existing(skip_existing, overwrite)
    outputs.check_ranges(fov, intrinsics, how["percentiles"], depth_range)
    if (how["focal_px"] is None) != (how["baseline_m"] is None):
        given, missing = ("--focal-px", "--baseline-m")[:: 1 if how["baseline_m"] is None else -1]
        raise click.UsageError(f"{given} needs {missing} too: disparity becomes metres by both")
    read = filter(None, (*inputs, how["right"]))
    options.check_json_target(json_file, (*read, out, model, Path(model, "config.json")))

    from distilldepth.predict import PointCloudOptions, PredictOptions, predict_files

    with ExitStack() as stack:

        def start(estimator: Estimator, count: int) -> Callable[[int], None]:
            info = estimator.info
            click.echo(f"{info.name}: {info.quantity}, {info.licence}, {count} image{'s' * (count != 1)}", err=True)
            outputs.warn_of_idle_options(formats, out)
            return stack.enter_context(options.progress(count, "predict"))

        report = predict_files(
            inputs,
            out,
            model=options.with_max_depth(model, model_max_depth),
            formats=[name for words in formats for name in words] or None,
            existing=existing,
            options=PredictOptions(
                uncertainty=uncertainty,
                point_cloud=PointCloudOptions(60.0 if fov is None else fov, intrinsics, depth_range),
                **how,
            ),
            offline=offline,
            start=start,
        )
    outputs.tell(report, out, how["png_scale"])
    options.write_json(report.to_dict(), json_file)
    options.end_with_failures(report.failures, len(report.written) + len(report.skipped) + len(report.failures))
