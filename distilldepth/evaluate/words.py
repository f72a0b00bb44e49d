"""Words of an evaluation that the command line offers too; those of the rules are in `protocol`. Imports nothing."""

MAP_FORMATS = {"npy": ".npy", "png16": ".png", "kitti": ".png"}
"""How a map is saved, with the suffix: float32 as predicted; 16-bit PNG whose text says scale and quantity; 16-bit PNG
of metres x 256 with 0 for unknown, as the KITTI benchmark has it."""

RESUME = ("auto",)
"""How an evaluation goes on in its folder: after the samples that are scored already."""

ANALYSES = ("local-global",)
"""What `evaluate` can measure instead of scores."""
