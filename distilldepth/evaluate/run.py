"""`evaluate`: a model's predictions aligned, scored per image and averaged per dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distilldepth.datasets.open import check_any_readable, open_data
from distilldepth.datasets.truth import Dataset
from distilldepth.device import resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.aggregate import headline, mean_metrics, summarise
from distilldepth.evaluate.baselines import open_model
from distilldepth.evaluate.doubts import (
    TRUTH_SCALE,
)
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.protocol import Protocol, Rules, choose_protocol
from distilldepth.evaluate.record.folder import RunFolder, check_folder, describe_run
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.saved_maps import check_distinct, write_index
from distilldepth.evaluate.samples import _Run, _Task
from distilldepth.evaluate.score import MEANINGLESS, is_meaningless
from distilldepth.files import expand_user
from distilldepth.formats.kitti import check_metres
from distilldepth.inference.batches import (
    check_side,
)
from distilldepth.machine import resolve_precision
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import target_size


def evaluate(
    model: str | Path | DepthModel,
    data: str | Path | Sequence[str | Path] | list[Dataset],
    *,
    root: str | Path | None = None,
    split: str | Path | None = None,
    protocol: str | Protocol | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    resize_policy: str | None = None,
    size: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: str = "auto",
    offline: bool = False,
    out: str | Path | None = None,
    resume: str = "",
    overwrite: bool = False,
    save_predictions: str | None = None,
    command: str = "",
    truth_scale: float | None = None,
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> Evaluation:
    """Score a model.

    Args:
        model: a model, what `load_model` takes, `baseline:constant` or `baseline:ramp`, or `StoredPredictions`.
        data: see `open_data`; or opened datasets.
        root: folder or tar file of the benchmarks, or folder that the paths in manifests are relative to.
        split: file that lists a benchmark's samples.
        protocol: a protocol or its name; None for the one that fits the model's quantity.
        overrides: rules of the protocol to replace, for example `{"align": "median"}`; its name then says so.
        limit: first so many frames of each dataset.
        resize_policy, size: how the network sees an image; None for the model's own.
        batch_size: images of equal size run at once.
        device, precision: see `distilldepth.device`.
        offline: never touch the network for the model.
        out: folder for the results in every format, with pictures of the worst and best cases and a line per sample
            as soon as it is scored; None writes nothing.
        resume: `auto` continues in `out` after the samples that are scored already; empty starts anew.
        overwrite: replace an evaluation that is in `out`.
        save_predictions: write every map below `out`: `npy`, `png16` or `kitti`; None writes none.
        command: written into the metadata.
        truth_scale: stored units per metre of ground truth in RGB-D sets whose files do not say it; see `open_data`.
        start: called with the number of frames when the work begins; the function it returns is told how many more are
            done.

    Returns:
        The evaluation. Frames that fail are listed there and raise nothing.

    Raises:
        ValueError, FileNotFoundError, DistillDepthError: wrong arguments, no such data or model, or a folder that holds
            something else.
    """
    folder = None if out is None else expand_user(out)
    _check_output(folder, resume, overwrite, save_predictions, model)
    opened = isinstance(data, list) and bool(data) and isinstance(data[0], Dataset)
    datasets = data if opened else open_data(data, root=root, split=split, limit=limit, truth_scale=truth_scale)
    if isinstance(model, DepthModel) and device == "auto":
        place = next(model.buffers()).device
    else:
        place = resolve_device(device)
    precision = resolve_precision(precision, place)
    scale_notes = check_any_readable(datasets)
    model = open_model(model, offline).to(place)
    if save_predictions == "kitti":
        check_metres(model.info.quantity)
    if isinstance(protocol, Protocol):
        if overrides:
            raise ValueError("evaluate: overrides are for a protocol given by name, got a Protocol; change it instead")
        protocol = protocol.for_quantity(model.info.quantity)
    else:
        protocol = choose_protocol(model.info.quantity, name=protocol, overrides=overrides)
    if (overrides or {}).get("field") and not any(dataset.fields for dataset in datasets):
        raise ValueError("evaluate: field chooses among several, and the data has one kind of ground truth only")
    rules = {dataset.name: protocol.rules(dataset.kind) for dataset in datasets}
    # What would fail for every sample is said before the first.
    side = size or model.preprocessing.size
    check_side(model, place, target_size(side, side, model.preprocessing, policy=resize_policy, size=size))
    if any(is_meaningless(one, model.info.quantity) for one in rules.values()):
        raise ValueError(f"evaluate: the protocol {protocol.name} does not fit the model: {MEANINGLESS}")
    other = {dataset.kind: rules[dataset.name].field for dataset in datasets if _wrong_field(dataset, rules)}
    if other and not opened:
        datasets = open_data(data, root=root, split=split, limit=limit, fields=other, truth_scale=truth_scale)
    for dataset in datasets:
        if _wrong_field(dataset, rules):
            wanted = rules[dataset.name].field
            raise DistillDepthError(
                f"{dataset.name}: the protocol {protocol.name} scores against the {wanted} ground truth, and the "
                f"dataset was opened with {dataset.field}; override field, or open it with field={wanted!r}"
            )
    found, missing = model.find(datasets) if isinstance(model, StoredPredictions) else ({}, {})
    if save_predictions is not None:
        check_distinct(datasets, save_predictions)
    run = _Run(model, protocol, rules, place, precision, resize_policy, size, batch_size)
    run.scale_notes = scale_notes
    run.tasks = [
        _Task(item, index, dataset, rules[dataset.name], found.get((dataset.name, index)))
        for dataset in datasets
        for index, item in enumerate(dataset.items)
    ]
    run.advance = start(len(run.tasks)) if start is not None else run.advance
    if folder is not None:
        settings = {"resize_policy": resize_policy, "size": size, "precision": precision}
        if truth_scale is not None:
            settings["truth_scale"] = truth_scale
        if isinstance(model, StoredPredictions) and model.depth_scale is not None:
            settings["depth_scale"] = model.depth_scale
        if save_predictions is not None:
            settings["save_predictions"] = save_predictions
        kinds = {dataset.name: rules[dataset.name].to_dict() for dataset in datasets}
        described = describe_run(model, {"label": protocol.to_dict(), "rules": kinds}, datasets, settings)
        run.folder = RunFolder(folder, described, resume=resume, overwrite=overwrite)
        run.save_as = save_predictions
        if save_predictions is not None:
            write_index(folder / "predictions", model.info, save_predictions)
    try:
        return _score(run, datasets, missing, resize_policy, size, command)
    finally:
        if run.folder is not None:
            run.folder.release()


def _score(
    run: _Run,
    datasets: list[Dataset],
    missing: dict[tuple[str, int], str],
    resize_policy: str | None,
    size: int | None,
    command: str,
) -> Evaluation:
    """Score what is left to be scored, and write the results."""
    model = run.model
    began = time.perf_counter()
    try:
        run.restore()
        for task in run.tasks:
            if (task.dataset.name, task.index) in missing and task not in run.rows:
                run.fail(task, DistillDepthError(missing[task.dataset.name, task.index]))
        run.score_all()
    finally:
        run.close()
    metadata = {
        "model": {**model.info.to_dict(), "notes": list(model.info.notes)},
        "device": str(run.place),
        "precision": run.precision,
        "resize_policy": resize_policy or model.preprocessing.resize_policy,
        "size": size or model.preprocessing.size,
        "torch": torch.__version__,
        "command": command,
        "seconds": round(time.perf_counter() - began, 3),
        "model_seconds": round(run.model_seconds, 3),
        "resumed_after": run.resumed_after,
    }
    evaluation = _summarise(run, datasets, metadata)
    if run.folder is not None:
        run.folder.write_results(evaluation)
    return evaluation


def _check_output(
    folder: Path | None, resume: str, overwrite: bool, save_predictions: str | None, model: str | Path | DepthModel
) -> None:
    """Fail before any work on options that cannot be followed."""
    if folder is None:
        for given, option in (
            (resume, "--resume"),
            (overwrite, "--overwrite"),
            (save_predictions, "--save-predictions"),
        ):
            if given:
                raise ValueError(f"evaluate: {option} needs --out, the folder that it is about")
        return
    check_folder(folder, resume, overwrite)
    if isinstance(model, StoredPredictions):
        if save_predictions is not None:
            raise ValueError(
                "evaluate: predictions that are on disk already are not saved again; drop --save-predictions"
            )
        if overwrite and folder.resolve() in [model.folder.resolve(), *model.folder.resolve().parents]:
            raise ValueError(
                f"evaluate: --overwrite would delete {model.folder}, which is to be scored; take another --out"
            )


def _wrong_field(dataset: Dataset, rules: Mapping[str, Rules]) -> bool:
    wanted = rules[dataset.name].field
    return bool(wanted and dataset.fields and dataset.field != wanted)


def _summarise(run: _Run, datasets: list[Dataset], metadata: dict[str, Any]) -> Evaluation:
    samples, failures, summaries = [], [], []
    for dataset in datasets:
        tasks = [task for task in run.tasks if task.dataset is dataset]
        rows = [run.rows[task] for task in tasks if task in run.rows]
        samples += rows
        failures += [
            {"dataset": dataset.name, "name": task.item.name, "error": run.errors[task]}
            for task in tasks
            if task in run.errors
        ]
        summary = summarise(dataset, rows, run.rules[dataset.name], run.model.info.quantity)
        for note in run.scale_notes.get(dataset.name, ()):
            summary["doubts"].append({"kind": TRUTH_SCALE, "frames": len(rows), "text": note})
        summaries.append(summary)
    constant = sum(bool(row.get("constant")) for row in samples)
    notes = list(run.model.info.notes)
    if constant:
        notes.append(f"{constant} of {len(samples)} predicted maps are constant: the model says nothing about them")
    mean = mean_metrics([headline(summary)[0] for summary in summaries if summary["frames"]])
    return Evaluation(metadata, run.protocol, summaries, mean, samples, failures, notes)
