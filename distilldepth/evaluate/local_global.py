"""Local against global least squares: what one scale and shift for the whole map costs inside a region."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.alignment import align
from distilldepth.datasets.open import Dataset, Item, Truth, open_data
from distilldepth.depth import to_disparity
from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.baselines import load_baseline, open_model
from distilldepth.evaluate.statistics import bootstrap_interval
from distilldepth.inference.batches import LoadedImage, estimate_batch, load_batches, reason
from distilldepth.metrics import depth_metrics
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import resize

METRICS = ("abs_rel", "delta1")
LEAST_PIXELS = 30
"""Regions with fewer valid pixels are left out: two numbers fitted to a handful of points say nothing."""
CROPS_PER_SIDE = 4
"""The model is run on at most this many crops per side of the grid; of a finer grid, evenly spaced ones."""

_PIXELS = 2_000_000
"""Pixels whose regions are fitted at once; each costs some 200 bytes."""


@dataclass
class LocalGlobal:
    """What an analysis measured."""

    metadata: dict[str, Any]
    """`model`, `space` of the fit, `shares`, `least_pixels`, `seconds`."""
    rows: list[dict[str, Any]]
    """Per dataset, share and place (`centre` or `grid`): `images`, `regions`, `skipped` (too few valid pixels),
    `negative` (share of local fits with a scale below 0), the scores `global`, `local`, `crop`, `local_on_crops`,
    `control_global`, `control_local`, and the paired differences with 95 % intervals `local_minus_global`,
    `crop_minus_local`, `control_local_minus_global`: each by metric, None where not measured."""
    failures: list[dict[str, str]]
    """Frames that could not be used: `dataset`, `name`, `error`."""

    @property
    def complete(self) -> bool:
        """Whether every frame was used."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; None stands for numbers that are not finite."""
        result = {
            "metadata": self.metadata,
            "complete": self.complete,
            "summary": self.summary(),
            "rows": self.rows,
            "failures": self.failures,
        }
        return _jsonable(result)

    def make_table(self, metric: str = "abs_rel") -> Any:
        """Return a rich table of one metric: a row per dataset, share and place.

        Raises:
            ValueError: not one of `METRICS`.
        """
        from rich.table import Table
        from rich.text import Text

        if metric not in METRICS:
            raise ValueError(f"make_table: metric must be one of {', '.join(METRICS)}, got {metric!r}")
        crops = any(row["crop"] for row in self.rows)
        captions = self.summary()
        if crops:
            captions.append(
                f"crop: of a grid at most {CROPS_PER_SIDE} x {CROPS_PER_SIDE} regions; crop - local on the same"
            )
        table = Table(
            title=f"{metric} inside regions: one fit for the whole map (global), one per region (local)",
            caption=Text("\n".join(captions)),
            caption_justify="left",
        )
        table.add_column("dataset", no_wrap=True)
        headings = ["region", "images", "global", "local", "local - global"]
        headings += ["crop", "crop - local"] if crops else []
        for heading in [*headings, "ramp global", "ramp local", "scale < 0"]:
            table.add_column(heading, justify="right")
        previous = None
        for row in self.rows:
            if previous not in (None, row["dataset"]):
                table.add_section()
            cells = [
                row["dataset"] if row["dataset"] != previous else "",
                f"{_share_name(row['share'])} {row['place']}",
                str(row["images"]),
                _number(row["global"], metric),
                _number(row["local"], metric),
                _difference(row["local_minus_global"], metric),
            ]
            if crops:
                cells += [_number(row["crop"], metric), _difference(row["crop_minus_local"], metric)]
            cells += [_number(row["control_global"], metric), _number(row["control_local"], metric)]
            cells.append("" if row["negative"] is None else f"{row['negative']:.0%}")
            table.add_row(*map(Text, cells))
            previous = row["dataset"]
        return table

    def summary(self) -> list[str]:
        """Return what the numbers say, one line per place and share; `centre 1/2` is the paper's figure.

        Datasets count as better or worse only where the 95 % interval of the paired difference of AbsRel excludes 0;
        a dataset of one image has no interval and never counts.
        """
        lines = [
            "AbsRel by dataset; local: against the global fit; crop: the model run on the crop alone against local; "
            "ramp: a predictor that looks at no pixel"
        ]
        pairs = dict.fromkeys((row["share"], row["place"]) for row in self.rows)
        for share, place in sorted(pairs, key=lambda pair: (pair[1] != "centre", -pair[0])):
            rows = [row for row in self.rows if (row["share"], row["place"]) == (share, place) and row["images"]]
            if not rows:
                continue
            gain, control = _relative_gain(rows, ""), _relative_gain(rows, "control_")
            line = (
                f"{place} {_share_name(share)}: local {_verdict(rows, 'local_minus_global')}, "
                f"error {-gain:+.0%}; ramp {_verdict(rows, 'control_local_minus_global')}, error {-control:+.0%}"
            )
            if any(row["crop"] for row in rows):
                line += f"; crop {_verdict(rows, 'crop_minus_local')}"
            lines.append(line)
        return lines


