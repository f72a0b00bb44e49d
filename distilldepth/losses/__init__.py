"""Losses between a student's and a teacher's maps, and the objectives that weigh them."""

from distilldepth.losses.aligned_log import aligned_log_loss
from distilldepth.losses.anchor import anchor_loss
from distilldepth.losses.feature import feature_loss
from distilldepth.losses.gradient import gradient_loss
from distilldepth.losses.normalise import center_and_spread, normalise
from distilldepth.losses.objective import DistillationObjective, ObjectiveInputs, Term, distill_any_depth_objective
from distilldepth.losses.pixel import l1_loss, ssi_loss
from distilldepth.ops import channel_kl_loss, crop_ssi_loss, hybrid_norm_loss

__all__ = [
    "DistillationObjective",
    "ObjectiveInputs",
    "Term",
    "aligned_log_loss",
    "anchor_loss",
    "center_and_spread",
    "channel_kl_loss",
    "crop_ssi_loss",
    "distill_any_depth_objective",
    "feature_loss",
    "gradient_loss",
    "hybrid_norm_loss",
    "l1_loss",
    "normalise",
    "ssi_loss",
]
