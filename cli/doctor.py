"""`distilldepth doctor`: what this machine can run, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import click

from distilldepth.cli import options

KERNELS = {
    "hybrid-norm": "hybrid depth normalisation loss",
    "crop-ssi": "local-global loss on crops of the student's map",
    "channel-kl": "channel-wise distillation",
    "backproject": "depth to points",
}
NATIVE = {"cpu": "CPU", "cuda": "CUDA"}


@click.command()
@click.option(
    "--build",
    is_flag=False,
    flag_value="all",
    default=None,
    type=options.NearestChoice(("all", "cpu", "cuda")),
    metavar="[all|cpu|cuda]",
    help="First compile the native libraries that are missing. all, the default: the CPU library, and the CUDA library "
    "if nvcc is there.",
)
@options.json_option
def doctor(build: str | None, json_file: str | None) -> None:
    """Show what this machine can run, and why.

    Looks only: nothing is downloaded, compiled or changed, except that --build compiles the native libraries into the
    cache folder. Exit code 1 if that fails, or if something that every command needs is broken.

    \b
    distilldepth doctor
    distilldepth doctor --build
    """
    options.check_json_target(json_file)
    failures = build_libraries(build) if build is not None else []
    facts, problems = examine()
    problems = failures + problems
    options.write_json({**facts, "problems": problems}, json_file)
    if json_file != "-":
        _print(facts)
    for problem in problems:
        click.echo(f"distilldepth: error: {problem}", err=True)
    if problems:
        click.get_current_context().exit(1)


def build_libraries(which: str) -> list[str]:
    """Compile `cpu`, `cuda` or `all`; return what failed.

    A library that cannot be compiled here at all, for want of a compiler say, is no failure unless it was asked for by
    name or DISTILLDEPTH_BUILD=1 insists on the CPU library.
    """
    from distilldepth import native
    from distilldepth.errors import DistillDepthError

    failures = []
    for kind in native.KINDS if which == "all" else (which,):
        obstacle = native.obstacle(kind)
        if obstacle is not None:
            needed = which == kind or (kind == "cpu" and native.build_policy() == "1")
            if needed and native.build_policy() != "0":
                failures.append(f"the native {NATIVE[kind]} library cannot be compiled: {obstacle}")
            else:
                click.echo(f"native {NATIVE[kind]} library: not compiled: {obstacle}", err=True)
            continue
        try:
            built = native.build(kind, progress=lambda line: click.echo(f"  {line}", err=True))
        except DistillDepthError as error:
            failures.append(str(error))
            continue
        status = native.load(kind)
        if not status.loaded:
            failures.append(f"the native {NATIVE[kind]} library is there, but cannot be used: {status.reason}")
            continue
        done = f"compiled in {built.seconds:.0f} s" if built.seconds else "up to date"
        click.echo(f"native {NATIVE[kind]} library: {done}", err=True)
    return failures


def examine() -> tuple[dict[str, Any], list[str]]:
    """Return what was found, and what has to be repaired before anything works."""
    import torch

    from distilldepth import native
    from distilldepth.benchmark import machine, processor_name
    from distilldepth.cache import cache_folder
    from distilldepth.models import registry

    problems: list[str] = []
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        gpus.append(f"cuda:{index} {properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        gpus.append("mps")
    facts: dict[str, Any] = {
        **{key: value for key, value in machine().items() if key not in ("device", "driver")},
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "packages": {name: _package(name, problems) for name in ("transformers", "diffusers", "accelerate", "pillow")},
        "gpus": gpus,
        "why_no_gpu": None if gpus else _why_no_gpu(torch),
        "cpp_compiler": _version_line(native.find_compiler()),
        "nvcc": _version_line([native.find_nvcc()] if native.find_nvcc() else None, "release"),
        "native": {kind: native.describe(kind) for kind in native.KINDS},
        "kernels": kernel_rows(),
        "bundled_models": [],
        "checkpoints": [],
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "cache": str(cache_folder()),
    }
    for row in registry.describe():
        entry = registry.ENTRIES[row["name"]]
        if entry.bundled:
            facts["bundled_models"].append({"name": row["name"], "present": row["path"] is not None})
        elif row["path"] is not None:
            facts["checkpoints"].append({"name": row["name"], "path": row["path"]})
    missing = [model["name"] for model in facts["bundled_models"] if not model["present"]]
    if missing:
        problems.append(
            f"bundled models are missing from this installation: {', '.join(missing)}; install distilldepth again"
        )
    return facts, problems


def kernel_rows() -> list[dict[str, Any]]:
    """Return which backend every kernel uses on which device, and why it is not a better one."""
    from distilldepth.ops.backend import BACKENDS, available_backends

    forced = os.environ.get("DISTILLDEPTH_BACKEND", "")
    rows = []
    for name, what in KERNELS.items():
        row = {"name": name, "what": what}
        missing = []
        for device in ("cpu", "cuda"):
            available = available_backends(name.replace("-", "_"), device)
            row[device] = available[0]
            if forced:
                row[device] = forced if forced in available else f"{forced} forced, but not there"
            better = BACKENDS[: BACKENDS.index(available[0])]
            if "native" in better:
                missing.append(f"no native {NATIVE[device]} library")
            if "triton" in better and device == "cuda":
                missing.append("no Triton")
        if forced:
            row["why"] = f"DISTILLDEPTH_BACKEND={forced}"
        else:
            row["why"] = ", ".join(missing) or "the first choice on both"
        rows.append(row)
    return rows


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, value: str) -> None:
        table.add_row(name, Text(value))

    commit = f" (commit {facts['commit']})" if facts["commit"] else ""
    add("distilldepth", f"{facts['distilldepth']}{commit}, Python {facts['python']}, {facts['platform']}")
    add("torch", f"{facts['torch']}, threads: {facts['threads']}, CUDA {facts['cuda'] or 'not built in'}")
    add("processor", facts["processor"])
    add("GPU", "; ".join(facts["gpus"]) or f"none: {facts['why_no_gpu']}")
    add("triton", facts["triton"] or "not installed")
    add("C++ compiler", facts["cpp_compiler"] or "not found")
    add("nvcc", facts["nvcc"] or "not found")
    add("packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items()))
    for kind, label in NATIVE.items():
        add(f"native {label} library", _library_line(kind, facts["native"][kind]))
    for row in facts["kernels"]:
        add(f"kernel {row['name']}", f"CPU: {row['cpu']}, CUDA: {row['cuda']} ({row['why']})")
    models = [f"{model['name']}{'' if model['present'] else ' MISSING'}" for model in facts["bundled_models"]]
    add("bundled models", ", ".join(models))
    found = [f"{checkpoint['name']} ({checkpoint['path']})" for checkpoint in facts["checkpoints"]]
    add("checkpoints found", "\n".join(found) or "none: put them into ./checkpoints, or let the hub be reached")
    add("network", "not used (HF_HUB_OFFLINE)" if facts["offline"] else "used for models that are not on this machine")
    add("cache", facts["cache"])
    options.console().print(table)


def _package(name: str, problems: list[str]) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"the package {name} is missing; install distilldepth again")
        return None


def _why_no_gpu(torch: Any) -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a CPU build"
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver found"
    return "torch sees no device; compare the driver's CUDA version with torch's"


def _library_line(kind: str, library: dict[str, Any]) -> str:
    from distilldepth.native import BUILD

    if library["loaded"]:
        return f"{library['path']} ({library['compiler']}, torch {library['torch']})"
    instead = "the operations run as plain torch: the same results, slower and with more memory"
    if kind == "cuda":
        instead = "on a GPU the operations run in Triton, or as plain torch without it"
    reason = library["reason"]
    if library["obstacle"]:
        reason = f"{reason.removesuffix(f'; {BUILD}')} and cannot be built here: {library['obstacle']}"
    return f"{reason}; {instead}"


def _version_line(command: list[str] | None, word: str = "") -> str | None:
    """Path and version of a compiler: the first line of what it says that holds `word`."""
    if command is None:
        return None
    try:
        run = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in run.stdout.splitlines() if word in line]
    return f"{command[0]}: {lines[0] if lines else 'version unknown'}"
