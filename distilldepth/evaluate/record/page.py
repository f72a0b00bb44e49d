"""`report.html` of an evaluation: one self-contained page with numbers, curves, and the worst and best cases."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.record.cases import Case, Cases
from distilldepth.evaluate.record.columns import DEPTH, Columns, columns_of
from distilldepth.evaluate.record.published import (
    dataset_title,
    format_published,
    method_of,
    protocol_of,
    published_rows,
    short_source,
)
from distilldepth.evaluate.record.result import Evaluation
from distilldepth.evaluate.record.rows import Intervals, Metrics, ScoredDataset, ScoredSample
from distilldepth.evaluate.record.table import (
    doubts,
    format_metric,
    frames_of,
    incompleteness,
    protocol_lines,
    shows_intervals,
)
from distilldepth.evaluate.record.uncertainty import uncertainty_section
from distilldepth.files import write_atomically
from distilldepth.formats.colormaps import colormap_table
from distilldepth.formats.uncertainty import COLORMAP
from distilldepth.pages import Chart, data_url, depth_ticks, jpeg, make_page, nice_ticks, palette_png

__all__ = ["Case", "Cases", "write_report"]

NAME = "report.html"

_WORST_ERROR = 0.5
"""Relative error at the ends of the colour scale; one scale for all pictures, so that they can be compared."""

_FEW = 0.05
"""Points on fewer of the pixels of a picture are drawn three pixels wide."""

_ERROR_COLOURS = ("1f4e9c", "6f9bd8", "f4f1ea", "e88a5a", "b3261e")
"""From too near over right to too far."""

_HEADINGS = {
    **DEPTH.headings,
    "sq_rel_squared": "SqRel (squared)",
    "irmse_km": "iRMSE [1/km]",
}

_STYLE = """
.facts th { font-weight: 400; color: var(--quiet); vertical-align: top; padding-left: 0; white-space: nowrap }
.facts th, .facts td { border: 0; padding-top: .1rem; padding-bottom: .1rem }
.badge { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; font-size: 13px; font-weight: 600;
  white-space: nowrap; vertical-align: middle }
.facts td { overflow-wrap: anywhere }
.whole { color: var(--good) } .incomplete { color: var(--bad) }
.scores small, .published small { color: var(--quiet); display: block; line-height: 1.1 }
.published { font-size: 13px } .published th, .published td { padding: .12rem .6rem }
.published td:last-child { white-space: nowrap }
tr.ours td { font-weight: 600; background: var(--soft) }
.case { margin: .4rem 0 1.2rem; padding-top: .5rem; border-top: 1px solid var(--rule) }
.case > p { margin: 0 0 .3rem; overflow-wrap: anywhere }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(10rem, 100%), 1fr)); gap: .6rem }
figure { margin: 0 } figcaption { font-size: 12px; color: var(--quiet); margin-bottom: .15rem }
figure img { display: block; width: 100%; height: auto; background: var(--missing); border-radius: 3px }
.legend { display: flex; flex-direction: column; font-size: 12px; color: var(--quiet) }
.legend i { display: block; height: .5rem; border-radius: 2px; margin: .25rem 0 .1rem }
.legend span { display: flex; justify-content: space-between }
details { margin: .4rem 0 } summary { cursor: pointer; color: var(--quiet) }
nav { display: flex; flex-wrap: wrap; gap: .2rem .8rem }
"""


def write_report(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write `report.html` into a run folder; the pictures are those of `Cases` in its `pictures`.

    Args:
        evaluation: what is shown.
        folder: of the run; exists.

    Returns:
        The path of the page. Damaged pictures are said to be so on the page and cost nothing else.
    """
    folder = Path(folder)
    try:
        cases, trouble = Cases.load(folder), ""
    except DistillDepthError as error:
        cases, trouble = Cases(), str(error)
    path = folder / NAME
    write_atomically(path, _page(evaluation, cases, trouble))
    return path


