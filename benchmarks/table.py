"""Prints the rows of a benchmark result as a Markdown table: `python benchmarks/table.py results/NAME.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def markdown(result: dict) -> str:
    """Return the table of one result, with every time also as a ratio to the reference of the same run."""
    rows = result["results"]
    base = {(row["op"], row["direction"]): row["median_ms"] for row in rows if row["backend"] == "reference"}
    metadata = result["metadata"]
    lines = [
        f"{metadata['device']}, torch {metadata['torch']}, threads: {metadata['threads']}, commit {metadata['commit']}",
        "",
        "| op | backend | direction | shape | dtype | median ms | p20 to p80 | vs reference | max error |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = base[row["op"], row["direction"]] / row["median_ms"]
        shape = "x".join(map(str, row["shape"]))
        spread = f"{row['p20_ms']:.2f} to {row['p80_ms']:.2f}"
        cells = [row["op"], row["backend"], row["direction"], shape, row["dtype"], f"{row['median_ms']:.2f}"]
        lines.append("| " + " | ".join([*cells, spread, f"{ratio:.2f}x", f"{row['max_error']:.1e}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/table.py RESULT.json...")
    for name in sys.argv[1:]:
        print(markdown(json.loads(Path(name).read_text(encoding="utf-8"))))
        print()
