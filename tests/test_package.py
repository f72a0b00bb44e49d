"""The package as a whole: which part may import which, what importing costs, what is installed."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from import_graph import circles, file_graph, named_modules, room, room_graph
from packaging.requirements import Requirement

import distilldepth
from distilldepth.cli.main import cli
from distilldepth.documents import read_toml

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "distilldepth"
CLI = REPOSITORY / "cli"

LAYERS = (
    {"words"},
    {"errors", "signals", "depth", "lazy"},
    {"files", "documents", "settings", "machine", "capacity", "reference", "kernels"},
    {"folders", "device", "native"},
    {"ops"},
    {"losses", "metrics", "alignment", "formats", "bench"},
    {"pages", "scenes", "sparse"},
    {"images"},
    {"datasets"},
    {"models"},
    {"inference", "teachers"},
    {"outputs"},
    {"completion", "distill", "evaluate", "label", "predict"},
    {"cli"},
    {"__main__"},
)
"""Each room of the house may import the rooms of the layers before its own, and no other room of its own layer."""


def part_of(path: Path) -> str:
    """`distilldepth/ops/hybrid_norm.py` -> `ops`, `cli/main.py` -> `cli`."""
    if path.is_relative_to(CLI):
        return "cli"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *CLI.rglob("*.py")])


def package_name(folder: Path) -> str:
    return ".".join(["distilldepth", *(["cli"] if folder == CLI else folder.relative_to(PACKAGE).parts)])


def run_python(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return read_toml(REPOSITORY / "pyproject.toml")


def test_rooms_import_what_lies_below_them_only():
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    files = file_graph(REPOSITORY)
    # Earlier versions had the objectives among the losses; the package still offers them, by name and at first use.
    files["distilldepth.losses"] = {name for name in files["distilldepth.losses"] if room(name) != "distill"}
    rooms = room_graph(files)
    assert rooms.keys() - {"distilldepth"} == level.keys(), "give every room a place in LAYERS"
    wrong = [
        f"{name} imports {other}"
        for name, others in rooms.items()
        for other in sorted(others)
        if level[other] >= level[name]
    ]
    assert not wrong, wrong


def test_no_circle_of_files_imports_itself():
    assert circles(file_graph(REPOSITORY)) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"g", "a"}, "g": {"f"}}
    assert circles(graph) == [["a", "b", "c"], ["f", "g"]]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import distilldepth.losses.pixel", {"distilldepth.losses.pixel"}),
        ("def f():\n    from distilldepth import metrics as m, ops", {"distilldepth.metrics", "distilldepth.ops"}),
        ("from distilldepth.ops import hybrid_norm_loss", {"distilldepth.ops.hybrid_norm_loss"}),
        ("from ..losses import pixel", {"distilldepth.losses.pixel"}),
        ("from .. import cli", {"distilldepth.cli"}),
        ("from . import base", {"distilldepth.models.base"}),
        ("_NAMES = {'run': 'distilldepth.cli.main:main'}", {"distilldepth.cli.main"}),
        ("'''Prose about distilldepth.losses.'''\nimport torch", {"torch"}),
    ],
)
def test_imports_are_found_in_every_form(source, found):
    assert named_modules(source, "distilldepth.models") == found


DRAWINGS = {"corridor", "desk", "room", "pile", "street", "terrain"}
"""Layouts of scenes: long lists of what stands where."""


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def test_functions_fit_on_a_screen():
    long = []
    for path, node in functions():
        lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
        if lines > 62 and not (part_of(path) == "scenes" and node.name in DRAWINGS):
            long.append(f"{path.relative_to(REPOSITORY)}: {node.name} has {lines} lines")
    assert not long, long


def test_public_functions_take_eight_arguments_at_most():
    # Kernels take what the schema of their operation says, commands what can be typed, brushes of scenes colours.
    wide = []
    for path, node in functions():
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > 8 and not node.name.startswith("_") and part_of(path) not in ("kernels", "cli", "scenes"):
            wide.append(f"{path.relative_to(REPOSITORY)}: {node.name} takes {count}")
    assert not wide, wide


def test_triton_is_imported_in_kernels_only():
    for path in sources():
        if part_of(path) == "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "triton" for name in names), path


def test_the_examples_in_docstrings_hold():
    tried = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if part_of(path) == "kernels":  # Triton's names are there on GPU machines and in the interpreter only.
            continue
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        found = doctest.testmod(importlib.import_module(name))
        assert found.failed == 0, name
        tried += found.attempted
    assert tried > 80


def test_no_catch_all_files():
    for path in [REPOSITORY / "benchmarks", REPOSITORY / "tests", PACKAGE, CLI]:
        for file in path.rglob("*"):
            assert not re.fullmatch(r"(utils?|misc|tmp|helpers?|common)(\.\w+)?", file.name), file


@pytest.mark.parametrize(
    "statement", ["import distilldepth", "import distilldepth.cli.main", "import distilldepth.errors"]
)
def test_import_is_cheap(statement, tmp_path):
    heavy = "{'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'accelerate', 'triton', 'huggingface_hub'}"
    done = run_python(f"{statement}, sys\nfound = {heavy} & set(sys.modules)\nassert not found, found", tmp_path)
    assert done.returncode == 0, done.stderr


def test_jobs_do_not_import_the_compiler_of_torch(tmp_path):
    jobs = "distilldepth.predict.run, distilldepth.evaluate.run, distilldepth.distill.trainer"
    done = run_python(f"import sys, distilldepth.ops, {jobs}\nassert 'torch._dynamo' not in sys.modules", tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_package_is_the_command(tmp_path):
    for words, start in (("--version", "distilldepth 0."), ("predict --help", "Usage: distilldepth predict ")):
        command = [sys.executable, "-m", "distilldepth", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(start)


def test_help_needs_no_torch(tmp_path):
    # An entry of None makes every import of that name fail.
    code = "import sys\nsys.modules['torch'] = None\nsys.argv = ['distilldepth', '--help']\n"
    done = run_python(code + "import runpy\nrunpy.run_module('distilldepth.cli.main', run_name='__main__')", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_import_opens_no_connection(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import distilldepth\n"
        "for name in distilldepth.__all__: getattr(distilldepth, name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", distilldepth.__all__)
def test_every_exported_name_resolves(name):
    value = getattr(distilldepth, name)
    for inner in getattr(value, "__all__", ()):
        assert getattr(value, inner) is not None, f"{name}.{inner}"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="lod_model"):
        distilldepth.lod_model  # noqa: B018


def test_every_package_folder_is_installed(pyproject):
    settings = pyproject["tool"]["setuptools"]
    folders = {path.parent for path in sources()}
    # csrc is there as data: the sources of the native libraries.
    assert {package_name(folder) for folder in folders} | {"distilldepth.csrc"} == set(settings["packages"])
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_only_distilldepth_is_installed_at_the_top(pyproject):
    settings = pyproject["tool"]["setuptools"]
    assert {name.split(".")[0] for name in settings["packages"]} == {"distilldepth"}
    assert settings["package-dir"]["distilldepth.cli"] == "cli"
    module, _, function = pyproject["project"]["scripts"]["distilldepth"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_is_said_once(pyproject):
    project = pyproject["project"]
    assert "version" in project.get("dynamic", ()) or project["version"] == distilldepth.__version__


def test_constraints_pin_every_direct_dependency(pyproject):
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    extras = pyproject["project"]["optional-dependencies"].values()
    needed = [*pyproject["project"]["dependencies"], *(line for extra in extras for line in extra)]
    # The package itself stands for the other extras that an extra takes in.
    needed = [line for line in needed if Requirement(line).name != "distilldepth"]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        environment = {"python_version": python, "sys_platform": "linux", "extra": ""}
        here = {}
        for pin in pins:
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not an exact version that pip finds"
            if pin.marker is None or pin.marker.evaluate(environment):
                assert pin.name not in here, f"{pin.name} is pinned twice for Python {python}"
                here[pin.name.lower().replace("_", "-")] = pin.specifier
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                pin = here[requirement.name.lower().replace("_", "-")]
                version = str(pin).removeprefix("==")
                assert requirement.specifier.contains(version), f"{requirement} excludes {version} on Python {python}"


def public_functions() -> list[tuple[str, object]]:
    """What `distilldepth` and its parts offer by name, and the public methods of `DepthModel`."""
    found = [(name, getattr(distilldepth, name)) for name in distilldepth._NAMES]
    for part in distilldepth._SUBMODULES:
        module = getattr(distilldepth, part)
        found += [(f"{part}.{name}", getattr(module, name)) for name in getattr(module, "__all__", ())]
    model = distilldepth.DepthModel
    found += [(f"DepthModel.{name}", value) for name, value in vars(model).items() if not name.startswith("_")]
    return [(name, value) for name, value in found if callable(value) or isinstance(value, property)]


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*found, id=found[0]) for found in public_functions()])
def test_public_names_say_what_goes_in_and_what_comes_out(name, thing):
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 10, name
    if not inspect.isfunction(thing) or re.search(r"see there for arguments", text):
        return
    signature = inspect.signature(thing)
    parameters = [key for key in signature.parameters if key != "self"]
    if len(parameters) > 1:
        described = text.partition("Args:")[2]
        assert all(re.search(rf"\b{key}\b", described) for key in parameters), f"{name}: {parameters}"
    if signature.return_annotation not in (None, "None"):
        assert "Returns:" in text or re.match(r"Return|Build|Make|Mean|Names", text), name


def test_the_forward_pass_of_every_model_is_described():
    for part in ("Args:", "(B, 3, H, W)", "[0, 1]", "Returns:", "(B, H, W)", "metres", "Raises:", "Gradient:", ">>>"):
        assert part in inspect.getdoc(distilldepth.DepthModel.forward)


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_package_index_shows_every_picture_and_link_of_the_readme():
    # What the index shows is this text alone: an address must be whole, or point to a heading.
    addresses = re.findall(r"\]\(\s*<?([^)\s>]+)", README)
    addresses += re.findall(r"^\s*\[[^\]]+\]:\s*(\S+)", README, re.MULTILINE)
    addresses += re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", README)
    assert addresses
    relative = [address for address in addresses if not re.match(r"https://|mailto:|#", address)]
    assert not relative
    own = "https://raw.githubusercontent.com/distilldepth/distilldepth/main/"
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", README)
    assert pictures
    for picture in pictures:
        assert picture.startswith(own)
        assert (REPOSITORY / picture.removeprefix(own)).is_file(), picture


def test_the_index_knows_where_the_project_lives(pyproject):
    urls = pyproject["project"]["urls"]
    assert {"Homepage", "Source", "Issues", "Documentation"} <= urls.keys()
    assert all(url.startswith("https://github.com/distilldepth/distilldepth") for url in urls.values())


def test_every_command_line_of_the_readme_has_options_that_exist():
    lines = re.findall(r"^    (?:\.venv/bin/)?(distilldepth (?:.*\\\n)*.*)$", README, re.MULTILINE)
    assert len(lines) >= 9
    for line in lines:
        _, name, *words = shlex.split(line.replace("\\\n", " ").partition("  #")[0])
        command = cli.get_command(click.Context(cli), name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, line


def test_the_readme_opens_with_three_users_and_says_how_big_torch_is_before_installing():
    opening = README.partition("## Two commands")[0]
    first, second, third = re.findall(r"^    distilldepth (\w+)", opening, re.MULTILINE)
    assert (first, second, third) == ("predict", "distill", "evaluate")
    assert README.index("several gigabytes") < README.index("make demo    #")
    assert "https://download.pytorch.org/whl/cpu" in README
