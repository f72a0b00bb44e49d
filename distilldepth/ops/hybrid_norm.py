"""Hybrid normalisation loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilldepth import reference
from distilldepth.ops.arguments import check_normaliser, check_pair
from distilldepth.ops.backend import active_backend, kernel, prepare
from distilldepth.words import CONTEXTS


def hybrid_norm_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    *,
    segments: Sequence[int] = (1, 2, 4),
    contexts: str = "range",
    spread_eps: float = 1e-6,
) -> Tensor:
    """Mean absolute difference of two maps after both are normalised inside contexts of the target.

    `mean over valid pixels of mean over contexts u that hold the pixel of |N_u(prediction) - N_u(target)|`, with
    `N_u(x) = (x - center_u) / spread_u`; center is the lower median and spread the mean absolute deviation from it plus
    `spread_eps`, of each map over the valid pixels of the context.

    For each S in `segments` the valid pixels of an image are split by its target into
    - `range`: S stretches of equal width between the smallest and the largest target;
    - `quantile`: S stretches between the k/S quantiles of the target, equal targets together;
    - `spatial`: an S x S grid over the image.
    Stretches are half open, the last is closed. `segments=(1,)` is global (scale-and-shift invariant) normalisation,
    `(4,)` local, `(1, 2, 4)` hybrid.

    Args:
        prediction: `(B, H, W)`, the student's map, float16, bfloat16, float32 or float64.
        target: `(B, H, W)`, the teacher's map, a floating dtype; must not require grad.
        valid: bool `(B, H, W)`, True = use the pixel; None = all.
        segments: how many contexts each level has.
        contexts: `range`, `quantile` or `spatial`.
        spread_eps: positive, added to every spread, in the unit of the maps.

    Returns:
        Scalar float32; float64 if an input is float64. 0 with zero gradient if there is no valid pixel; NaN if a valid
        pixel is not finite. What is not valid may be anything.

    Raises:
        TypeError: a map is not a floating tensor, valid is not bool, or segments are not ints.
        ValueError: shapes or devices differ, the target requires grad, or an option is out of its range.
        DistillDepthError: DISTILLDEPTH_BACKEND forces a backend that is not there.

    Gradient: to `prediction`, in its dtype; exact, through center and spread. A center's share goes to the lowest-index
    pixel of the context whose prediction equals it.

    Source: Distill Any Depth, section 3.1; Zhang et al., Hierarchical Normalization for Robust Monocular Depth
    Estimation (2022).

    >>> import torch
    >>> target = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> float(hybrid_norm_loss(2 * target + 5, target)) < 1e-5
    True
    """
    check_pair("hybrid_norm_loss", prediction, target, valid)
    segments = check_normaliser("hybrid_norm_loss", segments, contexts, spread_eps)
    backend = active_backend("hybrid_norm", prediction)
    if backend == "reference":
        return reference.hybrid_norm_loss(
            prediction, target, valid, segments=segments, contexts=contexts, spread_eps=spread_eps
        )
    prediction, target, valid = prepare(prediction, target, valid)
    need_gradient = torch.is_grad_enabled() and prediction.requires_grad
    run = kernel("hybrid_norm", backend)
    return run(prediction, target, valid, segments, CONTEXTS.index(contexts), spread_eps, need_gradient)[0]
