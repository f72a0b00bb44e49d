"""What `--data` reads: images with measured or rendered depth, as benchmarks of the field, manifests and RGB-D folders.

The benchmarks are read in the forms in which users have them on disk:

| name | samples | split list |
|---|---|---|
| `nyuv2` | 654 | needed, or inside the container |
| `kitti-eigen` | 652 | needed |
| `kitti-official` | 1000 | optional |
| `eth3d` | 454 | needed |
| `scannet` | 800 | needed |
| `diode`, `diode:indoor`, `diode:outdoor` | 771, 325, 446 | optional |
| `driving-stereo`, `:train`, `:sunny`, `:cloudy`, `:foggy`, `:rainy` | 7751, 174 437, not fixed | optional |
| `moge-bundle:NYUv2`, `:KITTI`, ... | not fixed | needed |

Lists are read from the user's file or found in the data, never made up. A file that is missing stays a sample whose
`read` raises: the result is then incomplete, and not smaller.
"""

from __future__ import annotations

from distilldepth.lazy import lazy_names

_NAMES = {
    "BENCHMARKS": "distilldepth.datasets.catalogue",
    "Benchmark": "distilldepth.datasets.samples",
    "Dataset": "distilldepth.datasets.truth",
    "Item": "distilldepth.datasets.truth",
    "Truth": "distilldepth.datasets.truth",
    "check": "distilldepth.datasets.check",
    "open_benchmark": "distilldepth.datasets.catalogue",
    "open_data": "distilldepth.datasets.open",
    "submission_items": "distilldepth.datasets.kitti_official",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
