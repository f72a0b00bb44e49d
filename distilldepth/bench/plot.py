"""The roofline: what each row achieves against what memory and arithmetic of the machine allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilldepth.bench.result import Result, Row
from distilldepth.errors import DistillDepthError, UsageError

SUFFIXES = (".svg", ".png")
_COLOURS = {"native": "#c1272d", "triton": "#0072b2", "reference": "#444444", "compile": "#b8860b"}
_USUAL_COLOUR = "#7a9e3f"
_MARKERS = {"forward": "o", "forward+backward": "s"}
_ROOFS = {"copy_bytes_per_s": "-", "cached_copy_bytes_per_s": "--"}
_COLUMNS = 4


def check_plot(path: Path) -> None:
    """Fail before the measurement, not after it, if the picture could not be drawn.

    Raises:
        ValueError: neither SVG nor PNG.
        DistillDepthError: matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot must name a file that ends in .svg or .png, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DistillDepthError("--plot needs matplotlib; pip install 'distilldepth[plot]'") from None


def draw_roofline(result: Result, path: Path) -> None:
    """Draw a benchmark result, one panel per operation and one point per row.

    Across: operations per byte that the operation needs at least. Up: operations per second, `operations_min` over the
    median. The roofs are the measured copy bandwidth, from memory and from a cache, and the measured rate of a matrix
    product. A point above the line of the memory worked on maps that stayed in a cache.

    Args:
        result: of `run_benchmark`.
        path: an SVG or PNG file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    metadata, rows = result["metadata"], result["results"]
    panels: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["op"], row["contexts"]), []).append(row)
    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 4.2 * lines + 1.2), layout="constrained")
    rates = [_rate(row) for row in rows]
    bottom, top = min(rates) / 4, max(metadata["peak_flops_per_s"] / 1e9, max(rates)) * 3
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, ((op, contexts), members) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, members, metadata, bottom, top)
        axes.set_title(f"{op}{f', {contexts} contexts' if contexts else ''}", fontsize=11, loc="left")
    for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel("least operations per least byte", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("least operations per second, 10⁹", fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    shape, dtype = "x".join(map(str, rows[0]["shape"])), rows[0]["dtype"]
    facts = [f"{shape} {dtype}", metadata["device"], f"torch {metadata['torch']}, threads: {metadata['threads']}"]
    between = ", " if columns > 1 else "\n"
    figure.suptitle(between.join(facts) + "\nlabels: backend, direction, share of memory bandwidth", fontsize=10)
    peak, memory, cached = (
        metadata[key] / 1e9 for key in ("peak_flops_per_s", "copy_bytes_per_s", "cached_copy_bytes_per_s")
    )
    handles = [
        Line2D([], [], color="#888888", linestyle="-", label=f"copy from memory, {memory:.0f} GB/s"),
        Line2D([], [], color="#888888", linestyle="--", label=f"copy in a cache, {cached:.0f} GB/s"),
        Line2D([], [], linestyle="none", label=f"flat: matrix product, {peak:.0f} GFLOP/s"),
        *(
            Line2D([], [], color="#444444", linestyle="none", marker=marker, label=direction)
            for direction, marker in _MARKERS.items()
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if columns > 2 else 2, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text: a tenth of the size, and it can be searched.
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, format=path.suffix[1:].lower(), dpi=130)


def _panel(axes: Any, rows: list[Row], metadata: dict[str, Any], bottom: float, top: float) -> None:
    intensities = sorted({_intensity(row) for row in rows})
    left, right = intensities[0] / 8, intensities[-1] * 40
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(labelsize=8)
    peak = metadata["peak_flops_per_s"] / 1e9
    for key, style in _ROOFS.items():
        bandwidth = metadata[key] / 1e9
        corners = [left, min(max(peak / bandwidth, left), right), right]
        heights = [min(x * bandwidth, peak) for x in corners]
        axes.plot(corners, heights, color="#888888", linewidth=1, linestyle=style)
    height_points = axes.get_position().height * axes.figure.get_figheight() * 72
    labels = _spread([_rate(row) for row in rows], bottom, top, 9.5 / max(height_points, 1))
    for row, place in zip(rows, labels, strict=True):
        colour = _COLOURS.get(row["backend"], _USUAL_COLOUR)
        x, y = _intensity(row), _rate(row)
        axes.plot([x], [y], _MARKERS[row["direction"]], color=colour, markersize=6, zorder=3)
        axes.plot(
            [x, intensities[-1] * 1.6, intensities[-1] * 2], [y, place, place], color=colour, linewidth=0.5, alpha=0.6
        )
        short = "fwd" if row["direction"] == "forward" else "fwd+bwd"
        axes.text(
            intensities[-1] * 2.1,
            place,
            f"{row['backend']} {short}, {_percent(row['bandwidth_fraction'])}",
            fontsize=7.5,
            color=colour,
            va="center",
        )


def _spread(values: list[float], bottom: float, top: float, gap: float) -> list[float]:
    """Move labels apart on a logarithmic axis: at least `gap` of its height between neighbours, in their order."""
    from math import log

    low, span = log(bottom), log(top / bottom)
    wanted = [(log(value) - low) / span for value in values]
    order = sorted(range(len(values)), key=lambda i: wanted[i])
    placed: list[float] = []
    for index in order:
        placed.append(max(wanted[index], placed[-1] + gap if placed else gap))
    # What was pushed out at the top moves everything below it down again.
    ceiling = 1 - gap
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    places = [0.0] * len(values)
    for index, share in zip(order, placed, strict=True):
        places[index] = bottom * (top / bottom) ** share
    return places


def _rate(row: Row) -> float:
    return row["operations_min"] / row["median_ms"] / 1e6


def _intensity(row: Row) -> float:
    return row["operations_min"] / row["bytes_min"]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
