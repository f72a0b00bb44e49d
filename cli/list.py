"""`distilldepth list`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from distilldepth.cli import options
from distilldepth.cli.table import Column, available_width, format_table
from distilldepth.models import inventory

KINDS = ("teachers", "students", "models", "datasets", "protocols", "presets", "kernels")
_MODELS = {"teachers": "teacher", "students": "student", "models": None}
"""Listings of models, and the role of those in each."""


@click.command("list")
@click.argument("kind", type=options.NearestChoice(KINDS), metavar="|".join(KINDS))
@click.option(
    "--macs",
    is_flag=True,
    help="Of models: count the multiply-accumulates for one image at the model's own size, attention included, and as "
    "thop counts, whose numbers papers print as FLOPs. Takes seconds, needs no weights.",
)
@options.json_option
def list_(kind: str, macs: bool, json_file: str | None) -> None:
    """Show teachers, students, models, datasets, protocols, presets or kernels.

    \b
    distilldepth list teachers
    distilldepth list models            (teachers and students)
    distilldepth list models --macs
    distilldepth list presets --json -
    """
    options.check_json_target(json_file)
    if macs and kind not in _MODELS:
        raise click.UsageError(f"--macs is for {', '.join(_MODELS)}, got {kind}")
    headings, rows = _models(_MODELS[kind], macs) if kind in _MODELS else _LISTINGS[kind]()
    options.write_json(rows, json_file)
    if json_file == "-":
        return

    columns = [_column(heading) for heading in headings]
    cells = [[_cell(heading, row) for heading in headings] for row in rows]
    first, *lines = format_table(columns, cells, available_width())
    click.secho(first, bold=True)
    click.echo("\n".join(lines))


_TITLES = {
    "on_this_machine": "here",
    "samples": "frames",
    "macs": "GMACs",
    "macs_thop": "GMACs (thop)",
    "macs_size": "at",
}
_NUMBERS = ("parameters", "samples", "steps", "macs", "macs_thop", "macs_size")


def _column(heading: str) -> Column:
    title = _TITLES.get(heading, heading.replace("_", " "))
    # Licences and lists of words wrap well; sentences want room.
    least = 14 if heading in ("licence", "parts", "also") else 28 if heading in ("what", "summary") else 24
    return Column(title, right=heading in _NUMBERS, least=least)


def _cell(heading: str, row: dict[str, Any]) -> str:
    value = row[heading]
    if value is None:
        return ""
    if heading == "parameters":
        return f"{value / 1e6:.{3 if row.get('macs') else 1}f} M"
    if heading in ("macs", "macs_thop"):
        return f"{value / 1e9:.2f}"
    if heading == "macs_size":
        return f"{value[0]}x{value[1]}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _models(role: str | None, macs: bool) -> tuple[list[str], list[dict[str, Any]]]:
    from distilldepth.models import registry

    rows = []
    counts = ("macs", "macs_thop", "macs_size") if macs else ()
    for described in inventory.describe(role, macs=macs):
        aliases = sorted(alias for alias, name in registry.ALIASES.items() if name == described["name"])
        if registry.FAMILIES[described["family"]].samples:
            aliases.append(f"{described['name']}:STEPSxMEMBERS")
        rows.append(
            {
                "name": described["name"],
                "also": ", ".join(aliases),
                "family": described["family"],
                "role": described["role"],
                "parameters": described["parameters"],
                **{count: described[count] for count in counts},
                "quantity": described["quantity"],
                "licence": described["licence"],
                "source": described["source"],
                "on_this_machine": described["at_hand"],
                "path": described["path"],
            }
        )
    if role == "teacher":
        oracle: dict[str, Any] = {
            "name": "oracle",
            "also": "",
            "family": "renderer",
            "role": "teacher",
            "parameters": 0,
            **dict.fromkeys(counts),
            "quantity": "metric_depth",
            "licence": "Apache-2.0",
            "source": "ground truth of --images scenes",
            "on_this_machine": True,
            "path": None,
        }
        own = oracle | {
            "name": registry.PYTHON_FORM,
            "family": "python",
            "parameters": None,
            "quantity": "as it declares",
            "licence": "yours",
            "source": "a callable of your own, or path/to/file.py:function; see docs/own-teacher.md",
        }
        rows[:0] = [oracle, own]
    roles = ["role"] if role is None else []
    headings = ["name", "quantity", "parameters", *counts, *roles, "on_this_machine", "licence", "also", "source"]
    return [*headings, "family"], rows


def _datasets() -> tuple[list[str], list[dict[str, Any]]]:
    from distilldepth.datasets.catalogue import BENCHMARKS
    from distilldepth.images.sources import SCENES

    rows = []
    for benchmark in BENCHMARKS.values():
        (_, count), *parts = benchmark.counts.items()
        rows.append(
            {
                "data": benchmark.name,
                "what": benchmark.title,
                "samples": count,
                "parts": ", ".join(f":{part}" + (f" {number}" if number else "") for part, number in parts),
                "list": " or ".join(benchmark.splits),
                "licence": benchmark.licence,
                "source": benchmark.source,
                "layouts": list(benchmark.layouts),
            }
        )
    own = (
        ("scenes[:N]", "procedural scenes with exact depth, seeds that training never uses; N = 200", "rendered here"),
        ("stereo-scenes[:N]", "the same of roads, as pairs of views of two fixed cameras", "rendered here"),
        ("FILE.jsonl", "manifest: one RGB-D or stereo pair per line (image, depth, kind, scale, ...)", "your files"),
        ("FILE.txt|csv", "list: an image and its depth on each line", "your files"),
        ("FOLDER", "manifests; images/ or rgb/, and depth/ with files of the same name; TUM RGB-D", "your files"),
    )
    for data, what, source in own:
        licence = "Apache-2.0" if data.partition("[")[0] in SCENES else "yours"
        rows.append(
            {
                "data": data,
                "what": what,
                "samples": None,
                "parts": "",
                "list": "",
                "licence": licence,
                "source": source,
                "layouts": [],
            }
        )
    return ["data", "samples", "what", "licence", "parts", "list", "source"], rows


def _protocols() -> tuple[list[str], list[dict[str, Any]]]:
    from distilldepth.evaluate.protocol import PROTOCOLS

    rows = [protocol.to_dict() for protocol in PROTOCOLS.values()]
    return ["name", "align", "space", "summary"], rows


def _presets() -> tuple[list[str], list[dict[str, Any]]]:
    import importlib.resources

    from distilldepth.distill.config import preset_names, read_preset

    rows = []
    for name in preset_names():
        values = read_preset(name)
        path = importlib.resources.files("distilldepth.distill") / "presets" / f"{name}.toml"
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append(
            {
                "name": name,
                "what": first.removeprefix("#").strip(),
                "teachers": values.get("teachers"),
                "student": values.get("student"),
                "steps": values.get("steps"),
                "size": values.get("size"),
            }
        )
    return ["name", "what", "student", "steps", "size", "teachers"], rows


def _kernels() -> tuple[list[str], list[dict[str, Any]]]:
    from distilldepth.cli.doctor import has_cuda, kernel_rows

    return ["name", "cpu", *(["cuda"] if has_cuda() else []), "what", "why"], kernel_rows()


_LISTINGS: dict[str, Callable[[], tuple[list[str], list[dict[str, Any]]]]] = {
    "datasets": _datasets,
    "protocols": _protocols,
    "presets": _presets,
    "kernels": _kernels,
}
