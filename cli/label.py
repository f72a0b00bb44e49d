"""`distilldepth label`: store what teachers say of many images, for many runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distilldepth.cli import options
from distilldepth.distill.config import DistillConfig, load_config, preset_names
from distilldepth.errors import DistillDepthError, UsageError, refuse_url
from distilldepth.settings import get_key, keys
from distilldepth.words import PRECISIONS

if TYPE_CHECKING:
    from distilldepth.label.run import LabelReport
    from distilldepth.label.task import LabelMachine, LabelTask

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_IMAGE_FORMATS, _MAP_FORMATS = ("jpeg", "png"), ("png16", "float16")
_CUTTING = ("teachers", "size", "seed", "heldout", "batch_size", "loss.local_global")
"""Keys of a run, besides those of its crop section, that decide which crops there are and who labels them."""


class Bytes(click.ParamType):
    """A number of bytes, with a unit."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-z]*)", str(value).strip().lower())
        count = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
        if not 1 <= count <= 1 << 50:
            self.fail(f"must be a number of bytes such as 512MB or 2GiB, got '{value}'", param, ctx)
        return count


class Which(click.ParamType):
    """`i/n`: one of n processes, counted from 0."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value).strip())
        if match is None or not 0 <= int(match[1]) < int(match[2]):
            count = int(match[2]) if match else 4
            last = max(count - 1, 0)
            self.fail(f"must be i/n, counted from 0 (0/{count} to {last}/{count}), got '{value}'", param, ctx)
        return int(match[1]), int(match[2])


_GROUPS = {
    "What is labelled": ("teachers", "images", "size", "heldout", "views", "seed", "batch_size"),
    "Recipe": ("preset", "config_file", "settings"),
    "Output": ("out", "shards", "shard_size", "image_format", "no_images", "map_format", "overwrite", "check", "page"),
    "Machine": ("device", "precision", "device_batch", "workers", "threads", "offline", "ray"),
}  # fmt: skip


def _doc(key: str) -> str:
    default = get_key(DistillConfig(), key)
    return f"{keys(DistillConfig)[key][1]}  [default: {default}]"


@click.command(cls=options.GroupedCommand, groups=_GROUPS)
@click.option("--teachers", default=None, help=_doc("teachers"))
@click.option("--images", multiple=True, help="folder, glob, list file or tar shards; may be given several times")
@click.option("--out", "-o", default=None, metavar="LABELS", help="folder of the labels")
@click.option("--size", default=None, help=_doc("size"))
@click.option("--heldout", type=int, default=None, help=_doc("heldout"))
@click.option("--seed", type=int, default=None, help="seed of order, crops and draws, that of the runs to come")
@click.option("--batch-size", type=int, default=None, help=f"{_doc('batch_size')}; one teacher is drawn for each")
@click.option(
    "--views", type=click.IntRange(1, 10_000), default=1, show_default=True, help="crops of each training image"
)
@click.option("--preset", metavar="NAME", help=f"values to start from: {', '.join(preset_names())}")
@click.option("--config", "config_file", metavar="FILE", help="TOML file, for example the config.toml of a run")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="any key of a run, as --set crop.patches=2")
@click.option(
    "--shards",
    type=Which(),
    default="0/1",
    show_default=True,
    help="i/n: write every n-th shard from number i on (from 0), as one of n processes or machines",
)
@click.option("--shard-size", type=Bytes(), default="512MB", show_default=True, help="bytes of a shard, about")
@click.option(
    "--image-format", type=options.NearestChoice(_IMAGE_FORMATS), default="jpeg", show_default=True, help="of regions"
)
@click.option("--no-images", is_flag=True, help="store no regions: training cuts them from the photographs again")
@click.option(
    "--map-format", type=options.NearestChoice(_MAP_FORMATS), default="png16", show_default=True, help="of maps"
)
@click.option("--overwrite", is_flag=True, help="delete the labels that the folder holds and start again")
@options.device_option
@click.option(
    "--precision",
    type=options.NearestChoice(PRECISIONS),
    default="auto",
    show_default=True,
    help="of the teachers; auto is what is fast on this machine, and what the labels were begun with",
)
@click.option(
    "--device-batch",
    type=click.IntRange(0, 65_536),
    default=0,
    help="regions that a teacher sees at once; 0 = what suits the device; halved where memory runs out",
)
@click.option(
    "--workers", type=click.IntRange(0, 1024), default=2, show_default=True, help="processes that decode photographs"
)
@click.option("--threads", type=click.IntRange(0, 4096), default=0, help="CPU threads of the teacher; 0 = all")
@options.offline_option
@click.option(
    "--ray",
    metavar="ADDRESS",
    default=None,
    help="label on a Ray cluster: auto, host:port, or local to start one here; needs distilldepth[ray]",
)
@click.option("--check", metavar="LABELS", default=None, help="verify labels that are there instead, and show some")
@click.option("--page", metavar="FILE", default=None, help="page of samples that --check writes  [LABELS/samples.html]")
def label(
    out: str | None,
    shards: tuple[int, int],
    overwrite: bool,
    ray: str | None,
    check: str | None,
    page: str | None,
    **given: Any,
) -> None:
    """Store what teachers say of many images, so that runs train from it with no teacher in memory.

    The crops and who labels them are those of a run with the same settings. A command that was ended goes on at the
    next sample when it is typed again; several machines share the work with --shards.

    \b
    distilldepth label --teachers dav2:large,genpercept --images PHOTOS -o LABELS
    distilldepth label --preset photos --images PHOTOS -o LABELS --shards 0/8
    distilldepth label --check LABELS
    """
    if check is not None:
        if out is not None or overwrite or given["images"]:
            raise click.UsageError("--check reads labels that are there; leave --out, --images and --overwrite out")
        _check(check, page, shards)
        return
    if page is not None:
        raise click.UsageError("--page goes with --check")
    if not out or not out.strip():
        raise click.UsageError("--out must name the folder of the labels")
    refuse_url(out)
    if overwrite and shards[1] > 1:
        raise click.UsageError("--overwrite deletes what the other processes of --shards write; empty the folder first")
    if ray is not None and (shards[1] > 1 or not ray.strip()):
        raise click.UsageError("--ray ADDRESS shares the work out itself; leave --shards out, and name a cluster")
    task, machine = _read(Path(out), given)
    try:
        with ExitStack() as stack:

            def start(total: int) -> Callable[[int], None]:
                return stack.enter_context(options.progress(total, "labelled"))

            if ray is None:
                from distilldepth.label.run import label as run

                report = run(task, machine, which=shards, overwrite=overwrite, start=start)
            else:
                from distilldepth.label.cluster import label_on_cluster

                report = label_on_cluster(task, machine, ray, overwrite=overwrite, start=start)
    except KeyboardInterrupt:
        again = [word for word in sys.argv[1:] if word != "--overwrite"]
        click.echo(f"\nto go on at the next sample: {shlex.join(['distilldepth', *again])}", err=True)
        raise
    _tell(report, out)


def _tell(report: LabelReport, out: str) -> None:
    """Say what was labelled; DistillDepthError if nothing of it is of use."""
    rate = f" ({report.written / report.seconds:.1f} a second)" if report.written and report.seconds else ""
    stood = f", {report.standing} of unfinished shards were there" if report.standing else ""
    click.echo(f"{report.written} samples labelled{rate}{stood}", err=True)
    if report.problems and report.problems >= report.written:
        raise DistillDepthError(
            f"label: none of the {report.written} samples in {out} is as it should be; the first: "
            f"{report.first_problem}"
        )
    if report.problems:
        click.secho(
            f"WARNING: {report.problems} samples with photographs or maps that are not as they should be; the first: "
            f"{options.printable(report.first_problem)}; all are named in the .json beside each shard",
            fg="yellow",
            err=True,
        )
    if report.missing:
        click.echo(f"{len(report.missing)} shards of other processes are not there yet", err=True)
    else:
        click.echo(f"labels: {out}", err=True)
        click.echo(f"check:  distilldepth label --check {shlex.quote(out)}", err=True)


def _check(folder: str, page: str | None, shards: tuple[int, int]) -> None:
    """Verify labels, write the page of samples, and exit 1 with what is wrong."""
    refuse_url(folder)
    if page is not None:
        refuse_url(page)
        if Path(page).suffix.lower() not in (".html", ".htm") or Path(page).is_dir():
            raise UsageError(f"label: --page must name a .html file, got {page}")

    from distilldepth.files import write_atomically
    from distilldepth.label.check import check_labels
    from distilldepth.label.page import samples_page

    with ExitStack() as stack:
        report = check_labels(
            Path(folder),
            which=shards,
            start=lambda total: stack.enter_context(options.progress(total, "checked")),
        )
    target = Path(page) if page else Path(folder, "samples.html")
    try:
        write_atomically(target, samples_page(report))
        click.echo(f"samples: {target}", err=True)
    except OSError as error:
        if page:
            raise
        click.echo(f"no page of samples was written ({error.strerror}); name one with --page", err=True)
    for note in report.notes:
        click.echo(f"  {options.printable(note)}", err=True)
    for ranges in report.ranges:
        click.echo(
            f"{options.printable(ranges.teacher.name)}: {ranges.samples} samples, {ranges.constant} constant, "
            f"{100 * ranges.unknown:.2f} % unknown, values {ranges.low:.4g} to {ranges.high:.4g}"
        )
    click.echo(f"{report.samples} samples in {report.shards} shards, {report.size / 1e6:.1f} MB")
    for fault in report.faults:
        click.echo(f"  {options.printable(fault)}", err=True)
    if report.faults:
        count = len(report.faults)
        click.echo(f"distilldepth: error: {folder}: {count} fault{'s' * (count > 1)} (listed above)", err=True)
        click.get_current_context().exit(1)
    click.echo("all is as it was written")


def _read(out: Path, given: dict[str, Any]) -> tuple[LabelTask, LabelMachine]:
    """What is to be done, from the configuration of a run."""
    with _speaking_of_label():
        flags = {
            "teachers": given["teachers"], "images": list(given["images"]) or None, "size": given["size"],
            "heldout": given["heldout"], "seed": given["seed"], "batch_size": given["batch_size"],
        }  # fmt: skip
        if given["config_file"] == "":
            raise click.UsageError("--config must name a file, got an empty text")
        config = load_config(preset=given["preset"], file=given["config_file"], settings=given["settings"], flags=flags)
        config.check_names()
    _check_apart(out, config.images)
    if given["offline"] or config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"

    from distilldepth.distill.crops import crop_config
    from distilldepth.label.task import LabelMachine, LabelTask
    from distilldepth.teachers.spec import parse_teachers

    cutting = [*_CUTTING, *(key for key in keys(DistillConfig) if key.startswith("crop."))]
    task = LabelTask(
        out=out,
        images=list(config.images),
        teachers=parse_teachers(config.teachers),
        crops=crop_config(config),
        settings={key: get_key(config, key) for key in cutting},
        seed=config.seed,
        heldout=config.heldout,
        group=config.batch_size,
        views=given["views"],
        scene_size=config.scene_height_width,
        max_side=config.crop.max_side or None,
        image_format="none" if given["no_images"] else given["image_format"],
        map_format=given["map_format"],
        shard_bytes=given["shard_size"],
        precision=given["precision"],
    )
    machine = LabelMachine(
        device=given["device"],
        workers=given["workers"],
        threads=given["threads"],
        device_batch=given["device_batch"],
        offline=given["offline"] or config.offline,
    )
    return task, machine


def _check_apart(out: Path, images: list[str]) -> None:
    """Labels among the photographs would be read as photographs, or make them another collection."""
    for name in images:
        folder = Path(name).expanduser()
        if folder.is_dir() and (out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents):
            raise UsageError(f"label: --out {out} lies in the images {name}; choose a folder beside them")


@contextmanager
def _speaking_of_label() -> Iterator[None]:
    """Give messages about the configuration of a run the name of this command."""
    try:
        yield
    except (UsageError, DistillDepthError) as error:
        raise type(error)(re.sub(r"^distill:", "label:", str(error))) from error
