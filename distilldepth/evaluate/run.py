"""`evaluate`: a model's predictions aligned, scored per image and averaged per dataset."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distilldepth.datasets.catalogue import BENCHMARKS
from distilldepth.datasets.open import Data, check_any_readable, open_data
from distilldepth.datasets.truth import Dataset
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.evaluate.aggregate import mean_metrics, summarise
from distilldepth.evaluate.baselines import open_model
from distilldepth.evaluate.completing import Completing, PointCompletion, open_completion
from distilldepth.evaluate.doubts import TRUTH_SCALE
from distilldepth.evaluate.given import GivenPoints
from distilldepth.evaluate.options import EvaluateOptions
from distilldepth.evaluate.predictions import StoredPredictions
from distilldepth.evaluate.protocol import PROTOCOLS, Protocol, Rules, choose_protocol
from distilldepth.evaluate.record.folder import PREDICTIONS, RunFolder, check_folder, describe_run, precision_of_run
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.rows import Doubt, Failure, Metadata, ScoredModel
from distilldepth.evaluate.record.saved_maps import check_distinct, write_index
from distilldepth.evaluate.samples import Scoring, StoredMaps, Task
from distilldepth.evaluate.score import MEANINGLESS, is_meaningless
from distilldepth.evaluate.words import TASKS
from distilldepth.files import expand_user
from distilldepth.formats.kitti import check_metres
from distilldepth.inference.estimator import Estimator
from distilldepth.inference.stereo import StereoEstimator
from distilldepth.models.base import DepthModel
from distilldepth.words import LOG_VARIANCE


def evaluate(
    model: str | Path | DepthModel, data: Data, *, options: EvaluateOptions | None = None, **changes: Any
) -> Evaluation:
    """Score a model.

    Args:
        model: a model, what `load_model` takes, `baseline:constant` or `baseline:ramp`, or `StoredPredictions`; with
            `task="completion"` what `open_completion` takes.
        data: see `open_data`.
        options: how; None for the usual way.
        changes: options given by name, for example `evaluate("dav2-small", "scenes", protocol="marigold", out="eval")`;
            see `EvaluateOptions`.

    Returns:
        The evaluation. Frames that fail are listed there and raise nothing.

    Raises:
        ValueError, FileNotFoundError, DistillDepthError: wrong arguments, no such data or model, or a folder that holds
            something else.
        TypeError: no such option.
    """
    options = (options or EvaluateOptions()).changed(changes, "evaluate")
    given = _find_points(options)
    _check_output(options, model)
    # What costs nothing to find out is found out before a model is loaded, which may take minutes.
    datasets = _find_data(data, options)
    scale_notes = check_any_readable(datasets)
    estimator = _make_estimator(model, datasets, options)
    if given is not None and options.protocol is None:
        options = replace(options, protocol=TASKS[1])
    info = estimator.info
    protocol = _find_protocol(estimator, options)
    _check_fields(datasets, protocol, options)
    rules = _find_rules(datasets, protocol, info.quantity)
    if given is not None:
        _check_rules(protocol, rules)
    tasks, missing = _plan(estimator.model, datasets, rules, options.save_predictions)
    advance = options.start(len(tasks)) if options.start is not None else lambda count: None
    folder = _open_folder(estimator, protocol, rules, datasets, options, given)
    scoring = Scoring(estimator, tasks, folder=folder, save_as=options.save_predictions, advance=advance, given=given)
    try:
        began = time.perf_counter()
        _score(scoring, missing)
        metadata = _describe(scoring, options, time.perf_counter() - began)
        evaluation = _summarise(scoring, datasets, protocol, metadata, scale_notes)
        if folder is not None:
            folder.write_results(evaluation)
        return evaluation
    finally:
        if folder is not None:
            folder.release()


def _find_points(options: EvaluateOptions) -> GivenPoints | None:
    """What a completion is given; None where depth is scored."""
    if options.task not in TASKS:
        raise UsageError(f"evaluate: task must be known, got {options.task!r}{did_you_mean(str(options.task), TASKS)}")
    if options.task == TASKS[0]:
        if options.points is not None:
            raise UsageError("evaluate: points are about completion; add --task completion, or leave --points out")
        return None
    return GivenPoints.asked_for(options.points, options.score, options.seed)


def _check_rules(protocol: Protocol, rules: Mapping[str, Rules]) -> None:
    """Raise where a protocol would align what was made in metres, or cut the photograph out of its truth."""
    for one in rules.values():
        if one.align != "none":
            raise UsageError(
                f"evaluate: completed depth is scored as it is, and the protocol {protocol.name} would align it; leave "
                "--align and --protocol out"
            )
        if one.flip_average:
            raise UsageError("evaluate: completion has no part in mirror images; leave --flip-average out")
        if one.image_crop == "kb-in-frame":
            raise UsageError("evaluate: completion needs truth of the photograph's frame; take --image-crop kb")


def _check_output(options: EvaluateOptions, model: str | Path | DepthModel) -> None:
    """Fail before any work on options that cannot be followed."""
    folder = _folder(options)
    if folder is None:
        for given, option in (
            (options.resume, "--resume"),
            (options.overwrite, "--overwrite"),
            (options.save_predictions, "--save-predictions"),
        ):
            if given:
                raise ValueError(f"evaluate: {option} needs --out, the folder that it is about")
        return
    check_folder(folder, options.resume, options.overwrite)
    if isinstance(model, StoredPredictions):
        if options.save_predictions is not None:
            raise ValueError(
                "evaluate: predictions that are on disk already are not saved again; drop --save-predictions"
            )
        if options.overwrite and folder.resolve() in [model.folder.resolve(), *model.folder.resolve().parents]:
            raise ValueError(
                f"evaluate: --overwrite would delete {model.folder}, which is to be scored; take another --out"
            )


def _folder(options: EvaluateOptions) -> Path | None:
    return None if options.out is None else expand_user(options.out)


def _make_estimator(model: str | Path | DepthModel, datasets: list[Dataset], options: EvaluateOptions) -> Estimator:
    """The model on its device; what would fail for every sample is said before the first."""
    folder = _folder(options)
    if folder is not None and options.resume and options.precision == "auto":
        # What auto means is measured, and where the two are close it is not the same every time.
        options = replace(options, precision=precision_of_run(folder) or "auto")
    options = options.settle(model)
    completes = options.task == TASKS[1]
    opened = open_completion(model, options) if completes else open_model(model, options.offline)
    if opened.takes_points:
        raise UsageError(
            f"evaluate: {opened.info.name} completes depth that is known at some points; add --task completion "
            "--points 500"
        )
    if options.save_predictions == "kitti":
        two = opened.views == 2 and opened.in_pixels and _have_cameras(opened, datasets, options)
        check_metres("metric_depth" if two else opened.info.quantity)
    estimator: Estimator
    if isinstance(opened, PointCompletion):
        estimator = Completing(opened, options)
    elif isinstance(opened, StoredPredictions):
        estimator = StoredMaps(opened, options)
    elif opened.views == 2:
        estimator = StereoEstimator(opened, options, metric=_have_cameras(opened, datasets, options))
    else:
        estimator = Estimator(opened, options)
    estimator.check_size()
    return estimator


def _have_cameras(model: DepthModel, datasets: list[Dataset], options: EvaluateOptions) -> bool:
    """Whether metres are made of the disparity of pairs; what a model of two views lacks is said before any work.

    Under a protocol that fits scale and shift they are made only where every camera is known.
    """
    pairs = [[item.right for item in dataset.items if item.right] for dataset in datasets]
    for dataset, rights in zip(datasets, pairs, strict=True):
        if not rights:
            raise DistillDepthError(
                f"{dataset.name}: has no right views, and {model.info.name} sees two views; give a manifest with "
                "`right` (and `focal_px` and `baseline_m`), or a benchmark whose right views are there too"
            )
    if _fits_scale(options):
        return all(right.has_camera for rights in pairs for right in rights)
    known = [any(right.has_camera for right in rights) for rights in pairs]
    if model.in_pixels and any(known) and not all(known):
        without = datasets[known.index(False)].name
        raise DistillDepthError(
            f"{without}: has neither focal_px and baseline_m of its pairs nor intrinsics, by which {model.info.name} "
            "gives metres elsewhere; score it by itself"
        )
    return any(known)


def _fits_scale(options: EvaluateOptions) -> bool:
    """Whether a protocol was asked for that brings predictions to the truth itself."""
    protocol = options.protocol if isinstance(options.protocol, Protocol) else PROTOCOLS.get(options.protocol or "")
    asked = (options.overrides or {}).get("align")
    return (asked or (protocol.align if protocol else "none")) != "none"


def _find_protocol(estimator: Estimator, options: EvaluateOptions) -> Protocol:
    """The protocol as it is for the model's quantity."""
    quantity = estimator.info.quantity
    if not isinstance(options.protocol, Protocol):
        try:
            return choose_protocol(quantity, name=options.protocol, overrides=options.overrides)
        except ValueError as error:
            if estimator.model.in_pixels and quantity != "metric_depth" and "no unit" in str(error):
                hint = "with focal_px and baseline_m of the pairs in the manifest it predicts metres"
                raise UsageError(f"{error}; {hint}") from error
            raise
    if options.overrides:
        raise ValueError("evaluate: overrides are for a protocol given by name, got a Protocol; change it instead")
    return options.protocol.for_quantity(quantity)


