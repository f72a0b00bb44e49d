"""`distilldepth evaluate`: score a model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from distilldepth import words
from distilldepth.cli import options
from distilldepth.evaluate.protocol import ALIASES, BY_QUANTITY, CHOICES, PROTOCOLS
from distilldepth.evaluate.words import ANALYSES, RESUME, SCORED, TASKS
from distilldepth.formats.table import STORED
from distilldepth.words import FLIPS

if TYPE_CHECKING:
    from distilldepth.datasets.check import DatasetReport
    from distilldepth.datasets.truth import Dataset
    from distilldepth.evaluate.predictions import StoredPredictions
    from distilldepth.evaluate.record.published import PublishedRow
    from distilldepth.evaluate.record.result import Evaluation

QUANTITIES = tuple(word.replace("_", "-") for word in words.QUANTITIES)

OVERRIDES = {
    "align": "what is fitted per image",
    "space": "where it is fitted",
    "aggregation": "how images become one number",
    "field": "which ground truth is read, where a benchmark has several",
    "min_depth": "nearest ground truth that counts, metres",
    "max_depth": "farthest ground truth that counts, metres",
    "bounds": "whether ground truth exactly at these counts",
    "image_crop": "crop before the model sees the image",
    "score_crop": "crop of what is scored",
    "flip_average": "what part the prediction for the mirror image has; alone it means `mean`; `blended` is as NeWCRFs "
    "does it at the borders; of pairs the mirrored views are exchanged",
    "resize": "how a map is brought to the size of the ground truth",
}
"""Rules of a protocol that an option replaces; the result is then labelled as custom."""
_NUMBERS = {"min_depth": click.FloatRange(min=0), "max_depth": click.FloatRange(min=0, min_open=True)}
_SPOKEN = {"": "none", "per-image mean": "per-image"}
"""How a word of a rule is typed, where that is another."""
_LEFT_OUT = (("field", ""), ("space", BY_QUANTITY))
"""What a rule is without the option."""


def rule_words(rule: str) -> dict[str, str]:
    """Return what can be typed for a rule, each with the word that it stands for; nothing for a number."""
    choices = [choice for choice in CHOICES.get(rule, ()) if (rule, choice) not in _LEFT_OUT]
    return {_SPOKEN.get(choice, choice): choice for choice in choices}


class _ProtocolName(click.ParamType):
    """The name of a protocol; the files that define them are read only when one is given."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return options.NearestChoice((*PROTOCOLS, *ALIASES)).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return click.Choice(tuple(PROTOCOLS)).shell_complete(ctx, param, incomplete)


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _override_options(function: options.F) -> options.F:
    for rule, doc in reversed(OVERRIDES.items()):
        kind = _NUMBERS.get(rule) or options.NearestChoice(tuple(rule_words(rule)))
        help_text = f"Replace the protocol's: {doc}."
        bare: dict[str, Any] = {"is_flag": False, "flag_value": FLIPS[0]} if rule == "flip_average" else {}
        function = click.option(_option(rule), type=kind, default=None, help=help_text, **bare)(function)
    return function


_GROUPS = {
    "Model": ("model", "model_max_depth", "resize_policy", "size", "predictions", "quantity", "depth_scale"),
    "Data": ("data", "root", "split", "truth_scale", "limit", "check"),
    "Scoring": ("protocol", *OVERRIDES),
    "Completion": ("task", "points", "score", "seed"),
    "Output": ("out", "resume", "overwrite", "save_predictions", "published", "json_file"),
    "Instead of scoring": ("compare", "analysis", "kitti_submission"),
    "Machine": ("device", "precision", "batch_size", "offline"),
}


