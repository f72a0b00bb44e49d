"""Words of an evaluation that the command line offers too; those of the rules are in `protocol`. Imports nothing."""

RESUME = ("auto",)
"""How an evaluation goes on in its folder: after the samples that are scored already."""

ANALYSES = ("local-global",)
"""What `evaluate` can measure instead of scores."""

TASKS = ("depth", "completion")
"""What is scored: depth from the photograph alone, or completed from points of the truth."""

SCORED = ("unseen", "all")
"""Which pixels a completion is scored on: those that were not given as points, or those too."""