def _page(evaluation: Evaluation, cases: Cases, trouble: str) -> str:
    info = evaluation.metadata.model
    sections = "".join(
        _dataset_section(evaluation, dataset, index, cases) for index, dataset in enumerate(evaluation.datasets)
    )
    warnings = [*doubts(evaluation), *evaluation.notes, *([trouble] if trouble else [])]
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in warnings)
    body = f"""<h1>{html.escape(info.name)}: depth evaluation {_badge(evaluation)}</h1>
{notes}
{_facts(evaluation)}
<h2>Scores</h2>
{_scores(evaluation)}
{_failures(evaluation)}
{_contents(evaluation)}
{sections}
{_published(evaluation)}
{_colophon(evaluation)}"""
    return make_page(f"{info.name}: depth evaluation", body, style=_STYLE)


def _badge(evaluation: Evaluation) -> str:
    missing = incompleteness(evaluation)
    kind, text = ("incomplete", missing) if missing else ("whole", "complete")
    return f'<span class="badge {kind}">{html.escape(text)}</span>'


def _facts(evaluation: Evaluation) -> str:
    info, metadata = evaluation.metadata.model, evaluation.metadata
    meaning = {
        "disparity": "disparity (larger = nearer, no unit)",
        "depth": "depth up to scale and shift",
        "metric_depth": "depth in metres",
    }
    network = f"{metadata.size or '?'} px, {metadata.resize_policy or '?'}"
    rows = [
        ("model", f"{info.name} ({info.family}), from {info.source}"),
        ("licence", info.licence),
        ("predicts", meaning.get(info.quantity, info.quantity)),
        ("network sees", network),
        *(
            ("protocol" if index == 0 else "", line.removeprefix("Protocol "))
            for index, line in enumerate(protocol_lines(evaluation))
        ),
    ]
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f'<table class="facts">{body}</table>'


def _scores(evaluation: Evaluation) -> str:
    columns = columns_of(evaluation)

    def cells(metrics: Metrics, intervals: Intervals) -> str:
        return "".join(_cell(name, metrics, intervals, columns) for name in columns.headings)

    rows = []
    for index, dataset in enumerate(evaluation.datasets):
        name = f'<a href="#dataset-{index}">{html.escape(dataset.name)}</a>'
        frames = f'<td class="number">{frames_of(dataset)}</td>'
        rows.append(f"<tr><td>{name}</td>{frames}{cells(*dataset.headline)}</tr>")
    if len(evaluation.datasets) > 1:
        rows.append(f'<tr class="ours"><td>mean of datasets</td><td></td>{cells(evaluation.mean, {})}</tr>')
    heads = "".join(f'<th class="number">{heading}</th>' for heading in ("frames", *columns.headings.values()))
    note = (
        '<p class="quiet">In brackets: 95 % bootstrap intervals over the frames. Frames of one scene resemble each '
        "other, so the true uncertainty is larger.</p>"
        if shows_intervals(evaluation)
        else ""
    )
    table = f'<table class="scores"><tr><th>dataset</th>{heads}</tr>{"".join(rows)}</table>'
    return f'<div class="wide">{table}</div>{note}'


def _cell(name: str, metrics: Metrics, intervals: Intervals, columns: Columns = DEPTH) -> str:
    value, _, bounds = format_metric(name, metrics, intervals, columns=columns).partition(" ")
    small = f"<small>{bounds}</small>" if bounds else ""
    return f'<td class="number">{value}{small}</td>'


def _failures(evaluation: Evaluation) -> str:
    if not evaluation.failures:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(failure.dataset)}</td><td>{html.escape(failure.name)}</td>"
        f"<td>{html.escape(failure.error)}</td></tr>"
        for failure in evaluation.failures
    )
    count = len(evaluation.failures)
    are = "frame is" if count == 1 else "frames are"
    return (
        f"<h2>Frames that could not be scored</h2><p>{count} {are} missing from every number on this page.</p>"
        f'<div class="wide"><table><tr><th>dataset</th><th>frame</th><th>what was wrong</th></tr>'
        f"{rows}</table></div>"
    )


