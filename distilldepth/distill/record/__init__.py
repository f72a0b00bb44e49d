"""What lies in a run folder: checkpoints, log, facts, model card and page.

Nothing here trains or measures; what is written was found out elsewhere in `distilldepth.distill`.
"""
