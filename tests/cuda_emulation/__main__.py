"""Launches every CUDA kernel in the emulation and prints what was launched.

    python -m tests.cuda_emulation [--only OPERATION] [--one-order] [--json FILE] [--shape B,H,W]

First what each operation launches, forward and backward (the normalising losses make their gradient in the forward);
then every kernel of `csrc` with what `selection` launched of it. Exit code 1 if a result is wrong or a kernel was never
launched. CUDA_EMULATION_FLAGS adds flags of the compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distilldepth import ops

from . import Counts, Emulator, kernels, load_operations, obstacle, sources
from .selection import run_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="OPERATION", help="run the calls of one operation, print nothing")
    parser.add_argument("--one-order", action="store_true", help="every call once, in the fastest order")
    parser.add_argument("--json", type=Path, help="write what is printed, and all instantiations, to a file")
    parser.add_argument("--shape", default="2,48,64", help="of the maps in the table of operations: B,H,W")
    options = parser.parse_args()
    reason = obstacle()
    if reason is not None:
        raise SystemExit(f"cuda_emulation: {reason}")
    os.environ["DISTILLDEPTH_BACKEND"] = "native"
    torch.set_num_threads(1)
    emulator = load_operations(options.only)
    began = time.monotonic()
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    if options.only:
        return int(run_cases(emulator, tell, options.only, orders=not options.one_order) == 0)
    operations = measure(emulator, tuple(map(int, options.shape.split(","))))
    emulator.reset()
    calls = run_cases(emulator, tell, orders=not options.one_order)
    counts = emulator.counts()

    print(f"{'operation':14} {'GPU':11} {'pass':9} launches memsets  bytes set   threads   atomics")
    for row in operations:
        print("{:14} {:11} {:9} {:8} {:7} {:10} {:9} {:9}".format(*row.values()))
    table = by_kernel(counts)
    print(f"\n{'kernel':42} variants launches    blocks    threads  shared clusters")
    for name, row in table.items():
        print(f"{name:42} {len(row['variants']):8} {row['launches']:8} {row['blocks']:9} {row['threads']:10} ", end="")
        print(f"{row['shared_bytes']:7} {','.join(map(str, row['cluster_sizes']))}")
    missing = [name for name, row in table.items() if not row["launches"]]
    seconds = time.monotonic() - began
    print(f"\n{calls} calls, {counts.switches / 1e6:.0f} million changes of threads, {seconds:.0f} s")
    if options.json:
        report = {"operations": operations, "kernels": table, "calls": calls, "seconds": round(seconds, 1)}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if missing:
        print(f"never launched: {', '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


def by_kernel(counts: Counts) -> dict[str, dict]:
    """What every kernel in the sources did, all of its instantiations together."""
    names = [name for path in sources() for name in kernels(path)]
    table: dict[str, dict] = {
        name: {"variants": [], "launches": 0, "blocks": 0, "threads": 0, "atomics": 0, "shared_bytes": 0,
               "cluster_sizes": []}
        for name in names
    }  # fmt: skip
    for one in counts.kernels:
        row = table[one.kernel]
        row["variants"].append(one.signature)
        for key in ("launches", "blocks", "threads", "atomics"):
            row[key] += getattr(one, key)
        row["shared_bytes"] = max(row["shared_bytes"], one.shared_bytes)
        row["cluster_sizes"] = sorted({*row["cluster_sizes"], *one.cluster_sizes})
    return table


def measure(emulator: Emulator, shape: tuple[int, ...]) -> list[dict]:
    """What each operation launches on maps of a shape, in float32 with a mask."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.rand(shape, generator=generator) for _ in range(2))
    valid = torch.rand(shape, generator=generator) < 0.8
    batch, height, width = shape
    boxes = torch.tensor([[0.0, 0.0, width, height]]).expand(batch, 4).contiguous()
    index, matrix = torch.arange(batch), torch.tensor([[30.0, 0, 9], [0, 30, 9], [0, 0, 1]])
    image = torch.zeros(batch, 3, height, width)
    calls: dict[str, Callable] = {
        "hybrid_norm": lambda x: ops.hybrid_norm_loss(x, teacher, valid),
        "crop_ssi": lambda x: ops.crop_ssi_loss(x, teacher, boxes, index, valid),
        "channel_kl": lambda x: ops.channel_kl_loss(x, teacher, valid),
        "backproject": lambda x: ops.backproject(x, matrix, valid).nan_to_num().sum(),
        "point_cloud": lambda x: ops.point_cloud(x.detach(), matrix, image, valid)[0],
    }
    rows = []
    for gpu in ("sm_90", "sm_80"):
        emulator.use(gpu)
        for name, call in calls.items():
            leaf = student.clone().requires_grad_()
            emulator.reset()
            result = call(leaf)
            rows.append(_row(name, gpu, "forward", emulator.counts()))
            emulator.reset()
            if result.requires_grad:
                result.backward()
                rows.append(_row(name, gpu, "backward", emulator.counts()))
    return rows


def _row(name: str, gpu: str, direction: str, counts: Counts) -> dict:
    return {
        "operation": name, "gpu": gpu, "direction": direction,
        "launches": sum(one.launches for one in counts.kernels), "memsets": counts.memsets,
        "memset_bytes": counts.memset_bytes, "threads": sum(one.threads for one in counts.kernels),
        "atomics": sum(one.atomics for one in counts.kernels),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
