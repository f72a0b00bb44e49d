"""`distilldepth doctor`: what this machine can run, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from distilldepth.cli import options
from distilldepth.cli.table import available_width, format_facts
from distilldepth.models import inventory
from distilldepth.native import KINDS
from distilldepth.words import BACKENDS, KERNELS

NATIVE = {kind: kind.upper() for kind in KINDS}
BUILDS = ("all", *KINDS)


@click.command()
@click.option(
    "--build",
    is_flag=False,
    flag_value="all",
    default=None,
    type=options.NearestChoice(BUILDS),
    metavar=f"[{'|'.join(BUILDS)}]",
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
        _print(facts, problems)
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
    for kind in KINDS if which == "all" else (which,):
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
    from distilldepth.files import cache_folder
    from distilldepth.machine import machine, processor_name

    problems: list[str] = []
    gpus = _gpus()
    facts: dict[str, Any] = {
        **{key: value for key, value in machine().items() if key not in ("device", "driver")},
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": _precision(gpus),
        "packages": {name: _package(name, problems) for name in ("transformers", "diffusers", "accelerate", "pillow")},
        "gpus": gpus,
        "why_no_gpu": None if gpus else _why_no_gpu(),
        "cpp_compiler": _version_line(native.find_compiler()),
        "nvcc": _version_line([nvcc] if (nvcc := native.find_nvcc()) else None, "release"),
        "native": {kind: native.describe(kind) for kind in KINDS},
        "kernels": kernel_rows(),
        **_models(problems),
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "cache": str(cache_folder()),
    }
    facts["advice"] = _advice(facts)
    return facts, problems


def _gpus() -> list[str]:
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        found.append(f"cuda:{index} {properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _precision(gpus: list[str]) -> dict[str, dict[str, Any]]:
    """By kind of device that is here: what `--precision auto` means there, and why."""
    import torch

    from distilldepth.machine import bfloat16_gain, resolve_precision

    kinds = ["cpu", *dict.fromkeys(gpu.partition(":")[0] for gpu in gpus)]
    return {
        kind: {"auto": resolve_precision("auto", torch.device(kind)), "bfloat16_gain": bfloat16_gain(kind)}
        for kind in kinds
    }


def _models(problems: list[str]) -> dict[str, list[dict[str, Any]]]:
    from distilldepth.models import registry

    found: dict[str, list[dict[str, Any]]] = {"bundled_models": [], "checkpoints": []}
    for row in inventory.describe():
        if registry.ENTRIES[row["name"]].bundled:
            found["bundled_models"].append({"name": row["name"], "present": row["path"] is not None})
        elif row["path"] is not None:
            found["checkpoints"].append({"name": row["name"], "path": row["path"]})
    missing = [model["name"] for model in found["bundled_models"] if not model["present"]]
    if missing:
        problems.append(
            f"bundled models are missing from this installation: {', '.join(missing)}; install distilldepth again"
        )
    return found


def has_cuda() -> bool:
    """Whether torch can use an NVIDIA or AMD GPU here."""
    import torch

    return torch.cuda.is_available()


def kernel_rows() -> list[dict[str, Any]]:
    """Return which backend every kernel uses on which device, and why it is not a better one on those that are here."""
    from distilldepth.ops.backend import available_backends

    forced = os.environ.get("DISTILLDEPTH_BACKEND", "")
    devices = KINDS if has_cuda() else ("cpu",)
    rows = []
    for name, what in KERNELS.items():
        row = {"name": name, "what": what}
        missing = []
        for device in KINDS:
            available = available_backends(name.replace("-", "_"), device)
            row[device] = available[0]
            if forced:
                row[device] = forced if forced in available else f"{forced} forced, but not there"
            better = BACKENDS[: BACKENDS.index(available[0])]
            if "native" in better and device in devices:
                missing.append(f"no native {NATIVE[device]} library")
            if "triton" in better and device == "cuda" and device in devices:
                missing.append("no Triton")
        if forced:
            row["why"] = f"DISTILLDEPTH_BACKEND={forced}"
        else:
            row["why"] = ", ".join(missing) or "the first choice"
        rows.append(row)
    return rows


def _advice(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What would make this machine do more: what is missing and what to type; nothing that would not help here."""
    advice = []

    def advise(why: str, command: str) -> None:
        advice.append({"why": why, "type": command})

    library = facts["native"]["cpu"]
    if not library["loaded"] and library["obstacle"] is None:
        advise(
            "the fused losses are not compiled; everything works without them, slower and with more memory",
            "distilldepth doctor --build cpu",
        )
    elif not library["loaded"] and facts["cpp_compiler"] is None and os.name == "posix":
        install = "unset CXX" if os.environ.get("CXX") else _compiler_install()
        advise(
            "the fused losses need a C++ compiler; everything works without them, slower and with more memory",
            f"{install} && distilldepth doctor --build cpu",
        )
    if _gpu_without_torch(facts):
        advise("there is an NVIDIA GPU, but this torch is a CPU build", "pip install --force-reinstall torch")
    if any(gpu.startswith("cuda") for gpu in facts["gpus"]):
        library = facts["native"]["cuda"]
        if not library["loaded"] and library["obstacle"] is None:
            advise("the CUDA kernels are not compiled; Triton runs instead", "distilldepth doctor --build cuda")
        elif not library["loaded"] and facts["triton"] is None and sys.platform == "linux":
            advise("neither the CUDA kernels nor Triton are there for the GPU", "pip install 'distilldepth[triton]'")
    return advice


