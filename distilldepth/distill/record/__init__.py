"""What lies in a run folder: checkpoints, log, facts, model card and page."""
