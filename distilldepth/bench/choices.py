"""What can be measured, by name. Imports no torch, so that `distilldepth bench --help` answers at once."""

from __future__ import annotations

from distilldepth import words

KERNELS = tuple(words.KERNELS)
WITH_CONTEXTS = ("hybrid-norm", "crop-ssi")
DIRECTIONS = ("forward", "forward+backward")
DEFAULT_SHAPE = (2, 192, 256)
SCALING_SHAPE = (4, 1120, 1120)

USUAL = {
    "hybrid_norm": "mask-list",
    "crop_ssi": "grid-sample",
    "channel_kl": "kl-div",
    "backproject": "meshgrid",
}
"""Operation: what its usual formulation is called in a table."""

BACKENDS = (*words.BACKENDS, "compile", *USUAL.values())
"""All that a row can be of: the operations' own backends, `torch.compile` of the reference, the usual formulations."""
