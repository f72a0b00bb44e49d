"""`samples.html`: what a set of labels looks like, on one self-contained page."""

from __future__ import annotations

import html

import numpy as np

from distilldepth.formats.colormaps import colorize
from distilldepth.label.check import CheckReport, TeacherRanges
from distilldepth.pages import data_url, jpeg, make_page, png
from distilldepth.teachers.shards import LabelledRegion

_WINDOWS = 4
"""Windows of a sample that are shown."""
_SIDE = 280
"""Pixels of a picture's longer side, at most twice as many."""


def samples_page(report: CheckReport) -> str:
    """Return the page: what was found, and samples with their maps and windows."""
    labels = report.labels
    height, width = labels.size
    rows = "".join(_row(key, sample) for key, sample in report.pictured)
    faults = "".join(f'<p class="bad">{html.escape(fault)}</p>' for fault in report.faults)
    notes = "".join(f'<p class="quiet">{html.escape(note)}</p>' for note in report.notes)
    windows = f" with {labels.windows[0]} windows each" if labels.windows[0] else ""
    body = f"""<h1>Labels of {html.escape(", ".join(teacher.name for teacher in labels.teachers))}</h1>
<p>{report.samples} samples in {report.shards} shards, {report.size / 1e6:.1f} MB:
regions of {height} x {width}{windows}, {labels.views} of each of {labels.training} photographs,
and {labels.heldout} held-out photographs.
Images: {html.escape(labels.image_format)}, maps: {html.escape(labels.map_format)}.</p>
{faults or "<p>Every checksum, count and value is as it should be.</p>"}{notes}
<h2>Teachers</h2>
<div class="wide"><table><tr><th>teacher</th><th class="number">samples</th><th class="number">constant</th>
<th class="number">unknown</th><th>values</th><th>precision</th><th>licence</th><th>weights</th></tr>
{"".join(_teacher(ranges) for ranges in report.ranges)}</table></div>
<h2>Samples</h2>
<p class="quiet">The region, what the teacher says of it, and of its windows seen alone; near things are red. Each map
has colours of its own, black is unknown.</p>
<div class="wide"><table class="pictures">{rows}</table></div>"""
    return make_page(f"Labels: {report.folder.name}", body)


def _teacher(ranges: TeacherRanges) -> str:
    teacher = ranges.teacher
    values = f"{ranges.low:.4g} to {ranges.high:.4g}" if ranges.low <= ranges.high else "none"
    return (
        f'<tr><td>{html.escape(teacher.name)}</td><td class="number">{ranges.samples}</td>'
        f'<td class="number">{ranges.constant}</td><td class="number">{100 * ranges.unknown:.2f} %</td>'
        f"<td>{values}</td><td>{html.escape(teacher.precision)}</td><td>{html.escape(teacher.licence)}</td>"
        f"<td>{html.escape(teacher.digest[:16])}</td></tr>\n"
    )


def _row(key: str, sample: LabelledRegion) -> str:
    maps = [sample.disparity, *sample.windows[:_WINDOWS]]
    cells = [_picture(png(_small(colorize(values, "disparity"))), "png") for values in maps]
    if sample.image is not None:
        cells.insert(0, _picture(jpeg(_small(_with_boxes(sample.image, sample.boxes[:_WINDOWS]))), "jpeg"))
    else:
        cells.insert(0, '<td class="quiet">not stored</td>')
    name = sample.name.rpartition("/")[2]
    what = f'<span class="quiet" title="{html.escape(sample.name)}">{html.escape(name)}<br>{html.escape(key)}</span>'
    return f"<tr><th>{html.escape(sample.teacher)}<br>{what}</th>{''.join(cells)}</tr>\n"


def _small(picture: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that a page of large regions stays small."""
    step = max(1, max(picture.shape[:2]) // _SIDE)
    return np.ascontiguousarray(picture[::step, ::step])


def _picture(content: bytes, kind: str) -> str:
    return f'<td><img alt="" src="{data_url(content, kind)}"></td>'


def _with_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The region with the outlines of its windows."""
    drawn = image.copy()
    height, width = image.shape[:2]
    for x0, y0, x1, y1 in boxes.round().astype(int):
        left, right = max(0, min(x0, width - 1)), max(0, min(x1, width) - 1)
        top, bottom = max(0, min(y0, height - 1)), max(0, min(y1, height) - 1)
        drawn[[top, bottom], left : right + 1] = 255
        drawn[top : bottom + 1, [left, right]] = 255
    return drawn
