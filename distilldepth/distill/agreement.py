"""How well a student agrees with its teachers on held-out images, in numbers and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from distilldepth.alignment import align
from distilldepth.distill.config import DistillConfig
from distilldepth.distill.crops import whole_batches
from distilldepth.distill.guides import Guides
from distilldepth.distill.record.log import keep_lines_until
from distilldepth.distill.record.state import Agreement, AgreementRow
from distilldepth.distill.trackers import Trackers
from distilldepth.documents import read_json_lines
from distilldepth.files import write_atomically
from distilldepth.images.batches import SourceView
from distilldepth.images.crops import Regions
from distilldepth.inference.batches import without_relief
from distilldepth.losses.normalise import normalise
from distilldepth.metrics import depth_metrics
from distilldepth.models import DepthModel
from distilldepth.models.base import predict_at
from distilldepth.teachers.teacher import Teacher

PICTURES = 6
"""Held-out images kept as pictures."""
BETWEEN = 32
"""Held-out images on which a student is measured in the middle of a run, at most."""
AGREEMENT = "agreement.jsonl"
"""File of a run folder: a line per measurement, at step 0, every `agreement_every` steps and at the end."""


@torch.inference_mode()
def measure_agreement(
    student: DepthModel,
    teachers: list[Teacher],
    heldout: SourceView,
    config: DistillConfig,
    pictures: Path | None = None,
    *,
    most: int | None = None,
    guides: Guides | None = None,
) -> Agreement:
    """Compare the student with every teacher, and with the truth where the images have it.

    A teacher that brings held-out images of its own, with stored labels, is asked on those, all others on `heldout`;
    of each collection `most` images at most are taken, None for all.

    Per teacher: `correlation` of the two disparity maps (Pearson, per image, averaged; affine-invariant, 1 is best) and
    `ssi_error`, the mean absolute difference after each map is normalised by its median and mean absolute deviation
    (0 is best). With truth, `depth`: AbsRel and delta1 after least squares in disparity. `replaced`: how many images
    could not be read, so that the next one stood in for them. `constant`: for how many the student's map was constant.

    A student that completes points is given those of each image, and the plain map of the first of the `guides`; its
    depth is compared as inverse depth, and with the truth in metres, without a fit; so is that of any student that
    predicts metres.

    Maps of the first images are written to `pictures`, if given, as arrays for the report.
    """
    groups = _groups(teachers, heldout, most)
    if not groups:
        return {"images": 0, "teachers": {}}
    was_training = student.training
    student.eval()
    device = next(student.parameters()).device
    sums: dict[str, dict[str, list[Tensor]]] = {}
    truth: dict[str, list[Tensor]] = {}
    kept: list[dict[str, np.ndarray]] = []
    replaced, constant = 0, torch.zeros((), dtype=torch.long, device=device)
    for view, judges in groups:
        room = max(PICTURES // len(groups), 1)
        for batch in whole_batches(view, config):
            replaced += sum(count > 0 for count in batch.unreadable)
            images = batch.image.to(device).float() / 255
            depth = None if batch.depth is None else batch.depth.to(device)
            predicted, metres = _predict(student, batch, images, guides)
            constant += without_relief(predicted).sum()
            maps = {"image": batch.image.permute(0, 2, 3, 1).numpy(), "student": predicted.cpu().numpy()}
            for teacher in judges:
                label = teacher.label_whole(batch, images, depth)
                known = label.valid.flatten(1).any(1)
                scores = sums.setdefault(teacher.name, {"correlation": [], "ssi_error": []})
                for name, score in (("correlation", _correlation), ("ssi_error", _ssi_error)):
                    found = score(predicted, label.disparity, label.valid)
                    scores[name].append(torch.where(known, found, torch.nan))
                maps[teacher.name] = label.disparity.cpu().numpy()
            kept.append({name: values[: max(room, 0)] for name, values in maps.items()})
            room -= len(images)
            if depth is not None:
                valid = torch.isfinite(depth) & (depth > 0)
                if metres is None:
                    metres = align(predicted, depth, valid, space="disparity").depth
                for name, values in depth_metrics(metres, depth, valid).items():
                    if name in ("abs_rel", "delta1"):
                        truth.setdefault(name, []).append(torch.as_tensor(values))
    student.train(was_training)
    if pictures is not None:
        _keep_pictures(kept, pictures)
    result: Agreement = {
        "images": sum(len(view) for view, _ in groups),
        "replaced": replaced,
        "constant": int(constant),
        "teachers": {k: _means(v) for k, v in sums.items()},
    }
    if truth:
        result["depth"] = _means(truth)
    return result


def _predict(
    student: DepthModel, batch: Regions, images: Tensor, guides: Guides | None
) -> tuple[Tensor, Tensor | None]:
    """The student's disparity, and its depth in metres where it knows them."""
    if guides is None or batch.sparse is None:
        seen = images if student.views == 1 else batch.views(student.views).to(images) / 255
        values = predict_at(student, seen)
        return (1 / values, values) if student.info.quantity == "metric_depth" else (values, None)
    sparse = batch.sparse.to(images.device)
    metres = student(images, sparse=sparse, aligned=guides.align(images, sparse, plain=True)).values
    return 1 / metres, metres