@dataclass(frozen=True)
class _Regions:
    """Windows of one size on a grid, in pixels of a map."""

    tops: np.ndarray
    lefts: np.ndarray
    height: int
    width: int

    def cut(self, maps: Tensor) -> Tensor:
        """`(B, h, w)` -> `(B, regions, height, width)`, row by row of the grid."""
        rows = torch.from_numpy(self.tops[:, None] + np.arange(self.height)).to(maps.device)
        columns = torch.from_numpy(self.lefts[:, None] + np.arange(self.width)).to(maps.device)
        windows = maps[:, rows[:, None, :, None], columns[None, :, None, :]]
        return windows.flatten(1, 2)


def place_regions(height: int, width: int, share: float, place: str) -> _Regions:
    """Return the windows whose sides are `share` of the map's: one in the `centre`, or a `grid` that covers the map."""
    sides = [max(1, round(share * side)) for side in (height, width)]
    starts = []
    for side, inner in zip((height, width), sides, strict=True):
        if place == "centre":
            starts.append(np.array([(side - inner) // 2]))
        else:
            starts.append(np.linspace(0, side - inner, math.ceil(1 / share - 1e-9)).round().astype(np.int64))
    return _Regions(starts[0], starts[1], *sides)


@torch.inference_mode()
def local_global(
    model: str | Path | DepthModel,
    datasets: str | Path | Sequence[str | Path] | list[Dataset],
    *,
    shares: Sequence[float] = (0.5, 0.25, 0.125),
    batch_size: int = 8,
    device: str | torch.device = "auto",
    limit: int | None = None,
    crops: bool = True,
    precision: str = "auto",
    root: str | Path | None = None,
    offline: bool = False,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> LocalGlobal:
    """Compare one least-squares fit of scale and shift for the whole map with one per region, scored in the region.

    A region is a window whose sides are a share of the map's: the one in the centre, which with a share of 1/2 is the
    paper's figure, and a grid of them that covers the map. In each region four predictions are scored in depth:
    - `global`: scale and shift from all valid pixels of the map;
    - `local`: scale and shift from the valid pixels of the region, the prediction is the same;
    - `crop`: the model sees the region of the image alone; scale and shift from the region;
    - `control`: the vertical ramp, globally and locally.
    A local fit can hardly lose: it has two numbers more for every region and is scored where it was fitted. What it
    gains for a ramp, which looks at no pixel, is what that alone is worth. `crop` and `local` have the same freedom.
    Fits are made in disparity, for models of affine-invariant depth in depth. Numbers are means over the regions of an
    image, then over the images; the intervals are of paired differences over the images.

    Args:
        model: a model, what `load_model` takes, or `baseline:constant|ramp`.
        datasets: opened datasets, or what `open_data` takes; all pixels that the data call valid are used.
        shares: sides of the regions, each a share of the map's between 0 and 1.
        batch_size: images or crops of one size that are run at once.
        device, precision: see `distilldepth.device`.
        limit: first so many frames of each dataset.
        crops: whether the model is run on crops too; with small regions most of the time goes there.
        root, offline: see `evaluate`.
        start: called with the number of frames when the work begins; the function it returns is told how many more are
            done.

    Returns:
        The analysis. Regions with fewer than `LEAST_PIXELS` valid pixels are left out and counted; frames that fail are
        listed there and raise nothing.

    Raises:
        ValueError: no shares, or one outside (0, 1).
        FileNotFoundError, DistillDepthError: no such data or model.

    Source: Distill Any Depth (2025), Fig. 2 (global and local least squares) and Fig. 5 (whole image and crop).
    """
    shares = [float(share) for share in shares]
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"local_global: shares must be between 0 and 1, got {shares}")
    if limit is not None and limit < 1:
        raise ValueError(f"local_global: limit must be at least 1, got {limit}")
    opened = isinstance(datasets, list) and bool(datasets) and isinstance(datasets[0], Dataset)
    opened_data = datasets if opened else open_data(datasets, root=root, limit=limit)
    if isinstance(model, DepthModel) and device == "auto":
        home = next(model.buffers()).device
    else:
        home = resolve_device(device)
    model = open_model(model, offline).to(home)
    items = [item for dataset in opened_data for item in dataset.items[:limit]]
    advance = start(len(items)) if start is not None else lambda count: None
    run = _Analysis(model, home, precision, tuple(dict.fromkeys(shares)), batch_size, crops)
    errors: dict[tuple[str, str], str] = {}

    def fail(item: Item, error: BaseException) -> None:
        errors[item.dataset, item.name] = reason(error)
        advance(1)

    began = time.perf_counter()
    was_training = model.training
    model.eval()
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")
    try:
        for batch in load_batches(items, lambda item: item.read(), model, workers, fail, batch_size=batch_size):
            predictions = estimate_batch(model, batch, home, precision=precision)
            for group, values in _equal_truths(batch, predictions, fail):
                advance(run.add(group, values, fail))
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        model.train(was_training)
    rows = [
        run.summarise(dataset.name, share, place)
        for dataset in opened_data
        for share in run.shares
        for place in ("centre", "grid")
    ]
    metadata = {
        "model": model.info.to_dict(),
        "analysis": "local-global",
        "space": run.space,
        "shares": list(run.shares),
        "least_pixels": LEAST_PIXELS,
        "crops_per_side": CROPS_PER_SIDE if crops else 0,
        "device": str(home),
        "precision": precision,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began, 3),
    }
    failures = [{"dataset": name, "name": item, "error": error} for (name, item), error in errors.items()]
    return LocalGlobal(metadata, rows, failures)


def _equal_truths(
    batch: list[LoadedImage], predictions: list[Tensor | Exception], fail: Callable[[Item, Exception], None]
) -> list[tuple[list[LoadedImage], Tensor]]:
    """Groups whose truth has one size and is small enough to be cut into regions at once, with their predictions."""
    groups: dict[tuple[int, int], list[tuple[LoadedImage, Tensor]]] = {}
    for loaded, values in zip(batch, predictions, strict=True):
        if isinstance(values, Exception):
            fail(loaded.item, values)
        else:
            groups.setdefault(loaded.extra.depth.shape, []).append((loaded, values))
    result = []
    for (height, width), members in groups.items():
        room = max(1, _PIXELS // (height * width))
        for first in range(0, len(members), room):
            part = members[first : first + room]
            result.append(([loaded for loaded, _ in part], torch.stack([values for _, values in part])))
    return result


class _Analysis:
    """Scores of the regions of every image, collected batch by batch."""

    def __init__(
        self,
        model: DepthModel,
        device: torch.device,
        precision: str,
        shares: tuple[float, ...],
        batch_size: int,
        crops: bool,
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.shares, self.batch_size, self.crops = shares, batch_size, crops
        self.space = "depth" if model.info.quantity == "depth" else "disparity"
        self.images: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
        """By dataset, share and place: per image the means over its regions."""
        self.skipped: dict[tuple[str, float, str], int] = {}

    def add(self, batch: list[LoadedImage], values: Tensor, fail: Callable[[Item, Exception], None]) -> int:
        """Score images whose truth has one size; return how many were."""
        truths: list[Truth] = [loaded.extra for loaded in batch]
        depth = torch.from_numpy(np.stack([truth.depth for truth in truths])).to(self.device)
        valid = torch.from_numpy(np.stack([truth.valid for truth in truths])).to(self.device)
        valid &= torch.isfinite(depth) & (depth > 0)
        prediction = self._to_space(resize(values[:, None].float(), tuple(depth.shape[1:]), "bilinear")[:, 0])
        usable = []
        for loaded, known, finite in zip(
            batch, valid.flatten(1).any(1), (torch.isfinite(prediction) | ~valid).flatten(1).all(1), strict=True
        ):
            usable.append(bool(known & finite))
            if not known:
                fail(loaded.item, DistillDepthError("no valid pixel in the ground truth"))
            elif not finite:
                fail(loaded.item, DistillDepthError("the prediction is not finite on every valid pixel"))
        if not any(usable):
            return 0
        kept = torch.tensor(usable, device=self.device)
        batch = [loaded for loaded, good in zip(batch, usable, strict=True) if good]
        prediction, depth, valid = prediction[kept], torch.where(valid, depth, 1)[kept], valid[kept]
        ramp = load_baseline("ramp").to(self.device)(depth[:, None].expand(-1, 3, -1, -1)).values
        whole = align(prediction, depth, valid, space=self.space).depth
        whole_ramp = align(ramp, depth, valid, space=self.space).depth
        maps = (prediction, depth, valid, whole, ramp, whole_ramp)
        for share in self.shares:
            for place in ("centre", "grid"):
                self._score(batch, maps, share, place)
        return len(batch)

    def _to_space(self, values: Tensor) -> Tensor:
        return values if self.space == "depth" else to_disparity(values, self.model.info.quantity)

    def _score(self, batch: list[LoadedImage], maps: tuple[Tensor, ...], share: float, place: str) -> None:
        regions = place_regions(*maps[0].shape[1:], share, place)
        prediction, depth, valid, whole, ramp, whole_ramp = (regions.cut(values) for values in maps)
        enough = valid.flatten(2).sum(2) >= LEAST_PIXELS
        if enough.any():
            kept = [values[enough] for values in (prediction, depth, valid, whole, ramp, whole_ramp)]
            prediction, depth, valid, whole, ramp, whole_ramp = kept
            local = align(prediction, depth, valid, space=self.space)
            local_ramp = align(ramp, depth, valid, space=self.space).depth
            scores = {
                "global": depth_metrics(whole, depth, valid),
                "local": depth_metrics(local.depth, depth, valid),
                "control_global": depth_metrics(whole_ramp, depth, valid),
                "control_local": depth_metrics(local_ramp, depth, valid),
            }
            # Models of affine-invariant depth grow with the distance, as depth does: a sound scale is positive always.
            negative = (local.scale < 0).double().cpu()
        count = enough.sum(1).cpu()
        owner = torch.repeat_interleave(torch.arange(len(batch)), count)
        crop = self._run_crops(batch, regions, enough, depth, valid) if self.crops and enough.any() else None
        for index, loaded in enumerate(batch):
            key = (loaded.item.dataset, share, place)
            self.skipped[key] = self.skipped.get(key, 0) + int((~enough[index]).sum())
            if not count[index]:
                continue
            mine = owner == index
            record: dict[str, Any] = {"regions": int(count[index]), "negative": float(negative[mine].mean())}
            for name, values in scores.items():
                record[name] = {metric: float(values[metric].cpu()[mine].mean()) for metric in METRICS}
            if crop is not None and (seen := mine & crop["seen"]).any():
                record["crop"] = {metric: float(crop[metric][seen].mean()) for metric in METRICS}
                record["local_on_crops"] = {
                    metric: float(scores["local"][metric].cpu()[seen].mean()) for metric in METRICS
                }
            self.images.setdefault(key, []).append(record)

    def _run_crops(
        self, batch: list[LoadedImage], regions: _Regions, enough: Tensor, depth: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Metrics of the regions `(R,)` from the model run on each alone; `seen` says which it was run on."""
        rows, columns = len(regions.tops), len(regions.lefts)
        chosen = np.zeros((rows, columns), dtype=bool)
        chosen[np.ix_(*(np.unique(_spread(number, CROPS_PER_SIDE)) for number in (rows, columns)))] = True
        wanted = enough & torch.from_numpy(chosen.ravel()).to(enough.device)
        height, width = batch[0].image.shape[:2]
        truth_height, truth_width = batch[0].extra.depth.shape
        ratio = (height / truth_height, width / truth_width)
        inner = (max(1, round(regions.height * ratio[0])), max(1, round(regions.width * ratio[1])))
        loads = []
        for image, region in wanted.nonzero().tolist():
            top = min(round(regions.tops[region // columns] * ratio[0]), height - inner[0])
            left = min(round(regions.lefts[region % columns] * ratio[1]), width - inner[1])
            window = batch[image].image[top : top + inner[0], left : left + inner[1]]
            loads.append(LoadedImage(batch[image].item, np.ascontiguousarray(window), None, batch[image].policy))
        values: list[Tensor | Exception] = []
        for first in range(0, len(loads), self.batch_size):
            part = loads[first : first + self.batch_size]
            values += estimate_batch(self.model, part, self.device, precision=self.precision)
        good = [isinstance(value, Tensor) for value in values]
        seen = wanted[enough].clone()
        # A crop that the model cannot take is one that nothing was measured on.
        seen[seen.clone()] = torch.tensor(good, dtype=torch.bool, device=seen.device)
        result = {metric: torch.full(seen.shape, torch.nan, dtype=torch.float64) for metric in METRICS}
        if seen.any():
            maps = torch.stack([value for value in values if isinstance(value, Tensor)])
            size = (regions.height, regions.width)
            prediction = self._to_space(resize(maps[:, None].float(), size, "bilinear")[:, 0])
            fitted = align(prediction, depth[seen], valid[seen], space=self.space).depth
            scored = depth_metrics(fitted, depth[seen], valid[seen])
            for metric in METRICS:
                result[metric][seen.cpu()] = scored[metric].cpu()
        return {"seen": seen.cpu(), **result}

    def summarise(self, dataset: str, share: float, place: str) -> dict[str, Any]:
        """The row of a dataset: means over its images, paired differences with intervals."""
        key = (dataset, share, place)
        records = self.images.get(key, [])
        row: dict[str, Any] = {
            "dataset": dataset,
            "share": share,
            "place": place,
            "images": len(records),
            "regions": sum(record["regions"] for record in records),
            "skipped": self.skipped.get(key, 0),
            "negative": float(np.mean([record["negative"] for record in records])) if records else None,
        }
        names = ("global", "local", "crop", "local_on_crops", "control_global", "control_local")
        for name in names:
            there = [record[name] for record in records if name in record]
            row[name] = {m: float(np.mean([scores[m] for scores in there])) for m in METRICS} if there else None
        pairs = (("local", "global"), ("crop", "local_on_crops"), ("control_local", "control_global"))
        for first, second in pairs:
            both = [(record[first], record[second]) for record in records if first in record and second in record]
            differences = {m: np.array([a[m] - b[m] for a, b in both]) for m in METRICS}
            name = f"{first}_minus_{second.removeprefix('control_').removesuffix('_on_crops')}"
            row[name] = {m: _with_interval(values) for m, values in differences.items()} if both else None
        return row


def _spread(number: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices below `number`."""
    return np.linspace(0, number - 1, min(number, most)).round().astype(np.int64)


def _with_interval(values: np.ndarray) -> list[float]:
    low, high = bootstrap_interval(values)
    return [float(values.mean()), float(low), float(high)]


def _verdict(rows: list[dict[str, Any]], name: str) -> str:
    differences = [row[name]["abs_rel"] for row in rows if row[name]]
    better = sum(high < 0 for _, _, high in differences)
    worse = sum(low > 0 for _, low, _ in differences)
    return f"better on {better}, worse on {worse} of {len(differences)}"


def _relative_gain(rows: list[dict[str, Any]], prefix: str) -> float:
    """Share of the error that local fits remove, median over the datasets."""
    return float(np.median([1 - row[f"{prefix}local"]["abs_rel"] / row[f"{prefix}global"]["abs_rel"] for row in rows]))


def _share_name(share: float) -> str:
    whole = round(1 / share)
    return f"1/{whole}" if math.isclose(share, 1 / whole) else f"{share:g}"


def _number(scores: dict[str, float] | None, metric: str) -> str:
    return "" if scores is None else f"{scores[metric]:.3f}"


def _difference(differences: dict[str, list[float]] | None, metric: str) -> str:
    if differences is None:
        return ""
    mean, low, high = differences[metric]
    interval = f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else ""
    return f"{mean:+.3f}{interval}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