@click.command(cls=options.GroupedCommand, groups=_GROUPS)
@options.model_option()
@options.model_max_depth_option
@click.option(
    "--data",
    multiple=True,
    metavar="BENCHMARK|PATH|scenes[:N]",
    help="Benchmark (`distilldepth list datasets`), manifest (.jsonl), list of `image depth` per line (.txt, .csv), "
    "folder of manifests, folder with images/ or rgb/ and depth/, folder of TUM RGB-D (associations.txt, or rgb.txt "
    "and depth.txt), or procedural scenes; repeatable.",
)
@click.option(
    "--root",
    default=None,
    metavar="FOLDER|TAR",
    help="Where the benchmark is, or the folder that paths in manifests and lists are relative to.",
)
@click.option("--split", default=None, metavar="FILE", help="List of a benchmark's samples, if it is not in --root.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="First so many frames of each dataset.")
@click.option("--check", is_flag=True, help="Only read the data: count, size, valid share, smallest to largest metres.")
@click.option(
    "--protocol",
    type=_ProtocolName(),
    default=None,
    help="See `distilldepth list protocols`. Default: what fits the model's numbers.",
)
@_override_options
@click.option(
    "--task",
    type=options.NearestChoice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="completion: depth completed from points of the ground truth, which are not scored themselves.",
)
@click.option(
    "--points",
    default=None,
    metavar="N|lines:K|keypoints",
    help="Which pixels of the ground truth are given: N at random, K rows as a LiDAR has them, or corners of the "
    "photograph; the same for every model.",
)
@click.option(
    "--score",
    type=options.NearestChoice(SCORED),
    default=SCORED[0],
    show_default=True,
    help="unseen: only pixels that were not given; all: those too.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="With a frame's name it decides where its points are.",
)
@click.option(
    "--out",
    "-o",
    default=None,
    metavar="FOLDER",
    help="Write JSON, CSV, Markdown, LaTeX and an HTML report there, sample by sample, so that a killed run goes on.",
)
@click.option("--resume", type=options.NearestChoice(RESUME), default=None, help="auto: go on with --out.")
@click.option("--overwrite", is_flag=True, help="Replace the evaluation in --out.")
@click.option(
    "--save-predictions",
    type=options.NearestChoice(STORED),
    is_flag=False,
    flag_value=STORED[0],
    default=None,
    help="Keep every map in --out, as npy if no format is given.",
)
@click.option(
    "--predictions",
    default=None,
    metavar="FOLDER",
    help="Score maps that any program made, in place of --model: .npy, 16-bit PNG, KITTI's or Marigold's layout.",
)
@click.option(
    "--quantity", type=options.NearestChoice(QUANTITIES), default=None, help="What the numbers of --predictions are."
)
@click.option(
    "--depth-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Stored units per metre of maps in --predictions that do not say it themselves; without --predictions, of the "
    "ground truth of RGB-D sets, as --truth-scale.",
)
@click.option(
    "--truth-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Stored units per metre of ground truth in RGB-D sets that do not say it. Default for whole numbers: 1000, "
    "5000 for TUM RGB-D, 1 in manifests; floating point is metres.",
)
@click.option(
    "--compare", nargs=2, default=None, metavar="A B", help="Paired differences of two results (--out folders or JSON)."
)
@click.option(
    "--published", is_flag=True, help="Show the papers' own numbers: beside the result, or alone without --data."
)
@click.option(
    "--analysis",
    type=options.NearestChoice(ANALYSES),
    default=None,
    help="local-global: fit of scale and shift on regions against on the whole image.",
)
@click.option(
    "--kitti-submission",
    default=None,
    metavar="FOLDER",
    help="Write the benchmark's 500 test maps from --root, as its server wants them; needs a metric model.",
)
@options.resize_options
@options.batch_size_option()
@options.device_option
@options.precision_option
@options.json_option
@options.offline_option
@click.pass_context
def evaluate(ctx: click.Context, **given: Any) -> None:
    """Score a model on a benchmark or on your own RGB-D pairs.

    \b
    distilldepth evaluate --model distilldepth-mini --data scenes
    distilldepth evaluate --model runs/mine --data nyuv2 --root NYU --out eval
    distilldepth evaluate --data nyuv2 --root NYU --check
    distilldepth evaluate --predictions MAPS --quantity depth --data pairs/
    distilldepth evaluate --compare eval/mine eval/other
    distilldepth evaluate --task completion --points 500 --data pairs/

    baseline:constant and baseline:ramp look at no pixel: what a model has to beat. Those of completion are
    baseline:nearest, baseline:linear, baseline:morphology, and baseline:align, or baseline:align:MODEL for a depth
    model brought to the points by least squares; iRMSE and iMAE are in 1/km, as KITTI states them. Frames that cannot
    be read are listed at the end, the result says that it is not complete, and the exit code is 1.
    """
    mode = _mode(ctx, given)
    options.check_json_target(given["json_file"], _files_in_use(given))
    if given["task"] == TASKS[1] and ctx.get_parameter_source("model") is click.core.ParameterSource.DEFAULT:
        given["model"] = words.COMPLETION_MODEL
    given["model"] = options.with_max_depth(given["model"], given["model_max_depth"])
    mode(given)


def _files_in_use(given: dict[str, Any]) -> list[str | Path]:
    """What is read, and what `--out` holds: nothing that `--json` may replace."""
    named = [*(given["data"] or ()), *(given["compare"] or ()), given["model"], given["predictions"], given["split"]]
    folders = [given["model"], given["predictions"], given["out"], *(given["compare"] or ())]
    inner = ("config.json", "predictions.json", "result.json", "run.json")
    return [*filter(None, named), *(Path(folder, name) for folder in filter(None, folders) for name in inner)]


def _mode(ctx: click.Context, given: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """What is to be done; wrong usage is found here, before anything is imported."""
    modes = {
        "--compare": (given["compare"], _compare),
        "--check": (given["check"], _check),
        "--analysis": (given["analysis"], _analyse),
        "--kitti-submission": (given["kitti_submission"], _submit),
    }
    chosen = [(name, run) for name, (value, run) in modes.items() if value]
    if len(chosen) > 1:
        raise click.UsageError(f"{chosen[0][0]} and {chosen[1][0]} contradict each other", ctx)
    name, run = chosen[0] if chosen else ("", _score)
    if not name and given["published"] and not given["data"]:
        name, run = "--published without --data", _show_published
    _refuse_what_is_not_used(ctx, name)
    _check_task(ctx, given)
    if given["predictions"] is not None:
        if ctx.get_parameter_source("model") is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("--model and --predictions contradict each other", ctx)
        for key in ("size", "resize_policy", "model_max_depth", "flip_average"):
            if given[key] is not None:
                raise click.UsageError(f"{_option(key)} needs a --model, not --predictions", ctx)
    else:
        if given["quantity"] is not None:
            raise click.UsageError("--quantity is about --predictions, which is not given", ctx)
        if None not in (given["depth_scale"], given["truth_scale"]):
            raise click.UsageError("--depth-scale and --truth-scale are one without --predictions; give one", ctx)
    if given["out"] is None:
        for key in ("resume", "save_predictions", "overwrite"):
            if given[key] and key not in _USED.get(name, ()):
                raise click.UsageError(f"{_option(key)} needs --out", ctx)
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume and --overwrite contradict each other", ctx)
    if None not in (given["min_depth"], given["max_depth"]) and not given["min_depth"] < given["max_depth"]:
        raise click.UsageError("--min-depth must be below --max-depth", ctx)
    if run in (_score, _check, _analyse):
        if not given["data"]:
            raise click.UsageError("Missing option '--data'", ctx)
        _require_root(ctx, given)
    return run


_USED = {
    "--compare": {"compare"},
    "--published without --data": {"published"},
    "--analysis": {
        "analysis", "model", "model_max_depth", "data", "root", "split", "limit", "depth_scale", "truth_scale",
    },
    "--kitti-submission": {
        "kitti_submission", "model", "model_max_depth", "root", "split", "limit", "overwrite", "resize_policy", "size",
    },
}  # fmt: skip
"""What each thing to do takes besides `_ANYWHERE`; `--check` may stand in any command line for scoring."""
_ANYWHERE = {"json_file", "offline", "device", "precision", "batch_size"}
"""Options that change how something is done and never what."""


def _refuse_what_is_not_used(ctx: click.Context, name: str) -> None:
    """Options that change nothing, or whose result would be written nowhere."""
    if name not in _USED:
        return
    for key in ctx.params:
        if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE:
            if key == "predictions":
                raise click.UsageError(f"{name} needs a --model, not --predictions", ctx)
            if key not in _USED[name] | _ANYWHERE:
                raise click.UsageError(f"{_option(key)} has no part in {name}", ctx)


def _check_task(ctx: click.Context, given: dict[str, Any]) -> None:
    """What is about completion goes with it only, and what is not about it does not."""
    completes = given["task"] == TASKS[1]
    for key in ("points", "score", "seed"):
        if not completes and ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_option(key)} is about completion: add --task completion", ctx)
    if not completes:
        return
    for key in ("predictions", "published"):
        if given[key]:
            raise click.UsageError(f"{_option(key)} has no part in --task completion", ctx)
    if given["points"] is None and not given["check"]:
        raise click.UsageError("--task completion needs --points: 500, lines:64 or keypoints, for example", ctx)


def _require_root(ctx: click.Context, given: dict[str, Any]) -> None:
    from distilldepth.datasets.open import benchmark_name

    for spec in given["data"]:
        if given["root"] is None and (name := benchmark_name(spec)):
            raise click.UsageError(f"--data {name} needs --root, the folder or tar file that holds it", ctx)


def _open(given: dict[str, Any]) -> list[Dataset]:
    from distilldepth.datasets.open import open_data

    return open_data(
        list(given["data"]),
        root=given["root"],
        split=given["split"],
        limit=given["limit"],
        truth_scale=_truth_scale(given),
    )


def _truth_scale(given: dict[str, Any]) -> float | None:
    """`--depth-scale` is about predictions if there are some."""
    return given["truth_scale"] if given["predictions"] is not None else given["truth_scale"] or given["depth_scale"]


def _score(given: dict[str, Any]) -> None:
    from contextlib import ExitStack

    from distilldepth.evaluate.run import evaluate as run
    from distilldepth.machine import command_line

    with ExitStack() as stack:
        try:
            result = run(
                _model(given),
                list(given["data"]),
                command=command_line(),
                truth_scale=_truth_scale(given),
                overrides=_overrides(given),
                resume=given["resume"] or "",
                start=lambda count: stack.enter_context(options.progress(count, "evaluate")),
                **{key: given[key] for key in _PASSED},
            )
        except KeyboardInterrupt:
            _say_how_to_go_on(given["out"])
            raise
    options.write_json(result.to_dict(), given["json_file"])
    if given["json_file"] != "-":
        _show(result, given["published"])
    if given["out"] is not None:
        click.echo(f"report: {Path(given['out']) / 'report.html'}", err=True)
    failures = [(f"{failure.dataset}/{failure.name}", failure.error) for failure in result.failures]
    options.end_with_failures(failures, len(result.samples) + len(failures))


def _show(result: Evaluation, published: bool) -> None:
    from distilldepth.evaluate.record.table import make_table, point_lines

    console = options.console()
    info = result.metadata.model
    kinds = list(dict.fromkeys(dataset.kind for dataset in result.datasets))
    lines = [
        f"model     {info.name} ({info.quantity}, {info.licence})",
        f"protocol  {result.protocol.describe()}",
        *(f"          {line}" for line in result.protocol.effective(kinds).splitlines()),
        *(f"          {line}" for line in point_lines(result)),
        *(f"note      {note}" for note in result.notes),
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    console.print(make_table(result, published=_published_rows(kinds) if published else None))


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    """The rules that were given, in the words of the library."""
    return {rule: rule_words(rule).get(given[rule], given[rule]) for rule in OVERRIDES if given[rule] is not None}


_PASSED = (
    "root", "split", "protocol", "limit", "resize_policy", "size", "batch_size", "device", "precision", "offline",
    "out", "overwrite", "save_predictions", "task", "points", "score", "seed",
)  # fmt: skip
"""Options that `evaluate` takes by the same name."""


def _model(given: dict[str, Any]) -> str | StoredPredictions:
    if given["predictions"] is None:
        return given["model"]
    from distilldepth.evaluate.predictions import StoredPredictions

    quantity = given["quantity"]
    return StoredPredictions(
        given["predictions"],
        None if quantity is None else quantity.replace("-", "_"),
        depth_scale=given["depth_scale"],
    )


def _say_how_to_go_on(out: str | None) -> None:
    if out is None:
        click.echo("\nnothing was kept; with --out FOLDER an evaluation can be interrupted and continued", err=True)
        return
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    if "--resume" not in words and "--resume=auto" not in words:
        words += ["--resume", "auto"]
    click.echo(f"\nto continue at the next sample: {shlex.join(['distilldepth', *words])}", err=True)


def _check(given: dict[str, Any]) -> None:
    from distilldepth.datasets.check import check

    reports = [check(dataset) for dataset in _open(given)]
    options.write_json([report.to_dict() for report in reports], given["json_file"])
    if given["json_file"] != "-":
        _show_check(reports)
    for report in reports:
        for warning in report.warnings:
            click.echo(f"distilldepth: warning: {report.name}: {warning}", err=True)
    unreadable = [(f"{report.name}/{bad.name}", bad.error) for report in reports for bad in report.unreadable]
    options.end_with_failures(unreadable, sum(report.read for report in reports) + len(unreadable))


def _show_check(reports: list[DatasetReport]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("dataset", no_wrap=True)
    for heading in ("samples", "read", "image", "ground truth", "valid", "min", "median", "max"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for report in reports:
        count, expected = report.count, report.expected
        table.add_row(
            Text(report.name),
            str(count) if expected in (None, count) else f"{count} of {expected}",
            str(report.read),
            _sizes(report.images),
            _sizes(report.truths),
            "" if report.valid_share is None else f"{report.valid_share:.1%}",
            *("" if value is None else f"{value:.3g}" for value in (report.min, report.median, report.max)),
            "m" if report.is_metric else "1/px",
        )
    console = options.console()
    console.print(table)
    for report in reports:
        for note in report.notes:
            console.print(f"{report.name}: {note}", soft_wrap=True, markup=False)


def _sizes(shapes: list[list[int]]) -> str:
    """`480 x 640`, one line each, at most three."""
    lines = [f"{height} x {width}" + (f" ({count})" if len(shapes) > 1 else "") for height, width, count in shapes]
    return "\n".join(lines[:3] + ([f"{len(lines) - 3} more"] if len(lines) > 3 else []))


def _compare(given: dict[str, Any]) -> None:
    from distilldepth.evaluate.compare import compare, make_comparison_table
    from distilldepth.evaluate.record.result import read_evaluation

    a, b = map(read_evaluation, given["compare"])
    try:
        comparison = compare(a, b)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    options.write_json(comparison.to_dict(), given["json_file"])
    if given["json_file"] == "-":
        return
    console = options.console()
    console.print(f"protocol  {comparison.protocol}", soft_wrap=True, markup=False)
    for note in comparison.notes:
        console.print(f"note      {note}", soft_wrap=True, markup=False)
    console.print(make_comparison_table(comparison))
    for dataset in comparison.datasets:
        for only, label in (("only_a", "a"), ("only_b", "b")):
            names = getattr(dataset, only)
            if names:
                some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                console.print(f"only in {label}: {len(names)} of {dataset.name} ({some})", soft_wrap=True, markup=False)


def _analyse(given: dict[str, Any]) -> None:
    from contextlib import ExitStack

    from distilldepth.evaluate.local_global import local_global

    datasets = _open(given)
    with ExitStack() as stack:
        result = local_global(
            given["model"],
            datasets,
            start=lambda count: stack.enter_context(options.progress(count, "analyse")),
            **{key: given[key] for key in ("batch_size", "device", "precision", "offline")},
        )
    options.write_json(result.to_dict(), given["json_file"])
    if given["json_file"] != "-":
        options.console().print(result.make_table())
    failures = [(f"{failure.dataset}/{failure.name}", failure.error) for failure in result.failures]
    options.end_with_failures(failures, sum(len(dataset.items) for dataset in datasets))


def _published_rows(kinds: list[str]) -> list[PublishedRow]:
    from distilldepth.evaluate.record.published import published_rows

    return [row for kind in kinds if kind for row in published_rows(kind)]


def _show_published(given: dict[str, Any]) -> None:
    from distilldepth.evaluate.record.published import make_published_table, published_kinds

    rows = [row.to_dict() for row in _published_rows(list(published_kinds()))]
    options.write_json(rows, given["json_file"])
    if given["json_file"] != "-":
        options.console().print(make_published_table())


def _submit(given: dict[str, Any]) -> None:
    from contextlib import ExitStack

    from distilldepth.datasets import submission_items
    from distilldepth.evaluate.baselines import open_model
    from distilldepth.evaluate.submission import write_kitti_submission

    if given["root"] is None:
        raise click.UsageError("--kitti-submission needs --root, the folder with test_depth_prediction_anonymous/image")
    limit = given["limit"]
    images = submission_items(given["root"], split=given["split"], strict_count=limit is None)[:limit]
    model = open_model(given["model"], given["offline"])
    with ExitStack() as stack:
        written = write_kitti_submission(
            model,
            images,
            given["kitti_submission"],
            start=lambda count: stack.enter_context(options.progress(count, "predict")),
            **{key: given[key] for key in ("overwrite", "resize_policy", "size", "batch_size", "device", "precision")},
        )
    options.write_json(written.to_dict(), given["json_file"])
    click.echo(f"wrote {written.written} of {written.expected} maps to {written.folder}", err=True)
    options.end_with_failures([(bad.name, bad.error) for bad in written.failures], len(images))