def _find_data(data: Data, options: EvaluateOptions) -> list[Dataset]:
    """The datasets, opened with the ground truth that the protocol scores against."""
    protocol = options.protocol if isinstance(options.protocol, Protocol) else PROTOCOLS.get(options.protocol or "")
    asked = (options.overrides or {}).get("field")
    fields = {kind: asked or (protocol.rules(kind).field if protocol else "") for kind in BENCHMARKS}
    return open_data(
        data,
        root=options.root,
        split=options.split,
        limit=options.limit,
        fields={kind: field for kind, field in fields.items() if field},
        truth_scale=options.truth_scale,
    )


def _check_fields(datasets: list[Dataset], protocol: Protocol, options: EvaluateOptions) -> None:
    """Raise if a dataset has been opened with another ground truth than it is scored against."""
    if (options.overrides or {}).get("field") and not any(dataset.fields for dataset in datasets):
        raise ValueError("evaluate: field chooses among several, and the data has one kind of ground truth only")
    for dataset in datasets:
        wanted = protocol.rules(dataset.kind).field
        if wanted and dataset.fields and dataset.field != wanted:
            raise DistillDepthError(
                f"{dataset.name}: the protocol {protocol.name} scores against the {wanted} ground truth, and the "
                f"dataset was opened with {dataset.field}; override field, or open it with field={wanted!r}"
            )


