"""`complete`: one photograph in memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distilldepth.inference.completer import NETWORK, Completer
from distilldepth.inference.estimator import InferenceOptions
from distilldepth.models.base import DepthModel, Prediction
from distilldepth.models.inputs import ImageInput, as_images, is_batch
from distilldepth.models.preprocess import choose_policy
from distilldepth.sparse.files import check_points, read_sparse


def complete(
    image: ImageInput,
    sparse: str | os.PathLike | np.ndarray | Tensor,
    *,
    model: str | os.PathLike | DepthModel = NETWORK,
    align: str | None = None,
    align_only: bool = False,
    sparse_scale: float | None = None,
    **options: Any,
) -> Prediction:
    """Complete the depth of a photograph that is known at some of its pixels.

    Args:
        image: one image, as `DepthModel.predict` takes it.
        sparse: `(H, W)` metres, 0 or NaN where nothing is known, an array or a tensor; or a file, see `read_sparse`.
        model: a completion network, or the model that looks at the photograph before `completion-mini`; a model, or
            what `load_model` takes.
        align: method of `align_to_points`; None for the network's, `local` without one.
        align_only: whether the completion network is left out, and the aligned map is the answer.
        sparse_scale: stored units per metre of a file of points, or of an array.
        options: `size`, `resize_policy`, `device` and `precision`, see `InferenceOptions`.

    Returns:
        A `Prediction` at the image's own resolution, `metric_depth`.

    Raises:
        TypeError: not one of these kinds of image or points; no such option.
        ValueError: a batch, an image of another shape; a file of points that does not say its unit.
        FileNotFoundError: no such file.
        DistillDepthError: points of another size or that cannot be right, see `check_points`; an unreadable file; a
            model that cannot be loaded.

    >>> picture, points = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.float32)
    >>> points[8, 9], points[30, 40] = 2.0, 3.5
    >>> prediction = complete(picture, points, model="distilldepth-mini", align_only=True)
    >>> prediction.values.shape, prediction.quantity
    ((48, 64), 'metric_depth')
    """
    if is_batch(image) or isinstance(image, (list, tuple)):
        raise ValueError("complete: takes one image; call it once for each, or use complete_files")
    (picture,) = as_images(image)
    height, width = picture.shape[-2:]
    settings = InferenceOptions().changed(options, "complete")
    if isinstance(sparse, (str, os.PathLike)):
        points = read_sparse(sparse, (height, width), scale=sparse_scale)
    else:
        points = _from_memory(sparse, (height, width), sparse_scale)
    # A model that is handed over is left in the mode, and on the device, that it was in.
    with Completer(model, settings, align=align, align_only=align_only) as completer:
        policy = choose_policy(height, width, completer.model.preprocessing, settings.resize_policy, settings.size)
        pixels = picture.to(completer.device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        known = torch.from_numpy(points).to(completer.device)
        completed = completer.complete_batch(pixels[None], known[None], policy=policy)
        used = policy or completer.model.preprocessing.resize_policy
        return Prediction(completed.depth[0].cpu().numpy(), "metric_depth", completer.info.name, used)


def _from_memory(sparse: object, size: tuple[int, int], scale: float | None) -> np.ndarray:
    values = sparse.detach().cpu().numpy() if isinstance(sparse, Tensor) else sparse
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        kind = getattr(sparse, "dtype", type(sparse).__name__)
        raise TypeError(f"complete: sparse must be an array or a tensor of real numbers, or a path, got {kind}")
    if values.shape != size:
        raise ValueError(f"complete: sparse must be of the image's size {size}, got {values.shape}")
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"complete: sparse_scale must be positive (stored units per metre), got {scale:g}")
    return check_points(values / (scale or 1.0), "complete: sparse", scale=scale or 1.0)
