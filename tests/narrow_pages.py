"""What can be told of a page without a browser: that nothing on it is wider than a small screen of 390 pixels."""

from __future__ import annotations

import re
from html.parser import HTMLParser

SCREEN_PX, ROOT_PX, PADDING_PX = 390, 16, 32
_VOID = {"meta", "img", "br", "hr", "input", "link", "line", "rect", "polyline", "circle"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, set[str]]] = []
        self.loose: list[str] = []
        self.viewport = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        classes = set((values.get("class") or "").split())
        around = set().union(*(found for _, found in self.open), {tag for tag, _ in self.open})
        # Facts have two columns, the second of which is wrapped anywhere.
        if tag == "table" and "facts" not in classes and "wide" not in around:
            self.loose.append(f"table {values}")
        if tag == "img" and not {"wide", "figure"} & around:
            self.loose.append(f"img {values.get('alt')}")
        if tag == "svg" and ("width" in values or "viewbox" not in values):
            self.loose.append(f"svg {values}")
        self.viewport |= tag == "meta" and "width=device-width" in (values.get("content") or "")
        if tag not in _VOID:
            self.open.append((tag, classes))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop()[0] == tag, f"</{tag}> closes something else"


def check_narrow(page: str) -> None:
    """Fail if something on a page would make a small screen scroll sideways."""
    parser = _Page()
    parser.feed(page)
    assert parser.viewport
    assert not parser.loose
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style)
    assert re.search(r"pre \{[^}]*overflow-x: auto", style)
    assert re.search(r"svg \{[^}]*width: 100%", style)
    assert re.search(r"figure img \{[^}]*width: 100%", style) or "<figure" not in page
    assert "prefers-color-scheme: dark" in style
    for least in re.findall(r"minmax\(([^,]+)", style):
        assert least.startswith("min(") or float(least.removesuffix("rem")) * ROOT_PX <= SCREEN_PX - PADDING_PX
    for rule in re.findall(r"(?<![-\w])(?:min-)?width: ([\d.]+)rem", re.sub(r"@media \([^)]*\)", "", style)):
        assert float(rule) * ROOT_PX <= SCREEN_PX - PADDING_PX