def _groups(teachers: list[Teacher], heldout: SourceView, most: int | None) -> list[tuple[SourceView, list[Teacher]]]:
    """Each collection of held-out images with the teachers that are asked on it."""
    views: list[SourceView] = []
    judges: list[list[Teacher]] = []
    for teacher in teachers:
        view = heldout if teacher.heldout is None else teacher.heldout
        place = next((place for place, known in enumerate(views) if known is view), len(views))
        if place == len(views):
            views.append(view)
            judges.append([])
        judges[place].append(teacher)
    return [
        (view if most is None else SourceView(view, range(min(len(view), most))), who)
        for view, who in zip(views, judges, strict=True)
        if len(view)
    ]


def has_heldout(teachers: list[Teacher], heldout: SourceView) -> bool:
    """Return whether there is anything to measure the agreement with a teacher on."""
    return bool(_groups(teachers, heldout, None))


def _keep_pictures(kept: list[dict[str, np.ndarray]], folder: Path) -> None:
    """Write the maps of the first images; a teacher that was not asked on one is NaN there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in {name: None for maps in kept for name in maps}:
        arrays = [maps[name] if name in maps else np.full_like(maps["student"], np.nan) for maps in kept]
        content = io.BytesIO()
        np.save(content, np.concatenate(arrays))
        write_atomically(folder / f"{name.replace('/', '_')}.npy", content.getvalue())


class AgreementLog:
    """The agreement with each teacher in the course of a run, in memory and in `agreement.jsonl`.

    Args:
        folder: the run folder; None in processes that do not write.
        start: step from which the run goes on; later lines of an interrupted run are dropped.
        trackers: told too, below `agreement/`.
    """

    def __init__(self, folder: Path | None, start: int, trackers: Trackers) -> None:
        self._path, self._trackers = None if folder is None else folder / AGREEMENT, trackers
        self.rows: list[AgreementRow] = []
        """`step`, `images`, and per teacher `correlation` and `ssi_error`, in the order of steps."""
        if self._path is not None:
            keep_lines_until(self._path, start)
            if start and self._path.is_file():
                self.rows = [row for row in read_json_lines(self._path) if _is_row(row)]

    def add(self, step: int, measured: Agreement) -> str:
        """Take in a measurement; returns the line that says it, empty without held-out images."""
        if not measured.get("images"):
            return ""
        row: AgreementRow = {"step": step, "images": measured["images"], "teachers": measured["teachers"]}
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self._trackers.tell(row["teachers"], step, "agreement")
        scores = ", ".join(f"{name} {values['correlation']:.3f}" for name, values in row["teachers"].items())
        return f"step {step}: correlation on {row['images']} held-out images: {scores}"


def _is_row(row: Mapping[str, object]) -> TypeGuard[AgreementRow]:
    teachers = row.get("teachers")
    return isinstance(teachers, dict) and all(
        isinstance(scores, dict) and isinstance(scores.get("correlation"), int | float) for scores in teachers.values()
    )


def _means(columns: dict[str, list[Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat(parts).nanmean()) for name, parts in columns.items()}


def _correlation(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    count = valid.flatten(1).sum(1).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        x = torch.where(valid, x.double(), 0.0).flatten(1)
        return torch.where(valid.flatten(1), x - (x.sum(1) / count)[:, None], 0.0)

    a, b = centred(a), centred(b)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-12)


def _ssi_error(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    difference = (normalise(a, valid) - normalise(b, valid)).abs()
    return torch.where(valid, difference, 0.0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def replaced_note(agreement: Agreement) -> str:
    """Return what to say of held-out images that could not be read, nothing if all could."""
    replaced = agreement.get("replaced")
    return f" ({replaced} unreadable, another in its place)" if replaced else ""
