"""One sample after the other: read, predicted, scored, written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.doubts import (
    DIRECTION,
    SHAPE,
    TRUTH_SHAPE,
    VIEWS,
    describe_misfit,
    find_wrong_direction,
    fits_slope,
)
from distilldepth.evaluate.given import GivenPoints
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.protocol import Rules
from distilldepth.evaluate.record.cases import Cases
from distilldepth.evaluate.record.folder import PREDICTIONS, RunFolder
from distilldepth.evaluate.record.rows import Metrics, ScoredSample
from distilldepth.evaluate.record.saved_maps import save_prediction
from distilldepth.evaluate.record.uncertainty import SPARSIFIED
from distilldepth.evaluate.score import (
    Scores,
    add_completion,
    apply_image_crop,
    crop_right_view,
    score_batch,
    to_frame,
)
from distilldepth.images.stereo import RightView, are_swapped
from distilldepth.inference.batches import FAILURES, LoadedImage, reason, without_relief
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models.preprocess import resize
from distilldepth.words import LOG_VARIANCE


@dataclass(frozen=True, eq=False)
class Task:
    """One sample with what it takes to score it."""

    item: Item
    index: int
    """In its dataset."""
    dataset: Dataset
    rules: Rules
    stored: Path | None
    """Where its prediction is, if no model makes it."""


@dataclass(frozen=True)
class _Known:
    """What is read with an image."""

    truth: Truth
    maps: dict[str, np.ndarray]
    """Stored predictions: the map under the empty name, further maps of the same size, such as an uncertainty."""
    digest: str
    """Of the files of the maps; empty if a model made them."""
    points: np.ndarray | None = None
    """Of the image's size, for completion."""
    truth_points: np.ndarray | None = None
    """The same at the size of the truth."""
    right: RightView | None = None
    """For models of two views."""
    swapped: bool = False
    """Whether both views look exchanged."""


@dataclass
class _Predicted:
    """A sample with its truth and its map."""

    task: Task
    image: np.ndarray
    truth: Truth
    values: Tensor
    extras: dict[str, Tensor]
    """Further maps of the same size, such as an uncertainty."""
    digest: str
    points: np.ndarray | None
    """What was given of the truth, at its size; None where it is depth that is scored."""
    swapped: bool = False
    """Whether its views look exchanged."""

    @property
    def shapes(self) -> tuple[object, ...]:
        """What has to be equal for samples to be scored together."""
        sizes = tuple((name, tuple(values.shape)) for name, values in (("", self.values), *self.extras.items()))
        return self.task.dataset.name, self.truth.depth.shape, sizes, self.truth.is_metric, self.truth.dense


class StoredMaps(Estimator):
    """Gives maps that were read with the images, in place of a network's."""

    def __init__(self, model: StoredPredictions, options: InferenceOptions) -> None:
        super().__init__(model, options)
        self.stored = model

    def estimate_batch(self, batch: Sequence[LoadedImage[Task, _Known]]) -> list[Tensor | Exception]:  # type: ignore[override]  # it reads what Scoring reads
        """Return the maps that were read, on the device."""
        return [torch.from_numpy(loaded.extra.maps[""]).to(self.device) for loaded in batch]


