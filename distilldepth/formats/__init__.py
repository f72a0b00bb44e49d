"""File formats of depth: one file each, how it is written and how it is read back, and the table of all of them.

Which photograph becomes which file is a matter of `predict`; pictures as input are read in `images`.
"""