def _published(evaluation: Evaluation) -> str:
    kinds = list(dict.fromkeys(dataset.kind for dataset in evaluation.datasets))
    tables = "".join(_published_table(evaluation, kind) for kind in kinds if kind and published_rows(kind))
    if not tables:
        return ""
    return (
        "<h2>Published numbers beside these</h2><p>The highlighted rows are this run. <strong>All other rows are "
        "copied from the papers named beside them; nobody measured them here.</strong> They were measured under "
        "their protocol, which is often not fully stated, and are comparable only as far as it is the same.</p>"
        f"{tables}"
    )


def _published_table(evaluation: Evaluation, kind: str) -> str:
    theirs = published_rows(kind)
    # What has no stated unit cannot stand beside a number that has one.
    there = {name for row in theirs for name in row.metrics if not name.endswith("_as_printed")}
    theirs = [row for row in theirs if there & set(row.metrics)]
    names = [name for name in _HEADINGS if name in there]
    names += sorted(there - set(names))
    model = evaluation.metadata.model.name
    rows = []
    for dataset in evaluation.datasets:
        if dataset.kind == kind:
            cells = "".join(_cell(name, *dataset.headline) for name in names)
            what = f"{model} on {dataset.name}, {frames_of(dataset)} frames"
            source = f"this run, {evaluation.protocol.name}"
            rows.append(f'<tr class="ours"><td>{html.escape(what)}</td>{cells}<td>{html.escape(source)}</td></tr>')
    protocols = list(dict.fromkeys(protocol_of(row) for row in theirs))
    for row in theirs:
        cells = "".join(f'<td class="number">{format_published(name, row.metrics)}</td>' for name in names)
        source = f"[{protocols.index(protocol_of(row)) + 1}] {short_source(row)}"
        rows.append(f"<tr><td>{html.escape(method_of(row))}</td>{cells}<td>{html.escape(source)}</td></tr>")
    heads = "".join(f'<th class="number">{html.escape(_HEADINGS.get(name, name))}</th>' for name in names)
    notes = "<br>".join(f"[{number}] {html.escape(protocol)}" for number, protocol in enumerate(protocols, 1))
    table = f'<table class="published"><tr><th>method</th>{heads}<th>source</th></tr>{"".join(rows)}</table>'
    title = html.escape(dataset_title(kind))
    return f'<h3>{title}</h3><div class="wide">{table}</div><p class="quiet">{notes}</p>'


def _contents(evaluation: Evaluation) -> str:
    if len(evaluation.datasets) < 4:
        return ""
    links = "".join(
        f'<a href="#dataset-{index}">{html.escape(dataset.name)}</a>'
        for index, dataset in enumerate(evaluation.datasets)
    )
    return f"<h2>Datasets one by one</h2><nav>{links}</nav>"


def _dataset_section(evaluation: Evaluation, dataset: ScoredDataset, index: int, cases: Cases) -> str:
    name = dataset.name
    samples = [sample for sample in evaluation.samples if sample.dataset == name]
    worst, best = cases.worst(name), cases.best(name)
    unit = "m" if all(case.is_metric for case in (*worst, *best)) else ""
    fitted = dataset.rules is None or dataset.rules.align != "none"
    # Bins are in metres; depth without a unit says nothing by bin.
    bins = _sum_bins(samples) if unit else []
    charts = [*_depth_charts(bins), *_distribution_chart(samples)]
    parts = [f'<h2 id="dataset-{index}">{html.escape(name)}</h2>', _rules(dataset)]
    if charts:
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    if bins:
        parts.append(_bins_table(bins))
    if not unit:
        parts.append('<p class="quiet">The ground truth has no unit: no error by depth, and lengths without one.</p>')
    parts.append(uncertainty_section(dataset.metrics, samples))
    by_name = {sample.name: sample.metrics for sample in samples}
    for title, group in (("Worst cases", worst), ("Best cases", best)):
        if group:
            parts.append(f"<h3>{title}</h3>")
            parts += [_case(case, by_name.get(case.name, {}), unit, fitted=fitted) for case in group]
    return "".join(parts)


