"""`distilldepth bench`: time the kernels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from distilldepth.cli import options
from distilldepth.errors import shown

KERNELS = ("hybrid-norm", "crop-ssi", "channel-kl", "backproject")
CONTEXTS = ("range", "quantile", "spatial")
BACKENDS = ("native", "triton", "reference", "compile", "mask-list", "grid-sample", "kl-div", "meshgrid")
DEFAULT_SHAPE = (2, 192, 256)


class Shape(click.ParamType):
    """`BxHxW`."""

    name = "BxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"([1-9][0-9]{0,8}x){2}[1-9][0-9]{0,8}", value):
            self.fail(f"must be BxHxW, for example 2x192x256, got {shown(value)}", param, ctx)
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
@click.option(
    "--backend",
    "backends",
    type=options.WordList((*BACKENDS, "all")),
    multiple=True,
    help="What to time, repeatable or separated by commas; the last four are the usual formulation of each kernel.  "
    "[default: all but compile, which can take minutes to compile; with --scaling native, triton, reference]",
)
@click.option(
    "--shape",
    type=Shape(),
    default=None,
    help="Batch, height, width of the maps.  [default: 2x192x256; with --scaling the largest, 4x1120x1120]",
)
@click.option(
    "--dtype",
    type=options.NearestChoice(("float32", "bfloat16", "float16")),
    default="float32",
    show_default=True,
    help="Type of the maps.",
)
@click.option(
    "--contexts",
    type=options.WordList((*CONTEXTS, "all")),
    multiple=True,
    help="For hybrid-norm and crop-ssi: how pixels are split into contexts.  [default: range]",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 1_000_000),
    default=None,
    help="Timed runs per row.  [default: at least 5 and half a second; 3 where one takes more than 2 seconds]",
)
@click.option("--cold", is_flag=True, help="On a GPU: overwrite the level-2 cache before every timed run.")
@click.option("--scaling", is_flag=True, help="Time growing numbers of pixels and images instead of one shape.")
@click.option("--plot", "plot_file", metavar="FILE", default=None, help="Draw the roofline, .svg or .png.")
@options.device_option
@options.json_option
def bench(
    kernels: tuple[tuple[str, ...], ...],
    backends: tuple[tuple[str, ...], ...],
    shape: tuple[int, int, int] | None,
    dtype: str,
    contexts: tuple[tuple[str, ...], ...],
    repeats: int | None,
    cold: bool,
    scaling: bool,
    plot_file: str | None,
    device: str,
    json_file: str | None,
) -> None:
    """Time the fused kernels against plain PyTorch.

    \b
    distilldepth bench --kernel hybrid-norm
    distilldepth bench --kernel all --contexts all --shape 4x560x560 --json bench.json --plot roofline.svg
    distilldepth bench --kernel all --scaling

    The backends of a kernel take turns, so that a busy machine slows all of them; still, only ratios within one run
    mean something on a CPU that does other work too. The error is the largest difference from the float64 reference,
    relative to the largest entry: of the value for forward, of the gradient for forward+backward.
    """
    if scaling and plot_file is not None:
        raise click.UsageError("--scaling and --plot contradict each other: the roofline is drawn for one shape")
    options.check_json_target(json_file)
    if plot_file is not None:
        from distilldepth.benchmark.plot import check_plot
        from distilldepth.predict.writers import check_writable

        check_plot(Path(plot_file))
        check_writable(Path(plot_file).parent)

    from distilldepth import benchmark

    def tell(row: dict[str, Any]) -> None:
        where = f"{_kernel(row)} {row['backend']} {row['direction']} {_shape(row)}"
        click.echo(f"{where}: {row['median_ms']:.3f} ms", err=True)

    arguments = {
        "contexts": _words(contexts, CONTEXTS, ("range",)),
        "backends": _words(backends, BACKENDS, None),
        "device": device,
        "repeats": repeats,
        "cold": cold,
        "command": benchmark.command_line(),
        "on_row": tell,
    }
    names = _words(kernels, KERNELS, KERNELS)
    if scaling:
        result = benchmark.run_scaling(names, shape or benchmark.SCALING_SHAPE, dtype, **arguments)
    else:
        result = benchmark.run_benchmark(names, shape or DEFAULT_SHAPE, dtype, **arguments)
    options.write_json(result, json_file)
    if plot_file is not None:
        from distilldepth.benchmark.plot import draw_roofline

        draw_roofline(result, Path(plot_file))
        click.echo(f"wrote {plot_file}", err=True)
    if json_file != "-":
        (_print_scaling if scaling else _print_table)(result)
    _end(result["metadata"]["not_run"])


def _words(
    given: tuple[tuple[str, ...], ...], every: tuple[str, ...], default: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    asked = tuple(dict.fromkeys(word for words in given for word in words))
    return every if "all" in asked else asked or default


def _print_table(result: dict[str, Any]) -> None:
    from rich.table import Table

    from distilldepth import benchmark

    rows = result["results"]
    ratios = benchmark.speedups(rows)
    baselines = [word for word in ("usual", "reference", "compile") if any(ratio[word] for ratio in ratios)]
    table = Table(title=_title(result), title_justify="left")
    for heading in ("kernel", "backend", "direction"):
        table.add_column(heading)
    for heading in ("median ms", "p20 to p80", "runs", *(f"vs {word}" for word in baselines)):
        table.add_column(heading, justify="right")
    for heading in ("least MB", "of copy bandwidth", "extra MB at peak (maps)", "max error"):
        table.add_column(heading, justify="right")
    for row, ratio, following in zip(rows, ratios, [*rows[1:], None], strict=True):
        table.add_row(
            _kernel(row),
            row["backend"],
            row["direction"],
            f"{row['median_ms']:.3f}",
            f"{row['p20_ms']:.3f} to {row['p80_ms']:.3f}",
            str(row["repeats"]),
            *("-" if ratio[word] is None else f"{ratio[word]:.2f}x" for word in baselines),
            f"{row['bytes_min'] / 1e6:.2f}",
            f"{100 * row['bandwidth_fraction']:.2f} %",
            _memory(row),
            f"{row['max_error']:.1e}",
            end_section=following is None
            or (_kernel(following), following["direction"]) != (_kernel(row), row["direction"]),
        )
    console = options.console()
    console.print(table)
    metadata = result["metadata"]
    console.print(
        f"Copy bandwidth {metadata['copy_bytes_per_s'] / 1e9:.1f} GB/s from memory, "
        f"{metadata['cached_copy_bytes_per_s'] / 1e9:.1f} GB/s in a cache; matrix product "
        f"{metadata['peak_flops_per_s'] / 1e9:.0f} GFLOP/s."
    )
    console.print(
        "Least bytes, forward | forward+backward, with P pixels of the maps, C of the crops, i bytes per value:"
    )
    for op in dict.fromkeys(row["op"] for row in rows):
        console.print(f"  {op}: {' | '.join(metadata['formulas'][op]['bytes'].values())}")


def _print_scaling(result: dict[str, Any]) -> None:
    from rich.table import Table

    from distilldepth import benchmark

    rows = result["results"]
    table = Table(title=_title(result), title_justify="left")
    for heading in ("kernel", "backend", "shape"):
        table.add_column(heading)
    for heading in ("median ms", "p20 to p80", "ns per pixel", "twice the pixels", "twice the images"):
        table.add_column(heading, justify="right")
    order = sorted(range(len(rows)), key=lambda i: (_kernel(rows[i]), rows[i]["backend"], rows[i]["shape"]))
    growth = benchmark.per_doubling(rows)
    for place, index in enumerate(order):
        row, grown = rows[index], growth[index]
        following = rows[order[place + 1]] if place + 1 < len(order) else None
        table.add_row(
            _kernel(row),
            row["backend"],
            _shape(row),
            f"{row['median_ms']:.3f}",
            f"{row['p20_ms']:.3f} to {row['p80_ms']:.3f}",
            f"{grown['ns_per_pixel']:.2f}",
            *("" if grown[key] is None else f"{grown[key]:.2f}x" for key in ("pixels", "batch")),
            end_section=following is None
            or (_kernel(following), following["backend"]) != (_kernel(row), row["backend"]),
        )
    console = options.console()
    console.print(table)
    checks = benchmark.linear_cost(rows)
    console.print(
        "Linear cost: four times the pixels at most 4.6 times the time, N images at most N times the time of one."
    )
    for name in dict.fromkeys((_kernel(check), check["backend"]) for check in checks):
        mine = [check for check in checks if (_kernel(check), check["backend"]) == name]
        broken = [check for check in mine if not check["holds"]]
        worst = max(mine, key=lambda check: check["ratio"] / check["limit"])
        verdict = f"does not hold in {len(broken)} of {len(mine)}" if broken else f"holds in all {len(mine)}"
        console.print(
            f"  {' '.join(name)}: {verdict}; worst {worst['what']}: {worst['ratio']:.2f}x, limit {worst['limit']:.2f}x"
        )


def _title(result: dict[str, Any]) -> str:
    metadata, row = result["metadata"], result["results"][0]
    shapes = {_shape(row) for row in result["results"]}
    shape = f"{_shape(row)} " if len(shapes) == 1 else ""
    return (
        f"{shape}{row['dtype']} on {metadata['device']}, torch {metadata['torch']}, threads: {metadata['threads']}"
        f"{', cold cache' if metadata['cold_cache'] else ''}"
    )


def _kernel(row: dict[str, Any]) -> str:
    return f"{row['op']} {row['contexts']}" if row["contexts"] else row["op"]


def _shape(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"]))


def _memory(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return "-"
    return f"{row['peak_bytes'] / 1e6:.1f} ({row['peak_bytes'] / row['map_bytes']:.1f})"


def _end(not_run: list[dict[str, Any]]) -> None:
    """Say what was left out and why; exit 1 if a kernel broke."""
    for why in dict.fromkeys((entry["backend"], entry["why"]) for entry in not_run if not entry["failed"]):
        click.echo(f"not run: {': '.join(why)}", err=True)
    failures = [(f"{_kernel(entry)} {entry['backend']}", entry["why"]) for entry in not_run if entry["failed"]]
    for where, why in failures:
        click.echo(f"distilldepth: error: {options.printable(f'{where}: {why}')}", err=True)
    if failures:
        click.get_current_context().exit(1)
