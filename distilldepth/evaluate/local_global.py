"""Local against global least squares: what one scale and shift for the whole map costs inside a region."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.alignment import align
from distilldepth.datasets.open import Data, open_data
from distilldepth.datasets.truth import Item, Truth
from distilldepth.depth import to_disparity
from distilldepth.documents import Record
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.baselines import load_baseline, open_model
from distilldepth.evaluate.options import AnalysisOptions
from distilldepth.evaluate.record.rows import Failure, ScoredModel
from distilldepth.evaluate.statistics import bootstrap_interval
from distilldepth.inference.batches import LoadedImage, reason
from distilldepth.inference.estimator import Estimator
from distilldepth.metrics import depth_metrics
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import resize

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("abs_rel", "delta1")
LEAST_PIXELS = 30
"""Regions with fewer valid pixels are left out: two numbers fitted to a handful of points say nothing."""
CROPS_PER_SIDE = 4
"""The model is run on at most this many crops per side of the grid; of a finer grid, evenly spaced ones."""

PLACES = ("centre", "grid")
_Scores = dict[str, float]
"""By metric."""
_Key = tuple[str, float, str]
"""Dataset, share and place."""
_PIXELS = 2_000_000
"""Pixels whose regions are fitted at once; each costs some 200 bytes."""


@dataclass
class RegionRow(Record):
    """What was measured on one dataset with regions of one share at one place."""

    dataset: str
    share: float
    place: str
    """`centre` or `grid`."""
    images: int
    regions: int
    skipped: int
    """Regions with too few valid pixels."""
    negative: float | None
    """Share of local fits with a scale below 0."""
    scores: dict[str, _Scores | None]
    """`global`, `local`, `crop`, `local_on_crops`, `control_global` and `control_local`; None where not measured."""
    differences: dict[str, dict[str, list[float]] | None]
    """Paired, by metric, with the ends of the 95 % interval: `local_minus_global`, `crop_minus_local` and
    `control_local_minus_global`; None where not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; scores and differences stand beside the rest."""
        row = super().to_dict()
        scores, differences = row.pop("scores"), row.pop("differences")
        return {**row, **scores, **differences}


@dataclass
class AnalysisMetadata(Record):
    """How an analysis was made, for people."""

    model: ScoredModel
    analysis: str = field(default="local-global", init=False)
    space: str
    """Of the fit."""
    shares: list[float]
    least_pixels: int = field(default=LEAST_PIXELS, init=False)
    crops_per_side: int
    device: str
    precision: str
    """As it was asked for."""
    torch: str
    seconds: float


@dataclass
class LocalGlobal:
    """What an analysis measured."""

    metadata: AnalysisMetadata
    rows: list[RegionRow]
    failures: list[Failure]
    """Frames that could not be used."""

    @property
    def complete(self) -> bool:
        """Whether every frame was used."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; None stands for numbers that are not finite."""
        result = {
            "metadata": self.metadata.to_dict(),
            "complete": self.complete,
            "summary": self.summary(),
            "rows": [row.to_dict() for row in self.rows],
            "failures": [failure.to_dict() for failure in self.failures],
        }
        return _jsonable(result)

    def make_table(self, metric: str = "abs_rel") -> Table:
        """Return a rich table of one metric: a row per dataset, share and place.

        Raises:
            ValueError: not one of `METRICS`.
        """
        from rich.table import Table
        from rich.text import Text

        if metric not in METRICS:
            raise ValueError(f"make_table: metric must be one of {', '.join(METRICS)}, got {metric!r}")
        crops = any(row.scores["crop"] for row in self.rows)
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
            if previous not in (None, row.dataset):
                table.add_section()
            cells = [
                row.dataset if row.dataset != previous else "",
                f"{_share_name(row.share)} {row.place}",
                str(row.images),
                _number(row.scores["global"], metric),
                _number(row.scores["local"], metric),
                _difference(row.differences["local_minus_global"], metric),
            ]
            if crops:
                cells += [_number(row.scores["crop"], metric), _difference(row.differences["crop_minus_local"], metric)]
            cells += [_number(row.scores["control_global"], metric), _number(row.scores["control_local"], metric)]
            cells.append("" if row.negative is None else f"{row.negative:.0%}")
            table.add_row(*map(Text, cells))
            previous = row.dataset
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
        pairs = dict.fromkeys((row.share, row.place) for row in self.rows)
        for share, place in sorted(pairs, key=lambda pair: (pair[1] != "centre", -pair[0])):
            rows = [row for row in self.rows if (row.share, row.place) == (share, place) and row.images]
            if not rows:
                continue
            gain, control = _relative_gain(rows, ""), _relative_gain(rows, "control_")
            line = (
                f"{place} {_share_name(share)}: local {_verdict(rows, 'local_minus_global')}, "
                f"error {-gain:+.0%}; ramp {_verdict(rows, 'control_local_minus_global')}, error {-control:+.0%}"
            )
            if any(row.scores["crop"] for row in rows):
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

    def spread(self, most: int) -> Tensor:
        """bool `(regions,)`: which are kept where at most so many per side are, evenly spaced."""
        chosen = np.zeros((len(self.tops), len(self.lefts)), dtype=bool)
        chosen[np.ix_(*(np.unique(_spread(number, most)) for number in chosen.shape))] = True
        return torch.from_numpy(chosen.ravel())


