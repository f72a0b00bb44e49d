"""File formats of depth: one file each, how it is written and how it is read back."""
