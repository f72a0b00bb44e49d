"""One file per family of networks: what it claims of what lies on disk, how that is loaded, how it is built anew."""

import importlib
from types import ModuleType

from distilldepth.errors import DistillDepthError, did_you_mean

FAMILIES = {
    "depth-anything": "distilldepth.models.families.depth_anything",
    "latent": "distilldepth.models.families.latent",
    "light": "distilldepth.models.families.light",
    "topformer": "distilldepth.models.families.topformer",
    "transformers": "distilldepth.models.families.transformers_depth",
}
"""Module of each family, imported when it is needed."""


def find_family(key: str) -> ModuleType:
    if key not in FAMILIES:
        raise DistillDepthError(f"load_model: unknown family '{key}'{did_you_mean(key, FAMILIES)}")
    return importlib.import_module(FAMILIES[key])
