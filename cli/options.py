"""Options that several commands share, so that a word means the same everywhere. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, refuse_url
from distilldepth.words import DEVICES, MAX_SIDE, PRECISIONS, RESIZE_POLICIES

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MODEL = "distilldepth-mini"
_NO_JSON = (
    ".png", ".jpg", ".jpeg", ".npy", ".npz", ".ply", ".safetensors", ".pth", ".pt", ".bin", ".toml", ".csv", ".tar",
)  # fmt: skip
"""What other files are called."""


class NearestChoice(click.Choice):
    """A choice that answers a typo with the nearest valid word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.choices:
            return value
        return self.fail(f"unknown value '{value}'{did_you_mean(str(value), self.choices)}", param, ctx)


class GroupedCommand(click.Command):
    """A command whose help shows its options under titles; an option that no group names comes last, under Other."""

    def __init__(self, *args: Any, groups: dict[str, Sequence[str]], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {parameter.name: parameter for parameter in self.get_params(ctx)}
        chosen = {title: [left.pop(name) for name in names if name in left] for title, names in self.groups.items()}
        for title, parameters in {**chosen, "Other": list(left.values())}.items():
            records = [record for record in (parameter.get_help_record(ctx) for parameter in parameters) if record]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class WordList(click.ParamType):
    """Words separated by commas, each one of a fixed set; `aliases` are other spellings."""

    name = "list"

    def __init__(self, choices: Sequence[str], aliases: dict[str, str] | None = None) -> None:
        self.choices = tuple(choices)
        self.aliases = aliases or {}
        self._choice = NearestChoice(self.choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = [self.aliases.get(word, word) for word in (part.strip().lower() for part in value.split(",")) if word]
        if not words:
            self.fail(f"names nothing; choose from {', '.join(self.choices)}", param, ctx)
        return tuple(self._choice.convert(word, param, ctx) for word in words)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "[" + "|".join(self.choices) + "]"


class Numbers(click.ParamType):
    """A fixed count of numbers separated by commas."""

    name = "numbers"

    def __init__(self, *names: str) -> None:
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(self.names) or not all(abs(number) < float("inf") for number in numbers):
            self.fail(f"must be {len(self.names)} numbers {','.join(self.names)}, got '{value}'", param, ctx)
        return numbers

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return ",".join(self.names).upper()


def _offline(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        # Read by huggingface_hub when it is imported, so this must come first.
        os.environ["HF_HUB_OFFLINE"] = "1"
    return value or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def model_option(default: str | None = DEFAULT_MODEL) -> Callable[[F], F]:
    """`--model`: a name, a run's `student/` folder, a checkpoint file or a hub id."""
    return click.option(
        "--model",
        default=default,
        required=default is None,
        show_default=default is not None,
        help="Name (see `distilldepth list teachers`), folder of a run, .safetensors or .pth file, or hub id.",
    )


def model_max_depth_option(function: F) -> F:
    """`--model-max-depth`; see `with_max_depth`."""
    return click.option(
        "--model-max-depth",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        metavar="METRES",
        help="--model is a file of NeWCRFs or a metric Depth Anything, trained up to this depth (as "
        "dav2-metric:METRES@FILE).",
    )(function)


def with_max_depth(model: str, metres: float | None) -> str:
    """Return the model's name with the depth that `--model-max-depth` says, as every command takes it."""
    if metres is None:
        return model
    name, at, path = model.partition("@")
    if at and name not in ("dav2", "dav2-metric", "newcrfs"):
        raise UsageError(f"--model-max-depth: '{name}' says itself what its numbers are; leave one of the two out")
    if not at and "/" not in model and not Path(model).exists() and not Path(model).suffix:
        raise UsageError(f"--model-max-depth needs a file of weights, and '{model}' says itself what its numbers are")
    return f"dav2-metric:{metres!r}@{path if at else model}"


def device_option(function: F) -> F:
    """`--device`."""
    return click.option("--device", default="auto", show_default=True, help=f"{DEVICES}; auto prefers a GPU.")(function)


def precision_option(function: F) -> F:
    """`--precision`."""
    return click.option(
        "--precision",
        type=NearestChoice(PRECISIONS),
        default="auto",
        show_default=True,
        help="auto is what is fast on this machine (see `distilldepth doctor`).",
    )(function)


def offline_option(function: F) -> F:
    """`--offline`."""
    return click.option(
        "--offline",
        is_flag=True,
        is_eager=True,
        callback=_offline,
        help="Never touch the network: bundled, local and cached models only (as HF_HUB_OFFLINE=1).",
    )(function)


def json_option(function: F) -> F:
    """`--json FILE|-`."""
    return click.option(
        "--json", "json_file", metavar="FILE|-", default=None, help="Write the result as JSON; - is standard output."
    )(function)


def resize_options(function: F) -> F:
    """`--resize-policy` and `--size`."""
    function = click.option(
        "--size",
        type=click.IntRange(1, MAX_SIDE),
        default=None,
        help="Side in pixels at which the model sees the image.",
    )(function)
    return click.option(
        "--resize-policy",
        type=NearestChoice(RESIZE_POLICIES),
        default=None,
        help="How --size is applied; default: the model's own policy.",
    )(function)


def batch_size_option(default: int = 8) -> Callable[[F], F]:
    """`--batch-size`."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1, 65_536),
        default=default,
        show_default=True,
        help="Images of equal size that the model sees at once.",
    )


def write_json(result: Any, target: str | None) -> None:
    """Write `result` to the file or, for `-`, to standard output. None writes nothing."""
    if target is None:
        return
    if target == "-":
        click.echo(_json_text(result))
        return
    save_json(result, target)
    click.echo(f"wrote {target}", err=True)


def save_json(result: Any, target: str) -> None:
    """Write `result` to the file, whole or not at all, and say nothing."""
    from distilldepth.files import atomic_path

    text = _json_text(result) + "\n"
    with atomic_path(Path(target)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json_text(result: Any) -> str:
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_json_target(target: str | None, used: Iterable[str | Path] = ()) -> None:
    """Fail before the work, not after it, if the JSON file cannot be written or would replace something else.

    Args:
        target: what `--json` names.
        used: files that the command reads, or writes besides.

    Raises:
        UsageError: a folder, one of the files in use, or a file that holds anything but JSON.
    """
    if target is None or target == "-":
        return
    from distilldepth.files import check_writable, place, places

    refuse_url(target)
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"--json must name a file or be -, got the folder {target}")
    if any(place(path) in places(Path(other)) for other in used):
        raise UsageError(f"--json {target}: this command reads or writes that file itself; name another")
    if path.suffix.lower() in _NO_JSON or (path.is_file() and not _holds_json(path)):
        raise UsageError(f"--json {target}: is no file for JSON, and is not replaced; name a .json file")
    check_writable(path.parent)


def _holds_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] in (b"", b"{", b"[")


def json_number(value: float) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return float(value) if abs(value) < float("inf") else None


def printable(value: object) -> str:
    """Return one line of text that any stream can show: file names may hold line breaks and bytes that are no text."""
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    line = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    # Names from files must not steer the terminal.
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", line)


def end_with_failures(failures: Sequence[tuple[str, str]], total: int) -> None:
    """List what failed and exit 1; do nothing if nothing did. A single input that fails is simply the error."""
    if not failures:
        return
    if total == 1:
        source, reason = failures[0]
        raise DistillDepthError(f"{source}: {reason}")
    for source, reason in failures:
        click.echo(f"  {printable(source)}: {printable(reason)}", err=True)
    click.echo(f"distilldepth: error: {len(failures)} of {total} failed (listed above)", err=True)
    click.get_current_context().exit(1)


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more are done: a bar on a terminal, a plain line per tenth elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, told = 0, 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        if total > 1 and done * 10 // total > told:
            told = done * 10 // total
            click.echo(f"{label}: {done}/{total}", err=True)

    yield advance


def console(*, stderr: bool = False) -> Console:
    """A rich console that neither wraps tables in a log nor colours them; COLUMNS says the width wherever it writes."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        made.width = max(made.width, 200)
    return made
