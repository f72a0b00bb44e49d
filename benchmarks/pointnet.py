"""Train the PointNet of the geometric term on the renderer's objects, and compare it with the one of random weights.

    python benchmarks/pointnet.py train FOLDER
    python benchmarks/pointnet.py gradients FOLDER --json benchmarks/results/pointnet-gradients.json
    python benchmarks/pointnet.py compare FOLDER --json benchmarks/results/pointnet.json

`train` makes clouds of single objects, each seen from one side, and learns which kind of object each is: the renderer
knows, so that no label is needed. Objects that no training sees are held out. Stopped or killed, the same command goes
on after the last whole epoch. What comes out, `FOLDER/pointnet.safetensors`, has the form of
`distilldepth.models.pointnet.PointNet`, batch normalisation folded into the weights, and features of points that vary
as much as those of random weights do, so that both make a term of one size.

`gradients` takes seconds: a teacher's maps of scenes, disturbed smoothly, are the student's, and what each network's
l_feature wants to change in them is held against what would make them the teacher's.

`compare` trains short runs of the preset `label-free-mini`: with the PointNet of random weights, with the trained one,
and without the geometric term; every cell with the same seeds, scored on scenes that none sees. Finished runs are kept
in FOLDER.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.distill.config import load_config
from distilldepth.distill.terms import geometric
from distilldepth.files import write_atomically
from distilldepth.losses.geometric import depths_to_compare, geometric_loss
from distilldepth.machine import command_line, keep_freed_memory, machine, resolve_precision
from distilldepth.models import load_model
from distilldepth.models.pointnet import PointNet, _Layer, _Transform
from distilldepth.scenes import clutter, furniture, props, render_scene, wares, wayside
from distilldepth.scenes.builder import Builder
from distilldepth.scenes.geometry import Camera, cast, look

KINDS: dict[str, Callable[[Builder], object]] = {
    "table": furniture.table,
    "chair": furniture.chair,
    "sofa": furniture.sofa,
    "bed": furniture.bed,
    "cabinet": furniture.cabinet,
    "shelf": furniture.shelf,
    "floor lamp": furniture.floor_lamp,
    "cartons": furniture.boxes,
    "television": furniture.television,
    "plant": props.plant,
    "person": props.person,
    "car": props.car,
    "tree": props.tree,
    "bush": props.bush,
    "sign": props.sign,
    "bench": props.bench,
    "bicycle": props.bicycle,
    "rock": props.rock,
    "animal": props.animal,
    "lorry": wayside.lorry,
    "boat": wayside.boat,
    "bird": wayside.bird,
    "mug": clutter.mug,
    "bottle": clutter.bottle,
    "laptop": clutter.laptop,
    "desk lamp": clutter.desk_lamp,
    "shoes": clutter.shoes,
    "pot": wares.pot,
}
POINTS = 1024
SIDE = 96
"""Pixels of the picture that a cloud comes from."""
HELD_OUT = 24
"""Objects of each kind that no training sees."""
BATCH = 32
RATE = 2e-3
SCORED = "scenes:50"


# --- clouds ----------------------------------------------------------------------------------------------------------


def cloud(kind: str, number: int) -> np.ndarray:
    """Points `(POINTS, 3)` of an object as a camera in front of it sees them, within a length of 1 of their mean."""
    for attempt in itertools.count():
        rng = np.random.default_rng([zlib.crc32(kind.encode()), number, attempt])
        builder = Builder(rng)
        KINDS[kind](builder)
        objects = builder.objects()
        reach = np.abs(objects.rotation) @ objects.half[..., None]
        low, high = (objects.centre - reach[..., 0]).min(0), (objects.centre + reach[..., 0]).max(0)
        middle, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
        yaw, pitch, away = rng.uniform(0, 2 * math.pi), rng.uniform(-0.6, 0.1), rng.uniform(2, 5)
        forward = math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch)
        focal, centre = SIDE / 2 * math.sqrt(away**2 - 1), (SIDE - 1) / 2
        position = middle - away * radius * np.array(forward)
        camera = Camera(position, look(forward, rng.normal(0, 0.05)), focal, focal, centre, centre, SIDE, SIDE)
        depth, _ = cast(objects, camera, near=1e-3 * radius)
        rows, columns = np.nonzero(np.isfinite(depth))
        if len(rows) < POINTS // 8:
            continue
        chosen = rng.permutation(np.resize(rng.permutation(len(rows)), max(POINTS, len(rows))))[:POINTS]
        z = depth[rows[chosen], columns[chosen]]
        points = np.stack([camera.xs[columns[chosen]] * z, camera.ys[rows[chosen]] * z, z], 1)
        points = points - points.mean(0)
        return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)
    raise AssertionError("the loop ends by itself")


def read_clouds(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Clouds `(K * count, POINTS, 3)` and their kinds, made once; the first HELD_OUT of each kind are held out."""
    found = []
    for kind in KINDS:
        file = folder / f"{kind.replace(' ', '-')}-{count}.npy"
        if not file.is_file():
            temporary = file.with_suffix(".part")
            with temporary.open("wb") as out:
                np.save(out, np.stack([cloud(kind, number) for number in range(count)]))
            temporary.replace(file)
        found.append(torch.from_numpy(np.load(file)))
    return torch.cat(found), torch.arange(len(KINDS)).repeat_interleave(count)


