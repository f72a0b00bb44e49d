"""How well a map that is brought to a few points fits: every way of `align_to_points`, beside maps of points alone.

    python benchmarks/alignment.py --json benchmarks/results/accuracy/alignment.json

Held-out procedural scenes, points uniformly at random, of which 2 % are outliers (anything from half the nearest to
twice the furthest) and the others have 2 % noise. RMSE in metres and AbsRel, over every pixel whose depth is known, the
points included; means over scenes and draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from distilldepth import load_model
from distilldepth.machine import machine
from distilldepth.scenes import render_scene
from distilldepth.sparse.align import METHODS, align_to_points
from distilldepth.sparse.interpolate import linear, morphology, nearest

FIRST_SEED = 3_000_000
"""Scenes on which no constant of the methods was chosen; those from 1_000_000 on were used for that."""
FARTHEST = 200.0
"""Metres; what is beyond has no part."""
COUNTS, DRAWS = (10, 100, 500), 2
NOISE, OUTLIERS = 0.02, 0.02
ALONE = {"nearest": nearest, "linear": linear, "morphology": morphology}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilldepth-mini")
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model, offline=True)
    scenes = [render_scene(FIRST_SEED + index) for index in range(arguments.scenes)]
    depth = torch.from_numpy(np.stack([scene.depth for scene in scenes]))
    relative = torch.from_numpy(np.stack([model.predict(scene.image).values for scene in scenes]))
    rows = []
    for count in COUNTS:
        scores: dict[str, list[dict[str, float]]] = {}
        for draw in range(DRAWS):
            sparse = draw_points(depth, count, draw)
            for method in METHODS:
                aligned = align_to_points(relative, sparse, quantity=model.info.quantity, method=method)
                scores.setdefault(method, []).append(score(aligned, depth))
            for name, fill in ALONE.items():
                filled = torch.from_numpy(np.stack([fill(each.numpy()) for each in sparse]))
                scores.setdefault(name, []).append(score(filled, depth))
        for name, found in scores.items():
            means = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
            rows.append({"points": count, "method": name, "scenes": len(scenes), "draws": DRAWS, **means})
            print(f"{count:5d}  {name:14s}  RMSE {means['rmse']:.3f}  AbsRel {means['abs_rel']:.4f}", flush=True)
    if arguments.json:
        text = json.dumps({"metadata": machine("cpu"), "results": rows}, indent=1)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def draw_points(depth: torch.Tensor, count: int, draw: int) -> torch.Tensor:
    """Return sparse depth `(B, H, W)` with noise and outliers; 0 = none."""
    sparse = np.zeros(depth.shape, np.float32)
    for index, truth in enumerate(depth.numpy()):
        rng = np.random.default_rng([FIRST_SEED + index, count, draw])
        places = rng.choice(np.flatnonzero(truth < FARTHEST), count, replace=False)
        values = truth.flat[places] * np.exp(rng.normal(0, NOISE, count))
        wild = np.exp(rng.uniform(np.log(values.min() / 2), np.log(values.max() * 2), count))
        sparse[index].flat[places] = np.where(rng.random(count) < OUTLIERS, wild, values)
    return torch.from_numpy(sparse)


def score(found: torch.Tensor, depth: torch.Tensor) -> dict[str, float]:
    """Return means over images."""
    known = depth < FARTHEST
    number = known.flatten(1).sum(1)
    error = torch.where(known, (found - depth).abs(), 0).double()
    share = error / torch.where(known, depth, 1)
    return {
        "rmse": float((error.square().flatten(1).sum(1) / number).sqrt().mean()),
        "abs_rel": float((share.flatten(1).sum(1) / number).mean()),
    }


if __name__ == "__main__":
    main()
