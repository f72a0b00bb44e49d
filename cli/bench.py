"""`distilldepth bench`: time the kernels."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from distilldepth.bench.choices import BACKENDS, DEFAULT_SHAPE, KERNELS, SCALING_SHAPE, WITH_CONTEXTS
from distilldepth.bench.derive import Check, compared_with, linear_cost, per_doubling, uncertainty
from distilldepth.bench.result import LeftOut, Result, Row
from distilldepth.cli import options
from distilldepth.cli.table import Column, available_width, format_rows
from distilldepth.errors import shown
from distilldepth.words import BACKENDS as IMPLEMENTATIONS
from distilldepth.words import CONTEXTS, FLOATS

PRECISE, NOISY, NOISE = 0.01, 0.1, 0.5
"""Relative standard error of a ratio: below the first it has three digits, then two; above the second it is said to be
noisy, above the third it is not told at all."""
MOST_REPEATS = 1000
"""More runs than this are never advised."""


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


class Shape(click.ParamType):
    """`BxHxW`."""

    name = "BxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"([1-9][0-9]{0,8}x){2}[1-9][0-9]{0,8}", value):
            self.fail(f"must be BxHxW, for example {_by(DEFAULT_SHAPE)}, got {shown(value)}", param, ctx)
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
    f"[default: all but compile, which can take minutes to compile; with --scaling {', '.join(IMPLEMENTATIONS)}]",
)
@click.option(
    "--shape",
    type=Shape(),
    default=None,
    help=f"Batch, height, width of the maps.  [default: {_by(DEFAULT_SHAPE)}; with --scaling the largest, "
    f"{_by(SCALING_SHAPE)}]",
)
@click.option(
    "--dtype",
    type=options.NearestChoice(FLOATS),
    default="float32",
    show_default=True,
    help="Type of the maps.",
)
@click.option(
    "--contexts",
    type=options.WordList((*CONTEXTS, "all")),
    multiple=True,
    help=f"For {' and '.join(WITH_CONTEXTS)}: how pixels are split into contexts.  [default: range]",
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
    contexts: tuple[tuple[str, ...], ...],
    scaling: bool,
    plot_file: str | None,
    json_file: str | None,
    **how: Any,
) -> None:
    """Time the fused kernels against plain PyTorch.

    \b
    distilldepth bench --kernel hybrid-norm
    distilldepth bench --kernel all --contexts all --json - >bench.json
    distilldepth bench --shape 4x560x560 --plot roofline.svg
    distilldepth bench --kernel all --scaling

    The backends of a kernel take turns, so that a busy machine slows all of them; still, only ratios within one run
    mean something on a CPU that does other work too. A ratio whose standard error, from the p20 to p80 spread and the
    number of runs of both timings, is above 10 % is marked as noisy; above 50 % it is not told. The error is the
    largest difference from the float64 reference, relative to the largest entry: of the value for forward, of the
    gradient for forward+backward.

    The file of --json is written after every row: a run that is cut off leaves what it has measured, and `finished` in
    its metadata is null.
    """
    if scaling and plot_file is not None:
        raise click.UsageError("--scaling and --plot contradict each other: the roofline is drawn for one shape")
    options.check_json_target(json_file)
    if plot_file is not None:
        from distilldepth.bench.plot import check_plot
        from distilldepth.files import check_writable

        check_plot(Path(plot_file))
        check_writable(Path(plot_file).parent)

    from distilldepth.bench.run import Request, run_benchmark, run_scaling
    from distilldepth.machine import command_line

    def tell(row: Row) -> None:
        where = f"{_kernel(row)} {row['backend']} {row['direction']} {_shape(row)}"
        click.echo(f"{where}: {digits(row['median_ms'])} ms", err=True)

    def save(result: Result) -> None:
        if json_file not in (None, "-"):
            options.save_json(result, json_file)

    request = Request(
        _words(kernels, KERNELS) or KERNELS,
        contexts=_words(contexts, CONTEXTS) or ("range",),
        backends=_words(backends, BACKENDS) or None,
        command=command_line(),
        **how,
    )
    run = run_scaling if scaling else run_benchmark
    result = run(request, on_row=tell, on_result=save)
    options.write_json(result, json_file)
    if plot_file is not None:
        from distilldepth.bench.plot import draw_roofline

        draw_roofline(result, Path(plot_file))
        click.echo(f"wrote {plot_file}", err=True)
    if json_file != "-":
        (_print_scaling if scaling else _print_table)(result)
    _end(result["metadata"]["not_run"])


def _words(given: tuple[tuple[str, ...], ...], every: tuple[str, ...]) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(word for words in given for word in words))
    return every if "all" in asked else asked


def _print_table(result: Result) -> None:
    rows = result["results"]
    found = compared_with(rows)
    words = [word for word in ("usual", "reference", "compile") if any(base[word] for base in found)]
    columns = [
        Column("backend"),
        *(Column(heading, right=True) for heading in ("median ms", "p20 to p80", "runs")),
        *(Column(f"vs {word}", right=True) for word in words),
        *(Column(heading, right=True) for heading in ("of copy speed", "max error", "extra MB (maps)", "least MB")),
    ]
    cells = [
        [
            *_times(row),
            str(row["repeats"]),
            *(_ratio(base[word], row) for word in words),
            f"{100 * row['bandwidth_fraction']:.2g} %",
            f"{row['max_error']:.0e}",
            _memory(row),
            digits(row["bytes_min"] / 1e6),
        ]
        for row, base in zip(rows, found, strict=True)
    ]
    _show(result, [f"{_kernel(row)}, {row['direction']}" for row in rows], columns, cells)
    pairs = [(row, there) for row, base in zip(rows, found, strict=True) for word in words if (there := base[word])]
    metadata = result["metadata"]
    _say(
        *_noise_note([pair for pair in pairs if pair[0] is not pair[1]]),
        f"Copy speed {metadata['copy_bytes_per_s'] / 1e9:.1f} GB/s from memory, "
        f"{metadata['cached_copy_bytes_per_s'] / 1e9:.1f} GB/s in a cache; matrix product "
        f"{metadata['peak_flops_per_s'] / 1e9:.0f} GFLOP/s.",
        "Least bytes, forward | forward+backward, with P pixels of the maps, C of the crops, i bytes per value:",
        *(
            f"  {op}: {' | '.join(metadata['formulas'][op]['bytes'].values())}"
            for op in dict.fromkeys(row["op"] for row in rows)
        ),
    )


def _print_scaling(result: Result) -> None:
    rows = result["results"]
    order = sorted(range(len(rows)), key=lambda i: (_kernel(rows[i]), rows[i]["backend"], rows[i]["shape"]))
    growth = per_doubling(rows)
    columns = [
        Column("shape"),
        *(
            Column(heading, right=True)
            for heading in ("median ms", "p20 to p80", "ns per pixel", "twice the pixels", "twice the images")
        ),
    ]
    cells = [
        [
            _shape(rows[i]),
            *_times(rows[i])[1:],
            digits(growth[i]["ns_per_pixel"]),
            _growth(growth[i]["pixels"], rows[i]),
            _growth(growth[i]["batch"], rows[i]),
        ]
        for i in order
    ]
    _show(result, [f"{_kernel(rows[i])}, {rows[i]['backend']}" for i in order], columns, cells)
    checks = linear_cost(rows)
    lines = []
    for name in dict.fromkeys((_kernel(check), check["backend"]) for check in checks):
        mine = [check for check in checks if (_kernel(check), check["backend"]) == name]
        broken = [check for check in mine if not check["holds"]]
        worst = max(mine, key=lambda check: check["ratio"] / check["limit"])
        verdict = f"does not hold in {len(broken)} of {len(mine)}" if broken else f"holds in all {len(mine)}"
        grown, limit = digits(worst["ratio"], 2), digits(worst["limit"], 2)
        lines.append(f"  {' '.join(name)}: {verdict}; worst {worst['what']}: {grown}x, limit {limit}x")
    noisy = sum(uncertainty(row) > NOISY for row in rows)
    _say(
        *(
            [f"Noisy: {noisy} of {len(rows)} medians, and with them what is marked ~; more --repeats help."]
            if noisy
            else []
        ),
        "Linear cost: four times the pixels at most 4.6 times the time, N images at most N times the time of one.",
        *lines,
    )


def _growth(value: float | None, row: Row) -> str:
    return "" if value is None else f"{'~' if uncertainty(row) > NOISY else ''}{digits(value, 2)}x"


def _show(result: Result, groups: list[str], columns: list[Column], cells: list[list[str]]) -> None:
    """Print a table with a title above every group of rows."""
    headings, *blocks = format_rows(columns, cells, _width())
    _say(_title(result))
    last = None
    for group, block in zip(groups, blocks, strict=True):
        if group != last:
            click.echo()
            click.secho(group, bold=True)
            click.echo("\n".join(headings))
        last = group
        click.echo("\n".join(block))
    click.echo()


def _say(*lines: str) -> None:
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        click.echo("\n".join(textwrap.wrap(line, _width(), subsequent_indent=indent, break_long_words=False)))


def _width() -> int:
    return available_width() or 100


def _times(row: Row) -> list[str]:
    return [row["backend"], digits(row["median_ms"]), f"{digits(row['p20_ms'])} to {digits(row['p80_ms'])}"]


def digits(value: float, count: int = 3) -> str:
    """Return a number with so many digits that mean something, never as a power of ten.

    >>> digits(0.0123456), digits(1234.5), digits(36.27, 2)
    ('0.0123', '1234', '36')
    """
    if value == 0:
        return "0"
    return f"{value:.{max(count - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def _ratio(base: Row | None, row: Row) -> str:
    """How many times faster, with as many digits as the spread of both timings leaves."""
    if base is None:
        return ""
    if base is row:
        return "1x"
    ratio, doubt = base["median_ms"] / row["median_ms"], uncertainty(base, row)
    if doubt > NOISE:
        return "noise"
    if doubt > NOISY:
        return f"~{digits(ratio, 2)}x, noisy"
    return f"{digits(ratio, 3 if doubt < PRECISE else 2)}x"


def _noise_note(pairs: list[tuple[Row, Row]]) -> list[str]:
    """Say what noisy means and how many runs would help, if any ratio is."""
    doubts = [(uncertainty(*pair), min(row["repeats"] for row in pair)) for pair in pairs]
    noisy = [(doubt, repeats) for doubt, repeats in doubts if doubt > NOISY]
    if not noisy:
        return []
    needed = max(
        25 if math.isinf(doubt) else max(5, math.ceil(repeats * (doubt / NOISY) ** 2)) for doubt, repeats in noisy
    )
    more = " or more" if needed > MOST_REPEATS else ""
    return [
        f"{len(noisy)} of {len(pairs)} ratios are noisy: the spread from p20 to p80 and the number of runs leave a "
        f"standard error above {NOISY:.0%} (noise: above {NOISE:.0%}, or fewer than 3 runs). Try --repeats "
        f"{min(needed, MOST_REPEATS)}{more} on a machine that does nothing else."
    ]


def _title(result: Result) -> str:
    metadata, row = result["metadata"], result["results"][0]
    shapes = {_shape(row) for row in result["results"]}
    shape = f"{_shape(row)} " if len(shapes) == 1 else ""
    return (
        f"{shape}{row['dtype']} on {metadata['device']}, torch {metadata['torch']}, threads: {metadata['threads']}"
        f"{', cold cache' if metadata['cold_cache'] else ''}"
    )


def _kernel(row: Row | Check | LeftOut) -> str:
    return f"{row['op']} {row['contexts']}" if row["contexts"] else row["op"]


def _shape(row: Row) -> str:
    return _by(row["shape"])


def _memory(row: Row) -> str:
    if row["peak_bytes"] is None:
        return "-"
    return f"{digits(row['peak_bytes'] / 1e6, 2)} ({row['peak_bytes'] / row['map_bytes']:.1f})"


def _end(not_run: list[LeftOut]) -> None:
    """Say what was left out and why; exit 1 if a kernel broke."""
    for left_out in dict.fromkeys((entry["backend"], entry["why"]) for entry in not_run if not entry["failed"]):
        click.echo(f"not run: {': '.join(left_out)}", err=True)
    failures = [(f"{_kernel(entry)} {entry['backend']}", entry["why"]) for entry in not_run if entry["failed"]]
    for where, why in failures:
        click.echo(f"distilldepth: error: {options.printable(f'{where}: {why}')}", err=True)
    if failures:
        click.get_current_context().exit(1)