class Scoring:
    """The work of one evaluation, and what is known so far.

    Args:
        estimator: gives the maps; `StoredMaps` if they are on disk.
        tasks: what is to be scored.
        folder: where each sample is written down; None for nowhere.
        save_as: format of maps that are kept below the folder; None keeps none.
        advance: told how many more samples are done.
        given: which points of the truth a completion is given; None where it is depth that is scored.
    """

    def __init__(
        self,
        estimator: Estimator,
        tasks: list[Task],
        *,
        folder: RunFolder | None = None,
        save_as: str | None = None,
        advance: Callable[[int], None] = lambda count: None,
        given: GivenPoints | None = None,
    ) -> None:
        self.estimator, self.tasks = estimator, tasks
        self.folder, self.save_as, self.advance, self.given = folder, save_as, advance, given
        self.cases = Cases()
        self.rows: dict[Task, ScoredSample] = {}
        self.errors: dict[Task, str] = {}
        self.resumed_after = 0
        self._quantity = estimator.info.quantity
        self._is_baseline = estimator.info.name.startswith("baseline:")
        estimator.flip_of = _flip_of

    def fail(self, task: Task, error: BaseException) -> None:
        """Note that a sample cannot be scored."""
        self.errors[task] = reason(error)
        self.advance(1)

    def restore(self) -> None:
        """Take over what an earlier run into the same folder has scored."""
        if self.folder is None or not self.folder.done:
            return
        self.cases = Cases.load(self.folder.folder)
        places = {(task.dataset.name, task.index): task for task in self.tasks}
        changed: list[str] = []
        for index, row in self.folder.done:
            task = places.get((row.dataset, index))
            if task is not None and task.item.name != row.name:
                raise DistillDepthError(
                    f"{self.folder.folder}: {row.name} was scored in the place of {task.item.name}; start anew with "
                    "--overwrite"
                )
            if task is not None and task not in self.rows:
                self.rows[task] = row
                if task.stored is not None and self._digest(task.stored) != row.digest:
                    changed.append(str(task.stored))
        if changed:
            raise DistillDepthError(
                f"{self.folder.folder}: {len(changed)} of {len(self.rows)} maps are others now than when they were "
                f"scored (first: {changed[0]}); choose another --out, or start anew with --overwrite"
            )
        self.resumed_after = len(self.rows)
        self.advance(len(self.rows))

    def score_all(self) -> None:
        """Score every sample that is neither done nor failed."""
        todo = [task for task in self.tasks if task not in self.rows and task not in self.errors]
        with self.estimator as estimator:
            for batch in estimator.run(todo, self._read, self.fail):
                groups = self._groups(batch)
                saving = self._save(groups)
                self._record([row for group in groups for row in self._score_group(group)], saving)
        if len(self.rows) + len(self.errors) != len(self.tasks):
            raise RuntimeError(
                f"evaluate: {len(self.tasks)} samples went in, {len(self.rows)} scored and {len(self.errors)} failed "
                "came out"
            )

    def _digest(self, path: Path) -> str:
        return self.estimator.stored.digest(path) if isinstance(self.estimator, StoredMaps) else ""

    def _read(self, task: Task) -> tuple[np.ndarray, _Known]:
        """Read a sample; runs in a worker while the model computes."""
        image, truth = task.item.read()
        cropped, truth = apply_image_crop(image, truth, task.rules)
        if self.given is not None:
            drawn = self.given.draw(task.item.name, cropped, truth)
            return cropped, _Known(drawn.truth, {}, "", drawn.points, drawn.truth_points)
        if self.estimator.views == 2:
            right = self._read_right(task, image)
            return cropped, _Known(truth, {}, "", right=right, swapped=are_swapped(cropped, right.image))
        if task.stored is None or not isinstance(self.estimator, StoredMaps):
            return cropped, _Known(truth, {}, "")
        model = self.estimator.stored
        digest = model.digest(task.stored)
        maps = {"": model.read(task.stored, task.dataset.kind), **model.read_extras(task.stored)}
        maps = {name: _crop_like(values, image, cropped, task.rules) for name, values in maps.items()}
        return cropped, _Known(truth, maps, digest)

    def _read_right(self, task: Task, image: np.ndarray) -> RightView:
        """The right view of an image, cropped as it is."""
        if task.item.right is None:
            raise DistillDepthError(f"has no right view, and {self.estimator.model.info.name} sees two views")
        right = task.item.right.read()
        right.check_size(image)
        return replace(right, image=crop_right_view(right.image, task.rules))

    def _groups(self, batch: list[tuple[LoadedImage[Task, _Known], Tensor]]) -> list[list[_Predicted]]:
        """The samples of a batch, those side by side that can be scored together."""
        groups: dict[tuple[object, ...], list[_Predicted]] = {}
        for loaded, values in batch:
            known = loaded.extra
            extras = {
                name: torch.from_numpy(other).to(self.estimator.device) for name, other in known.maps.items() if name
            } | loaded.maps
            one = _Predicted(
                loaded.item,
                loaded.image,
                known.truth,
                values,
                extras,
                known.digest,
                known.truth_points,
                known.swapped,
            )
            groups.setdefault(one.shapes, []).append(one)
        return list(groups.values())

    def _save(self, groups: list[list[_Predicted]]) -> dict[Task, Future[Path]]:
        """Begin to write the maps, if they are to be kept."""
        if self.save_as is None or self.folder is None:
            return {}
        return {
            one.task: self.estimator.submit(
                save_prediction,
                self.folder.folder / PREDICTIONS,
                one.task.dataset.name,
                one.task.item.name,
                one.values.cpu().numpy(),
                self._quantity,
                form=self.save_as,
                log_variance=one.extras[LOG_VARIANCE].cpu().numpy() if LOG_VARIANCE in one.extras else None,
            )
            for group in groups
            for one in group
        }

    def _score_group(self, group: list[_Predicted]) -> list[tuple[Task, ScoredSample]]:
        """Rows of the samples that could be scored; all have one size of truth and one set of rules."""
        first, device = group[0], self.estimator.device
        try:
            scores = score_batch(
                torch.stack([one.values for one in group]),
                self._quantity,
                torch.from_numpy(np.stack([one.truth.depth for one in group])).to(device),
                torch.from_numpy(np.stack([one.truth.valid for one in group])).to(device),
                first.truth.is_metric,
                first.task.rules,
                extras={name: torch.stack([one.extras[name] for one in group]) for name in first.extras},
                dense=first.truth.dense,
            )
            if self.given is not None:
                add_completion(scores)
        except FAILURES as error:
            if len(group) == 1:
                self.fail(first.task, error)
                return []
            # By halves, so that only the sample at fault is lost, and less memory is taken at once.
            half = len(group) // 2
            return self._score_group(group[:half]) + self._score_group(group[half:])
        rows = self._rows(group, scores)
        done = []
        for index, (one, row) in enumerate(zip(group, rows, strict=True)):
            if index in scores.problems:
                self.fail(one.task, DistillDepthError(scores.problems[index]))
            else:
                done.append((one.task, row))
                self._offer_case(one, row, scores, index)
        return done

    def _rows(self, group: list[_Predicted], scores: Scores) -> list[ScoredSample]:
        """The scores of each image as plain numbers, with what is doubtful about them."""
        rows = [
            ScoredSample(one.task.dataset.name, one.task.item.name, *numbers, digest=one.digest)
            for one, numbers in zip(group, _numbers(scores), strict=True)
        ]
        if self.folder is not None and group[0].truth.is_metric:
            # Error against depth is for the report, and costs as much as the scores themselves.
            for row, bins in zip(rows, scores.by_depth.cpu().tolist(), strict=True):
                row.error_by_depth = [depth_bin for depth_bin in bins if depth_bin[2] > 0]
        if self.folder is not None and scores.sparsification:
            for index, row in enumerate(rows):
                row.sparsification = curves_of(scores.sparsification, index)
        if not self._is_baseline:  # They are what they are.
            constant = without_relief(torch.stack([one.values for one in group])).cpu().tolist()
            for row, is_constant in zip(rows, constant, strict=True):
                row.constant = is_constant
        self._find_doubts(group, scores, rows)
        return rows

    def _find_doubts(self, group: list[_Predicted], scores: Scores, rows: list[ScoredSample]) -> None:
        """Note what is doubtful about each sample, and the ratio of metres."""
        rules, count = group[0].task.rules, len(group)
        in_metres = group[0].truth.is_metric and self._quantity == "metric_depth"
        none = scores.scale.new_full((count,), torch.nan)
        columns = (none if fits_slope(rules) else scores.correlation, scores.scale, scores.ratio if in_metres else none)
        correlation, scale, ratio = torch.stack([column.double() for column in columns]).cpu().tolist()
        against = [""] * count if self._is_baseline else find_wrong_direction(correlation, scale, rules)
        for one, row, direction, factor in zip(group, rows, against, ratio, strict=True):
            size, frame = _size(one.values), _size(one.image)
            truth = _size(one.truth.depth)
            doubts = {
                SHAPE: "" if size == truth else describe_misfit(size, frame),
                TRUTH_SHAPE: describe_misfit(truth, frame),
                VIEWS: "as block matching shows" if one.swapped else "",
                DIRECTION: direction,
            }
            row.doubts = {kind: text for kind, text in doubts.items() if text}
            row.ratio = factor if math.isfinite(factor) else None

    def _offer_case(self, one: _Predicted, row: ScoredSample, scores: Scores, index: int) -> None:
        """Keep the pictures of a sample for the report, if it is among the worst or best so far."""
        score = row.metrics.get("abs_rel")
        if self.folder is not None and score is not None and self.cases.wants(row.dataset, row.name, score):
            image: np.ndarray | Tensor = one.image
            if one.task.rules.image_crop == "kb-in-frame":
                channels = torch.from_numpy(one.image).permute(2, 0, 1)
                image = to_frame(channels, _size(one.truth.depth), "nearest", one.task.rules).permute(1, 2, 0)
            maps = scores.depth[index], one.truth.depth, scores.scored[index]
            kept = self.cases.offer(row.dataset, row.name, score, image, *maps, is_metric=one.truth.is_metric)
            if kept and one.points is not None:
                self.cases.add_points(row.dataset, row.name, one.points)
            if kept and scores.uncertainty is not None:
                self.cases.add_uncertainty(row.dataset, row.name, scores.uncertainty[index])

    def _record(self, rows: list[tuple[Task, ScoredSample]], saving: dict[Task, Future[Path]]) -> None:
        """Note scored samples, once their maps are written."""
        done = []
        for task, row in rows:
            try:
                if task in saving:
                    saving[task].result()
            except FAILURES as error:
                self.fail(task, error)
                continue
            self.rows[task] = row
            done.append((task.index, row))
        if self.folder is not None and done:
            # Pictures first: a sample whose line is there is not looked at again when the run goes on.
            self.cases.save(self.folder.folder)
            self.folder.append(done)
        self.advance(len(done))


