"""The command line: `python -m benchmarks.ablation --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ablation.jobs import LABELS, Places, changes, plan
from benchmarks.ablation.pool import in_words, run_jobs
from benchmarks.ablation.report import make_markdown
from benchmarks.ablation.result import collect, read_result, recall, write_result
from benchmarks.ablation.table import Table, find_table, read_table, table_names
from distilldepth.cli.main import EXPECTED_ERRORS, error_message
from distilldepth.errors import DistillDepthError, UsageError, one_line
from distilldepth.files import check_writable, expand_user, write_atomically
from distilldepth.folders import claim_folder
from distilldepth.signals import Interrupted, raise_on_signals

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation"
_EPILOG = """Stopped or killed, the same command goes on where it was. Runs lie in OUT/runs, each under a digest of its
settings: one whose settings change is trained anew, and the earlier one stays. A run whose scores stand in a file of
--results is not run again. What teachers say is shared by the runs that show them the same images, some gigabytes in
OUT/labels until all is done. Exit code 0 done, 1 a run failed,
2 wrong usage, 128 + signal stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    raise_on_signals()
    try:
        return _main(_parser().parse_args(arguments))
    except Interrupted as error:
        tell(f"ended by {error}; the same command goes on from here")
        return error.exit_code
    except UsageError as error:
        tell(f"error: {one_line(error)}")
        return 2
    except EXPECTED_ERRORS as error:
        tell(f"error: {one_line(error_message(error))}")
        return 1


def tell(text: str) -> None:
    """Print a line of progress."""
    print(f"ablation: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description="Train and score the cells of tables, and say which of a paper's claims hold here.",
        epilog=_EPILOG,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="a name of --list, or a .toml file")
    parser.add_argument("--list", action="store_true", help="show the tables with what they take, and stop")
    parser.add_argument(
        "--table",
        dest="result",
        type=Path,
        metavar="JSON",
        help="derive Markdown and picture from a result, and stop; with the name of a table the same as TABLE",
    )
    parser.add_argument("--images", metavar="DIR", help="photographs without depth, to train on besides scenes")
    parser.add_argument("--data", metavar="DIR", help="manifests of photographs with depth, to score on besides scenes")
    parser.add_argument("--out", default="runs/ablation", metavar="DIR", help="where the runs lie (%(default)s)")
    parser.add_argument("--seeds", type=_count, metavar="N", help="in place of the table's number of seeds")
    parser.add_argument("--steps", type=_count, metavar="N", help="in place of every cell's steps")
    parser.add_argument("--jobs", type=_count, metavar="N", help="runs side by side, one thread each (default: cores)")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="where NAME.json, NAME.md and NAME.png go (benchmarks/results/ablation; with --seeds or --steps, which "
        "make it another table, OUT/results)",
    )
    return parser


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def _main(options: argparse.Namespace) -> int:
    if options.list:
        _list(cores())
        return 0
    if options.result is not None and str(options.result) in table_names():
        options.tables, options.result = [*options.tables, str(options.result)], None
    if options.result is not None:
        print(derive(options.result), end="")
        return 0
    if not options.tables:
        raise UsageError("no table was given; name one of --list, or a .toml file")
    places = Places(
        *(None if path is None else expand_user(path) for path in (options.out, options.images, options.data))
    )
    tables = [read_table(find_table(name), seeds=options.seeds, steps=options.steps) for name in options.tables]
    names = [table.name for table in tables]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two tables are called {repeated}; run them one after the other, with another --results")
    for table in tables:
        plan(table, places)  # What is wrong with the last is said before the first has run for hours.
    own = options.seeds is not None or options.steps is not None
    results = expand_user(options.results) if options.results else places.out / "results" if own else RESULTS
    check_writable(results)
    command = _command(options)
    failed = []
    with claim_folder(places.out, "ablation"):
        for table in tables:
            failed += _run(table, places, results, options.jobs or cores(), command)
        if not failed:
            _clear_labels(places.out)
    for line in failed:
        tell(f"FAILED: {line}")
    return 1 if failed else 0


def _clear_labels(out: Path) -> None:
    if (out / LABELS).is_dir():
        from benchmarks.ablation.labels import SharedLabels

        SharedLabels(out / LABELS).clear()


def _run(table: Table, places: Places, results: Path, width: int, command: str) -> list[str]:
    """Run a table and write what it comes to; return what went wrong, a line for each run."""
    jobs = plan(table, places)
    trained = sum(job.seed is not None for job in jobs)
    tell(f"{table.name}: {trained} runs in {places.out}, {width} side by side")
    for line in changes(table, jobs, places.out):
        tell(f"{table.name}: {line}; that is another run, and what was trained before stays in {places.out / 'runs'}")
    if taken := recall(jobs, results):
        tell(f"{table.name}: {taken} runs are known from {results}")
    failed = run_jobs(jobs, width, table.seconds, lambda text: tell(f"{table.name}: {text}"))
    if all(job.folder in failed for job in jobs):
        tell(f"{table.name}: every run failed, so there is no result")
    else:
        path = results / f"{table.name}.json"
        write_result(collect(table, jobs, failed, command=command, photographs=places.images is not None), path)
        print(derive(path), end="", flush=True)
        tell(f"{table.name}: written to {path}")
    return [f"{table.name}: {job.name}: {failed[job.folder]}" for job in jobs if job.folder in failed]


def derive(path: Path) -> str:
    """Write the Markdown and the picture of a result beside it, and return the Markdown."""
    result = read_result(path)
    text = make_markdown(result)
    write_atomically(path.with_suffix(".md"), text)
    try:
        from benchmarks.ablation.picture import draw

        draw(result, path.with_suffix(".png"))
    except ImportError:
        tell("no picture: that needs matplotlib; pip install 'distilldepth[plot]'")
    return text


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list(width: int) -> None:
    for name in table_names():
        try:
            table = read_table(find_table(name))
        except DistillDepthError as error:
            print(f"{name:10} cannot be read: {one_line(error)}")
            continue
        trained = sum(not cell.model for cell in table.cells)
        time = in_words(trained * table.seeds * table.seconds / width) if table.seconds else "not measured"
        print(f"{name:10} {table.title}\n{'':10} {trained} cells x {table.seeds} seeds, {time} on {width} cores")


def _command(options: argparse.Namespace) -> str:
    """The command line without the places of this machine."""
    words = ["python -m benchmarks.ablation", *(Path(name).stem for name in options.tables)]
    words += ["--images PHOTOS"] if options.images else []
    words += ["--data DATA"] if options.data else []
    words += [
        f"--{name} {value}" for name in ("seeds", "steps", "jobs") if (value := getattr(options, name)) is not None
    ]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