def placed(points: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds somewhere in front of a camera, of the sizes and distances of parts of a scene, mirrored or not."""
    size, away, side, mirror = torch.rand((4, len(points), 1, 1), generator=generator)
    aside = (torch.rand((len(points), 1, 2), generator=generator) - 0.5) * (0.5 + side)
    points = points * (0.15 + 0.85 * size) * torch.cat([(mirror < 0.5) * 2.0 - 1, torch.ones(len(points), 1, 2)], 2)
    return points + torch.cat([aside, 0.6 + 1.4 * away], 2)


# --- the network, as it is trained -----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """The PointNet with batch normalisation by the batch, and three layers that name the kind of object."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.network = PointNet().requires_grad_(True)
        self.head = nn.Sequential(
            nn.Linear(1024, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, kinds)
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `(B, kinds)` of clouds `(B, N, 3)`, and how far the transforms are from rotations."""
        network = self.network
        values = points @ self.matrix(network.input_transform, points)
        values = self.through(network.local, values)
        turn = self.matrix(network.feature_transform, values)
        summary = self.through(network.wide, values @ turn).amax(1)
        skew = (torch.eye(64) - turn @ turn.transpose(1, 2)).square().sum((1, 2)).mean()
        return self.head(summary), skew

    def matrix(self, transform: _Transform, values: Tensor) -> Tensor:
        hidden = self.through(transform.deep, self.through(transform.wide, values).amax(1))
        return transform.last(hidden).unflatten(1, (transform.width,) * 2) + torch.eye(transform.width)

    def through(self, layers: nn.Sequential, values: Tensor) -> Tensor:
        for layer in layers:
            assert isinstance(layer, _Layer), "as PointNet makes them"
            values = layer.linear(values)
            values = layer.norm(values.flatten(0, -2)).view_as(values).relu()
        return values


def train(folder: Path, count: int, epochs: int, seen: int) -> None:
    """Train, with a checkpoint after every epoch, and write what comes out."""
    folder.mkdir(parents=True, exist_ok=True)
    points, kinds = read_clouds(folder, count)
    precision = resolve_precision("auto", torch.device("cpu"))
    held = torch.arange(len(points)) % count < HELD_OUT
    own, own_kinds = points[~held], kinds[~held]
    torch.manual_seed(0)
    model = Classifier(len(KINDS))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = len(own) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps, pct_start=0.2)
    checkpoint, rows = folder / "state.pt", list[dict[str, float]]()
    asked = {"clouds": count, "epochs": epochs, "points": seen}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["asked"] != asked:
            raise SystemExit(f"{checkpoint} is of a training with {state['asked']}; choose another folder")
        for part, name in ((model, "model"), (optimiser, "optimiser"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        rows = state["rows"]
    while len(rows) < epochs:
        began = time.process_time()
        torch.manual_seed(1 + len(rows))
        generator = torch.Generator().manual_seed(1 + len(rows))
        model.train()
        losses = []
        for chosen in torch.randperm(len(own), generator=generator)[: steps * BATCH].view(steps, BATCH):
            which = torch.randperm(POINTS, generator=generator)[:seen]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                scores, skew = model(placed(own[chosen][:, which], generator))
            loss = F.cross_entropy(scores.float(), own_kinds[chosen], label_smoothing=0.1) + 1e-3 * skew
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        row = {"loss": float(torch.stack(losses).mean()), "cpu_s": time.process_time() - began}
        rows.append(row | {"held_out_accuracy": accuracy(model, points[held], kinds[held])})
        print(f"epoch {len(rows)}/{epochs}: " + ", ".join(f"{k} {v:.3f}" for k, v in rows[-1].items()), flush=True)
        parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
        temporary = checkpoint.with_suffix(".part")
        torch.save(
            {name: part.state_dict() for name, part in parts.items()} | {"rows": rows, "asked": asked}, temporary
        )
        temporary.replace(checkpoint)
    finish(folder, model.network, asked, rows)


@torch.inference_mode()
def accuracy(model: Classifier, points: Tensor, kinds: Tensor) -> float:
    """Share of the clouds whose kind is named, each at one place in front of the camera."""
    model.eval()
    somewhere = placed(points, torch.Generator().manual_seed(0))
    named = torch.cat([model(part[:, :512])[0].argmax(1) for part in somewhere.split(64)])
    return float((named == kinds).float().mean())


def finish(folder: Path, network: PointNet, asked: dict[str, int], rows: list[dict[str, float]]) -> None:
    """Fold batch normalisation, give the features the spread of random ones, write float16."""
    folded = PointNet()
    for into, layer in zip(folded.modules(), network.modules(), strict=True):
        if isinstance(layer, _Layer):
            assert isinstance(into, _Layer)
            slope = math.sqrt(1 + into.norm.eps)  # What is left of a normalisation that does nothing.
            weight, bias = layer.folded()
            into.linear.weight.copy_(weight.detach() * slope)
            into.linear.bias.copy_(bias.detach() * slope)
        elif isinstance(layer, _Transform):
            assert isinstance(into, _Transform)
            into.last.load_state_dict(layer.last.state_dict())
    ratio = spread(PointNet()) / spread(folded)
    # Larger features out of the last layer, and as much less into what looks at them: no transform changes.
    for values in (folded.local[1].linear.weight, folded.local[1].linear.bias):
        values.mul_(ratio)
    for layers in (folded.feature_transform.wide, folded.wide):
        layers[0].linear.weight.div_(ratio)
    state = {k: v.half().contiguous() for k, v in folded.state_dict().items() if ".norm." not in k}
    largest = max(float(value.abs().max()) for value in state.values())
    if not math.isfinite(largest):
        raise SystemExit("a weight is beyond float16")
    write_atomically(folder / "pointnet.safetensors", save(state, metadata={"format": "pt"}))
    found = {**asked, "kinds": len(KINDS), **rows[-1], "cpu_s": sum(row["cpu_s"] for row in rows)}
    write_atomically(folder / "training.json", json.dumps(found, indent=1) + "\n")
    print(f"{folder / 'pointnet.safetensors'}: held-out accuracy {rows[-1]['held_out_accuracy']:.3f}")


def spread(network: PointNet) -> float:
    """Root of the variance of features over the points of a scene, mean over features and scenes."""
    clouds = []
    for seed in range(900, 908):
        scene = render_scene(seed, (48, 64))
        rows, columns = np.nonzero(np.isfinite(scene.depth))
        z = scene.depth[rows, columns] * np.mean(1 / scene.depth[rows, columns])
        rays = np.linalg.solve(scene.intrinsics, np.stack([columns, rows, np.ones_like(rows)]).astype(np.float32))
        clouds.append(torch.from_numpy((rays * np.minimum(z, 5)).T.astype(np.float32)))
    with torch.inference_mode():
        return math.sqrt(sum(float(network(each[None])[0].var(0).mean()) for each in clouds) / len(clouds))


def read_network(path: Path) -> PointNet:
    """The trained PointNet."""
    network = PointNet()
    state = {name: value.float() for name, value in load_file(path).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or not all(".norm." in name for name in missing):
        raise SystemExit(f"{path} holds no PointNet")
    return network


# --- what the features ask for ---------------------------------------------------------------------------------------

DISTURBED = (0.05, 0.2, 0.6)
"""Deviation of what is added to the teacher's maps, in theirs."""


def gradients(folder: Path, scenes: int, file: Path | None) -> None:
    """Compare the gradients of the parts of the geometric loss; print the table and write it."""
    networks = {
        "random": PointNet(), "random-1": PointNet(1), "trained": read_network(folder / "pointnet.safetensors"),
    }  # fmt: skip
    rendered = [render_scene(900 + number, (96, 128)) for number in range(scenes)]
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in rendered]).float() / 255
    cameras = torch.stack([torch.from_numpy(scene.intrinsics) for scene in rendered])
    with torch.inference_mode():
        target = load_model("dav2-mini").estimate(images)
    target, generator = target.clone(), torch.Generator().manual_seed(0)
    results = []
    for strength in DISTURBED:
        noise = F.interpolate(torch.randn(scenes, 1, 6, 8, generator=generator), target.shape[1:], mode="bilinear")[
            :, 0
        ]
        wanted = -strength * target.std((1, 2), keepdim=True) * noise / noise.std((1, 2), keepdim=True)
        student = (target - wanted).requires_grad_()
        *depths, valid = depths_to_compare(student, target, quantity="disparity")
        position = geometric_loss(*depths, cameras, torch.zeros_like, valid)
        parts = {"position": position}
        parts |= {
            name: geometric_loss(*depths, cameras, network, valid) - position for name, network in networks.items()
        }
        for name, value in parts.items():
            (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
            along = F.cosine_similarity(-gradient.flatten(1), wanted.flatten(1))
            row = {"disturbed": strength, "of": name, "value": float(value.detach()), "norm": float(gradient.norm())}
            results.append(row | {"cosine": float(along.mean()), "cosine_deviation": float(along.std())})
    print(
        "| disturbed by | of | value | norm of the gradient | its cosine to what is wanted |\n|---|---|---:|---:|---:|"
    )
    for row in results:
        cosine = f"{row['cosine']:.3f} +- {row['cosine_deviation']:.3f}"
        print(f"| {row['disturbed']} | {row['of']} | {row['value']:.4f} | {row['norm']:.3g} | {cosine} |")
    if file:
        told = {**machine("cpu"), "command": command_line(), "scenes": scenes, "teacher": "dav2-mini"}
        found = {"metadata": told, "training": json.loads((folder / "training.json").read_text()), "results": results}
        write_atomically(file, json.dumps(found, indent=1) + "\n")


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(folder: Path, cells: list[str], steps: int, seeds: int, file: Path | None) -> None:
    """Train and score every cell with every seed; print the table and write it."""
    all_cells: dict[str, Callable[[], PointNet] | None] = {
        "random": lambda: PointNet(),
        "trained": lambda: read_network(folder / "pointnet.safetensors"),
        "none": None,
        "random-1": lambda: PointNet(1),
    }
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in cells}
    for seed in range(seeds):
        for name in cells:
            make = all_cells[name]
            run = folder / "runs" / f"{name}-{steps}-{seed}"
            scored = run / "score.json"
            if not scored.is_file():
                began = time.process_time()
                measured = run_one(run / "run", make, steps, seed)
                seconds = time.process_time() - began
                write_atomically(scored, json.dumps(measured | {"cpu_s": round(seconds, 1)}) + "\n")
            scores[name].append(json.loads(scored.read_text()))
            print(f"{name}, seed {seed}: {scores[name][-1]}", flush=True)
    metrics = ("delta1", "abs_rel", "correlation")
    print("| PointNet | " + " | ".join(metrics) + " |\n|---|" + "---:|" * len(metrics))
    results = []
    for name, each in scores.items():
        means = {metric: statistics.fmean(score[metric] for score in each) for metric in metrics}
        results.append({"cell": name, "seeds": each, "mean": means})
        print(f"| {name} | " + " | ".join(f"{means[metric]:.4f}" for metric in metrics) + " |")
    if file:
        told = {**machine("cpu"), "command": command_line(), "steps": steps, "scored_on": SCORED}
        found = {"metadata": told, "training": json.loads((folder / "training.json").read_text()), "results": results}
        write_atomically(file, json.dumps(found, indent=1) + "\n")