def _compiler_install() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install"
    managers = {
        "apt-get": "install -y g++",
        "dnf": "install -y gcc-c++",
        "zypper": "install -y gcc-c++",
        "pacman": "-S gcc",
        "apk": "add g++",
    }
    found = next((name for name in managers if shutil.which(name)), "apt-get")
    return f"sudo {found} {managers[found]}"


def _gpu_without_torch(facts: dict[str, Any]) -> bool:
    return not facts["gpus"] and facts["cuda"] is None and any(Path("/proc/driver/nvidia/gpus").glob("*"))


def _print(facts: dict[str, Any], problems: list[str]) -> None:
    commit = f" (commit {facts['commit']})" if facts["commit"] else ""
    cuda = any(gpu.startswith("cuda") for gpu in facts["gpus"])
    lines = [
        ("distilldepth", f"{facts['distilldepth']}{commit}, Python {facts['python']}, {facts['platform']}"),
        ("torch", f"{facts['torch']}, threads: {facts['threads']}"),
        ("processor", f"{facts['processor']}, instructions used: {facts['cpu_capability']}"),
        *((f"precision, {kind}", _precision_line(found)) for kind, found in facts["precision"].items()),
        ("GPU", "; ".join(facts["gpus"]) or f"none: {facts['why_no_gpu']}"),
        ("C++ compiler", facts["cpp_compiler"] or "not found"),
    ]
    if cuda:
        lines += [("nvcc", facts["nvcc"] or "not found"), ("triton", facts["triton"] or "not installed")]
    for kind in NATIVE if cuda else ("cpu",):
        lines.append((f"native {NATIVE[kind]} library", _library_line(kind, facts["native"][kind])))
        lines.append((f"kernels on {NATIVE[kind]}", _kernels_line(kind, facts["kernels"])))
    models = [f"{model['name']}{'' if model['present'] else ' MISSING'}" for model in facts["bundled_models"]]
    packages = [f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items()]
    found = [f"{checkpoint['name']} ({checkpoint['path']})" for checkpoint in facts["checkpoints"]]
    more = [f"{len(found) - 3} more"] if len(found) > 4 else []
    lines += [
        ("packages", ", ".join(packages)),
        ("bundled models", ", ".join(models)),
        ("checkpoints", ", ".join(found[: 3 if more else 4] + more) or "none in ./checkpoints or the hub's cache"),
        ("network", "not used (HF_HUB_OFFLINE)" if facts["offline"] else "used for models that are not here"),
        ("cache", facts["cache"]),
    ]
    width = available_width()
    click.echo("\n".join(format_facts(lines, width)))
    click.echo()
    if not facts["advice"] and not problems:
        click.echo("Nothing is missing that would help this machine.")
    for advice in facts["advice"]:
        why = f"{advice['why'][0].upper()}{advice['why'][1:]}. Type:"
        click.echo(textwrap.fill(why, width) if width else why)
        click.secho(f"    {advice['type']}", bold=True)


def _precision_line(found: dict[str, Any]) -> str:
    gain = found["bfloat16_gain"]
    if gain >= 1:
        speed = f"about {gain:.1f} times as fast as float32"
    else:
        speed = f"{1 / gain:.1f} times slower than float32"
    return f"auto is {found['auto']}; bfloat16 is {speed} here"


def _kernels_line(kind: str, rows: list[dict[str, Any]]) -> str:
    """Which backend runs which kernels: `native: hybrid-norm, crop-ssi`."""
    backends: dict[str, list[str]] = {}
    for row in rows:
        backends.setdefault(row[kind], []).append(row["name"])
    line = "; ".join(f"{backend}: {', '.join(names)}" for backend, names in backends.items())
    reasons = dict.fromkeys(row["why"] for row in rows if row["why"].startswith("DISTILLDEPTH_BACKEND"))
    return line + "".join(f" ({reason})" for reason in reasons)


def _package(name: str, problems: list[str]) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"the package {name} is missing; pip install {name}")
        return None


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a CPU build"
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver found"
    return "torch sees no device; compare the driver's CUDA version with torch's"


def _library_line(kind: str, library: dict[str, Any]) -> str:
    from distilldepth.native import BUILD

    if library["loaded"]:
        return f"{library['path']} ({library['compiler']}, torch {library['torch']})"
    instead = "plain torch runs instead" if kind == "cpu" else "Triton or plain torch runs instead"
    reason = library["reason"].removesuffix(f"; {BUILD}")
    if library["obstacle"]:
        reason = f"{reason} and cannot be built here: {library['obstacle']}"
    return f"{reason}; {instead}"


def _version_line(command: list[str] | None, word: str = "") -> str | None:
    """Path and version of a compiler: the first line of what it says that holds `word`."""
    if command is None:
        return None
    try:
        run = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=300, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in run.stdout.splitlines() if word in line]
    return f"{command[0]}: {lines[0] if lines else 'version unknown'}"
