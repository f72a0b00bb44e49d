"""The look of the self-contained HTML pages: one style for light and dark, pictures as data URLs, charts as SVG."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from distilldepth.formats.png import png_texts

COLOURS = ("var(--line-1)", "var(--line-2)", "var(--line-3)", "var(--line-4)", "var(--line-5)", "var(--line-6)")
"""Of the lines of a chart, in order."""

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --quiet: #57606a; --rule: #d0d7de; --soft: #f6f8fa; --page: #ffffff;
  --warn: #9a6700; --bad: #b42318; --good: #1a7f37; --bar: #e4e8ed; --missing: #e9edf1;
  --line-1: #1f6feb; --line-2: #d1580b; --line-3: #1a7f37; --line-4: #8250df; --line-5: #bf3989; --line-6: #57606a }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --quiet: #9198a1; --rule: #3d444d; --soft: #161b22;
  --page: #0d1117; --warn: #d29922; --bad: #ff7b72; --good: #3fb950; --bar: #262c36; --missing: #21262d;
  --line-1: #58a6ff; --line-2: #f0883e; --line-3: #3fb950; --line-4: #bc8cff; --line-5: #f778ba; --line-6: #9198a1 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem }
p, h1, h2, h3, summary { overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
a { color: var(--line-1) }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--rule); text-align: left }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.charts .keys { font-size: 12px; margin: 0; display: flex; flex-wrap: wrap; gap: 0 .8rem }
.pictures img { display: block; width: 11rem; height: auto; background: var(--missing) }
.pictures td, .pictures th { border: 0; padding: .15rem }
.pictures th { max-width: 11rem; overflow-wrap: anywhere }
@media (max-width: 40rem) { body { margin: 1rem auto } .pictures img { width: 7rem } .pictures th { max-width: 7rem } }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: 13px }
.note { color: var(--warn); font-weight: 600 }
.bad { color: var(--bad); font-weight: 600 }
.quiet { color: var(--quiet); font-weight: 400 }
svg { display: block; width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet) }
svg .title { font-weight: 600; fill: var(--text) }
"""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 230, 48, 20, 30, 40


def make_page(title: str, body: str, *, style: str = "") -> str:
    """Return a whole document; `body` is HTML, `title` is text, `style` is added to what all pages share."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def data_url(content: bytes, kind: str = "png") -> str:
    """Return an image file as a URL that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png(picture: np.ndarray) -> bytes:
    """Return an uint8 `(H, W, 3)` picture as a PNG file."""
    return _encode(Image.fromarray(picture), "PNG", optimize=True, pnginfo=png_texts())


def jpeg(picture: np.ndarray) -> bytes:
    """Return an uint8 `(H, W, 3)` photograph as a JPEG file."""
    return _encode(Image.fromarray(picture), "JPEG", quality=85)


def palette_png(indices: np.ndarray, table: np.ndarray, transparent: int) -> bytes:
    """Return uint8 `(H, W)` indices into an uint8 `(256, 3)` table as a PNG file in which one index is not painted."""
    image = Image.fromarray(indices, mode="L")
    image.putpalette(np.ascontiguousarray(table).tobytes())
    return _encode(image, "PNG", optimize=True, transparency=transparent)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


@dataclass
class Chart:
    """Lines, and bars behind them, over one horizontal axis."""

    title: str
    x_ticks: Sequence[tuple[float, str]]
    """Places on the horizontal axis and what is written there; the axis goes from the first to the last."""
    y_ticks: Sequence[tuple[float, str]]
    """The same for the vertical axis."""
    x_label: str
    lines: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    """By name: x, y and what is said when the point is pointed at (empty = no point is drawn)."""
    bars: list[tuple[float, float, float, str]] = field(default_factory=list)
    """From x, to x, height between 0 and 1, and what is said when the bar is pointed at."""
    logarithmic: bool = False
    """Whether the horizontal axis is."""

    def to_svg(self) -> str:
        """Return the chart as an inline SVG element; what lies beyond an axis is drawn at its end."""
        title = html.escape(self.title)
        legend = "".join(
            f'<tspan style="fill:{colour}" dx="10">{html.escape(name)}</tspan>'
            for colour, name in zip(COLOURS, self.lines, strict=False)
            if len(self.lines) > 1
        )
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">',
            f'<text x="{_LEFT}" y="14"><tspan class="title">{title}</tspan>{legend}</text>',
        ]
        base = _HEIGHT - _BOTTOM
        for low, high, height, said in self.bars:
            left, right = self._x(low), self._x(high)
            top = base - (base - _TOP) * height
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
                f'height="{base - top:.1f}" style="fill:var(--bar)"><title>{html.escape(said)}</title></rect>'
            )
        for value, text in self.y_ticks:
            y = self._y(value)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:var(--rule)"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(text)}</text>'
            )
        for value, text in self.x_ticks:
            x = self._x(value)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}" style="stroke:var(--quiet)"/>'
                f'<text x="{x:.1f}" y="{base + 15}" text-anchor="middle">{html.escape(text)}</text>'
            )
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{html.escape(self.x_label)}</text>')
        for colour, points in zip(COLOURS, self.lines.values(), strict=False):
            where = [(self._x(x), self._y(y), said) for x, y, said in points if math.isfinite(x) and math.isfinite(y)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in where)
            parts.append(f'<polyline points="{path}" style="fill:none;stroke:{colour};stroke-width:1.6"/>')
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{colour}">'
                f"<title>{html.escape(said)}</title></circle>"
                for x, y, said in where
                if said
            ]
        return "".join([*parts, "</svg>"])

    def _x(self, value: float) -> float:
        first, last = self.x_ticks[0][0], self.x_ticks[-1][0]
        if self.logarithmic:
            value, first, last = math.log(max(value, first)), math.log(first), math.log(last)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * _share(value, first, last)

    def _y(self, value: float) -> float:
        share = _share(value, self.y_ticks[0][0], self.y_ticks[-1][0])
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share


def _share(value: float, first: float, last: float) -> float:
    return min(max((value - first) / ((last - first) or 1.0), 0.0), 1.0)


def nice_ticks(highest: float) -> list[tuple[float, str]]:
    """Return ticks from 0 to a round number at or above `highest`.

    >>> nice_ticks(0.33)
    [(0.0, '0'), (0.1, '0.1'), (0.2, '0.2'), (0.3, '0.3'), (0.4, '0.4')]
    """
    if not highest > 0:
        return [(0.0, "0"), (1.0, "1")]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5) if power * factor * 5 >= highest)
    count = math.ceil(highest / step - 1e-9)
    return [(round(index * step, 12), f"{round(index * step, 12):g}") for index in range(count + 1)]


def depth_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return logarithmic ticks of round numbers around a range of depth.

    >>> [text for _, text in depth_ticks(0.4, 9)]
    ['0.2', '0.5', '1', '2', '5', '10']
    """
    steps = [mantissa * 10.0**power for power in range(-6, 8) for mantissa in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    chosen = [step for step in steps if first <= step <= last]
    if len(chosen) > 9:
        inner = [step for step in chosen[1:-1] if f"{step:.0e}".startswith("1")]
        chosen = [chosen[0], *inner, chosen[-1]]
    return [(step, f"{step:g}") for step in chosen]