def _flip_of(task: Task) -> str:
    return task.rules.flip_average


def _numbers(scores: Scores) -> Iterator[tuple[Metrics, Metrics, float | None, float | None]]:
    """Metrics, sums, scale and shift of each image as plain numbers; one transfer for all of them."""
    columns = [*scores.metrics.values(), *scores.sums.values(), scores.scale, scores.shift]
    count = len(scores.metrics)
    for image in torch.stack([values.double() for values in columns], 1).cpu().tolist():
        *known, scale, shift = [value if math.isfinite(value) else None for value in image]
        metrics, sums = zip(scores.metrics, known[:count], strict=True), zip(scores.sums, known[count:], strict=True)
        yield dict(metrics), dict(sums), scale, shift


def curves_of(curves: dict[str, Tensor], index: int) -> dict[str, list[list[float]]] | None:
    """Return every other step of an image's curves of sparsification, to six digits; None if one is not finite."""
    found = {name: curves[name][index, :, ::2].cpu() for name in SPARSIFIED}
    if not all(bool(values.isfinite().all()) for values in found.values()):
        return None
    return {name: [[float(f"{value:.6g}") for value in line] for line in both.tolist()] for name, both in found.items()}


def _size(values: Tensor | np.ndarray) -> tuple[int, int]:
    """Height and width of a map, or of an image `(H, W, 3)`."""
    return values.shape[0], values.shape[1]


def _crop_like(values: np.ndarray, image: np.ndarray, cropped: np.ndarray, rules: Rules) -> np.ndarray:
    """The part of a stored map that belongs to the cropped frame.

    Some programs predict on the cropped frame and some on the full one; the shape of the map says which.
    """
    full, inner = image.shape[:2], cropped.shape[:2]

    def misfit(frame: tuple[int, ...]) -> float:
        return abs(math.log(values.shape[1] / values.shape[0] * frame[0] / frame[1]))

    if full == inner or values.shape == inner or misfit(inner) <= misfit(full):
        return values
    if values.shape != full:
        values = resize(torch.from_numpy(values)[None, None], full, "bilinear")[0, 0].numpy()
    valid = np.ones(full, dtype=bool)
    return apply_image_crop(image, Truth(values, valid, is_metric=False), replace(rules, image_crop="kb"))[1].depth
