"""Words that a user types and more than one room knows: every such list stands here, and nowhere else.

What one room alone has (formats, protocols, terms of the objective) stands in that room. Imports nothing.
"""

KERNELS = {
    "hybrid-norm": "hybrid depth normalisation loss",
    "crop-ssi": "local-global loss on crops of the student's map",
    "channel-kl": "channel-wise distillation",
    "backproject": "depth to points",
}
"""The fused operations by the name that the command line gives them, and what each is."""

OPS = tuple(name.replace("-", "_") for name in KERNELS)
"""The same by the name that Python and torch give them."""

BACKENDS = ("native", "triton", "reference")
"""What can run an operation, the preferred one first."""

CONTEXTS = ("range", "quantile", "spatial")
"""How the pixels of a map are split before they are normalised; kernels are told by position."""

FLOATS = ("float32", "bfloat16", "float16")
"""Types that maps and models can be asked for."""

PRECISIONS = ("auto", *FLOATS)

DEVICES = "auto, cpu, cuda, cuda:<index> or mps"
"""As help and errors say it."""

FEATURE_LEVELS = ("1/4", "1/8", "1/16", "1/32")
"""Levels of an encoder by their size over that of the image; besides them there is `encoder`, the last. Of a
transformer they are the stages that its head brings to about these sizes, themselves all on the grid of its patches."""

DECODER_LEVELS = tuple(f"decoder-{level}" for level in FEATURE_LEVELS)
"""The same of a decoder that has one map at each of these sizes."""

ADAPTERS = ("none", "full", "reduced", "window")
"""Between which positions a student's features are mixed before they are compared with a teacher's."""

QUANTITIES = ("disparity", "depth", "metric_depth")
"""What the numbers of a map mean."""

LOG_VARIANCE = "log_variance"
"""What a model says of its own uncertainty: s = log sigma^2 of the numbers of its map, larger = less certain. It is so
called in `DepthOutput.extras` and in the texts of files."""
FLIPS = ("mean", "blended")
"""What a prediction is where that of the mirror image has a part in it: the mean of both, everywhere; or as NeWCRFs'
evaluation blends them, which takes the mirror image's alone in the leftmost twentieth of the columns, the image's alone
in the rightmost, and passes to the mean over another twentieth."""

ALIGNMENTS = ("least-squares", "trimmed", "ransac", "local")
"""How a map is brought to points of known depth; see `align_to_points`."""

COMPLETION_MODEL = "completion-mini"
"""The completion network that is taken where none is named."""

RESIZE_POLICIES = ("lower-bound", "upper-bound", "hf", "square")
"""How the side that a model is asked for is applied. `lower-bound`: both sides at least `size`, aspect kept (official
Depth Anything). `upper-bound`: both sides at most `size`, aspect kept (GenPercept). `hf`: the rule of transformers' DPT
processor, the scale closest to one (`minimal` in Depth Anything). `square`: exactly `size` x `size`. Sides are rounded
to multiples, within the bound."""

MAX_SIDE = 16384
"""Largest side that can be asked for, in pixels."""
