"""An evaluation as a table: for the terminal, Markdown, LaTeX, and per sample as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from distilldepth.evaluate.record.columns import DEPTH, Columns, columns_of
from distilldepth.evaluate.record.published import PublishedRow
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.rows import Intervals, Metrics, ScoredDataset
from distilldepth.evaluate.record.uncertainty import UNCERTAINTY_CAPTION, uncertainty_lines, uncertainty_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

_LATEX_HEADINGS = {
    **{f"delta{number}": rf"$\delta_{number}$" for number in (1, 2, 3)},
    **{f"delta {factor}": rf"$\delta_{{{factor}}}$" for factor in ("1.05", "1.10", "1.25")},
    "log10": r"$\log_{10}$",
}
_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_"},
}


def make_table(evaluation: Evaluation, published: Sequence[PublishedRow] | None = None) -> RenderableType:
    """Return something rich can print: a row per dataset, and their mean if there are several.

    A terminal with room sees intervals beside the numbers, a narrower one sees them below, the narrowest sees fewer
    metrics. The caption says what is missing from the result.

    Args:
        evaluation: what is shown.
        published: rows as `published_rows` gives them, shown below and marked as theirs; None or empty for none.
    """
    return _Table(evaluation, list(published or ()))


class _Table:
    """The widest layout that fits the console."""

    def __init__(self, evaluation: Evaluation, published: list[PublishedRow]) -> None:
        self.evaluation = evaluation
        self.published = published

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        for names, separator in columns_of(self.evaluation).layouts:
            table = self.build(names, separator)
            if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
                break
        yield table
        yield from map(Text, uncertainty_lines(self.evaluation))

    def build(self, names: Sequence[str], separator: str | None) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        columns = columns_of(self.evaluation)

        def cells(metrics: Metrics, intervals: Intervals | None = None) -> list[Text]:
            shown = intervals if separator else None
            return [Text(format_metric(name, metrics, shown, separator or " ", columns)) for name in names]

        left_out = [heading for name, heading in columns.headings.items() if name not in names]
        sentences = [
            f"no room for {', '.join(left_out)}; --json has them" if left_out else "",
            _interval_note(self.evaluation) if separator else "",
            incompleteness(self.evaluation),
            *doubts(self.evaluation),
        ]
        caption = Text("\n".join(filter(None, sentences)))
        table = Table(box=box.ROUNDED if separator == " " else box.SIMPLE_HEAD, caption=caption)
        table.add_column("dataset", no_wrap=separator == " ", overflow="fold")
        table.add_column("frames", justify="right")
        for name in names:
            table.add_column(columns.headings[name], justify="right", no_wrap=True)
        for dataset in self.evaluation.datasets:
            table.add_row(Text(dataset.name), Text(frames_of(dataset)), *cells(*dataset.headline))
        if len(self.evaluation.datasets) > 1:
            table.add_section()
            table.add_row("mean of datasets", "", *cells(self.evaluation.mean))
        if self.published:
            table.add_section()
            for row in self.published:
                title = Text(f"published: {row.model} on {row.dataset} ({row.source})", style="dim italic")
                title.no_wrap, title.overflow = False, "fold"
                table.add_row(title, "", *cells({**row.metrics}), style="dim")
            # Sources are sentences: wrapped, never the reason for a narrower layout.
            table.columns[0].no_wrap = False
            table.columns[0].max_width = 34 if separator == " " else 24 if len(names) > 2 else 16
        return table


def frames_of(dataset: ScoredDataset) -> str:
    """Return how many frames were scored, and of how many where that is not all."""
    frames = dataset.frames
    wanted = max(frames + dataset.failed, dataset.expected or 0)
    return str(frames) if frames == wanted else f"{frames} of {wanted}"


def incompleteness(evaluation: Evaluation) -> str:
    """Return the sentence that says what is missing from a result; empty if nothing is."""
    parts = []
    failed = len(evaluation.failures)
    if failed:
        total = failed + len(evaluation.samples)
        parts.append(f"INCOMPLETE: {failed} of {total} frames could not be scored")
    for dataset in evaluation.datasets:
        expected, seen = dataset.expected, dataset.frames + dataset.failed
        if expected and seen != expected:
            parts.append(f"PART OF A BENCHMARK: {seen} of the {expected} frames of {dataset.name} were asked for")
    if not parts and not evaluation.complete:
        parts.append("INCOMPLETE")
    return "; ".join(parts)


def doubts(evaluation: Evaluation) -> list[str]:
    """Return the lines that say what makes the numbers doubtful; none if nothing was noticed."""
    return [f"DOUBTFUL: {text}" for text in evaluation.doubts]


def format_metric(
    name: str,
    metrics: Metrics,
    intervals: Intervals | None = None,
    separator: str = " ",
    columns: Columns = DEPTH,
) -> str:
    """Return `0.636 [0.60, 0.67]` for a metric that has an interval to show, else `0.636`; empty if there is none.

    The bounds have two digits, or three where two would make them look alike.
    """
    value = metrics.get(name)
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.3f}"
    interval = (intervals or {}).get(name)
    if (
        name in columns.with_interval
        and interval
        and all(bound is not None and math.isfinite(bound) for bound in interval)
    ):
        low, high = interval
        digits = 2 if high - low >= 0.02 else 3
        text += f"{separator}[{low:.{digits}f}, {high:.{digits}f}]"
    return text


def to_markdown(evaluation: Evaluation) -> str:
    """Return a Markdown document: the model, the protocol, what is missing, and the table."""
    lines = [f"**{_markdown(_model_line(evaluation))}**", ""]
    lines += [_markdown(line) + "  " for line in protocol_lines(evaluation)]
    if missing := incompleteness(evaluation):
        lines += ["", f"**{_markdown(missing)}.**"]
    for doubt in doubts(evaluation):
        lines += ["", f"**{_markdown(doubt)}**"]
    headings = ["dataset", "frames", *columns_of(evaluation).headings.values()]
    lines += ["", f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    for cells in _table_rows(evaluation):
        lines.append(f"| {' | '.join(_markdown(cell) for cell in cells)} |")
    if note := _interval_note(evaluation):
        lines += ["", note[0].upper() + note[1:] + "."]
    if rows := uncertainty_table(evaluation):
        lines += [
            "",
            f"{UNCERTAINTY_CAPTION}:",
            "",
            f"| {' | '.join(rows[0])} |",
            f"|---|---|{'---:|' * (len(rows[0]) - 2)}",
        ]
        lines += [f"| {' | '.join(map(_markdown, cells))} |" for cells in rows[1:]]
    lines += [f"\nNote: {_markdown(note)}" for note in evaluation.notes]
    return "\n".join(lines) + "\n"


def to_latex(evaluation: Evaluation) -> str:
    r"""Return a LaTeX table for the package booktabs, `\input` as it is; everything from outside is escaped."""
    titles = columns_of(evaluation).headings.values()
    headings = ["Dataset", "Frames", *(_LATEX_HEADINGS.get(title, _latex(title)) for title in titles)]
    rows = [[_latex(cell) for cell in cells] for cells in _table_rows(evaluation)]
    body = [" & ".join(cells) + r" \\" for cells in rows]
    if len(evaluation.datasets) > 1:
        body.insert(-1, r"\midrule")
    caption = [_model_line(evaluation), *protocol_lines(evaluation)]
    if missing := incompleteness(evaluation):
        caption.append(missing)
    caption += doubts(evaluation)
    if note := _interval_note(evaluation):
        caption.append(note[0].upper() + note[1:])
    sentences = " ".join(_latex(line.rstrip(".") + ".") for line in caption)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{sentences}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """Return one line per frame by RFC 4180, failed ones too: a table without them would look complete.

    Columns: dataset, name, error (empty if scored), doubts (empty if none), scale, shift, ratio, seconds, every
    metric, protocol. Numbers have all their digits; what does not exist or is not finite is empty. Text that a
    spreadsheet would run as a formula begins with an apostrophe.
    """
    metrics = list(dict.fromkeys(name for sample in evaluation.samples for name in sample.metrics))
    extra = [
        key for key in ("scale", "shift", "ratio", "seconds") if any(key in sample for sample in evaluation.samples)
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["dataset", "name", "error", "doubts", *extra, *metrics, "protocol"])
    label = _csv_text(evaluation.protocol.name)
    for sample in evaluation.samples:
        numbers = [getattr(sample, key) for key in extra] + [sample.metrics.get(name) for name in metrics]
        wrong = "; ".join(f"{kind}: {text}" for kind, text in sample.doubts.items())
        texts = [_csv_text(sample.dataset), _csv_text(sample.name), "", _csv_text(wrong)]
        writer.writerow([*texts, *map(_csv_number, numbers), label])
    empty = [""] * (1 + len(extra) + len(metrics))
    for failure in evaluation.failures:
        texts = [_csv_text(text) for text in (failure.dataset, failure.name, failure.error)]
        writer.writerow([*texts, *empty, label])
    return text.getvalue()


def _csv_text(text: str) -> str:
    """A cell of text; with an apostrophe where a spreadsheet would take it for a formula and run it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def protocol_lines(evaluation: Evaluation) -> list[str]:
    """Return what was measured: the protocol's line, and its effective rules per kind of dataset where it has any."""
    lines = [f"Protocol {evaluation.protocol.describe()}"]
    kinds = list(dict.fromkeys(dataset.kind for dataset in evaluation.datasets))
    if any(kinds):
        lines += [line.strip() for line in evaluation.protocol.effective(kinds).splitlines() if line.strip()]
    return [*lines, *point_lines(evaluation)]


