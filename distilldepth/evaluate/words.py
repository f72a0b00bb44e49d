"""Words of an evaluation that the command line offers too; those of the rules are in `protocol`. Imports nothing."""

RESUME = ("auto",)
"""How an evaluation goes on in its folder: after the samples that are scored already."""

ANALYSES = ("local-global",)
"""What `evaluate` can measure instead of scores."""
