"""`evaluate`: a model's predictions aligned, scored per image and averaged per dataset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilldepth.alignment import align as align_prediction
from distilldepth.depth import to_disparity
from distilldepth.device import autocast, resolve_device
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.baselines import load_baseline
from distilldepth.evaluate.data import Dataset, Item, Truth, open_data
from distilldepth.evaluate.protocol import Protocol, choose_protocol
from distilldepth.inference import FAILURES, estimate_batch, load_batches, reason
from distilldepth.metrics import depth_metrics
from distilldepth.models.base import DepthModel
from distilldepth.models.preprocess import resize


@dataclass
class Evaluation:
    """What an evaluation measured."""

    metadata: dict[str, Any]
    protocol: Protocol
    datasets: list[dict[str, Any]]
    """Per dataset: `name`, `frames`, `failed`, `metrics` (means over its frames)."""
    mean: dict[str, float | None]
    """Unweighted mean over the datasets."""
    samples: list[dict[str, Any]]
    """Per frame: `dataset`, `name`, `metrics`."""
    failures: list[dict[str, str]]
    """Frames that could not be scored: `dataset`, `name`, `error`."""
    notes: list[str]
    """What a reader of the numbers must know."""

    @property
    def complete(self) -> bool:
        """Whether every frame was scored."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON; None stands for numbers that are not finite."""
        return {
            "metadata": self.metadata,
            "protocol": self.protocol.to_dict(),
            "complete": self.complete,
            "notes": self.notes,
            "datasets": self.datasets,
            "mean": self.mean,
            "samples": self.samples,
            "failures": self.failures,
        }


def evaluate(
    model: str | Path | DepthModel,
    data: str | Path | Sequence[str | Path] | list[Dataset],
    *,
    root: str | Path | None = None,
    protocol: str | Protocol | None = None,
    align: str | None = None,
    space: str | None = None,
    limit: int | None = None,
    resize_policy: str | None = None,
    size: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: str = "auto",
    offline: bool = False,
    command: str = "",
    start: Callable[[int], Callable[[int], None]] | None = None,
) -> Evaluation:
    """Score a model.

    Args:
        model: a model, what `load_model` takes, `baseline:constant` or `baseline:ramp`.
        data: see `open_data`; or opened datasets.
        root: folder that the paths in manifests are relative to.
        protocol: a protocol or its name; None for the one that fits the model's quantity.
        align, space: replace the protocol's; its name then says so.
        limit: first so many frames of each dataset.
        resize_policy, size: how the network sees an image; None for the model's own.
        batch_size: images of equal size run at once.
        device, precision: see `distilldepth.device`.
        offline: never touch the network for the model.
        command: written into the metadata.
        start: called with the number of frames when the work begins; the function it returns is told how many more are
            done.

    Returns:
        The evaluation. Frames that fail are listed there and raise nothing.

    Raises:
        ValueError, FileNotFoundError, DistillDepthError: wrong arguments, no such data or model.
    """
    opened = isinstance(data, list) and bool(data) and isinstance(data[0], Dataset)
    datasets = data if opened else open_data(data, root=root, limit=limit)
    if isinstance(model, DepthModel) and device == "auto":
        place = next(model.buffers()).device
    else:
        place = resolve_device(device)
    autocast(place, precision)
    model = _load(model, offline).to(place)
    if not isinstance(protocol, Protocol):
        protocol = choose_protocol(model.info.quantity, name=protocol, align=align, space=space)
    items = [item for dataset in datasets for item in dataset.items]
    advance = start(len(items)) if start is not None else lambda count: None
    scores: dict[Item, dict[str, float]] = {}
    errors: dict[Item, str] = {}

    def fail(item: Item, error: BaseException) -> None:
        errors[item] = reason(error)
        advance(1)

    began = time.perf_counter()
    was_training = model.training
    model.eval()
    workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="distilldepth-io")
    try:
        batches = load_batches(
            items,
            lambda item: item.read(),
            model,
            workers,
            fail,
            policy=resize_policy,
            size=size,
            batch_size=batch_size,
        )
        for batch in batches:
            results = estimate_batch(model, batch, place, precision=precision, size=size)
            for loaded, values in zip(batch, results, strict=True):
                try:
                    if isinstance(values, Exception):
                        raise values
                    scores[loaded.item] = score(values, model.info.quantity, loaded.extra, protocol)
                except FAILURES as error:
                    fail(loaded.item, error)
                else:
                    advance(1)
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        model.train(was_training)
    rows = [_summarise(dataset, scores, errors) for dataset in datasets]
    metadata = {
        "model": model.info.to_dict(),
        "device": str(place),
        "precision": precision,
        "resize_policy": resize_policy or model.preprocessing.resize_policy,
        "size": size or model.preprocessing.size,
        "torch": torch.__version__,
        "command": command,
        "seconds": round(time.perf_counter() - began, 3),
    }
    return Evaluation(
        metadata=metadata,
        protocol=protocol,
        datasets=rows,
        mean=_mean([row["metrics"] for row in rows if row["frames"]]),
        samples=[
            {"dataset": item.dataset, "name": item.name, "metrics": _finite(scores[item])}
            for item in items
            if item in scores
        ],
        failures=[
            {"dataset": item.dataset, "name": item.name, "error": errors[item]} for item in items if item in errors
        ],
        notes=list(model.info.notes),
    )


