"""How good depth completion is: models and baselines, patterns of points, held-out scenes and photographs.

    python benchmarks/completion.py --data MANIFESTS --out benchmarks/results/accuracy/completion

writes `completion.json` and `completion.md`. Points are drawn from the truth of each frame, the same for every model,
and are not scored (`distilldepth evaluate --task completion`). Baselines: the nearest point, linear interpolation
between points, morphology, and the relative map of distilldepth-mini brought to the points by least squares. Models are
compared with each of them frame by frame; the differences are averaged over frames, then over sets, and their 95 %
intervals come from drawing the frames of each set again. Stopped or killed, the same command goes on where it was; what
is done lies in `--work`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bundled_models import MEAN_OF

from distilldepth.evaluate import COMPLETION_BASELINES, Evaluation, evaluate
from distilldepth.evaluate.record.columns import COMPLETION
from distilldepth.evaluate.statistics import CONFIDENCE, RESAMPLES, resampled_means
from distilldepth.files import write_atomically
from distilldepth.machine import machine
from distilldepth.sparse.patterns import parse_points

BASELINES = tuple(f"baseline:{kind}" for kind in COMPLETION_BASELINES)
POINTS = ("10", "100", "500", "1000", "lines:16", "lines:64")
SHOWN = {"rmse": "RMSE", "abs_rel": "AbsRel"}
"""Metrics of the tables; lower is better."""
SCENES = "scenes"

Results = dict[str, dict[str, Evaluation]]
"""By model, then by the data that was named."""
Scores = dict[str, dict[str, dict[str, float]]]
"""Metrics by dataset, then by name of the frame."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["completion-mini"], help="names or folders; default: %(default)s")
    parser.add_argument("--data", help="folder of .jsonl manifests")
    parser.add_argument("--scenes", type=int, default=50, help="held-out procedural scenes; 0 = none")
    parser.add_argument("--points", nargs="+", default=list(POINTS), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("--limit", type=int, help="first so many frames of each set")
    parser.add_argument("--out", type=Path, help="path of the results, without .json and .md; none: only shown")
    parser.add_argument("--work", type=Path, default=Path("build/completion"), help="what is done so far")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    given = parser.parse_args(arguments)
    patterns = [str(parse_points(text)) for text in given.points]
    data = [*([f"{SCENES}:{given.scenes}"] if given.scenes else []), *([given.data] if given.data else [])]
    if not data:
        parser.error("nothing to score: give --data, or --scenes above 0")
    models = list(dict.fromkeys([*given.models, *BASELINES]))
    document: dict = {"metadata": {**machine("cpu"), "seed": given.seed}, "results": [], "paired": []}
    for points in patterns:
        results = {model: {spec: run(model, spec, points, given) for spec in data} for model in models}
        document["results"] += [row for model in models for row in make_rows(model, points, results[model])]
        document["paired"] += [
            row for model in models if model not in BASELINES for row in make_pairs(model, points, results)
        ]
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(given.out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
            write_atomically(given.out.with_suffix(".md"), make_markdown(document) + "\n")
    print(make_markdown(document))


def run(model: str, data: str, points: str, given: argparse.Namespace) -> Evaluation:
    """Score one model on what `--data` or `--scenes` names, or read what an earlier run of the same has scored."""
    kind = SCENES if data.startswith(f"{SCENES}:") else "photographs"
    name = "-".join(filter(None, (model.strip("/").replace("/", "_"), points, str(given.seed), kind))).replace(":", "_")
    folder = given.work / name
    fresh = given.overwrite or not (folder / "run.json").is_file()
    print(f"{model}: {points} points, {data}", flush=True)
    return evaluate(
        model,
        data,
        task="completion",
        points=points,
        seed=given.seed,
        limit=given.limit,
        device="cpu",
        precision="float32",
        offline=True,
        out=folder,
        resume="" if fresh else "auto",
        overwrite=fresh and folder.exists(),
    )


def make_rows(model: str, points: str, results: dict[str, Evaluation]) -> list[dict]:
    """Return a row for each set: its means, and the first frame that could not be scored."""
    rows = []
    for evaluation in results.values():
        for dataset in evaluation.datasets:
            failures = [failure for failure in evaluation.failures if failure.dataset == dataset.name]
            rows.append(
                {
                    "model": model,
                    "points": points,
                    "dataset": dataset.name,
                    "frames": dataset.frames,
                    "failed": len(failures),
                    "first_failure": f"{failures[0].name}: {failures[0].error}" if failures else "",
                    "metrics": {name: dataset.metrics.get(name) for name in COMPLETION.headings},
                    "intervals": {name: dataset.intervals.get(name) for name in COMPLETION.headings},
                }
            )
    return rows


def make_pairs(model: str, points: str, results: Results) -> list[dict]:
    """Return the paired differences to every baseline: per set, and of the means over sets."""
    mine = scores_of(results[model])
    rows = []
    for baseline in BASELINES:
        theirs = scores_of(results[baseline])
        for metric in SHOWN:
            differences = {
                name: np.array([mine[name][key][metric] - theirs[name][key][metric] for key in keys])
                for name in mine
                if (keys := [key for key in mine[name] if key in theirs.get(name, {})])
            }
            for title, among in groups(list(differences)).items():
                difference, interval = mean_difference([differences[name] for name in among])
                rows.append(
                    {
                        "model": model,
                        "baseline": baseline,
                        "points": points,
                        "among": title,
                        "metric": metric,
                        "frames": sum(len(differences[name]) for name in among),
                        "difference": difference,
                        "interval": interval,
                    }
                )
    return rows


def scores_of(results: dict[str, Evaluation]) -> Scores:
    """Return the metrics of every frame that was scored."""
    scores: Scores = {}
    for evaluation in results.values():
        for sample in evaluation.samples:
            scores.setdefault(sample.dataset, {})[sample.name] = sample.metrics
    return scores


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Return each set alone, and the sets that a mean is taken over, by what stands before their row."""
    photographs = [name for name in names if name != SCENES]
    found = {name: [name] for name in names}
    if set(MEAN_OF) <= set(names):
        found[f"mean of {len(MEAN_OF)}"] = list(MEAN_OF)
    if len(photographs) > 1:
        found[f"mean of all {len(photographs)}"] = photographs
    return found


def mean_difference(differences: Sequence[np.ndarray]) -> tuple[float, list[float] | None]:
    """Return the mean over sets of the mean over their frames, and its interval from frames that are drawn again.

    A set of one frame adds nothing to the interval; None where all have one.
    """
    mean = float(np.mean([values.mean() for values in differences]))
    if all(len(values) < 2 for values in differences):
        return mean, None
    drawn = [resampled_means(values[:, None], seed, RESAMPLES)[:, 0] for seed, values in enumerate(differences)]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return mean, [float(low), float(high)]


def make_markdown(document: dict) -> str:
    """Return the tables of a document that `main` writes, one for each pattern."""
    lines = [
        "Depth completed from points of the truth, which are not scored; RMSE in metres / AbsRel, means over frames.",
        "In brackets: 95 % intervals of the paired difference, from drawing the frames of each set again.",
    ]
    for points in dict.fromkeys(row["points"] for row in document["results"]):
        rows = [row for row in document["results"] if row["points"] == points]
        pairs = [row for row in document["paired"] if row["points"] == points]
        lines += ["", f"## {points}", "", *make_table(rows), "", *make_comparison(rows, pairs), *make_failures(rows)]
    return "\n".join(lines).rstrip()


def make_table(rows: list[dict]) -> list[str]:
    """Return the lines of a table of sets by models, with the means over sets."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    frames = {row["dataset"]: row["frames"] for row in rows if row["model"] == models[0]}
    values = values_of(rows)
    lines = [f"| | frames | {' | '.join(models)} |", "|---|---" + "|---" * len(models) + "|"]
    for title, among in groups(scored_by_all(values)).items():
        cells = [" / ".join(f"{mean_of(values[model], among, metric):.3f}" for metric in SHOWN) for model in models]
        count = "" if len(among) > 1 else str(frames[among[0]])
        lines.append(f"| {title} | {count} | {' | '.join(cells)} |")
    return lines


def make_comparison(rows: list[dict], pairs: list[dict]) -> list[str]:
    """Return the lines that say how each model stands against the baselines."""
    values = values_of(rows)
    every = groups(scored_by_all(values))
    lines = []
    for model in [model for model in values if model not in BASELINES]:
        for title in [title for title, among in every.items() if len(among) > 1]:
            among = every[title]
            for metric, heading in SHOWN.items():
                own = values[model]
                better = sum(
                    all(own[name][metric] < values[other][name][metric] for other in BASELINES) for name in among
                )
                lines.append(
                    f"- {model}, {title}, {heading} {mean_of(own, among, metric):.3f}: better than every baseline on "
                    f"{better} of {len(among)} sets; difference to "
                    + ", ".join(
                        difference_to(row)
                        for row in pairs
                        if (row["model"], row["among"], row["metric"]) == (model, title, metric)
                    )
                )
    return [*lines, ""] if lines else []


def difference_to(row: dict) -> str:
    """Return `linear -0.012 [-0.020, -0.004]`."""
    interval = "" if row["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*row["interval"])
    return f"{row['baseline'].removeprefix('baseline:')} {row['difference']:+.3f}{interval}"


def make_failures(rows: list[dict]) -> list[str]:
    """Return the lines that name the sets with frames that could not be scored."""
    failed = {(row["dataset"], row["failed"], row["frames"], row["first_failure"]) for row in rows if row["failed"]}
    return [
        f"- {name}: {count} of {count + scored} frames could not be scored, first: {first}"
        for name, count, scored, first in sorted(failed)
    ]


def values_of(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the means of sets with a frame that was scored, by model and set."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        known = values.setdefault(row["model"], {})
        if row["frames"]:
            known[row["dataset"]] = row["metrics"]
    return values


def scored_by_all(values: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return the sets that every model was scored on, in their order."""
    first, *others = values.values()
    return [name for name in first if all(name in other for other in others)]


def mean_of(values: dict[str, dict[str, float]], among: Sequence[str], metric: str) -> float:
    return sum(values[name][metric] for name in among) / len(among)


if __name__ == "__main__":
    main()