def _find_rules(datasets: list[Dataset], protocol: Protocol, quantity: str) -> dict[str, Rules]:
    """The rules for each dataset, by its name."""
    rules = {dataset.name: protocol.rules(dataset.kind) for dataset in datasets}
    if any(is_meaningless(one, quantity) for one in rules.values()):
        raise ValueError(f"evaluate: the protocol {protocol.name} does not fit the model: {MEANINGLESS}")
    return rules


def _plan(
    model: DepthModel, datasets: list[Dataset], rules: Mapping[str, Rules], save_as: str | None
) -> tuple[list[Task], dict[tuple[str, int], str]]:
    """What is to be scored, and for samples without a stored prediction what was looked for."""
    found, missing = model.find(datasets) if isinstance(model, StoredPredictions) else ({}, {})
    if save_as is not None:
        check_distinct(datasets, save_as, uncertainty=LOG_VARIANCE in model.extra_maps)
    tasks = [
        Task(item, index, dataset, rules[dataset.name], found.get((dataset.name, index)))
        for dataset in datasets
        for index, item in enumerate(dataset.items)
    ]
    return tasks, missing


def _open_folder(
    estimator: Estimator,
    protocol: Protocol,
    rules: Mapping[str, Rules],
    datasets: list[Dataset],
    options: EvaluateOptions,
    given: GivenPoints | None,
) -> RunFolder | None:
    """The folder that is written into, begun or continued."""
    path, model = _folder(options), estimator.model
    if path is None:
        return None
    settings: dict[str, str | float | None] = {
        "resize_policy": options.resize_policy,
        "size": options.size,
        "precision": estimator.precision,
    }
    if options.truth_scale is not None:
        settings["truth_scale"] = options.truth_scale
    if isinstance(model, StoredPredictions) and model.depth_scale is not None:
        settings["depth_scale"] = model.depth_scale
    if options.save_predictions is not None:
        settings["save_predictions"] = options.save_predictions
    if given is not None:
        settings |= given.to_dict()
    described = describe_run(model, protocol, rules, datasets, settings, quantity=estimator.info.quantity)
    folder = RunFolder(path, described, resume=options.resume, overwrite=options.overwrite)
    if options.save_predictions is not None:
        says = LOG_VARIANCE if LOG_VARIANCE in model.extra_maps else None
        write_index(path / PREDICTIONS, estimator.info, options.save_predictions, uncertainty=says)
    return folder


