"""Losses between a student's and a teacher's maps: functions of tensors.

How they are weighed and what they are given in a training step is the business of `distilldepth.distill.terms`.
"""

from distilldepth.lazy import lazy_names
from distilldepth.losses.aligned_log import aligned_log_loss
from distilldepth.losses.anchor import anchor_loss
from distilldepth.losses.channel_mse import channel_mse_loss, mse_loss
from distilldepth.losses.feature import feature_loss
from distilldepth.losses.geometric import depths_to_compare, geometric_loss
from distilldepth.losses.gradient import gradient_loss
from distilldepth.losses.largest_errors import without_largest_errors
from distilldepth.losses.metric_log import metric_log_loss
from distilldepth.losses.normalise import center_and_spread, normalise
from distilldepth.losses.pairwise import pairwise_loss
from distilldepth.losses.pixel import l1_loss, ssi_loss
from distilldepth.losses.spatial_kl import spatial_kl_loss
from distilldepth.ops import channel_kl_loss, crop_ssi_loss, hybrid_norm_loss

_ELSEWHERE = {
    "DistillationObjective": "distilldepth.distill.objective",
    "Term": "distilldepth.distill.terms.base",
    "distill_any_depth_objective": "distilldepth.distill.objective",
}
"""Names that earlier versions had here: objectives know models and teachers now, and live with the training."""

__all__ = [
    "DistillationObjective",
    "Term",
    "aligned_log_loss",
    "anchor_loss",
    "center_and_spread",
    "channel_kl_loss",
    "channel_mse_loss",
    "crop_ssi_loss",
    "depths_to_compare",
    "distill_any_depth_objective",
    "feature_loss",
    "geometric_loss",
    "gradient_loss",
    "hybrid_norm_loss",
    "l1_loss",
    "metric_log_loss",
    "mse_loss",
    "normalise",
    "pairwise_loss",
    "spatial_kl_loss",
    "ssi_loss",
    "without_largest_errors",
]

__getattr__, _ = lazy_names(__name__, _ELSEWHERE)
