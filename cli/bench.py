"""`distilldepth bench`: time the kernels."""

from __future__ import annotations

import re
from typing import Any

import click

from distilldepth.cli import options

KERNELS = ("hybrid-norm", "crop-ssi", "channel-kl", "backproject")


class Shape(click.ParamType):
    """`BxHxW`."""

    name = "BxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", value):
            self.fail(f"must be BxHxW, for example 2x192x256, got '{value}'", param, ctx)
        batch, height, width = map(int, value.split("x"))
        return batch, height, width


@click.command()
@click.option(
    "--kernel",
    "kernels",
    type=options.WordList((*KERNELS, "all")),
    multiple=True,
    help="Repeatable or separated by commas.  [default: all]",
)
@click.option("--shape", type=Shape(), default="2x192x256", show_default=True, help="Batch, height, width of the maps.")
@click.option(
    "--dtype",
    type=options.NearestChoice(("float32", "bfloat16", "float16")),
    default="float32",
    show_default=True,
    help="Type of the maps.",
)
@click.option(
    "--contexts",
    type=options.NearestChoice(("range", "quantile", "spatial")),
    default="range",
    show_default=True,
    help="For hybrid-norm and crop-ssi: how pixels are split into contexts.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="Timed runs per row.")
@options.device_option
@options.json_option
def bench(
    kernels: tuple[tuple[str, ...], ...],
    shape: tuple[int, int, int],
    dtype: str,
    contexts: str,
    repeats: int,
    device: str,
    json_file: str | None,
) -> None:
    """Time the fused kernels against plain PyTorch.

    \b
    distilldepth bench --kernel hybrid-norm
    distilldepth bench --kernel all --shape 4x560x560 --json bench.json

    The error is the largest difference from the float64 reference, relative to the largest entry: of the value for
    forward, of the gradient for forward+backward.
    On a CPU that does other work too, only ratios within one run mean something.
    """
    options.check_json_target(json_file)

    from rich.table import Table

    from distilldepth import benchmark

    asked = list(dict.fromkeys(name for words in kernels for name in words)) or ["all"]
    names = KERNELS if "all" in asked else asked

    def tell(row: dict[str, Any]) -> None:
        click.echo(f"{row['op']} {row['backend']} {row['direction']}: {row['median_ms']:.2f} ms", err=True)

    result = benchmark.run_benchmark(
        names,
        shape,
        dtype,
        contexts=contexts,
        device=device,
        repeats=repeats,
        command=benchmark.command_line(),
        on_row=tell,
    )
    options.write_json(result, json_file)
    if json_file == "-":
        return
    metadata = result["metadata"]
    table = Table(
        title=f"{'x'.join(map(str, shape))} {dtype} on {metadata['device']}, torch {metadata['torch']}, "
        f"threads: {metadata['threads']}",
        title_justify="left",
    )
    for heading in ("op", "backend", "direction"):
        table.add_column(heading)
    for heading in ("median ms", "p20 to p80", "vs reference", "of copy bandwidth", "max error"):
        table.add_column(heading, justify="right")
    rows = result["results"]
    base = {(row["op"], row["direction"]): row["median_ms"] for row in rows if row["backend"] == "reference"}
    for row in rows:
        ratio = base[row["op"], row["direction"]] / row["median_ms"]
        table.add_row(
            row["op"],
            row["backend"],
            row["direction"],
            f"{row['median_ms']:.2f}",
            f"{row['p20_ms']:.2f} to {row['p80_ms']:.2f}",
            f"{ratio:.2f}x",
            f"{100 * row['bandwidth_fraction']:.2f} %",
            f"{row['max_error']:.1e}",
        )
    options.console().print(table)
