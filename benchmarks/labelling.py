"""Labelling speed: `distilldepth label` against a plain loop over the model in one process, and its memory.

Same teacher, crops, format and machine; each way runs in a process of its own, in turn. The loop decodes an image, runs
the model on the region and its windows in one pass, encodes and writes, then takes the next; once with one region at a
time and once with the batches that `label` has. `--arithmetic FILE` prints what a collection takes, from such a result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from distilldepth.device import resolve_device
from distilldepth.distill.config import load_config
from distilldepth.distill.crops import crop_config
from distilldepth.images.crops import Regions
from distilldepth.label.encode import Labeller, pack_batch
from distilldepth.label.plan import find_parts
from distilldepth.label.run import label, prepare
from distilldepth.label.task import LabelMachine, LabelTask, open_crops
from distilldepth.machine import command_line, load_average, machine
from distilldepth.teachers.spec import parse_teachers

WAYS = ("label", "loop", "loop, batches")
SA1B = 11_000_000
SETTLED = 200
"""Samples after which memory should not grow."""


def make_task(arguments: argparse.Namespace, out: Path) -> LabelTask:
    """What every way labels."""
    flags: dict[str, Any] = {"images": [arguments.images], "size": arguments.size, "heldout": 0}
    flags |= {"teachers": arguments.teachers, "batch_size": arguments.batch_size}
    config = load_config(preset="photos", settings=[f"crop.patches={arguments.windows}"], flags=flags)
    return LabelTask(
        out=out,
        images=config.images,
        teachers=parse_teachers(config.teachers),
        crops=crop_config(config),
        settings={},
        seed=0,
        heldout=0,
        group=config.batch_size,
        views=arguments.views,
        scene_size=config.scene_height_width,
        max_side=config.crop.max_side or None,
        precision=arguments.precision,
    )


def processor_s() -> float:
    """Seconds of all processors that this process and its children that ended have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Memory:
    """Bytes that this process and its children hold, as the samples go by."""

    def __init__(self) -> None:
        self.done, self.seen = 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.seen.append((self.done, _held_bytes()))

    def most(self, first: int, last: int) -> int:
        """Return the most bytes between two numbers of samples."""
        return max((held for done, held in self.seen if first <= done <= last), default=0)