def _score(scoring: Scoring, missing: Mapping[tuple[str, int], str]) -> None:
    """Score what is left to be scored."""
    try:
        scoring.restore()
        for task in scoring.tasks:
            if (task.dataset.name, task.index) in missing and task not in scoring.rows:
                scoring.fail(task, DistillDepthError(missing[task.dataset.name, task.index]))
        scoring.score_all()
    finally:
        if scoring.folder is not None:
            scoring.folder.close()


def _describe(scoring: Scoring, options: EvaluateOptions, seconds: float) -> Metadata:
    """How the result was made."""
    estimator = scoring.estimator
    model = estimator.model
    return Metadata(
        ScoredModel.of(estimator.info),
        device=str(estimator.device),
        precision=estimator.precision,
        resize_policy=options.resize_policy or model.preprocessing.resize_policy,
        size=options.size or (None if model.own_size else model.preprocessing.size),
        torch=torch.__version__,
        command=options.command,
        seconds=round(seconds, 3),
        model_seconds=round(estimator.model_seconds, 3),
        resumed_after=scoring.resumed_after,
        **(scoring.given.to_dict() if scoring.given is not None else {}),
    )


def _summarise(
    scoring: Scoring,
    datasets: list[Dataset],
    protocol: Protocol,
    metadata: Metadata,
    scale_notes: Mapping[str, list[str]],
) -> Evaluation:
    samples, failures, summaries = [], [], []
    info = scoring.estimator.info
    for dataset in datasets:
        tasks = [task for task in scoring.tasks if task.dataset is dataset]
        rows = [scoring.rows[task] for task in tasks if task in scoring.rows]
        samples += rows
        failures += [
            Failure(dataset.name, task.item.name, scoring.errors[task]) for task in tasks if task in scoring.errors
        ]
        summary = summarise(dataset, rows, protocol.rules(dataset.kind), info.quantity)
        summary.doubts += [Doubt(TRUTH_SCALE, len(rows), note) for note in scale_notes.get(dataset.name, ())]
        summaries.append(summary)
    constant = sum(row.constant for row in samples)
    notes = list(info.notes)
    if isinstance(scoring.estimator, StoredMaps) and any(row.rules and row.rules.flip_average for row in summaries):
        notes.append("stored maps are scored as they are: a mean with the mirror image is for whoever makes them")
    if constant:
        notes.append(f"{constant} of {len(samples)} predicted maps are constant: the model says nothing about them")
    says = LOG_VARIANCE in scoring.estimator.model.extra_maps
    if says and any("laplace_error" not in row.metrics for row in samples):
        notes.append(
            f"the model's own uncertainty is scored by its order alone, since its {info.quantity} is fitted to the "
            "truth and the scale of what it states is not known then; calibration is asked of metres without a fit"
        )
    mean = mean_metrics([summary.headline[0] for summary in summaries if summary.frames])
    return Evaluation(metadata, protocol, summaries, mean, samples, failures, notes)
