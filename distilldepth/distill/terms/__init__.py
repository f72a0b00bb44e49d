"""One file per term of the objective; `table` has a row for each, without torch.

A term says what of a training step goes into a loss. The mathematics is in `distilldepth.losses` and `.ops`.
"""
