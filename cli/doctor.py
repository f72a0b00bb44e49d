"""`distilldepth doctor`: what this machine can run, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click

from distilldepth.cli import options

KERNELS = {
    "hybrid-norm": "hybrid depth normalisation loss",
    "crop-ssi": "local-global loss on crops of the student's map",
    "channel-kl": "channel-wise distillation",
    "backproject": "depth to points",
}


@click.command()
@options.json_option
def doctor(json_file: str | None) -> None:
    """Show what this machine can run, and why.

    Looks only: nothing is downloaded, compiled or changed. Exit code 1 if something that every command needs is broken.
    """
    options.check_json_target(json_file)
    facts, problems = examine()
    options.write_json({**facts, "problems": problems}, json_file)
    if json_file != "-":
        _print(facts)
    for problem in problems:
        click.echo(f"distilldepth: error: {problem}", err=True)
    if problems:
        click.get_current_context().exit(1)


def examine() -> tuple[dict[str, Any], list[str]]:
    """Return what was found, and what has to be repaired before anything works."""
    import torch

    from distilldepth.benchmark import machine, processor_name
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
        "cpp_compiler": _first_line(os.environ.get("CXX") or "c++", "--version"),
        "nvcc": _nvcc(),
        "kernels": kernel_rows(),
        "bundled_models": [],
        "checkpoints": [],
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "cache": str(_cache_folder()),
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
    """Return which backend every kernel uses on which device."""
    from distilldepth.ops.backend import available_backends

    forced = os.environ.get("DISTILLDEPTH_BACKEND", "")
    rows = []
    for name, what in KERNELS.items():
        op = name.replace("-", "_")
        row = {"name": name, "what": what}
        for device in ("cpu", "cuda"):
            available = available_backends(op, device)
            row[device] = available[0] if not forced or forced in available else f"{forced} forced, but not there"
            if forced in available:
                row[device] = forced
        if forced:
            row["why"] = f"DISTILLDEPTH_BACKEND={forced}"
        elif available_backends(op, "cpu") == available_backends(op, "cuda") == ("reference",):
            row["why"] = "this version has the plain torch reference only"
        else:
            row["why"] = "the first of native, triton, reference that is there"
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


def _first_line(command: str, argument: str) -> str | None:
    path = shutil.which(command)
    if path is None:
        return None
    try:
        run = subprocess.run([path, argument], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{path}: {run.stdout.partition(chr(10))[0].strip()}"


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    path = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    if path is None:
        return None
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in run.stdout.splitlines() if "release" in line]
    return f"{path}: {lines[0] if lines else 'version unknown'}"


def _cache_folder() -> Path:
    from distilldepth.data.sources import cache_folder

    return cache_folder()
