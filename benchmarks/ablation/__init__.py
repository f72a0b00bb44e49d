"""Ablations in miniature: a table of cells x seeds, trained, scored and judged by one command that can be interrupted.

    python -m benchmarks.ablation table1 --images PHOTOS --data MANIFESTS

A table is a file, `benchmarks/ablations/NAME.toml`; see `benchmarks/README.md`.

    table.py       the file, checked
    jobs.py        the runs that a table wants, each known by a digest of all that decides its numbers
    worker.py      one run in a process of its own: train, score
    pool.py        several of them side by side, stopped cleanly
    intervals.py   how sure a mean over seeds and frames is, and what it says of a claim
    result.py      the JSON file
    report.py      the Markdown derived from it
    picture.py     the picture derived from it
"""