def _rules(dataset: ScoredDataset) -> str:
    if dataset.rules is None:
        return ""
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(_rule(value))}</td></tr>"
        for name, value in dataset.rules.to_dict().items()
    )
    return f'<details><summary>Effective rules</summary><table class="facts">{rows}</table></details>'


def _rule(value: bool | float | str | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Bin:
    """Error at one range of depth, over all pixels of all frames."""

    low: float
    high: float
    pixels: float
    abs_rel: float
    delta1: float


def _sum_bins(samples: Iterable[ScoredSample]) -> list[_Bin]:
    """The bins of depth with pixels, nearest first."""
    sums: dict[tuple[float, float], np.ndarray] = {}
    for sample in samples:
        for low, high, *counted in sample.error_by_depth or ():
            numbers = np.array(counted, dtype=np.float64)
            # A bin of a frame whose error is not a number must not hide the others.
            if numbers[0] > 0 and np.isfinite(numbers).all():
                sums[low, high] = sums.get((low, high), 0) + numbers
    return [
        _Bin(low, high, float(count), float(error / count), float(right / count))
        for (low, high), (count, error, right) in sorted(sums.items())
    ]


def _edges(low: float | None, high: float | None) -> tuple[float, float]:
    """Bounds of a bin for a logarithmic axis, where one of them may be 0, infinite or None for infinite."""
    first = low if low is not None and low > 0 else None
    last = high if high is not None and math.isfinite(high) else None
    if first is None:
        return (1.0, 2.0) if last is None else (last / 2, last)
    return first, first * 2 if last is None else last


def _depth_charts(bins: list[_Bin]) -> list[str]:
    if not bins:
        return []
    total, most = sum(bin.pixels for bin in bins), max(bin.pixels for bin in bins)
    bars, errors, rights = [], [], []
    for bin in bins:
        first, last = _edges(bin.low, bin.high)
        # Thousands are set apart by a space, which no language reads as a decimal point.
        pixels = f"{bin.pixels:,.0f}".replace(",", " ")
        where = f"{_range(bin.low, bin.high)}: {pixels} pixels, {bin.pixels / total:.1%}"
        bars.append((first, last, bin.pixels / most, where))
        middle = math.sqrt(first * last)
        errors.append((middle, bin.abs_rel, f"{where}; AbsRel {bin.abs_rel:.3f}"))
        rights.append((middle, bin.delta1, f"{where}; delta1 {bin.delta1:.3f}"))
    x_ticks = depth_ticks(bars[0][0], bars[-1][1])
    # A bin with hardly a pixel must not flatten the rest of the curve; it is drawn at the upper end.
    common = [bin.abs_rel for bin in bins if bin.pixels >= 0.01 * total]
    shares = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    return [
        Chart(title, x_ticks, y_ticks, "true depth, m", {title: points}, bars, logarithmic=True).to_svg()
        for title, y_ticks, points in (
            ("AbsRel by depth (bars: pixels)", nice_ticks(max(common)), errors),
            ("delta1 by depth (bars: pixels)", shares, rights),
        )
    ]


def _distribution_chart(samples: list[ScoredSample]) -> list[str]:
    values = [(sample.metrics.get("delta1"), sample.name) for sample in samples]
    ordered = sorted((value, name) for value, name in values if value is not None and math.isfinite(value))
    if len(ordered) < 2:
        return []
    points = [
        # Beyond some dozen frames the points would hide the curve.
        (100 * (index + 0.5) / len(ordered), value, f"{name}: {value:.3f}" if len(ordered) <= 60 else "")
        for index, (value, name) in enumerate(ordered)
    ]
    ticks = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    percent = [(value, f"{value} %") for value in (0, 25, 50, 75, 100)]
    return [
        Chart("delta1 of each frame, sorted", percent, ticks, "frames from worst to best", {"delta1": points}).to_svg()
    ]


def _bins_table(bins: list[_Bin]) -> str:
    rows = "".join(
        f'<tr><td class="number">{_range(bin.low, bin.high)}</td><td class="number">{bin.pixels:.0f}</td>'
        f'<td class="number">{bin.abs_rel:.3f}</td><td class="number">{bin.delta1:.3f}</td></tr>'
        for bin in bins
    )
    heads = "".join(f'<th class="number">{head}</th>' for head in ("true depth", "pixels", "AbsRel", "delta1"))
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'
    return f"<details><summary>Error by depth in numbers</summary>{table}</details>"


def _range(low: float | None, high: float | None) -> str:
    return f"{low or 0:.3g} to {high:.3g} m" if high is not None and math.isfinite(high) else f"beyond {low:.3g} m"


def _case(case: Case, metrics: Metrics, unit: str, *, fitted: bool) -> str:
    prediction, truth = case.prediction.astype(np.float64), case.truth.astype(np.float64)
    low, high = _depth_range(truth[case.valid])
    error = np.abs(prediction - truth)[case.valid]
    error = error[np.isfinite(error)]
    delta1 = metrics.get("delta1")
    words = [f"AbsRel {case.score:.3f}"]
    if delta1 is not None and math.isfinite(delta1):
        words.append(f"delta1 {delta1:.3f}")
    if len(error):
        median, most = np.percentile(error, [50, 95])
        words.append(f"half of the pixels within {_length(median, unit)}, 95 % within {_length(most, unit)}")
    spectral = colormap_table("spectral")
    alt = html.escape(case.name)
    what = "completed depth" if case.points is not None else "prediction, aligned" if fitted else "prediction"
    stated, stated_legend = _stated(case, unit if metrics.get("laplace_error") is not None else None)
    pictures = [
        ("image", data_url(jpeg(case.image), "jpeg")),
        *_points(case, low, high, spectral),
        (what, data_url(_paint_depth(prediction, None, low, high, spectral))),
        ("ground truth", data_url(_paint_depth(truth, case.valid, low, high, spectral))),
        ("error of the prediction", data_url(_paint_error(prediction, truth, case.valid))),
        *stated,
    ]
    near_to_far = _gradient(spectral[::-1])
    lengths = [_length(value, unit) for value in (low, math.sqrt(low * high), high)]
    depth_legend = _legend(near_to_far, lengths)
    error_legend = _legend(
        _gradient(_error_table()),
        [f"−{_WORST_ERROR:.0%}, too near", "0", f"too far, +{_WORST_ERROR:.0%}"],
    )
    legends = ("", *[depth_legend] * (len(pictures) - 2 - len(stated)), error_legend, *stated_legend)
    figures = "".join(
        f'<figure><figcaption>{what}</figcaption><img alt="{what} of {alt}" src="{url}">{legend}</figure>'
        for (what, url), legend in zip(pictures, legends, strict=True)
    )
    return (
        f'<div class="case"><p><strong>{alt}</strong> <span class="quiet">{html.escape(", ".join(words))}</span></p>'
        f'<div class="strip">{figures}</div></div>'
    )


def _stated(case: Case, unit: str | None) -> tuple[list[tuple[str, str]], list[str]]:
    """The picture of what the model says of its own uncertainty, and its legend, if there is one.

    `unit` is that of sigma, or None where the numbers only have an order.
    """
    if case.uncertainty is None:
        return [], []
    values = case.uncertainty.astype(np.float64)
    low, high = (float(value) for value in np.percentile(values, [2, 98]))
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    table = colormap_table(COLORMAP)
    picture = _paint((values - low) / (high - low), np.isfinite(values), table)
    words = ["certain", "uncertain"]
    if unit is not None:
        words = [f"sigma {_length(math.exp(low / 2), unit)}", _length(math.exp(high / 2), unit)]
    return [("stated uncertainty", data_url(picture))], [_legend(_gradient(table), words)]


def _points(case: Case, low: float, high: float, table: np.ndarray) -> list[tuple[str, str]]:
    """The picture of the points that a completion was given, grown by a pixel where they are few; none without."""
    if case.points is None:
        return []
    points = case.points.astype(np.float64)
    if np.count_nonzero(points) < _FEW * points.size:
        around = np.pad(np.where(points > 0, points, np.inf), 1, constant_values=np.inf)
        nearest = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).min((2, 3))
        points = np.where(np.isfinite(nearest), nearest, 0)
    return [("points given", data_url(_paint_depth(points, None, low, high, table)))]