def _held_bytes() -> int:
    total, own = 0, os.getpid()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and own in (int(entry.name), _parent(entry)):
                # Memory that several of them share counts once in all.
                for line in (entry / "smaps_rollup").read_text().splitlines():
                    total += 1024 * int(line.split()[1]) if line.startswith("Pss:") else 0
        except OSError:
            continue
    return total


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def run_label(task: LabelTask, arguments: argparse.Namespace) -> dict[str, Any]:
    """Label as the command does."""
    began: dict[str, float] = {}
    memory = Memory()

    def start(_total: int) -> Any:
        began["processor"] = processor_s()

        def advance(count: int) -> None:
            memory.done += count

        return advance

    report = label(task, LabelMachine("cpu", workers=arguments.workers, threads=arguments.threads), start=start)
    memory.close()
    shards = list(task.out.glob("*/*.tar"))
    size = sum(path.stat().st_size for path in shards)
    members: dict[str, int] = {}
    for path in shards:
        with tarfile.open(path) as archive:
            for member in archive:
                kind = member.name.partition(".")[2]
                members[kind] = members.get(kind, 0) + member.size
    return {
        "members": {kind: total / report.written for kind, total in members.items()},
        "samples": report.written,
        "seconds": report.seconds,
        "processor_s": processor_s() - began["processor"],
        "bytes": size,
        "settled_bytes": memory.most(SETTLED // 2, SETTLED),
        "most_bytes": memory.most(SETTLED, report.written),
    }


def run_loop(task: LabelTask, size: int) -> dict[str, Any]:
    """The same samples one after another, in one process."""
    crops, device = open_crops(task), resolve_device("cpu")
    task.out.mkdir(parents=True)
    labels, shares, shelf = prepare(task, crops, LabelMachine("cpu"), device)
    used, began, samples, total = processor_s(), time.perf_counter(), 0, 0
    for place, teacher in enumerate(labels.teachers):
        labeller = Labeller(shelf.take(task.teachers[place])[0], device)
        for part in find_parts(labels, shares, place):
            path = task.out / part.url
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                for first in range(0, part.count, size):
                    ordinals = part.ordinals[first : first + size]
                    regions = Regions.collate([crops.training[ordinal] for ordinal in ordinals])
                    numbers = range(part.first + first, part.first + first + len(ordinals))
                    said = labeller.label(regions)
                    for packed in pack_batch(regions, said, labels, teacher.name, numbers, ordinals):
                        total += file.write(packed.content)
                    samples += len(ordinals)
    return {
        "samples": samples,
        "seconds": time.perf_counter() - began,
        "processor_s": processor_s() - used,
        "bytes": total,
    }


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every way in turn, in processes of their own."""
    ways: list[str] = arguments.ways
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(arguments.rounds):
        for place in range(len(ways)):
            way = ways[(turn + place) % len(ways)]
            line = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{way}: {found[way][-1]['samples'] / found[way][-1]['seconds']:.1f} a second", file=sys.stderr)
    rows = []
    for way, runs in found.items():
        rates = sorted(run["samples"] / run["seconds"] for run in runs)
        row: dict[str, Any] = {
            "way": way,
            "samples": runs[0]["samples"],
            "samples_per_s": statistics.median(rates),
            "slowest": rates[0],
            "fastest": rates[-1],
            "processor_ms_per_sample": 1e3 * statistics.median(run["processor_s"] / run["samples"] for run in runs),
            "bytes_per_sample": runs[0]["bytes"] / runs[0]["samples"],
        }
        if way == "label":
            row["bytes_by_member"] = runs[0]["members"]
            row["memory_settled_mb"] = max(run["settled_bytes"] for run in runs) / 1e6
            row["memory_most_mb"] = max(run["most_bytes"] for run in runs) / 1e6
        rows.append(row)
    for row in rows:
        row["label_is_times_as_fast"] = rows[0]["samples_per_s"] / row["samples_per_s"]
    return rows


def arithmetic(file: Path, rates: list[float], windows: int) -> str:
    """What SA-1B takes in the sizes that a result measured, as Markdown."""
    rows = json.loads(file.read_text())["results"]
    each = next(row["bytes_per_sample"] for row in rows if row["way"] == "label")
    shards = -(-SA1B * each // 512e6)
    lines = [
        f"{SA1B / 1e6:.0f} million images, one view each, at {each / 1e3:.0f} kB a sample ({windows} windows): "
        f"{SA1B * each / 1e12:.1f} TB in {shards:.0f} shards of 512 MB.",
        "",
        "| images per second and GPU | GPU hours | 8 GPUs | 64 GPUs |",
        "|---:|---:|---:|---:|",
    ]
    for rate in rates:
        hours = SA1B / rate / 3600
        lines.append(f"| {rate:g} | {hours:,.0f} | {hours / 8:,.1f} h | {hours / 64:,.1f} h |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of photographs")
    parser.add_argument("--teachers", default="dav2-mini")
    parser.add_argument("--size", default="96x128")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--views", type=int, default=8, help="crops of each photograph: 8 of 250 are 2000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of the network in `label`")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--arithmetic", type=Path, metavar="FILE", help="print what SA-1B takes, measure nothing")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 30, 100])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arithmetic:
        print(arithmetic(arguments.arithmetic, arguments.rates, arguments.windows))
        return
    if not arguments.images:
        parser.error("--images must name a folder of photographs")
    if arguments.way:
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(arguments, Path(folder, "labels"))
            if arguments.way == "label":
                result = run_label(task, arguments)
            else:
                result = run_loop(task, 1 if arguments.way == "loop" else arguments.batch_size)
        print(json.dumps(result))
        return
    rows = measure(arguments)
    metadata = {
        **machine("cpu"),
        "command": command_line().replace(arguments.images, "PHOTOS"),
        "load_average": load_average(),
        "images": len(list(Path(arguments.images).iterdir())),
        **{name: getattr(arguments, name) for name in ("teachers", "size", "windows", "batch_size", "views")},
        "loop_threads": torch.get_num_threads(),
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"metadata": metadata, "results": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['way']:14s} {row['samples_per_s']:6.1f} samples a second ({row['slowest']:.1f} to "
            f"{row['fastest']:.1f}), processor {row['processor_ms_per_sample']:.1f} ms each; label is "
            f"{row['label_is_times_as_fast']:.2f}x as fast"
        )
    if rows[0]["way"] != "label":
        return
    print(
        f"memory: {rows[0]['memory_settled_mb']:.0f} MB at the first {SETTLED} samples, "
        f"{rows[0]['memory_most_mb']:.0f} MB up to {rows[0]['samples']}"
    )


if __name__ == "__main__":
    main()
