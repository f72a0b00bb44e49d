"""Times every backend of an operation side by side, with its error against float64; `distilldepth bench` prints it.

One row per operation, backend and direction. On a CPU that others use too, only ratios within one run mean something.
Whole jobs (a training step, an evaluation) are timed by the scripts of `benchmarks/`.
"""

from distilldepth.lazy import lazy_names

_NAMES = {
    "BACKENDS": "distilldepth.bench.choices",
    "CONTEXTS": "distilldepth.words",
    "Case": "distilldepth.bench.workloads",
    "DEFAULT_SHAPE": "distilldepth.bench.choices",
    "DIRECTIONS": "distilldepth.bench.choices",
    "DTYPES": "distilldepth.bench.workloads",
    "FORMULAS": "distilldepth.bench.workloads",
    "KERNELS": "distilldepth.bench.choices",
    "Request": "distilldepth.bench.run",
    "SCALING_SHAPE": "distilldepth.bench.choices",
    "USUAL": "distilldepth.bench.choices",
    "compared_with": "distilldepth.bench.derive",
    "linear_cost": "distilldepth.bench.derive",
    "make_case": "distilldepth.bench.workloads",
    "mask_list_loss": "distilldepth.bench.usual",
    "per_doubling": "distilldepth.bench.derive",
    "run_benchmark": "distilldepth.bench.run",
    "run_scaling": "distilldepth.bench.run",
    "speedups": "distilldepth.bench.derive",
    "uncertainty": "distilldepth.bench.derive",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
