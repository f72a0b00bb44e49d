"""Derives Markdown tables, and the roofline, from kernel results.

python benchmarks/table.py benchmarks/results/kernels/NAME.json...
python benchmarks/table.py benchmarks/results/kernels/NAME.json --plot docs/roofline.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distilldepth.bench.derive import linear_cost, per_doubling, speedups


def markdown(result: dict) -> str:
    """Return the table of one result: of one shape, or, where there are several, of the growth with size."""
    metadata, rows = result["metadata"], result["results"]
    shapes = {tuple(row["shape"]) for row in rows}
    head = (
        f"{metadata['device']}, torch {metadata['torch']}, threads: {metadata['threads']}, "
        f"copy {metadata['copy_bytes_per_s'] / 1e9:.0f} GB/s, commit {metadata['commit']}"
    )
    # Results from before rows were written one by one do not say it: they were written at their end.
    if metadata.get("finished", "before") is None:
        head += ", cut off before its end"
    if len(shapes) > 1:
        return f"{rows[0]['dtype']}, {head}\n\n{_growth(rows)}"
    return f"{'x'.join(map(str, rows[0]['shape']))} {rows[0]['dtype']}, {head}\n\n{_comparison(rows)}"


def _comparison(rows: list[dict]) -> str:
    ratios = speedups(rows)
    words = [word for word in ("usual", "reference", "compile") if any(ratio[word] for ratio in ratios)]
    headings = ["kernel", "backend", "direction", "median ms", "p20 to p80", *(f"vs {word}" for word in words)]
    headings += ["of copy bandwidth", "extra maps at peak", "max error"]
    lines = []
    for row, ratio in zip(rows, ratios, strict=True):
        maps = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / row['map_bytes']:.1f}"
        cells = [_kernel(row), row["backend"], row["direction"], f"{row['median_ms']:.3g}"]
        cells += [f"{row['p20_ms']:.3g} to {row['p80_ms']:.3g}"]
        cells += ["" if ratio[word] is None else f"{ratio[word]:.3g}x" for word in words]
        cells += [f"{100 * row['bandwidth_fraction']:.2g} %", maps, f"{row['max_error']:.0e}"]
        lines.append(cells)
    return _table(headings, lines, left=3)


def _growth(rows: list[dict]) -> str:
    headings = ["kernel", "backend", "shape", "median ms", "ns per pixel", "twice the pixels", "twice the images"]
    lines = []
    for row, grown in zip(rows, per_doubling(rows), strict=True):
        shape = "x".join(map(str, row["shape"]))
        cells = [_kernel(row), row["backend"], shape, f"{row['median_ms']:.3g}", f"{grown['ns_per_pixel']:.2f}"]
        cells += ["" if grown[key] is None else f"{grown[key]:.2f}x" for key in ("pixels", "batch")]
        lines.append(cells)
    lines.sort(key=lambda cells: cells[:2])
    judged = [
        [
            _kernel(check),
            check["backend"],
            check["what"],
            f"{check['ratio']:.2f}x",
            f"{check['limit']:.2f}x",
            "yes" if check["holds"] else "no",
        ]
        for check in linear_cost(rows)
    ]
    checks = _table(["kernel", "backend", "from, to", "time", "limit", "holds"], judged, left=3)
    return f"{_table(headings, lines, left=3)}\n\n{checks}"


def _table(headings: list[str], lines: list[list[str]], *, left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *lines])


def _kernel(row: dict) -> str:
    return f"{row['op']}, {row['contexts']}" if row["contexts"] else row["op"]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline of the (one) result, .svg or .png")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    if arguments.plot is not None:
        from distilldepth.bench.plot import draw_roofline

        if len(results) > 1:
            parser.error("--plot draws one result")
        draw_roofline(results[0], arguments.plot)
    print("\n\n".join(markdown(result) for result in results))


if __name__ == "__main__":
    main()
