"""One sample after the other: read, predicted, scored, written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.doubts import (
    DIRECTION,
    SHAPE,
    TRUTH_SHAPE,
    describe_misfit,
    find_wrong_direction,
    fits_slope,
)
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.protocol import Protocol, Rules
from distilldepth.evaluate.record.cases import Cases
from distilldepth.evaluate.record.folder import RunFolder
from distilldepth.evaluate.record.saved_maps import save_prediction
from distilldepth.evaluate.score import Scores, apply_image_crop, score_batch, to_frame
from distilldepth.inference.batches import FAILURES, LoadedImage, estimate_batch, load_batches, reason, without_relief
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import resize


@dataclass(frozen=True, eq=False)
class _Task:
    """One sample with what it takes to score it."""

    item: Item
    index: int
    """In its dataset."""
    dataset: Dataset
    rules: Rules
    stored: Path | None
    """Where its prediction is, if no model makes it."""


@dataclass
class _Predicted:
    """A sample with its truth and its map."""

    task: _Task
    image: np.ndarray
    truth: Truth
    values: Tensor
    extras: dict[str, Tensor]
    """Further maps of the same size, such as an uncertainty."""
    digest: str
    """Of the files of the maps; empty if a model made them."""


class _Run:
    """The work of one evaluation, and what is known so far."""

    def __init__(
        self,
        model: DepthModel,
        protocol: Protocol,
        rules: dict[str, Rules],
        place: torch.device,
        precision: str,
        policy: str | None,
        size: int | None,
        batch_size: int,
    ) -> None:
        self.model, self.protocol, self.rules = model, protocol, rules
        self.place, self.precision, self.policy, self.size = place, precision, policy, size
        self.batch_size = batch_size
        self.tasks: list[_Task] = []
        self.scale_notes: dict[str, list[str]] = {}
        self.folder: RunFolder | None = None
        self.cases = Cases()
        self.save_as: str | None = None
        self.rows: dict[_Task, dict[str, Any]] = {}
        self.errors: dict[_Task, str] = {}
        self.model_seconds = 0.0
        self.resumed_after = 0
        self.advance: Callable[[int], None] = lambda count: None
        self.workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")

    def close(self) -> None:
        """Wait for what is being read and written, and close the files."""
        self.workers.shutdown(wait=True, cancel_futures=True)
        if self.folder is not None:
            self.folder.close()

    def fail(self, task: _Task, error: BaseException) -> None:
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
        for row in self.folder.done:
            task = places.get((row["dataset"], row.pop("index")))
            if task is not None and task.item.name != row["name"]:
                raise DistillDepthError(
                    f"{self.folder.folder}: {row['name']} was scored in the place of {task.item.name}; start anew with "
                    "--overwrite"
                )
            if task is not None and task not in self.rows:
                self.rows[task] = row
                if task.stored is not None and self.model.digest(task.stored) != row.get("digest"):
                    changed.append(str(task.stored))
        if changed:
            raise DistillDepthError(
                f"{self.folder.folder}: {len(changed)} of {len(self.rows)} maps are others now than when they were "
                f"scored (first: {changed[0]}); choose another --out, or start anew with --overwrite"
            )
        self.resumed_after = len(self.rows)
        self.advance(len(self.rows))

    def read(self, task: _Task) -> tuple[np.ndarray, tuple[Truth, dict[str, np.ndarray], str]]:
        """Read a sample; runs in a worker while the model computes."""
        image, truth = task.item.read()
        cropped, truth = apply_image_crop(image, truth, task.rules)
        if task.stored is None:
            return cropped, (truth, {}, "")
        digest = self.model.digest(task.stored)
        maps = {"": self.model.read(task.stored, task.dataset.kind), **self.model.read_extras(task.stored)}
        maps = {name: _crop_like(values, image, cropped, task.rules) for name, values in maps.items()}
        return cropped, (truth, maps, digest)

    def score_all(self) -> None:
        """Score every sample that is neither done nor failed."""
        todo = [task for task in self.tasks if task not in self.rows and task not in self.errors]
        was_training = self.model.training
        self.model.eval()
        batches = load_batches(
            todo,
            self.read,
            self.model,
            self.workers,
            self.fail,
            policy=self.policy,
            size=self.size,
            batch_size=self.batch_size,
        )
        try:
            for batch in batches:
                self.score_batch(batch)
        finally:
            self.model.train(was_training)
        if len(self.rows) + len(self.errors) != len(self.tasks):
            raise RuntimeError(
                f"evaluate: {len(self.tasks)} samples went in, {len(self.rows)} scored and {len(self.errors)} failed "
                "came out"
            )

    def score_batch(self, batch: list[LoadedImage]) -> None:
        """Predict, score and record images of one size."""
        began = time.perf_counter()
        if isinstance(self.model, StoredPredictions):
            maps: list[Tensor | Exception] = [torch.from_numpy(loaded.extra[1][""]).to(self.place) for loaded in batch]
        else:
            maps = estimate_batch(self.model, batch, self.place, precision=self.precision, size=self.size)
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
        self.model_seconds += time.perf_counter() - began
        groups: dict[tuple, list[_Predicted]] = {}
        for loaded, values in zip(batch, maps, strict=True):
            task, (truth, stored, digest) = loaded.item, loaded.extra
            if isinstance(values, Exception):
                self.fail(task, values)
                continue
            extras = {name: torch.from_numpy(stored[name]).to(self.place) for name in stored if name}
            sizes = tuple((name, tuple(other.shape)) for name, other in (("", values), *extras.items()))
            key = (task.dataset.name, truth.depth.shape, sizes, truth.is_metric, truth.dense)
            groups.setdefault(key, []).append(_Predicted(task, loaded.image, truth, values, extras, digest))
        saving = self.save([predicted for group in groups.values() for predicted in group])
        rows = [row for group in groups.values() for row in self.score_group(group)]
        self.record(rows, saving)

    def save(self, group: Iterable[_Predicted]) -> dict[_Task, Future]:
        """Begin to write the maps, if they are to be kept."""
        if self.save_as is None:
            return {}
        return {
            one.task: self.workers.submit(
                save_prediction,
                self.folder.folder / "predictions",
                one.task.dataset.name,
                one.task.item.name,
                one.values.cpu().numpy(),
                self.model.info.quantity,
                form=self.save_as,
            )
            for one in group
        }

    def find_constant(self, group: list[_Predicted]) -> list[bool]:
        """Which maps have no relief; baselines are what they are, and not looked at."""
        if self.model.info.name.startswith("baseline:"):
            return [False] * len(group)
        return without_relief(torch.stack([one.values for one in group])).cpu().tolist()

    def find_doubts(self, group: list[_Predicted], scores: Scores) -> list[dict[str, Any]]:
        """What each row says of doubts: texts by kind, the ratio of metres, and which file was scored."""
        rules, count = group[0].task.rules, len(group)
        in_metres = group[0].truth.is_metric and self.model.info.quantity == "metric_depth"
        none = scores.scale.new_full((count,), torch.nan)
        columns = (none if fits_slope(rules) else scores.correlation, scores.scale, scores.ratio if in_metres else none)
        correlation, scale, ratio = torch.stack([column.double() for column in columns]).cpu().tolist()
        is_baseline = self.model.info.name.startswith("baseline:")
        against = [""] * count if is_baseline else find_wrong_direction(correlation, scale, rules)
        found: list[dict[str, Any]] = []
        for one, direction, factor in zip(group, against, ratio, strict=True):
            size, frame = tuple(one.values.shape), one.image.shape[:2]
            is_like_truth = size == one.truth.depth.shape
            doubts = {
                SHAPE: "" if is_like_truth else describe_misfit(size, frame),
                TRUTH_SHAPE: describe_misfit(one.truth.depth.shape, frame),
                DIRECTION: direction,
            }
            row: dict[str, Any] = {"doubts": {kind: text for kind, text in doubts.items() if text}}
            if math.isfinite(factor):
                row["ratio"] = factor
            if one.digest:
                row["digest"] = one.digest
            found.append(row)
        return found

    def score_group(self, group: list[_Predicted]) -> list[tuple[_Task, dict[str, Any]]]:
        """Rows of the samples that could be scored; all have one size of truth and one set of rules."""
        first = group[0]
        try:
            scores = score_batch(
                torch.stack([one.values for one in group]),
                self.model.info.quantity,
                torch.from_numpy(np.stack([one.truth.depth for one in group])).to(self.place),
                torch.from_numpy(np.stack([one.truth.valid for one in group])).to(self.place),
                first.truth.is_metric,
                first.task.rules,
                extras={name: torch.stack([one.extras[name] for one in group]) for name in first.extras},
                dense=first.truth.dense,
            )
        except FAILURES as error:
            if len(group) == 1:
                self.fail(first.task, error)
                return []
            # By halves, so that only the sample at fault is lost, and less memory is taken at once.
            half = len(group) // 2
            return self.score_group(group[:half]) + self.score_group(group[half:])
        constant = self.find_constant(group)
        doubts = self.find_doubts(group, scores)
        rows = []
        # Error against depth is for the report, and costs as much as the scores themselves.
        by_depth = scores.by_depth.cpu().tolist() if self.folder is not None and first.truth.is_metric else None
        for index, (one, row) in enumerate(zip(group, _rows(scores, len(group)), strict=True)):
            if index in scores.problems:
                self.fail(one.task, DistillDepthError(scores.problems[index]))
            else:
                if by_depth is not None:
                    row["error_by_depth"] = [depth_bin for depth_bin in by_depth[index] if depth_bin[2] > 0]
                if constant[index]:
                    row["constant"] = True
                row |= doubts[index]
                rows.append((one.task, {"dataset": one.task.dataset.name, "name": one.task.item.name, **row}))
                self.offer_case(one, row, scores, index)
        return rows

    def offer_case(self, one: _Predicted, row: dict[str, Any], scores: Scores, index: int) -> None:
        """Keep the pictures of a sample for the report, if it is among the worst or best so far."""
        sample, score = (one.task.dataset.name, one.task.item.name), row["metrics"].get("abs_rel")
        if self.folder is not None and score is not None and self.cases.wants(*sample, score):
            maps = scores.depth[index], one.truth.depth, scores.mask[index]
            image: Any = one.image
            if one.task.rules.image_crop == "kb-in-frame":
                channels = torch.from_numpy(image).permute(2, 0, 1)
                image = to_frame(channels, one.truth.depth.shape, "nearest", one.task.rules).permute(1, 2, 0)
            self.cases.offer(*sample, score, image, *maps, is_metric=one.truth.is_metric)

    def record(self, rows: list[tuple[_Task, dict[str, Any]]], saving: dict[_Task, Future]) -> None:
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
            done.append({"index": task.index, **row})
        if self.folder is not None and done:
            # Pictures first: a sample whose line is there is not looked at again when the run goes on.
            self.cases.save(self.folder.folder)
            self.folder.append(done)
        self.advance(len(done))


def _rows(scores: Scores, count: int) -> list[dict[str, Any]]:
    """The scores of each image as plain numbers; one transfer for all of them."""
    columns = {
        **{("metrics", name): values for name, values in scores.metrics.items()},
        **{("sums", name): values for name, values in scores.sums.items()},
        ("scale", ""): scores.scale,
        ("shift", ""): scores.shift,
    }
    table = torch.stack([values.double() for values in columns.values()]).cpu().tolist()
    rows: list[dict[str, Any]] = []
    for index in range(count):
        row: dict[str, Any] = {"metrics": {}, "sums": {}}
        for (part, name), values in zip(columns, table, strict=True):
            value = values[index] if math.isfinite(values[index]) else None
            if name:
                row[part][name] = value
            else:
                row[part] = value
        rows.append(row)
    return rows


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