def point_lines(evaluation: Evaluation) -> list[str]:
    """Return the line on the points that a completion was given; none where it is depth that was scored."""
    metadata = evaluation.metadata
    if metadata.points is None:
        return []
    scored = "every pixel with truth" if metadata.score == "all" else "the pixels with truth that were not given"
    return [f"Points of the truth that were given: {metadata.points} (seed {metadata.seed}); scored: {scored}"]


def _table_rows(evaluation: Evaluation) -> Iterable[list[str]]:
    columns = columns_of(evaluation)

    def cells(metrics: Metrics, intervals: Intervals | None = None) -> list[str]:
        return [format_metric(name, metrics, intervals, columns=columns) for name in columns.headings]

    for dataset in evaluation.datasets:
        yield [dataset.name, frames_of(dataset), *cells(*dataset.headline)]
    if len(evaluation.datasets) > 1:
        yield ["mean of datasets", "", *cells(evaluation.mean)]


def _model_line(evaluation: Evaluation) -> str:
    info = evaluation.metadata.model
    return f"{info.name} ({info.quantity}, {info.licence})"


def shows_intervals(evaluation: Evaluation) -> bool:
    """Return whether a number of the table stands beside its interval."""
    return any(set(dataset.headline[1]) & set(columns_of(evaluation).with_interval) for dataset in evaluation.datasets)


def _interval_note(evaluation: Evaluation) -> str:
    return "in brackets: 95 % bootstrap intervals over the frames" if shows_intervals(evaluation) else ""


def _markdown(text: str) -> str:
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _latex(text: str) -> str:
    return "".join(_LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _csv_number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))
