"""How good the bundled models are: delta1 on held-out procedural scenes and on photographs with measured depth.

    python benchmarks/bundled_models.py --json benchmarks/results/accuracy/bundled-models.json --data MANIFESTS

Without --data only the scenes are scored. Other models can be named as arguments. Least squares in disparity per
image, scored in depth; the constant and the vertical ramp are what a model that looks at nothing, or only at rows,
would reach. In brackets, and in the JSON for every metric: bootstrap 95 % intervals over the frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distilldepth.evaluate import evaluate
from distilldepth.machine import machine

BASELINES = ("baseline:constant", "baseline:ramp")
BUNDLED = ("dav2-mini", "genpercept-mini", "distilldepth-mini")
MEAN_OF = (
    "nyu", "redwood", "seven_scenes", "tum", "sunrgbd", "slambook_rgbd", "icl_nuim", "priorda", "kitti_object",
)  # fmt: skip
"""Datasets of the narrower mean: dense or well-covered truth, no stereo pairs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(BUNDLED))
    parser.add_argument("--data", help="folder of .jsonl manifests")
    parser.add_argument("--scenes", type=int, default=200, help="held-out procedural scenes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in (*BASELINES, *arguments.models):
        for data in [f"scenes:{arguments.scenes}", *([arguments.data] if arguments.data else [])]:
            result = evaluate(name, data, protocol="affine-disparity", offline=True)
            rows += [
                {"model": name, **{key: d[key] for key in ("frames", "metrics", "intervals")}, "dataset": d["name"]}
                for d in result.datasets
            ]
            if result.failures:
                raise SystemExit(f"{name}: {len(result.failures)} frames failed, first: {result.failures[0]}")
    if arguments.json:
        text = json.dumps({"metadata": machine("cpu"), "results": rows}, indent=1)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(make_markdown(rows))


def make_markdown(rows: list[dict], metric: str = "delta1") -> str:
    """Return a table of datasets by models, with the means over `MEAN_OF` and over all, beside the vertical ramp."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    value = {(row["model"], row["dataset"]): row["metrics"][metric] for row in rows}
    interval = {(row["model"], row["dataset"]): row["intervals"].get(metric) for row in rows}
    frames = {row["dataset"]: row["frames"] for row in rows}
    lines = ["| | frames | " + " | ".join(models) + " |", "|---|---" + "|---" * len(models) + "|"]
    for dataset, count in frames.items():
        cells = []
        for model in models:
            found = None if model.startswith("baseline") else interval[model, dataset]
            span = "" if found is None else f" [{found[0]:.2f}, {found[1]:.2f}]"
            cells.append(f"{value[model, dataset]:.3f}{span}")
        lines.append(f"| {dataset} | {count} | {' | '.join(cells)} |")
    ramp = "baseline:ramp"
    photographs = [name for name in frames if not name.startswith("scenes")]
    for title, among in (("mean of {}", MEAN_OF), ("mean of all {}", photographs)):
        if not among or any(name not in frames for name in among):
            continue
        means = [sum(value[model, name] for name in among) / len(among) for model in models]
        lines.append(f"| {title.format(len(among))} | | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        if ramp in models:
            over = [mean - means[models.index(ramp)] for mean in means]
            better = [sum(value[model, name] > value[ramp, name] for name in among) for model in models]
            lines.append("| over the ramp | | " + " | ".join(f"{each:+.3f}" for each in over) + " |")
            lines.append("| better than it on | | " + " | ".join(f"{n} of {len(among)}" for n in better) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
