"""Times every backend of an operation side by side, with its error against float64; `distilldepth bench` prints it.

One row per operation, backend and direction. Times are medians of repeated runs with the 20 and 80 % quantiles. On a
CPU that others use too, only ratios within one run mean something.
"""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilldepth import __version__, reference
from distilldepth.device import resolve_device
from distilldepth.errors import did_you_mean

KERNELS = ("hybrid-norm", "crop-ssi", "channel-kl", "backproject")
CONTEXTS = ("range", "quantile", "spatial")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_SHAPE = (2, 192, 256)
SEGMENTS = (1, 2, 4)
CROPS_PER_IMAGE = 4


@dataclass(frozen=True)
class Case:
    """One operation on fixed inputs."""

    op: str
    inputs: tuple[Tensor, ...]
    """The first one gets a gradient."""
    backends: dict[str, Callable[..., Tensor]]
    """Name: function of the inputs. `reference` is always there and, in float64, is the truth for all."""
    bytes_min: dict[str, int]
    """Direction: bytes that must be read or written at least."""
    note: str = ""


def make_case(
    kernel: str,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    dtype: torch.dtype = torch.float32,
    *,
    contexts: str = "range",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """Return the case of a kernel: inputs that look like depth maps, with a tenth of the pixels not valid.

    Args:
        kernel: one of `KERNELS`.
        shape: `(B, H, W)`.
        dtype: of the maps.
        contexts: of hybrid-norm and crop-ssi.
        device: where.
        seed: of the inputs.

    Raises:
        ValueError: unknown kernel or contexts, or an empty shape.
    """
    if kernel not in KERNELS:
        raise ValueError(f"make_case: kernel must be known, got {kernel!r}{did_you_mean(kernel, KERNELS)}")
    if contexts not in CONTEXTS:
        raise ValueError(f"make_case: contexts must be known, got {contexts!r}{did_you_mean(contexts, CONTEXTS)}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"make_case: shape must be three positive numbers B, H, W, got {shape}")
    batch, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    prediction, target = _maps(shape, generator), _maps(shape, generator)
    target = 0.7 * prediction + 0.3 * target
    valid = torch.rand(shape, generator=generator) > 0.1
    prediction, target, valid = prediction.to(device, dtype), target.to(device, dtype), valid.to(device)
    pixels, item = batch * height * width, prediction.element_size()
    if kernel == "hybrid-norm":
        return Case(
            "hybrid_norm",
            (prediction, target, valid),
            {
                "reference": lambda p, t, v: reference.hybrid_norm_loss(p, t, v, segments=SEGMENTS, contexts=contexts),
                "mask-list": lambda p, t, v: mask_list_loss(p, t, v, segments=SEGMENTS, contexts=contexts),
            },
            {"forward": pixels * (2 * item + 1), "forward+backward": pixels * (3 * item + 1)},
            f"contexts={contexts} segments={','.join(map(str, SEGMENTS))}",
        )
    if kernel == "crop-ssi":
        count = batch * CROPS_PER_IMAGE
        crop_shape = (count, height, width)
        targets = _maps(crop_shape, generator).to(device, dtype)
        corner = torch.rand(count, 2, generator=generator) * 0.4
        extent = torch.tensor([width, height])
        boxes = torch.cat([corner * extent, (corner + 0.5) * extent], dim=1).to(device)
        index = torch.arange(batch).repeat_interleave(CROPS_PER_IMAGE).to(device)
        crop_valid = (torch.rand(crop_shape, generator=generator) > 0.1).to(device)
        crop_pixels = count * height * width
        least = crop_pixels * (item + 1) + pixels * item
        return Case(
            "crop_ssi",
            (prediction, targets, boxes, index, crop_valid),
            {"reference": lambda p, t, b, i, v: reference.crop_ssi_loss(p, t, b, i, v, contexts=contexts)},
            {"forward": least, "forward+backward": least + pixels * item},
            f"crops={count} of {height}x{width} contexts={contexts}",
        )
    if kernel == "channel-kl":
        return Case(
            "channel_kl",
            (prediction[:, None], target[:, None]),
            {"reference": lambda s, t: reference.channel_kl_loss(s, t, temperature=1.0)},
            {"forward": pixels * 2 * item, "forward+backward": pixels * 3 * item},
        )
    intrinsics = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    return Case(
        "backproject",
        (prediction, intrinsics.expand(batch, 3, 3).contiguous().to(device, dtype)),
        {"reference": lambda d, k: reference.backproject(d, k)},
        {"forward": pixels * 4 * item, "forward+backward": pixels * 8 * item},
    )


def _maps(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Smooth positive maps with edges and a little noise, as a network gives."""
    batch, height, width = shape
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    a, b, c = torch.rand(3, batch, 1, 1, generator=generator)
    smooth = 1 + y * (1 + a) + 0.5 * torch.sin(6 * x * (1 + b) + 4 * y) + (x > c).float()
    return smooth + 0.01 * torch.randn(shape, generator=generator)


def mask_list_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, *, segments: Sequence[int], contexts: str
) -> Tensor:
    """The usual formulation of hybrid normalisation, for comparison: one mask per context, a nanmedian over each.

    Same definition as `reference.hybrid_norm_loss`; every context costs several passes over full-size maps.
    """
    height, width = target.shape[1:]
    nan = torch.tensor(float("nan"), dtype=target.dtype, device=target.device)
    shown = torch.where(valid, target, nan).flatten(1)
    masks: list[Tensor] = []
    for count in segments:
        if contexts == "spatial":
            rows = [height * k // count for k in range(count + 1)]
            columns = [width * k // count for k in range(count + 1)]
            for i in range(count):
                for j in range(count):
                    mask = torch.zeros_like(valid)
                    mask[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = True
                    masks.append((mask & valid).flatten(1))
            continue
        shares = torch.linspace(0, 1, count + 1, dtype=torch.float32, device=target.device)
        if contexts == "range":
            flat = target.flatten(1).float()
            low = flat.masked_fill(~valid.flatten(1), math.inf).amin(1)
            high = flat.masked_fill(~valid.flatten(1), -math.inf).amax(1)
            edges = low[:, None] + (high - low)[:, None] * shares
        else:
            edges = torch.nanquantile(shown.float(), shares, dim=1).T
        for k in range(count):
            low, high = edges[:, k : k + 1], edges[:, k + 1 : k + 2]
            above = shown >= low
            masks.append(above & (shown <= high if k == count - 1 else shown < high))
    stacked = torch.stack(masks)
    p, t = prediction.flatten(1).float(), target.flatten(1).float()

    def normalised(values: Tensor) -> Tensor:
        copies = torch.where(stacked, values, nan.float())
        center = torch.nanmedian(copies, dim=2, keepdim=True).values
        spread = torch.nanmean((copies - center).abs(), dim=2, keepdim=True) + 1e-6
        return torch.where(stacked, (values - center) / spread, 0)

    difference = (normalised(p) - normalised(t)).abs()
    holders = stacked.sum(0).clamp(min=1)
    return (difference.sum(0) / holders).sum() / valid.sum().clamp(min=1)


def run_benchmark(
    kernels: Sequence[str] = KERNELS,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    dtype: str = "float32",
    *,
    contexts: str = "range",
    device: str | torch.device = "auto",
    repeats: int = 7,
    command: str = "",
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Time kernels and return `{metadata, results}`, ready for JSON.

    Args:
        kernels: of `KERNELS`.
        shape: `(B, H, W)`.
        dtype: key of `DTYPES`.
        contexts: of hybrid-norm and crop-ssi.
        device: where; `auto` prefers a GPU.
        repeats: timed runs per row, after one that is not counted.
        command: written into the metadata.
        on_row: called with every row as soon as it is measured.

    Returns:
        `metadata` and one row per op, backend and direction: `op, backend, direction, dtype, shape, note, median_ms,
        p20_ms, p80_ms, repeats, peak_bytes` (None where it is not measured), `bytes_min, bandwidth_fraction` (of the
        measured copy bandwidth) and `max_error`: the largest difference from the float64 reference on the same inputs,
        relative to the largest entry there, of the value (forward) or of the gradient (forward+backward). In 16-bit
        types several pixels tie for a median, and formulations that choose another of them differ in the gradient.

    Raises:
        ValueError: unknown kernel, contexts or dtype, or no repeats.
    """
    if dtype not in DTYPES:
        raise ValueError(f"run_benchmark: dtype must be known, got {dtype!r}{did_you_mean(dtype, DTYPES)}")
    if repeats < 1:
        raise ValueError(f"run_benchmark: repeats must be at least 1, got {repeats}")
    place = resolve_device(device)
    cases = [make_case(kernel, shape, DTYPES[dtype], contexts=contexts, device=place) for kernel in kernels]
    copy_bandwidth = _copy_bandwidth(place)
    results = []
    for case in cases:
        truth = _value_and_gradient(case.backends["reference"], case.inputs, torch.float64)
        for backend, function in case.backends.items():
            got = _value_and_gradient(function, case.inputs)
            errors = {direction: _max_error(*pair) for direction, *pair in zip(case.bytes_min, got, truth, strict=True)}
            for direction in ("forward", "forward+backward"):
                times, peak = _time(function, case.inputs, direction, repeats, place)
                median = _quantile(times, 0.5)
                row = {
                    "op": case.op,
                    "backend": backend,
                    "direction": direction,
                    "dtype": dtype,
                    "shape": list(shape),
                    "note": case.note,
                    "median_ms": median * 1e3,
                    "p20_ms": _quantile(times, 0.2) * 1e3,
                    "p80_ms": _quantile(times, 0.8) * 1e3,
                    "repeats": repeats,
                    "peak_bytes": peak,
                    "bytes_min": case.bytes_min[direction],
                    "bandwidth_fraction": case.bytes_min[direction] / median / copy_bandwidth,
                    "max_error": errors[direction],
                }
                results.append(row)
                if on_row is not None:
                    on_row(row)
    return {"metadata": {**machine(place), "copy_bytes_per_s": copy_bandwidth, "command": command}, "results": results}


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what a measurement depends on: versions, device, driver, threads."""
    device = torch.device(device)
    name = processor_name() if device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "distilldepth": __version__,
        "commit": _commit(),
        "device": f"{device.type}: {name}",
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def processor_name() -> str:
    """Return the processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit; None for an installed package, whose version says it."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _copy_bandwidth(device: torch.device, megabytes: int = 64) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    times, _ = _time(lambda s: target.copy_(s), (source,), "forward", 5, device)
    return 2 * source.numel() * source.element_size() / _quantile(times, 0.5)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _time(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], direction: str, repeats: int, device: torch.device
) -> tuple[list[float], int | None]:
    backward = direction == "forward+backward"
    first = inputs[0].detach().clone().requires_grad_(backward)

    def once() -> None:
        first.grad = None
        with torch.set_grad_enabled(backward):
            output = function(first, *inputs[1:])
        if backward:
            output.sum().backward()

    once()
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    times = []
    for _ in range(repeats):
        _synchronise(device)
        began = time.perf_counter()
        once()
        _synchronise(device)
        times.append(time.perf_counter() - began)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
    return times, peak


def _quantile(times: list[float], share: float) -> float:
    return float(torch.tensor(times, dtype=torch.float64).quantile(share))


def _value_and_gradient(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    inputs = tuple(x.to(dtype) if dtype is not None and x.is_floating_point() else x for x in inputs)
    first = inputs[0].detach().clone().requires_grad_(True)
    output = function(first, *inputs[1:])
    output.sum().backward()
    return output.detach(), first.grad


def _max_error(got: Tensor, truth: Tensor) -> float:
    truth = truth.double()
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def command_line() -> str:
    """Return the command that was typed, for the metadata."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
