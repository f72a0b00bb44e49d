"""Images to learn from: folders, shards, procedural scenes, RGB-D folders, and crops."""
