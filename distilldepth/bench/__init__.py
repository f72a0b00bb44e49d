"""Times every backend of an operation side by side, with its error against float64; `distilldepth bench` prints it.

One row per operation, backend and direction. On a CPU that others use too, only ratios within one run mean something.
"""

from distilldepth.bench.derive import compared_with, linear_cost, per_doubling, speedups, uncertainty
from distilldepth.bench.run import BACKENDS, SCALING_SHAPE, run_benchmark, run_scaling
from distilldepth.bench.usual import USUAL, mask_list_loss
from distilldepth.bench.workloads import CONTEXTS, DEFAULT_SHAPE, DIRECTIONS, DTYPES, FORMULAS, KERNELS, Case, make_case
from distilldepth.machine import command_line, machine, processor_name

__all__ = [
    "BACKENDS",
    "CONTEXTS",
    "DEFAULT_SHAPE",
    "DIRECTIONS",
    "DTYPES",
    "FORMULAS",
    "KERNELS",
    "SCALING_SHAPE",
    "USUAL",
    "Case",
    "command_line",
    "compared_with",
    "linear_cost",
    "machine",
    "make_case",
    "mask_list_loss",
    "per_doubling",
    "processor_name",
    "run_benchmark",
    "run_scaling",
    "speedups",
    "uncertainty",
]