def place_regions(height: int, width: int, share: float, place: str) -> _Regions:
    """Return the windows whose sides are `share` of the map's: one in the `centre`, or a `grid` that covers the map."""
    sides = [max(1, round(share * side)) for side in (height, width)]
    starts = []
    for side, inner in zip((height, width), sides, strict=True):
        if place == "centre":
            starts.append(np.array([(side - inner) // 2]))
        else:
            starts.append(np.linspace(0, side - inner, math.ceil(1 / share - 1e-9)).round().astype(np.int64))
    return _Regions(starts[0], starts[1], sides[0], sides[1])


@torch.inference_mode()
def local_global(
    model: str | Path | DepthModel, datasets: Data, *, options: AnalysisOptions | None = None, **changes: Any
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
        datasets: what `open_data` takes; all pixels that the data call valid are used.
        options: how; None for the usual way.
        changes: options given by name, for example `shares=[0.5]`; see `AnalysisOptions`.

    Returns:
        The analysis. Regions with fewer than `LEAST_PIXELS` valid pixels are left out and counted; frames that fail are
        listed there and raise nothing.

    Raises:
        ValueError: no shares, or one outside (0, 1).
        FileNotFoundError, DistillDepthError: no such data or model.
        TypeError: no such option.

    Source: Distill Any Depth (2025), Fig. 2 (global and local least squares) and Fig. 5 (whole image and crop).
    """
    options = (options or AnalysisOptions()).changed(changes, "local_global")
    shares = _check(options)
    opened = open_data(datasets, root=options.root, limit=options.limit)
    items = [item for dataset in opened for item in dataset.items[: options.limit]]
    estimator = Estimator(open_model(model, options.offline), options.settle(model))
    advance = options.start(len(items)) if options.start is not None else lambda count: None
    analysis = _Analysis(estimator, shares, options.crops, advance)
    began = time.perf_counter()
    analysis.run(items)
    rows = [
        analysis.summarise(dataset.name, share, place) for dataset in opened for share in shares for place in PLACES
    ]
    metadata = AnalysisMetadata(
        ScoredModel.of(estimator.model.info),
        space=analysis.space,
        shares=list(shares),
        crops_per_side=CROPS_PER_SIDE if options.crops else 0,
        device=str(estimator.device),
        precision=options.precision,
        torch=torch.__version__,
        seconds=round(time.perf_counter() - began, 3),
    )
    return LocalGlobal(metadata, rows, analysis.failures)


def _check(options: AnalysisOptions) -> list[float]:
    """The shares that are asked for, each once."""
    shares = [float(share) for share in options.shares]
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"local_global: shares must be between 0 and 1, got {shares}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"local_global: limit must be at least 1, got {options.limit}")
    return list(dict.fromkeys(shares))


_Predicted = tuple[LoadedImage[Item, Truth], Tensor]


def _equal_truths(batch: list[_Predicted]) -> Iterator[tuple[list[LoadedImage[Item, Truth]], Tensor]]:
    """Groups whose truth has one size and is small enough to be cut into regions at once, with their predictions."""
    groups: dict[tuple[int, ...], list[_Predicted]] = {}
    for loaded, values in batch:
        groups.setdefault(loaded.extra.depth.shape, []).append((loaded, values))
    for (height, width), members in groups.items():
        room = max(1, _PIXELS // (height * width))
        for first in range(0, len(members), room):
            part = members[first : first + room]
            yield [loaded for loaded, _ in part], torch.stack([values for _, values in part])


@dataclass(frozen=True)
class _Maps:
    """Maps of one size with one shape, whole `(B, h, w)` or cut into regions."""

    prediction: Tensor
    depth: Tensor
    valid: Tensor
    whole: Tensor
    """Depth of the prediction with one fit for the whole map."""
    ramp: Tensor
    whole_ramp: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> _Maps:
        """Return the same of every map."""
        return _Maps(*(change(getattr(self, map.name)) for map in fields(self)))


@dataclass
class _ImageScores:
    """One image: means over its regions."""

    regions: int
    negative: float
    scores: dict[str, _Scores]


@dataclass
class _CropScores:
    """The model run on regions `(R,)` alone."""

    seen: Tensor
    """bool: which it was run on."""
    metrics: dict[str, Tensor]


class _Analysis:
    """Scores of the regions of every image, collected batch by batch."""

    def __init__(
        self, estimator: Estimator, shares: Sequence[float], crops: bool, advance: Callable[[int], None]
    ) -> None:
        self.estimator, self.shares, self.crops, self.advance = estimator, shares, crops, advance
        self.space = "depth" if estimator.model.info.quantity == "depth" else "disparity"
        self.images: dict[_Key, list[_ImageScores]] = {}
        self.skipped: Counter[_Key] = Counter()
        self._errors: dict[tuple[str, str], str] = {}

    @property
    def failures(self) -> list[Failure]:
        """The frames that could not be used."""
        return [Failure(dataset, name, error) for (dataset, name), error in self._errors.items()]

    def run(self, items: list[Item]) -> None:
        """Score the regions of every image."""
        with self.estimator as estimator:
            for batch in estimator.run(items, lambda item: item.read(), self._fail):
                for group, values in _equal_truths(batch):
                    self.advance(self._add(group, values))

    def _fail(self, item: Item, error: BaseException) -> None:
        self._errors[item.dataset, item.name] = reason(error)
        self.advance(1)

    def _add(self, batch: list[LoadedImage[Item, Truth]], values: Tensor) -> int:
        """Score images whose truth has one size; return how many were."""
        device = self.estimator.device
        depth = torch.from_numpy(np.stack([loaded.extra.depth for loaded in batch])).to(device)
        valid = torch.from_numpy(np.stack([loaded.extra.valid for loaded in batch])).to(device)
        valid &= torch.isfinite(depth) & (depth > 0)
        prediction = self._to_space(values, (depth.shape[1], depth.shape[2]))
        usable = self._find_usable(batch, prediction, valid)
        if not any(usable):
            return 0
        kept = torch.tensor(usable, device=device)
        batch = [loaded for loaded, good in zip(batch, usable, strict=True) if good]
        prediction, depth, valid = prediction[kept], torch.where(valid, depth, 1)[kept], valid[kept]
        ramp = load_baseline("ramp").to(device)(depth[:, None].expand(-1, 3, -1, -1)).values
        whole = align(prediction, depth, valid, space=self.space).depth
        whole_ramp = align(ramp, depth, valid, space=self.space).depth
        maps = _Maps(prediction, depth, valid, whole, ramp, whole_ramp)
        for share in self.shares:
            for place in PLACES:
                self._score(batch, maps, share, place)
        return len(batch)

    def _find_usable(self, batch: list[LoadedImage[Item, Truth]], prediction: Tensor, valid: Tensor) -> list[bool]:
        """Which images have a valid pixel, and a finite prediction wherever they have one."""
        known = valid.flatten(1).any(1).tolist()
        finite = (torch.isfinite(prediction) | ~valid).flatten(1).all(1).tolist()
        for loaded, is_known, is_finite in zip(batch, known, finite, strict=True):
            if not is_known:
                self._fail(loaded.item, DistillDepthError("no valid pixel in the ground truth"))
            elif not is_finite:
                self._fail(loaded.item, DistillDepthError("the prediction is not finite on every valid pixel"))
        return [is_known and is_finite for is_known, is_finite in zip(known, finite, strict=True)]

    def _to_space(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Predictions in the space of the fit, at the size of the truth."""
        values = resize(values[:, None].float(), size, "bilinear")[:, 0]
        return values if self.space == "depth" else to_disparity(values, self.estimator.model.info.quantity)

    def _score(self, batch: list[LoadedImage[Item, Truth]], maps: _Maps, share: float, place: str) -> None:
        regions = place_regions(maps.depth.shape[1], maps.depth.shape[2], share, place)
        cut = maps.each(regions.cut)
        enough = cut.valid.flatten(2).sum(2) >= LEAST_PIXELS
        count = enough.sum(1).cpu()
        for loaded, skipped in zip(batch, (~enough).sum(1).tolist(), strict=True):
            self.skipped[loaded.item.dataset, share, place] += skipped
        if not enough.any():
            return
        cut = cut.each(lambda values: values[enough])
        negative, scores = self._score_regions(cut)
        owner = torch.repeat_interleave(torch.arange(len(batch)), count)
        crop = self._run_crops(batch, regions, enough, cut) if self.crops else None
        for index, loaded in enumerate(batch):
            if not count[index]:
                continue
            mine = owner == index
            found = {name: _means(values, mine) for name, values in scores.items()}
            if crop is not None and (seen := mine & crop.seen).any():
                found |= {"crop": _means(crop.metrics, seen), "local_on_crops": _means(scores["local"], seen)}
            one = _ImageScores(int(count[index]), float(negative[mine].mean()), found)
            self.images.setdefault((loaded.item.dataset, share, place), []).append(one)

    def _score_regions(self, cut: _Maps) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Whether each local fit has a scale below 0, and the metrics of each region; all on the CPU."""
        local = align(cut.prediction, cut.depth, cut.valid, space=self.space)
        local_ramp = align(cut.ramp, cut.depth, cut.valid, space=self.space).depth
        maps = {
            "global": cut.whole,
            "local": local.depth,
            "control_global": cut.whole_ramp,
            "control_local": local_ramp,
        }
        # Models of affine-invariant depth grow with the distance, as depth does: a sound scale is positive always.
        negative = (torch.as_tensor(local.scale) < 0).double().cpu()
        return negative, {name: _metrics(depth, cut.depth, cut.valid) for name, depth in maps.items()}

    def _run_crops(
        self, batch: list[LoadedImage[Item, Truth]], regions: _Regions, enough: Tensor, cut: _Maps
    ) -> _CropScores:
        """Metrics of the regions from the model run on each alone; `seen` says which it was run on."""
        wanted = enough & regions.spread(CROPS_PER_SIDE).to(enough.device)
        values = self.estimator.estimate(_cut_images(batch, regions, wanted))
        good = [isinstance(value, Tensor) for value in values]
        seen = wanted[enough].clone()
        # A crop that the model cannot take is one that nothing was measured on.
        seen[seen.clone()] = torch.tensor(good, dtype=torch.bool, device=seen.device)
        result = {metric: torch.full(seen.shape, torch.nan, dtype=torch.float64) for metric in METRICS}
        if seen.any():
            maps = torch.stack([value for value in values if isinstance(value, Tensor)])
            prediction = self._to_space(maps, (regions.height, regions.width))
            depth, valid = cut.depth[seen], cut.valid[seen]
            fitted = align(prediction, depth, valid, space=self.space).depth
            for metric, scored in _metrics(fitted, depth, valid).items():
                result[metric][seen.cpu()] = scored
        return _CropScores(seen.cpu(), result)

    def summarise(self, dataset: str, share: float, place: str) -> RegionRow:
        """The row of a dataset: means over its images, paired differences with intervals."""
        images = self.images.get((dataset, share, place), [])
        scores: dict[str, _Scores | None] = {}
        for name in ("global", "local", "crop", "local_on_crops", "control_global", "control_local"):
            there = [one.scores[name] for one in images if name in one.scores]
            scores[name] = {m: float(np.mean([found[m] for found in there])) for m in METRICS} if there else None
        differences: dict[str, dict[str, list[float]] | None] = {}
        pairs = (("local", "global"), ("crop", "local_on_crops"), ("control_local", "control_global"))
        for first, second in pairs:
            both = [(one.scores[first], one.scores[second]) for one in images if {first, second} <= one.scores.keys()]
            name = f"{first}_minus_{second.removeprefix('control_').removesuffix('_on_crops')}"
            differences[name] = (
                {m: _with_interval(np.array([a[m] - b[m] for a, b in both])) for m in METRICS} if both else None
            )
        return RegionRow(
            dataset,
            share,
            place,
            images=len(images),
            regions=sum(one.regions for one in images),
            skipped=self.skipped[dataset, share, place],
            negative=float(np.mean([one.negative for one in images])) if images else None,
            scores=scores,
            differences=differences,
        )


def _metrics(depth: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    scored = depth_metrics(depth, truth, valid)
    return {metric: torch.as_tensor(scored[metric]).cpu() for metric in METRICS}


def _means(metrics: dict[str, Tensor], chosen: Tensor) -> _Scores:
    return {metric: float(metrics[metric][chosen].mean()) for metric in METRICS}


def _cut_images(
    batch: list[LoadedImage[Item, Truth]], regions: _Regions, wanted: Tensor
) -> list[LoadedImage[Item, None]]:
    """The part of the image that shows each region that is wanted `(B, regions)`; all have one size."""
    height, width = batch[0].image.shape[:2]
    truth_height, truth_width = batch[0].extra.depth.shape
    ratio = (height / truth_height, width / truth_width)
    inner = (max(1, round(regions.height * ratio[0])), max(1, round(regions.width * ratio[1])))
    columns = len(regions.lefts)
    images = []
    for image, region in wanted.nonzero().tolist():
        top = min(round(regions.tops[region // columns] * ratio[0]), height - inner[0])
        left = min(round(regions.lefts[region % columns] * ratio[1]), width - inner[1])
        window = batch[image].image[top : top + inner[0], left : left + inner[1]]
        images.append(LoadedImage(batch[image].item, np.ascontiguousarray(window), None, batch[image].policy))
    return images


def _spread(number: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices below `number`."""
    return np.linspace(0, number - 1, min(number, most)).round().astype(np.int64)


def _with_interval(values: np.ndarray) -> list[float]:
    low, high = bootstrap_interval(values)
    return [float(values.mean()), float(low), float(high)]


def _verdict(rows: list[RegionRow], name: str) -> str:
    intervals = [found["abs_rel"] for row in rows if (found := row.differences[name])]
    better = sum(high < 0 for _, _, high in intervals)
    worse = sum(low > 0 for _, low, _ in intervals)
    return f"better on {better}, worse on {worse} of {len(intervals)}"


def _relative_gain(rows: list[RegionRow], prefix: str) -> float:
    """Share of the error that local fits remove, median over the datasets."""
    pairs = [(row.scores[f"{prefix}local"], row.scores[f"{prefix}global"]) for row in rows]
    return float(np.median([1 - one["abs_rel"] / whole["abs_rel"] for one, whole in pairs if one and whole]))


def _share_name(share: float) -> str:
    whole = round(1 / share)
    return f"1/{whole}" if math.isclose(share, 1 / whole) else f"{share:g}"


def _number(scores: _Scores | None, metric: str) -> str:
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