def _depth_range(depth: np.ndarray) -> tuple[float, float]:
    """Depths of the first and the last colour, one range for the prediction and the truth of a case."""
    if not len(depth):
        return 1.0, 10.0
    low, high = (float(value) for value in np.percentile(depth, [2, 98]))
    low = max(low, 1e-6)
    # A wall has one depth; a range around it keeps the logarithm and the legend meaningful.
    return (low, high) if high > 1.05 * low else (low / 1.1, max(high, low) * 1.1)


def _length(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".strip()


def _paint_depth(depth: np.ndarray, valid: np.ndarray | None, low: float, high: float, table: np.ndarray) -> bytes:
    """Colour by the logarithm of depth, near = last colour; what is not known is left to the page."""
    known = np.isfinite(depth) & (depth > 0)
    if valid is not None:
        known &= valid
    share = (math.log(high) - np.log(np.where(known, depth, 1))) / (math.log(high) - math.log(low))
    return _paint(share, known, table)


def _paint_error(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> bytes:
    known = valid & np.isfinite(prediction) & (truth > 0)
    relative = np.where(known, prediction, 1) / np.where(known, truth, 1) - 1
    return _paint((relative / _WORST_ERROR + 1) / 2, known, _error_table())


def _paint(share: np.ndarray, known: np.ndarray, table: np.ndarray) -> bytes:
    """A picture of shares between 0 and 1, where index 0 of the palette means that nothing is known."""
    indices = np.where(known, 1 + np.clip(share, 0, 1) * 254, 0).round().astype(np.uint8)
    return palette_png(indices, table, transparent=0)


def _error_table() -> np.ndarray:
    points = np.array([list(bytes.fromhex(colour)) for colour in _ERROR_COLOURS], dtype=np.float64)
    where = np.linspace(0, len(points) - 1, 256)
    channels = [np.interp(where, np.arange(len(points)), points[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _gradient(table: np.ndarray) -> str:
    stops = ", ".join(f"#{bytes(colour).hex()}" for colour in np.ascontiguousarray(table[:: len(table) // 12]))
    return f"linear-gradient(to right, {stops})"


def _legend(gradient: str, words: Sequence[str]) -> str:
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in words)
    return f'<div class="legend"><i style="background:{gradient}"></i><span>{spans}</span></div>'


def _colophon(evaluation: Evaluation) -> str:
    import distilldepth

    metadata = evaluation.metadata
    words = [f"distilldepth {distilldepth.__version__}"]
    for name, text in (("torch", "torch {}"), ("device", "on {}"), ("precision", "precision {}"), ("seconds", "{} s")):
        if (value := getattr(metadata, name)) not in (None, ""):
            words.append(text.format(value))
    command = metadata.command or "(called from Python)"
    return f"<h2>Command</h2><pre>{html.escape(command)}</pre><p class='quiet'>{html.escape(', '.join(words))}</p>"
