"""`report.html`: one self-contained page with curves, pictures before and after, and how to repeat the run."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from distilldepth.distill.agreement import replaced_note
from distilldepth.distill.record.result import RunFacts
from distilldepth.distill.record.state import AgreementRow, MetricsRow
from distilldepth.documents import read_json_lines
from distilldepth.files import write_atomically
from distilldepth.formats.colormaps import colorize
from distilldepth.pages import COLOURS, data_url, make_page, png

_POINTS = 1000
"""Of a line of a chart, at most: a page of a million steps is still a page."""


def write_report(folder: Path, facts: RunFacts) -> Path:
    """Write `report.html` and the sample pictures of a run folder from its `metrics.jsonl` and held-out maps.

    Returns:
        The path of the page.
    """
    rows = read_metrics(folder)
    teachers = [teacher.name for teacher in facts.teachers]
    pictures = _pictures(folder / "samples", teachers)
    path = folder / "report.html"
    write_atomically(path, _page(facts, rows, pictures))
    return path


def read_metrics(folder: Path) -> list[MetricsRow]:
    """Return the lines of a run folder's `metrics.jsonl`, oldest first, as far as they are what was written."""
    path = folder / "metrics.jsonl"
    return [row for row in read_json_lines(path) if _is_row(row)] if path.is_file() else []


def _is_row(row: Mapping[str, object]) -> TypeGuard[MetricsRow]:
    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def is_table(value: object) -> bool:
        return isinstance(value, dict) and all(map(is_number, value.values()))

    numbers = ("step", "loss", "lr", "output_center", "output_spread", "output_peak")
    tables = [row.get("terms"), row.get("time"), row.get("teachers", {}), row.get("rates", {})]
    # What earlier versions did not write may be missing.
    return (
        all(is_number(row.get(name)) for name in numbers)
        and all(map(is_table, tables))
        and all(is_number(row.get(name, 0)) for name in ("samples", "memory", "images_per_second", "grad_norm"))
    )


def _page(facts: RunFacts, rows: list[MetricsRow], pictures: str) -> str:
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for teacher in facts.teachers for note in teacher.notes)
    teachers = ", ".join(teacher.name for teacher in facts.teachers)
    body = f"""<h1>{html.escape(facts.student)}, distilled from {html.escape(teachers)}</h1>
{_findings(facts)}{notes}
<p>{facts.parameters / 1e6:.2f} M parameters,
{facts.steps} steps of {facts.batch_size} images at {facts.size},
{facts.seconds / 60:.1f} minutes. Images: {html.escape(facts.images)}.
{facts.skipped_samples} samples skipped as not finite,
unreadable images replaced {facts.unreadable_images} times.</p>
{"".join(f"<p>Changed on the way, {html.escape(change)}.</p>" for change in facts.changes)}
<h2>Agreement on held-out images</h2>
{_agreement(facts)}
<div class="charts">{_curve(facts.agreement)}</div>
<h2>Held-out images before and after</h2>
{pictures}
<h2>Training</h2>
<div class="charts">{_charts(facts, rows)}</div>
<h2>Teachers</h2>
{_teachers(facts, rows)}
<h2>Optimiser</h2>
{_groups(facts)}
<h2>Command and configuration</h2>
<pre>{html.escape(facts.command or "(called from Python)")}</pre>
<pre>{html.escape(facts.config)}</pre>
<p>distilldepth {facts.distilldepth}, torch {html.escape(facts.torch)}</p>"""
    return make_page(f"{facts.student} distilled", body)


def _findings(facts: RunFacts) -> str:
    return "".join(
        f'<p class="bad">{html.escape(finding.problem)}: {html.escape(finding.advice)}.</p>'
        for finding in facts.findings
    )


def _curve(rows: list[AgreementRow]) -> str:
    """The agreement with each teacher in the course of the run."""
    if len(rows) < 2:
        return ""
    steps = [row["step"] for row in rows]
    names = list(rows[-1]["teachers"])
    charts = []
    for score, title in (("correlation", "correlation with each teacher"), ("ssi_error", "SSI error to each teacher")):
        lines = {name: [row["teachers"].get(name, {}).get(score) for row in rows] for name in names}
        charts.append(_chart(f"{title}, held-out images", steps, lines))
    return "".join(charts)


