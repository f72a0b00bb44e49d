"""`distilldepth evaluate`: score a model."""

from __future__ import annotations

import click

from distilldepth.cli import options

PROTOCOLS = ("affine-disparity", "affine-depth", "scale-depth", "metric")


@click.command()
@options.model_option()
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="PATH|scenes[:N]",
    help="Manifest (.jsonl), folder of manifests, folder with images/ and depth/, or procedural scenes; repeatable.",
)
@click.option("--root", default=None, metavar="FOLDER", help="Folder that the paths in manifests are relative to.")
@click.option(
    "--protocol",
    type=options.NearestChoice(PROTOCOLS),
    default=None,
    help="See `distilldepth list protocols`. Default: what fits the model's numbers.",
)
@click.option(
    "--align",
    type=options.NearestChoice(("least-squares", "median", "none")),
    default=None,
    help="Replace the protocol's alignment.",
)
@click.option(
    "--space", type=options.NearestChoice(("disparity", "depth")), default=None, help="Replace where it is fitted."
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="First so many frames of each dataset.")
@options.resize_options
@options.batch_size_option()
@options.device_option
@options.precision_option
@options.json_option
@options.offline_option
def evaluate(
    model: str,
    data: tuple[str, ...],
    root: str | None,
    protocol: str | None,
    align: str | None,
    space: str | None,
    limit: int | None,
    resize_policy: str | None,
    size: int | None,
    batch_size: int,
    device: str,
    precision: str,
    json_file: str | None,
    offline: bool,
) -> None:
    """Score a model on a benchmark or on your own RGB-D pairs.

    \b
    distilldepth evaluate --model distilldepth-mini --data scenes
    distilldepth evaluate --model runs/mine/student --data pairs/ --json result.json
    distilldepth evaluate --model baseline:ramp --data set.jsonl

    baseline:constant and baseline:ramp look at no pixel: what a model has to beat. Frames that cannot be read are
    listed at the end, the result says that it is not complete, and the exit code is 1.
    """
    options.check_json_target(json_file)

    from contextlib import ExitStack

    from distilldepth.benchmark import command_line
    from distilldepth.evaluate.run import evaluate as run
    from distilldepth.evaluate.table import make_table

    with ExitStack() as stack:
        result = run(
            model,
            list(data),
            root=root,
            protocol=protocol,
            align=align,
            space=space,
            limit=limit,
            resize_policy=resize_policy,
            size=size,
            batch_size=batch_size,
            device=device,
            precision=precision,
            offline=offline,
            command=command_line(),
            start=lambda count: stack.enter_context(options.progress(count, "evaluate")),
        )
    options.write_json(result.to_dict(), json_file)
    if json_file != "-":
        console = options.console()
        info = result.metadata["model"]
        console.print(f"model     {info['name']} ({info['quantity']}, {info['licence']})", soft_wrap=True, markup=False)
        console.print(f"protocol  {result.protocol.describe()}", soft_wrap=True, markup=False)
        for note in result.notes:
            console.print(f"note      {note}", soft_wrap=True, markup=False)
        console.print(make_table(result))
    failures = [(f"{failure['dataset']}/{failure['name']}", failure["error"]) for failure in result.failures]
    options.end_with_failures(failures, len(result.samples) + len(failures))
