"""The operations in Triton, for GPUs on which the native library is not there.

One module per operation, each with a function of the operation's name that takes the arguments of its schema
(`distilldepth.ops.library`) and trusts them; `maps`, `selection` and `normalise` are parts that two of them share. They
are the only modules that import triton. This file does not, so that the package can be imported without it; whether it
is there, the choice of backend asks `importlib.util.find_spec`.
"""

import os


def interpreted() -> bool:
    """Whether Triton runs in its interpreter. The environment says it: `triton.knobs` came with Triton 3.4."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