def _agreement(facts: RunFacts) -> str:
    before, after = facts.before, facts.after
    if not after.get("images"):
        return "<p>No images were held out.</p>"
    rows = []
    for name, scores in after["teachers"].items():
        first = before["teachers"][name]
        rows.append((name, "correlation (1 is best)", first["correlation"], scores["correlation"]))
        rows.append((name, "SSI error (0 is best)", first["ssi_error"], scores["ssi_error"]))
    if "depth" in after:
        rows.append(("true depth", "AbsRel (0 is best)", before["depth"]["abs_rel"], after["depth"]["abs_rel"]))
        rows.append(("true depth", "delta1 (1 is best)", before["depth"]["delta1"], after["depth"]["delta1"]))
    body = "".join(
        f'<tr><td>{html.escape(against)}</td><td>{what}</td><td class="number">{first:.3f}</td>'
        f'<td class="number">{last:.3f}</td></tr>'
        for against, what, first, last in rows
    )
    against = f"{after['images']} images{replaced_note(after)} against"
    head = f"<tr><th>{against}</th><th>measure</th><th>before</th><th>after</th></tr>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _teachers(facts: RunFacts, rows: list[MetricsRow]) -> str:
    """The teachers, and how much of the run each of them taught."""
    steps, samples = _taught(rows, "steps"), _taught(rows, "samples")
    weights = sum(teacher.weight for teacher in facts.teachers)

    def share(parts: dict[str, float], name: str) -> str:
        whole = sum(parts.values())
        return f"{parts.get(name, 0) / whole:.1%}" if whole else ""

    body = "".join(
        f"<tr><td>{html.escape(t.name)}</td><td class='number'>{t.weight:g}</td>"
        f"<td class='number'>{t.weight / weights:.1%}</td><td class='number'>{share(steps, t.name)}</td>"
        f"<td class='number'>{samples.get(t.name, 0):,.0f}</td><td class='number'>{share(samples, t.name)}</td>"
        f"<td>{t.quantity}</td><td>{html.escape(t.licence)}</td><td>{html.escape(t.source)}</td></tr>"
        for t in facts.teachers
    )
    head = (
        "<tr><th>name</th><th class='number'>weight</th><th class='number'>asked</th><th class='number'>of steps</th>"
        "<th class='number'>samples</th><th class='number'>of samples</th>"
        "<th>quantity</th><th>licence</th><th>source</th></tr>"
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _taught(rows: list[MetricsRow], what: str) -> dict[str, float]:
    """Steps or samples by teacher; a batch of every teacher has equally many samples."""
    taught: dict[str, float] = {}
    for row in rows:
        drawn = row.get("teachers", {})
        each = row.get("samples", 0) / (sum(drawn.values()) or 1) if what == "samples" else 1
        for name, count in drawn.items():
            taught[name] = taught.get(name, 0) + count * each
    return taught


def _groups(facts: RunFacts) -> str:
    """The groups of parameters that the optimiser treats alike."""
    body = "".join(
        f"<tr><td>{group.part}</td><td>{group.rule}</td><td class='number'>{group.lr:g}</td>"
        f"<td class='number'>{group.weight_decay:g}</td><td class='number'>{group.tensors:,}</td>"
        f"<td class='number'>{group.parameters:,}</td></tr>"
        for group in facts.groups
    )
    head = (
        "<tr><th>part</th><th>rule</th><th class='number'>largest learning rate</th><th class='number'>decay</th>"
        "<th class='number'>tensors</th><th class='number'>parameters</th></tr>"
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _charts(facts: RunFacts, rows: list[MetricsRow]) -> str:
    if not rows:
        return "<p>metrics.jsonl has no lines.</p>"
    # Counted from the end, so that the last line is there.
    stride = -(-len(rows) // _POINTS)
    samples = _running_samples(rows)[::-stride][::-1]
    rows = rows[::-stride][::-1]
    steps = [row["step"] for row in rows]
    charts = [_chart("loss, weighted sum", steps, {"loss": [row["loss"] for row in rows]})]
    for term in sorted({name for row in rows for name in row["terms"]}):
        charts.append(_chart(f"{term}, unweighted", steps, {term: [row["terms"].get(term) for row in rows]}))
    magnitude = {
        "center": [row["output_center"] for row in rows],
        "spread": [row["output_spread"] for row in rows],
        "peak": [row["output_peak"] for row in rows],
    }
    charts.append(_chart("student's output", steps, magnitude))
    charts.append(_chart("gradient norm", steps, {"norm": [row.get("grad_norm") for row in rows]}))
    parts = sorted({part for row in rows for part in row.get("rates", {})}, reverse=True)
    lines: dict[str, list[float | None]] = {part: [row.get("rates", {}).get(part) for row in rows] for part in parts}
    if len({tuple(line) for line in lines.values()}) < 2:
        # Of one line over the other only one would be seen.
        lines = {"lr": [row["lr"] for row in rows]}
    charts.append(_chart("learning rate", steps, lines))
    names = dict.fromkeys([*(teacher.name for teacher in facts.teachers), *(name for part in samples for name in part)])
    charts.append(_chart("samples of each teacher", steps, {name: [p.get(name, 0) for p in samples] for name in names}))
    phases = dict.fromkeys(phase for row in rows for phase in row["time"])
    charts.append(_chart("time shares", steps, {phase: [row["time"].get(phase) for row in rows] for phase in phases}))
    charts.append(_chart("images per second", steps, {"speed": [row.get("images_per_second") for row in rows]}))
    memory = [row["memory"] / 2**30 if row.get("memory") else None for row in rows]
    charts.append(_chart("peak memory of a process, GiB", steps, {"memory": memory}, from_zero=True))
    return "".join(charts)


def _running_samples(rows: list[MetricsRow]) -> list[dict[str, float]]:
    """Samples that each teacher has labelled up to every line."""
    total: dict[str, float] = {}
    running = []
    for row in rows:
        for name, count in _taught([row], "samples").items():
            total[name] = total.get(name, 0) + count
        running.append(dict(total))
    return running


def _chart(
    title: str, steps: Sequence[int], series: Mapping[str, Sequence[float | None]], *, from_zero: bool = False
) -> str:
    """A line chart as SVG, the names of several lines below it; values missing or not finite leave a gap."""
    width, height, left, bottom, top = 420, 220, 66, 24, 28
    values = [v for line in series.values() for v in line if v is not None and np.isfinite(v)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if low >= 0 and (from_zero or low < 0.5 * high):
        low = 0.0
    span = (high - low) or 1.0
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def place(step: int, value: float) -> str:
        x = left + (width - left - 8) * (step - first) / (last - first)
        return f"{x:.1f},{height - bottom - (height - bottom - top) * (value - low) / span:.1f}"

    lines, legend = [], []
    for colour, (name, line) in zip(itertools.cycle(COLOURS), series.items(), strict=False):
        points = [place(s, v) for s, v in zip(steps, line, strict=True) if v is not None and np.isfinite(v)]
        # A short run has one point: drawn twice, its round cap is a dot.
        points, width_px = (points * 2, 6) if len(points) == 1 else (points, 1.6)
        style = f"fill:none;stroke:{colour};stroke-width:{width_px};stroke-linecap:round"
        lines.append(f'<polyline style="{style}" points="{" ".join(points)}"/>')
        if len(series) > 1:
            legend.append(f'<span style="color:{colour}">{html.escape(name)}</span>')
    grid = "".join(
        f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:var(--rule)"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{low + span * part:.3g}</text>'
        for part in (0, 0.5, 1)
        for y in [height - bottom - (height - bottom - top) * part]
    )
    # Names of teachers may be long: as text of the page they are wrapped.
    keys = f'<p class="keys">{"".join(legend)}</p>' if legend else ""
    return (
        f'<div><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f'<text x="{left}" y="14"><tspan class="title">{html.escape(title)}</tspan></text>'
        f'{grid}<text x="{left}" y="{height - 6}">{first}</text>'
        f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">{steps[-1]} steps</text>'
        f"{''.join(lines)}</svg>{keys}</div>"
    )


def _pictures(samples: Path, teachers: list[str]) -> str:
    """Write one PNG per held-out image (image, teachers, student before, after) and return them as an HTML table.

    A map that is gone or is not what was written is left out.
    """
    if not (samples / "after" / "image.npy").is_file():
        return "<p>No images were held out.</p>"

    images = np.load(samples / "after" / "image.npy")
    columns: dict[str, list[np.ndarray]] = {"image": list(images)}

    def add(title: str, when: str, name: str) -> bool:
        path = samples / when / f"{name.replace('/', '_')}.npy"
        try:
            # Mapped, so that a damaged header asks for no memory.
            maps = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        if maps.shape != images.shape[:3] or maps.dtype != np.float32:
            return False
        columns[title] = [colorize(np.array(values), "disparity") for values in maps]
        return True

    for name in teachers:
        add(name, "after", name)
    has_before = add("student before", "before", "student")
    add("student after", "after", "student")
    table = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in columns) + "</tr>"
    for index in range(len(images)):
        row = [column[index] for column in columns.values()]
        write_atomically(samples / f"heldout-{index}.png", png(np.concatenate(row, axis=1)))
        cells = "".join(
            f'<td><img alt="{html.escape(name)} {index}" src="{data_url(png(picture))}"></td>'
            for name, picture in zip(columns, row, strict=True)
        )
        table += f"<tr>{cells}</tr>"
    legend = "<p>Near is red, far is blue; each map has its own range.</p>"
    if not has_before:
        legend += "<p>The maps from before the training were not there any more.</p>"
    return f'<div class="wide pictures"><table>{table}</table></div>{legend}'
