"""Scores of a depth map against the truth, each under the name and in the unit that one convention gives it.

Functions of tensors. Which pixels count, what is fitted before and how images become one number is in `evaluate`.
"""

from distilldepth.metrics.boundary import boundary_f1, boundary_f1_masked
from distilldepth.metrics.completion import COMPLETION_NAMES, completion_metrics
from distilldepth.metrics.depth import HIGHER_IS_BETTER, LEAST_DEPTH, NAMES, depth_metrics
from distilldepth.metrics.ordinal import ordinal_accuracy, whdr
from distilldepth.metrics.uncertainty import (
    LAPLACE_NAMES,
    UNCERTAINTY_NAMES,
    calibration_error,
    laplace_calibration,
    sparsification_areas,
    sparsification_curves,
    uncertainty_metrics,
)

__all__ = [
    "COMPLETION_NAMES",
    "HIGHER_IS_BETTER",
    "LAPLACE_NAMES",
    "LEAST_DEPTH",
    "NAMES",
    "UNCERTAINTY_NAMES",
    "boundary_f1",
    "boundary_f1_masked",
    "calibration_error",
    "completion_metrics",
    "depth_metrics",
    "laplace_calibration",
    "ordinal_accuracy",
    "sparsification_areas",
    "sparsification_curves",
    "uncertainty_metrics",
    "whdr",
]