def run_one(out: Path, make: Callable[[], PointNet] | None, steps: int, seed: int) -> dict[str, float]:
    """Distil once, and score the student on scenes that no run sees and by its agreement with the teacher."""
    from distilldepth.distill.trainer import distill
    from distilldepth.evaluate import evaluate

    if make is not None:
        geometric.PointNet = make  # type: ignore[misc, assignment]  # what the term makes its network with
    config = load_config(
        preset="label-free-mini",
        flags={
            "steps": steps, "seed": seed, "out": str(out), "resume": "auto", "offline": True, "workers": 0,
            "threads": 1, "log": "none", "device": "cpu", "agreement_every": 0, "heldout": 32, "checkpoint_every": 50,
        },
        settings=[] if make is not None else ["loss.geometric=0"],
    )  # fmt: skip
    result = distill(config)
    scores = evaluate(str(out), [SCORED], protocol="affine-disparity", offline=True, device="cpu", precision="float32")
    (dataset,) = scores.datasets
    (agreement,) = result.after["teachers"].values()
    return {
        "delta1": float(dataset.metrics["delta1"]),
        "abs_rel": float(dataset.metrics["abs_rel"]),
        "correlation": float(agreement["correlation"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_train = commands.add_parser("train", help="train the PointNet, or go on")
    of_train.add_argument("folder", type=Path)
    of_train.add_argument("--clouds", type=int, default=HELD_OUT + 256, help=f"of each kind, {HELD_OUT} held out")
    of_train.add_argument("--epochs", type=int, default=12)
    of_train.add_argument("--points", type=int, default=256, help="that a step sees of each cloud")
    of_gradients = commands.add_parser("gradients", help="compare what random and trained features ask for")
    of_gradients.add_argument("folder", type=Path)
    of_gradients.add_argument("--scenes", type=int, default=32)
    of_gradients.add_argument("--json", type=Path)
    of_compare = commands.add_parser("compare", help="distil with random and with trained weights")
    of_compare.add_argument("folder", type=Path)
    of_compare.add_argument(
        "--cells", nargs="+", default=["random", "trained", "none"], choices=["random", "trained", "none", "random-1"]
    )
    of_compare.add_argument("--steps", type=int, default=200)
    of_compare.add_argument("--seeds", type=int, default=2)
    of_compare.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if arguments.command == "train":
        train(arguments.folder, arguments.clouds, arguments.epochs, arguments.points)
    elif arguments.command == "gradients":
        gradients(arguments.folder, arguments.scenes, arguments.json)
    else:
        compare(arguments.folder, arguments.cells, arguments.steps, arguments.seeds, arguments.json)


if __name__ == "__main__":
    main()
