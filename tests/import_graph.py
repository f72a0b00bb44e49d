"""Which file imports which: `python -m tests.import_graph [FOLDER]` prints rooms, arrows and circles of a checkout.

A room is a package of `distilldepth`, or a module that stands alone. Imports count wherever they stand, in functions
too, and as text that names a module.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def source_files(checkout: Path) -> dict[str, Path]:
    """The files of the package by the name under which they are imported."""
    found = {}
    for path in sorted([*(checkout / "distilldepth").rglob("*.py"), *(checkout / "cli").rglob("*.py")]):
        parts = path.relative_to(checkout).with_suffix("").parts
        parts = ("distilldepth", *parts) if parts[0] == "cli" else parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def named_modules(source: str, package: str) -> set[str]:
    """What a file of `package` imports, absolute and dotted, names imported from a module included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"\A(distilldepth(?:\.\w+)+)(?::\w+)?\Z", node.value))
    return names


def file_graph(checkout: Path) -> Graph:
    """The files that each file imports. The package itself imports by name, at first use, and has no arrows."""
    files = source_files(checkout)
    graph: Graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = named_modules(path.read_text(encoding="utf-8"), package)
        # `from package import name` may name a module or something inside one.
        found = {module if module in files else module.rpartition(".")[0] for module in found}
        graph[name] = {module for module in found if module in files and module not in (name, "distilldepth")}
    graph["distilldepth"] = set()
    return graph


def room(module: str) -> str:
    """`distilldepth.ops.hybrid_norm` -> `ops`."""
    return module.split(".")[1] if "." in module else module


def room_graph(files: Graph) -> Graph:
    """The rooms that each room imports."""
    rooms: Graph = {}
    for name, imported in files.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in imported} - {room(name)})
    return rooms


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of two and more nodes each of which reaches the others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()]:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reach = {name: reached(name) for name in graph}
    found = {frozenset({name, *(o for o in reach[name] if name in reach[o])}) for name in graph if name in reach[name]}
    return sorted(sorted(circle) for circle in found)


def lines_of(checkout: Path) -> dict[str, int]:
    """Lines of code by room."""
    count: dict[str, int] = {}
    for name, path in source_files(checkout).items():
        count[room(name)] = count.get(room(name), 0) + len(path.read_text(encoding="utf-8").splitlines())
    return count


def report(checkout: Path) -> Iterator[str]:
    """The graph as text."""
    files = file_graph(checkout)
    rooms, lines = room_graph(files), lines_of(checkout)
    total = sum(lines.values())
    yield f"{len(files)} files, {total} lines, {len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows between rooms"
    for name in sorted(rooms):
        yield f"{name:14} {lines[name]:6} lines {lines[name] / total:5.1%}  -> {' '.join(sorted(rooms[name])) or '-'}"
    for what, graph in (("files", files), ("rooms", rooms)):
        found = circles(graph)
        yield f"circles of {what}: {len(found)}"
        yield from (f"    {' <-> '.join(circle)}" for circle in found)


if __name__ == "__main__":
    print("\n".join(report(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]))))