def score(values: Tensor, quantity: str, truth: Truth, protocol: Protocol) -> dict[str, float]:
    """Return the metrics of one image.

    Args:
        values: `(H, W)` prediction in `quantity`.
        quantity: `disparity`, `depth` or `metric_depth`.
        truth: depth and valid pixels, of any size; the prediction is brought there bilinearly.
        protocol: how to align.

    Raises:
        DistillDepthError: nothing to score, a prediction that is not finite, or metres asked of truth without a unit.
    """
    depth = torch.from_numpy(truth.depth).to(values.device)
    valid = torch.from_numpy(truth.valid).to(values.device)
    valid = valid & (depth > protocol.min_depth) & (depth < protocol.max_depth)
    if not valid.any():
        raise DistillDepthError("no valid pixel in the ground truth")
    if protocol.align == "none" and not truth.is_metric:
        raise DistillDepthError("the ground truth has no unit (no focal_px and baseline_m), so it needs alignment")
    prediction = resize(values[None, None].float(), tuple(depth.shape), protocol.resize)[0, 0]
    if not prediction[valid].isfinite().all():
        raise DistillDepthError("the prediction is not finite on every valid pixel")
    if protocol.space == "disparity":
        prediction = to_disparity(prediction, quantity)
    elif quantity == "disparity":
        if protocol.align == "median":
            raise DistillDepthError("a ratio of medians in depth means nothing for disparity; use --space disparity")
        # Only the sign: larger = farther. The fit finds scale and shift.
        prediction = -prediction
    # Only what counts: a LiDAR sweep leaves one pixel in a hundred.
    prediction, depth = prediction[valid][None], depth[valid][None]
    aligned = align_prediction(prediction, depth, space=protocol.space, method=protocol.align)
    return depth_metrics(aligned.depth, depth)


def _load(model: str | Path | DepthModel, offline: bool) -> DepthModel:
    if isinstance(model, DepthModel):
        return model
    kind, colon, name = str(model).partition(":")
    if colon and kind == "baseline":
        return load_baseline(name)
    from distilldepth.models import load_model

    return load_model(model, offline=offline)


def _summarise(dataset: Dataset, scores: dict[Item, dict[str, float]], errors: dict[Item, str]) -> dict[str, Any]:
    rows = [scores[item] for item in dataset.items if item in scores]
    failed = sum(item in errors for item in dataset.items)
    return {"name": dataset.name, "frames": len(rows), "failed": failed, "metrics": _mean(rows)}


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of each metric; one value that is not finite makes the mean None rather than a number over fewer frames."""
    names = rows[0].keys() if rows else ()
    means: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in rows]
        finite = all(value is not None and math.isfinite(value) for value in values)
        means[name] = math.fsum(values) / len(values) if finite else None
    return means


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
